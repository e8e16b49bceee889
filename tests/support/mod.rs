//! What the tests share: a layer around a service that is easily recognised, in process or on a socket.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses a part of it")]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    error::Error,
    future::{Future, Ready, ready},
    net::SocketAddr,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tower::{Service, ServiceExt};
use tower_comet::{CometLayer, Offset, OutcomeKind, Route};
use tower_layer::Layer;

pub type BoxError = Box<dyn Error + Send + Sync>;

/// An application that answers everything with 418, so that whatever it answers is known to be its.
#[derive(Clone, Copy, Debug)]
pub struct Teapot;

impl<B> Service<Request<B>> for Teapot {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = Response::new(Full::from("inner"));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        ready(Ok(response))
    }
}

/// A response, read to its end.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub outcome: Option<OutcomeKind>,
}

impl Seen {
    pub async fn read<B>(response: Response<B>) -> Result<Self, BoxError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(Into::into)?.to_bytes();
        let outcome = parts.extensions.get::<tower_comet::Outcome>().map(tower_comet::Outcome::kind);
        Ok(Self { status: parts.status, headers: parts.headers, body, outcome })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of ASCII"))
    }

    /// `Stream-Next-Offset`.
    pub fn offset(&self) -> Offset {
        self.header("stream-next-offset").expect("an offset").parse().expect("an offset of ours")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The `reason` of a problem document.
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["reason"].as_str().expect("a problem has a reason").to_owned()
    }
}

pub fn get(uri: &str) -> Request<Full<Bytes>> {
    request(Method::GET, uri)
}

pub fn request(method: Method, uri: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(uri).body(Full::default()).expect("a request")
}

pub fn post(uri: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(uri).header("content-type", content_type).body(Full::new(body.into())).expect("a request")
}

/// A request as a table writes it: `ask("PUT /streams/a", &[("stream-ttl", "10")], "content")`.
pub fn ask(line: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let (method, uri) = line.split_once(' ').expect("a method and a path");
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("a request")
}

/// A strict route that anyone may do everything on.
pub fn open_to_all() -> Route {
    Route::strict().read_by_anyone().append_by_anyone().create_by_anyone().close_by_anyone().delete_by_anyone()
}

/// Sends a request in process, through the layer around [`Teapot`].
pub async fn send(layer: &CometLayer, request: Request<Full<Bytes>>) -> Seen {
    let response = layer.layer(Teapot).oneshot(request).await.expect("infallible");
    Seen::read(response).await.expect("infallible")
}

/// Lets everything else run until it waits: what was spawned is parked after it.
///
/// Only in a current-thread runtime, as `#[tokio::test]` makes it.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Waits in real time for something that is bound to happen.
pub async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !happened() {
        assert!(started.elapsed() < Duration::from_secs(60), "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lets this process have as many connections as it may: for tests with a thousand of them.
pub fn many_connections() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        // macOS has no more than this, whatever it says.
        let current = Some(maximum.unwrap_or(10_240).min(10_240));
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("up to the maximum is allowed");
    }
}

/// Sends bytes of our own on a connection, where a client's library would not.
pub async fn write(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.expect("the server reads");
}

/// Reads from a connection up to the end of what is looked for, and gives out all of it.
///
/// Byte by byte, so that nothing of what follows is taken away.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            match stream.read_u8().await {
                Ok(byte) => read.push(byte),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    };
    let found = timeout(Duration::from_secs(60), reading).await.unwrap_or(Err("nothing more".to_owned()));
    let read = String::from_utf8(read).expect("UTF-8");
    assert_eq!(found, Ok(()), "looking for {end:?} in {read:?}");
    read
}

/// Longer than anything may take that is bound to happen.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(60), future).await.expect("soon")
}

/// A server on a free port of the loopback, with hyper-util's automatic choice of HTTP/1.1 and HTTP/2.
#[derive(Debug)]
pub struct Server {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

impl Server {
    pub async fn start<S, B>(service: S) -> Self
    where
        S: Service<Request<hyper::body::Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (stop, mut stopped) = oneshot::channel();
        let done = tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(10_000).enable_connect_protocol();
            let graceful = GracefulShutdown::new();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.expect("a connection").0,
                    _ = &mut stopped => break,
                };
                let service = TowerToHyperService::new(service.clone());
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::spawn(graceful.watch(connection.into_owned()));
            }
            drop(listener);
            graceful.shutdown().await;
        });
        Self { addr, stop: Some(stop), done }
    }

    /// Begins a graceful shutdown, and returns when every connection is done.
    pub async fn shut_down(mut self) {
        drop(self.stop.take());
        (&mut self.done).await.expect("the server ended by itself");
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("the server listens")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.done.abort();
    }
}

/// A client with one connection.
#[derive(Debug)]
pub enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub async fn http1(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn http2(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    /// Sends a request for a path; on HTTP/2 several may be under way.
    pub fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Seen, BoxError>> + Send + use<> {
        let response = match self {
            Self::Http1(sender) => {
                request.headers_mut().entry("host").or_insert(http::HeaderValue::from_static("localhost"));
                Response::Http1(sender.send_request(request))
            }
            Self::Http2(sender) => {
                let uri = format!("http://localhost{}", request.uri());
                *request.uri_mut() = uri.parse().expect("a path");
                Response::Http2(sender.send_request(request))
            }
        };
        return async move {
            let response = match response {
                Response::Http1(response) => response.await?,
                Response::Http2(response) => response.await?,
            };
            Seen::read(response).await
        };

        enum Response<A, B> {
            Http1(A),
            Http2(B),
        }
    }
}

/// Sends a request with a body of any kind in process, through the layer around [`Teapot`].
pub async fn send_with<B>(layer: &CometLayer, request: Request<B>) -> Seen
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let response = layer.layer(Teapot).oneshot(request).await.expect("infallible");
    Seen::read(response).await.expect("infallible")
}

/// Sends a request in process, and comes back when it is parked or answered.
pub async fn sent(layer: &CometLayer, request: Request<Full<Bytes>>) -> JoinHandle<Seen> {
    let layer = layer.clone();
    let sent = tokio::spawn(async move { send(&layer, request).await });
    settle().await;
    sent
}

/// A request with another header.
pub fn with<B>(name: &'static str, value: &str, mut request: Request<B>) -> Request<B> {
    request.headers_mut().append(name, value.parse().expect("a header's value"));
    request
}

/// A body that nobody may look into.
#[derive(Clone, Copy, Debug)]
pub struct Untouchable;

impl Body for Untouchable {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        panic!("the body was read")
    }
}
