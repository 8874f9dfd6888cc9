//! The three processes. Each can be killed and restarted on the same data.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest that stopping may take: see docs/OPERATIONS.md.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
const PUBLISH_TIMEOUT: Duration = Duration::from_mins(1);
const SECRET: &str = "a shared secret of more than thirty-two bytes";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that is killed when it is dropped.
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl KillOnDrop {
    /// Sends SIGTERM and waits until the process has ended.
    pub async fn terminate(mut self, within: Duration) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < within, "the process does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// PostgreSQL with fsync on.
pub struct Postgres {
    folder: TempDir,
    bin: PathBuf,
    pub port: u16,
    process: Option<KillOnDrop>,
}

impl Postgres {
    pub async fn create() -> Self {
        let mut server = Self::in_a_new_folder();
        let arguments = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"];
        Self::output_of(server.command("initdb").arg("-D").arg(server.data()).args(arguments));
        server.start().await;
        server
    }

    /// A standby of this server, which follows it.
    pub async fn create_standby(&self) -> Self {
        let mut standby = Self::in_a_new_folder();
        let mut copy = standby.command("pg_basebackup");
        copy.arg("-D").arg(standby.data()).args(["-d", &self.url(), "-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        Self::output_of(&mut copy);
        standby.start().await;
        // As a primary it waits for no standby until it has one.
        standby.wait_for_standby(false).await;
        standby
    }

    /// Whether a commit waits until a standby has it on its disk.
    pub async fn wait_for_standby(&self, waits: bool) {
        let names = if waits { "*" } else { "" };
        self.sql(&format!("alter system set synchronous_standby_names = '{names}'"));
        self.sql("select pg_reload_conf()");
        let started = Instant::now();
        while waits && self.sql("select sync_state from pg_stat_replication") != "sync" {
            assert!(started.elapsed() < START_TIMEOUT, "the standby does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        Self::output_of(self.command("pg_ctl").args(["promote", "-w", "-D"]).arg(self.data()));
    }

    pub fn kill(&mut self) {
        self.process = None;
    }

    fn in_a_new_folder() -> Self {
        let folder = TempDir::new().unwrap();
        let server = Self { folder, bin: postgres_bin(), port: free_port(), process: None };
        std::fs::set_permissions(server.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(server.home()).unwrap();
        if is_root() {
            let (uid, gid) = ids_of_postgres();
            chown(server.home(), Some(uid), Some(gid)).unwrap();
        }
        server
    }

    fn output_of(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn sql(&self, statement: &str) -> String {
        Self::output_of(self.command("psql").args(["-X", "-A", "-t", "-c", statement, "-d", &self.url()]))
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("postgres")
    }

    fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// A PostgreSQL program. As root it is run as the user `postgres`, because it refuses root.
    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(self.home()).env("LC_ALL", "C");
        command
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    async fn start(&mut self) {
        let started = Instant::now();
        loop {
            let mut command = self.command("postgres");
            command.arg("-D").arg(self.data()).args(["-c", "listen_addresses=127.0.0.1"]);
            command.args(["-c", &format!("port={}", self.port), "-c", "fsync=on", "-c", "max_connections=50"]);
            command.arg("-c").arg(format!("unix_socket_directories={}", self.home().display()));
            let mut process = KillOnDrop(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            // It exits at once if children of the old server still hold the shared memory.
            while process.0.try_wait().unwrap().is_none() {
                let mut ready = self.command("pg_isready");
                ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
                if ready.status().unwrap().success() {
                    self.process = Some(process);
                    return;
                }
                assert!(started.elapsed() < START_TIMEOUT, "PostgreSQL does not start");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(started.elapsed() < START_TIMEOUT, "PostgreSQL does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn kill_and_restart(&mut self) {
        println!("kill PostgreSQL");
        self.process = None;
        self.start().await;
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn ids_of_postgres() -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("there is a user postgres");
    let fields: Vec<_> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

fn postgres_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run scripts/test");
    let bins = versions.map(|entry| entry.unwrap().path().join("bin")).filter(|bin| bin.join("initdb").exists());
    bins.max().expect("PostgreSQL's server is installed: run scripts/test")
}

/// Redis without persistence: it loses everything when it is killed.
pub struct Redis {
    folder: TempDir,
    port: u16,
    process: Option<KillOnDrop>,
}

impl Redis {
    pub fn create() -> Self {
        let mut server = Self { folder: TempDir::new().unwrap(), port: free_port(), process: None };
        server.start();
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn start(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(KillOnDrop(command.spawn().expect("redis-server starts")));
    }

    pub async fn kill_and_restart(&mut self, down_for: Duration) {
        println!("kill Redis, down for {down_for:?}");
        self.process = None;
        tokio::time::sleep(down_for).await;
        self.start();
    }
}

/// The server under test.
pub struct Billing {
    pub base: String,
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
    process: Option<KillOnDrop>,
}

impl Billing {
    pub async fn create(postgres: Option<&Postgres>, redis: Option<&Redis>) -> Self {
        Self::create_with(postgres.map(Postgres::url), redis, &[]).await
    }

    /// With more settings.
    pub async fn create_with(
        database_url: Option<String>,
        redis: Option<&Redis>,
        settings: &[(&'static str, String)],
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let config = format!("[[auth.keys]]\nkid = \"crash\"\nalg = \"HS256\"\nsecret = \"{SECRET}\"\n");
        std::fs::create_dir(folder.path().join("config")).unwrap();
        std::fs::write(folder.path().join("config/auth.toml"), config).unwrap();
        let mut environment = vec![("VISIONSCOPE__SERVER__BIND", address.clone())];
        environment.extend_from_slice(settings);
        environment.extend(database_url.map(|url| ("DATABASE_URL", url)));
        environment.extend(redis.map(|redis| ("REDIS_URL", redis.url())));
        let mut billing = Self { base: format!("http://{address}"), folder, environment, process: None };
        billing.start();
        billing.wait_until_ready().await;
        billing
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionscope"));
        command.args(arguments).current_dir(self.folder.path());
        for name in ["DATABASE_URL", "REDIS_URL", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let process = self.command(&["serve"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.process = Some(KillOnDrop(process));
    }

    /// Stops the server with SIGTERM and waits until it has ended.
    pub async fn terminate(&mut self) {
        self.process.take().expect("the server runs").terminate(STOP_TIMEOUT).await;
    }

    /// The memory of the process that is in use.
    pub fn resident_bytes(&self) -> usize {
        let process = self.process.as_ref().expect("the server runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    fn log(&self) -> PathBuf {
        Path::new(self.folder.path()).join("log")
    }

    pub async fn kill_and_restart(&mut self) {
        println!("kill the server");
        self.process = None;
        self.start();
        self.wait_until_ready().await;
    }

    /// Waits like a supervisor: restarts the server if it exited, because it cannot start while the database is down.
    pub async fn wait_until_ready(&mut self) {
        let started = Instant::now();
        loop {
            let answer = reqwest::get(format!("{}/readyz", self.base)).await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(started.elapsed() < START_TIMEOUT, "not ready: {}", log());
            if let Some(process) = &mut self.process
                && process.0.try_wait().unwrap().is_some()
            {
                self.start();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until every event is recorded as published and Redis holds it.
    pub async fn wait_until_published(&self) {
        let started = Instant::now();
        while !self.run(&["outbox", "status"]) {
            assert!(started.elapsed() < PUBLISH_TIMEOUT, "the events are not published");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Runs a command of the operator and returns whether it succeeded.
    pub fn run(&self, arguments: &[&str]) -> bool {
        self.command(arguments).status().unwrap().success()
    }

    pub fn token(&self) -> String {
        let output = self.command(&["token", "--workspace", "*"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    /// The file of the embedded database.
    pub fn sqlite_file(&self) -> PathBuf {
        self.folder.path().join("data/visionscope.db")
    }
}
