//! The table of routes: which route a path belongs to, and which channel.

use http::Method;
use matchit::{Match, Router};
use std::{borrow::Cow, fmt, sync::Arc};

use crate::{
    Comet, Route, RouteError, RoutePattern,
    gate::Gate,
    name::{self, NameError, Slashes, Template},
    registry::Registry,
    route_pattern::RouteParams,
};

/// And whose channels they lead to: a service is cloned for each request, and this is all that is counted then.
#[derive(Clone)]
pub(crate) struct Routes {
    comet: Comet,
    router: Router<usize>,
    mounted: Vec<Mounted>,
    /// The reader of every route that names none. `Shut` until the layer has one.
    reader: Gate,
    /// The first route without a reader, its own or the layer's.
    incomplete: Option<usize>,
    public_url: Option<String>,
}

#[derive(Clone)]
struct Mounted {
    pattern: String,
    route: Arc<Route>,
    template: Option<Template>,
    /// Whether the route uses the layer's reader.
    inherits: bool,
}

impl Routes {
    pub(crate) fn new(comet: Comet) -> Self {
        Self {
            comet,
            router: Router::new(),
            mounted: Vec::new(),
            reader: Gate::Shut,
            incomplete: None,
            public_url: None,
        }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        self.comet.registry()
    }

    pub(crate) fn insert(&mut self, pattern: &str, mut route: Route) -> Result<(), RouteError> {
        if !pattern.starts_with('/') {
            return Err(RouteError::new(pattern, "a pattern begins with `/`"));
        }
        if let Some(old) = pattern.split('/').find(|segment| segment.starts_with([':', '*', '<'])) {
            let name = old.trim_matches([':', '*', '<', '>']);
            let now = if old.starts_with('*') { format!("{{*{name}}}") } else { format!("{{{name}}}") };
            return Err(RouteError::new(pattern, format!("`{old}` is the syntax of other routers: write `{now}`")));
        }
        let template = match &route.channel {
            None => None,
            Some(text) => Some(Template::parse(text, pattern).map_err(|reason| RouteError::new(pattern, reason))?),
        };
        let nth = self.mounted.len();
        self.router.insert(pattern, nth).map_err(|error| RouteError::new(pattern, error))?;
        let inherits = route.read.is_shut();
        if inherits {
            route.read = self.reader.clone();
        }
        if route.read.is_shut() {
            self.incomplete.get_or_insert(nth);
        }
        route.pattern = Some(RoutePattern::new(pattern));
        self.mounted.push(Mounted { pattern: pattern.to_owned(), route: Arc::new(route), template, inherits });
        Ok(())
    }

    /// Sets the reader of every route that names none, those that are added later included.
    pub(crate) fn set_reader(&mut self, reader: Gate) {
        for mounted in self.mounted.iter_mut().filter(|mounted| mounted.inherits) {
            Arc::make_mut(&mut mounted.route).read = reader.clone();
        }
        self.reader = reader;
        self.incomplete = None;
    }

    /// Returns an error if a route has no reader. In constant time: axum may apply a layer once for each request.
    pub(crate) fn check(&self) -> Result<(), RouteError> {
        match self.incomplete {
            None => Ok(()),
            Some(nth) => Err(RouteError::new(
                &self.mounted[nth].pattern,
                "the route does not name its readers: call `read_by(hook)` or `read_by_anyone()` on the `Route`, or \
                 `read_by(hook)` on the `CometLayer` for all routes that name none",
            )),
        }
    }

    pub(crate) fn set_public_url(&mut self, url: &str) {
        self.public_url = Some(url.trim_end_matches('/').to_owned());
    }

    /// Where the routes are as the outside sees them, without a slash at the end.
    pub(crate) fn public_url(&self) -> Option<&str> {
        self.public_url.as_deref()
    }

    /// The route of a request, if it is ours, and the name of the channel that it is about.
    ///
    /// The path is matched as it came, like the host's router does. Nothing is decoded or allocated before.
    pub(crate) fn find(&self, path: &str, method: &Method) -> Option<(&Arc<Route>, Result<String, NameError>)> {
        let found = self.router.at(path).ok()?;
        let mounted = &self.mounted[*found.value];
        if !mounted.route.serves(method) {
            return None;
        }
        Some((&mounted.route, self.name(path, &found)))
    }

    /// The parameters of a path that [`find`](Self::find) has found a name for.
    pub(crate) fn params(&self, path: &str) -> RouteParams {
        let found = self.router.at(path).ok();
        let params = found.map(|found| RouteParams::decode(&found.params, self.mounted[*found.value].route.slashes));
        params.and_then(Result::ok).unwrap_or_default()
    }

    /// The route of a path, whatever methods it serves.
    pub(crate) fn at(&self, path: &str) -> Option<&Route> {
        Some(&self.mounted[*self.router.at(path).ok()?.value].route)
    }

    /// The first segment below a strict route's fixed part is kept for subscriptions, which are not served.
    pub(crate) fn is_reserved(&self, path: &str) -> bool {
        self.router.at(path).is_ok_and(|found| {
            let mounted = &self.mounted[*found.value];
            let fixed = mounted.pattern.split('{').next().unwrap_or_default();
            let first = path.strip_prefix(fixed).and_then(|rest| rest.split('/').next()).unwrap_or_default();
            name::decode(first, Slashes::Refused).is_ok_and(|first| first == "__ds")
        })
    }

    fn name(&self, path: &str, found: &Match<'_, '_, &usize>) -> Result<String, NameError> {
        let mounted = &self.mounted[*found.value];
        let slashes = mounted.route.slashes;
        let decoded = name::decode(path, slashes)?;
        // `/rooms/42/%70rivate` must not come in by an open `/rooms/{*rest}` and be read as the
        // guarded `/rooms/{room}/private`: both spellings have to belong to one route.
        if let Cow::Owned(decoded) = &decoded {
            if self.router.at(decoded).is_ok_and(|other| other.value != found.value) {
                return Err(NameError::Ambiguous);
            }
        }
        match &mounted.template {
            None => Ok(decoded.into_owned()),
            Some(template) => template.fill(&found.params, slashes),
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.mounted.iter().map(|mounted| (&mounted.pattern, &mounted.route))).finish()
    }
}
