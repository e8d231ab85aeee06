//! One key to verify tokens with, good for one algorithm only, and where the settings have it.
//!
//! What is wrong with a key is told by its setting's name and never by what the setting holds.

use std::cmp::Ordering;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::DecodingKey;

use crate::{
    files::{read_bounded, without_line_break},
    settings::{Algorithm, Auth},
};

/// The least length of an HS256 key in bytes (RFC 7518, 3.2).
const HS256_MIN_BYTES: usize = 32;

/// Bytes of a key's file: no key is that long.
pub(super) const KEY_FILE_MAX_BYTES: usize = 64 * 1024;

/// A key and the one algorithm that it is for. It may hold a secret, so it has no `Debug`.
#[derive(Clone)]
pub struct Key {
    /// What tokens call it, where it has a name (`kid`).
    pub kid: Option<String>,
    /// The only algorithm that a token may name for it.
    pub algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
    /// What the key is made of, to tell whether it changed.
    material: Vec<u8>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.content() == other.content()
    }
}

impl Algorithm {
    /// The algorithm of that name; `None` for any other.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.name() == name)
    }

    pub(super) fn jwt(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Rs384 => jsonwebtoken::Algorithm::RS384,
            Self::Rs512 => jsonwebtoken::Algorithm::RS512,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    /// What kind of key it takes, in words.
    fn wants(self) -> &'static str {
        match self {
            Self::Hs256 => "a secret of at least 32 bytes",
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 => "an RSA public key of 2048 to 8192 bits",
            Self::Es256 => "an EC public key on the curve P-256",
            Self::Es384 => "an EC public key on the curve P-384",
            Self::EdDsa => "an Ed25519 public key",
        }
    }

    /// Whether these bytes are a public key for it: of its kind, its curve, not too small, a point on that curve.
    fn takes(self, public: &[u8]) -> bool {
        let parsed_as: &'static dyn VerificationAlgorithm = match self {
            Self::Hs256 => return false,
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &ECDSA_P384_SHA384_FIXED,
            Self::EdDsa => &ED25519,
        };
        let is_rsa = matches!(self, Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256);
        ParsedPublicKey::new(parsed_as, public).is_ok() && (!is_rsa || modulus(public).is_some_and(is_good_modulus))
    }
}

impl Key {
    /// An order in which the same keys always stand.
    pub(super) fn by_content(&self, other: &Self) -> Ordering {
        self.content().cmp(&other.content())
    }

    fn content(&self) -> (Option<&str>, &str, &[u8]) {
        (self.kid.as_deref(), self.algorithm.name(), &self.material)
    }

    /// An HS256 key. The error says what is wrong, without the setting's name.
    pub fn secret(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HS256_MIN_BYTES {
            return Err(format!("it has fewer than {HS256_MIN_BYTES} bytes"));
        }
        // A public key is known to everyone: whoever has it could sign tokens, were it taken for a secret.
        if contains(bytes, b"-----BEGIN ") {
            return Err("it is a PEM, and HS256 wants a secret; set auth.algorithm to what the PEM is for".into());
        }
        Ok(Self {
            kid: None,
            algorithm: Algorithm::Hs256,
            decoding: DecodingKey::from_secret(bytes),
            material: bytes.to_vec(),
        })
    }

    /// A public key in PEM (`PUBLIC KEY`, or `RSA PUBLIC KEY`). The error says what is wrong, without the setting's name.
    pub fn pem(algorithm: Algorithm, pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| "it is no PEM".to_owned())?;
        let tags: Vec<_> = text
            .split("-----BEGIN ")
            .skip(1)
            .filter_map(|rest| rest.split("-----").next())
            .collect();
        match tags[..] {
            ["PUBLIC KEY" | "RSA PUBLIC KEY"] => {}
            [] => return Err("it is no PEM".into()),
            [tag] if tag.ends_with("PRIVATE KEY") => {
                return Err("it is a private key, and the public one is wanted (openssl pkey -pubout)".into());
            }
            ["CERTIFICATE"] => {
                return Err("it is a certificate, and its public key is wanted (openssl x509 -pubkey -noout)".into());
            }
            [_] => return Err("it is a PEM of something else than a public key".into()),
            _ => return Err("it holds more than one PEM".into()),
        }
        let wrong = || format!("it is not {}, which {algorithm} wants", algorithm.wants());
        let decoding = match algorithm {
            Algorithm::Hs256 => return Err("HS256 has no public key: set auth.algorithm to what the PEM is for".into()),
            Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 | Algorithm::Ps256 => DecodingKey::from_rsa_pem(pem),
            Algorithm::Es256 | Algorithm::Es384 => DecodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => DecodingKey::from_ed_pem(pem),
        };
        let decoding = decoding.map_err(|_| wrong())?;
        let material = decoding.try_get_as_bytes().map_err(|_| wrong())?.to_vec();
        if !algorithm.takes(&material) {
            return Err(wrong());
        }
        Ok(Self {
            kid: None,
            algorithm,
            decoding,
            material,
        })
    }

    /// A public key of an elliptic curve, as its point (uncompressed), or of Ed25519.
    pub(super) fn published(kid: Option<String>, algorithm: Algorithm, public: Vec<u8>) -> Result<Self, String> {
        if !algorithm.takes(&public) {
            return Err(format!("it is not {}, which {algorithm} wants", algorithm.wants()));
        }
        let decoding = match algorithm {
            Algorithm::EdDsa => DecodingKey::from_ed_der(&public),
            _ => DecodingKey::from_ec_der(&public),
        };
        Ok(Self {
            kid,
            algorithm,
            decoding,
            material: public,
        })
    }

    /// An RSA public key of this modulus and exponent, which were found good.
    pub(super) fn rsa(kid: Option<String>, algorithm: Algorithm, n: &[u8], e: &[u8]) -> Self {
        Self {
            kid,
            algorithm,
            decoding: DecodingKey::from_rsa_raw_components(n, e),
            material: [n, b"/", e].concat(),
        }
    }
}

/// The keys that the settings have, the present one first; none where only published keys are used. Reads their files. The
/// error names the setting.
pub fn keys_of_settings(auth: &Auth) -> Result<Vec<Key>, String> {
    let present = Source {
        prefix: "auth.",
        algorithm: auth.algorithm,
        secret: auth.hs256_secret.expose(),
        secret_base64: auth.hs256_secret_base64.expose(),
        public_key: &auth.public_key,
        file: &auth.key_file,
    };
    let previous = Source {
        prefix: "auth.previous_",
        algorithm: Algorithm::parse(&auth.previous_algorithm).unwrap_or(auth.algorithm),
        secret: auth.previous_hs256_secret.expose(),
        secret_base64: auth.previous_hs256_secret_base64.expose(),
        public_key: &auth.previous_public_key,
        file: &auth.previous_key_file,
    };
    let keys = [present.key()?, previous.key()?];
    if keys[0].is_none() && auth.jwks_url.is_empty() {
        return Err(
            "no key to verify tokens with: set auth.hs256_secret (environment CHAT__AUTH__HS256_SECRET), at \
                    least 32 bytes, or auth.hs256_secret_base64, auth.key_file, auth.public_key or auth.jwks_url"
                .into(),
        );
    }
    Ok(keys.into_iter().flatten().collect())
}

/// The bytes of the HS256 key of the settings, to sign tokens with. The error names the setting.
pub fn secret_of_settings(auth: &Auth) -> Result<Vec<u8>, String> {
    let present = keys_of_settings(auth)?.into_iter().next();
    let secret = present.filter(|key| key.algorithm == Algorithm::Hs256);
    secret.map(|key| key.material).ok_or_else(|| {
        "there is no HS256 secret to sign with (auth.hs256_secret): give the private key by --key-file".into()
    })
}

/// One key's settings.
struct Source<'a> {
    prefix: &'static str,
    algorithm: Algorithm,
    secret: &'a str,
    secret_base64: &'a str,
    public_key: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn key(&self) -> Result<Option<Key>, String> {
        let set = [
            ("hs256_secret", self.secret),
            ("hs256_secret_base64", self.secret_base64),
            ("public_key", self.public_key),
            ("key_file", self.file),
        ];
        let mut set = set.into_iter().filter(|(_, text)| !text.is_empty());
        let Some((name, text)) = set.next() else {
            return Ok(None);
        };
        let named = |why: String| format!("{}{name}: {why}", self.prefix);
        if set.next().is_some() {
            return Err(named("another key is set beside it; allowed: one of them".into()));
        }
        let hs256 = self.algorithm == Algorithm::Hs256;
        let key = match name {
            "hs256_secret" | "hs256_secret_base64" if !hs256 => Err(format!(
                "it is HS256's, and the algorithm is {} ({}algorithm)",
                self.algorithm, self.prefix
            )),
            "hs256_secret" => Key::secret(without_line_break(text.as_bytes())),
            "hs256_secret_base64" => STANDARD
                .decode(text.trim())
                .map_err(|_| "it is not base64".to_owned())
                .and_then(|bytes| Key::secret(&bytes)),
            "public_key" => Key::pem(self.algorithm, text.as_bytes()),
            _ => read_bounded(text, KEY_FILE_MAX_BYTES).and_then(|bytes| match hs256 {
                true => Key::secret(without_line_break(&bytes)),
                false => Key::pem(self.algorithm, &bytes),
            }),
        };
        key.map(Some).map_err(named)
    }
}

/// Whether an RSA modulus, big-endian, has 2048 to 8192 bits: fewer are too few (RFC 7518, 3.3), more cost too much.
pub(super) fn is_good_modulus(modulus: &[u8]) -> bool {
    let first = modulus.iter().position(|byte| *byte != 0).unwrap_or(modulus.len());
    let significant = &modulus[first..];
    let leading = significant.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (2048..=8192).contains(&(significant.len() * 8 - leading))
}

/// The modulus of an RSA public key in DER (PKCS#1: a sequence of two integers, of which it is the first).
fn modulus(der: &[u8]) -> Option<&[u8]> {
    /// What is in a DER value with this tag.
    fn inside(der: &[u8], tag: u8) -> Option<&[u8]> {
        let (&first, rest) = der.strip_prefix(&[tag])?.split_first()?;
        let (length, rest) = match first {
            short @ 0..0x80 => (usize::from(short), rest),
            long => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                let push = |length: usize, byte: &u8| length.checked_mul(256)?.checked_add(usize::from(*byte));
                (bytes.iter().try_fold(0, push)?, rest)
            }
        };
        rest.get(..length)
    }
    inside(inside(der, 0x30)?, 0x02)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests;
