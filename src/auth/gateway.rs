//! The gateway's headers: believed only from TCP peers in `auth.trusted_proxies`, and with the secret when one is set.

use std::{
    net::IpAddr,
    ops::BitOr,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use actix_web::http::header::{HeaderMap, HeaderValue};
use chatting_actors::types::{PresenterIdx, Role, UserIdx};
use subtle::{Choice, ConstantTimeEq};

use super::{Claims, Net, Rooms, key::KEY_FILE_MAX_BYTES};
use crate::{
    files::{read_bounded, without_line_break},
    settings::{Auth, Secret},
};

/// How a gateway is known.
pub struct GatewaySettings {
    trusted: Vec<Net>,
    /// Those of now, which a reload replaces.
    secrets: RwLock<GatewaySecrets>,
    role_header: Option<String>,
    rooms_header: Option<String>,
}

impl GatewaySettings {
    /// Reads `auth.trusted_proxies`, `auth.gateway_role_header` and `auth.gateway_rooms_header`; the error names the key.
    pub fn new(
        trusted: &[String],
        secrets: GatewaySecrets,
        role_header: &str,
        rooms_header: &str,
    ) -> Result<Self, String> {
        let nets = trusted.iter().map(|net| net.parse()).collect::<Result<_, _>>();
        Ok(Self {
            trusted: nets.map_err(|error| format!("auth.trusted_proxies: {error}"))?,
            secrets: RwLock::new(secrets),
            role_header: (!role_header.is_empty()).then(|| role_header.to_owned()),
            rooms_header: (!rooms_header.is_empty()).then(|| rooms_header.to_owned()),
        })
    }
}

/// What a gateway must tell one of: `auth.gateway_secret`, and `auth.previous_gateway_secret` while it is rotated. None: nothing.
#[derive(Default, PartialEq, Eq)]
pub struct GatewaySecrets(Vec<Vec<u8>>);

impl GatewaySecrets {
    /// Those that the settings have. Reads their files. The error names the setting, and never what it holds.
    pub fn of_settings(auth: &Auth) -> Result<Self, String> {
        let secrets = [
            ("auth.gateway_secret", &auth.gateway_secret, &auth.gateway_secret_file),
            (
                "auth.previous_gateway_secret",
                &auth.previous_gateway_secret,
                &auth.previous_gateway_secret_file,
            ),
        ];
        let read = secrets.map(|(name, text, file)| secret_of(name, text, file));
        let read: Vec<_> = read.into_iter().collect::<Result<_, _>>()?;
        Ok(Self(read.into_iter().flatten().collect()))
    }

    /// Looks at all of them, so that the time it takes does not tell which one it is.
    fn know(&self, told: &[u8]) -> bool {
        let each = self.0.iter().map(|secret| told.ct_eq(secret));
        each.fold(Choice::from(0), Choice::bitor).into()
    }
}

/// The peer may not set x-forward headers. The texts are in English.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Its address is not in `auth.trusted_proxies`, or the secret is missing or another.
    #[error("this peer may not set x-forward headers")]
    Peer,
    /// A trusted peer sends the secret twice: one of the two is its client's.
    #[error("the header {SECRET} is there twice")]
    SecretTwice,
}

/// The header that a gateway tells `auth.gateway_secret` in.
const SECRET: &str = "x-gateway-secret";

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

/// What is wrong with the headers. The texts are in English; [`ForwardedError::legacy_text`] has the legacy dialect's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedError {
    /// One is missing; see [`Needed`].
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// One is there twice. A gateway that adds its own behind the client's, rather than in its place, sends two, and the first of
    /// them is the client's word.
    #[error("the header {0} is there twice")]
    Twice(String),
    /// `x-forward-userIdx` is no number from 0 to 2^63 - 1.
    #[error("the header x-forward-userIdx is not a whole number from 0 to 9223372036854775807")]
    BadUserIdx,
    /// `x-forward-nickname` is not form-urlencoded UTF-8.
    #[error("the header x-forward-nickname is not URL-encoded UTF-8")]
    BadNickname,
    /// The header of a moderator's rooms is no list of them.
    #[error("the header {0} is not presenters' numbers with commas between, or *")]
    BadRooms(String),
}

impl ForwardedError {
    /// The legacy dialect's text: Spring's own where a header is missing (docs/LEGACY.md), else Korean.
    pub fn legacy_text(&self) -> String {
        match self {
            Self::Missing(name) => format!("Missing request header '{name}' for method parameter of type String"),
            Self::Twice(name) => format!("같은 요청 헤더가 두 번 있습니다: {name}"),
            Self::BadUserIdx => "x-forward-userIdx는 0 이상의 숫자여야 합니다.".into(),
            Self::BadNickname => "x-forward-nickname은 URL 인코딩된 UTF-8이어야 합니다.".into(),
            Self::BadRooms(name) => format!("쉼표로 구분한 스트리머 번호 또는 *여야 하는 요청 헤더: {name}"),
        }
    }
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

    /// From now on it must tell one of these. Returns whether they are others than before.
    pub fn set_secrets(&self, secrets: GatewaySecrets) -> bool {
        let mut now = self.settings.secrets.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *now != secrets;
        *now = secrets;
        changed
    }

    fn secrets(&self) -> RwLockReadGuard<'_, GatewaySecrets> {
        self.settings.secrets.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this TCP peer may speak for others with these headers.
    pub fn check_peer(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Result<(), Untrusted> {
        if !peer.is_some_and(|peer| self.settings.trusted.iter().any(|net| net.contains(peer))) {
            return Err(Untrusted::Peer);
        }
        let secrets = self.secrets();
        if secrets.0.is_empty() {
            return Ok(());
        }
        let told = only(headers, SECRET).map_err(|_| Untrusted::SecretTwice)?;
        let known = told.is_some_and(|told| secrets.know(told.as_bytes()));
        if known { Ok(()) } else { Err(Untrusted::Peer) }
    }

    /// Whether a peer must tell it (`auth.gateway_secret`).
    pub fn has_secret(&self) -> bool {
        !self.secrets().0.is_empty()
    }

    /// The headers that name a caller's role and a moderator's rooms, where there are any (`auth.gateway_role_header`,
    /// `auth.gateway_rooms_header`).
    pub fn role_headers(&self) -> impl Iterator<Item = &str> {
        let settings = &self.settings;
        [&settings.role_header, &settings.rooms_header]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Who the caller is; their role where `auth.gateway_role_header` is set. Only for a peer that [`Gateway::check_peer`] let through.
    pub fn read(&self, headers: &HeaderMap, needed: Needed) -> Result<Claims, ForwardedError> {
        for &name in needed.headers() {
            if !headers.contains_key(name) {
                return Err(ForwardedError::Missing(name));
            }
        }
        let user_idx = only(headers, "x-forward-userIdx")?
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse().ok())
            .and_then(UserIdx::new);
        // One that is not needed and cannot be read is still a gateway that does not do as it should.
        let nickname = only(headers, "x-forward-nickname")?;
        let nickname = nickname.map(|value| form_decode(value.as_bytes()).ok_or(ForwardedError::BadNickname));
        let optional = |name: &Option<String>| name.as_ref().map_or(Ok(None), |name| only(headers, name));
        let role = optional(&self.settings.role_header)?;
        let role = match role.and_then(|value| Role::parse(value.to_str().ok()?)) {
            Some(role @ (Role::Moderator | Role::Operator)) => role,
            _ => Role::Viewer,
        };
        let told = optional(&self.settings.rooms_header)?;
        let rooms = match (&self.settings.rooms_header, role) {
            (None, Role::Moderator) => Rooms::All,
            (Some(name), Role::Moderator) => told
                .map_or(Some(Rooms::None), rooms)
                .ok_or_else(|| ForwardedError::BadRooms(name.clone()))?,
            _ => Rooms::None,
        };
        Ok(Claims {
            nickname: nickname.transpose()?,
            user_idx: user_idx.ok_or(ForwardedError::BadUserIdx)?,
            role,
            rooms,
            expires_at_ms: i64::MAX,
        })
    }
}

/// The secret that is `text`, or in this file; none where neither is set. `name` is the text's key.
fn secret_of(name: &str, text: &Secret, file: &str) -> Result<Option<Vec<u8>>, String> {
    let of_file = |why: String| format!("{name}_file: {why}");
    if file.is_empty() {
        // What made the text may have ended its line, as what writes a file does: an environment's value is often a file's content.
        let secret = text.is_set().then(|| one_line(text.expose().as_bytes()));
        return secret.transpose().map_err(|why| format!("{name}: {why}"));
    }
    if text.is_set() {
        return Err(of_file("the secret is set beside it; allowed: one of them".into()));
    }
    let bytes = read_bounded(file, KEY_FILE_MAX_BYTES).map_err(of_file)?;
    one_line(&bytes).map(Some).map_err(of_file)
}

/// A secret without the end of its line.
fn one_line(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let secret = without_line_break(bytes);
    // None at all would have every peer believed, and another one that no header can bring would have none.
    if secret.is_empty() || secret.trim_ascii() != secret || HeaderValue::from_bytes(secret).is_err() {
        return Err("it is not one line of text without white space around it".into());
    }
    Ok(secret.to_vec())
}

/// A header that is there once; `None` where it is not there.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, ForwardedError> {
    let mut values = headers.get_all(name);
    let value = values.next();
    if values.next().is_some() {
        return Err(ForwardedError::Twice(name.to_owned()));
    }
    Ok(value)
}

/// A moderator's rooms: `*`, or presenters' numbers with commas between; none where it is empty.
fn rooms(value: &HeaderValue) -> Option<Rooms> {
    match value.to_str().ok()?.trim() {
        "" => Some(Rooms::None),
        "*" => Some(Rooms::All),
        list => {
            let numbers = list.split(',').map(|room| PresenterIdx::new(room.trim().parse().ok()?));
            numbers.collect::<Option<_>>().map(Rooms::Some)
        }
    }
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

    fn secrets(secret: &str, previous: &str) -> GatewaySecrets {
        let auth = Auth {
            gateway_secret: Secret::new(secret),
            previous_gateway_secret: Secret::new(previous),
            ..Auth::default()
        };
        GatewaySecrets::of_settings(&auth).unwrap()
    }

    fn gateway(secret: &str) -> Gateway {
        gateway_with(secret, "")
    }

    fn gateway_with(secret: &str, rooms_header: &str) -> Gateway {
        let trusted = ["10.0.0.0/8".to_owned()];
        Gateway::new(GatewaySettings::new(&trusted, secrets(secret, ""), "x-role", rooms_header).unwrap())
    }

    fn headers(rows: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in rows {
            headers.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn only_a_trusted_peer_with_the_secret_is_believed() {
        let inside = Some("10.1.1.1".parse().unwrap());
        let outside = Some("11.1.1.1".parse().unwrap());
        let no = Err(Untrusted::Peer);
        assert_eq!(gateway("").check_peer(inside, &headers(&[])), Ok(()));
        assert_eq!(gateway("").check_peer(outside, &headers(&[])), no);
        assert_eq!(gateway("").check_peer(None, &headers(&[])), no);
        let told = |peer, secrets: &[&str]| {
            let rows: Vec<_> = secrets.iter().map(|secret| (SECRET, *secret)).collect();
            gateway("s3cret").check_peer(peer, &headers(&rows))
        };
        assert_eq!(told(inside, &["s3cret"]), Ok(()));
        assert_eq!(told(inside, &["s3cre"]), no);
        assert_eq!(told(inside, &[]), no);
        assert_eq!(told(outside, &["s3cret"]), no);
        // Only a trusted peer is told what is wrong with its secret.
        for twice in [["s3cret", "guessed"], ["guessed", "s3cret"]] {
            assert_eq!(told(inside, &twice), Err(Untrusted::SecretTwice));
            assert_eq!(told(outside, &twice), no);
        }
    }

    #[test]
    fn while_the_secret_is_rotated_either_of_the_two_is_believed_and_no_third() {
        let gateway = gateway("before");
        let peer = Some("10.1.1.1".parse().unwrap());
        let believed =
            |secrets: [&str; 3]| secrets.map(|secret| gateway.check_peer(peer, &headers(&[(SECRET, secret)])).is_ok());
        let told = ["before", "after", "another"];
        assert_eq!(believed(told), [true, false, false]);
        assert!(gateway.set_secrets(secrets("after", "before")));
        assert_eq!(believed(told), [true, true, false]);
        assert!(!gateway.set_secrets(secrets("after", "before")));
        assert!(gateway.set_secrets(secrets("after", "")));
        assert_eq!(believed(told), [false, true, false]);
        assert_eq!(
            gateway.check_peer(peer, &headers(&[(SECRET, "")])),
            Err(Untrusted::Peer)
        );
    }

    #[test]
    fn a_secret_is_a_text_or_in_a_file_whose_line_may_be_ended_and_what_no_header_can_bring_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        let read = |content: &str, text: &str| {
            std::fs::write(&file, content).unwrap();
            let auth = Auth {
                gateway_secret: Secret::new(text),
                gateway_secret_file: file.display().to_string(),
                ..Auth::default()
            };
            GatewaySecrets::of_settings(&auth)
        };
        for content in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert!(read(content, "").unwrap() == secrets("s3cret", ""), "{content:?}");
            assert!(secrets("s3cret", content) == secrets("s3cret", "s3cret"), "{content:?}");
        }
        let texts = |now: &str, before: &str| {
            let auth = Auth {
                gateway_secret: Secret::new(now),
                previous_gateway_secret: Secret::new(before),
                ..Auth::default()
            };
            GatewaySecrets::of_settings(&auth)
        };
        for text in [
            "\n",
            " s3cret",
            "s3cret ",
            "\ts3cret",
            "s3cret\n\n",
            "s3\ncret",
            "s3\0cret",
        ] {
            let why = "it is not one line of text without white space around it";
            let told = texts(text, "").err().unwrap();
            assert_eq!(told, format!("auth.gateway_secret: {why}"), "{text:?}");
            let told = texts("s3cret", text).err().unwrap();
            assert_eq!(told, format!("auth.previous_gateway_secret: {why}"), "{text:?}");
        }
        for content in ["", "\n", " s3cret", "s3cret ", "s3cret\n\n", "s3\ncret"] {
            let why = read(content, "").err().unwrap();
            assert_eq!(
                why, "auth.gateway_secret_file: it is not one line of text without white space around it",
                "{content:?}"
            );
        }
        assert_eq!(
            read("s3cret", "s3cret").err().unwrap(),
            "auth.gateway_secret_file: the secret is set beside it; allowed: one of them"
        );
        let auth = Auth {
            previous_gateway_secret_file: dir.path().join("none").display().to_string(),
            ..Auth::default()
        };
        let why = GatewaySecrets::of_settings(&auth).err().unwrap();
        assert!(
            why.starts_with("auth.previous_gateway_secret_file: ") && why.contains("cannot be read"),
            "{why}"
        );
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
    fn a_moderator_is_one_of_every_room_unless_a_header_is_to_say_of_which() {
        let read = |rooms_header: &str, role: &str, rooms: &[&str]| {
            let mut rows = vec![("x-forward-userIdx", "7"), ("x-role", role)];
            rows.extend(rooms.iter().map(|rooms| ("x-rooms", *rooms)));
            let read = gateway_with("", rooms_header).read(&headers(&rows), Needed::Number);
            read.map(|claims| claims.rooms)
        };
        let some = |rooms: &[i64]| {
            let rooms = rooms.iter().map(|room| PresenterIdx::new(*room).unwrap());
            Ok(Rooms::Some(rooms.collect()))
        };
        assert_eq!(read("", "moderator", &[]), Ok(Rooms::All));
        assert_eq!(read("", "moderator", &["12"]), Ok(Rooms::All));
        assert_eq!(read("x-rooms", "moderator", &["12"]), some(&[12]));
        assert_eq!(read("x-rooms", "moderator", &["12, 14 ,0"]), some(&[12, 14, 0]));
        assert_eq!(read("x-rooms", "moderator", &[" * "]), Ok(Rooms::All));
        assert_eq!(read("x-rooms", "moderator", &[]), Ok(Rooms::None));
        assert_eq!(read("x-rooms", "moderator", &[""]), Ok(Rooms::None));
        assert_eq!(read("x-rooms", "viewer", &["*"]), Ok(Rooms::None));
        for bad in ["12,", "12 14", "*, 12", "-1", "all", "9223372036854775808"] {
            let error = Err(ForwardedError::BadRooms("x-rooms".into()));
            assert_eq!(read("x-rooms", "moderator", &[bad]), error, "{bad}");
        }
        let twice = Err(ForwardedError::Twice("x-rooms".into()));
        assert_eq!(read("x-rooms", "moderator", &["12", "*"]), twice);
    }

    #[test]
    fn a_header_that_is_there_twice_is_refused_by_its_name() {
        // A gateway that adds its header behind the client's own would else let the client say who it is.
        let rows = [
            ("x-forward-userIdx", "1"),
            ("x-forward-nickname", "boss"),
            ("x-role", "viewer"),
        ];
        for (name, smuggled) in rows {
            let mut headers = headers(&[
                ("x-forward-userIdx", "7"),
                ("x-forward-email", ""),
                ("x-forward-nickname", "n"),
                ("x-role", "operator"),
            ]);
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(smuggled));
            for needed in [Needed::Number, Needed::Name, Needed::All] {
                let error = gateway("").read(&headers, needed).unwrap_err();
                assert_eq!(error, ForwardedError::Twice(name.into()));
                assert_eq!(error.to_string(), format!("the header {name} is there twice"));
                assert_eq!(error.legacy_text(), format!("같은 요청 헤더가 두 번 있습니다: {name}"));
            }
        }
    }
}
