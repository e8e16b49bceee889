//! How much history a channel keeps.

use std::time::Duration;

/// How much history a channel keeps for those who come back: so many appends, so many bytes, so long,
/// whichever is reached first.
///
/// The default is 1,000 appends, 1 MiB and 1 hour. What is let go is never skipped in silence: a
/// reader who asks for it is told (410 over HTTP, [`Error::Gone`](crate::Error::Gone) in process).
/// The newest append is kept whatever its size; only age removes it.
///
/// ```
/// use std::time::Duration;
/// use tower_comet::{Comet, Retention};
///
/// let comet = Comet::builder()
///     .retention(Retention::default().appends(2).age(Duration::from_secs(600)))
///     .build();
/// let news = comet.channel("/news");
/// for n in 1..=3 {
///     news.publish(&n).wait()?;
/// }
/// assert_eq!(news.history(), 2);
/// # Ok::<(), tower_comet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub(crate) appends: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Option<Duration>,
}

impl Retention {
    /// Keeps everything: no bound on number, bytes or age.
    ///
    /// What all channels hold together is still bounded by
    /// [`CometBuilder::max_history`](crate::CometBuilder::max_history), beyond which appends are refused; and
    /// as nothing ages, channels are not forgotten before they are deleted.
    #[must_use]
    pub const fn unbounded() -> Self {
        Self { appends: usize::MAX, bytes: usize::MAX, age: None }
    }

    /// Keeps at most this many appends. Default 1,000, at least 1.
    #[must_use]
    pub fn appends(mut self, appends: usize) -> Self {
        self.appends = appends.max(1);
        self
    }

    /// Keeps at most this many bytes of messages. Default 1 MiB. A single append that is larger is kept by itself.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Keeps an append at most this long. Default 1 hour.
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { appends: 1_000, bytes: 1024 * 1024, age: Some(Duration::from_secs(3_600)) }
    }
}
