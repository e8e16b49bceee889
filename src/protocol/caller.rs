//! What an answer has to know of its request.

use http::{Request, Version, header};

/// Facts about a request, in one byte: a parked request has no room for more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller(u8);

impl Caller {
    const HTTP1: u8 = 1;
    const HAS_ORIGIN: u8 = 2;

    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let http1 = if request.version() <= Version::HTTP_11 { Self::HTTP1 } else { 0 };
        let origin = if request.headers().contains_key(header::ORIGIN) { Self::HAS_ORIGIN } else { 0 };
        Self(http1 | origin)
    }

    /// HTTP/1.1 or 1.0, where a header can close a connection.
    pub(super) fn is_http1(self) -> bool {
        self.0 & Self::HTTP1 != 0
    }

    /// A page of another origin, perhaps, which reads only the headers that are exposed to it.
    pub(super) fn has_origin(self) -> bool {
        self.0 & Self::HAS_ORIGIN != 0
    }
}
