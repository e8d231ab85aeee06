//! Key pairs made for the run, in every form that a key comes in: PEM, JWK, and tokens signed with it.

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RsaKeyPair,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chatting_server::settings::Algorithm;
use jsonwebtoken::{EncodingKey, crypto::sign};
use serde_json::{Value, json};

/// A private key and its public one.
#[derive(Clone)]
pub struct KeyPair {
    pub algorithm: Algorithm,
    pub kid: String,
    /// PKCS#8.
    pub private_pem: String,
    pub public_pem: String,
    /// What is between the PEM's lines.
    pub public_der: Vec<u8>,
    /// The public key, with its `kid` and `alg`.
    pub jwk: Value,
}

impl KeyPair {
    pub fn generate(algorithm: Algorithm, kid: &str) -> Self {
        let url = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let random = SystemRandom::new();
        let (private, public, mut jwk) = match algorithm {
            Algorithm::Hs256 => panic!("HS256 has no key pair"),
            Algorithm::Es256 | Algorithm::Es384 => {
                let (curve, signing) = match algorithm {
                    Algorithm::Es256 => ("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
                    _ => ("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
                };
                let private = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(signing, private.as_ref()).unwrap();
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                let jwk = json!({ "kty": "EC", "crv": curve, "x": url(x), "y": url(y) });
                (private.as_ref().to_vec(), x509(pair.public_key()), jwk)
            }
            Algorithm::EdDsa => {
                let private = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                let pair = Ed25519KeyPair::from_pkcs8(private.as_ref()).unwrap();
                let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": url(pair.public_key().as_ref()) });
                (private.as_ref().to_vec(), x509(pair.public_key()), jwk)
            }
            _ => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let public = pair.public_key();
                let n = public.modulus().big_endian_without_leading_zero();
                let e = public.exponent().big_endian_without_leading_zero();
                let jwk = json!({ "kty": "RSA", "n": url(n), "e": url(e) });
                let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
                (private.as_ref().to_vec(), x509(public), jwk)
            }
        };
        jwk["kid"] = json!(kid);
        jwk["alg"] = json!(algorithm.name());
        jwk["use"] = json!("sig");
        Self {
            algorithm,
            kid: kid.to_owned(),
            private_pem: pem("PRIVATE KEY", &private),
            public_pem: pem("PUBLIC KEY", &public),
            public_der: public,
            jwk,
        }
    }

    /// A token with these claims, that names this key.
    pub fn token(&self, claims: &Value) -> String {
        self.signed(
            &json!({ "alg": self.algorithm.name(), "typ": "JWT", "kid": self.kid }).to_string(),
            &claims.to_string(),
        )
    }

    /// Any header and payload, well signed.
    pub fn signed(&self, header: &str, payload: &str) -> String {
        let pem = self.private_pem.as_bytes();
        let (key, algorithm) = match self.algorithm {
            Algorithm::Es256 => (EncodingKey::from_ec_pem(pem), jsonwebtoken::Algorithm::ES256),
            Algorithm::Es384 => (EncodingKey::from_ec_pem(pem), jsonwebtoken::Algorithm::ES384),
            Algorithm::EdDsa => (EncodingKey::from_ed_pem(pem), jsonwebtoken::Algorithm::EdDSA),
            rsa => (EncodingKey::from_rsa_pem(pem), rsa.name().parse().unwrap()),
        };
        signed_with(header, payload, &key.unwrap(), algorithm)
    }
}

/// Any header and payload, signed with this key.
pub fn signed_with(header: &str, payload: &str, key: &EncodingKey, algorithm: jsonwebtoken::Algorithm) -> String {
    let text = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = sign(text.as_bytes(), key, algorithm).unwrap();
    format!("{text}.{signature}")
}

/// A JWK set of these keys.
pub fn jwk_set(keys: &[&KeyPair]) -> String {
    json!({ "keys": keys.iter().map(|key| &key.jwk).collect::<Vec<_>>() }).to_string()
}

/// DER as PEM.
pub fn pem(tag: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", lines.join("\n"))
}

fn x509<'a>(public: &impl AsDer<PublicKeyX509Der<'a>>) -> Vec<u8> {
    public.as_der().unwrap().as_ref().to_vec()
}
