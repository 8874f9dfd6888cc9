//! Forged, stale and misaddressed tokens, and good ones of every algorithm.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::keys::KeyAlg;
use super::*;
use crate::clock::ManualClock;

const NOW_S: i64 = 1_780_000_000;
const SECRET: &str = "a shared secret of more than thirty-two bytes";
const WORKSPACE: &str = "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10";

fn secret_key(kid: &str, secret: &str) -> KeyConfig {
    KeyConfig { kid: kid.into(), alg: KeyAlg::HS256, secret: Some(secret.into()), public_key_pem: None }
}

fn verifier_at(now_s: i64, keys: Vec<KeyConfig>) -> (Verifier, ManualClock) {
    let clock = ManualClock::at(Timestamp::from_micros(now_s * 1_000_000));
    let config = AuthConfig { issuer: "https://issuer.test".into(), audience: "billing".into(), keys, jwks: None };
    (Verifier::new(&config, Arc::new(clock.clone())).unwrap(), clock)
}

fn verifier() -> Verifier {
    verifier_at(NOW_S, vec![secret_key("one", SECRET), secret_key("two", &SECRET.repeat(2))]).0
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.test", "aud": "billing", "sub": "service-1", "exp": NOW_S + 600,
        "scope": "credits:write events:read unknown:scope", "workspace_id": WORKSPACE,
    })
}

fn with(change: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn header(kid: &str) -> Header {
    Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) }
}

fn signed(claims: &Value) -> String {
    jsonwebtoken::encode(&header("one"), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// A token with this header as text, signed like a good one.
fn with_header(header: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(header), encode(&claims()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn check(verifier: &Verifier, token: &str) -> Result<Arc<Principal>, TokenError> {
    match verifier.check(token) {
        TokenCheck::Valid(principal) => Ok(principal),
        TokenCheck::Invalid(error) => Err(error),
        TokenCheck::UnknownKey => Err(TokenError::UnknownKey),
    }
}

#[test]
fn a_valid_token_gives_subject_scopes_and_workspace() {
    let principal = check(&verifier(), &signed(&claims())).unwrap();
    assert_eq!(principal.subject, "service-1");
    assert_eq!(principal.tenancy, Tenancy::One(WorkspaceId(WORKSPACE.parse().unwrap())));
    let held: Vec<_> = Scope::ALL.iter().filter(|scope| principal.has_scope(**scope)).collect();
    assert_eq!(held, [&Scope::CreditsWrite, &Scope::EventsRead]);
    let all = check(&verifier(), &signed(&with(&json!({"workspace_id": "*", "aud": ["x", "billing"]})))).unwrap();
    assert_eq!(all.tenancy, Tenancy::All);
}

#[test]
fn forged_tokens_are_refused() {
    let verifier = verifier();
    let good = signed(&claims());
    let (rest, signature) = good.rsplit_once('.').unwrap();
    let (head, _) = rest.split_once('.').unwrap();
    let richer = URL_SAFE_NO_PAD.encode(with(&json!({"workspace_id": "*"})).to_string());
    let other_key = |kid: &str| {
        jsonwebtoken::encode(&header(kid), &claims(), &EncodingKey::from_secret(b"another secret entirely, and long"))
            .unwrap()
    };
    let cases = [
        ("nothing", String::new()),
        ("no token", "abc".into()),
        ("two parts", rest.into()),
        ("no signature", format!("{rest}.")),
        ("a tampered payload", format!("{head}.{richer}.{signature}")),
        ("a tampered signature", format!("{rest}.{}A", &signature[..signature.len() - 2])),
        ("alg none", with_header(&json!({"alg": "none", "kid": "one"}))),
        ("alg none and no signature", format!("{}.", with_header(&json!({"alg": "none"})).rsplit_once('.').unwrap().0)),
        ("alg in other letters", with_header(&json!({"alg": "hs256", "kid": "one"}))),
        ("another alg", with_header(&json!({"alg": "HS512", "kid": "one"}))),
        ("an asymmetric alg", with_header(&json!({"alg": "RS256", "kid": "one"}))),
        ("another key", other_key("one")),
        (
            "the id of another key",
            jsonwebtoken::encode(&header("two"), &claims(), &EncodingKey::from_secret(SECRET.as_bytes())).unwrap(),
        ),
        ("an unknown key", other_key("three")),
        ("no kid where there are two keys", with_header(&json!({"alg": "HS256"}))),
        ("a kid that is a path", with_header(&json!({"alg": "HS256", "kid": "../../dev/null"}))),
        ("a kid that is a query", with_header(&json!({"alg": "HS256", "kid": "x' or '1'='1"}))),
        ("a kid that is a number", with_header(&json!({"alg": "HS256", "kid": 1}))),
        ("a key set of its own", with_header(&json!({"alg": "HS256", "kid": "mine", "jku": "https://evil.test/keys"}))),
        ("a key of its own", with_header(&json!({"alg": "HS256", "kid": "mine", "jwk": {"kty": "oct", "k": "AAAA"}}))),
        ("far too long", "a.".repeat(MAX_TOKEN_LEN)),
    ];
    for (name, token) in cases {
        assert!(check(&verifier, &token).is_err(), "{name}");
    }
}

#[test]
fn urls_in_the_header_of_a_valid_token_are_ignored() {
    let token =
        with_header(&json!({"alg": "HS256", "kid": "one", "jku": "https://evil.test", "x5u": "https://evil.test"}));
    assert!(check(&verifier(), &token).is_ok());
}

#[test]
fn only_access_tokens_are_accepted() {
    let outcome =
        |typ: Value| check(&verifier(), &with_header(&json!({"alg": "HS256", "kid": "one", "typ": typ}))).err();
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        assert_eq!(outcome(json!(typ)), None, "{typ}");
    }
    for typ in ["refresh+jwt", "logout+jwt", "dpop+jwt", "id+jwt", "secevent+jwt", "", " JWT", "at+jwt2", "JWE", "at"] {
        assert_eq!(outcome(json!(typ)), Some(TokenError::Type), "{typ}");
    }
    for no_text in [json!(1), json!(["JWT"]), json!({})] {
        assert_eq!(outcome(no_text.clone()), Some(TokenError::Malformed), "{no_text}");
    }
    assert!(check(&verifier(), &with_header(&json!({"alg": "HS256", "kid": "one"}))).is_ok(), "no type");
}

#[test]
fn required_claims_must_be_present_and_match() {
    let refused = |change: Value| check(&verifier(), &signed(&with(&change))).err();
    for name in ["exp", "iss", "aud", "sub", "scope", "workspace_id"] {
        assert_eq!(refused(json!({ name: null })), Some(TokenError::Claims), "{name}");
    }
    let cases = [
        (json!({"iss": "https://other.test"}), TokenError::IssuerOrAudience),
        (json!({"aud": "other"}), TokenError::IssuerOrAudience),
        (json!({"aud": []}), TokenError::IssuerOrAudience),
        (json!({"exp": NOW_S - 5}), TokenError::Time),
        (json!({"exp": i64::MIN}), TokenError::Time),
        (json!({"nbf": NOW_S + 6}), TokenError::Time),
        (json!({"exp": "soon"}), TokenError::Claims),
        (json!({"exp": -1.5}), TokenError::Claims),
        (json!({"sub": ""}), TokenError::Claims),
        (json!({"sub": "a\u{202e}b"}), TokenError::Claims),
        (json!({"sub": "s".repeat(256)}), TokenError::Claims),
        (json!({"workspace_id": "**"}), TokenError::Claims),
        (json!({"scope": ["credits:write"]}), TokenError::Claims),
    ];
    for (change, error) in cases {
        assert_eq!(refused(change.clone()), Some(error), "{change}");
    }
    assert_eq!(refused(json!({"exp": NOW_S - 4})), None, "within the leeway");
    assert_eq!(refused(json!({"nbf": NOW_S + 5})), None, "within the leeway");
    assert_eq!(refused(json!({"exp": 1_780_000_600.5})), None, "a NumericDate may have a fraction");
}

#[test]
fn a_token_without_a_kid_is_valid_only_if_there_is_one_key() {
    let token = with_header(&json!({"alg": "HS256"}));
    let (single, _) = verifier_at(NOW_S, vec![secret_key("one", SECRET)]);
    assert!(check(&single, &token).is_ok());
    assert_eq!(check(&verifier(), &token).unwrap_err(), TokenError::UnknownKey);
}

#[test]
fn a_cached_token_expires_with_its_exp() {
    let (verifier, clock) = verifier_at(NOW_S, vec![secret_key("one", SECRET)]);
    let token = signed(&with(&json!({"exp": NOW_S + 10})));
    assert!(check(&verifier, &token).is_ok());
    assert!(check(&verifier, &token).is_ok());
    clock.set(Timestamp::from_micros((NOW_S + 15) * 1_000_000));
    assert_eq!(check(&verifier, &token).unwrap_err(), TokenError::Time);
}

#[test]
fn the_token_cache_is_bounded() {
    let verifier = verifier();
    for n in 0..CACHE_SHARDS * CACHE_SHARD_SIZE / 4 {
        let principal =
            Principal { subject: n.to_string(), tenancy: Tenancy::All, scopes: 0, expires_at_s: NOW_S + 600 };
        let mut digest = [0; 32];
        digest[24..].copy_from_slice(&n.to_be_bytes());
        verifier.insert_cached(digest, principal, NOW_S);
    }
    assert!(verifier.shard(&[0; 32]).len() <= CACHE_SHARD_SIZE);
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A fresh key pair: the algorithm, the private and the public key in PEM.
fn key_pairs() -> [(KeyAlg, Algorithm, EncodingKey, String); 3] {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa_private: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let rsa_public: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let elliptic_private = ec.to_pkcs8v1().unwrap();
    let elliptic_public: PublicKeyX509Der<'_> = ec.public_key().as_der().unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let edwards_private = ed.to_pkcs8v1().unwrap();
    let edwards_public: PublicKeyX509Der<'_> = ed.public_key().as_der().unwrap();
    let private = |der: &[u8]| pem("PRIVATE KEY", der);
    let public = |der: &[u8]| pem("PUBLIC KEY", der);
    [
        (
            KeyAlg::RS256,
            Algorithm::RS256,
            EncodingKey::from_rsa_pem(private(rsa_private.as_ref()).as_bytes()).unwrap(),
            public(rsa_public.as_ref()),
        ),
        (
            KeyAlg::ES256,
            Algorithm::ES256,
            EncodingKey::from_ec_pem(private(elliptic_private.as_ref()).as_bytes()).unwrap(),
            public(elliptic_public.as_ref()),
        ),
        (
            KeyAlg::EdDsa,
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(private(edwards_private.as_ref()).as_bytes()).unwrap(),
            public(edwards_public.as_ref()),
        ),
    ]
}

#[test]
fn public_keys_of_every_algorithm_verify_and_never_serve_as_a_secret() {
    for (alg, algorithm, private, public) in key_pairs() {
        let config = KeyConfig { kid: "k".into(), alg, secret: None, public_key_pem: Some(public.clone()) };
        let (verifier, _) = verifier_at(NOW_S, vec![config]);
        let header = |algorithm| Header { kid: Some("k".into()), ..Header::new(algorithm) };
        let good = jsonwebtoken::encode(&header(algorithm), &claims(), &private).unwrap();
        assert!(check(&verifier, &good).is_ok(), "{alg:?}");
        let confused = EncodingKey::from_secret(public.as_bytes());
        let forged = jsonwebtoken::encode(&header(Algorithm::HS256), &claims(), &confused).unwrap();
        assert_eq!(check(&verifier, &forged).unwrap_err(), TokenError::Signature, "{alg:?}");
    }
}

#[test]
fn keys_that_do_not_match_their_algorithm_are_refused() {
    let refused = |alg, secret: Option<&str>, public: Option<&str>| {
        let config =
            KeyConfig { kid: "k".into(), alg, secret: secret.map(Into::into), public_key_pem: public.map(Into::into) };
        Key::from_config(&config).is_err()
    };
    assert!(refused(KeyAlg::HS256, Some("short"), None));
    assert!(refused(KeyAlg::HS256, None, Some("x")));
    assert!(refused(KeyAlg::RS256, Some(SECRET), None));
    assert!(refused(KeyAlg::ES256, None, Some("not a key")));
}

#[test]
fn a_minted_token_is_valid() {
    let key = secret_key("one", SECRET);
    let request = MintRequest {
        issuer: "https://issuer.test",
        audience: "billing",
        subject: "developer",
        tenancy: Tenancy::All,
        scopes: Scope::ALL,
        issued_at: Timestamp::from_micros(NOW_S * 1_000_000),
        valid_for_s: 3600,
    };
    let principal = check(&verifier(), &mint(&key, &request).unwrap()).unwrap();
    assert!(Scope::ALL.iter().all(|scope| principal.has_scope(*scope)));
}

#[tokio::test]
async fn published_keys_are_fetched_once_cached_and_bounded() {
    use wiremock::matchers::any;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let ed = Ed25519KeyPair::generate().unwrap();
    let private = EncodingKey::from_ed_pem(pem("PRIVATE KEY", ed.to_pkcs8v1().unwrap().as_ref()).as_bytes()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(ed.public_key().as_ref());
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x},
        {"kty": "oct", "kid": "shared", "k": "AAAA"},
        {"kty": "strange", "kid": "s"},
    ]});
    let endpoint = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(set)).expect(1).mount(&endpoint).await;
    let config = AuthConfig {
        issuer: "https://issuer.test".into(),
        audience: "billing".into(),
        keys: vec![],
        jwks: Some(JwksConfig { url: endpoint.uri(), refresh: std::time::Duration::from_mins(10) }),
    };
    let clock = ManualClock::at(Timestamp::from_micros(NOW_S * 1_000_000));
    let verifier = Verifier::new(&config, Arc::new(clock)).unwrap();
    let token = |kid: &str| {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims(), &private).unwrap()
    };
    assert!(matches!(verifier.check(&token("k1")), TokenCheck::UnknownKey));
    assert!(verifier.fetch_key_and_check(&token("k1")).await.is_ok());
    for kid in ["unknown", "shared", "../k1"] {
        assert_eq!(verifier.fetch_key_and_check(&token(kid)).await.unwrap_err(), TokenError::UnknownKey, "{kid}");
    }
    assert!(matches!(verifier.check(&token("k1")), TokenCheck::Valid(_)));
}

#[test]
fn keys_are_published_over_https_only() {
    for (url, is_good) in [
        ("https://issuer.test/keys", true),
        ("http://127.0.0.1:9/keys", true),
        ("http://[::1]:9/keys", true),
        ("http://issuer.test/keys", false),
        ("file:///etc/keys", false),
        ("keys", false),
    ] {
        assert_eq!(
            Jwks::new(&JwksConfig { url: url.into(), refresh: std::time::Duration::from_mins(10) }).is_ok(),
            is_good,
            "{url}"
        );
    }
}

#[test]
fn a_token_with_critical_extensions_is_refused() {
    let good = json!({"alg": "HS256", "kid": "one"});
    assert!(check(&verifier(), &with_header(&good)).is_ok());
    for crit in [json!(["exp"]), json!(["b64"]), json!([])] {
        let header = json!({"alg": "HS256", "kid": "one", "crit": crit, "b64": true});
        assert!(check(&verifier(), &with_header(&header)).is_err(), "{header}");
    }
}

#[test]
fn the_workspace_id_of_a_token_must_be_hyphenated() {
    for id in [WORKSPACE.replace('-', ""), format!("{{{WORKSPACE}}}"), format!("urn:uuid:{WORKSPACE}")] {
        assert!(check(&verifier(), &signed(&with(&json!({"workspace_id": id})))).is_err(), "{id}");
    }
}
