//! What `token` and `load` sign with: the settings' HS256 secret, or a private key in a file.

use std::path::PathBuf;

use clap::Args;

use crate::{
    auth::SigningKey,
    settings::{Algorithm, Settings},
    startup::signing_key,
};

use super::Failure;

#[derive(Args)]
pub(super) struct SigningArgs {
    /// Sign with the private key in this PEM file (PKCS#8) instead of the settings' HS256 secret
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// What the private key is for: RS256, ES256, EdDSA and so on [default: auth.algorithm]
    #[arg(long, value_name = "NAME", requires = "key_file", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// The name of the private key in the token's header
    #[arg(long, value_name = "NAME", requires = "key_file")]
    kid: Option<String>,
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::parse(name).ok_or_else(|| "allowed: RS256, RS384, RS512, PS256, ES256, ES384, EdDSA".into())
}

impl SigningArgs {
    pub(super) fn key(&self, settings: &Settings) -> Result<SigningKey, Failure> {
        let Some(path) = &self.key_file else {
            return Ok(signing_key(settings)?);
        };
        let named = |why: String| format!("--key-file {}: {why}", path.display());
        let pem = std::fs::read(path).map_err(|error| named(error.to_string()))?;
        let algorithm = self.algorithm.unwrap_or(settings.auth.algorithm);
        let key = SigningKey::pem(algorithm, &pem).map_err(named)?;
        Ok(match &self.kid {
            Some(kid) => key.named(kid),
            None => key,
        })
    }
}
