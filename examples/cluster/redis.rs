//! A `redis-server` of one's own: on a free port, in a directory of its own, with every append on the disk, and gone with this.

use std::{env, error::Error, fs, io, net::TcpListener, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

pub(crate) struct Redis {
    pub(crate) port: u16,
    directory: PathBuf,
    process: Child,
}

impl Redis {
    pub(crate) async fn start() -> Result<Self, Box<dyn Error>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = env::temp_dir().join(format!("tower-comet-cluster-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let process = run(port, &directory).inspect_err(|_| drop(fs::remove_dir_all(&directory)))?;
        let mut redis = Self { port, directory, process };
        redis.answers().await?;
        Ok(redis)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it as a power cut would, and starts it again on the same port with what is on the disk.
    pub(crate) async fn restart(&mut self, down: Duration) -> Result<(), Box<dyn Error>> {
        self.process.kill().await?;
        sleep(down).await;
        self.process = run(self.port, &self.directory)?;
        self.answers().await
    }

    /// Returns when it takes connections.
    async fn answers(&mut self) -> Result<(), Box<dyn Error>> {
        let connected = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            connected = timeout(Duration::from_secs(10), connected) => Ok(connected?),
            ended = self.process.wait() => Err(format!("redis-server ended at once: {}", ended?).into()),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn run(port: u16, directory: &PathBuf) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(directory);
    command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    // An empty channel is then 0.8 kB and not 4.
    command.args(["--stream-node-max-bytes", "512", "--maxmemory-policy", "noeviction"]);
    // In a group of its own, or Ctrl-C would end it before the nodes have answered whoever waits.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "redis-server is missing: `apt install redis-server`, or put it on the PATH".into(),
        _ => format!("redis-server: {error}").into(),
    })
}
