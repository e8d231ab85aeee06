//! All that a room has in a log, as the server's own reading would put it together.

use chatting_actors::types::{Event, PresenterIdx, Seq};
use chatting_server::store::{
    Archive, Scan,
    history::{History, HistoryError, Query, Start},
};

/// More than any test has.
const ALL: usize = 100_000;

/// A room's events in a store, all numberings together, in order.
pub async fn stored(store: &dyn Archive, presenter: PresenterIdx) -> Vec<Event> {
    let mut events = Vec::new();
    for epoch in store.epochs(presenter).await.unwrap() {
        let scan = Scan {
            presenter,
            epoch,
            after: Seq(0),
            through: Seq(u64::MAX),
            user: None,
            newest_first: false,
            limit: ALL,
        };
        let found = store.scan(scan).await.unwrap();
        events.extend(found.into_iter().map(|logged| logged.event));
    }
    events.sort_by_key(|event| (event.seq, event.id));
    events
}

/// At most `limit` of a room's events after `after`, from wherever they are, in order.
pub async fn read(
    history: &History,
    presenter: PresenterIdx,
    after: Seq,
    limit: usize,
) -> Result<Vec<Event>, HistoryError> {
    let query = Query {
        presenter,
        start: Start::After(after),
        user: None,
        text: None,
        from_ms: None,
        to_ms: None,
        deleted_too: true,
        limit,
        scan_limit: limit,
    };
    let page = history.page(&query).await?;
    Ok(page.events.into_iter().map(|logged| logged.event).collect())
}
