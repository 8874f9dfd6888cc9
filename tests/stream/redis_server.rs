//! A redis-server for a test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis::{Client, Cmd, Connection, FromRedisValue, Value, cmd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use visionscope_billing::stream::redis::{RedisConfig, RedisStream};

use crate::events::source;

/// How long a server may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running redis-server, stopped when it is dropped.
pub struct RedisServer {
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
    options: Vec<String>,
}

impl RedisServer {
    /// A running server without persistence.
    pub fn start() -> Self {
        let mut server = Self::not_started(&[]);
        server.start_process();
        server
    }

    /// A server with a port and a folder that does not run yet.
    pub fn not_started(options: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = options.iter().map(ToString::to_string).collect();
        Self { port, folder: TempDir::new().unwrap(), process: None, options }
    }

    pub fn start_process(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.folder.path()).args(&self.options);
        self.process = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server starts"));
        let started = Instant::now();
        while self.connect().is_none() {
            assert!(started.elapsed() < START_TIMEOUT, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Makes it hang: connections stay open, and nothing is answered.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().unwrap()), signal).unwrap();
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn stream(&self) -> Arc<RedisStream> {
        Arc::new(RedisStream::new(&RedisConfig::from_urls(&self.url().into()), source()).unwrap())
    }

    /// Executes a command on a connection of its own.
    pub fn execute<T: FromRedisValue>(&self, arguments: &[&str]) -> T {
        let mut command = cmd(arguments[0]);
        command.arg(&arguments[1..]).query(&mut self.connect().unwrap()).unwrap()
    }

    /// Executes a command that may fail. Returns whether it succeeded.
    pub fn try_execute(&self, arguments: &[&str]) -> bool {
        let arguments: Vec<&[u8]> = arguments.iter().map(|argument| argument.as_bytes()).collect();
        self.answer(&arguments).is_some()
    }

    /// The answer to a command, unless it fails.
    pub fn answer(&self, arguments: &[&[u8]]) -> Option<Value> {
        let mut command = Cmd::new();
        command.arg(arguments).query(&mut self.connect()?).ok()
    }

    fn connect(&self) -> Option<Connection> {
        let mut connection = Client::open(self.url()).unwrap().get_connection().ok()?;
        cmd("PING").query::<String>(&mut connection).ok().map(|_| connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
