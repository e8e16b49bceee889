//! The load over HTTP/2: frames by hand (RFC 9113), many streams on each of a few connections.

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::Result;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `SETTINGS_INITIAL_WINDOW_SIZE`, and the same for the connection: nothing waits for room at this end.
const SETTINGS: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x3f, 0xff, 0xff, 0xff];
const WINDOW_UPDATE: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0xff, 0x00, 0x00];
const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];

/// `:method: GET`, `:method: POST`, `:status: 200` in HPACK's static table.
const GET: u8 = 0x82;
const POST: u8 = 0x83;
const OK: u8 = 0x88;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub struct Streams {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    next_id: u32,
    partial: Vec<u8>,
}

impl Streams {
    pub fn connect(addr: SocketAddr, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for token in 0..count {
            let mut stream = std::net::TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            stream.write_all(&[PREFACE, SETTINGS, WINDOW_UPDATE].concat())?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            connections.push(Connection { stream, next_id: 1, partial: Vec::new() });
        }
        Ok(Self { poll, events: Events::with_capacity(1024), connections, buffer: vec![0; 256 * 1024] })
    }

    /// Sends so many `GET`s on each connection.
    pub fn get(&mut self, streams: usize, target: &str) -> Result<()> {
        let mut frames = Vec::new();
        for connection in &mut self.connections {
            frames.clear();
            for _ in 0..streams {
                let id = connection.id();
                frame(&mut frames, HEADERS, END_STREAM | END_HEADERS, id, &fields(GET, target)?)?;
            }
            connection.write(&frames)?;
        }
        Ok(())
    }

    /// Sends a body on the first connection, and waits for what it is answered with.
    pub fn post(&mut self, target: &str, body: &str) -> Result<String> {
        let (mut frames, connection) = (Vec::new(), &mut self.connections[0]);
        let id = connection.id();
        frame(&mut frames, HEADERS, END_HEADERS, id, &fields(POST, target)?)?;
        frame(&mut frames, DATA, END_STREAM, id, body.as_bytes())?;
        connection.write(&frames)?;
        self.answer()
    }

    /// Asks for something on a client's only connection.
    pub fn ask(&mut self, target: &str) -> Result<String> {
        self.get(1, target)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        self.answers(1, |data| {
            answer.push_str(std::str::from_utf8(data)?);
            Ok(())
        })?;
        Ok(answer)
    }

    /// Waits for so many answers, all of them 200, and shows what they carry.
    pub fn answers(&mut self, mut count: usize, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while count > 0 {
            self.poll.poll(&mut self.events, Some(Duration::from_secs(1)))?;
            if Instant::now() > deadline {
                return Err(format!("{count} answers did not come").into());
            }
            for event in &self.events {
                let connection = &mut self.connections[event.token().0];
                connection.read(&mut self.buffer)?;
                let answered = connection.frames(&mut each)?;
                count = count.checked_sub(answered).ok_or("more answers than requests")?;
            }
        }
        Ok(())
    }
}

/// The fields of a request, indexed or literal, without compression (RFC 7541): the method, http, the path, the authority.
fn fields(method: u8, target: &str) -> Result<Vec<u8>> {
    Ok([&[method, 0x86, 0x04, u8::try_from(target.len())?], target.as_bytes(), b"\x01\x05bench"].concat())
}

fn frame(frames: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<()> {
    frames.extend_from_slice(&u32::try_from(payload.len())?.to_be_bytes()[1..]);
    frames.extend_from_slice(&[kind, flags]);
    frames.extend_from_slice(&id.to_be_bytes());
    frames.extend_from_slice(payload);
    Ok(())
}

impl Connection {
    fn id(&mut self) -> u32 {
        self.next_id += 2;
        self.next_id - 2
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                // The server reads on by itself: it has nothing to say meanwhile.
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_micros(200)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(read) => self.partial.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the whole frames, and says how many answers they end.
    fn frames(&mut self, each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let (partial, mut rest, mut ended) = (std::mem::take(&mut self.partial), 0, 0);
        while let Some(head) = partial.get(rest..rest + 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = partial.get(rest + 9..rest + 9 + length) else { break };
            rest += 9 + length;
            match kind {
                // The status comes first, but for a change of the table's size.
                HEADERS if payload.iter().find(|byte| **byte & 0xe0 != 0x20) != Some(&OK) => {
                    return Err(format!("not a 200: {payload:02x?}").into());
                }
                HEADERS if flags & END_STREAM != 0 => return Err("an answer without a body".into()),
                DATA => {
                    if length > 0 {
                        each(payload)?;
                    }
                    ended += usize::from(flags & END_STREAM != 0);
                }
                RST_STREAM | GOAWAY => return Err(format!("refused: {payload:02x?}").into()),
                SETTINGS_FRAME if flags & ACK == 0 => self.write(SETTINGS_ACK)?,
                PING if flags & ACK == 0 => self.write(&[&[0, 0, 8, PING, ACK, 0, 0, 0, 0], payload].concat())?,
                _ => {}
            }
        }
        self.partial = partial[rest..].to_vec();
        Ok(ended)
    }
}
