//! Whom the server believes: the keys of tokens, the gateway, the proxies in front of it.

use std::sync::Arc;

use actix_web::rt::task::JoinHandle;
use chatting_actors::metrics::Metrics;

use crate::{
    auth::{
        Gateway, Net, TokenVerifier,
        jwks::{Refresh, keep_fetching},
    },
    settings::{AuthMode, Settings},
    startup::{self, StartError},
};

/// What tells who sends a request, and whose word on that counts.
pub(super) struct Trust {
    pub tokens: Arc<TokenVerifier>,
    /// `auth.mode = "gateway"`
    pub gateway: Option<Gateway>,
    /// `auth.trusted_proxies`
    pub proxies: Vec<Net>,
}

/// Begins to fetch published keys, too, where there are any.
pub(super) async fn open_trust(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<(Trust, Option<JoinHandle<()>>), StartError> {
    let (tokens, fetching) = open_keys(settings, metrics).await?;
    let trust = Trust {
        tokens,
        gateway: open_gateway(settings)?,
        proxies: startup::trusted_proxies(settings)?,
    };
    Ok((trust, fetching))
}

/// What verifies tokens, and what fetches published keys for it, where there are any. An address that gives none now does
/// not stop a start; a file that holds none does.
async fn open_keys(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<(Arc<TokenVerifier>, Option<JoinHandle<()>>), StartError> {
    let keys = startup::keys(settings)?;
    let source = startup::jwks_source(settings)?;
    let refresh = source
        .as_ref()
        .map(|_| Arc::new(Refresh::new(startup::refresh_settings(settings))));
    let tokens = Arc::new(TokenVerifier::new(
        startup::token_rules(settings),
        keys,
        refresh.clone(),
        settings.auth.cache_max,
        metrics.clone(),
    ));
    let (Some(source), Some(refresh)) = (source, refresh) else {
        return Ok((tokens, None));
    };
    match refresh.fetch(&source, &tokens, metrics).await {
        Ok(()) => {}
        Err(error) if source.is_file() => return Err(StartError::Config(format!("{source}: {error}"))),
        Err(error) => log::warn!("tokens: {source}: {error}; it is asked again"),
    }
    let fetching = keep_fetching(refresh, source, Arc::clone(&tokens), metrics.clone());
    Ok((tokens, Some(actix_web::rt::spawn(fetching))))
}

/// The gateway whose headers are believed, where there is one.
fn open_gateway(settings: &Settings) -> Result<Option<Gateway>, StartError> {
    if settings.auth.mode == AuthMode::Token {
        return Ok(None);
    }
    let gateway = Gateway::new(startup::gateway_settings(settings)?);
    if !gateway.has_secret() {
        log::warn!(
            "gateway: auth.gateway_secret is not set, so the x-forward headers of every request from \
             auth.trusted_proxies are believed, also those that the gateway only passes on"
        );
    }
    Ok(Some(gateway))
}
