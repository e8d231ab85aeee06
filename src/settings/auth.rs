//! The section of who a caller is: keys, how tokens are read, and the gateway.

use super::rule::{
    ALGORITHM_OR_EMPTY, HEADER_NAME_OR_EMPTY, IP_OR_CIDR, Items, JWKS_URL_OR_EMPTY, NOT_EMPTY, PUBLIC_KEY_ALGORITHM,
};
use super::secret::Secret;
use super::section::{choice, section};

choice! {
    /// How tokens are signed (RFC 7518, 3.1; RFC 8037).
    pub enum Algorithm {
        /// HMAC with SHA-256: whoever can check tokens can make them.
        Hs256 = "HS256",
        /// RSA PKCS#1 v1.5 with SHA-256.
        Rs256 = "RS256",
        /// RSA PKCS#1 v1.5 with SHA-384.
        Rs384 = "RS384",
        /// RSA PKCS#1 v1.5 with SHA-512.
        Rs512 = "RS512",
        /// RSA PSS with SHA-256.
        Ps256 = "PS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// ECDSA on P-384 with SHA-384.
        Es384 = "ES384",
        /// Ed25519.
        EdDsa = "EdDSA",
    }
}

choice! {
    /// How a caller is known.
    pub enum AuthMode {
        /// By the JWT it sends; `x-forward-*` headers are ignored.
        Token = "token",
        /// By the `x-forward-*` headers of a trusted gateway.
        Gateway = "gateway",
    }
}

section! {
    /// Who a caller is.
    /// 호출자 인증.
    pub struct Auth {
        /// "token": by its JWT; "gateway": by the x-forward headers of a trusted proxy.
        /// "token": JWT로 확인. "gateway": 신뢰하는 프록시의 x-forward 헤더로 확인.
        mode: AuthMode = AuthMode::Token;
        /// The one algorithm of auth's key; a token that names another is refused.
        /// 키의 알고리즘. 다른 알고리즘을 쓰는 토큰은 거절한다.
        algorithm: Algorithm = Algorithm::Hs256;
        /// Key of HS256 tokens as plain text, at least 32 bytes (RFC 7518, 3.2) but for a line break at its end.
        /// HS256 토큰의 평문 키, 32바이트 이상(RFC 7518, 3.2). 끝의 줄바꿈 하나는 키에 들지 않는다.
        hs256_secret: Secret = "";
        /// Key of HS256 tokens in base64, at least 32 bytes once decoded.
        /// HS256 토큰의 base64 키, 디코딩 후 32바이트 이상.
        hs256_secret_base64: Secret = "";
        /// Public key of the other algorithms in PEM.
        /// 다른 알고리즘의 PEM 공개 키.
        public_key: String = "";
        /// File with the key: a public key in PEM, or HS256's plain text. Read again at SIGHUP.
        /// 키 파일: PEM 공개 키 또는 HS256 평문 키. SIGHUP에 다시 읽는다.
        key_file: String = "";
        /// Algorithm of the previous key, whose tokens are taken too; empty is auth.algorithm.
        /// 함께 받는 이전 키의 알고리즘. 비우면 auth.algorithm과 같다.
        previous_algorithm: String = "", ALGORITHM_OR_EMPTY;
        /// The previous key, as auth.hs256_secret.
        /// 이전 키(auth.hs256_secret과 같은 형식).
        previous_hs256_secret: Secret = "";
        /// The previous key, as auth.hs256_secret_base64.
        /// 이전 키(auth.hs256_secret_base64와 같은 형식).
        previous_hs256_secret_base64: Secret = "";
        /// The previous key, as auth.public_key.
        /// 이전 키(auth.public_key와 같은 형식).
        previous_public_key: String = "";
        /// The previous key, as auth.key_file.
        /// 이전 키(auth.key_file과 같은 형식).
        previous_key_file: String = "";
        /// Where public keys are published (JWK set): http://, https:// or file:///; beside or instead of these.
        /// 공개 키(JWK 집합)의 위치: http://, https://, file:///. 위의 키와 함께 또는 대신 쓴다.
        jwks_url: String = "", JWKS_URL_OR_EMPTY;
        /// Certificates (PEM file) that an https jwks_url is trusted by; empty trusts the public authorities.
        /// https인 jwks_url을 믿을 인증서(PEM) 파일. 비우면 공개 인증 기관을 믿는다.
        jwks_ca_file: String = "";
        /// Algorithms that a published key may be for; an RSA key that names none is for the first RSA one.
        /// 공개된 키에 허용하는 알고리즘. 알고리즘이 없는 RSA 키는 첫 RSA 알고리즘으로 본다.
        jwks_algorithms: Vec<String> = &["RS256", "ES256", "EdDSA"], Items(PUBLIC_KEY_ALGORITHM);
        /// Seconds after which published keys are fetched again.
        /// 공개된 키를 다시 가져오는 간격(초).
        jwks_refresh_seconds: u64 = 300, 1..=86_400;
        /// Seconds between fetches at least, however many tokens name a key that is not known.
        /// 모르는 키의 토큰이 아무리 많아도 지키는 최소 간격(초).
        jwks_min_refresh_seconds: u64 = 5, 1..=3600;
        /// Seconds that keys hold which cannot be fetched again, more than one try takes; 0 is for good.
        /// 다시 가져올 수 없는 키를 계속 쓰는 시간(초). 한 번 더 시도할 수 있을 만큼 길어야 한다. 0이면 계속.
        jwks_stale_seconds: u64 = 86_400, 0..=31_536_000;
        /// Milliseconds that a fetch may take, that a token waits for its key, and that SIGHUP waits for key files.
        /// 한 번 가져오는 데, 토큰이 키를 기다리는 데, SIGHUP에 키 파일을 읽는 데 허용하는 밀리초.
        jwks_timeout_ms: u64 = 2000, 10..=60_000;
        /// Bytes of a JWK set; a longer one is not read.
        /// JWK 집합의 최대 바이트. 넘으면 읽지 않는다.
        jwks_max_bytes: usize = 262_144, 1024..=16_777_216;
        /// Tokens that are remembered as good until they expire or the keys change; 0 remembers none.
        /// 만료되거나 키가 바뀔 때까지 유효하다고 기억하는 토큰 수. 0이면 기억하지 않는다.
        cache_max: usize = 10_000, 0..=1_000_000;
        /// Seconds that clocks may differ when a token's times are checked.
        /// 토큰의 시각을 검사할 때 허용하는 시계 오차(초).
        leeway_seconds: u64 = 5, 0..=300;
        /// The `iss` that a token must have; empty is not checked.
        /// 토큰에 있어야 하는 `iss`. 비우면 검사하지 않는다.
        issuer: String = "";
        /// The `aud` that a token must have; empty is not checked.
        /// 토큰에 있어야 하는 `aud`. 비우면 검사하지 않는다.
        audience: String = "";
        /// Claim with the user's number.
        /// 사용자 번호가 담긴 클레임.
        claim_user: String = "user_idx", NOT_EMPTY;
        /// Claim with the nickname.
        /// 닉네임이 담긴 클레임.
        claim_nickname: String = "nickname", NOT_EMPTY;
        /// Claim with the role: viewer, moderator or operator.
        /// 역할(viewer, moderator, operator)이 담긴 클레임.
        claim_role: String = "role", NOT_EMPTY;
        /// Claim with the rooms a moderator is one in; "*" is all.
        /// 모더레이터가 맡은 방이 담긴 클레임. "*"는 모든 방.
        claim_rooms: String = "rooms", NOT_EMPTY;
        /// Bytes of a token; longer ones are refused unread.
        /// 토큰의 최대 바이트. 넘으면 읽지 않고 거절한다.
        max_token_bytes: usize = 8192, 256..=65_536;
        /// Addresses whose x-forward headers and forwarded client addresses are believed; empty believes none.
        /// x-forward 헤더와 전달된 클라이언트 주소를 믿을 상대 주소. 비우면 아무도 믿지 않는다.
        trusted_proxies: Vec<String> = &[], Items(IP_OR_CIDR);
        /// What a gateway must send as `x-gateway-secret`; empty is not checked.
        /// 게이트웨이가 `x-gateway-secret`으로 보내야 하는 값. 비우면 검사하지 않는다.
        gateway_secret: Secret = "";
        /// File with that secret, one line of text. Read again at SIGHUP.
        /// 그 값이 한 줄로 담긴 파일. SIGHUP에 다시 읽는다.
        gateway_secret_file: String = "";
        /// The secret of before, which is taken too while gateways change to auth.gateway_secret.
        /// 게이트웨이가 auth.gateway_secret으로 바꾸는 동안 함께 받는 이전 값.
        previous_gateway_secret: Secret = "";
        /// The secret of before, as auth.gateway_secret_file.
        /// 이전 값(auth.gateway_secret_file과 같은 형식).
        previous_gateway_secret_file: String = "";
        /// Header with the caller's role: moderator (see gateway_rooms_header) or operator; empty makes all viewers.
        /// 호출자의 역할 헤더: moderator(gateway_rooms_header 참고) 또는 operator. 비우면 모두 viewer.
        gateway_role_header: String = "", HEADER_NAME_OR_EMPTY;
        /// Header that names a moderator's rooms (12,14 or *), none without it; unset here: every room.
        /// 모더레이터가 맡은 방(12,14 또는 *)을 알리는 헤더. 헤더가 없으면 맡은 방도 없다. 여기서 비우면 모든 방.
        gateway_rooms_header: String = "", HEADER_NAME_OR_EMPTY;
    }
}

impl Auth {
    /// Whether a gateway must tell a secret.
    pub fn has_gateway_secret(&self) -> bool {
        self.gateway_secret.is_set() || !self.gateway_secret_file.is_empty()
    }
}
