//! The gateway's headers: believed only from TCP peers in `auth.trusted_proxies`, and with the secret when one is set.

use std::net::IpAddr;

use actix_web::http::header::{HeaderMap, HeaderValue};
use chatting_actors::types::{Role, UserIdx};
use subtle::ConstantTimeEq;

use super::{Claims, Net, Rooms};

/// How a gateway is known.
pub struct GatewaySettings {
    trusted: Vec<Net>,
    secret: Option<Vec<u8>>,
    role_header: Option<String>,
}

impl GatewaySettings {
    /// Reads `auth.trusted_proxies`, `auth.gateway_secret` and `auth.gateway_role_header`; the error names the key.
    pub fn new(trusted: &[String], secret: &str, role_header: &str) -> Result<Self, String> {
        let nets = trusted.iter().map(|net| net.parse()).collect::<Result<_, _>>();
        Ok(Self {
            trusted: nets.map_err(|error| format!("auth.trusted_proxies: {error}"))?,
            secret: (!secret.is_empty()).then(|| secret.as_bytes().to_vec()),
            role_header: (!role_header.is_empty()).then(|| role_header.to_owned()),
        })
    }
}

/// The peer may not set x-forward headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untrusted;

/// Which headers have to be there, in the order in which a missing one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// v1, where nothing is said in the caller's name.
    Number,
    /// v1, where a message is sent.
    Name,
    /// Legacy: all that the old server wanted to see.
    All,
}

impl Needed {
    fn headers(self) -> &'static [&'static str] {
        match self {
            Self::Number => &["x-forward-userIdx"],
            Self::Name => &["x-forward-userIdx", "x-forward-nickname"],
            Self::All => &["x-forward-userIdx", "x-forward-email", "x-forward-nickname"],
        }
    }
}

/// What is wrong with the headers. The texts are those of the legacy dialect where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedError {
    /// One is missing; see [`Needed`].
    #[error("Missing request header '{0}' for method parameter of type String")]
    Missing(&'static str),
    /// `x-forward-userIdx` is no number from 0 to 2^63 - 1, or is there twice.
    #[error("x-forward-userIdx는 0 이상의 숫자여야 합니다.")]
    BadUserIdx,
    /// `x-forward-nickname` is not form-urlencoded UTF-8, or is there twice.
    #[error("x-forward-nickname은 URL 인코딩된 UTF-8이어야 합니다.")]
    BadNickname,
}

/// Reads the headers of a trusted gateway.
pub struct Gateway {
    settings: GatewaySettings,
}

impl Gateway {
    /// A gateway known by these settings.
    pub fn new(settings: GatewaySettings) -> Self {
        Self { settings }
    }

    /// Whether this TCP peer may speak for others.
    pub fn check_peer(&self, peer: Option<IpAddr>, secret: Option<&[u8]>) -> Result<(), Untrusted> {
        let known = peer.is_some_and(|peer| self.settings.trusted.iter().any(|net| net.contains(peer)));
        let told = match &self.settings.secret {
            None => true,
            Some(expected) => secret.is_some_and(|told| bool::from(told.ct_eq(expected))),
        };
        if known && told { Ok(()) } else { Err(Untrusted) }
    }

    /// Whether a peer must tell it (`auth.gateway_secret`).
    pub fn has_secret(&self) -> bool {
        self.settings.secret.is_some()
    }

    /// The header that names a caller's role, where there is one (`auth.gateway_role_header`).
    pub fn role_header(&self) -> Option<&str> {
        self.settings.role_header.as_deref()
    }

    /// Who the caller is; their role where `auth.gateway_role_header` is set. Only for a peer that [`Gateway::check_peer`] let through.
    pub fn read(&self, headers: &HeaderMap, needed: Needed) -> Result<Claims, ForwardedError> {
        for &name in needed.headers() {
            if !headers.contains_key(name) {
                return Err(ForwardedError::Missing(name));
            }
        }
        let user_idx = only(headers, "x-forward-userIdx")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse().ok())
            .and_then(UserIdx::new);
        let role = self
            .settings
            .role_header
            .as_ref()
            .and_then(|name| only(headers, name)?.to_str().ok());
        let role = match role.and_then(Role::parse) {
            Some(role @ (Role::Moderator | Role::Operator)) => role,
            _ => Role::Viewer,
        };
        // One that is not needed and cannot be read is still a gateway that does not do as it should.
        let nickname = headers.contains_key("x-forward-nickname").then(|| {
            only(headers, "x-forward-nickname")
                .and_then(|value| form_decode(value.as_bytes()))
                .ok_or(ForwardedError::BadNickname)
        });
        Ok(Claims {
            nickname: nickname.transpose()?,
            user_idx: user_idx.ok_or(ForwardedError::BadUserIdx)?,
            role,
            // A gateway that vouches for a moderator vouches for every room.
            rooms: if role == Role::Moderator {
                Rooms::All
            } else {
                Rooms::None
            },
            expires_at_ms: i64::MAX,
        })
    }
}

/// A header that is there once. A gateway that adds its own behind the client's, rather than in its place, sends two, and
/// the first of them is the client's word.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name);
    values.next().filter(|_| values.next().is_none())
}

/// `application/x-www-form-urlencoded`: `+` is a space, `%xx` a byte. Strict, where libraries let bad escapes through.
fn form_decode(text: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    let hex = |byte: &u8| {
        char::from(*byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            other => *other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;

    use super::*;

    fn gateway(secret: &str) -> Gateway {
        let trusted = ["10.0.0.0/8".to_owned()];
        Gateway::new(GatewaySettings::new(&trusted, secret, "x-role").unwrap())
    }

    fn headers(rows: &[(&str, &str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| {
                (
                    HeaderName::try_from(*name).unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn only_a_trusted_peer_with_the_secret_is_believed() {
        let inside = Some("10.1.1.1".parse().unwrap());
        let outside = Some("11.1.1.1".parse().unwrap());
        assert_eq!(gateway("").check_peer(inside, None), Ok(()));
        assert_eq!(gateway("").check_peer(outside, None), Err(Untrusted));
        assert_eq!(gateway("").check_peer(None, None), Err(Untrusted));
        assert_eq!(gateway("s3cret").check_peer(inside, Some(b"s3cret")), Ok(()));
        assert_eq!(gateway("s3cret").check_peer(inside, Some(b"s3cre")), Err(Untrusted));
        assert_eq!(gateway("s3cret").check_peer(inside, None), Err(Untrusted));
        assert_eq!(gateway("s3cret").check_peer(outside, Some(b"s3cret")), Err(Untrusted));
    }

    #[test]
    fn a_missing_header_is_named_in_the_old_order() {
        let all = [
            ("x-forward-useridx", "7"),
            ("x-forward-email", "e"),
            ("x-forward-nickname", "n"),
        ];
        let names = ["x-forward-userIdx", "x-forward-email", "x-forward-nickname"];
        for (n, name) in names.into_iter().enumerate() {
            assert_eq!(
                gateway("").read(&headers(&all[..n]), Needed::All),
                Err(ForwardedError::Missing(name))
            );
        }
        assert!(gateway("").read(&headers(&all), Needed::All).is_ok());
    }

    #[test]
    fn values_are_decoded_strictly() {
        let read = |idx: &str, nickname: &str| {
            let rows = [
                ("x-forward-userIdx", idx),
                ("x-forward-email", ""),
                ("x-forward-nickname", nickname),
            ];
            gateway("").read(&headers(&rows), Needed::All)
        };
        assert_eq!(read("7", "%EA%B9%80+a%2Bb").unwrap().nickname.unwrap(), "김 a+b");
        assert_eq!(read("7", "").unwrap().nickname.unwrap(), "");
        for bad in ["%zz", "%", "%E", "%ff", "a%EA"] {
            assert_eq!(read("7", bad), Err(ForwardedError::BadNickname), "{bad}");
        }
        for bad in ["", "x", "-1", "7.5", "9223372036854775808"] {
            assert_eq!(read(bad, "n"), Err(ForwardedError::BadUserIdx), "{bad}");
        }
    }

    #[test]
    fn a_caller_is_a_viewer_unless_the_role_header_says_more() {
        let with = |role: &str| {
            let rows = [
                ("x-forward-userIdx", "7"),
                ("x-forward-email", ""),
                ("x-forward-nickname", "n"),
                ("x-role", role),
            ];
            gateway("").read(&headers(&rows), Needed::Number).unwrap().role
        };
        assert_eq!(with("operator"), Role::Operator);
        assert_eq!(with("presenter"), Role::Viewer);
        assert_eq!(with("root"), Role::Viewer);
    }

    #[test]
    fn a_header_that_is_there_twice_is_refused() {
        // A gateway that adds its header behind the client's own would else let the client say who it is.
        let rows = [
            ("x-forward-userIdx", "1", ForwardedError::BadUserIdx),
            ("x-forward-nickname", "boss", ForwardedError::BadNickname),
        ];
        for (name, smuggled, error) in rows {
            let mut headers = headers(&[
                ("x-forward-userIdx", "7"),
                ("x-forward-email", ""),
                ("x-forward-nickname", "n"),
            ]);
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(smuggled));
            for needed in [Needed::Number, Needed::Name, Needed::All] {
                assert_eq!(gateway("").read(&headers, needed), Err(error), "{name}");
            }
        }
        let mut headers = headers(&[
            ("x-forward-userIdx", "7"),
            ("x-forward-email", ""),
            ("x-forward-nickname", "n"),
            ("x-role", "operator"),
        ]);
        headers.append(HeaderName::from_static("x-role"), HeaderValue::from_static("viewer"));
        assert_eq!(gateway("").read(&headers, Needed::All).unwrap().role, Role::Viewer);
    }
}
