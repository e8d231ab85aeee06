//! Who may do what (design.md): tokens, and the headers of a trusted gateway.

mod gateway;
mod mint;
mod net;
mod token;

pub use self::{
    gateway::{Forwarded, ForwardedError, Gateway, GatewaySettings, Untrusted},
    mint::{Mint, mint},
    net::Net,
    token::{Claims, Rooms, TokenError, TokenSettings, TokenVerifier},
};
