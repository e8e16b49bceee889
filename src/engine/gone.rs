//! Why an offset is no place to resume from.

use std::{error::Error, fmt};

use super::Offset;

/// Why an offset is no place to resume from: something after it cannot be given any more.
///
/// ```
/// use tower_comet::{Comet, Error, Reason, Retention};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let comet = Comet::builder().retention(Retention::default().appends(1)).build();
/// let news = comet.channel("/news");
/// let first = news.publish("first").await?;
/// for text in ["second", "third"] {
///     news.publish(text).await?;
/// }
/// let Err(Error::Gone(gone)) = news.subscribe_after(first).recv().await else { panic!("the second is kept?") };
/// assert_eq!((gone.reason(), gone.tail()), (Reason::Trimmed, news.tail()));
///
/// // What there is can be had from here on.
/// let third = news.subscribe_after(gone.earliest()).recv().await?;
/// assert_eq!(third.expect("a message").json::<String>()?, "third");
/// # Ok::<(), Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    reason: Reason,
    tail: Offset,
    earliest: Offset,
}

impl Gone {
    pub(crate) fn new(reason: Reason, tail: Offset, earliest: Offset) -> Self {
        Self { reason, tail, earliest }
    }

    /// What became of it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Where the channel ends now.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.tail
    }

    /// The earliest place that can be resumed from now.
    #[must_use]
    pub fn earliest(&self) -> Offset {
        self.earliest
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Unknown => "the channel of this offset is gone",
            Reason::OtherLog => "the offset is of another log: the channel was made anew since",
            Reason::Ahead => "the offset is past the end of the log",
            Reason::Trimmed => "messages after this offset are no longer kept",
            Reason::Deleted => "the channel was deleted",
        })
    }
}

impl Error for Gone {}

/// What became of an offset: see [`Gone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nobody has made the channel, or its history has aged out and it was forgotten: `gone`.
    Unknown,
    /// The offset is of another log: `other-log`.
    OtherLog,
    /// The offset is past the end of the log: `ahead`.
    Ahead,
    /// Some of what follows the offset is no longer kept: `trimmed`.
    Trimmed,
    /// The channel was deleted: `deleted`.
    Deleted,
}

impl Reason {
    /// The word for it in a 410's problem document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "gone",
            Self::OtherLog => "other-log",
            Self::Ahead => "ahead",
            Self::Trimmed => "trimmed",
            Self::Deleted => "deleted",
        }
    }
}
