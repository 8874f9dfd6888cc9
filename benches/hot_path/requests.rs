//! What a request costs before its command is queued.

use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::http::auth::keys::{KeyAlg, KeyConfig};
use visionscope_billing::http::auth::{AuthConfig, MintRequest, Scope, Tenancy, TokenCheck, Verifier, mint};
use visionscope_billing::http::body;
use visionscope_billing::http::routes::credits::DeductCreditsRequest;

const BODY: &[u8] = br#"{"feature_code":"text.generate","credits":"0.25","user_id":"user-42","metadata":{"job":"7"}}"#;

/// Any name and secret will do: both ends are here.
const NAME: &str = "bench";
const SECRET: &str = "a secret that is only used by this benchmark";

pub fn body(c: &mut Criterion) {
    c.bench_function("request/body_and_fingerprint", |b| {
        b.iter(|| body::parse::<DeductCreditsRequest>(black_box(BODY), "DeductCredits").unwrap());
    });
}

pub fn token(c: &mut Criterion) {
    let key = KeyConfig { kid: NAME.into(), alg: KeyAlg::HS256, secret: Some(SECRET.into()), public_key_pem: None };
    let config = AuthConfig { issuer: NAME.into(), audience: NAME.into(), keys: vec![key.clone()], jwks: None };
    let request = MintRequest {
        issuer: NAME,
        audience: NAME,
        subject: NAME,
        tenancy: Tenancy::All,
        scopes: Scope::ALL,
        issued_at: SystemClock.now(),
        valid_for_s: 86_400,
    };
    let token = mint(&key, &request).unwrap();
    let verifier = || Verifier::new(&config, Arc::new(SystemClock)).unwrap();
    c.bench_function("request/token_verified", |b| {
        b.iter_batched(
            verifier,
            |verifier| assert!(matches!(verifier.check(black_box(&token)), TokenCheck::Valid(_))),
            criterion::BatchSize::SmallInput,
        );
    });
    let verifier = verifier();
    c.bench_function("request/token_cached", |b| {
        b.iter(|| assert!(matches!(verifier.check(black_box(&token)), TokenCheck::Valid(_))));
    });
}
