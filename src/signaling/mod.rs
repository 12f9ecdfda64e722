//! The ways in: each turns bytes into [`Request`]s for the engine and [`Response`]s into bytes, and decides nothing about viewers.
//!
//! A link checks what a rim must check (size, rate, token, form) and hands the rest through one bounded channel. What comes back
//! goes through the client's own bounded outbox; a client that does not empty it loses its sessions, and nobody else notices.

pub mod access;
mod api;
mod figures;
pub mod ice_servers;
pub mod mqtt;
mod problem;
mod resume;
mod rim;
pub mod sdpfrag;
mod still;
pub mod token;
mod websocket;
pub mod whep;
pub mod wire;

pub use self::rim::{is_type, may_read_metrics};
pub use self::still::{MakeJpeg, Stills};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::access::{Access, Denied, permit};
use self::ice_servers::{IceServer, OfferedServer};
use self::token::{Grant, Permission};
use self::wire::{Fault, Welcome};
use crate::core::access_unit::AccessUnit;
use crate::core::camera::{CameraStatus, Switch};
use crate::core::counters::{CameraCounters, LinkCounters};
use crate::core::figures::Seen;
use crate::core::signal::{CameraId, ClientId, Correlation, RejectReason, Request, Response};
use crate::core::trigger::{Event, Trigger};

/// What the links tell the engine.
#[derive(Debug)]
pub enum Inbound {
    /// Responses to this request, and everything its session is told later, go into `outbox`.
    Request { request: Request, outbox: Outbox },
    /// The client's connection is gone, and all its sessions with it.
    Left { client: ClientId },
    /// Somebody wants a camera to be ready, or not any more.
    Trigger { trigger: Trigger, reply: oneshot::Sender<Result<(), RejectReason>> },
    /// The next keyframe, for a still; the camera is opened for it.
    Still { camera: CameraId, reply: oneshot::Sender<Result<AccessUnit, RejectReason>> },
    /// How everybody fares who watches this camera.
    Figures { camera: CameraId, reply: oneshot::Sender<Vec<Seen>> },
    /// The privacy switch. Answered when it holds; whether it is kept is on the [`CameraBoard`].
    Switch { camera: CameraId, on: bool, id: Correlation, reply: oneshot::Sender<Result<(), RejectReason>> },
}

/// Where the engine puts a client's responses, with `try_send`: a full one is a client that does not take them.
pub type Outbox = mpsc::Sender<Response>;

/// What the links know of a camera.
#[derive(Clone, Debug)]
pub struct CameraBoard {
    pub id: CameraId,
    pub max_viewers: usize,
    pub status: watch::Receiver<CameraStatus>,
    pub switch: watch::Receiver<Switch>,
    pub counters: Arc<CameraCounters>,
}

/// Everything the links need. Cheap to share, never changed.
pub struct Links {
    /// This daemon's name.
    pub device: String,
    pub cameras: Vec<CameraBoard>,
    pub engine: mpsc::Sender<Inbound>,
    /// What happens to the cameras. Whoever does not listen in time misses the oldest.
    pub events: broadcast::Sender<Event>,
    pub stills: Stills,
    pub access: Access,
    pub ice_servers: Vec<IceServer>,
    pub settings: LinkSettings,
    pub counters: Arc<LinkCounters>,
    /// Counts the sockets' and sessions' tasks, so that stopping waits for them.
    pub tasks: TaskTracker,
    pub stopping: CancellationToken,
}

/// The links' limits.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// ICE candidates a viewer may send in one session; named to viewers in `welcome`.
    pub max_candidates: usize,
    /// From a socket's first byte to a good token.
    pub auth_timeout: Duration,
    pub ping_interval: Duration,
    /// A socket from which nothing came for so long is closed.
    pub idle_timeout: Duration,
    /// How long the sessions of a lost socket wait for another to take them over, how many sockets' sessions may wait at one time, and
    /// how many of one household.
    pub resume_within: Duration,
    pub max_lost_sockets: usize,
    pub max_lost_per_address: usize,
    /// Messages a second on one socket, and how many may come at once: a page that opens eight pictures sends about a hundred.
    pub messages_per_s: u32,
    pub message_burst: u32,
    /// For a request's whole body.
    pub body_timeout: Duration,
    /// For the engine's answer to an HTTP request.
    pub answer_timeout: Duration,
    /// WHEP sessions that may have a URL at one time, over all cameras.
    pub max_whep_sessions: usize,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            max_candidates: 64,
            auth_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(45),
            resume_within: Duration::from_secs(10),
            max_lost_sockets: 64,
            max_lost_per_address: 8,
            messages_per_s: 20,
            message_burst: 128,
            body_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            max_whep_sessions: 256,
        }
    }
}

/// `/ws`, `/whep/<camera>` with its session URLs, and `/api/cameras` with each camera's still and switch.
///
/// The router needs the caller's address as `ConnectInfo<IpAddr>` on every request; `http.rs` puts it there.
pub fn router(links: Arc<Links>) -> Router {
    Router::new()
        .merge(websocket::router(Arc::clone(&links)))
        .merge(whep::router(Arc::clone(&links)))
        .merge(api::router(links))
}

impl Links {
    fn camera(&self, id: &CameraId) -> Option<&CameraBoard> {
        self.cameras.iter().find(|camera| camera.id == *id)
    }

    fn offered_servers(&self) -> Vec<OfferedServer> {
        self.ice_servers.iter().map(|server| server.offered(wall_clock())).collect()
    }

    /// The camera that an offer means: the one it names, or the first that this viewer may watch.
    fn camera_for(&self, named: Option<CameraId>, grant: &Grant) -> Result<CameraId, Denied> {
        let mut all = self.cameras.iter().map(|board| &board.id);
        let camera = named.or_else(|| all.find(|camera| grant.covers(camera)).cloned());
        let camera = camera.ok_or(Denied::NotAllowed)?;
        permit(grant, Permission::View, &camera)?;
        Ok(camera)
    }

    /// What a viewer with this grant is told first.
    fn welcome(&self, grant: Option<&Grant>) -> Welcome {
        let covers = |camera: &&CameraId| grant.is_some_and(|grant| grant.covers(camera));
        Welcome {
            device: self.device.clone(),
            cameras: self.cameras.iter().map(|board| &board.id).filter(covers).cloned().collect(),
            ice_servers: self.offered_servers(),
            max_candidates: self.settings.max_candidates,
            idle_ms: None,
            resume: None,
        }
    }

    /// Hands something to the engine. A client waits a moment for room in the channel, which slows down this one only.
    async fn submit(&self, request: Request, outbox: Outbox) -> Result<(), RejectReason> {
        self.tell_engine(Inbound::Request { request, outbox }).await
    }

    async fn tell_engine(&self, inbound: Inbound) -> Result<(), RejectReason> {
        const PATIENCE: Duration = Duration::from_secs(1);
        match timeout(PATIENCE, self.engine.send(inbound)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(RejectReason::ShuttingDown),
            Err(_) => Err(RejectReason::Busy { retry_after: PATIENCE }),
        }
    }
}

impl From<&Denied> for Fault {
    fn from(denied: &Denied) -> Self {
        Self {
            id: None,
            session: None,
            code: denied.slug(),
            message: denied.to_string(),
            retry_after_ms: denied.retry_after().map(|wait| wait.as_millis()),
        }
    }
}

/// A name that cannot be guessed: 128 bits of the operating system's randomness, stretched by a CSPRNG.
fn unguessable_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a link is an edge: tokens and credentials are checked when they come in"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The same clock that the runtime's timers follow, so that tests can turn both.
#[expect(clippy::disallowed_methods, reason = "a link is an edge: rates are counted when messages come in")]
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}
