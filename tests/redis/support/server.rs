//! A redis-server of one test's own.

use redis::{FromRedisValue, aio::MultiplexedConnection};
use std::{
    ffi::OsString,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A server on a free port, with a directory that goes with it. It is ended by its pid.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
}

impl Server {
    /// Starts one that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with options beyond those, as on its command line.
    pub async fn start_with(options: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let directory = std::env::temp_dir().join(format!("tower-comet-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for Redis");
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
        let options = options.iter().map(ToString::to_string).collect();
        let mut server = Self { child: None, port, directory, options };
        server.run().await;
        server
    }

    /// Starts it, for the first time or again, and returns when it answers.
    pub async fn run(&mut self) {
        self.launch();
        let started = Instant::now();
        while !["+PONG", "-NOAUTH"].iter().any(|pong| self.ping().starts_with(pong)) {
            assert!(started.elapsed() < Duration::from_secs(20), "redis-server does not answer: {self:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The program: `redis-server`, or what the environment variable `REDIS_SERVER` names.
    pub fn program() -> OsString {
        std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
    }

    /// Starts it, and does not wait for it.
    pub fn launch(&mut self) {
        // Before version 7, `DEBUG` needs no permission.
        static DEBUG: LazyLock<&[&str]> = LazyLock::new(|| {
            let version = Command::new(Server::program()).arg("--version").output();
            let version = version.expect("redis-server must be installed: apt-get install redis-server").stdout;
            let old = String::from_utf8_lossy(&version).contains(" v=6.");
            if old { &[] } else { &["--enable-debug-command", "yes"] }
        });
        let child = Command::new(Self::program())
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(*DEBUG)
            .arg("--logfile")
            .arg(self.directory.join("log"))
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server must be installed: apt-get install redis-server"));
    }

    /// Options from the next start on.
    pub fn options(&mut self, options: &[&str]) {
        self.options = options.iter().map(ToString::to_string).collect();
    }

    /// What is answered to a `PING`, if anything is.
    pub fn ping(&self) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return String::new() };
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
        let mut answer = [0; 64];
        let read = stream.write_all(b"PING\r\n").and_then(|()| stream.read(&mut answer)).unwrap_or(0);
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Whether it has said something in its log.
    pub fn has_said(&self, what: &str) -> bool {
        std::fs::read_to_string(self.directory.join("log")).is_ok_and(|log| log.contains(what))
    }

    /// Removes the directory in which it saves, and has it save: that fails. Needs the option `save`.
    pub async fn lose_directory(&self) {
        std::fs::remove_dir_all(&self.directory).expect("it is ours");
        drop(redis::cmd("BGSAVE").exec_async(&mut self.connection().await).await);
        while !self.command::<String>("INFO persistence").await.contains("rdb_last_bgsave_status:err") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it as a power failure would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it was killed");
    }

    /// Lets it do nothing until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("it answers")
    }

    /// Runs a command, given as words.
    pub async fn command<T: FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().expect("a command"));
        command.arg(words.collect::<Vec<_>>());
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Sets one of its options.
    pub async fn set(&self, option: &str, value: &str) {
        let set = redis::cmd("CONFIG").arg("SET").arg(option).arg(value).exec_async(&mut self.connection().await).await;
        set.unwrap_or_else(|error| panic!("{option} {value}: {error}"));
    }

    /// A number of `INFO`.
    pub async fn info(&self, section: &str, field: &str) -> u64 {
        let info: String = self.command(&format!("INFO {section}")).await;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().trim().parse().unwrap_or(0)
    }

    /// How often a command was run.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.command("INFO commandstats").await;
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().expect("a number"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
