//! The bounds of every value, and the rules between values.
//!
//! A bound is there to catch mistakes (a wrong unit, a zero that should mean "never") and not to tune: the upper
//! bounds lie far above sensible values.

use std::ops::RangeInclusive;

use reqwest::Url;
use secrecy::ExposeSecret;
use tracing_subscriber::EnvFilter;

use super::sections::{Algorithm, AuthKey, Config, Role};
use crate::domain::ids::PARTITIONS;

/// With less than a tenth of a second, requests fail on a busy machine. No caller waits for more than five minutes.
const TIMEOUT_MS: RangeInclusive<u64> = 100..=300_000;
/// The timeout of one PostgreSQL statement. `store::postgres` explains the upper bound.
const STATEMENT_TIMEOUT_MS: RangeInclusive<u64> = 100..=4_000;
/// A lease must be renewed at least three times before it expires, so that one slow answer does not lose it.
const POLLS_PER_LEASE: u64 = 3;

/// Workers are served queue by queue.
const MAX_QUEUES: usize = 100;

/// Collects the problems by key.
struct Check(Vec<(String, String)>);

impl Check {
    fn refuse(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.0.push((key.into(), problem.into()));
    }

    fn range(&mut self, key: &str, value: impl TryInto<u64>, range: RangeInclusive<u64>) {
        if !value.try_into().is_ok_and(|value| range.contains(&value)) {
            self.refuse(key, format!("must be {} to {}", range.start(), range.end()));
        }
    }

    fn text(&mut self, key: &str, value: &str, max: usize) {
        if value.trim().is_empty() || value.len() > max {
            self.refuse(key, format!("must have 1 to {max} bytes"));
        }
    }
}

/// Returns every value that is out of its bounds, with its key.
pub(super) fn check(config: &Config) -> Vec<(String, String)> {
    let mut check = Check(Vec::new());
    server(&mut check, config);
    database_and_redis(&mut check, config);
    stream(&mut check, config);
    auth(&mut check, config);
    work(&mut check, config);
    jobs(&mut check, config);
    telemetry(&mut check, config);
    check.0
}

fn server(check: &mut Check, Config { server, database, limits, .. }: &Config) {
    if server.ops_bind == Some(server.bind) && server.bind.port() != 0 {
        check.refuse("server.ops_bind", "must differ from server.bind");
    }
    if server.roles.is_empty() {
        check.refuse("server.roles", "must name at least one role");
    }
    let all = [Role::Api, Role::Publish, Role::Consume, Role::Work];
    if database.url.is_none() && !all.iter().all(|role| server.has_role(*role)) {
        check.refuse("server.roles", "must be all roles, because the embedded database has one server only");
    }
    if let Some(workers) = server.workers {
        check.range("server.workers", workers, 1..=512);
    }
    check.range("server.max_connections", server.max_connections, 1..=100_000);
    check.range("server.client_request_timeout_ms", server.client_request_timeout_ms, TIMEOUT_MS);
    check.range("server.body_timeout_ms", server.body_timeout_ms, TIMEOUT_MS);
    check.range("server.keep_alive_s", server.keep_alive_s, 1..=3_600);
    check.range("server.drain_delay_ms", server.drain_delay_ms, 0..=60_000);
    check.range("server.shutdown_timeout_s", server.shutdown_timeout_s, 1..=300);
    for (n, origin) in server.cors_allowed_origins.iter().enumerate() {
        let same = |url: Url| url.origin().ascii_serialization() == *origin;
        if !Url::parse(origin).is_ok_and(same) {
            let problem = "must be an origin without a path, such as https://console.example.com";
            check.refuse(format!("server.cors_allowed_origins[{n}]"), problem);
        }
    }
    check.range("limits.workspace_in_flight", limits.workspace_in_flight, 1..=100_000);
    check.range("limits.workspace_reads", limits.workspace_reads, 1..=100_000);
    check.range("limits.workspace_rate_per_s", limits.workspace_rate_per_s, 1..=10_000_000);
}

fn database_and_redis(check: &mut Check, Config { database, redis, .. }: &Config) {
    if let Some(url) = &database.url
        && !has_scheme(url.expose_secret(), &["postgres", "postgresql"])
    {
        let problem = "must be a postgres:// address; leave it out to use the embedded database";
        check.refuse("database.url", problem);
    }
    if database.path.as_os_str().is_empty() {
        check.refuse("database.path", "must name a file");
    }
    check.range("database.max_connections", database.max_connections, 1..=1_000);
    check.range("database.read_connections", database.read_connections, 1..=1_000);
    check.range("database.acquire_timeout_ms", database.acquire_timeout_ms, TIMEOUT_MS);
    check.range("database.statement_timeout_ms", database.statement_timeout_ms, STATEMENT_TIMEOUT_MS);
    check.range("database.lock_timeout_ms", database.lock_timeout_ms, STATEMENT_TIMEOUT_MS);
    if database.lock_timeout_ms > database.statement_timeout_ms {
        check.refuse("database.lock_timeout_ms", "must not be more than database.statement_timeout_ms");
    }
    check.range("database.readers", database.readers, 1..=64);

    let urls = redis.urls();
    if redis.url.is_some() && !urls.iter().all(|url| has_scheme(url.expose_secret(), &["redis", "rediss"])) {
        check.refuse("redis.url", "must be a redis:// or rediss:// address");
    }
    if !redis.cluster && urls.len() > 1 {
        check.refuse("redis.url", "must be one address unless redis.cluster is true");
    }
    if redis.cluster && urls.is_empty() {
        check.refuse("redis.cluster", "needs redis.url");
    }
    check.range("redis.pool_size", redis.pool_size, 1..=256);
    check.range("redis.response_timeout_ms", redis.response_timeout_ms, TIMEOUT_MS);
    check.range("redis.connect_timeout_ms", redis.connect_timeout_ms, TIMEOUT_MS);
}

fn stream(check: &mut Check, Config { stream, .. }: &Config) {
    check.range("stream.retain_hours", stream.retain_hours, 1..=8_760);
    check.range("stream.batch_retain_days", stream.batch_retain_days, 1..=3_650);
    // The floor of a stream is found by when its events were published.
    if stream.batch_retain_days.saturating_mul(24) < stream.retain_hours {
        check.refuse("stream.batch_retain_days", "must not be shorter than stream.retain_hours");
    }
}

fn auth(check: &mut Check, Config { auth, .. }: &Config) {
    check.text("auth.issuer", &auth.issuer, 512);
    check.text("auth.audience", &auth.audience, 512);
    check.range("auth.jwks_refresh_s", auth.jwks_refresh_s, 30..=86_400);
    if auth.jwks_url.as_deref().is_some_and(|url| !is_safe_for_keys(url)) {
        check.refuse("auth.jwks_url", "must be an https:// address (http:// only on a loopback address)");
    }
    for (n, key) in auth.keys.iter().enumerate() {
        check.text(&format!("auth.keys[{n}].kid"), &key.kid, 128);
        if auth.keys[..n].iter().any(|other| other.kid == key.kid) {
            check.refuse(format!("auth.keys[{n}].kid"), format!("{} is already the id of another key", key.kid));
        }
        if let Some(problem) = wrong_fields(key) {
            check.refuse(format!("auth.keys[{n}]"), problem);
        }
    }
}

/// Checks that the key has exactly one source of the kind that its algorithm needs.
fn wrong_fields(key: &AuthKey) -> Option<&'static str> {
    let secrets = usize::from(key.secret.is_some()) + usize::from(key.secret_file.is_some());
    let publics = usize::from(key.public_key_pem.is_some()) + usize::from(key.public_key_file.is_some());
    match (key.alg, secrets, publics) {
        (Algorithm::Hs256, 1, 0) | (Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa, 0, 1) => None,
        (Algorithm::Hs256, _, _) => Some("HS256 needs exactly one of secret and secret_file, and no public key"),
        (Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa, _, _) => {
            Some("this algorithm needs exactly one of public_key_pem and public_key_file, and no secret")
        }
    }
}

fn work(check: &mut Check, Config { engine, publisher, .. }: &Config) {
    if let Some(lanes) = engine.lanes {
        check.range("engine.lanes", lanes, 1..=u64::from(PARTITIONS));
    }
    check.range("engine.queue_capacity", engine.queue_capacity, 1..=1_000_000);
    check.range("engine.max_batch", engine.max_batch, 1..=10_000);
    check.range("engine.memory_mb", engine.memory_mb, 1..=u64::from(u16::MAX));
    check.range("publisher.lease_ttl_ms", publisher.lease_ttl_ms, 1_000..=300_000);
    if let Some(poll_ms) = publisher.poll_ms {
        check.range("publisher.poll_ms", poll_ms, 10..=60_000);
        if poll_ms.saturating_mul(POLLS_PER_LEASE) > publisher.lease_ttl_ms {
            check.refuse("publisher.poll_ms", "must be at most a third of publisher.lease_ttl_ms");
        }
    }
}

fn jobs(check: &mut Check, config: &Config) {
    let queues = config.job_queues();
    if queues.len() > MAX_QUEUES {
        check.refuse("queues", format!("must be at most {MAX_QUEUES}"));
    }
    for (name, (field, problem)) in queues.iter().filter_map(|(name, settings)| Some((name, settings.problem()?))) {
        check.refuse(format!("queues.{name}.{field}"), problem);
    }
    for (n, route) in config.routes.iter().enumerate().filter(|(_, route)| !queues.contains_key(&route.queue)) {
        check.refuse(format!("routes[{n}].queue"), format!("there is no queue {}", route.queue));
    }
    if let Err(error) = config.job_routes() {
        check.refuse("routes", error.to_string());
    }
}

fn telemetry(check: &mut Check, Config { telemetry, .. }: &Config) {
    if let Err(error) = EnvFilter::try_new(&telemetry.log_filter) {
        check.refuse("telemetry.log_filter", format!("is not a valid filter: {error}"));
    }
    if let Some(endpoint) = &telemetry.otlp_endpoint
        && !has_scheme(endpoint, &["http", "https"])
    {
        check.refuse("telemetry.otlp_endpoint", "must be an http:// or https:// address");
    }
    if let Some(instance) = &telemetry.service_instance {
        check.text("telemetry.service_instance", instance, 128);
    }
}

fn has_scheme(url: &str, schemes: &[&str]) -> bool {
    Url::parse(url).is_ok_and(|url| schemes.contains(&url.scheme()) && url.host().is_some())
}

/// Whether the answers of this address cannot be changed on the way. Whoever can change them can sign tokens.
fn is_safe_for_keys(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback)
}
