//! A new spool in the place of a damaged one.

use std::path::Path;

use super::{OpenError, SpoolSettings, schema::open_connection, set_meta};
use crate::store::{
    SalvageError,
    salvage::{self, Salvaged},
};

/// Begins a new file with what can be read of a damaged one, and sets that aside whole. The new file is built beside the old
/// one and takes its place last, so that a start that fails or dies on the way finds everything as it was.
pub(super) fn begin_anew(settings: &SpoolSettings, error: &rusqlite::Error) -> Result<(), OpenError> {
    let path = &settings.path;
    let files = |error| OpenError::Damaged {
        path: path.clone(),
        error,
    };
    let anew = SpoolSettings {
        path: salvage::beside(path, salvage::UNFINISHED),
        ..settings.clone()
    };
    let needs = salvage::room_for(path);
    salvage::remove(&anew.path);
    let salvaged = build(path, &anew).map_err(|error| {
        salvage::remove(&anew.path);
        OpenError::Salvage {
            path: path.clone(),
            error,
            needs,
        }
    })?;
    let whole = salvage::beside(path, salvage::WHOLE);
    std::fs::rename(&anew.path, &whole).map_err(files)?;
    salvage::remove(&anew.path);
    let aside = salvage::set_aside(path).map_err(files)?;
    std::fs::rename(&whole, path).map_err(files)?;
    log::error!(
        "spool: {} is damaged ({error}) and was set aside as {}; salvaged: {salvaged}. A new epoch begins, and rooms go on when \
         the store has told their last seq",
        path.display(),
        aside.display(),
    );
    Ok(())
}

/// Makes a spool of what can be read of a damaged one.
fn build(damaged: &Path, anew: &SpoolSettings) -> Result<Salvaged, SalvageError> {
    let sqlite = |error| SalvageError::sqlite(&anew.path, error);
    let connection = open_connection(anew).map_err(sqlite)?;
    connection.execute_batch("BEGIN IMMEDIATE").map_err(sqlite)?;
    let salvaged = salvage::carry_over(damaged, &anew.path, &connection, anew.embedded)?;
    set_meta(&connection, "salvaged", 1).map_err(sqlite)?;
    connection
        .execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
        .map_err(sqlite)?;
    connection.close().map_err(|(_, error)| sqlite(error))?;
    Ok(salvaged)
}
