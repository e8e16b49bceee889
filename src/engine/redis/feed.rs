//! The connection that receives what is published.

use bytes::Bytes;
use futures_util::{Stream, future::try_join_all};
use redis::{
    RedisResult,
    aio::{PubSubSink, PubSubStream},
};
use std::{
    future::Future,
    pin::Pin,
    str::SplitAsciiWhitespace,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{task::unconstrained, time::timeout};

use super::{Connection, Keys, errors::cause};
use crate::{
    Error, Offset,
    engine::{Announcement, Batch, Feed, Notice, RemoteFuture},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The number of messages that one poll ignores because they are not a node's, before it lets other work continue.
const IGNORED: usize = 64;

pub(super) struct Subscriber {
    sink: PubSubSink,
    stream: PubSubStream,
    /// What all topics begin with.
    topics: String,
    own: String,
    broadcasts: String,
    node: u64,
}

impl Subscriber {
    pub(super) async fn connect(connection: &Connection, keys: &Keys) -> Result<Self, Error> {
        let client = connection.client().map_err(|error| cause(&error))?;
        let connected = timeout(CONNECT, client.get_async_pubsub()).await.map_err(|_| Error::Unreachable)?;
        let (mut sink, stream) = connected.map_err(|error| cause(&error))?.split();
        for topic in [&keys.own, &keys.broadcasts] {
            sink.subscribe(topic).await.map_err(|error| cause(&error))?;
        }
        let (topics, own, broadcasts) = (keys.topics.clone(), keys.own.clone(), keys.broadcasts.clone());
        Ok(Self { sink, stream, topics, own, broadcasts, node: keys.node })
    }

    /// Calls `request` for the topic of each channel.
    fn each<F>(&self, names: &[&str], request: impl Fn(PubSubSink, String) -> F) -> RemoteFuture<'static, ()>
    where
        F: Future<Output = RedisResult<()>> + Send + 'static,
    {
        // One request for each topic, because old versions of the client expect one confirmation for each request. All
        // are sent by the first poll: without `unconstrained`, it would stop once the task's cooperative budget is used up.
        let requests = names.iter().map(|name| request(self.sink.clone(), format!("{}{name}", self.topics)));
        let all = unconstrained(try_join_all(requests));
        Box::pin(async { all.await.map(drop).map_err(|_| Error::Unreachable) })
    }
}

impl Feed for Subscriber {
    fn subscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()> {
        self.each(names, |mut sink, topic| async move { sink.subscribe(topic).await })
    }

    fn unsubscribe(&self, names: &[&str]) -> RemoteFuture<'static, ()> {
        self.each(names, |mut sink, topic| async move { sink.unsubscribe(topic).await })
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(String, Notice)>> {
        for _ in 0..IGNORED {
            let Some(message) = ready!(Pin::new(&mut self.stream).poll_next(cx)) else { return Poll::Ready(None) };
            let topic = message.get_channel_name();
            if topic == self.broadcasts {
                let Some(broadcast) = parse_broadcast(message.get_payload_bytes(), self.node) else { continue };
                return Poll::Ready(Some((String::new(), Notice::Broadcast(broadcast))));
            }
            let Some(notice) = parse(message.get_payload_bytes(), topic == self.own) else { continue };
            let name = topic.strip_prefix(&*self.topics).unwrap_or_default().to_owned();
            return Poll::Ready(Some((name, notice)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What the scripts publish: of an append what `layout.lua` says, of all else words. What is none of theirs is passed over.
fn parse(payload: &[u8], own: bool) -> Option<Notice> {
    if let (Some(append), false) = (payload.strip_prefix(b"+"), own) {
        return parse_append(append);
    }
    let line = std::str::from_utf8(payload).ok()?;
    if own {
        return line.parse().ok().map(Notice::Probe);
    }
    let mut words = line.split_ascii_whitespace();
    match words.next()? {
        "closed" => Some(Notice::Closed { tail: offset(&mut words)? }),
        "deleted" => Some(Notice::Deleted),
        "made" => Some(Notice::Made),
        _ => None,
    }
}

fn parse_append(append: &[u8]) -> Option<Notice> {
    const HEAD: usize = 6 + 7 + 7 + 4 + 1;
    let (mut head, data) = append.split_at_checked(HEAD)?;
    let mut number = |bytes: usize| {
        let (number, rest) = head.split_at(bytes);
        head = rest;
        number.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let at = Offset::new(number(6), number(7));
    let (before, messages, flags) = (number(7), u32::try_from(number(4)).ok()?, number(1));
    let data = (flags & 2 != 0).then(|| Bytes::copy_from_slice(data));
    Some(Notice::Appended { at, before, messages, data, closed: flags & 1 != 0 })
}

/// The first byte of a broadcast: its layout.
const LAYOUT: u8 = 1;

/// Encodes a broadcast for the other nodes: the layout, the node, the broadcast's id, the number of its messages, the
/// length of the pattern, the pattern, and the data.
pub(super) fn pack_broadcast(node: u64, broadcast: &Announcement) -> Vec<u8> {
    let Announcement { id, pattern, batch } = broadcast;
    let length = u32::try_from(pattern.len()).unwrap_or(u32::MAX);
    [
        &[LAYOUT][..],
        &node.to_le_bytes(),
        &id.to_le_bytes(),
        &batch.messages.to_le_bytes(),
        &length.to_le_bytes(),
        pattern.as_bytes(),
        &batch.data,
    ]
    .concat()
}

/// Parses a broadcast. Returns `None` if the node `own` has sent it.
fn parse_broadcast(payload: &[u8], own: u64) -> Option<Announcement> {
    let (layout, rest) = payload.split_first_chunk::<1>()?;
    let (node, rest) = rest.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (messages, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (pattern, data) = rest.split_at_checked(length)?;
    let (node, id, messages) = (u64::from_le_bytes(*node), u64::from_le_bytes(*id), u32::from_le_bytes(*messages));
    let json = data.len() > 2 && data.starts_with(b"[") && data.ends_with(b"]");
    if *layout != [LAYOUT] || node == own || messages == 0 || !json {
        return None;
    }
    let pattern = std::str::from_utf8(pattern).ok()?.to_owned();
    let batch = Batch { data: Bytes::copy_from_slice(data), messages, json };
    Some(Announcement { id, pattern, batch })
}

fn offset(words: &mut SplitAsciiWhitespace<'_>) -> Option<Offset> {
    Some(Offset::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_understood_or_passed_over() {
        let head = |flags| [&b"+\x07\0\0\0\0\0\x02\x01\0\0\0\0\0\x7a\0\0\0\0\0\0\x02\0\0\0"[..], &[flags]].concat();
        let appended = parse(&[&head(2), &b"[1,\n2]"[..]].concat(), false);
        let Some(Notice::Appended { at, before: 122, messages: 2, data: Some(data), closed: false }) = appended else {
            panic!("{appended:?}");
        };
        assert_eq!((at, &data[..]), (Offset::new(7, 258), &b"[1,\n2]"[..]));
        let large = parse(&head(1), false);
        assert!(matches!(large, Some(Notice::Appended { data: None, closed: true, .. })), "{large:?}");
        assert!(matches!(parse(b"closed 7 123", false), Some(Notice::Closed { .. })));
        assert!(matches!(parse(b"made", false), Some(Notice::Made)));
        assert!(matches!(parse(b"17", true), Some(Notice::Probe(17))));
        for stray in [&b""[..], b"\n", b"+", &head(2)[..25], b"\xff", b"hello", b"closed 1"] {
            assert!(parse(stray, false).is_none(), "{stray:?}");
        }
    }

    #[test]
    fn a_broadcast_of_another_node_is_parsed_and_everything_else_on_its_topic_is_ignored() {
        let batch = Batch::value("\u{1f30a}").expect("JSON");
        let sent = Announcement { id: 7, pattern: "/rooms/{room}".to_owned(), batch };
        let payload = pack_broadcast(1, &sent);
        let received = parse_broadcast(&payload, 2).expect("a broadcast");
        assert_eq!((received.id, &*received.pattern), (sent.id, &*sent.pattern));
        assert_eq!((received.batch.data, received.batch.messages), (sent.batch.data, 1));
        assert!(parse_broadcast(&payload, 1).is_none(), "its own");

        // Cut anywhere, the closing bracket is missing.
        assert!((0..payload.len()).all(|end| parse_broadcast(&payload[..end], 2).is_none()));
        let with = |at: usize, byte: u8| {
            let mut changed = payload.clone();
            changed[at] = byte;
            parse_broadcast(&changed, 2)
        };
        let (messages, length, pattern, data) = (17, 21, 25, 38);
        assert_eq!((payload[messages], payload[pattern], payload[data]), (1, b'/', b'['));
        let ignored = [(0, 2), (messages, 0), (length, 14), (length + 3, 255), (pattern, 0xff), (data, b'{')];
        for (at, byte) in ignored {
            assert!(with(at, byte).is_none(), "{at}: {byte}");
        }
    }
}
