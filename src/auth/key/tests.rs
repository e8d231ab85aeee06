use super::*;
use crate::settings::Secret;

const RSA_2048: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA2bvuaztLcNnXbEizRxTd\n\
Uca11Vh8FAi+eTTNMNmzMWdH+Fn6DBNTAa6t2PGJFqgW8cR2j1HfEEwrfLnCtdkK\n\
uMzVfRJZTJPfescvMdt11T/vG1c/VVy2pxoNt4ZPB2jNWj/fewMMf0X4cjbDJ0WK\n\
nn68ws9eCYV+FPd/nG8zxXe+qvkydBBZAUdZ1yozaj8sKX8akqgo5N7qFe7viyTt\n\
41b6g1nWLItu87ogW0WcCi/8IjvWzLgL1TSSn0puVUwDlxWTsnXdD7P6p8ddj4jU\n\
UfKqsEz4gBKfISKr5K8W0tSzYxoAVK08o9IrHiDWtFmq2jpUt2KATcP4pVop5oIg\n\
EQIDAQAB\n\
-----END PUBLIC KEY-----";
const RSA_2048_PKCS1: &str = "\
-----BEGIN RSA PUBLIC KEY-----\n\
MIIBCgKCAQEA2bvuaztLcNnXbEizRxTdUca11Vh8FAi+eTTNMNmzMWdH+Fn6DBNT\n\
Aa6t2PGJFqgW8cR2j1HfEEwrfLnCtdkKuMzVfRJZTJPfescvMdt11T/vG1c/VVy2\n\
pxoNt4ZPB2jNWj/fewMMf0X4cjbDJ0WKnn68ws9eCYV+FPd/nG8zxXe+qvkydBBZ\n\
AUdZ1yozaj8sKX8akqgo5N7qFe7viyTt41b6g1nWLItu87ogW0WcCi/8IjvWzLgL\n\
1TSSn0puVUwDlxWTsnXdD7P6p8ddj4jUUfKqsEz4gBKfISKr5K8W0tSzYxoAVK08\n\
o9IrHiDWtFmq2jpUt2KATcP4pVop5oIgEQIDAQAB\n\
-----END RSA PUBLIC KEY-----";
const RSA_1024: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDf8Z165+bXORoeij0Oy4uAekF8\n\
F1HZv8/IlIlwN0b8Jvfu3EpgmGUfeMH8ew438kJKP7q0VzHeTU9YAtI+8XcT47GA\n\
bU1rWyz4QkZEAKXz70STwbM2GUmL4lxz7No3CEv4wqbgnh4/2Y90inx3bxD8SEQi\n\
UxRdy07Hq0lh1+qmTQIDAQAB\n\
-----END PUBLIC KEY-----";
const P256: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAExDxLoLRcQ4Tj9Tkcq1T1K/LOk37i\n\
X1YoFv7j2uK9WwNrLrbjJZwi6hWVYa9SlKppyDV3WtowpoMwL60ttAsEoA==\n\
-----END PUBLIC KEY-----";
const P384: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEHI3mah5FOU/XQyhJHvA/UdNWOttrW19J\n\
FWr7pcHMpsE6i828vXGGc3Li7h70eGCkCIDGnw70KnggJG+b7/Sd5Qf/UdWx+34j\n\
OxRQK88GwcHecYIZIq40cKD3x5evZChs\n\
-----END PUBLIC KEY-----";
const P521: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAKNuvAM4SsiSqk+ak7vb/jjoJ5swb\n\
zb0r0fxZ1F3y27bn2gRUi4qUqIjnCNKkiWtmv8tj7Du9CYWR1x7+vDXaeAwAUMii\n\
ARiFDlKsRA4MTTNmQakbn9ESNyCTvlVapvheO/JA08h1q1rBnUYL4LaIg4gLUCFS\n\
tf+PvKNBC8dG7mBBKPs=\n\
-----END PUBLIC KEY-----";
const ED25519_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEAmGMSEF/CsCB6ua7urYn1bw+8+wxis7aZbxDUg9MjmsU=\n\
-----END PUBLIC KEY-----";
const X25519: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VuAyEAyBRR3O5NXb3lqwC3CRZWJIp1Qcx4Wbn5VF21Y/TZihQ=\n\
-----END PUBLIC KEY-----";

/// What the settings' keys are, or what is wrong with them.
fn read(change: impl FnOnce(&mut Auth)) -> Result<Vec<Algorithm>, String> {
    let mut auth = Auth::default();
    change(&mut auth);
    keys_of_settings(&auth).map(|keys| keys.iter().map(|key| key.algorithm).collect())
}

fn pem(algorithm: Algorithm, pem: &str) -> Result<Vec<Algorithm>, String> {
    read(|auth| {
        auth.algorithm = algorithm;
        auth.public_key = pem.into();
    })
}

#[test]
fn each_algorithm_takes_its_kind_of_public_key_and_no_other() {
    use Algorithm::{EdDsa, Es256, Es384, Hs256, Ps256, Rs256, Rs384, Rs512};
    let rows = [
        (RSA_2048, vec![Rs256, Rs384, Rs512, Ps256]),
        (RSA_2048_PKCS1, vec![Rs256, Rs384, Rs512, Ps256]),
        (RSA_1024, vec![]),
        (P256, vec![Es256]),
        (P384, vec![Es384]),
        (P521, vec![]),
        (ED25519_KEY, vec![EdDsa]),
        (X25519, vec![]),
    ];
    for (key, takes) in rows {
        for &algorithm in Algorithm::ALL {
            let read = pem(algorithm, key);
            assert_eq!(read.is_ok(), takes.contains(&algorithm), "{algorithm} {key}");
            if let Err(error) = read {
                assert!(error.starts_with("auth.public_key: "), "{error}");
                assert!(
                    error.contains(if algorithm == Hs256 {
                        "auth.algorithm"
                    } else {
                        algorithm.name()
                    }),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_public_key_is_refused_and_the_error_says_what_it_is() {
    let tagged = |tag: &str| P256.replace("PUBLIC KEY", tag);
    let rows = [
        ("nonsense".to_owned(), "no PEM"),
        ("\u{fffd}".to_owned(), "no PEM"),
        (tagged("PRIVATE KEY"), "private key"),
        (tagged("EC PRIVATE KEY"), "private key"),
        (tagged("RSA PRIVATE KEY"), "private key"),
        (tagged("ENCRYPTED PRIVATE KEY"), "private key"),
        (tagged("CERTIFICATE"), "certificate"),
        (tagged("SOMETHING"), "something else"),
        (format!("{P256}{P256}"), "more than one"),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_owned(),
            "P-256",
        ),
        ("-----BEGIN PUBLIC KEY-----\n".to_owned(), "P-256"),
    ];
    for (text, why) in rows {
        let error = pem(Algorithm::Es256, &text).unwrap_err();
        assert!(
            error.starts_with("auth.public_key: ") && error.contains(why),
            "{why}: {error}"
        );
        assert!(!error.contains("MFkw"), "the key is shown: {error}");
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    // Whoever has the public key, which is everyone, could sign HS256 tokens with it.
    let plain = read(|auth| auth.hs256_secret = Secret::new(RSA_2048));
    assert!(plain.unwrap_err().starts_with("auth.hs256_secret: it is a PEM"));
    let base64 = read(|auth| auth.hs256_secret_base64 = Secret::new(STANDARD.encode(RSA_2048)));
    assert!(base64.unwrap_err().starts_with("auth.hs256_secret_base64: it is a PEM"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.pem");
    std::fs::write(&path, RSA_2048).unwrap();
    let file = read(|auth| auth.key_file = path.display().to_string());
    assert!(file.unwrap_err().starts_with("auth.key_file: it is a PEM"));
}

#[test]
fn a_file_holds_a_pem_or_a_secret_whose_line_may_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("ec.pem"), P256).unwrap();
    std::fs::write(path("secret"), "a secret of thirty-two bytes or more\n").unwrap();
    std::fs::write(path("short"), "short\n").unwrap();
    std::fs::write(path("long"), vec![b'x'; 70_000]).unwrap();
    let both = read(|auth| {
        auth.algorithm = Algorithm::Es256;
        auth.key_file = path("ec.pem");
        auth.previous_algorithm = "HS256".into();
        auth.previous_key_file = path("secret");
    });
    assert_eq!(both, Ok(vec![Algorithm::Es256, Algorithm::Hs256]));
    let same = |file: &str, secret: &str| {
        let by_file = Auth {
            key_file: path(file),
            ..Auth::default()
        };
        let by_text = Auth {
            hs256_secret: Secret::new(secret),
            ..Auth::default()
        };
        keys_of_settings(&by_file).unwrap() == keys_of_settings(&by_text).unwrap()
    };
    assert!(same("secret", "a secret of thirty-two bytes or more"));
    // By text as by file only one line break at the end is left out.
    for (ending, kept) in [
        ("", ""),
        ("\n", ""),
        ("\r\n", ""),
        ("\n\n", "\n"),
        (" \n", " "),
        ("\t", "\t"),
        ("\r", "\r"),
    ] {
        let secret = "a secret of thirty-two bytes or more";
        let (ended, kept) = (format!("{secret}{ending}"), format!("{secret}{kept}"));
        std::fs::write(path("ended"), &ended).unwrap();
        assert!(same("ended", &ended), "{ending:?}");
        let by_text = Auth {
            hs256_secret: Secret::new(ended),
            ..Auth::default()
        };
        let expected = Key::secret(kept.as_bytes()).unwrap();
        assert!(keys_of_settings(&by_text).unwrap() == [expected], "{ending:?}");
    }
    for (name, why) in [
        ("short", "fewer than 32"),
        ("long", "longer than"),
        ("none", "cannot be read"),
        (".", "not a regular file"),
    ] {
        let error = read(|auth| auth.previous_key_file = path(name)).unwrap_err();
        assert!(
            error.starts_with("auth.previous_key_file: ") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn a_key_that_the_algorithm_has_no_use_for_is_refused_rather_than_ignored() {
    let secret = "a secret of thirty-two bytes or more";
    let error = read(|auth| {
        auth.algorithm = Algorithm::Rs256;
        auth.hs256_secret = Secret::new(secret);
    });
    assert_eq!(
        error.unwrap_err(),
        "auth.hs256_secret: it is HS256's, and the algorithm is RS256 (auth.algorithm)"
    );
    let error = read(|auth| {
        auth.hs256_secret = Secret::new(secret);
        auth.key_file = "other".into();
    });
    assert!(
        error
            .unwrap_err()
            .starts_with("auth.hs256_secret: another key is set beside it")
    );
    let none = read(|_| {}).unwrap_err();
    assert!(
        none.contains("auth.hs256_secret") && none.contains("auth.jwks_url"),
        "{none}"
    );
    let published = read(|auth| auth.jwks_url = "http://keys".into());
    assert_eq!(published, Ok(vec![]));
}
