//! `PUT`: create, also as a fork (Durable Streams, sections 5.1 and 4.2).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts, uri::Authority};
use http_body::Body;
use std::error::Error as StdError;

use super::{
    LayerResponse, Target, append, headers, lifetime,
    problem::Problem,
    query::parse_offset,
    receive::{expects_continue, receive},
    response,
};
use crate::{
    Action, Error, Offset, OutcomeKind,
    engine::{MediaType, Start, same_type},
    name::ClientPath,
    registry::{Created, Creation, Fork, Lifetime},
};

/// What a `PUT` says about itself.
pub(super) struct CreateRequest {
    content_type: Option<MediaType>,
    lifetime: Option<Lifetime>,
    closed: bool,
    fork: Option<ForkRequest>,
    authority: Option<Authority>,
    path: String,
    expects_continue: bool,
}

struct ForkRequest {
    /// A path on this server. Whether it names a channel is not known yet.
    source: ClientPath,
    at: Option<Start>,
    part: u64,
}

impl CreateRequest {
    pub(super) fn parse(parts: &Parts) -> Result<Self, Problem> {
        let map = &parts.headers;
        // Nothing has looked at the header before: it is a client's text, and goes into `Location`.
        let host = map.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        Ok(Self {
            content_type: append::content_type(map)?,
            lifetime: lifetime::parse(map)?,
            closed: headers::is_true(map, &headers::CLOSED),
            fork: ForkRequest::parse(map)?,
            authority: parts.uri.authority().cloned().or(host),
            path: parts.uri.path().to_owned(),
            expects_continue: expects_continue(map),
        })
    }
}

impl ForkRequest {
    fn parse(map: &HeaderMap) -> Result<Option<Self>, Problem> {
        let bad = |detail| Problem::bad_request("fork", detail);
        let text = |name| Some(map.get(name)?.to_str().map_err(|_| bad("a fork's header is not ASCII")));
        let (source, at) = (text(headers::FORKED_FROM).transpose()?, text(headers::FORK_OFFSET).transpose()?);
        let part = text(headers::FORK_SUB_OFFSET).transpose()?;
        let Some(source) = source else {
            return if part.is_some() || at.is_some() {
                Err(bad("a fork says what it is of: `Stream-Forked-From`"))
            } else {
                Ok(None)
            };
        };
        let source = ClientPath::parse(source).ok_or_else(|| {
            bad("`Stream-Forked-From` must be a path with one leading `/`, without a query and a fragment")
        })?;
        let part = part.map_or(Some(0), |part| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| digits)
        });
        let part = part.ok_or_else(|| bad("`Stream-Fork-Sub-Offset` is a number"))?;
        if part > 0 && at.is_none() {
            return Err(bad("`Stream-Fork-Sub-Offset` counts from a `Stream-Fork-Offset`"));
        }
        let at = at.map(parse_offset).transpose()?.map(|at| match at {
            // All zeros are the start of any log, here, and not only of one that was unknown when they were given out.
            Start::After(Offset::ZERO) => Start::AbsentTail,
            at => at,
        });
        Ok(Some(Self { source, at, part }))
    }
}

pub(super) async fn answer<B>(
    target: &Target,
    asked: Result<CreateRequest, Problem>,
    parts: Parts,
    body: B,
) -> Result<LayerResponse, Problem>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let source = match &asked {
        Ok(CreateRequest { fork: Some(fork), .. }) => Some(source(target, &fork.source, parts).await?),
        _ => None,
    };
    let expects_continue = asked.as_ref().is_ok_and(|asked| asked.expects_continue);
    // The memory of the body counts as received until the channel is created: from then on it is history.
    let (content, _received) = receive(target, expects_continue, body).await?;
    create(target, asked?, source, content).await
}

/// Returns the name of the channel to fork, by the route of its path, if that route lets this request read it. A denied
/// source and an absent one have the same answer. A hook that fails has another, which tells the client nothing: the
/// hook is called whether the source exists or not.
async fn source(target: &Target, path: &ClientPath, parts: Parts) -> Result<String, Problem> {
    let (source, parts) = target
        .at(path, parts)
        .ok_or_else(Problem::not_found)?
        .map_err(|error| Problem::bad_request("fork", format!("`Stream-Forked-From` names no channel: {error}")))?;
    match source.ask(&[Action::Read], parts).await {
        Ok(source) => Ok(source.name),
        Err(problem) if problem.is_server_error() => Err(problem),
        Err(_) => Err(Problem::not_found()),
    }
}

async fn create(
    target: &Target,
    asked: CreateRequest,
    source: Option<String>,
    content: Bytes,
) -> Result<LayerResponse, Problem> {
    let default = &target.route.content_type;
    let content_type = asked.content_type.or_else(|| source.is_none().then(|| default.clone()));
    if let Some(content_type) = content_type.as_ref().filter(|said| !target.route.strict && !same_type(said, default)) {
        let detail = format!("channels of this route hold {default}, not {content_type}");
        return Err(Problem::new(StatusCode::CONFLICT, "content-type", detail));
    }
    let fork =
        asked.fork.zip(source).map(|(fork, source)| Fork { source: source.into(), at: fork.at, part: fork.part });
    let creation = Creation { content_type, lifetime: asked.lifetime, closed: asked.closed, content, fork };
    let done = target.registry.create(&target.name, &creation).await.map_err(|error| match error {
        // A path that is there in another way, or was: the protocol has one answer for both.
        Error::Gone(_) => Error::Conflict.into(),
        error => Problem::from(error).repeatable(),
    })?;
    Ok(created(target, &done, asked.authority.as_ref(), &asked.path))
}

fn created(target: &Target, created: &Created, authority: Option<&Authority>, path: &str) -> LayerResponse {
    let status = if created.fresh { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = response::empty(status, OutcomeKind::Created);
    let map = answer.headers_mut();
    response::of_type(map, &created.content_type);
    map.insert(headers::NEXT_OFFSET, headers::offset(created.tail));
    if created.closed {
        map.insert(headers::CLOSED, headers::TRUE);
    }
    if created.fresh {
        let location = match (target.routes.public_url(), authority) {
            (Some(url), _) => format!("{url}{path}"),
            (None, Some(authority)) => format!("http://{authority}{path}"),
            (None, None) => path.to_owned(),
        };
        if let Ok(location) = HeaderValue::try_from(location) {
            map.insert(header::LOCATION, location);
        }
    }
    answer
}
