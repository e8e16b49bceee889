//! Diagnoses why a connection to Redis could not be opened.

use redis::{Client, ConnectionAddr, ErrorKind, RedisError, ServerErrorKind};
use std::{io, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// How long to wait for a greeting, and for a reply.
const SAYS: Duration = Duration::from_millis(100);
const ANSWERS: Duration = Duration::from_millis(200);

/// Connects once more and returns the cause, if the server's first bytes show it; otherwise returns the error.
pub(super) async fn explain(client: &Client, error: RedisError) -> RedisError {
    if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse) || error.is_connection_refusal() {
        return error;
    }
    let (host, port, encrypted) = match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) if !error.is_timeout() => (host, *port, false),
        // A plain-text server may wait for the end of a line, so a time-out is diagnosed with TLS only.
        ConnectionAddr::TcpTls { host, port, .. } => (host, *port, true),
        _ => return error,
    };
    let Ok(answer) = first_words(host, port).await else { return error };
    if encrypted {
        return match &*answer {
            [b'+' | b'-', ..] => config("this port does not speak TLS: use `redis://`", &error),
            _ => error,
        };
    }
    // A server that has too many clients, or is in protected mode, says so to each connection and closes it. The answer is often
    // lost with the connection, because the client has sent something meanwhile.
    if let Some(refusal) = answer.strip_prefix(b"-") {
        let refusal = String::from_utf8_lossy(refusal);
        let (code, detail) = refusal.trim_end().split_once(' ').unwrap_or((&refusal, ""));
        return match code {
            // The client has already reported the refused credentials.
            "NOAUTH" => error,
            "ERR" => (ErrorKind::Server(ServerErrorKind::ResponseError), "", detail.to_owned()).into(),
            _ => config(if code == "DENIED" { "DENIED" } else { "the server refuses connections" }, detail),
        };
    }
    match &*answer {
        [0x15, 0x03, ..] => config("this port speaks TLS: use `rediss://`", &error),
        [b'H', b'T', b'T', b'P', b'/', ..] => config("this is an HTTP server, and not Redis", &error),
        [b'+', ..] | [] => error,
        _ if error.kind() == ErrorKind::Parse => config("what answers is not Redis", &error),
        _ => error,
    }
}

fn config(what: &'static str, detail: impl ToString) -> RedisError {
    (ErrorKind::InvalidClientConfig, what, detail.to_string()).into()
}

/// Returns what a server says to a new connection: by itself, or to a `PING`.
async fn first_words(host: &str, port: u16) -> io::Result<Vec<u8>> {
    let stream = timeout(ANSWERS, TcpStream::connect((host, port))).await??;
    if let Ok(said) = timeout(SAYS, read(&stream)).await {
        return said;
    }
    stream.try_write(b"PING\r\n")?;
    timeout(ANSWERS, read(&stream)).await?
}

async fn read(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 512];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
