//! What a start says of itself: the version, the settings that were changed, the actors' mailboxes, the addresses. What was
//! found in spool and store is told where they are opened.

use std::{collections::BTreeMap, path::Path};

use super::Failure;
use crate::{
    VERSION,
    app::App,
    settings::{Layer, Loaded, Settings},
};

/// Before anything is opened, so that a start that fails has said what it was to be.
pub(super) fn begin(settings: &Settings, origins: &BTreeMap<String, Layer>) {
    log::info!("chatting-server {VERSION}, process {}", std::process::id());
    for setting in settings.shown(origins).into_iter().filter(|setting| setting.changed) {
        log::info!("setting {setting}");
    }
    for (name, section) in settings.sections() {
        let Some(actor) = name.strip_prefix("actors.") else {
            continue;
        };
        let numbers: Vec<String> = section
            .keys()
            .iter()
            .filter_map(|key| Some(format!("{} {}", key.name, section.get(key.name)?)))
            .collect();
        log::info!("actor {actor}: {}", numbers.join(", "));
    }
}

/// Says where the server listens, in the log and in the port file.
pub(super) fn listening(app: &App, settings: &Settings, port_file: Option<&Path>) -> Result<(), Failure> {
    log::info!(
        "listening on http://{} (log: {}, rooms: {})",
        app.addr(),
        settings.log.backend,
        settings.room.mode
    );
    if let Some(ops) = app.ops_addr() {
        log::info!("operations on http://{ops}");
    }
    match port_file {
        Some(path) => {
            // Renamed into place, so that whoever waits for the file never reads half of it.
            let beside = path.with_extension("new");
            let written = std::fs::write(&beside, app.addr().to_string()).and_then(|()| std::fs::rename(&beside, path));
            written.map_err(|error| Failure::unavailable(format!("--port-file {}: {error}", path.display())))
        }
        None => Ok(()),
    }
}

/// Every key as `check-config` prints it, or those only that were changed.
pub(super) fn effective(loaded: &Loaded, only_changed: bool) -> String {
    let shown = loaded.settings.shown(&loaded.origins).into_iter();
    let lines: Vec<String> = shown
        .filter(|setting| setting.changed || !only_changed)
        .map(|setting| format!("{} = {}  # {}\n", setting.key, setting.value, setting.layer))
        .collect();
    match lines.concat() {
        none if none.is_empty() => "# every key has its default\n".to_owned(),
        text => text,
    }
}
