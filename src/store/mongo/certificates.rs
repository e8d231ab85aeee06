//! The files that a URI names, looked at before the driver does.
//!
//! The driver reads them when a client is made, and never again: a wrong one is to be told before anything is opened. Of `tlsCAFile` it
//! leaves out what it cannot read; with nothing left it would trust no server, and say so only when it connects.

use std::{path::Path, sync::Arc};

use mongodb::options::TlsOptions;
use rustls::{
    ClientConfig, Error, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::files::read_bounded;

/// Far more than any of them has: all public authorities together take a quarter of it.
const FILE_MAX_BYTES: usize = 1_048_576;

/// Whether the driver can use them. The error names the option and the file, and shows nothing of what is in it.
pub(super) fn check(files: &TlsOptions) -> Result<(), String> {
    if let Some(path) = &files.ca_file_path {
        authorities(path).map_err(|why| format!("tlsCAFile: {why}"))?;
    }
    if let Some(path) = &files.cert_key_file_path {
        own(path).map_err(|why| format!("tlsCertificateKeyFile: {why}"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_bounded(&path.to_string_lossy(), FILE_MAX_BYTES)
}

/// Who certifies servers.
fn authorities(path: &Path) -> Result<(), String> {
    let pem = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).flatten();
    match RootCertStore::empty().add_parsable_certificates(certificates) {
        (0, _) => Err(format!("{} holds no certificate in PEM", path.display())),
        _ => Ok(()),
    }
}

/// A certificate of our own, and its key.
fn own(path: &Path) -> Result<(), String> {
    let pem = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>();
    let (Ok(certificates), Ok(key)) = (certificates, PrivateKeyDer::from_pem_slice(&pem)) else {
        return Err(format!(
            "{} does not hold a certificate and its key in PEM",
            path.display()
        ));
    };
    present(certificates, key).map_err(|error| format!("{}: {error}", path.display()))
}

fn present(certificates: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(RootCertStore::empty());
    config.with_client_auth_cert(certificates, key).map(drop)
}
