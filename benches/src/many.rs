//! Many waits on few connections, over HTTP/2.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Result, figures::Figures, http2::Streams, message, process::own_cpu, server::WAITING, subject::Subject};

/// All wait on one channel, over so many connections with so many streams; messages release all.
pub fn many(subject: &Subject, connections: usize, streams: usize, times: usize) -> Result<Figures> {
    let waiters = connections * streams;
    let server = subject.start()?;
    let empty = server.memory()?;
    let mut control = Streams::connect(server.addr, 1)?;
    let mut clients = Streams::connect(server.addr, connections)?;
    let mut position = "now".to_owned();
    let (mut polling, mut delivering, mut last, mut memory, mut own) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for n in 0..times {
        let before = server.cpu()?;
        clients.get(streams, &format!("/c/0?offset={position}&live=long-poll"))?;
        server.settle()?;
        while control.ask(WAITING)? != waiters.to_string() {
            sleep(Duration::from_millis(2));
        }
        let (between, used) = (server.cpu()?, own_cpu()?);
        memory = server.memory()?.max(memory);

        let text = format!("[{}]", message(n, 64));
        let began = Instant::now();
        position = control.post("/control/publish/0", &text)?;
        clients.answers(waiters, |body| match subject.is_checked() && body != text.as_bytes() {
            true => Err(format!("lost, doubled or out of order: {:?}", String::from_utf8_lossy(body)).into()),
            false => Ok(()),
        })?;
        last = f64::max(last, began.elapsed().as_secs_f64());
        polling += between - before;
        delivering += server.cpu()? - between;
        own += own_cpu()? - used;
    }
    let count = (waiters * times) as f64;
    Ok(vec![
        ("resident per wait, bytes", (memory - empty) / waiters as f64),
        ("resident in all, GB", memory / 1e9),
        ("CPU per delivery, µs", delivering / count),
        ("CPU per poll, µs", polling / count),
        ("the last has it after, s", last),
        ("the load's own CPU, µs", own / count),
    ])
}
