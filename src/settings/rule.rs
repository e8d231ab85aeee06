//! [`Rule`]: which values of its type a key allows, and the words for it.
//!
//! A range (`1..=100`, `1..`) is the rule of a number, a [`Text`] that of a text, [`Items`] that of a list.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::{RangeFrom, RangeInclusive};

use actix_web::http::{Uri, uri::Authority};

use super::secret::Secret;
use super::value::SettingValue;

/// Decides over values of one key.
pub trait Rule<T> {
    /// What is allowed, in words that stand after "allowed:".
    fn words(&self) -> String;

    /// Whether `value` is allowed.
    fn holds(&self, value: &T) -> bool;
}

/// Every value of the type.
pub struct Any;

impl<T: SettingValue> Rule<T> for Any {
    fn words(&self) -> String {
        T::kind()
    }

    fn holds(&self, _: &T) -> bool {
        true
    }
}

impl<T: PartialOrd + Display> Rule<T> for RangeInclusive<T> {
    fn words(&self) -> String {
        format!("a whole number from {} to {}", self.start(), self.end())
    }

    fn holds(&self, value: &T) -> bool {
        self.contains(value)
    }
}

impl<T: PartialOrd + Display> Rule<T> for RangeFrom<T> {
    fn words(&self) -> String {
        format!("a whole number from {} up", self.start)
    }

    fn holds(&self, value: &T) -> bool {
        self.contains(value)
    }
}

/// The texts for which `holds` is true; `words` tells which those are.
pub struct Text {
    words: &'static str,
    holds: fn(&str) -> bool,
}

impl Rule<String> for Text {
    fn words(&self) -> String {
        self.words.to_owned()
    }

    fn holds(&self, value: &String) -> bool {
        (self.holds)(value)
    }
}

impl Rule<Secret> for Text {
    fn words(&self) -> String {
        self.words.to_owned()
    }

    fn holds(&self, value: &Secret) -> bool {
        (self.holds)(value.expose())
    }
}

/// Lists of which every item is allowed by the rule.
pub struct Items(pub Text);

impl Rule<Vec<String>> for Items {
    fn words(&self) -> String {
        format!("a list, each item {}", self.0.words)
    }

    fn holds(&self, value: &Vec<String>) -> bool {
        value.iter().all(|item| (self.0.holds)(item))
    }
}

/// Any text but the empty one.
pub const NOT_EMPTY: Text = Text {
    words: "a text that is not empty",
    holds: |text| !text.trim().is_empty(),
};

/// Address and port to listen on.
pub const SOCKET_ADDR: Text = Text {
    words: "IP:port, as in 127.0.0.1:8080 or [::1]:8080",
    holds: |text| text.parse::<SocketAddr>().is_ok(),
};

/// As [`SOCKET_ADDR`], or nothing.
pub const SOCKET_ADDR_OR_EMPTY: Text = Text {
    words: "empty, or IP:port, as in 127.0.0.1:9090 or [::1]:9090",
    holds: |text| text.is_empty() || (SOCKET_ADDR.holds)(text),
};

/// An address to ask over HTTP.
pub const HTTP_URL: Text = Text {
    words: "http://HOST[:PORT][/PATH]; no https, user, ? or #",
    // A path is added to it.
    holds: |text| is_plain_http_url(text) && !text.contains('?'),
};

/// In place of an address to ask: nobody is asked.
pub const OFF: &str = "off";

/// As [`HTTP_URL`], or nothing, or [`OFF`].
pub const HTTP_URL_OR_OFF: Text = Text {
    words: "empty, \"off\", or http://HOST[:PORT][/PATH][?QUERY]; no https, user or #",
    holds: |text| text.is_empty() || text == OFF || is_plain_http_url(text),
};

/// Where a JWK set is, or nothing.
pub const JWKS_URL_OR_EMPTY: Text = Text {
    words: "empty, http(s)://HOST[:PORT][/PATH][?QUERY] or file:///PATH; no user or #",
    holds: |text| {
        text.is_empty() || is_http_url(text) || text.strip_prefix("file:///").is_some_and(|path| !path.is_empty())
    },
};

/// An algorithm of tokens that are checked with a public key.
pub const PUBLIC_KEY_ALGORITHM: Text = Text {
    words: "RS256/384/512, PS256, ES256/384 or EdDSA",
    holds: |text| ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"].contains(&text),
};

/// An algorithm of tokens, or nothing.
pub const ALGORITHM_OR_EMPTY: Text = Text {
    words: "empty, or HS256, RS256, RS384, RS512, PS256, ES256, ES384 or EdDSA",
    holds: |text| text.is_empty() || text == "HS256" || (PUBLIC_KEY_ALGORITHM.holds)(text),
};

/// An address or a network of addresses.
pub const IP_OR_CIDR: Text = Text {
    words: "an IP address or a CIDR network, as in 10.0.0.0/8",
    holds: is_ip_or_cidr,
};

/// The name of an HTTP header (RFC 9110, token), or nothing.
pub const HEADER_NAME_OR_EMPTY: Text = Text {
    words: "empty, or the name of an HTTP header",
    holds: |text| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    },
};

/// What may stand in a `Content-Type` header.
pub const CONTENT_TYPE: Text = Text {
    words: "a media type, as in application/json",
    holds: |text| text.contains('/') && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
};

/// What CORS compares an `Origin` header with.
pub const ORIGIN: Text = Text {
    words: r#""*" or an origin, as in https://a.example: no path or default port"#,
    holds: is_origin,
};

/// How a MongoDB connection string starts.
pub const MONGODB_URI: Text = Text {
    words: "a URI that starts with mongodb:// or mongodb+srv://",
    holds: |text| text.starts_with("mongodb://") || text.starts_with("mongodb+srv://"),
};

/// What MongoDB takes as the name of a database.
pub const DATABASE_NAME: Text = Text {
    words: r#"1 to 63 bytes without a space and any of / \ . " $ * < > : | ?"#,
    holds: |text| {
        (1..=63).contains(&text.len())
            && !text.contains(['/', '\\', '.', '"', '$', '*', '<', '>', ':', '|', '?', ' ', '\0'])
    },
};

/// Whatever a client would not heed without a word is refused: a port that is none (the usual one would be asked), a user and a password
/// (not sent, but shown), what is behind a `#`.
fn is_http_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else {
        return false;
    };
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    is_http && !text.contains('#') && uri.authority().is_some_and(is_host_and_port)
}

fn is_host_and_port(authority: &Authority) -> bool {
    let host = authority.host();
    // With a user before it the host is not the beginning.
    match authority.as_str().strip_prefix(host).filter(|_| !host.is_empty()) {
        None => false,
        Some("") => true,
        Some(rest) => rest.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        }),
    }
}

/// The HTTP client that asks the room server is built without TLS.
fn is_plain_http_url(text: &str) -> bool {
    text.starts_with("http://") && is_http_url(text)
}

/// Of any scheme: the pages of an app's WebView and of a browser's extension have schemes of their own. Those of WebSocket's
/// addresses are no page's.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return false;
    };
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    // Browsers leave a default port out: with it no page would ever be let in.
    let has_default_port = (is("http") && authority.ends_with(":80")) || (is("https") && authority.ends_with(":443"));
    let is_bare = authority.parse().is_ok_and(|authority| is_host_and_port(&authority));
    is_scheme(scheme) && !is("ws") && !is("wss") && is_bare && !has_default_port
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn is_ip_or_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return text.parse::<IpAddr>().is_ok();
    };
    let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => digits && bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => digits && bits <= 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &Text, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!((rule.holds)(text), "{text:?} should be {}", rule.words);
        }
        for text in bad {
            assert!(!(rule.holds)(text), "{text:?} should not be {}", rule.words);
        }
    }

    #[test]
    fn addresses() {
        check(
            &SOCKET_ADDR,
            &["0.0.0.0:0", "[::1]:80"],
            &["", "localhost:80", "1.2.3.4", ":80", "1.2.3.4:99999"],
        );
        check(&SOCKET_ADDR_OR_EMPTY, &["", "127.0.0.1:9090"], &[" ", "9090"]);
        check(
            &IP_OR_CIDR,
            &["10.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "::1", "fd00::/8", "::/128"],
            &[
                "",
                "10.0.0",
                "10.0.0.0/33",
                "::/129",
                "10.0.0.0/",
                "10.0.0.0/+8",
                "10.0.0.0/8/8",
                "localhost",
            ],
        );
    }

    #[test]
    fn urls_and_origins() {
        check(
            &HTTP_URL,
            &["http://a", "http://a:1/b", "http://[::1]:65535/room/live/"],
            &[
                "",
                "a",
                "https://a",
                "ftp://a",
                "http://",
                "http:///x",
                "http://a b",
                "http://:80/x",
                "http://rooms:80810/room/live",
                "http://rooms:0/room/live",
                "http://rooms:/room/live",
                "http://rooms:+80/room/live",
                "http://rooms:http/room/live",
                "http://kim:hunter2@rooms/room/live",
                "http://kim@rooms",
                "http://rooms@rooms",
                "http://rooms/room/live?x=1",
                "http://rooms/room/live#x",
            ],
        );
        check(
            &HTTP_URL_OR_OFF,
            &["", "off", "http://a", "http://a/b?c=d@e"],
            &[
                "a",
                "Off",
                "https://a",
                "http://a:65536",
                "http://kim:hunter2@a",
                "http://a#b",
            ],
        );
        check(
            &JWKS_URL_OR_EMPTY,
            &[
                "",
                "http://a/jwks.json",
                "https://a",
                "https://a:8443/b?c",
                "file:///etc/jwks.json",
            ],
            &[
                "a",
                "file://",
                "file:///",
                "file://host/a",
                "ftp://a",
                "https://a:84430/",
                "https://kim:hunter2@a/",
            ],
        );
        check(
            &ORIGIN,
            &[
                "*",
                "https://a.b",
                "http://a:3000",
                "http://a:443",
                "http://[::1]",
                "https://Chat.Example",
                "capacitor://localhost",
                "ionic://localhost",
                "tauri://localhost",
                "app.kim+1://a:80",
                "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
            ],
            &[
                "",
                "a.b",
                "null",
                "https://",
                "https://a.b/",
                "https://a.b/c",
                "https://a.b:443",
                "HTTPS://a.b:443",
                "http://a:80",
                "http://a:",
                "https://a.b?x",
                "https://a.b#x",
                "https://kim@a.b",
                "https://a b",
                "file://",
                "file:///a",
                "://a",
                "1a://a",
                "a b://a",
                "capacitor:localhost",
                "capacitor://",
                "capacitor://localhost/",
                "capacitor://kim@localhost",
                "wss://a.b",
            ],
        );
        check(&MONGODB_URI, &["mongodb://a", "mongodb+srv://a"], &["", "http://a"]);
    }

    #[test]
    fn names() {
        check(
            &ALGORITHM_OR_EMPTY,
            &["", "HS256", "EdDSA"],
            &["none", "hs256", "HS512"],
        );
        check(&PUBLIC_KEY_ALGORITHM, &["RS256", "ES384"], &["", "HS256", "none"]);
        check(&NOT_EMPTY, &["a"], &["", "  "]);
        check(&HEADER_NAME_OR_EMPTY, &["", "x-role"], &["x role", "x:role", "역할"]);
        check(
            &CONTENT_TYPE,
            &["text/plain; charset=ISO-8859-1"],
            &["", "json", "a/b\r\nx: y"],
        );
        check(
            &DATABASE_NAME,
            &["chatting"],
            &["", "a.b", "a b", "a$", &"a".repeat(64)],
        );
    }
}
