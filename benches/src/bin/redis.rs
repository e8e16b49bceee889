//! Measures tower-comet on Redis against bare Redis, interleaved, in one run:
//!
//! ```sh
//! cargo run --release -p tower-comet-bench --features redis --bin redis
//! cargo run --release -p tower-comet-bench --features redis --bin redis -- --only appends --rounds 9
//! ```
//!
//! Needs `redis-server`, which it starts on a free port, and ends. A node is a `Comet` on a thread of its own; bare Redis is used
//! from the same threads, through the same client. A message that is lost, doubled or out of order ends the run.

use futures_util::{FutureExt, StreamExt, future::try_join_all};
use redis::{aio::MultiplexedConnection, cmd};
use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::{sleep, timeout},
};
use tower_comet::{Comet, Retention};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// 128 bytes, as JSON.
fn message(n: usize) -> String {
    format!("{n:0126}")
}

fn main() -> Result<()> {
    let (mut rounds, mut channels, mut only) = (5, 100_000, None);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match &*arg {
            "--rounds" => rounds = value.parse()?,
            "--channels" => channels = value.parse()?,
            "--only" => only = Some(value),
            _ => return Err(format!("unknown flag {arg}").into()),
        }
    }
    let chosen = |name| only.as_deref().is_none_or(|only| only == name);
    let threads = Threads { here: thread()?, there: thread()? };
    if chosen("wakes") {
        wakes(&threads, rounds)?;
    }
    if chosen("appends") {
        appends(&threads, rounds)?;
    }
    if chosen("polls") {
        polls(&threads)?;
    }
    if chosen("memory") {
        memory(&threads)?;
    }
    if chosen("restart") {
        restart(&threads, channels)?;
    }
    Ok(())
}

/// Where the two nodes are.
struct Threads {
    here: Runtime,
    there: Runtime,
}

fn thread() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// From a message's publication on one node until who waits on another has it.
fn wakes(threads: &Threads, rounds: usize) -> Result<()> {
    const TIMES: usize = 4_000;
    println!("\n| publish here, wake there | bare PUBLISH, p50 / p99, µs | comet, p50 / p99, µs | comet / bare, p50 |");
    println!("| --- | ---: | ---: | ---: |");
    for channels in [1, 1_000] {
        let server = Server::start(&[])?;
        let (mut bare, mut comet) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            bare.push(bare_wakes(threads, &server, channels, TIMES)?);
            comet.push(comet_wakes(threads, &server, channels, TIMES)?);
        }
        let at = |times: &[Vec<f64>], part| median(times.iter().map(|times| percentile(times, part)).collect());
        let [a, b, c, d] = [at(&bare, 0.5), at(&bare, 0.99), at(&comet, 0.5), at(&comet, 0.99)];
        println!("| {channels} channels in turn | {a:.0} / {b:.0} | {c:.0} / {d:.0} | {:.2} |", c / a);
    }
    Ok(())
}

fn bare_wakes(threads: &Threads, server: &Server, channels: usize, times: usize) -> Result<Vec<f64>> {
    let (heard, hears) = mpsc::unbounded_channel();
    let client = server.client()?;
    let mut feed = threads.there.block_on(async {
        let mut feed = client.get_async_pubsub().await?;
        for channel in 0..channels {
            feed.subscribe(format!("bare:{channel}")).await?;
        }
        Result::Ok(feed)
    })?;
    let listening = threads.there.spawn(async move {
        let mut stream = feed.on_message();
        for n in 0..times {
            let payload: String = stream.next().await.ok_or("the end")?.get_payload()?;
            heard.send(Instant::now())?;
            check(payload == message(n), n)?;
        }
        Result::Ok(())
    });
    let mut connection = threads.here.block_on(server.connection())?;
    let publish = async move |n: usize| {
        cmd("PUBLISH")
            .arg(format!("bare:{}", n % channels))
            .arg(message(n))
            .exec_async(&mut connection)
            .await
            .map_err(Into::into)
    };
    let found = threads.here.block_on(turns(times, publish, hears))?;
    threads.there.block_on(listening)??;
    Ok(found)
}

fn comet_wakes(threads: &Threads, server: &Server, channels: usize, times: usize) -> Result<Vec<f64>> {
    let (heard, hears) = mpsc::unbounded_channel();
    let here = threads.here.block_on(server.node())?;
    let there = threads.there.block_on(server.node())?;
    let mut listening = Vec::new();
    for channel in 0..channels {
        threads.here.block_on(here.channel(name(channel)).publish("first"))?;
        let (heard, mut subscription) = (heard.clone(), there.channel(name(channel)).subscribe());
        listening.push(threads.there.spawn(async move {
            for n in (channel..times).step_by(channels) {
                let got = subscription.recv().await?.ok_or("the end")?;
                heard.send(Instant::now())?;
                check(got.json::<String>()? == message(n), n)?;
            }
            Result::Ok(())
        }));
    }
    threads.there.block_on(until(|| there.waiters() == channels))?;
    sleep_a_little(threads);
    let publish =
        async |n: usize| here.channel(name(n % channels)).publish(message(n)).await.map(drop).map_err(Into::into);
    let found = threads.here.block_on(turns(times, publish, hears))?;
    for listening in listening {
        threads.there.block_on(listening)??;
    }
    for channel in 0..channels {
        threads.here.block_on(here.channel(name(channel)).delete())?;
    }
    Ok(found)
}

/// Publishes one after the other, each when the one before was heard, and says how long each took, in microseconds.
async fn turns(
    times: usize,
    mut publish: impl AsyncFnMut(usize) -> Result<()>,
    mut heard: mpsc::UnboundedReceiver<Instant>,
) -> Result<Vec<f64>> {
    let mut found = Vec::with_capacity(times);
    for n in 0..times {
        let began = Instant::now();
        publish(n).await?;
        let heard = timeout(Duration::from_secs(10), heard.recv()).await?.ok_or("the end")?;
        found.push((heard - began).as_secs_f64() * 1e6);
    }
    found.sort_by(f64::total_cmp);
    Ok(found)
}

/// The least that an append which is heard can be.
const SMALLEST: &str = "redis.call('XADD', KEYS[1], 'MAXLEN', '~', '1000', '*', 'd', ARGV[1])
                        return redis.call('PUBLISH', KEYS[1], ARGV[1])";

/// As many appends as go, so many under way at a time, each of those on a key or a channel of its own.
fn appends(threads: &Threads, rounds: usize) -> Result<()> {
    const TOTAL: usize = 40_000;
    println!(
        "\n| appends, thousands a second (µs of Redis's processor each) | bare XADD | script | comet | comet / XADD |"
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    let script = redis::Script::new(SMALLEST);
    for (persistence, args) in [
        ("no persistence", &[][..]),
        ("AOF everysec", &["--appendonly", "yes"]),
        ("AOF always", &["--appendonly", "yes", "--appendfsync", "always"]),
    ] {
        for flight in [16, 64] {
            let server = Server::start(args)?;
            let (mut bare, mut scripted, mut comet) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..rounds {
                let mut connection = threads.here.block_on(server.connection())?;
                bare.push(threads.here.block_on(rate(&server, TOTAL, flight, async |lane, n| {
                    let key = format!("bare:{round}:{lane}");
                    let mut command = cmd("XADD");
                    command.arg(key).arg(&["MAXLEN", "~", "1000", "*", "d"]).arg(message(n));
                    command.exec_async(&mut connection.clone()).await.map_err(Into::into)
                }))?);
                scripted.push(threads.here.block_on(rate(&server, TOTAL, flight, async |lane, n| {
                    let mut script = script.key(format!("script:{round}:{lane}"));
                    script.arg(message(n)).invoke_async::<()>(&mut connection.clone()).await.map_err(Into::into)
                }))?);
                let node = threads.here.block_on(server.node())?;
                comet.push(threads.here.block_on(rate(&server, TOTAL, flight, async |lane, n| {
                    node.channel(format!("/{round}/{lane}")).publish(message(n)).await.map(drop).map_err(Into::into)
                }))?);
                threads.here.block_on(cmd("FLUSHALL").exec_async(&mut connection))?;
            }
            let middle = |found: &[(f64, f64)]| {
                (median(found.iter().map(|one| one.0).collect()), median(found.iter().map(|one| one.1).collect()))
            };
            let [(a, b), (c, d), (e, f)] = [middle(&bare), middle(&scripted), middle(&comet)];
            println!(
                "| {persistence}, {flight} under way | {a:.0} ({b:.1}) | {c:.0} ({d:.1}) | {e:.0} ({f:.1}) | {:.2} |",
                e / a
            );
        }
    }
    Ok(())
}

/// Thousands a second, and microseconds of Redis's processor each.
async fn rate(
    server: &Server,
    total: usize,
    flight: usize,
    append: impl AsyncFn(usize, usize) -> Result<()>,
) -> Result<(f64, f64)> {
    // What is made with the first append is there already.
    for lane in 0..flight {
        append(lane, 0).await?;
    }
    let (before, began) = (server.cpu()?, Instant::now());
    let append = &append;
    try_join_all((0..flight).map(|lane| async move {
        for n in 0..total / flight {
            append(lane, n).await?;
        }
        Result::Ok(())
    }))
    .await?;
    Ok((total as f64 / began.elapsed().as_secs_f64() / 1e3, (server.cpu()? - before) / total as f64))
}

/// What polls of channels that have nothing new ask of Redis.
fn polls(threads: &Threads) -> Result<()> {
    const CHANNELS: usize = 100;
    const POLLS: usize = 100_000;
    let server = Server::start(&[])?;
    threads.here.block_on(async {
        let node = server.node().await?;
        let mut offsets = Vec::new();
        for channel in 0..CHANNELS {
            offsets.push(node.channel(name(channel)).publish("first").await?);
        }
        let poll = async |n: usize| {
            let channel = n % CHANNELS;
            let mut subscription = node.channel(name(channel)).subscribe_after(offsets[channel]);
            subscription.recv().now_or_never().is_none()
        };
        for n in 0..CHANNELS {
            poll(n).await;
        }
        sleep(Duration::from_secs(1)).await;
        let mut connection = server.connection().await?;
        let (before, began) = (server.commands(&mut connection).await?, Instant::now());
        for n in 0..POLLS {
            check(poll(n).await, n)?;
        }
        let (after, seconds) = (server.commands(&mut connection).await?, began.elapsed().as_secs_f64());
        println!(
            "\n{POLLS} polls of {CHANNELS} channels with nothing new took {seconds:.2} s and these commands of Redis:"
        );
        for (command, count) in after {
            let more = count - before.get(&command).copied().unwrap_or_default();
            if more > 0 {
                println!("  {command} {more}");
            }
        }
        Ok(())
    })
}

/// What a channel with a message of 128 bytes takes, in Redis and in a node on which one waits for it.
fn memory(threads: &Threads) -> Result<()> {
    const CHANNELS: usize = 20_000;
    println!("\n| bytes a channel | one append | 10 appends | subscribed to |");
    println!("| --- | ---: | ---: | ---: |");
    for node_max_bytes in ["4096", "512"] {
        let server = Server::start(&["--stream-node-max-bytes", node_max_bytes])?;
        let node = threads.here.block_on(server.node())?;
        threads.here.block_on(async {
            let mut connection = server.connection().await?;
            let mut used = vec![server.memory(&mut connection).await?];
            for appends in [1, 9] {
                fill(&node, CHANNELS, appends).await?;
                used.push(server.memory(&mut connection).await?);
            }
            let mut feed = server.client()?.get_async_pubsub().await?;
            for channel in 0..CHANNELS {
                feed.subscribe(format!("comet:{}", name(channel))).await?;
            }
            used.push(server.memory(&mut connection).await?);
            let each = |from: usize, to: usize| (used[to] - used[from]) / CHANNELS as f64;
            println!(
                "| Redis, stream-node-max-bytes {node_max_bytes} | {:.0} | {:.0} | + {:.0} |",
                each(0, 1),
                each(0, 2),
                each(2, 3)
            );
            Result::Ok(())
        })?;
    }
    Ok(())
}

/// Channels that are waited on, while Redis is killed and started again.
fn restart(threads: &Threads, channels: usize) -> Result<()> {
    let mut server = Server::start(&["--appendonly", "yes"])?;
    let here = threads.here.block_on(server.node())?;
    let there = threads.there.block_on(server.node())?;
    let mut connection = threads.here.block_on(server.connection())?;
    threads.here.block_on(fill(&here, channels, 1))?;
    let looks = threads.here.block_on(server.looks(&mut connection))?;
    let resident = memory_of(std::process::id())?;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let began = Instant::now();
    for channel in 0..channels {
        let (heard, mut subscription) = (heard.clone(), there.channel(name(channel)).subscribe());
        threads.there.spawn(async move {
            while let Ok(Some(message)) = subscription.recv().await {
                let _ = heard.send((channel, message.json::<String>().ok()));
            }
        });
    }
    let subscribed = threads.here.block_on(server.live(&mut connection, channels, looks))?;
    println!("\n{channels} channels, each waited on:");
    println!("  at first, live after {:.2} s, subscribed to after {subscribed:.2}", began.elapsed().as_secs_f64());
    let each = (memory_of(std::process::id())? - resident) / channels as f64;
    println!("  in the node, {each:.0} B a channel with its task that waits");

    // So that what was written is on the disk.
    std::thread::sleep(Duration::from_secs(2));
    let killed = Instant::now();
    server.kill_and_start()?;
    let back = Instant::now();
    connection = threads.here.block_on(server.connection())?;
    let subscribed_again = threads.here.block_on(server.live(&mut connection, channels, 0))?;
    println!("  Redis took {:.2} s to start and load", (back - killed).as_secs_f64());
    println!(
        "  live again {:.2} s after that, subscribed to after {subscribed_again:.2}",
        back.elapsed().as_secs_f64()
    );
    sleep_a_little(threads);
    println!("  messages heard meanwhile, none of them new: {}", std::iter::from_fn(|| hears.try_recv().ok()).count());

    let began = Instant::now();
    threads.here.block_on(async {
        until(|| here.health().is_ok()).await?;
        fill(&here, channels, 1).await?;
        let mut seen = vec![0; channels];
        for _ in 0..channels {
            let (channel, message) = timeout(Duration::from_secs(10), hears.recv()).await?.ok_or("the end")?;
            check(message == Some(format!("{:0126}", 0)), channel)?;
            seen[channel] += 1;
        }
        check(seen.iter().all(|seen| *seen == 1), 0)
    })?;
    println!("  a message to each then reached all, once, within {:.2} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// So many appends to each of so many channels.
async fn fill(node: &Comet, channels: usize, appends: usize) -> Result<()> {
    try_join_all((0..64).map(|lane| async move {
        for channel in (lane..channels).step_by(64) {
            for n in 0..appends {
                node.channel(name(channel)).publish(message(n)).await?;
            }
        }
        Result::Ok(())
    }))
    .await
    .map(drop)
}

fn name(channel: usize) -> String {
    format!("/events/{channel}")
}

/// A redis-server on a free port, in a directory that goes with it.
struct Server {
    process: Child,
    port: u16,
    directory: PathBuf,
    args: Vec<String>,
}

impl Server {
    fn start(args: &[&str]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = env::temp_dir().join(format!("tower-comet-bench-{port}"));
        fs::create_dir_all(&directory)?;
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = spawn(port, &directory, &args)?;
        let server = Self { process, port, directory, args };
        server.answers()?;
        Ok(server)
    }

    fn kill_and_start(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(self.port, &self.directory, &self.args)?;
        self.answers()
    }

    /// Waits until it answers, and has loaded what it kept.
    fn answers(&self) -> Result<()> {
        let client = self.client()?;
        for _ in 0..10_000 {
            if client.get_connection().and_then(|mut c| cmd("PING").exec(&mut c)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err("redis-server does not answer".into())
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn client(&self) -> Result<redis::Client> {
        Ok(redis::Client::open(self.url())?)
    }

    async fn connection(&self) -> Result<MultiplexedConnection> {
        Ok(self.client()?.get_multiplexed_async_connection().await?)
    }

    async fn node(&self) -> Result<Comet> {
        let comet = Comet::builder()
            .max_channels(1_000_000)
            .max_waits(1_000_000)
            .max_history(1 << 32)
            .retention(Retention::default())
            .redis(&self.url())
            .connect()
            .await?;
        comet.health()?;
        Ok(comet)
    }

    /// Processor time so far, in microseconds.
    fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) * 10_000.0)
    }

    async fn memory(&self, connection: &mut MultiplexedConnection) -> Result<f64> {
        let info: redis::InfoDict = cmd("INFO").arg("memory").query_async(connection).await?;
        Ok(info.get("used_memory").ok_or("no used_memory")?)
    }

    /// How often each command was called.
    async fn commands(&self, connection: &mut MultiplexedConnection) -> Result<HashMap<String, u64>> {
        let info: String = cmd("INFO").arg("commandstats").query_async(connection).await?;
        let lines = info.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
        lines
            .map(|(command, rest)| Ok((command.to_owned(), rest.split(',').next().unwrap_or_default().parse()?)))
            .collect()
    }

    /// How often a script has looked at a channel: it asks once what it is, or how far.
    async fn looks(&self, connection: &mut MultiplexedConnection) -> Result<u64> {
        let commands = self.commands(connection).await?;
        Ok(["hget", "hmget"].iter().filter_map(|command| commands.get(*command)).sum())
    }

    /// Waits until all channels are subscribed to, which took so many seconds, and each was looked at, beyond so many before.
    async fn live(&self, connection: &mut MultiplexedConnection, channels: usize, before: u64) -> Result<f64> {
        let (began, mut after) = (Instant::now(), None);
        for _ in 0..60_000 {
            let info: redis::InfoDict = cmd("INFO").arg("stats").query_async(connection).await?;
            let subscribed: usize = info.get("pubsub_channels").unwrap_or_default();
            if subscribed >= channels {
                after.get_or_insert_with(|| began.elapsed().as_secs_f64());
            }
            if subscribed >= channels && self.looks(connection).await? >= before + channels as u64 {
                return Ok(after.unwrap_or_default());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err("they did not become live".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn spawn(port: u16, directory: &PathBuf, args: &[String]) -> Result<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]).args(args);
    command.arg("--dir").arg(directory).stdout(Stdio::null());
    command.spawn().map_err(|error| format!("redis-server: {error}; on Debian, apt install redis-server").into())
}

fn memory_of(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse::<f64>()? * 1024.0)
}

fn sleep_a_little(threads: &Threads) {
    threads.here.block_on(async { sleep(Duration::from_millis(300)).await });
}

async fn until(mut happened: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..30_000 {
        if happened() {
            return Ok(());
        }
        sleep(Duration::from_millis(2)).await;
    }
    Err("it did not happen".into())
}

fn check(right: bool, n: usize) -> Result<()> {
    if right { Ok(()) } else { Err(format!("message {n} was lost or doubled, or is another").into()) }
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
