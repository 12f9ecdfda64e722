//! Whether each configured camera gives pictures: opened as the daemon would open it, unless a daemon has it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::facts::{CameraFacts, Look, PictureFacts, limited};
use super::network;
use crate::camera::device::{self, Device, Node, Role};
use crate::camera::input::{self, Encoding, Wanted};
use crate::camera::{self, CameraSettings, Sink, Source};
use crate::config::Config;
use crate::core::camera::{CameraState, CameraStatus, Demand, LowState};
use crate::probe::daemon;
use crate::signaling::access::Rule;
use crate::signaling::token::{self, Grant, Permission};
use crate::signaling::wire;
use crate::switches::SwitchFile;

/// A camera's first picture, and what is tried when it does not come, take no longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A driver that does not let go is left alone.
const LETTING_GO: Duration = Duration::from_secs(5);
const LOOKING: Duration = Duration::from_secs(5);

/// One camera after the other, since they may share an encoder.
pub(super) async fn look(config: &Config, daemon_runs: bool, knows_secrets: bool, now: SystemTime) -> Vec<CameraFacts> {
    let there = if daemon_runs && knows_secrets { ask_daemon(config, now).await } else { Vec::new() };
    let off = SwitchFile::new(config.state_dir.clone()).load(config.cameras.iter().map(|camera| camera.id.clone()));
    let mut cameras = Vec::new();
    for settings in &config.cameras {
        let told = there.iter().find(|camera| camera.id == settings.id.as_str());
        let settings_to_look = settings.clone();
        let look = limited(LOOKING, move || look_at(&settings_to_look)).await.flatten();
        let picture = match told {
            _ if off.contains(&settings.id) => PictureFacts::SwitchedOff,
            Some(Told { state, .. }) if state == "running" => PictureFacts::Streamed(told.and_then(Told::words)),
            Some(Told { state, error: Some(error), .. }) if state == "failed" => {
                PictureFacts::FailsThere(error.clone())
            }
            _ if is_streamed(settings) => PictureFacts::Streamed(None),
            // Tried now, it would fail because the daemon has it.
            None if daemon_runs && is_device(&settings.source) => PictureFacts::NotTold,
            _ => try_out(settings.clone()).await,
        };
        cameras.push(CameraFacts { id: settings.id.to_string(), source: in_words(&settings.source), look, picture });
    }
    cameras
}

/// A camera as `/api/cameras` tells it.
#[derive(Deserialize)]
struct Told {
    id: String,
    state: String,
    error: Option<String>,
    source: Option<String>,
    encoder: Option<String>,
}

#[derive(Deserialize)]
struct AllTold {
    cameras: Vec<Told>,
}

impl Told {
    fn words(&self) -> Option<String> {
        Some(format!("{}, {}", self.source.as_ref()?, self.encoder.as_ref()?))
    }
}

/// What the running daemon says of its cameras; nothing when it does not let us in.
async fn ask_daemon(config: &Config, now: SystemTime) -> Vec<Told> {
    let token = match &config.access.rule {
        Rule::Open => None,
        Rule::Key(key) => {
            let grant = Grant { camera: None, permissions: vec![Permission::View], subject: None };
            Some(token::mint(key, &config.device, &grant, Some(Duration::from_secs(60)), now))
        }
    };
    let address = network::here(config.listen);
    let answer = limited(LOOKING, move || daemon::get(address, "/api/cameras", token.as_deref())).await;
    let Some(Ok((200, body))) = answer else { return Vec::new() };
    wire::read::<AllTold>(body.as_bytes()).map(|device| device.cameras).unwrap_or_default()
}

fn is_device(source: &Source) -> bool {
    matches!(source, Source::V4l2(_) | Source::Auto)
}

/// Whether another edgecam has the device open.
fn is_streamed(settings: &CameraSettings) -> bool {
    match &settings.source {
        Source::V4l2(path) => device::holders(path).iter().any(|holder| holder.starts_with("edgecam (")),
        Source::Auto | Source::Test | Source::Clip(_) => false,
    }
}

/// Runs the camera as the daemon does until it runs, which it does with its first picture, or fails.
async fn try_out(settings: CameraSettings) -> PictureFacts {
    let sink: Sink = Arc::new(|_, _| {});
    let demand = Demand { running: true, off: false, bitrate: settings.encoder.max, keyframe: 0, low: None };
    let (_demand, demand) = watch::channel(demand);
    let (status, mut seen) =
        watch::channel(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed });
    let stopping = CancellationToken::new();
    let running = camera::run(settings, demand, sink, status, Arc::default(), stopping.clone());
    let mut outcome = PictureFacts::Silent(PATIENCE);
    let watching = async {
        let settled = |status: &CameraStatus| !matches!(status.state, CameraState::Idle | CameraState::Opening);
        if let Ok(Ok(status)) = timeout(PATIENCE, seen.wait_for(settled)).await {
            outcome = match (&status.state, &status.stream) {
                (CameraState::BackingOff { error, .. }, _) => PictureFacts::Failed(error.clone()),
                (_, Some(stream)) => PictureFacts::Came(stream.clone()),
                (_, None) => PictureFacts::Silent(PATIENCE),
            };
        }
        stopping.cancel();
    };
    let both = async { tokio::join!(running, watching) };
    let _ = timeout(PATIENCE + LETTING_GO, both).await;
    outcome
}

/// What the device offers; `None` where there is none to ask.
fn look_at(settings: &CameraSettings) -> Option<Look> {
    let path = match &settings.source {
        Source::V4l2(path) => path.clone(),
        Source::Auto => first_camera(settings)?,
        Source::Test | Source::Clip(_) => return None,
    };
    let device = Device::open(&path).ok()?;
    let offers = device.usable_offers((settings.width, settings.height));
    let usable = offers.iter().filter(|offer| Encoding::of(offer.format).is_some());
    let controls: Vec<String> = device.controls().unwrap_or_default().into_iter().map(|control| control.name).collect();
    let unknown = settings.controls.keys().filter(|name| !controls.contains(name)).cloned().collect();
    Some(Look { formats: usable.map(|offer| offer.format.to_string()).collect(), unknown_controls: unknown, controls })
}

/// The one that `source = "auto"` takes.
fn first_camera(settings: &CameraSettings) -> Option<std::path::PathBuf> {
    let CameraSettings { width, height, fps, encoder, .. } = *settings;
    let wanted = Wanted { width, height, fps, prefer: encoder.prefer };
    let can_be_used = |path: &std::path::PathBuf| {
        let offers = Device::open(path).map(|device| device.usable_offers((width, height)));
        offers.is_ok_and(|offers| input::choose(&offers, &wanted).is_ok())
    };
    device::nodes()
        .into_iter()
        .flatten()
        .filter(|node| node.role == Role::Camera)
        .map(|Node { path, .. }| path)
        .find(can_be_used)
}

fn in_words(source: &Source) -> String {
    match source {
        Source::Auto => "auto".into(),
        Source::Test => "test".into(),
        Source::V4l2(path) => format!("v4l2:{}", path.display()),
        Source::Clip(path) => format!("clip:{}", path.display()),
    }
}
