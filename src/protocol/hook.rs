//! Runs an [`Authorize`](crate::Authorize) hook: bounds its time and contains its panics.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

use super::problem::Problem;
use crate::{Access, Denied, Grant, gate::ErasedAuthorize, registry::Usage};

/// Returns the hook's decision. A hook that exceeds `limit` is answered with 503, a hook that panics with 500; both are
/// counted.
///
/// # Cancel safety
///
/// Dropping this future drops the hook's future. A panic of that drop is caught and counted.
pub(super) async fn decide(
    usage: &Usage,
    ask: &dyn ErasedAuthorize,
    access: Access,
    limit: Duration,
) -> Result<Grant, Problem> {
    let mut hook = Hook::call(usage, || ask.ask(access));
    let decided = timeout(limit, &mut hook).await;
    if decided.is_err() {
        usage.count_hook_timeout();
    }
    // Dropped before the client is answered: this frees what the hook owns, and a panic in the drop refuses the request
    // too.
    hook.discard();
    match decided {
        Ok(Some(decision)) => Ok(decision?),
        _ if hook.panicked => Err(Problem::hook_panicked()),
        _ => Err(Problem::hook_timeout()),
    }
}

/// The future of a hook. Panics are caught in the call that creates the future, in its `poll` and in its `drop`.
///
/// `AssertUnwindSafe` is sound here: after a panic in `poll` the future is only dropped and never polled again, so no
/// code reads state that the panic left half-changed. The layer holds no lock while it runs a hook, so no state of the
/// layer is left half-changed either. The closure is shared with later requests, which call it again; what it shares
/// with them (a mutex, an atomic) is `Sync` and has its own way to handle panics, such as poisoning. A host that
/// catches the panics of its connection tasks, as tokio does, calls the closure again in the same way.
struct Hook<'a> {
    usage: &'a Usage,
    /// `None` once it has been dropped, or if the call that should have created it panicked.
    future: Option<Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + 'a>>>,
    panicked: bool,
}

impl<'a> Hook<'a> {
    fn call(
        usage: &'a Usage,
        call: impl FnOnce() -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + 'a>>,
    ) -> Self {
        let mut hook = Self { usage, future: None, panicked: false };
        hook.future = hook.catch(call);
        hook
    }

    /// Drops the future.
    fn discard(&mut self) {
        if let Some(future) = self.future.take() {
            self.catch(|| drop(future));
        }
    }

    /// Runs the application's code; returns `None` if it panics.
    fn catch<T>(&mut self, code: impl FnOnce() -> T) -> Option<T> {
        let done = catch(code);
        // One hook counts once, even if its future panics in `poll` and again in `drop`.
        if done.is_none() && !std::mem::replace(&mut self.panicked, true) {
            self.usage.count_hook_panic();
        }
        done
    }
}

/// Resolves to the decision, or to `None` if the hook panicked.
impl Future for Hook<'_> {
    type Output = Option<Result<Grant, Denied>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(mut future) = self.future.take() else { return Poll::Ready(None) };
        // Not moved into the closure: a future that panics in `poll` would be dropped while that panic unwinds, and a
        // second panic in its drop would abort the process.
        let polled = self.catch(|| future.as_mut().poll(cx));
        self.future = Some(future);
        match polled {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(decision)) => {
                self.discard();
                Poll::Ready(Some(decision).filter(|_| !self.panicked))
            }
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Runs the application's code; returns `None` if it panics.
pub(super) fn catch<T>(code: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard_payload).ok()
}

/// Drops the payload of a panic. It may contain secrets, so it is not put into a response or a log.
fn discard_payload(payload: Box<dyn Any + Send>) {
    // The payload is the application's as well, and its drop may panic in turn. The second payload is leaked, because
    // dropping it may panic again.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        Box::leak(second);
    }
}
