//! Events into the log, a batch at a time, and what MongoDB will never take of them.

use std::{sync::Arc, time::Duration};

use chatting_actors::{
    seams::{Poison, StoreBatch, StoreError},
    types::Event,
};
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};

use super::{
    super::NUMBERING_CONFLICT,
    Mongo, SEQ_INDEX,
    client::wtimeout,
    document::{self, bson_uuid},
    failed,
    fields::Fields,
};

pub(super) const DUPLICATE_KEY: i32 = 11000;
/// The codes of errors that a document earns for what it is: no retry changes them.
pub(super) const DOCUMENT_FAULTS: [i32; 8] = [
    2,     // BadValue
    22,    // InvalidBSON
    52,    // DollarPrefixedFieldName
    121,   // DocumentValidationFailure
    10334, // BSONObjectTooLarge
    17280, // KeyTooLong
    17419, // an update makes it too large
    17420, // an upsert would be too large
];

/// Bytes of documents in one command; a command may have 16 MiB.
pub(super) const COMMAND_BYTES: usize = 8 * 1024 * 1024;

impl Mongo {
    pub(super) async fn append(&self, batch: StoreBatch) -> Result<Vec<Poison>, StoreError> {
        let stored = self.insert_and_apply(batch).await;
        if stored.is_err() {
            // It may have been restored from a backup since.
            self.progress().forget_marked();
        }
        stored
    }

    async fn insert_and_apply(&self, batch: StoreBatch) -> Result<Vec<Poison>, StoreError> {
        let (mut poison, mut from) = (Vec::new(), 0);
        while from < batch.len() {
            let mut bytes = 0;
            let fits = |event: &&Arc<Event>| {
                bytes += document::size(event);
                bytes <= COMMAND_BYTES
            };
            let count = batch[from..].iter().take_while(fits).count().max(1);
            self.insert(&batch[from..from + count], from, &mut poison).await?;
            from += count;
        }
        self.apply_acts(&batch, poison).await
    }

    /// Inserts events in one command, which is written here, into one buffer: the driver's `insert_many` goes over each
    /// document three times more. What it will never take is told in `poison`, counted from `from`.
    async fn insert(&self, events: &[Arc<Event>], from: usize, poison: &mut Vec<Poison>) -> Result<(), StoreError> {
        let command = insert_command(self.log_name(), events, self.write_timeout);
        let answer = self.timed(self.database.run_raw_command(command).into_future());
        let answer = answer.await.map_err(failed)?;
        if let Ok(error) = answer.get_document("writeConcernError") {
            return Err(StoreError(error.to_string()));
        }
        let Ok(errors) = answer.get_array("writeErrors") else {
            return Ok(());
        };
        for error in errors.iter().filter_map(Bson::as_document) {
            let (code, message) = (error.get_i32("code"), error.get_str("errmsg").unwrap_or_default());
            let index = error
                .get_i32("index")
                .ok()
                .and_then(|index| usize::try_from(index).ok());
            let (Some(index), Ok(code)) = (index.filter(|index| *index < events.len()), code) else {
                return Err(StoreError(error.to_string()));
            };
            let reason = if code == DUPLICATE_KEY {
                // On `_id`: stored already. On our index: another event in its place, unless it is this very one.
                if is_of_id(error) || self.holds(&events[index]).await? {
                    continue;
                }
                match index_of(message) {
                    SEQ_INDEX => format!("{NUMBERING_CONFLICT}: {message}"),
                    // What MongoDB says behind the name may be what somebody wrote.
                    name => format!("{name} is a unique index that the server knows nothing of"),
                }
            } else if DOCUMENT_FAULTS.contains(&code) {
                format!("{code}: {message}")
            } else {
                return Err(StoreError(error.to_string()));
            };
            poison.push(Poison {
                index: from + index,
                reason,
            });
        }
        Ok(())
    }

    async fn holds(&self, event: &Event) -> Result<bool, StoreError> {
        let one = self.timed(self.log.find_one(doc! { "_id": bson_uuid(event.id) }).into_future());
        Ok(one.await.map_err(failed)?.is_some())
    }
}

/// The command that inserts these events durably, in no order; its answer is waited for so long.
pub(crate) fn insert_command(collection: &str, events: &[Arc<Event>], patience: Duration) -> RawDocumentBuf {
    let bytes = events.iter().map(|event| document::size(event)).sum::<usize>() + 256;
    let mut command = Fields::with_capacity(bytes);
    command.text("insert", collection);
    command.flag("ordered", false);
    command.document("writeConcern", |concern| {
        concern.text("w", "majority");
        concern.flag("j", true);
        concern.number("wtimeout", wtimeout(patience));
    });
    command.documents("documents", events.iter(), |fields, event| {
        document::write(fields, event);
    });
    command.finish()
}

/// The name of the index that has a key already. What comes after it may be anything that somebody said.
fn index_of(message: &str) -> &str {
    let named = message.split_once(" index: ").map_or("", |(_, named)| named);
    named.split_once(" dup key").map_or(named, |(name, _)| name)
}

/// Whether it is the document's own id that is there already.
pub(super) fn is_of_id(error: &Document) -> bool {
    let keys = error.get_document("keyPattern");
    keys.is_ok_and(|keys| keys.keys().eq(["_id"])) || error.get_str("errmsg").is_ok_and(|text| index_of(text) == "_id_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver sends a command as it is, without the client's write concern.
    #[test]
    fn rule_04_what_inserts_events_asks_for_a_majority_with_journal_itself() {
        let command = insert_command("chatting_log", &[], Duration::from_secs(10));
        let command = command.to_document().unwrap();
        let durable = command.get_document("writeConcern");
        assert_eq!(durable, Ok(&doc! { "w": "majority", "j": true, "wtimeout": 9_000_i64 }));
    }

    #[test]
    fn a_duplicate_key_is_of_the_index_that_mongodb_names_whatever_was_said() {
        let of = |index: &str, key: &str| {
            format!("E11000 duplicate key error collection: chat.log index: {index} dup key: {{ {key} }}")
        };
        let said = of("theirs", "message: \" index: _id_ dup key\"");
        assert_eq!(index_of(&said), "theirs");
        assert!(!is_of_id(&doc! { "keyPattern": { "message": 1 }, "errmsg": &said }));
        assert!(!is_of_id(&doc! { "errmsg": &said }));
        assert!(is_of_id(&doc! { "errmsg": of("_id_", "_id: 1") }));
        // Of a clustered collection, whose ids have no index.
        assert!(is_of_id(
            &doc! { "keyPattern": { "_id": 1 }, "errmsg": "E11000 duplicate key error" }
        ));
        assert!(!is_of_id(
            &doc! { "keyPattern": { "_id": 1, "epoch": 1 }, "errmsg": of("two", "") }
        ));
    }
}
