//! The number of waits that each client has on a route: [`Route::max_waits_per`](crate::Route::max_waits_per).

use http::request::Parts;
use pin_project_lite::pin_project;
use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::{BuildHasher, Hash, RandomState},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{Pending, Target, hook::catch, long_poll::LongPoll, problem::Problem};
use crate::sync::{Mutex, assert_unlocked};

/// Identifies a client by two hashes of the key that the route's key function returned, each with a random seed of its
/// own.
///
/// The key itself is dropped before any lock is taken, because its `Hash`, `Eq` and `Drop` are foreign code. Two keys
/// with the same 128 bits share one count. Among a million clients the probability of that is 1 in 10^26. The seeds are
/// random, so no client can choose a key that has the same bits as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client([u64; 2]);

/// The key function or the key panicked.
struct Panicked;

/// The waits of each client of one route.
pub(crate) struct Clients {
    most: usize,
    identify: Box<dyn Fn(&Parts) -> Result<Option<Client>, Panicked> + Send + Sync>,
    /// Clients that have at least one wait.
    waits: Mutex<HashMap<Client, usize>>,
}

impl Clients {
    pub(crate) fn new<K: Hash>(most: usize, key: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static) -> Self {
        let seeds = [RandomState::new(), RandomState::new()];
        let identify = move |parts: &Parts| {
            let Some(key) = catch(|| key(parts)).ok_or(Panicked)? else { return Ok(None) };
            let client = catch(|| Client([seeds[0].hash_one(&key), seeds[1].hash_one(&key)]));
            // Dropped in a `catch` of its own: a key that panics in `Hash` and again in `Drop` would abort the process
            // otherwise.
            catch(|| drop(key)).ok_or(Panicked)?;
            client.ok_or(Panicked).map(Some)
        };
        Self { most, identify: Box::new(identify), waits: Mutex::default() }
    }

    /// Counts one more wait of a client, unless it has reached the limit.
    fn admit(self: &Arc<Self>, client: Client) -> Result<Admitted, Problem> {
        let mut waits = self.waits.lock();
        let count = waits.get(&client).copied().unwrap_or(0);
        if count >= self.most {
            drop(waits);
            return Err(Problem::waits_per_client());
        }
        waits.insert(client, count + 1);
        drop(waits);
        Ok(Admitted { clients: Arc::clone(self), client })
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("most", &self.most).finish_non_exhaustive()
    }
}

/// A wait that counts for its client, until this is dropped.
pub(super) struct Admitted {
    clients: Arc<Clients>,
    client: Client,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut waits = self.clients.waits.lock();
        let Some(count) = waits.get_mut(&self.client) else { return };
        *count -= 1;
        if *count == 0 {
            waits.remove(&self.client);
            // Frees the memory once most clients have left.
            if waits.capacity() > 64 && waits.len() < waits.capacity() / 8 {
                let twice = waits.len() * 2;
                waits.shrink_to(twice);
            }
        }
    }
}

impl Target {
    /// Returns the client that sends a request, if the route limits the waits of each client and the key function
    /// returns a key.
    pub(super) fn client(&self, parts: &Parts) -> Result<Option<Client>, Problem> {
        let Some(clients) = &self.route.clients else { return Ok(None) };
        assert_unlocked();
        (clients.identify)(parts).map_err(|Panicked| {
            self.registry.usage().count_hook_panic();
            Problem::key_panicked()
        })
    }

    /// Counts an event stream for its client.
    pub(super) fn admit(&self, client: Option<Client>) -> Result<Option<Box<Admitted>>, Problem> {
        let (Some(clients), Some(client)) = (&self.route.clients, client) else { return Ok(None) };
        clients.admit(client).map(|admitted| Some(Box::new(admitted)))
    }
}

/// Turns a poll into a reply. The poll counts for its client once it parks.
pub(super) fn counted(wait: LongPoll, client: Option<Client>) -> Pending {
    match (&wait.route().clients, client) {
        (Some(clients), Some(client)) => {
            let count = Count::Identified { clients: Arc::clone(clients), client };
            Pending::Later(Box::pin(Counted { wait, count }))
        }
        _ => Pending::Wait(Box::pin(wait)),
    }
}

pin_project! {
    /// A poll of an identified client.
    struct Counted {
        #[pin]
        wait: LongPoll,
        count: Count,
    }
}

enum Count {
    /// Not counted: the poll has not parked.
    Identified { clients: Arc<Clients>, client: Client },
    /// Counted: the poll has parked.
    Admitted { _admitted: Admitted },
}

impl Future for Counted {
    type Output = Pending;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Pending> {
        let mut this = self.project();
        let polled = this.wait.as_mut().poll(cx);
        if let (Poll::Pending, Count::Identified { clients, client }) = (&polled, &*this.count) {
            match clients.admit(*client) {
                Ok(admitted) => *this.count = Count::Admitted { _admitted: admitted },
                Err(problem) => return Poll::Ready(Pending::from(this.wait.refuse(problem))),
            }
        }
        Poll::Ready(Pending::from(ready!(polled)))
    }
}

#[cfg(all(test, not(comet_loom)))]
mod tests {
    use super::*;

    fn admit(clients: &Arc<Clients>, key: u32) -> Option<Admitted> {
        clients.admit(Client([key.into(), 0])).ok()
    }

    #[test]
    fn only_clients_with_waits_are_stored_and_memory_is_freed() {
        let clients = Arc::new(Clients::new(2, |_: &Parts| None::<u32>));
        let mut parked: Vec<_> = (0..20_000).map(|nth| admit(&clients, nth / 2).expect("two of each")).collect();
        assert!(admit(&clients, 7).is_none());
        assert_eq!(clients.waits.lock().len(), 10_000);
        parked.truncate(3);
        assert_eq!(clients.waits.lock().len(), 2);
        assert!(clients.waits.lock().capacity() < 200, "{}", clients.waits.lock().capacity());
        assert!(admit(&clients, 0).is_none());
        assert!(admit(&clients, 1).is_some());
        drop(parked);
        assert!(clients.waits.lock().is_empty());
    }
}
