//! The house: builds the parts, starts them, watches them, and stops them in order. The only place that spawns.
//!
//! ```text
//!   links ── requests ─▶ engine ◀── pictures ── hub ◀── cameras
//!     ◀──── responses ───┘ │ └───────── demand ───────────▶
//!                          └─ datagrams ─▶ viewers
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::camera::{self, CameraSettings, still};
use crate::config::Config;
use crate::core::access_unit::Bitrate;
use crate::core::camera::{CameraState, CameraStatus, Demand, LowState, Switch};
use crate::core::counters::{CameraCounters, LinkCounters, RelayCounters, ViewerCounters};
use crate::core::server_url::ServerUrl;
use crate::core::sessions::SessionsSettings;
use crate::core::signal::CameraId;
use crate::engine::{CameraLine, Engine};
use crate::hub::Hub;
use crate::net::{MediaSocket, tcp};
use crate::peer::{Identity, PeerSettings};
use crate::publisher::{Publisher, PublisherSettings};
use crate::relay::{Credentials, Mint, Relay, RelayServer};
use crate::signaling::access::Access;
use crate::signaling::ice_servers::IceServer;
use crate::signaling::{self, CameraBoard, Links, MakeJpeg, Stills, mqtt};
use crate::switches::{self, SwitchFile};
use crate::telemetry::{self, Health, Metrics, Pulse, Reasons, WatchedCamera};
use crate::{http, web};

/// Requests that may wait for the engine.
const INBOX: usize = 64;
/// Events that a link may be behind.
const EVENTS: usize = 256;
/// Stopping takes no longer.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until the first SIGTERM or SIGINT, then stops in order; a second one cuts that short.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Bound first: a taken port is found out before a camera is touched.
    let listener = http::bind(config.listen).await?;
    let page = listener.local_addr().context("the listener has no address")?;
    let (socket, media_listener) = MediaSocket::bind(config.media.clone())?;
    let media_port = socket.port();

    let tasks = TaskTracker::new();
    let stopping = Stopping::default();
    let switches = SwitchFile::new(config.state_dir.clone());
    let switched_off = switches.load(config.cameras.iter().map(|camera| camera.id.clone()));
    let parts = Parts::new(&config, &switched_off);
    let (requests, inbox) = mpsc::channel(INBOX);
    let (arrivals, connections) = mpsc::channel(tcp::ARRIVALS);
    let pulse = Pulse::default();
    let events = broadcast::Sender::new(EVENTS);
    let switching = watch::Sender::new(switched_off.clone());
    tasks.spawn(switches::keep(switches, switched_off.clone(), switching.subscribe(), parts.switches()));
    let known_off = switching.subscribe();
    let servers = relay_servers(&config);
    let is_relayed = !servers.is_empty();
    let fastest = config.cameras.iter().map(|camera| camera.encoder.max).max().unwrap_or(Bitrate::from_kbps(0));
    let (relay, newsroom, errands) = Relay::new(servers, fastest, parts.relay.clone(), now());
    let engine = Engine {
        publisher: publisher(&config, switched_off, parts.viewers.clone())?,
        socket,
        connections,
        hub: parts.hub.clone(),
        inbox,
        cameras: parts.lines(),
        events: events.clone(),
        switched_off: switching,
        relay,
        newsroom,
        counters: parts.viewers.clone(),
        pulse: pulse.clone(),
    };
    let make_jpeg: MakeJpeg = Arc::new(|keyframe| still::jpeg(&keyframe).map_err(|error| error.to_string()));
    let links = Arc::new(Links {
        device: config.device.clone(),
        cameras: parts.boards(&config),
        engine: requests,
        events,
        stills: Stills::new(make_jpeg, known_off),
        access: Access::new(config.access.clone()),
        ice_servers: config.ice_servers.clone(),
        settings: config.links.clone(),
        counters: parts.links.clone(),
        tasks: tasks.clone(),
        stopping: stopping.links.clone(),
    });
    let about =
        telemetry::router(parts.health(), parts.metrics(tasks.clone()), signaling::may_read_metrics(links.clone()));
    let router = web::router().merge(signaling::router(links.clone())).merge(about);

    tasks.spawn_blocking(camera::prepare);
    if is_relayed {
        tasks.spawn(errands.run(tasks.clone(), stopping.links.clone()));
    }
    let mut engine = tasks.spawn(engine.run(stopping.engine.clone()));
    for (settings, part) in config.cameras.iter().zip(&parts.cameras) {
        tasks.spawn(part.run(settings.clone(), parts.hub.clone(), stopping.cameras.clone()));
    }
    tasks.spawn(http::serve(
        listener,
        router,
        config.http.clone(),
        parts.links.clone(),
        tasks.clone(),
        stopping.links.clone(),
    ));
    if let Some(listener) = media_listener {
        tasks.spawn(listener.serve(arrivals, parts.viewers.clone(), tasks.clone(), stopping.links.clone()));
    }
    if let Some(broker) = config.mqtt {
        tasks.spawn(mqtt::run(links, broker));
    }
    tasks.spawn(telemetry::feed_watchdog(pulse, parts.watched(), stopping.cameras.clone()));

    info!(%page, media_port, "ready");
    let address = format!("http://{page}/");
    telemetry::ready(&address, &parts.watched());
    tasks.spawn(telemetry::keep_status(address, parts.watched(), stopping.cameras.clone()));
    // Nobody is left to tell when stdout is closed.
    let _ = writeln!(io::stdout(), "edgecam: open {}", page_url(page));

    let mut signals = Signals::new()?;
    let outcome = tokio::select! {
        outcome = &mut engine => ended_early(outcome),
        () = signals.next() => Ok(()),
    };
    info!("stopping");
    telemetry::stopping();
    parts.reasons.report("stopping");
    tokio::select! {
        () = stopping.stop(engine, &tasks) => outcome,
        () = signals.next() => anyhow::bail!("told twice to stop"),
    }
}

/// What is told to stop, in this order: the engine says bye through links that still run, then cameras and links go.
#[derive(Default)]
struct Stopping {
    engine: CancellationToken,
    cameras: CancellationToken,
    links: CancellationToken,
}

impl Stopping {
    async fn stop(&self, engine: Running, tasks: &TaskTracker) {
        self.engine.cancel();
        if !engine.is_finished() {
            let _ = tokio::time::timeout(GRACE, engine).await;
        }
        self.cameras.cancel();
        self.links.cancel();
        tasks.close();
        if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
            warn!(?GRACE, left = tasks.len(), "tasks are still running; leaving them");
        }
    }
}

/// What several parts share, and each camera's ends.
struct Parts {
    hub: Arc<Hub>,
    cameras: Vec<CameraPart>,
    viewers: Arc<ViewerCounters>,
    links: Arc<LinkCounters>,
    relay: Arc<RelayCounters>,
    reasons: Reasons,
}

struct CameraPart {
    id: CameraId,
    demand: watch::Sender<Demand>,
    status: watch::Sender<CameraStatus>,
    switch: watch::Sender<Switch>,
    counters: Arc<CameraCounters>,
}

impl Parts {
    fn new(config: &Config, switched_off: &BTreeSet<CameraId>) -> Self {
        let camera = |camera: &CameraSettings| CameraPart::new(camera, !switched_off.contains(&camera.id));
        Self {
            hub: Hub::new(config.cameras.iter().map(|camera| camera.id.clone())),
            cameras: config.cameras.iter().map(camera).collect(),
            viewers: Arc::default(),
            links: Arc::default(),
            relay: Arc::default(),
            reasons: Reasons::default(),
        }
    }

    fn lines(&self) -> BTreeMap<CameraId, CameraLine> {
        let line = |camera: &CameraPart| CameraLine {
            demand: camera.demand.clone(),
            status: camera.status.subscribe(),
            counters: camera.counters.clone(),
        };
        self.cameras.iter().map(|camera| (camera.id.clone(), line(camera))).collect()
    }

    fn boards(&self, config: &Config) -> Vec<CameraBoard> {
        let places = config.sessions.cameras.iter().map(|camera| camera.max_viewers);
        let board = |(camera, max_viewers): (&CameraPart, usize)| CameraBoard {
            id: camera.id.clone(),
            max_viewers,
            status: camera.status.subscribe(),
            switch: camera.switch.subscribe(),
            counters: camera.counters.clone(),
        };
        self.cameras.iter().zip(places).map(board).collect()
    }

    fn switches(&self) -> BTreeMap<CameraId, watch::Sender<Switch>> {
        self.cameras.iter().map(|camera| (camera.id.clone(), camera.switch.clone())).collect()
    }

    fn watched(&self) -> Vec<WatchedCamera> {
        let watched = |camera: &CameraPart| WatchedCamera {
            id: camera.id.clone(),
            status: camera.status.subscribe(),
            counters: camera.counters.clone(),
        };
        self.cameras.iter().map(watched).collect()
    }

    fn health(&self) -> Health {
        Health::new(self.watched(), self.reasons.clone())
    }

    fn metrics(&self, tasks: TaskTracker) -> Metrics {
        Metrics::new(self.watched(), self.viewers.clone(), self.links.clone(), self.relay.clone(), tasks)
    }
}

impl CameraPart {
    fn new(settings: &CameraSettings, is_on: bool) -> Self {
        let demand = Demand { running: false, off: !is_on, bitrate: settings.encoder.max, keyframe: 0, low: None };
        let counters = CameraCounters::default();
        counters.switched_off.set((!is_on).into());
        Self {
            id: settings.id.clone(),
            demand: watch::Sender::new(demand),
            status: watch::Sender::new(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed }),
            switch: watch::Sender::new(Switch { on: is_on, unkept: None }),
            counters: Arc::new(counters),
        }
    }

    fn run(
        &self,
        settings: CameraSettings,
        hub: Arc<Hub>,
        stopping: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let sink = hub.sink(self.id.clone());
        camera::run(settings, self.demand.subscribe(), sink, self.status.clone(), self.counters.clone(), stopping)
    }
}

fn publisher(
    config: &Config,
    switched_off: BTreeSet<CameraId>,
    counters: Arc<ViewerCounters>,
) -> anyhow::Result<Publisher> {
    let peers = PeerSettings {
        candidates: Vec::new(), // the engine asks for them with each offer
        epoch: now(),
        lost_after: config.lost_after,
        identity: Identity::generate()?,
    };
    let sessions = SessionsSettings { switched_off, ..config.sessions.clone() };
    Ok(Publisher::new(PublisherSettings { sessions, peers }, counters))
}

/// The servers of `[ice]`, as the camera itself uses them: with credentials made as for a viewer, if its owner wants a relay.
fn relay_servers(config: &Config) -> Vec<RelayServer> {
    let servers = config.ice_servers.iter();
    let each = servers.flat_map(|server| server.urls.iter().map(move |url| (url, server)));
    // What cannot be parsed is refused by the configuration, but for DTLS, which viewers may know.
    let server = |(url, server): (&String, &IceServer)| {
        Some(RelayServer { url: ServerUrl::parse(url).ok()?, mint: config.relay.then(|| mint(server.clone())) })
    };
    each.filter_map(server).collect()
}

fn mint(server: IceServer) -> Mint {
    Arc::new(move || {
        #[expect(clippy::disallowed_methods, reason = "credentials say when they end")]
        let offered = server.offered(SystemTime::now());
        let (username, password) = (offered.username.unwrap_or_default(), offered.credential.unwrap_or_default());
        Credentials { username, password, hold_for: server.hold_for() }
    })
}

#[expect(clippy::disallowed_methods, reason = "here the clocks of stream and relay begin")]
fn now() -> Instant {
    Instant::now()
}

type Running = tokio::task::JoinHandle<io::Result<()>>;

/// The engine must not end by itself.
fn ended_early(outcome: Result<io::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    outcome.context("the engine panicked")?.context("the media socket failed")?;
    anyhow::bail!("the engine ended by itself; this is a defect of edgecam")
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An address that a browser can open: a wildcard stands for this machine.
fn page_url(page: SocketAddr) -> String {
    if page.ip().is_unspecified() {
        return format!("http://localhost:{}/ (or this machine's address)", page.port());
    }
    format!("http://{page}/")
}
