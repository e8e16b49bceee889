//! What can go wrong in process. Over HTTP each has its status.

use std::{error, fmt};

use crate::Gone;

type Source = Box<dyn error::Error + Send + Sync>;

/// Why a channel did not do what it was asked to. Nothing was changed, save where [`Uncertain`](Self::Uncertain) says so.
///
/// What another library says of it is its [`source`](error::Error::source), and not in its text.
///
/// ```
/// use tower_comet::{Comet, Error};
///
/// let comet = Comet::builder().max_append(10).build();
/// match comet.channel("/news").publish("more than ten bytes").wait() {
///     Err(Error::TooLarge { limit }) => assert_eq!(limit, 10),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name is empty, longer than [`CometBuilder::max_name`](crate::CometBuilder::max_name), or has a control character
    /// in it, or it begins with `/` and has an empty, `.` or `..` segment, which no path of a request decodes to.
    Name,
    /// An argument is invalid, or two contradict each other. The text says which.
    Invalid(&'static str),
    /// The pattern is not one: see [`Comet::broadcast`](crate::Comet::broadcast).
    Pattern(Source),
    /// The content type is malformed. It must match the grammar of RFC 9110, section 8.3.1, such as `text/plain; charset=utf-8`,
    /// with at most 255 bytes, all ASCII, and without a comma: browsers split a content type at commas and would run
    /// `text/plain;,text/html` as a page of the application's origin.
    MediaType,
    /// The value could not be written as JSON, or as JSON that every reader can parse: see [`Json`](Self::Json).
    Encode(Source),
    /// The channel holds JSON, and the bytes are not JSON or are JSON that common parsers cannot read. A reader whose parser fails
    /// on one message loses the whole response. Refused: a message nested deeper than 126, lone surrogates (`"\ud83d"`), numbers
    /// too large for a double (`1e999`), numbers of more than 1,000 digits.
    Json(Source),
    /// There is nothing to append: no bytes, or an empty JSON array.
    Empty,
    /// The append is larger than [`CometBuilder::max_append`](crate::CometBuilder::max_append), in bytes.
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The channel holds another type of content.
    ContentType {
        /// The type that the channel holds.
        holds: String,
    },
    /// The channel is closed: its stream has ended.
    Closed,
    /// The channel exists and was created in another way; or the source of a fork was deleted, and its name is taken
    /// because it has other forks.
    Conflict,
    /// A `Stream-Seq` is not above the last one.
    Sequence,
    /// A producer of a later epoch has taken over.
    Fenced {
        /// The epoch that is current.
        epoch: u64,
    },
    /// A producer's message is missing before this one.
    Gap {
        /// The number that comes next.
        expected: u64,
        /// The number that was sent.
        received: u64,
    },
    /// The channel does not know the producer, and may have forgotten it: it was one of more than
    /// [`max_producers`](crate::CometBuilder::max_producers), the channel was deleted or has expired and was created
    /// anew, or the log was lost. So earlier messages of the producer may be missing. Compare what the channel holds with
    /// what was sent, then begin at 0 in a higher epoch, with [`Channel::producer`](crate::Channel::producer).
    UnknownProducer {
        /// The epoch of the message that was refused.
        epoch: u64,
    },
    /// A new epoch of a producer begins at 0.
    Epoch,
    /// The place to fork at is not there.
    ForkOffset,
    /// Nobody has made the channel.
    Unknown,
    /// The offset to read from is no place to resume from any more.
    Gone(Gone),
    /// A limit is reached; what was acknowledged before stays.
    Full(Limit),
    /// [`Comet::close`](crate::Comet::close) was called: nothing waits any more.
    ShutDown,
    /// The logs are kept elsewhere, and out of reach: nothing was done.
    Unreachable,
    /// Redis refused the operation, or this version cannot read its answer. Nothing was changed. The
    /// [`source`](error::Error::source) has Redis's own words, such as `WRONGTYPE …` for a key that another program has written, or
    /// `NOPERM …` for a missing permission. Other channels are not affected.
    Engine(Source),
    /// Another version of this library has written the channel's keys in Redis, in a layout that this version does not read. Nothing
    /// was changed. Other channels are not affected. Update this process.
    Layout {
        /// The layout of the channel's keys.
        found: u64,
        /// The layout that this version reads and writes.
        supported: u64,
    },
    /// The connection to Redis was lost before the answer, or the operation failed in Redis after it had begun to change the channel:
    /// it may have been done. To repeat it is safe for a [`Producer`](crate::Producer), and for operations that change nothing the
    /// second time.
    Uncertain,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str(
                "invalid channel name: it is empty, too long, has a control character, or begins with `/` and has an empty, `.` or `..` segment",
            ),
            Self::Invalid(what) => f.write_str(what),
            Self::Pattern(_) => f.write_str("the pattern is malformed"),
            Self::MediaType => f.write_str("the content type is malformed: it must be `type/subtype` with optional parameters, and without a comma"),
            Self::Encode(_) => f.write_str("the value could not be written as JSON"),
            Self::Json(_) => f.write_str("the bytes are not JSON"),
            Self::Empty => f.write_str("there is nothing to append"),
            Self::TooLarge { limit } => write!(f, "the append is larger than {limit} bytes"),
            Self::ContentType { holds } => write!(f, "the channel holds {holds}"),
            Self::Closed => f.write_str("the channel is closed"),
            Self::Conflict => f.write_str("the channel is there already, created in another way"),
            Self::Sequence => f.write_str("the sequence is not above the last one"),
            Self::Fenced { epoch } => write!(f, "a producer of epoch {epoch} has taken over"),
            Self::Gap { expected, received } => {
                write!(f, "the producer's message {expected} is missing before {received}")
            }
            Self::UnknownProducer { epoch } => write!(
                f,
                "the channel does not know the producer, and may have forgotten it: check which messages are there, then begin at 0 in an epoch above {epoch}"
            ),
            Self::Epoch => f.write_str("a producer's new epoch begins at 0"),
            Self::ForkOffset => f.write_str("the place to fork at is not there"),
            Self::Unknown => f.write_str("there is no such channel"),
            Self::Gone(gone) => fmt::Display::fmt(gone, f),
            Self::Full(limit) => fmt::Display::fmt(limit, f),
            Self::ShutDown => f.write_str("nothing waits any more: the channels are shut down"),
            Self::Unreachable => f.write_str("the logs are out of reach; nothing was done"),
            Self::Engine(_) => f.write_str("Redis refused the operation; nothing was changed"),
            Self::Layout { found, supported } => {
                write!(f, "the channel's keys in Redis have layout {found}, this version reads layout {supported}")
            }
            Self::Uncertain => f.write_str("the operation failed on its way to Redis or in it; it may have been done"),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Pattern(source) | Self::Encode(source) | Self::Json(source) | Self::Engine(source) => Some(&**source),
            _ => None,
        }
    }
}

/// Which limit is reached. [`CometBuilder`](crate::CometBuilder) sets each of them but the last, which belongs to a
/// route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// On the bytes of history that all channels hold together.
    History,
    /// On the memory of Redis, its `maxmemory`.
    Memory,
    /// On the bytes of all request bodies that are being received.
    Receiving,
    /// On the bytes that responses hold and no channel keeps: see
    /// [`CometBuilder::max_reading`](crate::CometBuilder::max_reading). Only requests are refused for it.
    Reading,
    /// On the number of channels.
    Channels,
    /// On the number of requests that wait, on all channels together.
    Waits,
    /// On the number of requests that wait on one channel.
    WaitsPerChannel,
    /// On the number of requests of one client that wait on a route: see
    /// [`Route::max_waits_per`](crate::Route::max_waits_per).
    WaitsPerClient,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::History => "the limit on the history of all channels is reached",
            Self::Memory => "Redis is out of memory: its `maxmemory` is reached, and it evicts nothing",
            Self::Receiving => "the limit on the bytes of request bodies that are being received is reached",
            Self::Reading => "the limit on the bytes that responses hold is reached",
            Self::Channels => "the limit on the number of channels is reached",
            Self::Waits => "the limit on the number of waits is reached",
            Self::WaitsPerChannel => "the limit on the number of waits on this channel is reached",
            Self::WaitsPerClient => "the limit on the number of waits of this client is reached",
        })
    }
}

impl error::Error for Limit {}
