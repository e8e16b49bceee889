//! What may happen to connections on their way to Redis.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// It is closed, and so are those that come.
    Cut,
    /// Nothing goes through it any more, and nobody is told.
    Hole,
    /// The same for the connections that there are; those that come are open.
    Stuck,
    /// What Redis says is not taken from it.
    Stalled,
    /// What Redis says comes so much later.
    Late(Duration),
    /// The connections that there are go on at another server, that knows nothing of them.
    Elsewhere(u16),
}

/// What happens to the connection that hears what is published, and to the one for commands.
#[derive(Clone, Copy, Debug)]
struct Ways {
    subscriber: Way,
    commands: Way,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Subscriber,
    Commands,
}

/// Stands between one node and Redis.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    port: Arc<AtomicU16>,
    ways: watch::Sender<Ways>,
    rounds: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let open = Ways { subscriber: Way::Open, commands: Way::Open, since: Instant::now() };
        let (ways, port) = (watch::channel(open).0, Arc::new(AtomicU16::new(port)));
        let rounds = Arc::new(AtomicUsize::new(0));
        let (watched, to, counted) = (ways.clone(), port.clone(), rounds.clone());
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                tokio::spawn(Connection::run(client, to.load(Relaxed), watched.subscribe(), counted.clone()));
            }
        });
        Self { addr, port, ways, rounds, task }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// How often something was sent on a connection for commands after something was answered: the number of round trips, if answers
    /// come late enough that all that is sent together is sent before the first of them.
    pub fn rounds(&self) -> usize {
        self.rounds.load(Relaxed)
    }

    pub fn set(&self, subscriber: Way, commands: Way) {
        self.ways.send_replace(Ways { subscriber, commands, since: Instant::now() });
    }

    /// Where connections that come lead to.
    pub fn lead_to(&self, port: u16) {
        self.port.store(port, Relaxed);
    }

    pub fn open(&self) {
        self.set(Way::Open, Way::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Way::Cut, Way::Cut);
    }
}

struct Connection {
    kind: Option<Kind>,
    born: Instant,
    way: Way,
    from_redis: OwnedReadHalf,
    to_redis: OwnedWriteHalf,
    late: VecDeque<(Instant, Vec<u8>)>,
    /// Whether something was answered since something was sent.
    answered: bool,
}

impl Connection {
    async fn run(client: TcpStream, port: u16, mut ways: watch::Receiver<Ways>, rounds: Arc<AtomicUsize>) {
        client.set_nodelay(true).expect("a socket");
        let (mut from_client, mut to_client) = client.into_split();
        let Ok(redis) = connect(port).await else { return };
        let (from_redis, to_redis) = redis.into_split();
        let mut this = Self {
            kind: None,
            born: Instant::now(),
            way: Way::Open,
            from_redis,
            to_redis,
            late: VecDeque::new(),
            answered: true,
        };
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            let due = this.late.front().map_or_else(|| Instant::now() + Duration::from_secs(3_600), |(due, _)| *due);
            tokio::select! {
                           changed = ways.changed() => if changed.is_err() { return },
                           read = from_client.read(&mut up) => {
                               let Ok(read @ 1..) = read else { return };
                               this.kind = this.kind.or_else(|| kind(&up[..read]));
                               if this.kind == Some(Kind::Commands) && std::mem::take(&mut this.answered) {
                                   rounds.fetch_add(1, Relaxed);
                               }
                               let to = *ways.borrow_and_update();
            this.follow(to).await;
                               match this.way {
                                   Way::Cut => return,
                                   Way::Hole | Way::Stuck => {}
                                   _ => if this.to_redis.write_all(&up[..read]).await.is_err() { return },
                               }
                           }
                           read = this.from_redis.read(&mut down), if this.way != Way::Stalled => {
                               let Ok(read @ 1..) = read else {
                                   if matches!(this.way, Way::Hole | Way::Stuck) {
                                       // Not even that is told.
                                       std::future::pending::<()>().await;
                                   }
                                   return;
                               };
                               match this.way {
                                   Way::Cut => return,
                                   Way::Hole | Way::Stuck => {}
                                   Way::Late(by) => this.late.push_back((Instant::now() + by, down[..read].to_vec())),
                                   _ if !this.late.is_empty() => this.late.push_back((Instant::now(), down[..read].to_vec())),
                                   _ => {
                                       this.answered = true;
                                       if to_client.write_all(&down[..read]).await.is_err() { return }
                                   }
                               }
                           }
                           () = sleep_until(due) => {
                               let Some((_, data)) = this.late.pop_front() else { continue };
                               this.answered = true;
                               if to_client.write_all(&data).await.is_err() { return }
                           }
                       }
            let to = *ways.borrow_and_update();
            this.follow(to).await;
            if this.way == Way::Cut {
                return;
            }
        }
    }

    /// Goes the way that connections of its kind go now.
    async fn follow(&mut self, ways: Ways) {
        let way = match self.kind {
            Some(Kind::Subscriber) => ways.subscriber,
            Some(Kind::Commands) => ways.commands,
            None => return,
        };
        let spared = matches!(way, Way::Stuck | Way::Elsewhere(_)) && self.born > ways.since;
        let way = if spared { Way::Open } else { way };
        if let (Way::Elsewhere(port), true) = (way, way != self.way) {
            let moved = connect(port).await.expect("the other server");
            (self.from_redis, self.to_redis) = moved.into_split();
        }
        self.way = way;
    }
}

/// With a buffer that is soon full if nobody reads.
async fn connect(port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(65_536)?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

/// What a connection is for, by what its client has sent on it.
fn kind(sent: &[u8]) -> Option<Kind> {
    let has = |word: &[u8]| sent.windows(word.len()).any(|window| window == word);
    if has(b"SUBSCRIBE") {
        Some(Kind::Subscriber)
    } else if has(b"PING") || has(b"EVALSHA") || has(b"PUBLISH") {
        Some(Kind::Commands)
    } else {
        None
    }
}
