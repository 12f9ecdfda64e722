//! Which H.264 encoder this machine has: asked of GStreamer, tried with a short encode, and used within its limits.
//!
//! How each is treated in a pipeline says [`element`]. All give constrained baseline without B pictures, so that every browser decodes each picture as it comes.

mod element;
#[cfg(test)]
mod encoding_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use serde::Serialize;
use tracing::{debug, info, warn};

use super::device::{self, Device, Role};
use super::input::Rate;
use super::{Prefer, SourceError, now, pipeline};
use crate::core::access_unit::Bitrate;
use crate::core::annex_b::{Contents, Sps};

pub(super) use element::{EncodeSettings, Encoder};

/// An encoder that edgecam knows how to treat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A V4L2 memory-to-memory encoder: Raspberry Pi 4 and before, and other boards.
    V4l2,
    X264,
    OpenH264,
}

impl Kind {
    /// From the best to the last resort.
    pub const ALL: [Self; 3] = [Self::V4l2, Self::X264, Self::OpenH264];

    /// The element's name in GStreamer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4l2 => "v4l2h264enc",
            Self::X264 => "x264enc",
            Self::OpenH264 => "openh264enc",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::V4l2 => "gstreamer1.0-plugins-good",
            Self::X264 => "gstreamer1.0-plugins-ugly",
            Self::OpenH264 => "gstreamer1.0-plugins-bad",
        }
    }
}

/// The encoder for a picture, and why this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderChoice {
    pub kind: Kind,
    /// Why this encoder, and why not a better one.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncoderError {
    #[error("none of the H.264 encoders works: {0}; install gstreamer1.0-plugins-ugly")]
    None(String),
}

/// What a look at one encoder told; for `edgecam devices` and `edgecam doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncoderReport {
    pub name: &'static str,
    pub works: bool,
    /// The node of a hardware encoder.
    pub device: Option<PathBuf>,
    /// Why it does not work; empty when it does.
    pub problem: String,
}

/// Tries the encoders from the best on until one works, and remembers it. Blocks for up to some seconds.
pub fn prepare() {
    // What is there now is what GStreamer will know.
    nodes_that_came_later();
    if let Err(error) = pipeline::init() {
        warn!(error = error.in_full(), "no GStreamer");
        return;
    }
    let working = Kind::ALL.into_iter().find(|kind| test(*kind) == Outcome::Works);
    match working {
        Some(kind) => info!(encoder = kind.name(), "encoder tried, it works"),
        None => warn!("no H.264 encoder works; install gstreamer1.0-plugins-ugly"),
    }
}

/// Tries every encoder. Blocks for up to some seconds.
///
/// # Errors
/// When GStreamer does not start.
pub fn survey() -> Result<Vec<EncoderReport>, SourceError> {
    pipeline::init()?;
    Ok(Kind::ALL.into_iter().map(report).collect())
}

/// Tries the encoders from the best on until one works, which is then the last. Blocks for up to some seconds.
///
/// # Errors
/// When GStreamer does not start.
pub fn first_working() -> Result<Vec<EncoderReport>, SourceError> {
    pipeline::init()?;
    let mut reports = Vec::new();
    for kind in Kind::ALL {
        reports.push(report(kind));
        if reports.last().is_some_and(|report| report.works) {
            break;
        }
    }
    Ok(reports)
}

fn report(kind: Kind) -> EncoderReport {
    let outcome = test(kind);
    let device = (kind == Kind::V4l2).then(hardware_node).flatten();
    EncoderReport { name: kind.name(), works: outcome == Outcome::Works, device, problem: outcome.to_string() }
}

/// What is to be encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) rate: Rate,
}

impl Picture {
    fn macroblocks_per_second(&self) -> f64 {
        f64::from(self.width.div_ceil(16) * self.height.div_ceil(16)) * self.rate.as_f64()
    }
}

/// Picks the best working encoder for a picture. Blocks when an encoder was not tried before.
pub(super) fn choose(prefer: Prefer, picture: Picture) -> Result<EncoderChoice, SourceError> {
    pipeline::init()?;
    let no_hardware = (prefer == Prefer::Software).then(|| "a software encoder was asked for".to_owned());
    Ok(choose_by(no_hardware, picture, test)?)
}

/// Picks the encoder for a second picture while another is encoded already. `no_hardware`: why it is to be software, if so.
pub(super) fn choose_beside(
    (kind, first): (Kind, Picture),
    second: Picture,
    no_hardware: Option<String>,
) -> Result<EncoderChoice, SourceError> {
    let no_hardware = no_hardware.or_else(|| no_room_beside(kind, first, second));
    Ok(choose_by(no_hardware, second, test)?)
}

fn no_room_beside(kind: Kind, first: Picture, second: Picture) -> Option<String> {
    if kind != Kind::V4l2 {
        return Some("the high rendition is encoded in software".into());
    }
    let is_too_much = first.macroblocks_per_second() + second.macroblocks_per_second() > V4L2_MACROBLOCKS;
    is_too_much.then(|| {
        let Picture { width, height, rate } = first;
        format!("v4l2h264enc has no room for it beside {width}x{height} at {rate} fps")
    })
}

fn choose_by(
    no_hardware: Option<String>,
    picture: Picture,
    mut test: impl FnMut(Kind) -> Outcome,
) -> Result<EncoderChoice, EncoderError> {
    let mut why_not = Vec::from_iter(no_hardware);
    let is_software = !why_not.is_empty();
    for kind in Kind::ALL {
        if kind == Kind::V4l2 && is_software {
            continue;
        }
        if let Some(limit) = limit(kind, picture) {
            why_not.push(format!("{} {limit}", kind.name()));
            continue;
        }
        match test(kind) {
            Outcome::Works => {
                let what = match kind {
                    Kind::V4l2 => "encodes in hardware",
                    Kind::X264 | Kind::OpenH264 => "encodes in software",
                };
                let mut reason = format!("{} {what}", kind.name());
                if !why_not.is_empty() {
                    reason = format!("{reason}, since {}", why_not.join(" and "));
                }
                return Ok(EncoderChoice { kind, reason });
            }
            outcome => why_not.push(format!("{} {outcome}", kind.name())),
        }
    }
    Err(EncoderError::None(why_not.join(", ")))
}

/// What an encoder must not be asked for.
fn limit(kind: Kind, Picture { width, height, rate }: Picture) -> Option<String> {
    if kind != Kind::V4l2 {
        return None;
    }
    if width > V4L2_LARGEST || height > V4L2_LARGEST {
        return Some(format!("takes no picture over {V4L2_LARGEST} pixels"));
    }
    if rate.as_f64() < V4L2_SLOWEST {
        return Some(format!("can hang below {V4L2_SLOWEST} fps"));
    }
    None
}

/// bcm2835-v4l2-codec.c: MAX_W_CODEC, MAX_H_CODEC.
const V4L2_LARGEST: u32 = 1920;
/// <https://github.com/raspberrypi/linux/issues/4739>
const V4L2_SLOWEST: f64 = 9.0;
/// What the Pi's encoder does in a second, all its pictures together: 1920x1080 at 30 fps, level 4 (ITU-T H.264, table A-1).
const V4L2_MACROBLOCKS: f64 = 245_760.0;

/// What trying an encoder told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    Missing,
    /// Its node came after GStreamer had looked.
    Late,
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => Ok(()),
            Self::Missing => f.write_str("is not there"),
            Self::Late => f.write_str("came after edgecam had started (restart edgecam to use it)"),
            Self::Failed(why) => write!(f, "failed its test ({why})"),
        }
    }
}

/// What was tried, and when. An encoder that was missing is looked for again each time.
static OUTCOMES: Mutex<BTreeMap<Kind, (Outcome, Instant)>> = Mutex::new(BTreeMap::new());

/// How long a failed encoder is left alone. A firmware that came back is found in the end.
const FAILURE_STANDS_FOR: Duration = Duration::from_secs(600);

fn test(kind: Kind) -> Outcome {
    // Held over the test: whoever asks meanwhile needs its outcome, not a second test beside it.
    let mut outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    match outcomes.get(&kind) {
        Some((Outcome::Works, _)) => return Outcome::Works,
        Some((known, at)) if now().saturating_duration_since(*at) < FAILURE_STANDS_FOR => return known.clone(),
        _ => {}
    }
    let outcome = match gst::ElementFactory::find(kind.name()) {
        None => return why_missing(kind),
        Some(_) => match try_encode(kind) {
            Ok(()) => Outcome::Works,
            Err(why) => Outcome::Failed(why),
        },
    };
    debug!(encoder = kind.name(), ?outcome, "encoder tried");
    outcomes.insert(kind, (outcome.clone(), now()));
    outcome
}

/// A pipeline with this encoder failed: it is tried again before it gets a camera's pictures.
///
/// That is also the way to find out without harm: an encoder that does not start never gives back the picture it was given
/// (GStreamer 1.22), and with a picture of the camera's the camera would stay open.
pub(super) fn doubt(kind: Kind) {
    if kind == Kind::V4l2 {
        OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner).remove(&kind);
    }
}

/// What it means that GStreamer does not know an encoder.
///
/// It has `v4l2h264enc` only for nodes it saw when it started, and cannot be made to look again (tried with 1.22).
fn why_missing(kind: Kind) -> Outcome {
    let is_codec = |path: &PathBuf| Device::open(path).is_ok_and(|device| device.node().role == Role::Codec);
    if kind == Kind::V4l2 && nodes_that_came_later().iter().any(is_codec) {
        return Outcome::Late;
    }
    Outcome::Missing
}

/// Video nodes that were not there when this was asked for the first time.
fn nodes_that_came_later() -> Vec<PathBuf> {
    static FIRST_SEEN: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let mut nodes = device::node_paths();
    let first_seen = FIRST_SEEN.get_or_init(|| nodes.clone());
    nodes.retain(|path| !first_seen.contains(path));
    nodes
}

/// The node behind `v4l2h264enc`.
fn hardware_node() -> Option<PathBuf> {
    let element = gst::ElementFactory::find(Kind::V4l2.name())?.create().build().ok()?;
    Some(element.property::<Option<String>>("device")?.into())
}

const TEST_PICTURE: Picture = Picture { width: 320, height: 240, rate: Rate::per_second(30) };
const TEST_PICTURES: i32 = 10;
/// An encoder that hangs is told from one that works on a busy machine.
const TEST_PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(5);

/// Encodes a few small pictures and looks at what comes out.
fn try_encode(kind: Kind) -> Result<(), String> {
    let settings = EncodeSettings {
        picture: TEST_PICTURE,
        bitrate: Bitrate::from_kbps(500),
        keyframe_interval: Duration::from_secs(2),
    };
    let pipeline = gst::Pipeline::new();
    let (sink, _encoder) = test_graph(&pipeline, kind, &settings).map_err(|error| error.in_full())?;
    let result = judge(&pipeline, &sink);
    if let Err(error) = pipeline.set_state(gst::State::Null) {
        warn!(encoder = kind.name(), %error, "the encoder does not stop");
    }
    result
}

fn test_graph(
    pipeline: &gst::Pipeline,
    kind: Kind,
    settings: &EncodeSettings,
) -> Result<(gst_app::AppSink, Encoder), SourceError> {
    use pipeline::{add_and_link, element, raw_caps};

    let source = element("videotestsrc")?;
    source.set_property("num-buffers", TEST_PICTURES);
    let raw = element("capsfilter")?;
    raw.set_property("caps", raw_caps("I420", &settings.picture));
    let convert = element("videoconvert")?;
    let encoder = Encoder::new(kind, settings)?;
    let parts = [vec![source, raw, convert], encoder.elements(), pipeline::parser()?].concat();
    let sink = gst_app::AppSink::builder().sync(false).build();
    add_and_link(pipeline, parts, sink.upcast_ref())?;
    Ok((sink, encoder))
}

fn judge(pipeline: &gst::Pipeline, sink: &gst_app::AppSink) -> Result<(), String> {
    let failure = |pipeline: &gst::Pipeline| {
        let message = pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => pipeline::words(error).join(", "),
            _ => format!("no picture within {} s", TEST_PATIENCE.seconds()),
        }
    };
    pipeline.set_state(gst::State::Playing).map_err(|_| failure(pipeline))?;
    let first = sink.try_pull_sample(TEST_PATIENCE).ok_or_else(|| failure(pipeline))?;
    let map = first.buffer().and_then(|buffer| buffer.map_readable().ok()).ok_or("its output cannot be read")?;
    if !Contents::of(&map).is_keyframe() {
        return Err("its first picture is no keyframe with parameter sets".into());
    }
    match Sps::find(&map) {
        Some(sps) if sps.is_constrained_baseline() => {}
        other => return Err(format!("its output is no constrained baseline: {other:?}")),
    }
    // The others show that it goes on; that it is not stuck after the first picture.
    for _ in 1..TEST_PICTURES {
        sink.try_pull_sample(TEST_PATIENCE).ok_or_else(|| failure(pipeline))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HD: Picture = Picture { width: 1280, height: 720, rate: Rate::per_second(30) };

    #[test]
    fn hardware_that_works_is_used() {
        let choice = choose_by(None, HD, |_| Outcome::Works).unwrap();
        assert_eq!(choice, EncoderChoice { kind: Kind::V4l2, reason: "v4l2h264enc encodes in hardware".into() });
    }

    #[test]
    fn the_reason_says_why_no_better_encoder_runs() {
        let outcomes = |kind| match kind {
            Kind::V4l2 => Outcome::Missing,
            Kind::X264 => Outcome::Failed("no picture within 5 s".into()),
            Kind::OpenH264 => Outcome::Works,
        };
        let choice = choose_by(None, HD, outcomes).unwrap();
        assert_eq!(choice.kind, Kind::OpenH264);
        assert_eq!(
            choice.reason,
            "openh264enc encodes in software, since v4l2h264enc is not there and \
             x264enc failed its test (no picture within 5 s)"
        );
    }

    #[test]
    fn an_owner_who_wants_software_gets_it() {
        let wish = Some("a software encoder was asked for".into());
        let choice = choose_by(wish, HD, |_| Outcome::Works).unwrap();
        assert_eq!(choice.kind, Kind::X264);
        assert_eq!(choice.reason, "x264enc encodes in software, since a software encoder was asked for");
    }

    #[test]
    fn hardware_is_not_asked_for_what_makes_it_hang() {
        for picture in [
            Picture { rate: Rate { numerator: 25, denominator: 3 }, ..HD },
            Picture { width: 2560, height: 1440, ..HD },
        ] {
            let choice = choose_by(None, picture, |_| Outcome::Works).unwrap();
            assert_eq!(choice.kind, Kind::X264, "{picture:?}");
        }
    }

    #[test]
    fn a_second_picture_is_encoded_in_hardware_as_far_as_it_has_room() {
        let half = |Picture { width, height, rate }| Picture { width: width / 2, height: height / 2, rate };
        assert_eq!(no_room_beside(Kind::V4l2, HD, half(HD)), None);
        let full_hd = Picture { width: 1920, height: 1080, ..HD };
        let why = no_room_beside(Kind::V4l2, full_hd, half(full_hd)).unwrap();
        assert_eq!(why, "v4l2h264enc has no room for it beside 1920x1080 at 30 fps");
        assert!(no_room_beside(Kind::X264, HD, half(HD)).is_some());
    }

    #[test]
    fn without_any_encoder_the_error_names_them_all() {
        let error = choose_by(None, HD, |_| Outcome::Missing).unwrap_err().to_string();
        assert!(Kind::ALL.iter().all(|kind| error.contains(kind.name())), "{error}");
    }
}
