//! What a request is addressed to, and whether it may do there what it asks for.

use http::{Method, request::Parts};
use std::sync::Arc;

use super::{caller::Caller, hook::decide, problem::Problem};
use crate::{
    Access, Action, Denied, Route,
    gate::Gate,
    name::{ClientPath, NameError},
    registry::Registry,
    routes::Routes,
};

/// What a request is addressed to.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) registry: Arc<Registry>,
    pub(super) routes: Arc<Routes>,
    pub(super) route: Arc<Route>,
    pub(super) name: String,
    pub(super) caller: Caller,
    /// A `HEAD`, whose answer has no body, whatever it says.
    pub(super) head: bool,
}

impl Target {
    /// Returns the channel that a `GET` of a path would read, as a target, and the head of a request for it: this request's
    /// head with the path in its URI. `None` if the path is on no route.
    ///
    /// The name and the URI are made from the same bytes: a hook that decides by one of them decides about the other.
    pub(super) fn at(&self, path: &ClientPath, mut parts: Parts) -> Option<Result<(Self, Parts), NameError>> {
        let (route, name) = self.routes.find(path.as_str(), &Method::GET)?;
        parts.uri = path.clone().beside(parts.uri);
        Some(name.map(|name| (Self { route: Arc::clone(route), name, ..self.clone() }, parts)))
    }

    /// Whether anyone may.
    pub(super) fn is_open(&self, actions: &[Action]) -> bool {
        actions.iter().all(|action| matches!(self.route.gate(*action), Gate::Open))
    }

    /// Asks whoever decides, about each action. All have to be granted, and on one channel.
    pub(super) async fn ask(mut self, actions: &[Action], parts: Parts) -> Result<Self, Problem> {
        let mut granted: Option<String> = None;
        let params = self.routes.params(parts.uri.path());
        for &action in actions {
            let ask = match self.route.gate(action) {
                Gate::Open => continue,
                Gate::Shut => return Err(Denied::forbidden().into()),
                Gate::Ask(ask) => ask.clone(),
            };
            let access = Access::new(self.name.clone(), action, parts.clone())
                .on_route(self.route.pattern.clone(), params.clone());
            let grant = decide(self.registry.usage(), &*ask, access, self.route.hook_timeout).await?;
            let channel = grant.into_channel().unwrap_or_else(|| self.name.clone());
            if granted.as_ref().is_some_and(|granted| *granted != channel) {
                return Err(Denied::forbidden().into());
            }
            if self.registry.check_name(&channel).is_err() {
                self.registry.usage().count_invalid_grant();
                return Err(Problem::invalid_grant());
            }
            granted = Some(channel);
        }
        self.name = granted.unwrap_or(self.name);
        Ok(self)
    }
}
