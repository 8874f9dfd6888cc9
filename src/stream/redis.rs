//! The event stream on Redis 6.2 or later: one node or a cluster.
//!
//! All appends share one multiplexed connection: those of many partitions go out in one write, and Redis executes
//! them one after the other anyway. All other commands use a pool, which checks each connection before use.
//!
//! Every wait has a timeout: for a pooled connection, for opening and checking one, and for each answer.
//! Connecting is lazy, so a server starts while Redis is down. An address may contain a password, so it is kept as
//! a secret and appears in no error or log.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::aio::{ConnectionLike, MultiplexedConnection};
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, Value, cmd,
};
use deadpool_redis::{Pool, PoolConfig, PoolError, Runtime, Timeouts, cluster};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use self::answers::{RawEntry, entry, group_position};
use self::shared_connection::SharedConnection;
use super::{
    Appended, EntryId, EventStream, GroupPosition, MAX_APPEND_EVENTS, MAX_GROUPS, Previous, StreamEntry, StreamError,
    cloud_event_json, generation_key, stream_key,
};
use crate::domain::cloud_event::{EventRecord, EventSource};
use crate::domain::ids::Partition;

mod answers;
mod shared_connection;

/// How long to wait for one answer. A healthy Redis answers an append within 10 ms. One that takes a second counts
/// as down, and the append is repeated later.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long opening a connection may take: DNS, TCP, TLS and a login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for a pooled connection: longer than one answer may take.
const WAIT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pooled connections per process, beside the one for appends.
const MAX_CONNECTIONS: usize = 12;
/// The most entries that one command removes. It blocks its Redis node for about 3 ms, as the largest append does.
const MAX_TRIM_ENTRIES: u32 = 5_000;
const APPEND: &str = include_str!("append.lua");

/// Where Redis is.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// `redis://` or `rediss://` (TLS). For a cluster, any of its nodes.
    pub urls: Vec<SecretString>,
    /// Whether it is a cluster. Several addresses always are.
    pub is_cluster: bool,
    /// Pooled connections, beside the one for appends.
    pub pool_size: usize,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
}

impl RedisConfig {
    /// A single node, or a cluster when there are several addresses, separated by commas.
    #[must_use]
    pub fn from_urls(urls: &SecretString) -> Self {
        let urls: Vec<SecretString> =
            urls.expose_secret().split(',').map(str::trim).filter(|url| !url.is_empty()).map(Into::into).collect();
        Self {
            is_cluster: urls.len() > 1,
            urls,
            pool_size: MAX_CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        }
    }
}

enum Connections {
    Node(Pool, SharedConnection<MultiplexedConnection>),
    Cluster(cluster::Pool, SharedConnection<ClusterConnection>),
}

pub struct RedisStream {
    connections: Connections,
    source: EventSource,
    response_timeout: Duration,
    append: Script,
}

impl fmt::Debug for RedisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStream").finish_non_exhaustive()
    }
}

impl RedisStream {
    /// Checks the configuration; connects later, when the first command is sent.
    pub fn new(config: &RedisConfig, source: EventSource) -> Result<Self, StreamError> {
        // TLS needs one process-wide provider. An error means that it is already installed.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let urls: Vec<String> = config.urls.iter().map(|url| url.expose_secret().to_owned()).collect();
        let pool = PoolConfig {
            max_size: config.pool_size,
            timeouts: Timeouts {
                wait: Some(WAIT_TIMEOUT),
                create: Some(config.connect_timeout),
                recycle: Some(config.response_timeout),
            },
            ..PoolConfig::default()
        };
        // These error messages may quote the address, so they are not passed on.
        let invalid_address = |_| StreamError::Configuration("the Redis address is invalid".into());
        let connections = match urls.as_slice() {
            [] => return Err(StreamError::Configuration("no Redis address is given".into())),
            [url] if !config.is_cluster => {
                // `execute` has the timeout; the driver's own one may be shorter.
                let driver = AsyncConnectionConfig::new().set_response_timeout(None);
                let manager =
                    deadpool_redis::Manager::new_with_config(url.as_str(), driver).map_err(invalid_address)?;
                let builder = Pool::builder(manager).config(pool).runtime(Runtime::Tokio1);
                let pool = builder.build().map_err(|error| StreamError::Configuration(error.to_string()))?;
                Connections::Node(pool, SharedConnection::new())
            }
            urls => {
                let nodes = urls.iter().map(String::as_str).collect();
                let manager = cluster::Manager::new(nodes, false).map_err(invalid_address)?;
                let builder = cluster::Pool::builder(manager).config(pool).runtime(Runtime::Tokio1);
                let pool = builder.build().map_err(|error| StreamError::Configuration(error.to_string()))?;
                Connections::Cluster(pool, SharedConnection::new())
            }
        };
        Ok(Self { connections, source, response_timeout: config.response_timeout, append: Script::new(APPEND) })
    }

    /// Executes a command on a pooled connection.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        match &self.connections {
            Connections::Node(pool, _) => {
                let mut connection = pool.get().await.map_err(|error| Failure::Connection(error.to_string()))?;
                self.execute(command, &mut connection).await
            }
            Connections::Cluster(pool, _) => {
                let mut connection = pool.get().await.map_err(|error| Failure::Connection(error.to_string()))?;
                self.execute(command, &mut connection).await
            }
        }
    }

    /// Executes a command on the shared connection. It may be sent twice, so it must be idempotent.
    async fn query_shared<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        match &self.connections {
            Connections::Node(pool, shared) => {
                let connect = async { pool.get().await.map(deadpool_redis::Connection::take) };
                self.execute_shared(command, shared, connect).await
            }
            Connections::Cluster(pool, shared) => {
                let connect = async { pool.get().await.map(cluster::Connection::take) };
                self.execute_shared(command, shared, connect).await
            }
        }
    }

    async fn execute_shared<T: FromRedisValue, C: ConnectionLike + Clone + Send>(
        &self,
        command: &Cmd,
        shared: &SharedConnection<C>,
        connect: impl Future<Output = Result<C, PoolError>> + Send,
    ) -> Result<T, Failure> {
        if let Some((mut connection, number)) = shared.get() {
            match self.execute(command, &mut connection).await {
                // An idle connection may have been closed, which says nothing about the server: retry on a new one.
                Err(Failure::Answer(error)) if error.is_unrecoverable_error() => shared.discard(number),
                answer => return discard_if_broken(answer, shared, number),
            }
        }
        let connection = connect.await.map_err(|error| Failure::Connection(error.to_string()))?;
        let (mut connection, number) = shared.get_or_set(connection);
        let answer = self.execute(command, &mut connection).await;
        discard_if_broken(answer, shared, number)
    }

    async fn execute<T: FromRedisValue>(
        &self,
        command: &Cmd,
        connection: &mut (impl ConnectionLike + Send),
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.response_timeout, command.query_async(connection)).await {
            Ok(answer) => answer.map_err(Failure::Answer),
            Err(_) => Err(Failure::Connection("no answer in time".into())),
        }
    }

    /// Runs the script by its hash, or by its text on a node that does not have it, such as a restarted or newly
    /// promoted one.
    async fn run_append(&self, arguments: &Arguments<'_>) -> Result<(String, i64), StreamError> {
        match self.query_shared(&arguments.command("EVALSHA", self.append.get_hash())?).await {
            Err(Failure::Answer(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                Ok(self.query_shared(&arguments.command("EVAL", APPEND)?).await?)
            }
            answer => Ok(answer?),
        }
    }
}

/// The arguments of the append script.
struct Arguments<'a> {
    partition: Partition,
    generation: i32,
    floor_seq: i64,
    previous: Previous,
    events: &'a [EventRecord],
    source: &'a EventSource,
}

impl Arguments<'_> {
    fn command(&self, verb: &str, script: &str) -> Result<Cmd, StreamError> {
        let mut command = cmd(verb);
        command.arg(script).arg(2).arg(stream_key(self.partition, self.generation)).arg(generation_key(self.partition));
        command.arg(self.generation).arg(self.floor_seq);
        match self.previous {
            Some((seq, event_id)) => command.arg(seq).arg(text(event_id.0, &mut Uuid::encode_buffer())),
            None => command.arg(0).arg(""),
        };
        command.arg(self.events.len());
        for event in self.events {
            command
                .arg(event.seq)
                .arg(text(event.event_id.0, &mut Uuid::encode_buffer()))
                .arg(event.event_type.as_str())
                .arg(text(event.workspace_id.0, &mut Uuid::encode_buffer()))
                .arg(cloud_event_json(event, self.source)?);
        }
        Ok(command)
    }
}

fn text(id: Uuid, buffer: &mut [u8; 45]) -> &str {
    id.hyphenated().encode_lower(buffer)
}

/// Discards the connection after an error that it does not survive.
fn discard_if_broken<T, C: Clone>(
    answer: Result<T, Failure>,
    shared: &SharedConnection<C>,
    number: u64,
) -> Result<T, Failure> {
    let is_usable = match &answer {
        Ok(_) => true,
        Err(Failure::Answer(error)) => !error.is_unrecoverable_error(),
        Err(Failure::Connection(_)) => false,
    };
    if !is_usable {
        shared.discard(number);
    }
    answer
}

/// Why a command has no result.
enum Failure {
    Connection(String),
    Answer(RedisError),
}

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connection(reason) => Self::Unavailable(reason),
            Failure::Answer(error) => match error.kind() {
                ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Corrupt(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            },
        }
    }
}

#[async_trait]
impl EventStream for RedisStream {
    async fn append(
        &self,
        partition: Partition,
        generation: i32,
        floor_seq: i64,
        previous: Previous,
        events: &[EventRecord],
    ) -> Result<Appended, StreamError> {
        if events.len() > usize::try_from(MAX_APPEND_EVENTS).unwrap_or(usize::MAX) {
            return Err(StreamError::Corrupt(format!("{} events are too many for one append", events.len())));
        }
        for (event, expected) in events.iter().zip(previous.map_or(1, |(seq, _)| seq + 1)..) {
            if event.seq != expected || event.partition != partition {
                return Err(StreamError::Corrupt(format!("event {} is not number {expected}", event.event_id)));
            }
        }
        let source = &self.source;
        let (word, seq) =
            self.run_append(&Arguments { partition, generation, floor_seq, previous, events, source }).await?;
        match word.as_str() {
            "OK" => Ok(Appended::Ok),
            "BEHIND" => Ok(Appended::Behind { top_seq: seq }),
            "DIVERGED" => Ok(Appended::Diverged { seq }),
            _ => Err(StreamError::Corrupt(format!("the script answered {word}"))),
        }
    }

    async fn read(
        &self,
        partition: Partition,
        generation: i32,
        after: EntryId,
        limit: u32,
    ) -> Result<Vec<StreamEntry>, StreamError> {
        let from = EntryId { seq: after.seq, sub: after.sub.saturating_add(1) };
        let mut command = cmd("XRANGE");
        command.arg(stream_key(partition, generation)).arg(from.to_string()).arg("+").arg("COUNT").arg(limit);
        let entries: Vec<RawEntry> = self.query(&command).await?;
        entries.into_iter().map(entry).collect()
    }

    async fn top(&self, partition: Partition, generation: i32) -> Result<Option<StreamEntry>, StreamError> {
        let mut command = cmd("XREVRANGE");
        command.arg(stream_key(partition, generation)).arg("+").arg("-").arg("COUNT").arg(1);
        let entries: Vec<RawEntry> = self.query(&command).await?;
        entries.into_iter().next().map(entry).transpose()
    }

    /// `~` removes whole nodes of the stream only, which is much cheaper; what stays below the floor is allowed.
    async fn trim(&self, partition: Partition, generation: i32, floor_seq: i64) -> Result<bool, StreamError> {
        let mut command = cmd("XTRIM");
        command.arg(stream_key(partition, generation)).arg("MINID").arg("~").arg(EntryId::of(floor_seq).to_string());
        let trimmed: u64 = self.query(command.arg("LIMIT").arg(MAX_TRIM_ENTRIES)).await?;
        Ok(trimmed > 0)
    }

    async fn groups(&self, partition: Partition, generation: i32) -> Result<Vec<GroupPosition>, StreamError> {
        let mut command = cmd("XINFO");
        match self
            .query::<Vec<BTreeMap<String, Value>>>(command.arg("GROUPS").arg(stream_key(partition, generation)))
            .await
        {
            Ok(groups) => groups.iter().take(MAX_GROUPS).map(group_position).collect(),
            Err(Failure::Answer(error)) if error.to_string().contains("no such key") => Ok(Vec::new()),
            Err(failure) => Err(failure.into()),
        }
    }

    fn text(&self, event: &EventRecord) -> Result<String, StreamError> {
        cloud_event_json(event, &self.source)
    }

    async fn ping(&self) -> Result<(), StreamError> {
        self.query::<Value>(&cmd("PING")).await.map(|_| ()).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(urls: &str) -> Result<RedisStream, StreamError> {
        RedisStream::new(&RedisConfig::from_urls(&urls.into()), EventSource::new("urn:test").unwrap())
    }

    #[test]
    fn several_addresses_are_a_cluster_and_an_invalid_one_is_not_quoted() {
        let config = |urls: &str| RedisConfig::from_urls(&urls.into());
        assert!(!config("redis://127.0.0.1:1").is_cluster);
        assert!(config("redis://127.0.0.1:1, redis://127.0.0.1:2").is_cluster);
        for bad in ["", "http://:hunter2@host", "redis://:hunter2@host:port"] {
            let error = stream(bad).unwrap_err();
            assert!(matches!(error, StreamError::Configuration(_)), "{bad}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn tls_addresses_are_accepted_without_connecting() {
        assert!(stream("rediss://127.0.0.1:1").is_ok());
    }
}
