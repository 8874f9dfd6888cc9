//! The list of all keys with their defaults and meanings. The defaults, the check for unknown keys and
//! `docs/CONFIGURATION.md` come from it.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Such as `server.bind`; `[]` stands for any element of a list of tables, and `*` for any name of a table.
    pub name: &'static str,
    pub kind: Kind,
    /// In the form of an environment variable. None if the key may be left out.
    pub default: Option<&'static str>,
    /// One line for the documentation, with the unit and the bounds.
    pub meaning: &'static str,
}

/// How the text of an environment variable is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    One,
    /// Texts separated by commas.
    List,
}

const fn key(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind: Kind::One, default: Some(default), meaning }
}

const fn optional(name: &'static str, meaning: &'static str) -> Key {
    Key { name, kind: Kind::One, default: None, meaning }
}

const fn list(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind: Kind::List, default: Some(default), meaning }
}

const fn unset_list(name: &'static str, meaning: &'static str) -> Key {
    Key { name, kind: Kind::List, default: None, meaning }
}

/// All keys, by section.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("server.bind", "127.0.0.1:8080", "Address and port to listen on. An address that is not a loopback address needs `auth.keys` or `auth.jwks_url`."),
    optional("server.ops_bind", "Another address and port, for operators: `/livez`, `/readyz` and `/metrics` on a thread of their own, so that they answer at once however busy the server is. `/metrics` is then not served at `server.bind`. They need no token."),
    list("server.roles", "api,publish,consume,work", "What this server does. `api`: serves the API. `publish`: publishes events, if there is a `redis.url`. `consume`: makes figures, statements and notifications of the events. `work`: runs the server's own jobs, books what is due, and looks after all jobs. A server without `api` serves only probes and metrics at `server.bind`. The embedded database has one server, which needs all of them."),
    optional("server.workers", "Threads that serve requests, 1 to 512. Without it, half the number of processors; the other half decides, writes and publishes."),
    key("server.max_connections", "4096", "Open connections per worker, 1 to 100000."),
    key("server.client_request_timeout_ms", "5000", "Time for a request's head to arrive, 100 to 300000."),
    key("server.body_timeout_ms", "10000", "Time for a request's whole body to arrive, 100 to 300000."),
    key("server.keep_alive_s", "75", "Time an idle connection stays open, 1 to 3600."),
    key("server.drain_delay_ms", "1000", "Time between `/readyz` answering 503 and the server refusing new requests at shutdown, 0 to 60000, so that load balancers notice. Not used in the demo."),
    key("server.shutdown_timeout_s", "10", "Time that running requests have to finish at shutdown, 1 to 300."),
    list("server.cors_allowed_origins", "", "Origins whose pages may call the API from a browser."),

    optional("database.url", "A `postgres://` address (secret). Without it, the embedded SQLite database."),
    key("database.path", "data/visionscope.db", "File of the embedded database, relative to the working directory. Its folder also holds the development key."),
    key("database.max_connections", "8", "PostgreSQL connections per replica for commands, 1 to 1000."),
    key("database.read_connections", "8", "PostgreSQL connections per replica for reads and the publisher, 1 to 1000."),
    key("database.acquire_timeout_ms", "500", "Time to wait for a free connection before answering 503, 100 to 300000."),
    key("database.statement_timeout_ms", "2000", "Time for one statement, 100 to 4000: an operation of several statements is canceled after 5000."),
    key("database.lock_timeout_ms", "1000", "Time to wait for a lock, 100 to `database.statement_timeout_ms`."),
    key("database.readers", "4", "Connections of the embedded database that only read, 1 to 64."),

    optional("redis.url", "A `redis://` or `rediss://` address (secret); for a cluster, one or more, separated by commas. Without it, nothing is published and events are read over HTTP."),
    key("redis.cluster", "false", "Whether `redis.url` is a Redis Cluster."),
    key("redis.pool_size", "12", "Connections to Redis, in addition to the one that appends events, 1 to 256."),
    key("redis.response_timeout_ms", "1000", "Time for Redis to answer, 100 to 300000."),
    key("redis.connect_timeout_ms", "1000", "Time to connect to Redis, 100 to 300000."),

    key("stream.retain_hours", "24", "How long an event stays in its stream after it was published, 1 to 8760. The newest 1,000 events of a partition stay longer. A consumer that is further behind reads over HTTP."),
    key("stream.batch_retain_days", "7", "How long the database keeps when events were published (`stream_batches`), 1 to 3650, and at least `stream.retain_hours`."),

    key("events.source", "urn:visionscope:billing", "The `source` of every event: a URI of at most 256 characters, such as the address of this server. The first start, or `migrate` before it, stores it in the database, and a start with another one is refused. Two databases whose events meet in one consumer need different ones."),

    key("auth.issuer", "visionscope-billing", "The required `iss` of a token."),
    key("auth.audience", "visionscope-billing", "What the `aud` of a token must contain."),
    optional("auth.keys[].kid", "Id of the key, as a token's header names it."),
    optional("auth.keys[].alg", "`HS256`, `RS256`, `ES256` or `EdDSA`: the only algorithm this key is used with."),
    optional("auth.keys[].secret", "Secret of an `HS256` key, at least 32 bytes."),
    optional("auth.keys[].secret_file", "File with that secret. White space at its end is ignored."),
    optional("auth.keys[].public_key_pem", "Public key of the other algorithms, PEM."),
    optional("auth.keys[].public_key_file", "File with that public key."),
    optional("auth.jwks_url", "`https://` address of a JSON Web Key Set."),
    key("auth.jwks_refresh_s", "300", "Time after which the key set is fetched again, 30 to 86400."),

    optional("engine.lanes", "Lanes that form batches, 1 to 16. Without it 1 on SQLite, and on PostgreSQL half the number of processors, 1 to 8."),
    key("engine.queue_capacity", "2048", "Commands that may wait in one lane before the server answers 503, 1 to 1000000. One workspace may have as many of them as places are free, so at most half; beyond that it gets 429."),
    key("engine.max_batch", "256", "Commands in one transaction, 1 to 10000. At most 16 of one workspace while others send commands too."),
    key("engine.memory_mb", "64", "Approximate size of the cached states of workspaces in megabytes, 1 to 65535. The state of a workspace with five features and one grant takes about one kilobyte. A state that is not cached is read first."),

    key("publisher.lease_ttl_ms", "10000", "Time until another publisher takes over the partitions of one that died, 1000 to 300000."),
    optional("publisher.poll_ms", "Time between two polls for events that another process committed, 10 to a third of `publisher.lease_ttl_ms`. Without it, 20 on PostgreSQL and 1000 on the embedded database. Events of this process's own commits need no poll."),

    optional("queues.*.weight", "Here and below, `*` is the name of a queue. The configuration creates the queues that the database does not have; an operator changes those that it has. What is left out is as in the built-in queue of that name (`billing`, `default`, `notifications`, `video_processing`), or else as in `default`. The weight: whoever takes jobs of several queues takes them in this proportion, 1 to 100."),
    optional("queues.*.max_running", "Jobs of the queue that may run at once, 1 to 100000. Without it there is no cap."),
    optional("queues.*.max_running_per_workspace", "Jobs of one workspace that may run at once, 1 to 100000. Without it there is no cap."),
    optional("queues.*.lease_s", "Time without a heartbeat after which a job is taken from its worker, 15 to 3600."),
    optional("queues.*.timeout_s", "Time that one attempt may take, 1 to 86400."),
    optional("queues.*.max_attempts", "Attempts after which a job fails, 1 to 100."),
    unset_list("queues.*.retry_delays_s", "Delays after the first, the second and each later attempt, up to 32 of 0 to 86400 seconds. The last one repeats. The real delay is between half of it and all of it."),
    optional("queues.*.keep_done_h", "Hours that a job is kept after its end, 1 to 8760. Failed jobs are kept for 30 days."),

    optional("routes[].pattern", "A pattern of kinds of jobs, in which `*` stands for any text and `?` for one character. The most specific one wins. Built in are `billing.*`, `notifications.*` and `video_processing.*` for the queues of those names, and `*` for `default`; a configured route with the same pattern replaces one of them."),
    optional("routes[].queue", "The queue that they go to."),

    key("limits.workspace_in_flight", "1024", "Commands of one workspace at once, per replica, 1 to 100000."),
    key("limits.workspace_reads", "32", "Reads of one workspace at once, per replica, 1 to 100000. An [export](EXPORTS.md) counts until its last byte. Tokens for all workspaces count together when they read events."),
    key("limits.workspace_rate_per_s", "50000", "Requests of one workspace in a second, per replica, 1 to 10000000."),

    key("telemetry.log_format", "text", "`text` or `json`."),
    // The dispatcher logs every malformed request as an error, and anybody can send those.
    key(
        "telemetry.log_filter",
        "info,sqlx=warn,actix_server=warn,actix_http::h1::dispatcher=off",
        "Which messages are logged, in the syntax of `RUST_LOG`.",
    ),
    optional("telemetry.otlp_endpoint", "Base address of an OTLP/HTTP receiver, such as `http://127.0.0.1:4318`. Without it, no traces are sent."),
    optional("telemetry.service_instance", "Name of this replica in traces."),

    optional("plans.file", "File with the plans. Without it, `plans.toml` in the configuration folder, or the built-in plans."),
];

/// The names of the sections, each once.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(move |key| {
        let section = key.name.split(['.', '[']).next()?;
        let is_new = section != last;
        last = section;
        is_new.then_some(section)
    })
}

/// The parts of a name, without the numbers of elements: `auth.keys[3].kid` → `auth`, `keys[]`, `kid`.
fn parts(name: &str) -> impl Iterator<Item = String> {
    name.split('.').map(|part| match part.split_once('[') {
        Some((list, _)) => format!("{list}[]"),
        None => part.to_owned(),
    })
}

/// Whether the known name begins with the parts of this one.
fn begins_with(known: &str, name: &str) -> bool {
    let mut known = known.split('.');
    let is_same = |known: &str, part: &str| known == "*" || known == part || known.strip_suffix("[]") == Some(part);
    parts(name).all(|part| known.next().is_some_and(|known| is_same(known, &part)))
}

/// The key of that name.
#[must_use]
pub fn find(key: &str) -> Option<&'static Key> {
    let count = key.split('.').count();
    KEYS.iter().find(|known| known.name.split('.').count() == count && begins_with(known.name, key))
}

/// Whether the name is a key, or a section or list that contains keys.
pub(super) fn is_known(key: &str) -> bool {
    KEYS.iter().any(|known| begins_with(known.name, key))
}

/// Whether the value of this key may be a secret, or contain one.
pub(super) fn is_secret(key: &str) -> bool {
    let is_plain = |field: &str| key.starts_with("auth.keys[") && key.ends_with(field);
    key == "auth"
        || (key.starts_with("auth.keys") && ![".kid", ".alg"].into_iter().any(is_plain))
        || ["database", "redis", "database.url", "redis.url"].contains(&key)
}

/// The table of `docs/CONFIGURATION.md`.
#[must_use]
pub fn to_markdown() -> String {
    let rows = KEYS.iter().map(|Key { name, default, meaning, .. }| {
        let default =
            default.filter(|text| !text.is_empty()).map_or_else(|| "–".to_owned(), |text| format!("`{text}`"));
        format!("| `{name}` | {default} | {meaning} |\n")
    });
    std::iter::once("| key | default | meaning |\n|---|---|---|\n".to_owned()).chain(rows).collect()
}
