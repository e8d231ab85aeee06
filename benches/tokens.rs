//! What CPU verifying a token costs, by algorithm, with and without remembering it (`auth.cache_max`), as a Markdown table.
//!
//! `cargo bench --bench tokens`
//!
//! `verified` is a token without the cache; `remembered` the same one again with it; `new` one that the cache does not know and
//! has to make place for; `2 threads` is `remembered` by two threads that share the verifier and use a thousand tokens each.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::print_stdout, reason = "the table is for people")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chatting_actors::{clock::system_ms, metrics::Metrics};
use chatting_server::{
    auth::{Key, Mint, SigningKey, TokenVerifier, mint},
    settings::{Algorithm, Auth, Settings},
    startup::token_rules,
};

/// How long each figure is measured for.
const EACH: Duration = Duration::from_millis(700);
const TOKENS: usize = 1000;

fn pem(tag: &str, der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", STANDARD.encode(der)).into_bytes()
}

fn x509<'a>(public: &impl AsDer<PublicKeyX509Der<'a>>) -> Vec<u8> {
    pem("PUBLIC KEY", public.as_der().unwrap().as_ref())
}

/// A key to sign with, and the one to verify with.
fn pair(algorithm: Algorithm) -> (SigningKey, Key) {
    let random = SystemRandom::new();
    let (private, public) = match algorithm {
        Algorithm::Hs256 => {
            let secret = b"a key for measuring, of thirty-two bytes or more";
            return (SigningKey::secret(secret), Key::secret(secret).unwrap());
        }
        Algorithm::Es256 => {
            let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.as_ref()).unwrap();
            (private.as_ref().to_vec(), x509(pair.public_key()))
        }
        Algorithm::EdDsa => {
            let private = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            let pair = Ed25519KeyPair::from_pkcs8(private.as_ref()).unwrap();
            (private.as_ref().to_vec(), x509(pair.public_key()))
        }
        _ => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
            (private.as_ref().to_vec(), x509(pair.public_key()))
        }
    };
    let signing = SigningKey::pem(algorithm, &pem("PRIVATE KEY", &private)).unwrap();
    (signing, Key::pem(algorithm, &public).unwrap())
}

fn verifier(key: &Key, cache_max: usize) -> TokenVerifier {
    let rules = token_rules(&Settings::default());
    TokenVerifier::new(rules, vec![key.clone()], None, cache_max, Metrics::default())
}

/// Nanoseconds that this thread has been on a CPU (proc(5), schedstat), so that other work on the machine does not count.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// Nanoseconds of CPU a call, taking the tokens in turn.
fn measure(verifier: &TokenVerifier, tokens: &[String]) -> u64 {
    let (began, cpu, mut calls) = (Instant::now(), cpu_ns(), 0);
    while began.elapsed() < EACH {
        for token in tokens {
            black_box(verifier.verify(black_box(token)).unwrap());
            calls += 1;
        }
    }
    (cpu_ns() - cpu) / calls
}

fn main() {
    println!("| algorithm | verified, ns | remembered, ns | new, ns | remembered by 2 threads, ns each |");
    println!("|---|---|---|---|---|");
    for algorithm in [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
        let (signing, key) = pair(algorithm);
        let auth = Auth::default();
        let token = |user_idx: usize| {
            let mint_of = Mint {
                user_idx: user_idx as i64,
                nickname: "a nickname",
                role: None,
                rooms: &[],
                issued_at: system_ms() / 1000,
                ttl_seconds: 3600,
                auth: &auth,
            };
            mint(&signing, &mint_of).unwrap()
        };
        let tokens: Vec<_> = (0..TOKENS).map(token).collect();
        let verified = measure(&verifier(&key, 0), &tokens);
        let remembering = verifier(&key, 4 * TOKENS);
        for token in &tokens {
            remembering.verify(token).unwrap();
        }
        let remembered = measure(&remembering, &tokens);
        // More tokens than it may remember, so that each is new when its turn comes.
        let new = measure(&verifier(&key, 64), &tokens);
        let together = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| measure(&remembering, &tokens))).collect();
            let each: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            each.iter().sum::<u64>() / 2
        });
        println!("| {algorithm} | {verified} | {remembered} | {new} | {together} |");
    }
}
