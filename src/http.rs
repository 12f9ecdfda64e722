//! The one HTTP listener. Its own accept loop, because `axum::serve` starts no timers: there a client that sends half a header
//! holds its connection for ever.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::core::counters::LinkCounters;
use crate::core::pace::{Pace, Rate};
use crate::core::places::{Place, PlaceLimits, Places, household};

/// What keeps us from taking connections does so ten times a second.
const WARNINGS: Rate = Rate::new(Duration::from_secs(60), 1);

#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Connections at one time, WebSockets among them.
    pub max_connections: usize,
    /// The same for one IPv4 address or one IPv6 network of 64 bits. Loopback has no such limit, since all who come through a
    /// proxy on this machine come from there. A browser takes up to seven; a household behind one address has several browsers.
    pub max_per_address: usize,
    /// For a request's header, counted from the end of the request before it: idle connections end so, too.
    pub header_timeout: Duration,
    /// A client that takes none of its answer for so long is cut off.
    pub write_timeout: Duration,
    /// Bytes of a request's body, for all who do not set their own limit.
    pub max_body: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_per_address: 16,
            header_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            max_body: 64 * 1024,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is another program using the port, or does this machine not have the address?")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Takes the port, so that a taken one is noticed before anything else starts; port 0 takes any free one.
///
/// # Errors
/// The port or address cannot be had.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until `stopping`; then takes no new connections, and those that are open end with the answer they are at.
///
/// Every connection is a task on `tasks`. Handlers find the caller's address as `ConnectInfo<IpAddr>`, an IPv6 one cut to its
/// network of 64 bits, which is what one household has.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: HttpSettings,
    counters: Arc<LinkCounters>,
    tasks: TaskTracker,
    stopping: CancellationToken,
) {
    let limits = PlaceLimits {
        all: settings.max_connections,
        per_address: settings.max_per_address,
        counts_loopback: false, // a proxy on this machine speaks for everybody
    };
    let level = Arc::clone(&counters);
    let places = Places::new(limits, Arc::new(move |taken| level.connections.set(taken as u64)));
    let router = router.layer(DefaultBodyLimit::max(settings.max_body));
    let mut warnings = Pace::new(clock());
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, caller) = match accepted {
            Ok((stream, address)) => (stream, household(address.ip())),
            Err(error) => {
                let now = clock();
                if warnings.wait(WARNINGS, now).is_zero() {
                    warnings.count(WARNINGS, now);
                    warn!(%error, "cannot take a connection");
                }
                sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely: let some be closed
                continue;
            }
        };
        let Some(place) = places.take(caller) else {
            counters.connections_refused.add(1);
            turn_away(&stream);
            continue;
        };
        let connection =
            Connection { stream, _place: place, stalled: None, settings: settings.clone(), counters: counters.clone() };
        tasks.spawn(serve_connection(connection, caller, router.clone(), stopping.clone()));
    }
}

#[expect(clippy::disallowed_methods, reason = "the listener is an edge: warnings are counted when they come")]
fn clock() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

async fn serve_connection(connection: Connection, caller: IpAddr, router: Router, stopping: CancellationToken) {
    let _ = connection.stream.set_nodelay(true);
    let (header_timeout, counters) = (connection.settings.header_timeout, Arc::clone(&connection.counters));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(caller));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(64)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        if error.is_timeout() {
            counters.connections_cut.add(1);
        }
        debug!(%error, "a connection ended early");
    }
}

/// Best effort: the socket's buffer is empty, so this fits or the client is gone.
fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    );
}

/// A TCP connection with its place, which it holds until it is closed, whether as HTTP or as the WebSocket it became.
struct Connection {
    stream: TcpStream,
    _place: Place,
    /// Runs while the other end takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    settings: HttpSettings,
    counters: Arc<LinkCounters>,
}

impl Connection {
    /// Passes a write's outcome on, or ends the connection when the other end has taken nothing for too long.
    fn watch<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let write_timeout = self.settings.write_timeout;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout))).as_mut().poll(cx));
        self.counters.connections_cut.add(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other end takes nothing")))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
