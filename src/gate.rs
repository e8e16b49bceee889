//! Who may do an action on a route: nobody, anyone, or whom a hook allows.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{Access, Authorize, Denied, Grant};

/// Who may do one action on a route.
#[derive(Clone, Default)]
pub(crate) enum Gate {
    #[default]
    Shut,
    Open,
    Ask(Arc<dyn ErasedAuthorize>),
}

impl Gate {
    pub(crate) fn ask(authorize: impl Authorize) -> Self {
        Self::Ask(Arc::new(authorize))
    }

    pub(crate) fn is_shut(&self) -> bool {
        matches!(self, Self::Shut)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shut => "shut",
            Self::Open => "open",
            Self::Ask(_) => "ask",
        })
    }
}

/// An [`Authorize`] whose type is erased.
pub(crate) trait ErasedAuthorize: Send + Sync {
    fn ask(&self, access: Access) -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + '_>>;
}

impl<A: Authorize> ErasedAuthorize for A {
    fn ask(&self, access: Access) -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + '_>> {
        Box::pin(self.authorize(access))
    }
}
