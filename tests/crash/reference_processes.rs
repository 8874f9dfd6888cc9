//! The reference consumers of `examples/` as processes, their databases, and their groups in Redis.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use deadpool_redis::redis::{Client, FromRedisValue, cmd};
use futures::future::join_all;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use crate::processes::{Billing, KillOnDrop, Redis};

/// The feature about which an event fails as long as the consumers are told so.
pub const FAILING: &str = "text.generate";
/// After which a consumer takes the entries of another.
pub const IDLE_LIMIT: Duration = Duration::from_millis(1500);
/// A consumer must stop in this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: &str = include_str!("../../docs/EVENTS.md");

/// Micro-credits by workspace and feature.
pub type Figures = BTreeMap<(String, String), i64>;

#[derive(Clone, Copy, Debug)]
pub enum Language {
    Rust,
    Python,
}

impl Language {
    /// Those whose programs are there: `scripts/test` prepares Python, and says so if it cannot.
    pub fn all() -> Vec<Self> {
        let arguments = ["build", "--quiet", "--locked", "--example", "consumer"];
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        let built = Command::new(env!("CARGO")).args(arguments).args(profile).status().unwrap();
        assert!(built.success(), "the example is built");
        let python = std::env::var_os("CONSUMER_PYTHON").map(|_| Self::Python);
        [Some(Self::Rust), python].into_iter().flatten().collect()
    }

    fn command(self) -> Command {
        match self {
            Self::Rust => {
                // The test is in <profile>/deps.
                let test = std::env::current_exe().unwrap();
                Command::new(test.ancestors().nth(2).unwrap().join("examples/consumer"))
            }
            Self::Python => {
                let mut command = Command::new(std::env::var_os("CONSUMER_PYTHON").unwrap());
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/consumer.py"));
                command
            }
        }
    }
}

/// Redis, as an operator uses it.
pub struct Operator(pub String);

impl Operator {
    pub fn run<T: FromRedisValue>(&self, line: &str) -> T {
        self.try_run(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    pub fn try_run<T: FromRedisValue>(&self, line: &str) -> Result<T, deadpool_redis::redis::RedisError> {
        let mut words = line.split(' ');
        let mut command = cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).query(&mut Client::open(self.0.as_str())?.get_connection()?)
    }

    /// Creates the user of a consumer with the commands of the documentation.
    pub fn create_user(&self) {
        let lines: Vec<_> = PAGE.lines().filter(|line| line.starts_with("ACL SETUSER ")).collect();
        assert_eq!(lines.len(), 2, "the page has both commands");
        for line in lines {
            // The group's name is a part of a key, and here there are several.
            let line = line.replace("GROUP", "*");
            let started = Instant::now();
            while let Err(error) = self.try_run::<()>(&line) {
                assert!(started.elapsed() < STOP_TIMEOUT, "{line}: {error}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// The current streams.
    pub fn streams(&self) -> Vec<String> {
        let generation = |number| self.run::<Option<String>>(&format!("GET vs:{{p{number:02}}}:generation"));
        let key = |number| generation(number).map(|generation| format!("vs:{{p{number:02}}}:g{generation}"));
        let exists = |key: &String| self.run::<bool>(&format!("EXISTS {key}"));
        (0..16).filter_map(key).filter(exists).collect()
    }
}

/// A group of consumers in one language, with one database.
pub struct Group {
    pub language: Language,
    pub name: String,
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
    consumers: BTreeMap<String, KillOnDrop>,
}

impl Group {
    pub fn new(language: Language, billing: &Billing, redis: &Redis) -> Self {
        let folder = TempDir::new().unwrap();
        let name = format!("{language:?}").to_lowercase();
        let environment = vec![
            ("REDIS_URL", redis.url().replace("redis://", "redis://reader:PASSWORD@")),
            ("BILLING_URL", billing.base.clone()),
            ("BILLING_TOKEN", billing.token()),
            ("CONSUMER_DATABASE", folder.path().join("consumer.db").to_str().unwrap().to_owned()),
            ("CONSUMER_GROUP", name.clone()),
            ("RETRY_DELAYS_S", "0.3,0.6".to_owned()),
            ("IDLE_LIMIT_S", IDLE_LIMIT.as_secs_f64().to_string()),
            ("GAP_WAIT_S", "0.3".to_owned()),
            ("FAIL_FEATURE", FAILING.to_owned()),
        ];
        Self { language, name, folder, environment, consumers: BTreeMap::new() }
    }

    fn command(&self) -> Command {
        let mut command = self.language.command();
        command.envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    pub fn start(&mut self, consumer: &str) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = self.command();
        let process = command.env("CONSUMER_NAME", consumer).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.consumers.insert(consumer.to_owned(), KillOnDrop(process));
    }

    pub fn kill(&mut self, consumer: &str) {
        self.consumers.remove(consumer);
    }

    /// Stops all consumers with SIGTERM.
    pub async fn terminate(&mut self) {
        let consumers = std::mem::take(&mut self.consumers).into_values();
        for status in join_all(consumers.map(|consumer| consumer.terminate(STOP_TIMEOUT))).await {
            assert!(status.success(), "{:?} ends with {status}: {}", self.language, self.log());
        }
    }

    /// Starts a consumer that must end by itself with an error that says this.
    pub async fn fails_to_start(&self, setting: Option<(&str, &str)>, says: &str) {
        let mut command = self.command();
        command.envs(setting).env("CONSUMER_NAME", "one").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = KillOnDrop(command.spawn().unwrap());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.0.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < STOP_TIMEOUT, "{:?} does not end: {says}", self.language);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let error = std::io::read_to_string(process.0.stderr.take().unwrap()).unwrap();
        assert!(!status.success() && error.contains(says), "{:?}: {status}: {error}", self.language);
    }

    /// From now on nothing fails, and what has failed is tried again.
    pub fn replay(&mut self) {
        self.environment.retain(|(name, _)| *name != "FAIL_FEATURE");
        let output = self.command().arg("replay").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1 dead letters are tried again");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub async fn database(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join("consumer.db"));
        options.busy_timeout(Duration::from_secs(10)).connect().await.unwrap()
    }

    /// What the consumers have added up. Empty before they have made their database.
    pub async fn figures(&self) -> Figures {
        if !self.folder.path().join("consumer.db").exists() {
            return Figures::new();
        }
        let mut database = self.database().await;
        let statement = "select workspace_id, feature_code, micro_credits from consumed";
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as(statement).fetch_all(&mut database).await.unwrap_or_default();
        database.close().await.unwrap();
        rows.into_iter().map(|(workspace, feature, amount)| ((workspace, feature), amount)).collect()
    }

    /// How many events have failed or wait behind one.
    pub async fn held(&self) -> i64 {
        let mut database = self.database().await;
        let count = sqlx::query_scalar("select count(*) from held").fetch_one(&mut database).await.unwrap();
        database.close().await.unwrap();
        count
    }
}
