//! What a request is addressed to, and whether it may do there what it asks for.

use http::request::Parts;
use std::sync::Arc;

use super::{Answer, Reply, problem::Problem};
use crate::{Access, Action, Denied, Route, access::Gate, registry::Registry, routes::Routes};

/// What a request is addressed to.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) registry: Arc<Registry>,
    pub(super) routes: Arc<Routes>,
    pub(super) route: Arc<Route>,
    pub(super) name: String,
    /// HTTP/1.1 or 1.0, where a connection can be closed by a header.
    pub(super) http1: bool,
}

impl Target {
    /// Goes on if the route lets this request do what it asks for, on the channel that it grants.
    pub(super) fn permitted(
        self,
        actions: &'static [Action],
        parts: Parts,
        go_on: impl FnOnce(Self) -> Reply + Send + 'static,
    ) -> Reply {
        if actions.iter().all(|action| matches!(self.route.gate(*action), Gate::Open)) {
            return go_on(self);
        }
        let (registry, http1) = (self.registry.clone(), self.http1);
        Reply::Later(Box::pin(async move {
            match self.ask(actions, parts).await {
                Ok(target) => go_on(target),
                Err(problem) => problem.reply(&registry, http1),
            }
        }))
    }

    /// Asks whoever decides, about each action. All have to be granted, and on one channel.
    pub(super) async fn ask(mut self, actions: &[Action], parts: Parts) -> Result<Self, Problem> {
        let mut granted: Option<String> = None;
        for &action in actions {
            let ask = match self.route.gate(action) {
                Gate::Open => continue,
                Gate::Shut => return Err(Denied::forbidden().into()),
                Gate::Ask(ask) => ask.clone(),
            };
            let grant = ask.ask(Access::new(self.name.clone(), action, parts.clone())).await?;
            let channel = grant.into_channel().unwrap_or_else(|| self.name.clone());
            if granted.as_ref().is_some_and(|granted| *granted != channel) {
                return Err(Denied::forbidden().into());
            }
            self.registry.check_name(&channel)?;
            granted = Some(channel);
        }
        self.name = granted.unwrap_or(self.name);
        Ok(self)
    }

    pub(super) fn refuse(&self, problem: impl Into<Problem>) -> Reply {
        problem.into().reply(&self.registry, self.http1)
    }

    pub(super) fn reply(&self, answer: Answer) -> Reply {
        Reply::now(&self.registry, self.http1, answer)
    }
}
