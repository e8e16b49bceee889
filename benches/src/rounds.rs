//! What is measured, how often, and the table of it.

use std::{
    collections::VecDeque,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Result,
    client::Client,
    measure::{Server, median},
    server::message,
};

pub struct Plan {
    pub waiters: usize,
    pub channels: usize,
    /// Every server is started this often; the medians are reported.
    pub rounds: usize,
    pub builder: String,
    pub only: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { waiters: 9_000, channels: 1_000, rounds: 5, builder: "http1".to_owned(), only: None }
    }
}

type Figures = Vec<(&'static str, f64)>;
type Measure = fn(&Server, &Plan, bool) -> Result<Figures>;

pub fn run(plan: &Plan) -> Result<()> {
    let all: [(&str, &[&str], Measure); 5] = [
        ("fan-out", &["floor", "floor-bytes", "comet"], fan_out),
        ("spread", &["floor", "floor-bytes", "comet"], spread),
        ("read", &["floor", "floor-bytes", "comet"], read),
        ("foreign", &["plain", "comet"], foreign),
        ("memory", &["floor", "floor-bytes", "comet"], memory),
    ];
    println!("{} waiters, {} channels, {} rounds, builder {}", plan.waiters, plan.channels, plan.rounds, plan.builder);
    for (name, kinds, measure) in all {
        if plan.only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        // Interleaved: what the machine does meanwhile, it does to all.
        let mut samples: Vec<Vec<Figures>> = kinds.iter().map(|_| Vec::new()).collect();
        for _ in 0..plan.rounds {
            for (kind, samples) in kinds.iter().zip(&mut samples) {
                let server = Server::start(kind, &plan.builder)?;
                samples.push(measure(&server, plan, *kind == "comet")?);
            }
        }
        report(name, kinds, &samples);
    }
    Ok(())
}

fn report(name: &str, kinds: &[&str], samples: &[Vec<Figures>]) {
    println!("\n| {name} | {} | comet / {} |", kinds.join(" | "), kinds[kinds.len() - 2]);
    println!("| --- |{}", " ---: |".repeat(kinds.len() + 1));
    for (index, (figure, _)) in samples[0][0].iter().enumerate() {
        let medians: Vec<f64> =
            samples.iter().map(|rounds| median(rounds.iter().map(|round| round[index].1).collect())).collect();
        let cells: Vec<String> = medians.iter().map(|value| format!("{value:.2}")).collect();
        let ratio = medians[medians.len() - 1] / medians[medians.len() - 2];
        println!("| {figure} | {} | {ratio:.2} |", cells.join(" | "));
    }
}

/// All wait on one channel; one message releases all.
fn fan_out(server: &Server, plan: &Plan, checked: bool) -> Result<Figures> {
    const TIMES: usize = 8;
    let mut control = Client::connect(server.addr, 1)?;
    let mut clients = Client::connect(server.addr, plan.waiters)?;
    let mut offset = start(&mut control, 0)?;
    let (mut polling, mut delivering) = (0.0, 0.0);
    let (mut halves, mut lasts) = (Vec::new(), Vec::new());
    for n in 0..=TIMES {
        let before = server.cpu()?;
        for client in 0..plan.waiters {
            clients.send(client, "GET", &format!("/c/0?offset={offset}&live=long-poll"))?;
        }
        parked(&mut control, plan.waiters)?;
        let between = server.cpu()?;

        let began = Instant::now();
        let expected = format!("[{}]", message(n));
        control.send(0, "POST", &format!("/control/publish/0/{n}"))?;
        let mut times = Vec::with_capacity(plan.waiters);
        clients.answers(plan.waiters, |answer, now| {
            if checked && (answer.status != "200" || answer.body != expected.as_bytes()) {
                return Err(format!("message {n}: {} {:?}", answer.status, answer.body).into());
            }
            if let (true, Some(next)) = (times.is_empty(), answer.offset) {
                offset = next.to_owned();
            }
            times.push((now - began).as_secs_f64() * 1e3);
            Ok(None)
        })?;
        control.answers(1, |_, _| Ok(None))?;
        // The first time connections are new.
        if n > 0 {
            polling += between - before;
            delivering += server.cpu()? - between;
            halves.push(times[times.len() / 2]);
            lasts.push(times[times.len() - 1]);
        }
    }
    let count = (TIMES * plan.waiters) as f64;
    Ok(vec![
        ("CPU a delivery, µs", delivering / count),
        ("CPU a poll, µs", polling / count),
        ("half of them, ms", median(halves)),
        ("the last, ms", median(lasts)),
    ])
}

/// One waits on each channel; messages go round as fast as they are taken.
fn spread(server: &Server, plan: &Plan, checked: bool) -> Result<Figures> {
    const PUBLISHERS: usize = 32;
    let total = 100_000;
    let mut clients = Client::connect(server.addr, plan.channels + PUBLISHERS)?;
    let mut control = Client::connect(server.addr, 1)?;
    let mut numbers = vec![0usize; plan.channels];
    for channel in 0..plan.channels {
        let offset = start(&mut control, channel + 1)?;
        clients.send(channel, "GET", &format!("/c/{}?offset={offset}&live=long-poll", channel + 1))?;
    }
    parked(&mut control, plan.channels)?;
    let mut queue: VecDeque<usize> = (0..plan.channels).collect();
    let (before, began) = (server.cpu()?, Instant::now());
    for publisher in 0..PUBLISHERS {
        let channel = queue.pop_front().ok_or("fewer channels than publishers")?;
        clients.send(plan.channels + publisher, "POST", &format!("/control/publish/{}/0", channel + 1))?;
    }
    clients.answers(2 * total, |answer, _| {
        if answer.connection >= plan.channels {
            let channel = queue.pop_front().ok_or("the publishers are ahead of all deliveries")?;
            return Ok(Some(("POST", format!("/control/publish/{}/{}", channel + 1, numbers[channel]))));
        }
        let channel = answer.connection;
        let expected = format!("[{}]", message(numbers[channel]));
        if checked && answer.body != expected.as_bytes() {
            return Err(format!("channel {channel}: lost or doubled around {}", numbers[channel]).into());
        }
        numbers[channel] += 1;
        queue.push_back(channel);
        let offset = answer.offset.unwrap_or("now");
        Ok(Some(("GET", format!("/c/{}?offset={offset}&live=long-poll", channel + 1))))
    })?;
    let (cpu, seconds) = (server.cpu()? - before, began.elapsed().as_secs_f64());
    Ok(vec![
        ("deliveries a second, thousands", total as f64 / seconds / 1e3),
        ("CPU a delivery, µs", cpu / total as f64),
    ])
}

/// What there is, read over and over.
fn read(server: &Server, _: &Plan, _: bool) -> Result<Figures> {
    let mut control = Client::connect(server.addr, 1)?;
    control.ask(0, "POST", "/control/publish/1/0")?;
    repeated(server, "/c/1?offset=-1")
}

/// A request that is none of the layer's business.
fn foreign(server: &Server, _: &Plan, _: bool) -> Result<Figures> {
    repeated(server, "/plain")
}

fn repeated(server: &Server, target: &str) -> Result<Figures> {
    const CONNECTIONS: usize = 32;
    let total = 200_000;
    let mut clients = Client::connect(server.addr, CONNECTIONS)?;
    let before = server.cpu()?;
    for client in 0..CONNECTIONS {
        clients.send(client, "GET", target)?;
    }
    clients.answers(total, |_, _| Ok(Some(("GET", target.to_owned()))))?;
    Ok(vec![("CPU a request, µs", (server.cpu()? - before) / total as f64)])
}

/// What a parked request costs.
fn memory(server: &Server, plan: &Plan, _: bool) -> Result<Figures> {
    let mut control = Client::connect(server.addr, 1)?;
    let offset = start(&mut control, 0)?;
    let before = server.memory()?;
    let mut clients = Client::connect(server.addr, plan.waiters)?;
    for client in 0..plan.waiters {
        clients.send(client, "GET", &format!("/c/0?offset={offset}&live=long-poll"))?;
    }
    parked(&mut control, plan.waiters)?;
    Ok(vec![("resident bytes a wait", (server.memory()? - before) / plan.waiters as f64)])
}

/// Where a channel ends, so that nothing that follows is missed.
fn start(control: &mut Client, channel: usize) -> Result<String> {
    control.send(0, "GET", &format!("/c/{channel}?offset=now"))?;
    let mut offset = "now".to_owned();
    control.answers(1, |answer, _| {
        offset = answer.offset.unwrap_or("now").to_owned();
        Ok(None)
    })?;
    Ok(offset)
}

fn parked(control: &mut Client, count: usize) -> Result<()> {
    for _ in 0..10_000 {
        if control.ask(0, "GET", "/control/waiting")?.parse() == Ok(count) {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    Err(format!("{count} did not come to wait").into())
}
