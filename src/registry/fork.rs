//! Creating a channel as a fork of another, in memory (Durable Streams, section 4.2).
//!
//! A source may have very many entries, so a fork copies them in many steps, and other tasks run in between. What can
//! refuse the fork is checked first. What is copied counts as history at once. The log is complete before it is moved
//! into its channel.

use super::{
    Created, Creation, Fork, Lifetime, Local, Registry,
    create::content_type,
    entry::{ForkParent, ForkSource, StoredLog},
    slice::{sliced, yield_now},
    waiters::WakeList,
};
use crate::{
    Error, Limit,
    engine::{Copied, DroppedEntries, ForkCopy, Start, cost_of},
};

impl Registry {
    /// Creates a channel as a fork. One that exists must have been created in the same way.
    ///
    /// # Cancel safety
    ///
    /// If this future is dropped before the channel exists, nothing is left of it. After that, it wakes the remaining
    /// waiters.
    pub(super) async fn fork_local(
        &self,
        _: Local,
        name: &str,
        creation: &Creation,
        fork: &Fork,
    ) -> Result<Created, Error> {
        self.check_name(name)?;
        // Compared before the source is looked up, which may not exist any more.
        if let Some(found) = self.created(name, creation)? {
            return Ok(found);
        }
        let mut source = self.source(fork)?;
        let content_type = content_type(creation, Some(&source.branch.content_type))?;
        let content = self.initial(creation, &content_type)?;
        let lifetime = creation.lifetime.unwrap_or(source.lifetime);

        let mut reserved = Reserved::nothing(self);
        if let Err(error) = self.inherit(&mut source, content.as_ref().map_or(0, cost_of), &mut reserved).await {
            drop_sliced(source.branch.into()).await;
            return Err(error);
        }
        let mut log = source.branch.into_log(self.now());
        let appends = content.is_some();
        if let Some(content) = content {
            while log.trim_for(&content, &self.retention) {
                yield_now().await;
            }
            let weight = log.weigh(&content, &self.retention);
            log.append(content, &weight, self.now());
            reserved.shrink_history(log.cost());
        }
        if creation.closed {
            log.close(self.now());
        }
        debug_assert_eq!(log.cost(), reserved.history, "what is reserved is what the log costs");

        let (mut log, mut counted) = (Some(log), source.counted);
        let made = self.change(name, |entry, state, now| {
            if let Some(kept) = self.living(entry, state, now) {
                // Created since the check above.
                kept.compare(creation)?;
                return Ok((kept.describe(), WakeList::nobody()));
            }
            let log = log.take().expect("no attempt fails after it has taken the log");
            let kept = state.log.insert(StoredLog::new(log, false, now));
            reserved.keep();
            kept.explicit = true;
            kept.set_lifetime(lifetime, self.end_of(lifetime));
            kept.rare_mut().fork_source = counted.keep().map(|parent| ForkSource { fork: fork.clone(), parent });
            self.queue(kept, entry, now);
            if appends {
                self.usage.count_append();
            }
            let created = Created { fresh: true, ..kept.describe() };
            Ok((created, state.waiters.take()))
        });
        if let Some(unused) = log {
            drop_sliced(unused.into()).await;
        }
        let (created, mut woken) = made?;
        sliced(|slice| self.finish(&mut woken, slice)).await;
        Ok(created)
    }

    /// Looks up the source of a fork, which counts the fork from now on. Copies nothing.
    fn source(&self, fork: &Fork) -> Result<SourceCursor<'_>, Error> {
        let entry = self.map.find(&fork.source).ok_or(Error::Unknown)?;
        let source = self.visit(&entry, |state| {
            let at = self.resolve(&entry, state, fork.at.unwrap_or(Start::Tail));
            let kept = self.living(&entry, state, self.now()).ok_or(Error::Unknown)?;
            if kept.is_tombstoned() {
                return Err(Error::Conflict);
            }
            let branch = kept.log.branch(at, fork.part)?;
            kept.rare_mut().forks += 1;
            let parent = ForkParent { entry: entry.clone(), log: kept.log.id() };
            Ok((branch, kept.rare().lifetime, parent))
        });
        let (branch, lifetime, parent) = source?;
        let counted = Counted { registry: self, parent: Some(parent) };
        Ok(SourceCursor { branch: branch.cut()?, lifetime, counted })
    }

    /// Copies all entries that a fork inherits, after it has reserved a channel, and the history that these entries and
    /// `content` take.
    async fn inherit(
        &self,
        source: &mut SourceCursor<'_>,
        content: usize,
        reserved: &mut Reserved<'_>,
    ) -> Result<(), Error> {
        let now = self.now();
        let SourceCursor { branch, counted, .. } = source;
        self.retried(now, || self.with_room(now, || reserved.admit_channel().map_err(Error::Full))).await?;
        let known = branch.cost() + content;
        self.retried(now, || self.with_room(now, || reserved.admit_history(known).map_err(Error::Full))).await?;
        branch.allocate(usize::from(content > 0));
        while branch.missing() > 0 {
            let copied = self.retried(now, || self.with_room(now, || self.copy(counted, branch, reserved))).await?;
            match copied {
                Copied::All => {}
                Copied::Some => yield_now().await,
                Copied::Trimmed(floor) => {
                    drop_sliced(branch.restart(floor)?).await;
                    reserved.shrink_history(branch.cost() + content);
                    branch.allocate(usize::from(content > 0));
                }
            }
        }
        Ok(())
    }

    /// Copies some of the entries that are missing, and reserves the history that they take.
    ///
    /// If the source was deleted meanwhile, this returns the error of a request that comes now: the source is a
    /// tombstone, because it counts this fork. If it was forgotten, its name may belong to another log already.
    fn copy(&self, counted: &Counted<'_>, branch: &mut ForkCopy, reserved: &mut Reserved<'_>) -> Result<Copied, Error> {
        let Some(ForkParent { entry, log }) = &counted.parent else { return Ok(Copied::All) };
        self.visit(entry, |state| {
            let kept = self.living(entry, state, self.now()).filter(|kept| kept.log.id() == *log);
            let kept = kept.ok_or(Error::Unknown)?;
            if kept.is_tombstoned() {
                return Err(Error::Conflict);
            }
            kept.log.copy(branch, |bytes| reserved.admit_history(bytes)).map_err(Error::Full)
        })
    }
}

/// Drops entries that are not needed, in slices.
async fn drop_sliced(mut remains: DroppedEntries) {
    sliced(|slice| {
        while !remains.drop_some() {
            if slice.step() {
                return false;
            }
        }
        true
    })
    .await;
}

/// The source of a fork that is being made.
struct SourceCursor<'a> {
    branch: ForkCopy,
    lifetime: Lifetime,
    counted: Counted<'a>,
}

/// The count of a fork at its source. Subtracted on drop, unless the fork was made.
struct Counted<'a> {
    registry: &'a Registry,
    parent: Option<ForkParent>,
}

impl Counted<'_> {
    fn keep(&mut self) -> Option<ForkParent> {
        self.parent.take()
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            self.registry.settle_one(parent);
        }
    }
}

/// The channel and the history that a fork takes up while it is being made. Given back on drop, unless it was made.
struct Reserved<'a> {
    registry: &'a Registry,
    channel: bool,
    history: usize,
}

impl<'a> Reserved<'a> {
    fn nothing(registry: &'a Registry) -> Self {
        Self { registry, channel: false, history: 0 }
    }

    fn admit_channel(&mut self) -> Result<(), Limit> {
        self.registry.usage.admit_channel(&self.registry.limits)?;
        self.channel = true;
        Ok(())
    }

    fn admit_history(&mut self, adds: usize) -> Result<(), Limit> {
        self.registry.usage.admit_history(&self.registry.limits, adds, 0)?;
        self.history += adds;
        Ok(())
    }

    /// Gives back what exceeds `needed`.
    fn shrink_history(&mut self, needed: usize) {
        self.registry.usage.leave_history(self.history - needed);
        self.history = needed;
    }

    /// Leaves what is reserved to the log that was made.
    fn keep(&mut self) {
        (self.channel, self.history) = (false, 0);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.channel {
            self.registry.usage.leave_channel(false);
        }
        self.registry.usage.leave_history(self.history);
    }
}
