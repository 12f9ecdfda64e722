//! Floor 3. `edgecam.toml` → the settings of each part.
//!
//! Layers, later over earlier: the defaults (`file.rs`), the file, `conf.d/*.toml` next to it, variables
//! `EDGECAM__SECTION__KEY`, flags. They are merged by key (`layers.rs`), compared with everything there may be
//! (`shape.rs`), and turned into settings that cannot be wrong (`settings.rs`). This module knows the parts, never the
//! reverse; no part sees more than its own settings.

mod broker;
mod error;
mod file;
mod layers;
mod secret;
mod settings;
mod shape;
mod show;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::error::Wrong;
pub use self::error::{ConfigError, Problem};
use self::file::ConfigToml;
use self::secret::Secrets;
use self::shape::Shape;
use crate::camera::{CameraSettings, Source};
use crate::core::renditions::{Range, RenditionsSettings};
use crate::core::sessions::{SessionsSettings, ViewedCamera};
use crate::http::HttpSettings;
use crate::net::MediaSettings;
use crate::signaling::LinkSettings;
use crate::signaling::access::AccessSettings;
use crate::signaling::ice_servers::IceServer;
use crate::signaling::mqtt::MqttSettings;
use crate::telemetry::LogSettings;

/// What every part is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This device's name: `[a-zA-Z0-9_-]{1,64}`.
    pub device: String,
    /// The folder of what is to be known after a restart.
    pub state_dir: PathBuf,
    /// Where the page, WHEP, WebSocket and API are; port 0: any.
    pub listen: SocketAddr,
    pub http: HttpSettings,
    pub media: MediaSettings,
    /// What viewers are told of.
    pub ice_servers: Vec<IceServer>,
    /// Whether this device keeps an allocation on one of them.
    pub relay: bool,
    pub access: AccessSettings,
    /// `None`: there is no broker.
    pub mqtt: Option<MqttSettings>,
    pub links: LinkSettings,
    pub sessions: SessionsSettings,
    /// A viewer who has answered nothing for so long is gone.
    pub lost_after: Duration,
    /// At least one; every id once.
    pub cameras: Vec<CameraSettings>,
    pub log: LogSettings,
    /// What the owner had better know, to be logged once logging runs.
    pub warnings: Vec<String>,
}

/// Of some settings, where each was set; `None`: nobody has set it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    pub listen: Option<String>,
    pub token_key_file: Option<String>,
    /// Only when it says yes.
    pub anyone_may_watch: Option<String>,
    pub cameras: Option<String>,
}

/// Where a configuration comes from. Plain values, so that a test can make up a whole machine.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file named with `--config`; it has to exist.
    pub config: Option<PathBuf>,
    /// The file that is read when none is named; it may be absent.
    pub default_config: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub flags: Vec<Flag>,
    pub host_name: String,
}

/// A setting from the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the user wrote it: `--listen`.
    pub name: &'static str,
    /// The key it stands for: `http.listen`.
    pub key: &'static str,
    pub value: String,
}

impl Config {
    /// Reads all layers and the secret files they name. Touches no hardware and no network.
    ///
    /// # Errors
    /// Everything that has to be put right, each with its key and where it was set.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let (file, mut findings) = read(sources)?;
        let secrets = Secrets::new(&sources.environment, sources.folder());
        Self::from_file(file, sources, &secrets, &mut findings).ok_or(ConfigError::Invalid(findings.problems))
    }

    /// The same for whoever may not read every secret: in place of those stand some that nobody knows. Comes with the files that
    /// were not read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_where_readable(sources: &Sources) -> Result<(Self, Vec<PathBuf>), ConfigError> {
        let (file, mut findings) = read(sources)?;
        let secrets = Secrets::new(&sources.environment, sources.folder()).where_readable();
        let config = Self::from_file(file, sources, &secrets, &mut findings);
        Ok((config.ok_or(ConfigError::Invalid(findings.problems))?, secrets.unread()))
    }

    /// The merged layers as TOML, with the origin of each value. Holds no secrets, as the layers hold none.
    ///
    /// # Errors
    /// Keys and types that are wrong; whether the values make sense together is not looked at.
    pub fn show(sources: &Sources) -> Result<String, ConfigError> {
        let (file, Findings { origins, .. }) = read(sources)?;
        Ok(show::show(&file, &Shape::of_the_file(), &origins))
    }

    /// What somebody has settled of what a first start needs.
    ///
    /// # Errors
    /// Keys and types that are wrong; whether the values make sense together is not looked at.
    pub fn chosen(sources: &Sources) -> Result<Chosen, ConfigError> {
        let (file, findings) = read(sources)?;
        let origin = |key| Some(findings.origin(key).to_owned()).filter(|origin| origin != BY_DEFAULT);
        Ok(Chosen {
            listen: origin("http.listen"),
            token_key_file: origin("auth.token_key_file").filter(|_| !file.auth.token_key_file.is_empty()),
            anyone_may_watch: origin("auth.anyone_may_watch").filter(|_| file.auth.anyone_may_watch),
            cameras: origin("camera[0].id"),
        })
    }

    /// `None`: the findings hold at least one problem.
    fn from_file(file: ConfigToml, sources: &Sources, secrets: &Secrets<'_>, findings: &mut Findings) -> Option<Self> {
        let ConfigToml { device, http, ice, auth, mqtt, limits, log, camera } = file;
        let mut warnings = Vec::new();
        if sources.has_files() && findings.origin("camera[0].id") == BY_DEFAULT {
            warnings.push("no [[camera]] is configured; showing the built-in test camera".into());
        }
        let state_dir = findings.keep("device", settings::state_dir(device.state_dir, &sources.environment));
        let device = findings.keep("device", settings::device(device.id, &sources.host_name));
        let links = findings.keep("", settings::links(&limits, &http));
        let lost_after = findings.keep("limits", settings::lost_after(&limits));
        let mut sessions = findings.keep("limits", SessionsSettings::try_from(&limits));
        let listener = findings.keep("http", HttpSettings::try_from(&http));
        let listen = findings.keep("http", settings::listen(&http));
        let access = listen.zip(device.clone()).and_then(|(listen, device)| {
            let access = settings::access(auth, http, !mqtt.url.is_empty(), listen, device, secrets, &mut warnings);
            findings.keep("", access)
        });
        let mqtt = findings.keep("mqtt", broker::mqtt(mqtt, secrets, &mut warnings));
        let media = listen.and_then(|listen| findings.keep("ice", settings::media(&ice, listen, &camera)));
        let relay = ice.relay;
        let mut ice_servers = Vec::new();
        for (index, server) in ice.servers.into_iter().enumerate() {
            let server = settings::ice_server(server, secrets, &mut warnings);
            ice_servers.extend(findings.keep(&format!("ice.servers[{index}]"), server));
        }
        let log = findings.keep("log", log.try_into());
        let mut cameras: Vec<CameraSettings> = Vec::new();
        if camera.is_empty() {
            findings.keep::<()>("", Err(Wrong::new("camera", "the list is empty; add a [[camera]]")));
        }
        for (index, camera) in camera.into_iter().enumerate() {
            let camera =
                settings::camera(camera).and_then(|(camera, places)| Ok((distinct(camera, &cameras)?, places)));
            let Some((camera, max_viewers)) = findings.keep(&format!("camera[{index}]"), camera) else { continue };
            if let Some(sessions) = &mut sessions {
                let viewed = ViewedCamera { id: camera.id.clone(), max_viewers, renditions: renditions(&camera) };
                sessions.cameras.push(viewed);
            }
            cameras.push(camera);
        }
        if !findings.problems.is_empty() {
            return None;
        }
        Some(Self {
            device: device?,
            state_dir: state_dir?,
            listen: listen?,
            http: listener?,
            media: media?,
            ice_servers,
            relay,
            access: access?,
            mqtt: mqtt?,
            links: links?,
            sessions: sessions?,
            lost_after: lost_after?,
            cameras,
            log: log?,
            warnings,
        })
    }
}

impl Sources {
    pub const DEFAULT_CONFIG: &str = "/etc/edgecam/edgecam.toml";

    /// This process's own: its environment, and this machine's name.
    pub fn of_this_process(config: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            config,
            default_config: Self::DEFAULT_CONFIG.into(),
            environment: std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect(),
            flags,
            host_name: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        }
    }

    /// Where `conf.d` and secret files are looked for.
    pub fn folder(&self) -> PathBuf {
        let file = self.config.as_ref().unwrap_or(&self.default_config);
        file.parent().unwrap_or(Path::new("")).to_path_buf()
    }

    /// Whether this is the configuration that the system's service runs with.
    pub fn is_the_services(&self) -> bool {
        self.config.as_deref().is_none_or(|config| config == Path::new(Self::DEFAULT_CONFIG))
    }

    fn has_files(&self) -> bool {
        self.config.is_some() || self.default_config.exists()
    }
}

/// The merged layers, every key and type in order.
fn read(sources: &Sources) -> Result<(ConfigToml, Findings), ConfigError> {
    let merged = layers::merge(sources, &Shape::of_the_file())?;
    let findings = Findings { origins: shape::origins(&merged), problems: Vec::new() };
    let file = merged.try_deserialize().map_err(|error| {
        // The comparison with the shape leaves nothing to refuse here; should it ever, it is said in the crate's words.
        ConfigError::Invalid(vec![findings.problem(Wrong::new("configuration", error.to_string()))])
    })?;
    Ok((file, findings))
}

const BY_DEFAULT: &str = "by default";

/// Collects what is wrong, so that the owner learns it all at once.
struct Findings {
    origins: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Findings {
    /// The settings, or `None` with the problem kept. The keys of `section` are relative to it.
    fn keep<T>(&mut self, section: &str, settings: Result<T, Wrong>) -> Option<T> {
        let wrong = match settings {
            Ok(settings) => return Some(settings),
            Err(wrong) if section.is_empty() => wrong,
            Err(wrong) => wrong.within(section),
        };
        let problem = self.problem(wrong);
        self.problems.push(problem);
        None
    }

    fn problem(&self, Wrong { key, what }: Wrong) -> Problem {
        let origin = self.origin(&key).to_owned();
        Problem { key, what, origin }
    }

    /// Where `key` was set; of a key that is missing, where its surroundings were.
    fn origin(&self, mut key: &str) -> &str {
        loop {
            if let Some(origin) = self.origins.get(key) {
                return origin;
            }
            let Some(end) = key.rfind(['.', '[']) else { return BY_DEFAULT };
            key = &key[..end];
        }
    }
}

/// The same id would make two cameras one to viewers; the same device can be opened only once.
fn distinct(camera: CameraSettings, others: &[CameraSettings]) -> Result<CameraSettings, Wrong> {
    let CameraSettings { id, source, .. } = &camera;
    if others.iter().any(|other| other.id == *id) {
        return Err(Wrong::new("id", format!("{id} is the id of another camera too; give each its own")));
    }
    let exclusive = matches!(source, Source::Auto | Source::V4l2(_));
    match others.iter().find(|other| exclusive && other.source == *source) {
        Some(other) => {
            let what = format!("camera {} has this source too, and only one can open it", other.id);
            Err(Wrong::new("source", what))
        }
        None => Ok(camera),
    }
}

/// What the viewers' rules need to know of a camera's encoders.
fn renditions(camera: &CameraSettings) -> RenditionsSettings {
    RenditionsSettings {
        high: Range { least: camera.encoder.min, most: camera.encoder.max },
        low: camera.low.map(|low| Range { least: low.min, most: low.max }),
    }
}
