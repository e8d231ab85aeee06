//! Makes inputs from a seed: good ones with something wrong.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use crate::support::{
    tokens::{bad_tokens, claims, signed},
    ws::Frame,
};

/// What parsers trip over.
const TRAPS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "0.1",
    "null",
    "true",
    "{}",
    "[]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "한글",
    "%",
    "%zz",
    "%ff",
    "%2f",
    "..",
    "/",
    ",",
    ";",
    "=",
    ".",
    "\r\n",
    "\t",
    " ",
    "{\"a\":",
    "[[[[[[[[",
    "*",
    "'",
    "?",
    "#",
    ":",
    "\r\n\r\n",
];

/// A request that has an end, so that the next may follow it on the same connection.
pub struct Request {
    pub bytes: Vec<u8>,
}

pub struct Inputs {
    random: StdRng,
    gateway: bool,
    /// Good tokens and bad ones; made once, for signing costs more than all the rest.
    good: Vec<String>,
    bad: Vec<String>,
}

impl Inputs {
    pub fn new(random: StdRng, gateway: bool) -> Self {
        let odd_claims = [
            json!(-1),
            json!("7"),
            json!(1.5),
            json!(null),
            json!(u64::MAX),
            json!([7]),
            json!({ "a": 7 }),
        ];
        let odd = odd_claims.into_iter().flat_map(|value| {
            ["user_idx", "nickname", "role", "rooms", "exp", "iat", "nbf"].map(|name| {
                let mut claims = claims(7);
                claims[name] = value.clone();
                signed(&claims)
            })
        });
        Self {
            random,
            gateway,
            good: (0..64).map(|user| signed(&claims(1000 + user))).collect(),
            bad: bad_tokens(7).into_iter().map(|bad| bad.token).chain(odd).collect(),
        }
    }

    pub fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.random).unwrap()
    }

    /// Nothing wrong half of the time, else up to four things.
    fn mutate(&mut self, text: impl AsRef<[u8]>) -> Vec<u8> {
        let mut bytes = text.as_ref().to_vec();
        if self.chance(0.5) {
            return bytes;
        }
        for _ in 0..=self.below(4) {
            let places = bytes.len() + 1;
            let (a, b) = (self.below(places), self.below(places));
            let range = a.min(b)..a.max(b);
            match self.below(7) {
                0 | 1 => {
                    if let Some(place) = bytes.get_mut(a) {
                        *place = self.random.random();
                    }
                }
                2 | 3 => {
                    let trap = self.pick(TRAPS);
                    bytes.splice(a..a, trap.bytes());
                }
                4 => drop(bytes.drain(range)),
                5 => {
                    let part = bytes[range].repeat(1 + self.below(8));
                    if bytes.len() + part.len() < 20_000 {
                        bytes.splice(a..a, part);
                    }
                }
                _ => bytes.truncate(a),
            }
        }
        bytes
    }

    /// The same, as far as it may stand in a request's head without ending it early.
    fn in_head(&mut self, text: impl AsRef<[u8]>, path: bool) -> Vec<u8> {
        let mut bytes = self.mutate(text);
        bytes.retain(|byte| {
            if path {
                byte.is_ascii_graphic()
            } else {
                *byte >= 0x20 && *byte != 0x7f
            }
        });
        bytes
    }

    fn token(&mut self) -> Vec<u8> {
        let index = self.random.random::<u32>() as usize;
        let token = match self.below(4) {
            0 => self.bad[index % self.bad.len()].clone(),
            _ => self.good[index % self.good.len()].clone(),
        };
        if self.chance(0.7) {
            token.into_bytes()
        } else {
            self.in_head(token, false)
        }
    }

    fn path(&mut self) -> Vec<u8> {
        let room = if self.chance(0.5) {
            b"12".to_vec()
        } else {
            self.in_head("12", true)
        };
        match self.below(20) {
            0..=9 => [b"/v1/rooms/", &room[..], b"/messages"].concat(),
            10 | 11 => [b"/v1/rooms/", &room[..]].concat(),
            12..=15 => b"/send/message".to_vec(),
            16 => self
                .pick(&["/token", "/", "/chatting", "/v1/presenter", "/readyz", "/livez"])
                .into(),
            17 => self
                .pick(&[
                    "/room/live/check",
                    "/room/live/start",
                    "/room/live/stop",
                    "/room/live/search-all",
                ])
                .into(),
            _ => {
                let rest = self.in_head(
                    "/v1/rooms/12/messages?before=5&after=7&limit=9&q=%EA%B9%80&from=2026-01-01",
                    true,
                );
                [b"/", &rest[..]].concat()
            }
        }
    }

    fn body(&mut self, path: &[u8]) -> Vec<u8> {
        let legacy = [
            r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#,
            r#"{"presenterIdx":" 12 ","userType":"presenter","textMessage":"\ud55c\n"}"#,
            r#"{"presenterIdx":17.7,"userType":null,"textMessage":1.50,"more":[{"a":null}]} and more"#,
        ];
        let body = if path.starts_with(b"/send") || path.starts_with(b"/room") {
            self.pick(&legacy)
        } else {
            self.pick(&[
                r#"{"text":"hello"}"#,
                r#"{"text":"안녕 \u0000\ud83d\ude00","more":[1]}"#,
                "{\"text\":\"\"}",
            ])
        };
        match self.below(200) {
            0 => vec![b'['; 70_000],
            1 => format!("{{\"text\":\"{}\"}}", "가".repeat(2001)).into_bytes(),
            _ => self.mutate(body),
        }
    }

    /// A request whose head and body have an end, whatever they say.
    pub fn request(&mut self) -> Request {
        let path = self.path();
        let posts = path.ends_with(b"/messages") || path.starts_with(b"/send") || path.starts_with(b"/room");
        let usual = if posts { "POST" } else { "GET" };
        let method = if self.chance(0.95) {
            usual
        } else {
            self.pick(&["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
        };
        let mut head = [method.as_bytes(), b" ", &path, b" HTTP/1.1\r\nHost: chat\r\n"].concat();
        let mut header = |name: &str, value: &[u8]| {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        };
        if self.chance(0.95) {
            let token = self.token();
            if self.chance(0.5) {
                header("Authorization", &[b"Bearer ", &token[..]].concat());
            } else {
                header("token", &token);
            }
        }
        if self.gateway || self.chance(0.1) {
            for (name, value) in [
                ("x-forward-userIdx", "7"),
                ("x-forward-email", "kim@example.com"),
                ("x-forward-nickname", "%EA%B9%80+a"),
            ] {
                if self.chance(0.97) {
                    let value = if self.chance(0.8) {
                        value.into()
                    } else {
                        self.in_head(value, false)
                    };
                    header(name, &value);
                }
            }
            let role = self.in_head("moderator", false);
            header("x-role", &role);
        }
        for (name, value, often) in [
            ("Content-Type", "application/json", 0.97),
            ("Idempotency-Key", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", 0.3),
            ("Accept-Language", "ko-KR,ko;q=0.9,en-US;q=0.8", 0.3),
            ("Origin", "https://example.com", 0.1),
            ("Access-Control-Request-Method", "POST", 0.05),
            ("Access-Control-Request-Headers", "token, x-forward-userIdx", 0.05),
            ("X-Forwarded-For", "203.0.113.9, 10.0.0.7", 0.1),
            ("X-Odd", "anything", 0.1),
        ] {
            if self.chance(often) {
                let plain = name == "Content-Type" && self.chance(0.9);
                let value = if plain {
                    value.into()
                } else {
                    self.in_head(value, false)
                };
                header(name, &value);
            }
        }
        let body = if posts || self.chance(0.1) {
            self.body(&path)
        } else {
            Vec::new()
        };
        if !body.is_empty() || posts {
            head.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
        }
        head.extend(b"\r\n");
        Request {
            bytes: [head, body].concat(),
        }
    }

    /// Bytes that are hardly HTTP any more; nothing can follow them.
    pub fn broken(&mut self) -> Vec<u8> {
        let seed = match self.below(4) {
            0 => b"POST /v1/rooms/12/messages HTTP/1.1\r\nHost: chat\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n\
                   5\r\n{\"tex\r\n7\r\nt\":\"hi\"\r\n1\r\n}\r\n0\r\n\r\n"
                .to_vec(),
            1 => b"GET /v1/presenter HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat.v1\r\n\r\n"
                .to_vec(),
            2 => b"GET / HTTP/1.1\r\nHost: chat\r\nExpect: 100-continue\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_vec(),
            _ => self.request().bytes,
        };
        loop {
            let bytes = self.mutate(&seed);
            if bytes != seed {
                return bytes;
            }
        }
    }

    /// A handshake that is good, in either dialect, and what is said after it: each frame with something wrong, or its bytes.
    pub fn websocket(&mut self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let v1 = self.chance(0.6);
        let token = String::from_utf8_lossy(&self.token()).into_owned();
        let (path, protocol) = if v1 {
            ("/v1/presenter", "Sec-WebSocket-Protocol: chat.v1\r\n")
        } else {
            ("/chatting", "")
        };
        let handshake = format!(
            "GET {path} HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        let hello =
            json!({ "type": "hello", "token": token, "epoch": "6604ebba104fa6c3", "resume_after": 3 }).to_string();
        let start = json!({ "id": "start", "token": token }).to_string();
        let says: &[&str] = if v1 {
            &[
                &hello,
                r#"{"type":"ack","seq":0,"fanned_out":312}"#,
                r#"{"type":"ping"}"#,
            ]
        } else {
            &[&start, "ping", r#"{"id":"dance"}"#]
        };
        let mut frames = Vec::new();
        for n in 0..=self.below(4) {
            // The first mostly good, so that the others meet a session that has begun.
            let text = if n == 0 && self.chance(0.8) {
                says[0].as_bytes().to_vec()
            } else {
                let one = self.pick(says);
                self.mutate(one)
            };
            let opcode = if self.chance(0.9) {
                1
            } else {
                self.random.random_range(0..16)
            };
            let frame = Frame {
                fin: self.chance(0.95),
                reserved: if self.chance(0.97) {
                    0
                } else {
                    self.random.random_range(0..8)
                },
                masked: self.chance(0.97),
                ..Frame::new(opcode, text)
            };
            let bytes = frame.encode();
            frames.push(if self.chance(0.9) { bytes } else { self.mutate(bytes) });
        }
        (handshake.into_bytes(), frames)
    }
}
