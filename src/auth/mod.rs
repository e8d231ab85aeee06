//! Who may do what (docs/SECURITY.md): tokens, and the headers of a trusted gateway.

mod cache;
mod claims;
mod gateway;
pub mod jwks;
mod key;
mod keys;
mod mint;
mod net;
mod token;
mod verifier;

pub use self::{
    claims::{ClaimNames, Claims, Rooms},
    gateway::{ForwardedError, Gateway, GatewaySecrets, GatewaySettings, Needed, Untrusted},
    key::{Key, keys_of_settings, secret_of_settings},
    mint::{Mint, SigningKey, mint},
    net::Net,
    token::{TokenError, TokenRules},
    verifier::{TokenVerifier, Trouble, Verdict},
};
