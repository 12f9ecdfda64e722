//! From settings to a running source: which device, which of its formats, which encoder, and what to try when that fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::clip::{Clip, Recording};
use super::device::{self, Device, Node, Role};
use super::encoder::{self, EncodeSettings, EncoderChoice, Kind, Picture};
use super::input::{self, Choice, Encoding, Rate, Wanted};
use super::pipeline::{CapturePlan, Pipeline, Plan};
use super::{CameraSettings, Feed, LowSettings, Open, Opened, Prefer, Source, SourceError};
use crate::core::access_unit::Bitrate;
use crate::core::camera::Stream;

pub(super) struct Opener {
    settings: CameraSettings,
    /// Uncopied pictures did not work with this camera; not tried again.
    must_copy: AtomicBool,
}

impl Opener {
    pub(super) fn new(settings: CameraSettings) -> Self {
        Self { settings, must_copy: AtomicBool::new(false) }
    }

    fn wanted(&self) -> Wanted {
        let CameraSettings { width, height, fps, encoder, .. } = self.settings;
        Wanted { width, height, fps, prefer: encoder.prefer }
    }

    fn open_clip(&self, path: &Path, feed: Feed) -> Result<Opened, SourceError> {
        let recording = Recording::read(path)?;
        let rate = Rate::per_second(self.settings.fps);
        let (width, height) = (recording.width, recording.height);
        let stream = Stream {
            source: format!("clip {width}x{height} at {rate} fps from {}", path.display()),
            width,
            height,
            fps: rate.rounded(),
            encoder: PASSTHROUGH.into(),
            encoder_reason: "the clip is recorded as H.264".into(),
        };
        let no_low = Some("a clip is played as it was recorded, and not encoded again".into());
        Ok(Opened { source: Box::new(Clip::play(recording, rate, feed)?), stream, no_low })
    }

    fn open_test(&self, bitrate: Bitrate, feed: Feed, cancelled: &CancellationToken) -> Result<Opened, SourceError> {
        let CameraSettings { width, height, fps, .. } = self.settings;
        let picture = Picture { width, height, rate: Rate::per_second(fps) };
        let source = format!("test picture {width}x{height} at {fps} fps");
        self.open_encoded(&CapturePlan::Test(picture), picture, &source, bitrate, feed, cancelled)
    }

    fn open_device(
        &self,
        path: &Path,
        bitrate: Bitrate,
        feed: Feed,
        cancelled: &CancellationToken,
    ) -> Result<Opened, SourceError> {
        let choice = self.set_up_device(path)?;
        let rate = choice.rate.unwrap_or(Rate::per_second(self.settings.fps));
        let picture = Picture { width: choice.width, height: choice.height, rate };
        let source = format!("{choice} from {} ({})", path.display(), choice.reason);
        let passed_through = choice.encoding == Encoding::H264;
        let capture = CapturePlan::Device { path: path.to_owned(), choice, dmabuf: false };
        if passed_through {
            let plan = Plan { capture, encoder: None, low: None };
            let pipeline = Pipeline::open(&plan, feed, cancelled)?;
            let reason = "the camera encodes H.264 itself; its bitrate and keyframes are its own affair".into();
            let stream = stream(&source, picture, PASSTHROUGH, reason);
            let no_low = "the camera encodes H.264 itself and gives no raw picture to make a smaller one of; \
                          encoder.prefer = \"software\" or \"hardware\" changes that";
            return Ok(Opened { source: Box::new(pipeline), stream, no_low: Some(no_low.into()) });
        }
        self.open_encoded(&capture, picture, &source, bitrate, feed, cancelled)
    }

    /// Chooses the format and sets the controls. The device is closed again afterwards: GStreamer opens it for itself.
    fn set_up_device(&self, path: &Path) -> Result<Choice, SourceError> {
        let device = Device::open(path)?;
        if let Role::Other(why) = device.node().role {
            return Err(SourceError::NoCamera { path: path.to_owned(), why });
        }
        let offers = device.usable_offers((self.settings.width, self.settings.height));
        let choice = input::choose(&offers, &self.wanted());
        let choice = choice.map_err(|source| SourceError::Choice { path: path.to_owned(), source })?;
        for problem in device.set_controls(&self.settings.controls) {
            warn!(%problem, "a control of the camera was not set");
        }
        Ok(choice)
    }

    /// Tries the best encoder, then what is left when it does not work with this camera.
    fn open_encoded(
        &self,
        capture: &CapturePlan,
        picture: Picture,
        source: &str,
        bitrate: Bitrate,
        feed: Feed,
        cancelled: &CancellationToken,
    ) -> Result<Opened, SourceError> {
        let best = encoder::choose(self.settings.encoder.prefer, picture)?;
        let mut failures = Vec::new();
        let low = self.low_picture(picture);
        for attempt in self.attempts(capture, best, picture) {
            let Attempt { capture, choice } = attempt?;
            let settings =
                EncodeSettings { picture, bitrate, keyframe_interval: self.settings.encoder.keyframe_interval };
            let copies = !matches!(capture, CapturePlan::Device { dmabuf: true, .. });
            let plan = Plan { capture, encoder: Some((choice.kind, settings)), low: low.clone().ok() };
            match Pipeline::open(&plan, feed.clone(), cancelled) {
                Ok(pipeline) => {
                    let reason = [vec![choice.reason], failures].concat().join("; ");
                    let stream = stream(source, picture, choice.kind.name(), reason);
                    return Ok(Opened { source: Box::new(pipeline), stream, no_low: low.err() });
                }
                Err(SourceError::Scattered) => {
                    debug!("pictures have to be copied: they are scattered in the camera's memory");
                    self.must_copy.store(true, Ordering::Relaxed);
                }
                Err(error) if choice.kind == Kind::V4l2 && may_be_the_encoder(&error) => {
                    encoder::doubt(choice.kind);
                    let error = error.in_full();
                    if copies {
                        warn!(error, "the hardware encoder failed, trying software");
                        failures.push(format!("{} failed: {error}", choice.kind.name()));
                    } else {
                        debug!(error, "pictures have to be copied");
                        self.must_copy.store(true, Ordering::Relaxed);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(SourceError::Graph(failures.join("; ")))
    }

    /// What the low rendition of a picture is, or why there can be none.
    fn low_picture(&self, high: Picture) -> Result<Picture, String> {
        let Some(LowSettings { width, height, .. }) = self.settings.low else {
            return Err("it is not wanted: low.enabled = false".into());
        };
        let smaller = |wanted: Option<u32>, full: u32| wanted.filter(|&wanted| wanted < full).unwrap_or(full / 4 * 2);
        let low = Picture { width: smaller(width, high.width), height: smaller(height, high.height), rate: high.rate };
        if low.width.min(low.height) < SMALLEST {
            return Err(format!("{}x{} is too small for a smaller one", high.width, high.height));
        }
        Ok(low)
    }

    /// In the order in which they are to be tried.
    fn attempts(
        &self,
        capture: &CapturePlan,
        best: EncoderChoice,
        picture: Picture,
    ) -> impl Iterator<Item = Result<Attempt, SourceError>> {
        let is_hardware = best.kind == Kind::V4l2;
        let uncopied = match capture {
            CapturePlan::Device { path, choice, .. }
                if is_hardware && choice.encoding == Encoding::Raw && !self.must_copy.load(Ordering::Relaxed) =>
            {
                let capture = CapturePlan::Device { path: path.clone(), choice: choice.clone(), dmabuf: true };
                Some(Ok(Attempt { capture, choice: best.clone() }))
            }
            _ => None,
        };
        let copied = Ok(Attempt { capture: capture.clone(), choice: best });
        let capture = capture.clone();
        let software = is_hardware.then(move || {
            // Only asked for when the hardware failed: then the software is tried for the first time here.
            let choose = move || encoder::choose(Prefer::Software, picture);
            std::iter::once_with(choose).map(move |choice| Ok(Attempt { capture: capture.clone(), choice: choice? }))
        });
        uncopied.into_iter().chain([copied]).chain(software.into_iter().flatten())
    }
}

struct Attempt {
    capture: CapturePlan,
    choice: EncoderChoice,
}

/// In pixels; what every encoder takes (bcm2835-v4l2-codec.c: MIN_W, MIN_H).
const SMALLEST: u32 = 32;

/// What stands in place of an encoder's name when there is none.
const PASSTHROUGH: &str = "passthrough";

impl Open for Opener {
    fn open(&self, bitrate: Bitrate, feed: Feed, cancelled: &CancellationToken) -> Result<Opened, SourceError> {
        match &self.settings.source {
            Source::Test => self.open_test(bitrate, feed, cancelled),
            Source::Clip(path) => self.open_clip(path, feed),
            Source::V4l2(path) => self.open_device(path, bitrate, feed, cancelled),
            Source::Auto => self.open_device(&first_camera(&self.wanted())?, bitrate, feed, cancelled),
        }
    }

    fn present(&self) -> Vec<PathBuf> {
        match &self.settings.source {
            Source::Test => Vec::new(),
            Source::Clip(path) | Source::V4l2(path) => path.exists().then(|| path.clone()).into_iter().collect(),
            Source::Auto => device::node_paths(),
        }
    }
}

/// The first node that gives pictures we can use.
fn first_camera(wanted: &Wanted) -> Result<PathBuf, SourceError> {
    let mut why_not = Vec::new();
    for node in device::nodes() {
        match node {
            Ok(Node { path, role: Role::Camera, .. }) => {
                let offers = Device::open(&path)?.usable_offers((wanted.width, wanted.height));
                match input::choose(&offers, wanted) {
                    Ok(_) => return Ok(path),
                    Err(error) => why_not.push(format!("{}: {error}", path.display())),
                }
            }
            Ok(Node { path, role, .. }) => why_not.push(format!("{} {role}", path.display())),
            Err(error) => why_not.push(error.in_full()),
        }
    }
    let seen = if why_not.is_empty() { device::seen() } else { why_not.join(", ") };
    Err(SourceError::NoneUsable { seen })
}

/// Whether a graph's failure may be the encoder's fault, so that another one could help.
fn may_be_the_encoder(error: &SourceError) -> bool {
    matches!(error, SourceError::Pipeline { .. } | SourceError::Graph(_) | SourceError::EncoderSilent { .. })
}

fn stream(source: &str, picture: Picture, encoder: &str, encoder_reason: String) -> Stream {
    Stream {
        source: source.to_owned(),
        width: picture.width,
        height: picture.height,
        fps: picture.rate.rounded(),
        encoder: encoder.to_owned(),
        encoder_reason,
    }
}
