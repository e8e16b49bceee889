//! The load: one thread, many connections, HTTP/1.1 by hand. Its cost is small and the same for every server.

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::Result;

pub struct Client {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// What has arrived of an answer that is not whole.
    partial: Vec<u8>,
}

/// An answer, for as long as it is looked at.
pub struct Answer<'a> {
    pub connection: usize,
    pub status: &'a str,
    pub offset: Option<&'a str>,
    pub body: &'a [u8],
}

impl Client {
    pub fn connect(addr: SocketAddr, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for token in 0..count {
            // A little faster than a listener accepts is too fast.
            if token % 500 == 499 {
                std::thread::sleep(Duration::from_millis(5));
            }
            let stream = std::net::TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            connections.push(Connection { stream, partial: Vec::new() });
        }
        Ok(Self { poll, events: Events::with_capacity(1024), connections, buffer: vec![0; 64 * 1024] })
    }

    pub fn send(&mut self, connection: usize, method: &str, target: &str) -> Result<()> {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: bench\r\n\r\n");
        // A request is far smaller than a socket's buffer.
        self.connections[connection].stream.write_all(request.as_bytes())?;
        Ok(())
    }

    /// Sends one request and waits for its answer's body.
    pub fn ask(&mut self, connection: usize, method: &str, target: &str) -> Result<String> {
        self.send(connection, method, target)?;
        let mut body = String::new();
        self.answers(1, |answer, _| {
            body = String::from_utf8_lossy(answer.body).into_owned();
            Ok(None)
        })?;
        Ok(body)
    }

    /// Waits for so many answers. What `each` returns is sent as the connection's next request, which is then
    /// waited for no more.
    pub fn answers(
        &mut self,
        mut count: usize,
        mut each: impl FnMut(&Answer<'_>, Instant) -> Result<Option<(&'static str, String)>>,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while count > 0 {
            self.poll.poll(&mut self.events, Some(Duration::from_secs(1)))?;
            let now = Instant::now();
            if now > deadline {
                return Err(format!("{count} answers did not come").into());
            }
            let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
            for token in ready {
                let connection = &mut self.connections[token];
                loop {
                    match connection.stream.read(&mut self.buffer) {
                        Ok(0) => return Err("the server closed a connection".into()),
                        Ok(read) => connection.partial.extend_from_slice(&self.buffer[..read]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                }
                let Some((answer, length)) = parse(token, &connection.partial) else { continue };
                let next = each(&answer, now)?;
                connection.partial.drain(..length);
                if let Some((method, target)) = next {
                    self.send(token, method, &target)?;
                }
                count -= 1;
                if count == 0 {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The first answer in what has arrived, and its length, if it is whole.
fn parse(connection: usize, bytes: &[u8]) -> Option<(Answer<'_>, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let field = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let length: usize = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let body = bytes.get(end..end + length)?;
    let status = head.get(9..12)?;
    Some((Answer { connection, status, offset: field("stream-next-offset"), body }, end + length))
}
