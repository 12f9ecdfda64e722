//! ICE over TCP, the passive end (RFC 6544): viewers whose network drops UDP connect to the media port, and each frame of
//! the stream is a datagram.
//!
//! Anybody can connect, so a connection costs little until its first check names a session, and nobody waits for it: what
//! it does not take in time is dropped, like on UDP.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::framing::{Frames, framed_len, put};
use crate::core::access_unit::Bitrate;
use crate::core::counters::ViewerCounters;
use crate::core::pace::{Pace, Rate};
use crate::core::places::{Place, PlaceLimits, Places, household};

/// A browser opens one for each pair of its networks and our addresses, and as many again when it restarts ICE; one
/// household may have a few. No proxy stands before this port, so this machine is a household like others.
const PLACES: PlaceLimits = PlaceLimits { all: 128, per_address: 32, counts_loopback: true };
/// Whoever connects has a session already, and so a check to send at once.
const FIRST_CHECK: Duration = Duration::from_secs(5);
/// A browser that connects once more may send reports for some seconds before its next check.
const FRAMES_BEFORE: usize = 256;
/// How long checks by UDP are ahead of those by TCP: our agent takes the first pair that works and keeps it, so that one lost
/// datagram would put a viewer on TCP for good.
const HEAD_START: Duration = Duration::from_millis(500);
/// Viewers ask for consent every few seconds (RFC 7675) and we give up those who do not after this long.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);
/// Read at once; viewers send little.
const READ: usize = 2048;
/// Beyond what it is sending, the kernel takes no more than this from us: what waits there can neither be dropped nor
/// overtaken (tcp(7)).
const LEAST_UNSENT: u32 = 16 << 10;
/// Room beyond the backlog for checks, without which a viewer on a slow network would count as gone.
const ROOM_FOR_CHECKS: usize = 4 << 10;
/// From so much on the engine writes itself: the connection's task gets its turn only after a whole picture, which may be more
/// than the backlog.
const WRITE_AT: usize = 16 << 10;
/// What keeps us from taking connections does so ten times a second.
const WARNINGS: Rate = Rate::new(Duration::from_secs(60), 1);
/// Frames that may wait for the engine; then connections are read no further.
pub const ARRIVALS: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Of the fastest stream.
    pub bitrate: Bitrate,
}

impl TcpSettings {
    /// What may wait for one viewer, in bytes: half a second of the stream, and a keyframe in any case. What comes on top is
    /// dropped.
    fn backlog(self) -> usize {
        const KEYFRAME: usize = 128 << 10;
        usize::try_from(self.bitrate.bits_per_second() / 8 / 2).map_or(KEYFRAME, |half| half.max(KEYFRAME))
    }
}

/// The TCP half of the media port.
pub struct Listener {
    listener: TcpListener,
    backlog: usize,
}

/// What happened on a connection that a viewer, or a stranger, opened.
pub struct Arrival {
    pub from: SocketAddr,
    /// This machine's address that it came to.
    pub to: SocketAddr,
    pub what: What,
}

pub enum What {
    /// Its first check came, which says whom it is for; and the way back. Dropping that closes the connection. The check will
    /// come again as a datagram.
    Opened {
        first: Vec<u8>,
        outlet: Outlet,
    },
    Datagram(Vec<u8>),
    /// Only said of what was opened.
    Closed,
}

impl Listener {
    /// Where the UDP socket is, for both IP versions or for IPv4 alone.
    pub(super) fn bind(port: u16, is_ipv6: bool, settings: TcpSettings) -> io::Result<Self> {
        let address = if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let listener = std::net::TcpListener::bind(SocketAddr::new(address, port))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)?, backlog: settings.backlog() })
    }

    /// Takes connections until `stopping`, each as a task on `tasks`.
    pub async fn serve(
        self,
        arrivals: mpsc::Sender<Arrival>,
        counters: Arc<ViewerCounters>,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) {
        let level = Arc::clone(&counters);
        let places = Places::new(PLACES, Arc::new(move |taken| level.tcp.connections.set(taken as u64)));
        let mut warnings = Pace::new(clock());
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok((stream, from)) => (stream, canonical(from)),
                Err(error) => {
                    let now = clock();
                    if warnings.wait(WARNINGS, now).is_zero() {
                        warnings.count(WARNINGS, now);
                        warn!(%error, "cannot take a connection for media");
                    }
                    sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely: let some be closed
                    continue;
                }
            };
            let (Some(place), Ok(to)) = (places.take(household(from.ip())), stream.local_addr()) else {
                counters.tcp.refused.add(1);
                continue;
            };
            let connection = Connection {
                from,
                to: canonical(to),
                pipe: Arc::new(Pipe::new(stream, self.backlog)),
                arrivals: arrivals.clone(),
                counters: Arc::clone(&counters),
                _place: place,
            };
            tasks.spawn(connection.run(stopping.clone()));
        }
    }
}

struct Connection {
    from: SocketAddr,
    to: SocketAddr,
    pipe: Arc<Pipe>,
    arrivals: mpsc::Sender<Arrival>,
    counters: Arc<ViewerCounters>,
    _place: Place,
}

impl Connection {
    async fn run(self, stopping: CancellationToken) {
        // What cannot be had costs delay, not the connection.
        let _ = self.pipe.stream.set_nodelay(true);
        let _ = SockRef::from(&self.pipe.stream).set_tcp_notsent_lowat(LEAST_UNSENT);
        let mut frames = Frames::default();
        let first = tokio::select! {
            () = stopping.cancelled() => return,
            first = timeout(FIRST_CHECK, self.first_check(&mut frames)) => first,
        };
        let Ok(Ok(first)) = first else {
            self.counters.tcp.strangers.add(1);
            return;
        };
        let outlet = Outlet(Arc::clone(&self.pipe));
        if !self.tell(What::Opened { first: first.clone(), outlet }).await {
            return;
        }
        let outcome = tokio::select! {
            () = stopping.cancelled() => Ok(()),
            outcome = self.read_on(first, frames) => outcome,
            outcome = self.pipe.write_on() => outcome,
        };
        debug!(from = %self.from, error = outcome.err().map(|error| error.to_string()), "a media connection ended");
        self.pipe.end();
        self.tell(What::Closed).await;
    }

    /// What names the session that the connection is for: a binding request (RFC 8489, section 5).
    async fn first_check(&self, frames: &mut Frames) -> io::Result<Vec<u8>> {
        const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
        for _ in 0..=FRAMES_BEFORE {
            let datagram = self.read(frames).await?;
            if datagram.starts_with(&BINDING_REQUEST) {
                return Ok(datagram);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Gives everything that comes to the engine, and reads no faster than that takes it.
    async fn read_on(&self, first: Vec<u8>, mut frames: Frames) -> io::Result<()> {
        sleep(HEAD_START).await;
        let mut datagram = first;
        while self.tell(What::Datagram(datagram)).await {
            datagram = timeout(LONGEST_SILENCE, self.read(&mut frames)).await??;
        }
        Ok(())
    }

    async fn read(&self, frames: &mut Frames) -> io::Result<Vec<u8>> {
        loop {
            let next = frames.next_datagram().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(datagram) = next {
                return Ok(datagram.to_vec());
            }
            self.pipe.stream.readable().await?;
            let mut bytes = [0; READ];
            match self.pipe.stream.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => frames.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// False: the engine is gone.
    async fn tell(&self, what: What) -> bool {
        self.arrivals.send(Arrival { from: self.from, to: self.to, what }).await.is_ok()
    }
}

/// The way to the viewer at the other end of a connection. Dropping it closes the connection, after what waits was sent.
pub struct Outlet(Arc<Pipe>);

/// Frames between the engine, which never waits, and the connection's task, which does.
struct Pipe {
    stream: TcpStream,
    queue: Mutex<Queue>,
    /// Rung when there is something to write.
    bell: Notify,
    backlog: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<u8>,
    /// The kernel took no more; the task waits until it does.
    is_blocked: bool,
    /// Nobody puts anything in any more.
    is_dropped: bool,
    /// Nobody takes anything out any more.
    has_ended: bool,
}

impl Outlet {
    /// Whether there was room.
    pub fn send(&self, datagram: &[u8]) -> bool {
        /// RFC 7983, section 7: STUN begins with 0 to 3.
        const STUN: std::ops::RangeInclusive<u8> = 0..=3;
        let mut queue = self.0.lock();
        let is_check = datagram.first().is_some_and(|first| STUN.contains(first));
        let room = self.0.backlog + if is_check { ROOM_FOR_CHECKS } else { 0 };
        if queue.has_ended || queue.waiting.len() + framed_len(datagram) > room {
            return false;
        }
        put(datagram, &mut queue.waiting);
        if queue.waiting.len() >= WRITE_AT && !queue.is_blocked {
            // What fails here fails in the task, too.
            let _ = self.0.write(&mut queue);
        }
        drop(queue);
        self.0.bell.notify_one();
        true
    }

    /// Whether the connection is closed.
    pub fn has_ended(&self) -> bool {
        self.0.lock().has_ended
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.lock().is_dropped = true;
        self.0.bell.notify_one();
    }
}

impl Pipe {
    fn new(stream: TcpStream, backlog: usize) -> Self {
        Self { stream, queue: Mutex::default(), bell: Notify::new(), backlog }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the outlet is dropped and all is written.
    async fn write_on(&self) -> io::Result<()> {
        loop {
            let is_blocked = {
                let mut queue = self.lock();
                self.write(&mut queue)?;
                if queue.is_dropped && queue.waiting.is_empty() {
                    return Ok(());
                }
                queue.is_blocked
            };
            if is_blocked {
                self.stream.writable().await?;
            } else {
                self.bell.notified().await;
            }
        }
    }

    /// As much as the kernel takes.
    fn write(&self, queue: &mut Queue) -> io::Result<()> {
        queue.is_blocked = false;
        while !queue.waiting.is_empty() {
            match self.stream.try_write(queue.waiting.as_slices().0) {
                Ok(count) => drop(queue.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.is_blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.lock().has_ended = true;
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[expect(clippy::disallowed_methods, reason = "the listener is an edge: warnings are counted when they come")]
fn clock() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    /// The beginning of one.
    const CHECK: &[u8] = &[0, 1, 0, 0];

    /// A listener that runs, and what comes of it.
    struct House {
        address: SocketAddr,
        arrivals: mpsc::Receiver<Arrival>,
        counters: Arc<ViewerCounters>,
        tasks: TaskTracker,
        stopping: CancellationToken,
    }

    impl House {
        fn new() -> Self {
            let listener = Listener::bind(0, false, TcpSettings { bitrate: Bitrate::from_kbps(1) }).unwrap();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.listener.local_addr().unwrap().port()));
            let (sender, arrivals) = mpsc::channel(ARRIVALS);
            let (counters, tasks, stopping) =
                (Arc::<ViewerCounters>::default(), TaskTracker::new(), CancellationToken::new());
            tasks.spawn(listener.serve(sender, counters.clone(), tasks.clone(), stopping.clone()));
            Self { address, arrivals, counters, tasks, stopping }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn next(&mut self) -> Arrival {
            timeout(Duration::from_secs(20), self.arrivals.recv()).await.unwrap().unwrap()
        }

        /// A connection that has said its first word, and the way back.
        async fn opened(&mut self) -> (TcpStream, Outlet) {
            let viewer = self.connect().await;
            say(&viewer, CHECK);
            let What::Opened { outlet, .. } = self.next().await.what else { panic!("not opened") };
            (viewer, outlet)
        }
    }

    fn say(viewer: &TcpStream, datagram: &[u8]) {
        let mut frame = Vec::new();
        put(datagram, &mut frame);
        assert_eq!(viewer.try_write(&frame).unwrap(), frame.len());
    }

    /// Reads until the other end closes; how many bytes came.
    async fn rest(viewer: &TcpStream) -> usize {
        let (mut total, mut bytes) = (0, vec![0; 65_536]);
        loop {
            viewer.readable().await.unwrap();
            match viewer.try_read(&mut bytes) {
                Ok(0) => return total,
                Ok(count) => total += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn the_first_check_is_shown_at_once_and_comes_as_a_datagram_when_udp_has_had_its_chance() {
        let mut house = House::new();
        let viewer = house.connect().await;
        let start = Instant::now();
        for datagram in [&b"a report"[..], CHECK, b"another"] {
            say(&viewer, datagram);
        }
        let Arrival { from, to, what } = house.next().await;
        assert_eq!((from, to), (viewer.local_addr().unwrap(), house.address));
        let What::Opened { first, outlet } = what else { panic!("not opened") };
        assert_eq!(first, CHECK);
        for expected in [CHECK, b"another"] {
            let What::Datagram(data) = house.next().await.what else { panic!("no datagram") };
            assert_eq!(data, expected);
        }
        assert!(start.elapsed() >= HEAD_START);
        assert!(outlet.send(b"an answer"));
        drop(outlet);
        assert_eq!(rest(&viewer).await, framed_len(b"an answer"), "what waits is sent before the end");
        assert!(matches!(house.next().await.what, What::Closed));
    }

    #[tokio::test]
    async fn who_is_not_known_is_closed_at_once() {
        let mut house = House::new();
        let (viewer, outlet) = house.opened().await;
        drop(outlet);
        assert_eq!(rest(&viewer).await, 0);
    }

    #[tokio::test]
    async fn who_sends_what_no_viewer_sends_is_closed() {
        let house = House::new();
        for nonsense in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), [0, 2, 0x80, 0xC9].repeat(FRAMES_BEFORE + 1)] {
            let viewer = house.connect().await;
            viewer.try_write(&nonsense).unwrap();
            assert_eq!(rest(&viewer).await, 0);
        }
        assert_eq!(house.counters.tcp.strangers.get(), 2);
    }

    #[tokio::test]
    async fn five_hundred_who_say_nothing_take_no_more_than_their_share_and_not_for_long() {
        let mut house = House::new();
        let mut silent = Vec::new();
        for _ in 0..500 {
            silent.push(house.connect().await);
        }
        let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
        elsewhere.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
        let viewer = elsewhere.connect(house.address).await.unwrap();
        say(&viewer, CHECK);
        assert!(matches!(house.next().await.what, What::Opened { .. }), "another household is served meanwhile");
        let tcp = &house.counters.tcp;
        for silent in &silent {
            // What was refused may be reset.
            let _ = timeout(2 * FIRST_CHECK, silent.readable()).await.unwrap();
        }
        // Who comes late finds places that others gave up.
        assert_eq!(tcp.strangers.get() + tcp.refused.get(), 500);
        assert!((PLACES.per_address as u64..100).contains(&tcp.strangers.get()), "{} had a place", tcp.strangers.get());
    }

    #[tokio::test]
    async fn who_takes_nothing_is_sent_no_more_than_its_backlog_and_checks_still_fit() {
        let mut house = House::new();
        let (viewer, outlet) = house.opened().await;
        let picture = [0x80; 1200];
        let mut sent = 0;
        // The task must see its turn, and the kernel's own buffers fill first.
        for _ in 0..20 {
            while outlet.send(&picture) {
                sent += 1;
            }
            sleep(Duration::from_millis(20)).await;
        }
        while outlet.send(&picture) {
            sent += 1;
        }
        let queued = outlet.0.lock().waiting.len();
        assert!((120_000..=128 << 10).contains(&queued), "{queued}");
        assert!(outlet.send(&[0; 100]), "a check fits where no picture does");
        drop(outlet);
        let got = rest(&viewer).await;
        assert!(got >= sent * framed_len(&picture), "what was taken is delivered");
    }

    /// Counts what the log is told.
    #[derive(Clone, Default)]
    struct Log(Arc<AtomicUsize>);

    impl tracing::Subscriber for Log {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_takes_no_connections_is_complained_of_once_a_minute() {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let listener = Listener::bind(0, false, TcpSettings { bitrate: Bitrate::from_kbps(1) }).unwrap();
        SockRef::from(&listener.listener).shutdown(std::net::Shutdown::Both).unwrap();
        let (arrivals, _heard) = mpsc::channel(ARRIVALS);
        let serving = listener.serve(arrivals, Arc::default(), TaskTracker::new(), CancellationToken::new());
        assert!(timeout(Duration::from_secs(150), serving).await.is_err());
        assert_eq!(log.0.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn all_connections_end_when_the_house_stops() {
        let mut house = House::new();
        let (_viewer, _outlet) = house.opened().await;
        let _silent = house.connect().await;
        house.stopping.cancel();
        house.tasks.close();
        timeout(Duration::from_secs(5), house.tasks.wait()).await.unwrap();
        assert_eq!(house.counters.tcp.connections.get(), 0);
    }

    #[test]
    fn half_a_second_of_the_stream_may_wait_and_a_keyframe_in_any_case() {
        let backlog = |kbps| TcpSettings { bitrate: Bitrate::from_kbps(kbps) }.backlog();
        assert_eq!(backlog(8000), 500_000);
        assert_eq!(backlog(100), 131_072);
    }
}
