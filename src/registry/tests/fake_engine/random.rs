//! Whatever happens between an engine and a node, a client that follows the rules sees every append once and in order, or is told.

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{cell::RefCell, collections::BTreeSet};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u64),
    /// Nothing is heard from here on, or all of it again.
    Mute(bool),
    Late,
    Hear,
    Hold,
    GoOn,
    Cut,
    Down(bool),
    /// Subscribing takes so many milliseconds.
    Delay(u64),
    Pass(u64),
    /// A client polls, or is given up.
    Poll,
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u64).prop_map(Step::Append),
        1 => (250..400u64).prop_map(Step::Append),
        1 => any::<bool>().prop_map(Step::Mute),
        1 => Just(Step::Late),
        2 => Just(Step::Hear),
        1 => Just(Step::Hold),
        2 => Just(Step::GoOn),
        1 => Just(Step::Cut),
        1 => any::<bool>().prop_map(Step::Down),
        1 => prop_oneof![Just(0), 1..2_000u64, Just(3_600_000)].prop_map(Step::Delay),
        3 => (0..2_500u64).prop_map(Step::Pass),
        1 => (10_000..25_000u64).prop_map(Step::Pass),
        8 => Just(Step::Poll),
        2 => Just(Step::Leave),
    ]
}

/// A client, who is nobody's guest for long.
struct Client {
    seen: Vec<u64>,
    place: Start,
    wait: Option<Pin<Box<Wait>>>,
}

impl Client {
    async fn poll(&mut self, node: &Node) -> &'static str {
        if self.wait.is_none() {
            let read = timeout(Duration::ZERO, node.registry.read_and_follow(NAME, self.place, ALL)).await;
            match read {
                Ok(Ok(reading)) if reading.is_empty() => {
                    let existed = reading.content_type.is_some();
                    self.wait = Some(Box::pin(Wait::new(node.registry.clone(), NAME, reading.next, existed)));
                }
                Ok(Ok(reading)) => {
                    self.take(reading);
                    return "a read";
                }
                Ok(Err(crate::Error::Unreachable)) => return "a refusal",
                Ok(Err(error)) => panic!("{error:?}"),
                Err(_) => return "a read that is given up",
            }
        }
        let wait = self.wait.as_mut().expect("there is one by now");
        match poll(wait) {
            Poll::Ready(WaitEnd::Read(reading)) => {
                self.take(reading);
                self.wait = None;
                "a wait"
            }
            Poll::Ready(ended) => panic!("{ended:?}"),
            Poll::Pending => "parked",
        }
    }

    fn take(&mut self, reading: Reading) {
        self.place = Start::After(reading.next);
        self.seen.extend(numbers(reading));
    }
}

#[test]
fn every_append_is_seen_once_and_in_order_whatever_is_heard() {
    let came_true = RefCell::new(BTreeSet::new());
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let done = runner.run(&vec(step(), 1..60), |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let node = Node::without(None).await;
            let mut client = Client { seen: Vec::new(), place: Start::Earliest, wait: None };
            let mut appended = 0;
            for step in steps {
                match step {
                    Step::Append(many) => {
                        for _ in 0..many {
                            node.engine.append(appended);
                            appended += 1;
                        }
                    }
                    Step::Mute(mute) => node.engine.world().mute = mute,
                    Step::Late => node.engine.world().be_late(),
                    Step::Hear => node.engine.world().hear(),
                    Step::Hold => node.engine.world().hold_reads = true,
                    Step::GoOn => node.engine.go_on(),
                    Step::Cut => node.engine.world().cut(),
                    Step::Down(down) => node.engine.world().down = down,
                    Step::Delay(millis) => node.engine.world().subscribing_takes = Duration::from_millis(millis),
                    Step::Pass(millis) => sleep(Duration::from_millis(millis)).await,
                    Step::Poll => {
                        let what = client.poll(&node).await;
                        came_true.borrow_mut().insert(what);
                    }
                    Step::Leave => client.wait = None,
                }
                settle().await;
            }
            // Everything is well again, and within the time of a check and of a probe nothing is missing.
            {
                let mut world = node.engine.world();
                (world.mute, world.down) = (false, false);
                world.subscribing_takes = Duration::ZERO;
                world.hear();
            }
            node.engine.go_on();
            for _ in 0..30 {
                seconds(1).await;
                for _ in 0..3 {
                    client.poll(&node).await;
                    settle().await;
                }
            }
            assert!(client.seen.iter().copied().eq(0..appended), "{:?} of {appended}", client.seen);
        });
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    for what in ["a read", "a wait", "parked", "a refusal", "a read that is given up"] {
        assert!(came_true.borrow().contains(what), "never: {what}");
    }
}
