//! The one HTTP listener. Its own accept loop, because `axum::serve` starts no timers: there a client that sends half a header
//! holds its connection for ever.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
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
    let places = Places::new(settings.max_connections, settings.max_per_address);
    let router = router.layer(DefaultBodyLimit::max(settings.max_body));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, caller) = match accepted {
            Ok((stream, address)) => (stream, household(address.ip())),
            Err(error) => {
                warn!(%error, "cannot take a connection");
                sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely: let some be closed
                continue;
            }
        };
        let Some(place) = places.take(caller, &counters) else {
            counters.connections_refused.add(1);
            turn_away(&stream);
            continue;
        };
        let connection =
            Connection { stream, _place: place, stalled: None, settings: settings.clone(), counters: counters.clone() };
        tasks.spawn(serve_connection(connection, caller, router.clone(), stopping.clone()));
    }
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

/// The connections there may be.
#[derive(Clone)]
struct Places {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
    max_per_address: usize,
}

/// One of them; free again when dropped.
struct Place {
    caller: IpAddr,
    places: Places,
    counters: Arc<LinkCounters>,
}

impl Places {
    fn new(max: usize, max_per_address: usize) -> Self {
        Self { taken: Arc::default(), max, max_per_address }
    }

    fn take(&self, caller: IpAddr, counters: &Arc<LinkCounters>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&caller).copied().unwrap_or(0);
        if all >= self.max || (own >= self.max_per_address && !caller.is_loopback()) {
            return None;
        }
        taken.insert(caller, own + 1);
        counters.connections.set(all as u64 + 1);
        Some(Place { caller, places: self.clone(), counters: Arc::clone(counters) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.caller);
            }
        }
        self.counters.connections.set(taken.values().sum::<usize>() as u64);
    }
}

/// What one household has: an IPv4 address, or an IPv6 network of 64 bits.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_that_has_its_share_waits_while_others_come_in() {
        let (places, counters) = (Places::new(8, 2), Arc::default());
        let first = places.take(four(1), &counters);
        let _second = places.take(four(1), &counters).unwrap();
        assert!(places.take(four(1), &counters).is_none());
        assert!(places.take(four(2), &counters).is_some());
        drop(first);
        assert!(places.take(four(1), &counters).is_some());
    }

    #[test]
    fn all_together_have_no_more_than_all_places() {
        let (places, counters) = (Places::new(3, 2), Arc::default());
        let held: Vec<_> = (0..5).filter_map(|n| places.take(four(n), &counters)).collect();
        assert_eq!((held.len(), counters.connections.get()), (3, 3));
        drop(held);
        assert_eq!(counters.connections.get(), 0);
        assert!(places.taken.lock().unwrap().is_empty(), "addresses are forgotten with their last connection");
    }

    #[test]
    fn a_proxy_on_this_machine_may_take_all_places() {
        let (places, counters) = (Places::new(8, 2), Arc::default());
        let held: Vec<_> = (0..9).filter_map(|_| places.take([127, 0, 0, 1].into(), &counters)).collect();
        assert_eq!(held.len(), 8);
    }

    #[test]
    fn an_ipv6_household_counts_as_one_and_a_mapped_address_as_ipv4() {
        let address = |text: &str| household(text.parse().unwrap());
        assert_eq!(address("2001:db8:1:2:aaaa::1"), address("2001:db8:1:2:bbbb::2"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:192.0.2.1"), four(1));
        assert!(address("::1").is_loopback());
    }
}
