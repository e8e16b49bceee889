//! What is done to a server over HTTP/1.1, and what is counted.

use std::{
    collections::VecDeque,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Result,
    client::{Client, Request},
    figures::{Figures, median},
    message,
    process::{Process, own_cpu},
    server::{LARGE, WAITING},
    subject::{PEERS, Subject},
};

/// All wait on one channel; one message releases all, and they come back.
pub fn fan_out(subject: &Subject, waiters: usize) -> Result<Figures> {
    let times = (80_000 / waiters).clamp(8, 60);
    let server = subject.start()?;
    let mut control = Client::connect(server.addr, 1)?;
    let mut clients = Client::connect(server.addr, waiters)?;
    let mut position = subject.begin(&mut control, 0)?;
    let (mut polling, mut delivering, mut load) = (0.0, 0.0, 0.0);
    let (mut halves, mut lasts) = (Vec::new(), Vec::new());
    for n in 0..=times {
        let (before, own) = (server.cpu()?, own_cpu()?);
        let wait = subject.wait(0, &position);
        for client in 0..waiters {
            clients.send(client, &wait)?;
        }
        parked(subject, &server, &mut control, waiters)?;
        let between = server.cpu()?;

        let text = message(n, 64);
        let began = Instant::now();
        control.send(0, &subject.publish(0, text.clone()))?;
        let mut arrivals = Vec::with_capacity(waiters);
        clients.answers(waiters, |answer, now| {
            if subject.is_checked() {
                check(answer.status(), &answer.body, &text)?;
            }
            if arrivals.is_empty() {
                position = subject.position(answer);
            }
            arrivals.push((now - began).as_secs_f64() * 1e3);
            Ok(None)
        })?;
        control.answers(1, |_, _| Ok(None))?;
        // The first time connections are new.
        if n > 0 {
            polling += between - before;
            delivering += server.cpu()? - between;
            load += own_cpu()? - own;
            halves.push(arrivals[waiters / 2]);
            lasts.push(arrivals[waiters - 1]);
        }
    }
    let count = (times * waiters) as f64;
    Ok(vec![
        ("CPU per delivery, µs", delivering / count),
        ("CPU per re-poll, µs", polling / count),
        ("half of them have it after, ms", median(halves)),
        ("the last has it after, ms", median(lasts)),
        ("the load's own CPU, µs", load / count),
    ])
}

/// One waits on each of many channels; messages go round as fast as they are taken.
pub fn spread(subject: &Subject, channels: usize, total: usize) -> Result<Figures> {
    const PUBLISHERS: usize = 32;
    let server = subject.start()?;
    let mut control = Client::connect(server.addr, 1)?;
    let mut clients = Client::connect(server.addr, channels + PUBLISHERS)?;
    let mut numbers = vec![0usize; channels];
    for channel in 0..channels {
        let position = subject.begin(&mut control, channel + 1)?;
        clients.send(channel, &subject.wait(channel + 1, &position))?;
    }
    parked(subject, &server, &mut control, channels)?;
    let mut queue: VecDeque<usize> = (0..channels).collect();
    let (before, began) = (server.cpu()?, Instant::now());
    for publisher in 0..PUBLISHERS {
        let channel = queue.pop_front().ok_or("fewer channels than publishers")?;
        clients.send(channels + publisher, &subject.publish(channel + 1, message(0, 64)))?;
    }
    clients.answers(2 * total, |answer, _| {
        if answer.connection >= channels {
            if !answer.status().starts_with('2') {
                return Err(format!("not published: {}", answer.status()).into());
            }
            let channel = queue.pop_front().ok_or("the publishers are ahead of all deliveries")?;
            return Ok(Some(subject.publish(channel + 1, message(numbers[channel], 64))));
        }
        let channel = answer.connection;
        if subject.is_checked() {
            check(answer.status(), &answer.body, &message(numbers[channel], 64))?;
        }
        numbers[channel] += 1;
        queue.push_back(channel);
        Ok(Some(subject.wait(channel + 1, &subject.position(answer))))
    })?;
    let (cpu, seconds) = (server.cpu()? - before, began.elapsed().as_secs_f64());
    Ok(vec![
        ("CPU per publish and delivery, µs", cpu / total as f64),
        ("deliveries a second, thousands", total as f64 / seconds / 1e3),
    ])
}

/// One message that is there, read over and over.
pub fn read(subject: &Subject, size: usize, total: usize) -> Result<Figures> {
    let channel = if size > 64 { LARGE } else { 1 };
    let server = subject.start()?;
    let mut control = Client::connect(server.addr, 1)?;
    subject.begin(&mut control, channel)?;
    control.ask(0, &subject.publish(channel, message(0, size)))?;
    let cpu = repeated(&server, &subject.read(channel), total, &message(0, size))?;
    Ok(vec![("CPU per read, µs", cpu)])
}

/// A request that is none of the layer's business.
pub fn foreign(subject: &Subject, total: usize) -> Result<Figures> {
    let server = subject.start()?;
    Ok(vec![("CPU per foreign request, µs", repeated(&server, &Request::get("/plain"), total, "plain")?)])
}

fn repeated(server: &Process, request: &Request, total: usize, text: &str) -> Result<f64> {
    const CONNECTIONS: usize = 32;
    let mut clients = Client::connect(server.addr, CONNECTIONS)?;
    let before = server.cpu()?;
    for client in 0..CONNECTIONS {
        clients.send(client, request)?;
    }
    clients.answers(total, |answer, _| {
        check(answer.status(), &answer.body, text)?;
        Ok(Some(request.clone()))
    })?;
    Ok((server.cpu()? - before) / total as f64)
}

/// What a parked request costs.
pub fn memory(subject: &Subject, waiters: usize) -> Result<Figures> {
    let server = subject.start()?;
    let mut control = Client::connect(server.addr, 1)?;
    let position = subject.begin(&mut control, 0)?;
    let before = server.memory()?;
    let mut clients = Client::connect(server.addr, waiters)?;
    let wait = subject.wait(0, &position);
    for client in 0..waiters {
        clients.send(client, &wait)?;
    }
    parked(subject, &server, &mut control, waiters)?;
    Ok(vec![("resident per wait, bytes", (server.memory()? - before) / waiters as f64)])
}

/// Event streams on one channel; one message goes to all.
pub fn events(subject: &Subject, streams: usize) -> Result<Figures> {
    const TIMES: usize = 8;
    let server = subject.start()?;
    let mut control = Client::connect(server.addr, 1)?;
    let mut clients = Client::connect(server.addr, streams)?;
    let position = subject.begin(&mut control, 0)?;
    let open = Request::get(format!("/c/0?offset={position}&live=sse"));
    for client in 0..streams {
        clients.send(client, &open)?;
    }
    // Each begins with where it is.
    clients.events(streams, "event: control", |_| ())?;
    server.settle()?;
    let mut lasts = Vec::new();
    let before = server.cpu()?;
    for n in 0..TIMES {
        let text = message(n, 64);
        let began = Instant::now();
        control.send(0, &subject.publish(0, text.clone()))?;
        let mut last = began;
        clients.events(streams, &text, |now| last = now)?;
        control.answers(1, |_, _| Ok(None))?;
        lasts.push((last - began).as_secs_f64() * 1e3);
    }
    let cpu = server.cpu()? - before;
    Ok(vec![("CPU per event, µs", cpu / (TIMES * streams) as f64), ("the last has it after, ms", median(lasts))])
}

/// Waits until all wait. Ours say so; of the others it is taken from their having come to rest.
fn parked(subject: &Subject, server: &Process, control: &mut Client, count: usize) -> Result<()> {
    server.settle()?;
    if PEERS.contains(&subject.kind) {
        return Ok(());
    }
    for _ in 0..10_000 {
        let waiting = control.ask_for(0, &Request::get(WAITING), |answer| answer.body.to_vec())?;
        if waiting == count.to_string().as_bytes() {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    Err(format!("{count} did not come to wait").into())
}

/// A message, alone or as the one of a JSON array.
fn check(status: &str, body: &[u8], text: &str) -> Result<()> {
    let body = std::str::from_utf8(body)?;
    let alone = body.strip_prefix('[').and_then(|body| body.strip_suffix(']')).unwrap_or(body);
    if status == "200" && (alone == text || text == "plain") || body.len() == text.len() + 2 && text.len() > 64 {
        return Ok(());
    }
    Err(format!("lost, doubled or out of order: {status} {body:?} in place of {text:?}").into())
}
