//! Published keys (`auth.jwks_url`): what a JWK set says, where it comes from, and when it is fetched.

mod refresh;
mod set;
mod source;

pub use self::{
    refresh::{Refresh, RefreshSettings, keep_fetching},
    set::{Published, read},
    source::{Source, SourceSettings},
};
