//! Where a JWK set is: at an HTTP or HTTPS address, or in a file.
//!
//! No redirect is followed, only a 200 counts, and no more than `auth.jwks_max_bytes` are read.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use actix_web::http::{StatusCode, header};
use awc::{Client, Connector};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::set::{Published, read};
use crate::{
    files::{off_thread, one_at_a_time, read_bounded},
    settings::Algorithm,
};

/// Where, and what is taken from there.
#[derive(Clone, Debug)]
pub struct SourceSettings {
    /// `auth.jwks_url`
    pub url: String,
    /// `auth.jwks_ca_file`; empty for the public authorities.
    pub ca_file: String,
    /// `auth.jwks_algorithms`
    pub algorithms: Vec<Algorithm>,
    /// `auth.jwks_max_bytes`
    pub max_bytes: usize,
    /// `auth.jwks_timeout_ms`
    pub timeout: Duration,
}

/// Reads the set anew at each [`Source::fetch`]; what is wrong with it is told in words for the log. Not `Send`: it
/// lives where it is made.
pub struct Source {
    settings: SourceSettings,
    from: From,
}

enum From {
    File { path: String, reading: Arc<AtomicBool> },
    Http(Client),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auth.jwks_url")
    }
}

impl Source {
    /// Connects when it is first used. The error names the setting.
    pub fn new(settings: SourceSettings) -> Result<Self, String> {
        let from = match settings.url.strip_prefix("file://") {
            Some(path) => From::File {
                path: path.to_owned(),
                reading: Arc::default(),
            },
            None => {
                // Both have times of their own, which are not to be over before the setting's is.
                let connector = Connector::new()
                    .timeout(settings.timeout)
                    .handshake_timeout(settings.timeout);
                let connector = connector.limit(1).rustls_0_23(Arc::new(tls(&settings.ca_file)?));
                let client = Client::builder().connector(connector);
                From::Http(client.disable_timeout().disable_redirects().finish())
            }
        };
        Ok(Self { settings, from })
    }

    /// Whether it is a file of this machine.
    pub fn is_file(&self) -> bool {
        matches!(self.from, From::File { .. })
    }

    /// Whether a file holds a set with keys to use, read here and now. What is at an address is not asked for.
    pub fn check_file(&self) -> Result<(), String> {
        let From::File { path, .. } = &self.from else {
            return Ok(());
        };
        let body = read_bounded(path, self.settings.max_bytes)?;
        read(&body, &self.settings.algorithms).map(|_| ())
    }

    /// The keys that are there now. The caller bounds the time.
    pub async fn fetch(&self) -> Result<Published, String> {
        let max = self.settings.max_bytes;
        let body = match &self.from {
            From::File { path, reading } => {
                let file = path.clone();
                let read = one_at_a_time(reading, path, move || read_bounded(&file, max))?;
                off_thread(read).await?
            }
            From::Http(client) => {
                let request = client
                    .get(&self.settings.url)
                    .insert_header((header::ACCEPT, "application/jwk-set+json, application/json"));
                let mut answer = request.send().await.map_err(|error| error.to_string())?;
                if answer.status() != StatusCode::OK {
                    return Err(format!("status {}", answer.status().as_u16()));
                }
                let body = answer.body().limit(max).await;
                body.map_err(|error| error.to_string())?.to_vec()
            }
        };
        read(&body, &self.settings.algorithms)
    }
}

/// Whom an https address must be certified by: those of the file, or else the public authorities.
fn tls(ca_file: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if ca_file.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else {
        let wrong = |error: &dyn fmt::Display| format!("auth.jwks_ca_file: {ca_file}: {error}");
        for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"it holds no certificate"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| format!("auth.jwks_url: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
