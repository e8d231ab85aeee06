//! Figures by SQL, on a connection of their own and in one snapshot.

use std::time::{Duration, Instant};

use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::{Epoch, Seq, UserIdx},
};
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, functions::FunctionFlags, named_params, types::Value};

use super::SqliteStore;
use crate::store::figures::{Counted, Figures, FiguresQuery, LONGEST_WAIT_SECONDS, Sender, words};

/// The events of the broadcast's spans, which are given as JSON; the order of the join is as written, so each span is one range of
/// the log's key. A span is as wide as numbers had been given; those of a commit that failed were given again, maybe to another
/// broadcast's messages.
macro_rules! said {
    () => {
        "json_each(:spans) AS span CROSS JOIN chatting_log AS log
         ON log.presenter_idx = :room AND log.epoch = span.value ->> 'epoch'
         AND log.seq > span.value ->> 'after' AND log.seq <= span.value ->> 'through'
         WHERE log.kind = 'chat' AND log.deleted_at IS NULL AND IFNULL(log.broadcast_id, :broadcast) = :broadcast
         AND log.sent_at >= :from"
    };
}

/// The first event of a later broadcast.
const LATER: &str = "
SELECT seq FROM chatting_log WHERE presenter_idx = :room AND epoch = :epoch AND seq > :after AND broadcast_id > :broadcast
ORDER BY seq LIMIT 1";

const LAST: &str = "
SELECT epoch, seq FROM chatting_log WHERE presenter_idx = :room AND epoch = :epoch AND seq > :after AND seq <= :through
  AND IFNULL(broadcast_id, :broadcast) = :broadcast
ORDER BY seq DESC LIMIT 1";

const BUCKETS: &str = concat!(
    "SELECT MIN(offset_ms(log.sent_at) / :bucket, :last) AS bucket, COUNT(*) FROM ",
    said!(),
    " GROUP BY bucket ORDER BY bucket"
);

/// With `MAX`, the other columns are of the row that has it.
const SENDERS: &str = concat!(
    "SELECT log.user_idx, COUNT(*) AS messages, MAX(log.id), log.nickname, COUNT(*) OVER () FROM ",
    said!(),
    " GROUP BY log.user_idx ORDER BY messages DESC, log.user_idx LIMIT :top"
);

const WORDS: &str = concat!(
    "SELECT word.value, COUNT(*) AS messages FROM (SELECT words(log.message) AS list FROM ",
    said!(),
    ") AS text CROSS JOIN json_each(text.list) AS word GROUP BY word.value ORDER BY messages DESC, word.value LIMIT :top"
);

/// The presenter's messages by the index of users, and for each one step of the log's key to who waited.
const WAITS: &str = "
WITH reply AS (
  SELECT log.epoch, log.seq, log.sent_at,
    LAG(log.seq, 1, span.value ->> 'after') OVER (PARTITION BY span.key ORDER BY log.seq) AS before
  FROM json_each(:spans) AS span CROSS JOIN chatting_log AS log INDEXED BY chatting_log_by_user
    ON log.user_idx = :room AND log.presenter_idx = :room AND log.epoch = span.value ->> 'epoch'
    AND log.seq > span.value ->> 'after' AND log.seq <= span.value ->> 'through'
  WHERE log.kind = 'chat' AND log.deleted_at IS NULL AND IFNULL(log.broadcast_id, :broadcast) = :broadcast
    AND log.sent_at >= :from)
SELECT MIN((sent_at - since) / 1000, :longest) AS wait, COUNT(*) FROM (
  SELECT reply.sent_at, (
    SELECT first.sent_at FROM chatting_log AS first
    WHERE first.presenter_idx = :room AND first.epoch = reply.epoch AND first.seq > reply.before AND first.seq < reply.seq
      AND first.kind = 'chat' AND first.deleted_at IS NULL AND IFNULL(first.broadcast_id, :broadcast) = :broadcast
      AND first.sent_at >= :from
    ORDER BY first.seq LIMIT 1) AS since
  FROM reply)
WHERE since IS NOT NULL GROUP BY wait ORDER BY wait";

/// How many steps of SQLite's machine lie between two looks at the clock.
const STEPS_BETWEEN_LOOKS: i32 = 100_000;

impl Figures for SqliteStore {
    fn figures(&self, query: FiguresQuery) -> BoxFuture<'_, Result<Counted, StoreError>> {
        self.look(move |connection| count(connection, query))
    }
}

fn count(connection: &mut Connection, mut query: FiguresQuery) -> rusqlite::Result<Counted> {
    give_up_after(connection, query.patience)?;
    add_functions(connection, &query)?;
    let snapshot = connection.transaction()?;
    find_ends(&snapshot, &mut query.broadcast)?;
    let mut counted = Counted {
        through: last(&snapshot, &query.broadcast)?,
        ..Counted::default()
    };
    let room = query.broadcast.presenter.get();
    let id = &query.broadcast.id.as_bytes()[..];
    let (spans, from) = (spans(&query.broadcast), query.from_ms());
    let top = super::count(query.top);
    let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
    let mut buckets = snapshot.prepare(BUCKETS)?;
    let asked = named_params! {
        ":spans": spans, ":room": room, ":broadcast": id, ":from": from, ":bucket": query.bucket_ms, ":last": query.last_bucket
    };
    counted.buckets = buckets.query_map(asked, pair)?.collect::<rusqlite::Result<_>>()?;
    let mut senders = snapshot.prepare(SENDERS)?;
    let asked = named_params! { ":spans": spans, ":room": room, ":broadcast": id, ":from": from, ":top": top };
    let mut rows = senders.query(asked)?;
    while let Some(row) = rows.next()? {
        counted.senders = row.get::<_, i64>(4)?.cast_unsigned();
        counted.top_senders.extend(
            UserIdx::new(row.get(0)?)
                .map(|user_idx| {
                    Ok::<_, rusqlite::Error>(Sender {
                        user_idx,
                        nickname: row.get(3)?,
                        messages: row.get::<_, i64>(1)?.cast_unsigned(),
                    })
                })
                .transpose()?,
        );
    }
    let mut words = snapshot.prepare(WORDS)?;
    let asked = named_params! { ":spans": spans, ":room": room, ":broadcast": id, ":from": from, ":top": top };
    let pair_of_text = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
    counted.top_words = words.query_map(asked, pair_of_text)?.collect::<rusqlite::Result<_>>()?;
    let mut waits = snapshot.prepare(WAITS)?;
    let asked = named_params! {
        ":spans": spans, ":room": room, ":broadcast": id, ":from": from, ":longest": LONGEST_WAIT_SECONDS
    };
    counted.waits = waits.query_map(asked, pair)?.collect::<rusqlite::Result<_>>()?;
    Ok(counted)
}

fn give_up_after(connection: &mut Connection, patience: Duration) -> rusqlite::Result<()> {
    let until = Instant::now() + patience;
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() > until))
}

/// The functions that the statements use: where in the broadcast a time is, and the words of a text.
fn add_functions(connection: &Connection, query: &FiguresQuery) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    let (broadcast, corrected) = (query.broadcast.clone(), query.corrected_start_ms);
    connection.create_scalar_function("offset_ms", 1, flags, move |context| {
        Ok(broadcast.offset_ms(context.get(0)?, corrected))
    })?;
    connection.create_scalar_function("words", 1, flags, |context| {
        let text = context.get_raw(0).as_str().unwrap_or_default();
        let mut found = words::words(text);
        found.retain(|word| !words::STOP_WORDS.contains(&word.as_str()));
        // Letters, digits and one mark, none of which JSON escapes.
        Ok(if found.is_empty() {
            Value::Null
        } else {
            Value::Text(format!("[\"{}\"]", found.join("\",\"")))
        })
    })
}

/// Where nobody knows how far it went, it had ended when a later broadcast began.
fn find_ends(connection: &Connection, broadcast: &mut Broadcast) -> rusqlite::Result<()> {
    for n in 0..broadcast.spans.len() {
        let is_without_end = broadcast.is_without_end(n);
        let (room, id) = (broadcast.presenter.get(), broadcast.id.into_bytes());
        if let Some(span) = broadcast.spans.get_mut(n).filter(|_| is_without_end) {
            let asked = named_params! {
                ":room": room,
                ":broadcast": &id[..],
                ":epoch": &*span.epoch.0,
                ":after": span.after.0.cast_signed(),
            };
            let later = connection.prepare(LATER)?.query_row(asked, |row| row.get::<_, i64>(0));
            span.through = later
                .optional()?
                .map(|later| Seq(later.cast_unsigned().saturating_sub(1)));
        }
    }
    Ok(())
}

/// The spans as JSON; one that has no end yet has the greatest number.
fn spans(broadcast: &Broadcast) -> String {
    let spans = broadcast.spans.iter().map(|span| {
        serde_json::json!({
            "epoch": span.epoch,
            "after": span.after.0.cast_signed(),
            "through": span.through.map_or(i64::MAX, |through| through.0.cast_signed()),
        })
    });
    serde_json::Value::from_iter(spans).to_string()
}

/// The last event of the last span that has one.
fn last(connection: &Connection, broadcast: &Broadcast) -> rusqlite::Result<Option<(Epoch, Seq)>> {
    let mut last = connection.prepare(LAST)?;
    for span in broadcast.spans.iter().rev() {
        let asked = named_params! {
            ":room": broadcast.presenter.get(),
            ":broadcast": &broadcast.id.as_bytes()[..],
            ":epoch": &*span.epoch.0,
            ":after": span.after.0.cast_signed(),
            ":through": span.through.map_or(i64::MAX, |through| through.0.cast_signed()),
        };
        let found = last.query_row(asked, |row| {
            Ok((
                Epoch(row.get::<_, String>(0)?.into()),
                Seq(row.get::<_, i64>(1)?.cast_unsigned()),
            ))
        });
        if let Some(found) = found.optional()? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
