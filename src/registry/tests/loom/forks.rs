//! A fork, which looks at its source more than once, and the deletion of the source.

use ::loom::thread;
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{NAME, Registry, outcomes, registry_with_history};
use crate::{
    Error,
    registry::{Creation, Fork},
};

const FORK: &str = "/events/fork";

fn fork(registry: &Registry) -> Result<(), Error> {
    let fork = Fork { source: NAME.into(), at: None, part: 0 };
    let creation = Creation { fork: Some(fork), ..Creation::default() };
    let mut forked = pin!(registry.create(FORK, &creation));
    loop {
        if let Poll::Ready(forked) = forked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return forked.map(drop);
        }
    }
}

fn delete(registry: &Registry, name: &str) {
    registry.delete_local(registry.assert_local(), name).expect("it exists").1.wake();
}

fn a_fork_meets_the_deletion_of_its_source() -> &'static str {
    let registry = registry_with_history();
    let deletion = thread::spawn({
        let registry = Arc::clone(&registry);
        move || delete(&registry, NAME)
    });
    let forked = fork(&registry);
    deletion.join().unwrap();
    let outcome = match forked {
        Ok(()) => {
            assert_eq!(registry.peek_local(FORK).unwrap().expect("it exists").history, 1);
            delete(&registry, FORK);
            "forked"
        }
        Err(Error::Conflict) => "deleted meanwhile",
        Err(Error::Unknown) => "deleted before",
        Err(error) => panic!("{error}"),
    };
    // Another operation settles what the last one left.
    registry.step(registry.now());
    let usage = registry.usage();
    assert_eq!((usage.channels(), usage.history(), registry.names().count()), (0, 0, 0), "{outcome}");
    outcome
}

#[test]
fn a_fork_of_a_deleted_source_is_whole_or_refused_and_leaves_no_tombstone() {
    assert_eq!(outcomes(a_fork_meets_the_deletion_of_its_source), ["deleted before", "deleted meanwhile", "forked"]);
}
