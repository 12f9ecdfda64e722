//! All that is known of a machine and its configuration, without an opinion.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::service::{self, Identity, Unit};
use super::{Scope, camera, machine, network};
use crate::camera::Prefer;
use crate::camera::encoder::{self, EncoderReport};
use crate::camera::pipeline::{self, Installed};
use crate::config::{Config, ConfigError, Sources};
use crate::core::camera::Stream;
use crate::probe::ice_server::{Answer, AskedServer};
use crate::signaling::access::Rule;
use crate::signaling::{mqtt, token};

pub(super) struct Facts {
    pub(super) scope: Scope,
    pub(super) about: About,
    pub(super) configuration: Result<Settled, ConfigError>,
    /// Who the daemon runs as.
    pub(super) identity: Identity,
    /// What systemd says of the service; `None`: it knows none.
    pub(super) unit: Option<Unit>,
    pub(super) nodes: Vec<NodeFacts>,
    /// `None`: it does not start.
    pub(super) gstreamer: Option<Installed>,
    /// From the best on to the first that works; or in words, why not even GStreamer starts.
    pub(super) encoders: Result<Vec<EncoderReport>, String>,
    pub(super) cameras: Vec<CameraFacts>,
    pub(super) network: Option<NetworkFacts>,
    /// `None`: no broker is configured.
    pub(super) broker: Option<BrokerFacts>,
    pub(super) ice_servers: Vec<(String, Result<Answer, String>)>,
    pub(super) clock: ClockFacts,
    pub(super) board: BoardFacts,
}

/// Versions, for whoever is asked for help.
pub(super) struct About {
    pub(super) gstreamer: Option<String>,
    pub(super) kernel: String,
    pub(super) board: Option<String>,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edgecam {}", env!("CARGO_PKG_VERSION"))?;
        if let Some(gstreamer) = &self.gstreamer {
            write!(f, ", GStreamer {gstreamer}")?;
        }
        write!(f, ", Linux {}", self.kernel)?;
        self.board.iter().try_for_each(|board| write!(f, ", {board}"))
    }
}

/// What a good configuration leads to.
pub(super) struct Settled {
    pub(super) device: String,
    pub(super) listen: std::net::SocketAddr,
    pub(super) udp_port: u16,
    pub(super) needs_token: bool,
    pub(super) wants_hardware: bool,
    pub(super) warnings: Vec<String>,
    /// Secrets that this user may not read, so that nobody was asked who wants to be told them.
    pub(super) unread: Vec<PathBuf>,
}

/// A device file.
#[derive(Clone)]
pub(super) struct NodeFacts {
    pub(super) path: PathBuf,
    pub(super) owner: u32,
    pub(super) group: u32,
    pub(super) group_name: String,
    /// The nine bits of rwxrwxrwx.
    pub(super) mode: u32,
}

pub(super) struct CameraFacts {
    pub(super) id: String,
    /// As in the configuration.
    pub(super) source: String,
    /// What the device offers; `None`: it is no device, or it cannot be asked.
    pub(super) look: Option<Look>,
    pub(super) picture: PictureFacts,
}

pub(super) struct Look {
    pub(super) formats: Vec<String>,
    /// Configured, and not there.
    pub(super) unknown_controls: Vec<String>,
    pub(super) controls: Vec<String>,
}

/// Whether pictures come.
pub(super) enum PictureFacts {
    /// By its privacy switch; not opened, then.
    SwitchedOff,
    /// A running edgecam has the camera; what it says of it, when it could be asked.
    Streamed(Option<String>),
    /// A running edgecam may have it, and does not tell us.
    NotTold,
    /// A running edgecam cannot open it, and why.
    FailsThere(String),
    /// Opened here and now.
    Came(Stream),
    Failed(String),
    /// Neither picture nor error, after so long.
    Silent(Duration),
}

pub(super) struct NetworkFacts {
    /// What answers at the page's address.
    pub(super) daemon: Option<DaemonFacts>,
    pub(super) listen: PortFacts,
    pub(super) media: PortFacts,
    /// For viewers whose network drops UDP; `None`: not wanted.
    pub(super) media_tcp: Option<PortFacts>,
}

/// A running edgecam, and what it is not well of.
pub(super) struct DaemonFacts {
    pub(super) reasons: Vec<String>,
}

pub(super) enum PortFacts {
    Free,
    /// Used by edgecam.
    Ours,
    Taken {
        by: Option<String>,
    },
    Refused(String),
}

pub(super) struct BrokerFacts {
    pub(super) host: String,
    pub(super) port: u16,
    /// The topics it refuses us; or in words, why it does not let us in.
    pub(super) visit: Result<Vec<String>, String>,
}

pub(super) struct ClockFacts {
    pub(super) is_set: bool,
    /// `None`: nobody here knows.
    pub(super) synchronised: Option<bool>,
}

#[derive(Default)]
pub(super) struct BoardFacts {
    pub(super) memory_available_mib: Option<u64>,
    /// Total and free; `None`: there is no such memory.
    pub(super) cma_mib: Option<(u64, u64)>,
    /// The bits of the Raspberry Pi's firmware.
    pub(super) throttled: Option<u32>,
    /// Where the state goes, and the room there.
    pub(super) state: Option<(PathBuf, u64)>,
}

/// Everything beyond this is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn gather(sources: &Sources, scope: Scope, now: SystemTime) -> Facts {
    let (identity, unit) = limited(PATIENCE, service::look(sources.is_the_services())).await.unwrap_or_default();
    let sources = service::with_credentials(sources, unit.is_some());
    let (config, unread) = match Config::load_where_readable(&sources) {
        Ok((config, unread)) => (Ok(config), unread),
        Err(error) => (Err(error), Vec::new()),
    };
    let knows_secrets = unread.is_empty();
    let gstreamer = limited(PATIENCE, pipeline::installed).await.and_then(Result::ok);
    let encoders = limited(PATIENCE * 2, encoder::first_working).await;
    let network = match &config {
        Ok(config) => Some(network::look(config).await),
        Err(_) => None,
    };
    let runs = network.as_ref().is_some_and(|network| network.daemon.is_some());
    let state_dir = config.as_ref().ok().map(|config| config.state_dir.clone());
    let (cameras, ice_servers, broker) = match &config {
        Ok(config) => {
            tokio::join!(
                camera::look(config, runs, knows_secrets, now),
                ask_ice_servers(config, scope, knows_secrets, now),
                visit_broker(config, knows_secrets),
            )
        }
        Err(_) => Default::default(),
    };
    Facts {
        scope,
        about: About {
            gstreamer: gstreamer.as_ref().map(|installed| installed.version.clone()),
            kernel: machine::kernel(),
            board: machine::board(),
        },
        configuration: config.map(|config| settled(config, unread)),
        identity,
        unit,
        nodes: machine::nodes(),
        gstreamer,
        encoders: match encoders {
            Some(survey) => survey.map_err(|error| error.in_full()),
            None => Err("the encoders' test does not end; restart the board, a driver hangs".into()),
        },
        cameras,
        network,
        broker,
        ice_servers,
        clock: ClockFacts { is_set: token::is_clock_set(now), synchronised: machine::is_clock_synchronised().await },
        board: machine::board_facts(state_dir).await,
    }
}

fn settled(config: Config, unread: Vec<PathBuf>) -> Settled {
    Settled {
        device: config.device,
        listen: config.listen,
        udp_port: config.media.udp_port,
        needs_token: matches!(config.access.rule, Rule::Key(_)),
        wants_hardware: config.cameras.iter().any(|camera| camera.encoder.prefer == Prefer::Hardware),
        warnings: config.warnings,
        unread,
    }
}

async fn visit_broker(config: &Config, knows_secrets: bool) -> Option<BrokerFacts> {
    let settings = config.mqtt.clone().filter(|_| knows_secrets)?;
    let (host, port) = (settings.host.clone(), settings.port);
    Some(BrokerFacts { host, port, visit: mqtt::visit(settings, &config.device).await })
}

/// Each URL as a viewer would use it, all at once.
async fn ask_ice_servers(
    config: &Config,
    scope: Scope,
    knows_secrets: bool,
    now: SystemTime,
) -> Vec<(String, Result<Answer, String>)> {
    if scope == Scope::Picture {
        return Vec::new();
    }
    let offered = config.ice_servers.iter().map(|server| server.offered(now));
    let offered = offered.filter(|server| knows_secrets || server.credential.is_none());
    let asked: Vec<_> = offered
        .flat_map(|server| {
            let username = server.username.unwrap_or_default();
            let credential = server.credential.unwrap_or_default();
            let asked = move |url| AskedServer { url, username: username.clone(), credential: credential.clone() };
            server.urls.into_iter().map(asked)
        })
        .map(|server| {
            let url = server.url.clone();
            let asking =
                spawn_blocking(move || crate::probe::ice_server::ask(&server).map_err(|error| error.to_string()));
            (url, timeout(PATIENCE, asking))
        })
        .collect();
    let mut answers = Vec::new();
    for (url, asking) in asked {
        let answer = asking.await.ok().and_then(Result::ok);
        let hangs = || Err("the question does not end; see that the server runs and its name is known".into());
        answers.push((url, answer.unwrap_or_else(hangs)));
    }
    answers
}

/// What takes long has a thread, and a limit; `None`: it was too long.
pub(super) async fn limited<T: Send + 'static>(
    patience: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    timeout(patience, spawn_blocking(look)).await.ok()?.ok()
}
