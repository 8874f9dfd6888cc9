//! A folder, and a server that runs in it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A folder that a server runs in.
pub struct Place {
    pub folder: TempDir,
    pub address: String,
}

/// A server that does not outlive the test.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    pub fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { folder: TempDir::new().unwrap(), address }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionscope"));
        command.args(arguments).current_dir(self.folder.path()).env("VISIONSCOPE__SERVER__BIND", &self.address);
        for name in ["DATABASE_URL", "REDIS_URL", "RUST_LOG", "VISIONSCOPE_CONFIG_DIR", "VISIONSCOPE_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    pub fn serve(&self) -> Server {
        self.serve_logging_to(Stdio::null())
    }

    pub fn serve_logging_to(&self, log: Stdio) -> Server {
        self.start(Stdio::null(), log)
    }

    pub fn start(&self, printed: Stdio, log: Stdio) -> Server {
        let server = Server(self.command(&[]).stdout(printed).stderr(log).spawn().unwrap());
        let started = Instant::now();
        while !self.command(&["healthcheck"]).output().unwrap().status.success() {
            assert!(started.elapsed() < START_TIMEOUT, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}
