//! The load over HTTP/1.1: one thread, one epoll, written by hand, so that it costs little and the same for every server.

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use std::{
    borrow::Cow,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::Result;

/// A little fewer than a listener's queue holds.
const AT_ONCE: usize = 500;

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

/// A request.
#[derive(Clone)]
pub struct Request {
    pub method: &'static str,
    pub target: String,
    /// Header lines beside `Host` and `Content-Length`, each with its line end.
    pub fields: String,
    pub body: String,
}

impl Request {
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: "GET", target: target.into(), fields: String::new(), body: String::new() }
    }

    pub fn json(method: &'static str, target: impl Into<String>, body: impl Into<String>) -> Self {
        let fields = "content-type: application/json\r\n".to_owned();
        Self { method, target: target.into(), fields, body: body.into() }
    }
}

/// An answer, for as long as it is looked at.
pub struct Answer<'a> {
    pub connection: usize,
    head: &'a str,
    pub body: Cow<'a, [u8]>,
}

impl<'a> Answer<'a> {
    pub fn status(&self) -> &'a str {
        self.head.get(9..12).unwrap_or_default()
    }

    pub fn field(&self, name: &str) -> Option<&'a str> {
        field(self.head, name)
    }
}

impl Client {
    pub fn connect(addr: SocketAddr, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut client = Self {
            poll,
            events: Events::with_capacity(1024),
            connections: Vec::with_capacity(count),
            buffer: vec![0; 64 * 1024],
        };
        for token in 0..count {
            let stream = std::net::TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            client.poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            client.connections.push(Connection { stream, partial: Vec::new() });
            if token % AT_ONCE == AT_ONCE - 1 {
                // Answered, with whatever, when those before it have been accepted.
                client.send(token, &Request::get("/plain"))?;
                client.answers(1, |_, _| Ok(None))?;
            }
        }
        Ok(client)
    }

    pub fn send(&mut self, connection: usize, request: &Request) -> Result<()> {
        let Request { method, target, fields, body } = request;
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: bench\r\n{fields}");
        if *method != "GET" {
            text += &format!("content-length: {}\r\n", body.len());
        }
        text += "\r\n";
        text += body;
        // A request is far smaller than a socket's buffer.
        self.connections[connection].stream.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Sends one request, waits for its answer, and takes something out of that.
    pub fn ask_for<T>(&mut self, connection: usize, request: &Request, take: impl Fn(&Answer<'_>) -> T) -> Result<T> {
        self.send(connection, request)?;
        let mut taken = None;
        self.answers(1, |answer, _| {
            if !answer.status().starts_with('2') {
                return Err(format!("{}: {}", request.target, answer.head).into());
            }
            taken = Some(take(answer));
            Ok(None)
        })?;
        taken.ok_or_else(|| "no answer".into())
    }

    pub fn ask(&mut self, connection: usize, request: &Request) -> Result<()> {
        self.ask_for(connection, request, |_| ())
    }

    /// Waits for so many answers. What `each` returns is sent as the connection's next request.
    pub fn answers(
        &mut self,
        mut count: usize,
        mut each: impl FnMut(&Answer<'_>, Instant) -> Result<Option<Request>>,
    ) -> Result<()> {
        self.arrivals(|client, token, now| {
            let mut partial = std::mem::take(&mut client.connections[token].partial);
            let mut next = None;
            if let Some((answer, length)) = parse(token, &partial) {
                next = each(&answer, now)?;
                drop(answer);
                partial.drain(..length);
                count -= 1;
            }
            client.connections[token].partial = partial;
            if let Some(request) = next {
                client.send(token, &request)?;
            }
            Ok(count == 0)
        })
    }

    /// Waits for so many events of event streams. Each is to contain a text.
    pub fn events(&mut self, mut count: usize, text: &str, mut each: impl FnMut(Instant)) -> Result<()> {
        self.arrivals(|client, token, now| {
            let partial = &mut client.connections[token].partial;
            // The end of an event and of the chunk that it came in.
            if partial.ends_with(b"\n\n\r\n") {
                let held = std::str::from_utf8(partial)?;
                if held.matches(text).count() != 1 {
                    return Err(format!("{text:?} is not there once: {held:?}").into());
                }
                partial.clear();
                each(now);
                count -= 1;
            }
            Ok(count == 0)
        })
    }

    /// Reads what arrives, until `each` says that it is enough.
    fn arrivals(&mut self, mut each: impl FnMut(&mut Self, usize, Instant) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            self.poll.poll(&mut self.events, Some(Duration::from_secs(1)))?;
            let now = Instant::now();
            if now > deadline {
                return Err("answers that were waited for did not come".into());
            }
            let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
            for token in ready {
                let connection = &mut self.connections[token];
                let before = connection.partial.len();
                loop {
                    match connection.stream.read(&mut self.buffer) {
                        Ok(0) => return Err("the server closed a connection".into()),
                        Ok(read) => connection.partial.extend_from_slice(&self.buffer[..read]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                    if connection.partial.len() - before < self.buffer.len() {
                        // A short read is all of it; what comes later is another event.
                        break;
                    }
                }
                if each(self, token, now)? {
                    return Ok(());
                }
            }
        }
    }
}

/// The first answer in what has arrived, and its length, if it is whole.
fn parse(connection: usize, bytes: &[u8]) -> Option<(Answer<'_>, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let (body, length) = if field(head, "transfer-encoding").is_some() {
        dechunk(&bytes[end..])?
    } else {
        let length: usize = field(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        (bytes.get(end..end + length)?.into(), length)
    };
    Some((Answer { connection, head, body }, end + length))
}

fn dechunk(bytes: &[u8]) -> Option<(Cow<'_, [u8]>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = bytes[at..].windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        at += line + 2;
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
        if size == 0 {
            return Some((body.into(), at));
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
