//! The facts about a request that its response depends on.

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

    /// Returns whether the request has an `Origin`. A page of another origin reads only exposed headers.
    pub(super) fn has_origin(self) -> bool {
        self.0 & Self::HAS_ORIGIN != 0
    }
}
