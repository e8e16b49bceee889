//! What a request is addressed to, and whether it may do there what it asks for.

use http::request::Parts;
use std::sync::Arc;

use super::problem::Problem;
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
    /// A `HEAD`, whose answer has no body, whatever it says.
    pub(super) head: bool,
}

impl Target {
    /// Whether anyone may.
    pub(super) fn is_open(&self, actions: &[Action]) -> bool {
        actions.iter().all(|action| matches!(self.route.gate(*action), Gate::Open))
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
}
