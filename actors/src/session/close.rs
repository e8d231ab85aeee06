//! Why a session is closed, and with which code.

/// Every way in which the server closes a WebSocket (RFC 6455, 7.4.1; 4001 to 4007 are v1's own). A legacy session never sees
/// a code above 1011.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// 1000: the server has no more use for the socket; in legacy also after a refused `start`.
    Normal,
    /// 1000: the room is not live.
    NotLive,
    /// 1001: the server is about to stop, or must begin the session anew.
    Away,
    /// 1002: the peer does not speak WebSocket properly.
    Protocol,
    /// 1003, legacy: a binary frame.
    Unsupported,
    /// 1007: text that is not UTF-8.
    NotUtf8,
    /// 1008: more frames than `session.client_frames_per_second`.
    Flood,
    /// 1008, v1: the presenter connects too often.
    RateLimited,
    /// 1009: a message longer than `session.max_frame_bytes`.
    TooBig,
    /// 1011, legacy: neither the bare `ping` nor a JSON object with an `id`.
    Unreadable,
    /// 1013, v1: another session needs the place, and no verdict says that this one's broadcast is over.
    Overloaded,
    /// 1013, v1: where the room's numbering stands cannot be told now.
    LogUnavailable,
    /// 1013, v1: what tokens are checked with cannot be fetched now.
    KeysUnavailable,
    /// 4001: no token, a bad one, or another presenter's.
    Unauthenticated,
    /// 4002: the token's time is over.
    TokenExpired,
    /// 4003: a newer session of the same presenter is there.
    Replaced,
    /// 4004: a frame that cannot be read, or says what cannot be.
    BadFrame,
    /// 4005: no progress for `session.stall_seconds`.
    TooSlow,
    /// 4006: no `hello` in time.
    NoHello,
    /// 4007: the keepalive was not answered.
    KeepaliveMissed,
}

/// Makes the list of all ways, and whether v1 has them, from one list: a variant without a row does not compile.
macro_rules! every {
    ($($close:ident: $v1:ident,)*) => {
        /// Every way, for tests and documents.
        pub const ALL: &'static [Self] = &[$(Self::$close),*];

        /// Whether a v1 session may be closed like this.
        pub fn in_v1(self) -> bool {
            match self {
                $(Self::$close => $v1,)*
            }
        }
    };
}

const V1: bool = true;
const LEGACY_ONLY: bool = false;

impl Close {
    every! {
        Normal: LEGACY_ONLY,
        NotLive: V1,
        Away: V1,
        Protocol: V1,
        Unsupported: LEGACY_ONLY,
        NotUtf8: V1,
        Flood: V1,
        RateLimited: V1,
        TooBig: V1,
        Unreadable: LEGACY_ONLY,
        Overloaded: V1,
        LogUnavailable: V1,
        KeysUnavailable: V1,
        Unauthenticated: V1,
        TokenExpired: V1,
        Replaced: V1,
        BadFrame: V1,
        TooSlow: V1,
        NoHello: V1,
        KeepaliveMissed: V1,
    }

    /// The labels in the metrics of what a session itself finds; the registry has its own word for these two.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        let own = |close: &&Self| !matches!(close, Self::NotLive | Self::Overloaded);
        Self::ALL.iter().filter(own).map(|close| close.as_str())
    }

    /// The close code.
    pub fn code(self) -> u16 {
        match self {
            Self::Normal | Self::NotLive => 1000,
            Self::Away => 1001,
            Self::Protocol => 1002,
            Self::Unsupported => 1003,
            Self::NotUtf8 => 1007,
            Self::Flood | Self::RateLimited => 1008,
            Self::TooBig => 1009,
            Self::Unreadable => 1011,
            Self::Overloaded | Self::LogUnavailable | Self::KeysUnavailable => 1013,
            Self::Unauthenticated => 4001,
            Self::TokenExpired => 4002,
            Self::Replaced => 4003,
            Self::BadFrame => 4004,
            Self::TooSlow => 4005,
            Self::NoHello => 4006,
            Self::KeepaliveMissed => 4007,
        }
    }

    /// The label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Away => "going_away",
            Self::Protocol => "protocol",
            Self::Unsupported => "unsupported",
            Self::NotUtf8 => "not_utf8",
            Self::Unreadable => "unreadable",
            Self::Flood => "flood",
            other => other.problem().unwrap_or("normal"),
        }
    }

    /// The name in the error table, of those that v1 explains in an `error` frame before it closes.
    pub fn problem(self) -> Option<&'static str> {
        Some(match self {
            Self::NotLive => "broadcast_ended",
            Self::Flood | Self::RateLimited => "rate_limited",
            Self::TooBig => "too_large",
            Self::Overloaded => "overloaded",
            Self::LogUnavailable => "log_unavailable",
            Self::KeysUnavailable => "keys_unavailable",
            Self::Unauthenticated => "unauthenticated",
            Self::TokenExpired => "token_expired",
            Self::Replaced => "replaced",
            Self::BadFrame => "bad_frame",
            Self::TooSlow => "too_slow",
            Self::NoHello => "no_hello",
            Self::KeepaliveMissed => "keepalive_missed",
            Self::Normal | Self::Away | Self::Protocol | Self::Unsupported | Self::NotUtf8 | Self::Unreadable => {
                return None;
            }
        })
    }
}
