//! What is measured: a server, ours or a peer's, and how to speak to it.

use std::{
    env, fmt, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Result,
    client::{Answer, Client, Request},
    process::Process,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Plain,
    Floor,
    FloorBytes,
    Comet,
    /// nginx with Debian's `libnginx-mod-nchan`.
    Nchan,
    /// The crate `durable-streams`.
    Streams,
    /// The crate `durable-streams-server`.
    StreamsServer,
}

pub const PEERS: [Kind; 3] = [Kind::Nchan, Kind::Streams, Kind::StreamsServer];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Floor => "floor",
            Self::FloorBytes => "floor-bytes",
            Self::Comet => "comet",
            Self::Nchan => "Nchan",
            Self::Streams => "durable-streams",
            Self::StreamsServer => "durable-streams-server",
        }
    }

    /// Whether it is here to be measured: a peer may not be installed.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Nchan => Path::new(NCHAN).exists(),
            Self::Streams | Self::StreamsServer => self.program().exists(),
            Self::Plain | Self::Floor | Self::FloorBytes | Self::Comet => true,
        }
    }

    /// Both crates install a binary of the same name, so each has a root of its own: see `benches/run`.
    fn program(self) -> PathBuf {
        let roots = env::var_os("PEERS").map_or_else(|| PathBuf::from("target/peers"), PathBuf::from);
        roots.join(self.name()).join("bin/durable-streams-server")
    }
}

const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// A kind of server, made in one way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Subject {
    pub kind: Kind,
    pub builder: &'static str,
    pub jemalloc: bool,
    /// The folder with the binaries of another commit; `None` for the working tree.
    pub programs: Option<PathBuf>,
}

impl Subject {
    pub fn new(kind: Kind, builder: &'static str) -> Self {
        Self { kind, builder, jemalloc: false, programs: None }
    }

    pub fn jemalloc(mut self) -> Self {
        self.jemalloc = true;
        self
    }

    /// Starts this server from binaries of another commit.
    pub fn built_in(mut self, programs: &Path) -> Self {
        self.programs = Some(programs.to_owned());
        self
    }

    /// Returns the path of one of this package's binaries, of the working tree or of another commit.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        match &self.programs {
            Some(folder) => Ok(folder.join(name)),
            None => Ok(env::current_exe()?.with_file_name(name)),
        }
    }

    pub fn start(&self) -> Result<Process> {
        let addr = free_address()?;
        match self.kind {
            Kind::Nchan => {
                let folder = env::temp_dir().join(format!("comet-bench-nchan-{}", addr.port()));
                fs::create_dir_all(&folder)?;
                let config = folder.join("nginx.conf");
                fs::write(&config, nchan(&folder, addr))?;
                Process::start(Command::new("nginx").arg("-p").arg(&folder).arg("-c").arg(&config), addr)
            }
            Kind::Streams => {
                // Its files are in memory, like everybody's messages here.
                let data = PathBuf::from(format!("/dev/shm/comet-bench-{}", addr.port()));
                let mut command = Command::new(self.kind.program());
                command.args(["--durability", "memory", "--worker-threads", "2", "--long-poll-timeout-ms", "600000"]);
                Process::start(command.arg("--port").arg(addr.port().to_string()).arg("--data-dir").arg(data), addr)
            }
            Kind::StreamsServer => {
                let mut command = Command::new(self.kind.program());
                command.env("DS_SERVER__BIND_ADDRESS", addr.to_string()).env("RUST_LOG", "off");
                command.env("DS_TRANSPORT__CONNECTION__LONG_POLL_TIMEOUT_SECS", "600");
                Process::start(command.current_dir(env::temp_dir()), addr)
            }
            kind => {
                let name = if self.jemalloc { "jemalloc" } else { "tower-comet-bench" };
                let mut command = Command::new(self.program(name)?);
                Process::start(command.args(["serve", kind.name(), self.builder, &addr.to_string()]), addr)
            }
        }
    }

    /// Whether answers carry what was published: a floor's are constant.
    pub fn is_checked(&self) -> bool {
        !matches!(self.kind, Kind::Floor | Kind::FloorBytes)
    }

    /// Makes a channel, where that is to be done by itself, and says where it ends.
    pub fn begin(&self, control: &mut Client, channel: usize) -> Result<String> {
        let path = self.path(channel);
        match self.kind {
            Kind::Nchan => return Ok(String::new()),
            Kind::Floor | Kind::FloorBytes | Kind::Plain => return Ok("now".to_owned()),
            Kind::Streams | Kind::StreamsServer => control.ask(0, &Request::json("PUT", &*path, ""))?,
            Kind::Comet => {}
        }
        control.ask_for(0, &Request::get(format!("{path}?offset=now")), |answer| self.position(answer))
    }

    /// Where to go on from.
    pub fn position(&self, answer: &Answer<'_>) -> String {
        let field = |name| answer.field(name).unwrap_or_default();
        match self.kind {
            Kind::Nchan => {
                let (time, tag) = (field("last-modified"), field("etag"));
                format!("if-modified-since: {time}\r\nif-none-match: {tag}\r\n")
            }
            _ => answer.field("stream-next-offset").unwrap_or("now").to_owned(),
        }
    }

    pub fn wait(&self, channel: usize, position: &str) -> Request {
        let path = self.path(channel);
        match self.kind {
            Kind::Nchan => Request { fields: position.to_owned(), ..Request::get(path) },
            _ => Request::get(format!("{path}?offset={position}&live=long-poll")),
        }
    }

    /// All that a channel holds.
    pub fn read(&self, channel: usize) -> Request {
        match self.kind {
            Kind::Nchan => Request::get(format!("/r/{channel}")),
            _ => Request::get(format!("{}?offset=-1", self.path(channel))),
        }
    }

    pub fn publish(&self, channel: usize, message: String) -> Request {
        match self.kind {
            Kind::Nchan => Request::json("POST", format!("/pub/{channel}"), message),
            Kind::Streams | Kind::StreamsServer => Request::json("POST", self.path(channel), message),
            _ => Request::json("POST", format!("/control/publish/{channel}"), message),
        }
    }

    fn path(&self, channel: usize) -> String {
        match self.kind {
            Kind::Streams | Kind::StreamsServer => format!("/v1/stream/{channel}"),
            _ => format!("/c/{channel}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.programs {
            Some(folder) => write!(f, " from {}", folder.display()),
            None => Ok(()),
        }
    }
}

/// Where nobody listens. Every server has a port of its own, so that no connection of an earlier one is in the way.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn nchan(folder: &Path, addr: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off; worker_processes 2; worker_rlimit_nofile 20000; pid {folder}/pid; error_log {folder}/log crit;
load_module {NCHAN};
events {{ worker_connections 15000; }}
http {{
  access_log off; keepalive_timeout 3600; keepalive_requests 100000000; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  nchan_shared_memory_size 256M;
  server {{
    listen {addr} backlog=4096;
    location = /plain {{ return 200 \"plain\"; }}
    location ~ ^/c/(.+)$ {{
      nchan_subscriber longpoll; nchan_channel_id $1; nchan_subscriber_first_message newest; nchan_subscriber_timeout 600s;
    }}
    location ~ ^/r/(.+)$ {{ nchan_subscriber longpoll; nchan_channel_id $1; nchan_subscriber_first_message oldest; }}
    location ~ ^/pub/(.+)$ {{
      nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 1000; nchan_message_timeout 1h;
    }}
  }}
}}
"
    )
}
