//! Tests of precedence, of every kind of error, and that no secret is shown.

use std::fmt::Write as _;
use std::fs;

use tempfile::TempDir;

use super::*;
use crate::domain::jobs::RetryDelays;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::read(owned(vars), None)
}

fn owned(vars: &[(&str, &str)]) -> Vec<(String, String)> {
    vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A folder with one file of configuration.
fn folder(name: &str, toml: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), toml).unwrap();
    dir
}

fn hs256(secret: &str) -> [(&'static str, String); 3] {
    [
        ("VISIONSCOPE__AUTH__KEYS__0__KID", "k1".to_owned()),
        ("VISIONSCOPE__AUTH__KEYS__0__ALG", "HS256".to_owned()),
        ("VISIONSCOPE__AUTH__KEYS__0__SECRET", secret.to_owned()),
    ]
}

#[test]
fn the_defaults_are_valid_and_start_the_demo_on_loopback() {
    let config = read(&[]).unwrap();
    assert_eq!(config.server.bind.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database.path, Path::new("data/visionscope.db"));
    assert_eq!(config.data_dir(), Path::new("data"));
    assert!(config.database.url.is_none() && config.redis.urls().is_empty() && config.auth.keys.is_empty());
    assert_eq!(config.mode(), Ok(Mode::Demo));
    assert_eq!(config.read_plans().unwrap().len(), 3);
}

#[test]
fn files_override_defaults_and_the_environment_overrides_files() {
    let dir = folder("10-first.toml", "[server]\nworkers = 2\nkeep_alive_s = 9\n[engine]\nmax_batch = 7");
    fs::write(
        dir.path().join("20-second.toml"),
        "[server]\nworkers = 3\ncors_allowed_origins = [\"https://a.example\"]",
    )
    .unwrap();
    fs::write(dir.path().join("ignored.txt"), "[server]\nworkers = 99").unwrap();
    let config = Config::read(owned(&[("VISIONSCOPE__ENGINE__MAX_BATCH", "8")]), Some(dir.path())).unwrap();
    assert_eq!(config.server.workers, Some(3));
    assert_eq!(config.server.keep_alive_s, 9);
    assert_eq!(config.server.shutdown_timeout_s, 10);
    assert_eq!(config.engine.max_batch, 8);
    assert_eq!(config.server.cors_allowed_origins, ["https://a.example"]);
}

#[test]
fn aliases_are_read_and_the_full_name_takes_precedence() {
    let config = read(&[
        ("DATABASE_URL", "postgres://localhost/one"),
        ("REDIS_URL", "redis://localhost:1/"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
        ("RUST_LOG", "debug"),
        ("VISIONSCOPE__TELEMETRY__LOG_FILTER", "warn"),
        ("PORT", "9"),
        ("UNRELATED", "x"),
    ])
    .unwrap();
    assert!(config.database.url.is_some());
    assert_eq!(config.redis.urls().len(), 1);
    assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some("http://localhost:4318"));
    assert_eq!(config.telemetry.log_filter, "warn");
    assert_eq!(config.server.bind.port(), 8080);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = read(&[("DATABASE_URL", ""), ("VISIONSCOPE__SERVER__BIND", "")]).unwrap();
    assert!(config.database.url.is_none());
    assert_eq!(config.server.bind.port(), 8080);
}

#[test]
fn lists_in_the_environment_are_separated_by_commas() {
    let origins = "https://a.example, http://localhost:3000";
    let config = read(&[("VISIONSCOPE__SERVER__CORS_ALLOWED_ORIGINS", origins)]).unwrap();
    assert_eq!(config.server.cors_allowed_origins, ["https://a.example", "http://localhost:3000"]);
}

#[test]
fn every_wrong_value_is_refused_with_its_key_and_origin() {
    let cases = [
        ("server.bind", "localhost"),
        ("server.workers", "0"),
        ("server.workers", "many"),
        ("server.max_connections", "0"),
        ("server.max_connections", "-1"),
        ("server.client_request_timeout_ms", "99"),
        ("server.body_timeout_ms", "300001"),
        ("server.keep_alive_s", "0"),
        ("server.drain_delay_ms", "60001"),
        ("server.shutdown_timeout_s", "301"),
        ("database.url", "mysql://localhost/x"),
        ("database.url", "sqlite://x.db"),
        ("database.max_connections", "0"),
        ("database.acquire_timeout_ms", "1.5"),
        ("database.read_connections", "1001"),
        ("database.statement_timeout_ms", "0"),
        ("database.statement_timeout_ms", "4001"),
        ("database.lock_timeout_ms", "2001"),
        ("database.readers", "65"),
        ("redis.url", "http://localhost"),
        ("redis.url", "redis://a,redis://b"),
        ("redis.cluster", "true"),
        ("redis.cluster", "maybe"),
        ("redis.pool_size", "257"),
        ("redis.response_timeout_ms", "0"),
        ("redis.connect_timeout_ms", "0"),
        ("stream.retain_hours", "0"),
        ("stream.retain_hours", "8761"),
        ("stream.batch_retain_days", "0"),
        ("auth.issuer", " "),
        ("auth.audience", " "),
        ("auth.jwks_url", "http://keys.example/jwks.json"),
        ("auth.jwks_url", "keys"),
        ("auth.jwks_refresh_s", "29"),
        ("engine.lanes", "17"),
        ("engine.queue_capacity", "0"),
        ("engine.max_batch", "0"),
        ("engine.memory_mb", "0"),
        ("publisher.lease_ttl_ms", "999"),
        ("publisher.poll_ms", "3334"),
        ("queues.default.weight", "0"),
        ("queues.thumbnails.lease_s", "14"),
        ("queues.thumbnails.retry_delays_s", "5,100000"),
        ("limits.workspace_in_flight", "0"),
        ("limits.workspace_rate_per_s", "0"),
        ("telemetry.log_format", "xml"),
        ("telemetry.log_filter", "a=b=c"),
        ("telemetry.otlp_endpoint", "localhost:4317"),
        ("telemetry.service_instance", " "),
    ];
    for (key, value) in cases {
        let name = format!("VISIONSCOPE__{}", key.replace('.', "__").to_uppercase());
        let error = read(&[(&name, value)]).unwrap_err();
        let found = error.problems.iter().any(|problem| {
            problem.key == key
                && problem.origin == format!("environment variable {name}")
                && !problem.problem.is_empty()
        });
        assert!(found, "{key} = {value}: {error}");
    }
}

#[test]
fn the_records_of_batches_are_kept_as_long_as_their_events() {
    let hours = |hours| read(&[("VISIONSCOPE__STREAM__RETAIN_HOURS", hours)]);
    assert!(hours("168").is_ok());
    let error = hours("169").unwrap_err();
    assert_eq!(error.problems[0].key, "stream.batch_retain_days");
    assert!(error.to_string().contains("stream.retain_hours"), "{error}");
}

#[test]
fn an_error_in_a_file_names_the_file() {
    for (toml, key) in [
        ("[server]\nworkers = 0", "server.workers"),
        ("[server]\nworkers = \"x\"", "server.workers"),
        ("[server]\nworker = 1", "server.worker"),
        ("[servers]\nworkers = 1", "servers"),
        ("[server\n", "(file)"),
        ("server = 3", "server"),
        ("[server]\nbind = [1]", "server.bind"),
        ("[server]\ncors_allowed_origins = [\"https://a.example/path\"]", "server.cors_allowed_origins[0]"),
        ("[[auth.keys]]\nkid = \"a\"\nalg = \"none\"", "auth.keys[0].alg"),
        ("[[auth.keys]]\nkid = \"a\"\nalg = \"HS256\"\nkey = \"x\"", "auth.keys[0].key"),
    ] {
        let dir = folder("mine.toml", toml);
        let error = Config::read([], Some(dir.path())).unwrap_err();
        let [problem] = error.problems.as_slice() else { panic!("{toml}: {error}") };
        assert!(problem.key == key && problem.origin.ends_with("mine.toml"), "{toml}: {error}");
    }
}

#[test]
fn queues_and_routes_are_added_to_those_that_every_server_has() {
    let toml = "[queues.thumbnails]\nmax_running = 7\nretry_delays_s = [1, 2]\n[queues.billing]\nweight = 9\n\
                [[routes]]\npattern = \"thumbnails.*\"\nqueue = \"thumbnails\"\n\
                [[routes]]\npattern = \"*\"\nqueue = \"notifications\"";
    let config = Config::read([], Some(folder("mine.toml", toml).path())).unwrap();
    let queues = config.job_queues();
    let names: Vec<_> = queues.keys().map(QueueName::as_str).collect();
    assert_eq!(names, ["billing", "default", "notifications", "thumbnails", "video_processing"]);
    let (thumbnails, default) = (&queues["thumbnails"], &queues["default"]);
    assert_eq!((thumbnails.max_running, thumbnails.weight), (Some(7), default.weight));
    assert_eq!(thumbnails.retry_delays_s, RetryDelays::new(vec![1, 2]).unwrap());
    assert_eq!((queues["billing"].weight, queues["billing"].max_attempts), (9, 20));
    let routes = config.job_routes().unwrap();
    for (kind, queue) in
        [("thumbnails.small", "thumbnails"), ("billing.deduct_credits", "billing"), ("anything", "notifications")]
    {
        assert_eq!(routes.of(kind).queue.as_str(), queue, "{kind}");
    }
}

#[test]
fn queues_and_routes_that_cannot_be_used_are_named() {
    let route = |pattern: &str, queue: &str| format!("[[routes]]\npattern = \"{pattern}\"\nqueue = \"{queue}\"\n");
    for (toml, key, words) in [
        (route("a.*", "nowhere"), "routes[0].queue", "there is no queue nowhere"),
        (route("a.*b", "default") + &route("a.?b", "default"), "routes", "equally specific"),
        (route("A", "default"), "routes", "not valid"),
        (route("a", "No Name"), "routes[0].queue", "lower-case"),
        ("[queues.x]\nwieght = 1".to_owned(), "queues.x.wieght", "is not a key"),
        ("[queues.x]\nmax_attempts = 101".to_owned(), "queues.x.max_attempts", "from 1 to 100"),
    ] {
        let error = Config::read([], Some(folder("mine.toml", &toml).path())).unwrap_err();
        let [problem] = error.problems.as_slice() else { panic!("{toml}: {error}") };
        assert!(problem.key == key && problem.problem.contains(words), "{toml}: {error}");
    }
}

#[test]
fn a_server_has_all_roles_unless_it_is_told() {
    let roles = |vars: &[(&str, &str)]| read(vars).unwrap().server.roles;
    assert_eq!(roles(&[]), [Role::Api, Role::Publish, Role::Consume, Role::Work]);
    let shared = ("DATABASE_URL", "postgres://localhost/billing");
    assert_eq!(roles(&[("VISIONSCOPE__SERVER__ROLES", "work, api"), shared]), [Role::Work, Role::Api]);
    // The embedded database has no other server.
    for wrong in ["api,sleep", ",", "api,publish,consume"] {
        let error = read(&[("VISIONSCOPE__SERVER__ROLES", wrong)]).unwrap_err();
        assert!(error.problems[0].key.starts_with("server.roles"), "{error}");
    }
}

#[test]
fn unknown_keys_are_errors_in_every_source() {
    let error = read(&[("VISIONSCOPE__SERVER__BNID", "x"), ("VISIONSCOPE__TYPO", "y")]).unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["server.bnid", "typo"]);
    assert!(error.to_string().contains("environment variable VISIONSCOPE__SERVER__BNID"));
}

#[test]
fn a_word_that_is_none_of_several_is_refused_with_all_of_them() {
    let words = |toml: &str| Config::read([], Some(folder("mine.toml", toml).path())).unwrap_err().to_string();
    let algorithms = "must be one of HS256, RS256, ES256, EdDSA";
    assert!(words("[[auth.keys]]\nkid = \"a\"\nalg = \"none\"").contains(algorithms));
    assert!(words("[telemetry]\nlog_format = \"xml\"").contains("must be one of text, json"));
}

#[test]
fn a_key_has_exactly_the_material_that_its_algorithm_needs() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let good_secret = file("secret", &format!("{SECRET}\n"));
    let short_secret = file("short", "short\n");
    let public = file("public.pem", "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n");
    let private = file("private.pem", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n");
    let result = |alg: &str, fields: &[(&str, &str)]| {
        let mut toml = format!("[[auth.keys]]\nkid = \"k\"\nalg = \"{alg}\"\n");
        for (field, value) in fields {
            writeln!(toml, "{field} = \"{value}\"").unwrap();
        }
        let dir = folder("keys.toml", &toml);
        Config::read([], Some(dir.path())).map_err(|error| error.problems[0].key.clone())
    };
    for (alg, fields) in [
        ("HS256", ("secret", SECRET)),
        ("HS256", ("secret_file", good_secret.as_str())),
        ("EdDSA", ("public_key_file", public.as_str())),
        ("ES256", ("public_key_file", public.as_str())),
        ("RS256", ("public_key_file", public.as_str())),
    ] {
        let config = result(alg, &[fields]).unwrap();
        assert!(config.auth.keys[0].material().is_some());
        assert_eq!(config.mode(), Ok(Mode::Configured));
    }
    for (alg, fields, key) in [
        ("HS256", vec![], "auth.keys[0]"),
        ("HS256", vec![("secret", SECRET), ("secret_file", &good_secret)], "auth.keys[0]"),
        ("HS256", vec![("public_key_file", public.as_str())], "auth.keys[0]"),
        ("RS256", vec![("secret", SECRET)], "auth.keys[0]"),
        ("RS256", vec![], "auth.keys[0]"),
        ("HS256", vec![("secret", "short")], "auth.keys[0].secret"),
        ("HS256", vec![("secret_file", short_secret.as_str())], "auth.keys[0].secret_file"),
        ("HS256", vec![("secret_file", "/nowhere/at/all")], "auth.keys[0].secret_file"),
        ("EdDSA", vec![("public_key_file", private.as_str())], "auth.keys[0].public_key_file"),
        ("EdDSA", vec![("public_key_pem", "no pem")], "auth.keys[0].public_key_pem"),
    ] {
        assert_eq!(result(alg, &fields).unwrap_err(), key, "{alg} {fields:?}");
    }
}

#[test]
fn two_keys_cannot_have_one_id() {
    let key = format!("[[auth.keys]]\nkid = \"k\"\nalg = \"HS256\"\nsecret = \"{SECRET}\"\n");
    let dir = folder("keys.toml", &format!("{key}{key}"));
    let error = Config::read([], Some(dir.path())).unwrap_err();
    assert_eq!(error.problems[0].key, "auth.keys[1].kid");
}

#[test]
fn a_server_that_others_can_reach_needs_keys() {
    let open = [("VISIONSCOPE__SERVER__BIND", "0.0.0.0:8080")];
    let error = read(&open).unwrap().mode().unwrap_err();
    assert_eq!(error.problems[0].key, "auth.keys");
    let also = ("VISIONSCOPE__AUTH__JWKS_URL", "https://keys.example/jwks.json");
    assert_eq!(read(&[open[0], also]).unwrap().mode(), Ok(Mode::Configured));
    assert_eq!(read(&[("VISIONSCOPE__SERVER__BIND", "[::1]:8080")]).unwrap().mode(), Ok(Mode::Demo));
    assert!(read(&[("VISIONSCOPE__AUTH__JWKS_URL", "http://127.0.0.1:9/jwks.json")]).is_ok());
    assert!(read(&[("VISIONSCOPE__AUTH__JWKS_URL", "http://[::1]:9/jwks.json")]).is_ok());
}

#[test]
fn no_secret_is_shown_by_debug_or_by_an_error() {
    let mut vars = hs256(SECRET).to_vec();
    vars.push(("DATABASE_URL", "postgres://u:hunter2@localhost/x".to_owned()));
    vars.push(("REDIS_URL", "redis://:hunter2@localhost/".to_owned()));
    let config = Config::read(vars.into_iter().map(|(name, value)| (name.to_owned(), value)), None).unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains(SECRET), "{shown}");

    for (name, value) in [
        ("DATABASE_URL", "mysql://u:hunter2@localhost"),
        ("DATABASE_URL", "hunter2"),
        ("REDIS_URL", "hunter2"),
        ("VISIONSCOPE__AUTH__KEYS", "hunter2"),
        ("VISIONSCOPE__AUTH__KEYS__0", "hunter2"),
        ("VISIONSCOPE__AUTH", "hunter2"),
        ("VISIONSCOPE__DATABASE", "hunter2"),
        ("VISIONSCOPE__REDIS", "hunter2"),
        ("VISIONSCOPE__AUTH__KEYS__0__SECRET", "hunter2"),
        ("VISIONSCOPE__DATABASE__URL__X", "hunter2"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{name}: {error}");
    }
}

#[test]
fn the_plans_come_from_the_named_file_then_the_folder_then_the_built_in_ones() {
    let plan = |code: &str| {
        format!("[[plan]]\ncode = \"{code}\"\nversion = 1\nname = \"P\"\nallowance = 1\npurchased_on_cancel = \"keep\"")
    };
    let dir = folder("plans.toml", &plan("beside"));
    let codes = |config: Config| config.read_plans().unwrap()[0].plan_code.to_string();
    assert_eq!(codes(Config::read([], Some(dir.path())).unwrap()), "beside");
    let named = dir.path().join("other-plans");
    fs::write(&named, plan("named")).unwrap();
    let vars = owned(&[("VISIONSCOPE__PLANS__FILE", &named.display().to_string())]);
    assert_eq!(codes(Config::read(vars, Some(dir.path())).unwrap()), "named");
    let missing = read(&[("VISIONSCOPE__PLANS__FILE", "/nowhere/plans.toml")]).unwrap();
    assert!(missing.read_plans().unwrap_err().to_string().contains("/nowhere/plans.toml"));
}

#[test]
fn a_named_folder_must_exist() {
    let error = sources::config_dir(&owned(&[("VISIONSCOPE_CONFIG_DIR", "/nowhere/at/all")])).unwrap_err();
    assert_eq!(error.problems[0].key, "VISIONSCOPE_CONFIG_DIR");
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().display().to_string();
    assert_eq!(sources::config_dir(&owned(&[("VISIONSCOPE_CONFIG_DIR", &named)])).unwrap(), Some(dir.path().into()));
}
