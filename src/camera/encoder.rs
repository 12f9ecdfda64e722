//! Which H.264 encoder this machine has: asked of GStreamer, tried with a short encode, and used within its limits.
//!
//! All encoders give constrained baseline without B pictures, so that every browser decodes each picture as it comes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use serde::Serialize;
use tracing::{debug, info, warn};

use super::input::Rate;
use super::{Prefer, SourceError, device};
use crate::core::access_unit::Bitrate;
use crate::core::annex_b::{Contents, Sps};

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
    if let Err(error) = super::pipeline::init() {
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
    super::pipeline::init()?;
    Ok(Kind::ALL
        .into_iter()
        .map(|kind| {
            let outcome = test(kind);
            let device = (kind == Kind::V4l2).then(hardware_node).flatten();
            EncoderReport { name: kind.name(), works: outcome == Outcome::Works, device, problem: outcome.to_string() }
        })
        .collect())
}

/// What is to be encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) rate: Rate,
}

/// Picks the best working encoder for a picture. Blocks when an encoder was not tried before.
pub(super) fn choose(prefer: Prefer, picture: Picture) -> Result<EncoderChoice, SourceError> {
    super::pipeline::init()?;
    Ok(choose_by(prefer, picture, test)?)
}

fn choose_by(
    prefer: Prefer,
    picture: Picture,
    mut test: impl FnMut(Kind) -> Outcome,
) -> Result<EncoderChoice, EncoderError> {
    let mut why_not = Vec::new();
    for kind in Kind::ALL {
        if kind == Kind::V4l2 && prefer == Prefer::Software {
            why_not.push("a software encoder was asked for".to_owned());
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

/// What trying an encoder told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    Missing,
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => Ok(()),
            Self::Missing => f.write_str("is not there"),
            Self::Failed(why) => write!(f, "failed its test ({why})"),
        }
    }
}

/// Outcomes stand for the life of the process. An encoder that was missing is looked for again.
static OUTCOMES: Mutex<BTreeMap<Kind, Outcome>> = Mutex::new(BTreeMap::new());

fn test(kind: Kind) -> Outcome {
    // Held over the test: whoever asks meanwhile needs its outcome, not a second test beside it.
    let mut outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = outcomes.get(&kind) {
        return known.clone();
    }
    let outcome = match find(kind) {
        None => return Outcome::Missing,
        Some(_) => match try_encode(kind) {
            Ok(()) => Outcome::Works,
            Err(why) => Outcome::Failed(why),
        },
    };
    debug!(encoder = kind.name(), ?outcome, "encoder tried");
    outcomes.insert(kind, outcome.clone());
    outcome
}

fn find(kind: Kind) -> Option<gst::ElementFactory> {
    let found = gst::ElementFactory::find(kind.name());
    if found.is_none() && kind == Kind::V4l2 && nodes_changed() {
        // GStreamer registers this element only for nodes it saw when it looked last.
        let registry = gst::Registry::get();
        let file = registry.find_plugin("video4linux2").and_then(|plugin| plugin.filename());
        if let Some(folder) = file.as_deref().and_then(Path::parent) {
            registry.scan_path(folder);
        }
        return gst::ElementFactory::find(kind.name());
    }
    found
}

/// Whether video nodes came or went since this was asked last.
fn nodes_changed() -> bool {
    static SEEN: Mutex<Option<Vec<PathBuf>>> = Mutex::new(None);
    let now = device::node_paths();
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let changed = seen.as_ref().is_some_and(|seen| *seen != now);
    *seen = Some(now);
    changed
}

/// The node behind `v4l2h264enc`.
fn hardware_node() -> Option<PathBuf> {
    let element = find(Kind::V4l2)?.create().build().ok()?;
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
    use super::pipeline::{add_and_link, element, raw_caps};

    let source = element("videotestsrc")?;
    source.set_property("num-buffers", TEST_PICTURES);
    let raw = element("capsfilter")?;
    raw.set_property("caps", raw_caps("I420", &settings.picture));
    let convert = element("videoconvert")?;
    let encoder = Encoder::new(kind, settings)?;
    let parts = [vec![source, raw, convert], encoder.elements(), super::pipeline::parser()?].concat();
    let sink = gst_app::AppSink::builder().sync(false).build();
    add_and_link(pipeline, parts, sink.upcast_ref())?;
    Ok((sink, encoder))
}

fn judge(pipeline: &gst::Pipeline, sink: &gst_app::AppSink) -> Result<(), String> {
    let failure = |pipeline: &gst::Pipeline| {
        let message = pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => format!("{} {}", error.error(), error.debug().unwrap_or_default()),
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

/// What an encoder is started with.
#[derive(Clone, Copy, Debug)]
pub(super) struct EncodeSettings {
    pub(super) picture: Picture,
    pub(super) bitrate: Bitrate,
    pub(super) keyframe_interval: Duration,
}

impl EncodeSettings {
    /// The keyframe interval in pictures.
    fn pictures_per_keyframe(&self) -> u32 {
        let pictures = self.keyframe_interval.as_secs_f64() * self.picture.rate.as_f64();
        // With an interval of 1 the Pi's encoder hangs: <https://github.com/raspberrypi/linux/issues/4740>
        (pictures.round() as u32).max(2)
    }
}

/// An encoder in a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    kind: Kind,
    /// Stands before a hardware encoder.
    input: Option<gst::Element>,
    element: gst::Element,
    output: gst::Element,
}

impl Encoder {
    pub(super) fn new(kind: Kind, settings: &EncodeSettings) -> Result<Self, SourceError> {
        let missing = |_| SourceError::NoElement { name: kind.name(), package: kind.package() };
        let element = gst::ElementFactory::make(kind.name()).build().map_err(missing)?;
        let output = super::pipeline::element("capsfilter")?;
        let input = (kind == Kind::V4l2).then(|| super::pipeline::element("identity")).transpose()?;
        let encoder = Self { kind, input, element, output };
        match kind {
            Kind::V4l2 => encoder.set_up_v4l2(settings),
            Kind::X264 => encoder.set_up_x264(settings),
            Kind::OpenH264 => encoder.set_up_openh264(settings),
        }
        Ok(encoder)
    }

    /// What is linked into the pipeline, in this order.
    pub(super) fn elements(&self) -> Vec<gst::Element> {
        self.input.iter().chain([&self.element, &self.output]).cloned().collect()
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes pictures as DMABUFs, so that none is copied. Only hardware can.
    pub(super) fn import_dmabuf(&self) {
        self.element.set_property_from_str("output-io-mode", "dmabuf-import");
        if let Some(input) = &self.input {
            input.set_property("drop-allocation", false);
        }
    }

    /// Raw formats it takes, in GStreamer's words.
    pub(super) fn takes(&self, format: &str) -> bool {
        let Some(pad) = self.element.static_pad("sink") else { return false };
        let wanted = gst::Caps::builder("video/x-raw").field("format", format).build();
        pad.pad_template_caps().can_intersect(&wanted)
    }

    /// Takes effect with one of the next pictures. May wait for the driver.
    pub(super) fn set_bitrate(&self, bitrate: Bitrate) {
        match self.kind {
            Kind::V4l2 => {
                // Set on an open device, these reach the driver at once; those not named keep their values.
                let controls =
                    gst::Structure::builder("controls").field("video_bitrate", v4l2_bitrate(bitrate)).build();
                self.element.set_property("extra-controls", controls);
            }
            Kind::X264 => self.element.set_property("bitrate", bitrate.kbps().max(1)),
            Kind::OpenH264 => {
                let bits = bits_per_second(bitrate);
                // The limit never lies below the target, not even between the two calls.
                if bits > self.element.property::<u32>("max-bitrate") {
                    self.element.set_property("max-bitrate", bits);
                    self.element.set_property("bitrate", bits);
                } else {
                    self.element.set_property("bitrate", bits);
                    self.element.set_property("max-bitrate", bits);
                }
            }
        }
    }

    /// Makes one of the next pictures a keyframe. May wait for the driver.
    pub(super) fn request_keyframe(&self) {
        match self.kind {
            // gstv4l2videoenc.c never looks at a frame's force-keyframe flag: the event would be in vain.
            Kind::V4l2 => {
                let controls = gst::Structure::builder("controls").field("force_key_frame", 1i32).build();
                self.element.set_property("extra-controls", controls);
            }
            Kind::X264 | Kind::OpenH264 => {
                let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
                let sent = self.element.static_pad("src").is_some_and(|pad| pad.send_event(event));
                if !sent {
                    debug!(encoder = self.kind.name(), "the encoder did not take the request for a keyframe");
                }
            }
        }
    }

    fn set_up_v4l2(&self, settings: &EncodeSettings) {
        // Its own buffers are not offered upstream: in GStreamer 1.22 to 1.24 an encoder whose buffers were filled by somebody
        // else is never freed, and keeps its device open (docs/decisions/0103).
        if let Some(input) = &self.input {
            input.set_property("drop-allocation", true);
        }
        let keyframes = i32::try_from(settings.pictures_per_keyframe()).unwrap_or(i32::MAX);
        // Names as GStreamer makes them of the driver's; those a driver does not have are only warned about.
        let controls = gst::Structure::builder("controls")
            .field("repeat_sequence_header", 1i32)
            .field("h264_i_frame_period", keyframes)
            .field("video_gop_size", keyframes)
            .field("video_bitrate", v4l2_bitrate(settings.bitrate))
            .build();
        self.element.set_property("extra-controls", controls);
        // Without a level the Pi's encoder does not start: <https://github.com/raspberrypi/linux/issues/3974>
        let level = level(&settings.picture);
        self.set_output_caps(gst::Caps::builder("video/x-h264").field("level", level));
    }

    fn set_up_x264(&self, settings: &EncodeSettings) {
        let Picture { width, height, rate } = settings.picture;
        let is_small = f64::from(width) * f64::from(height) * rate.as_f64() <= 1280.0 * 720.0 * 30.0;
        // Up to 720p30 one thread and the better preset take a few milliseconds a picture; above it, slices on all cores and the
        // quickest preset keep the time short. Never frame threads, that is sliced-threads=false: they hold two pictures back.
        let (preset, threads) = if is_small { ("superfast", 1u32) } else { ("ultrafast", 0) };
        self.element.set_property_from_str("speed-preset", preset);
        self.element.set_property_from_str("tune", "zerolatency");
        self.element.set_property("threads", threads);
        self.element.set_property("bframes", 0u32);
        self.element.set_property("key-int-max", settings.pictures_per_keyframe());
        self.element.set_property("bitrate", settings.bitrate.kbps().max(1));
        self.element.set_property("aud", false);
        self.set_output_caps(gst::Caps::builder("video/x-h264"));
    }

    fn set_up_openh264(&self, settings: &EncodeSettings) {
        let bits = bits_per_second(settings.bitrate);
        // Its default rate control ignores the bitrate, and its scene detection makes keyframes twice a second.
        self.element.set_property_from_str("rate-control", "bitrate");
        self.element.set_property_from_str("complexity", "low");
        self.element.set_property("scene-change-detection", false);
        self.element.set_property("enable-frame-skip", true);
        self.element.set_property("gop-size", settings.pictures_per_keyframe());
        self.element.set_property("max-bitrate", bits);
        self.element.set_property("bitrate", bits);
        self.set_output_caps(gst::Caps::builder("video/x-h264"));
    }

    fn set_output_caps(&self, caps: gst::caps::Builder<gst::caps::NoFeature>) {
        let caps = caps
            .field("profile", "constrained-baseline")
            .field("stream-format", "byte-stream")
            .field("alignment", "au")
            .build();
        self.output.set_property("caps", caps);
    }
}

/// The driver's range and steps: 25 kbit/s to 25 Mbit/s by 25 kbit/s (bcm2835-v4l2-codec.c).
fn v4l2_bitrate(bitrate: Bitrate) -> i32 {
    let kbps = bitrate.kbps().clamp(25, 25_000);
    i32::try_from(kbps / 25 * 25_000).unwrap_or(25_000_000)
}

fn bits_per_second(bitrate: Bitrate) -> u32 {
    u32::try_from(bitrate.bits_per_second()).unwrap_or(u32::MAX)
}

/// The lowest level that fits (ITU-T H.264, table A-1), but not below 4: with a lower one the Pi's encoder was seen to
/// hang (<https://github.com/raspberrypi/linux/issues/4906>).
fn level(Picture { width, height, rate }: &Picture) -> &'static str {
    let macroblocks = width.div_ceil(16) * height.div_ceil(16);
    let per_second = f64::from(macroblocks) * rate.as_f64();
    match (macroblocks, per_second) {
        (..=8192, ..=245_760.0) => "4",
        (..=8704, ..=522_240.0) => "4.2",
        _ => "5.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HD: Picture = Picture { width: 1280, height: 720, rate: Rate::per_second(30) };

    #[test]
    fn hardware_that_works_is_used() {
        let choice = choose_by(Prefer::Auto, HD, |_| Outcome::Works).unwrap();
        assert_eq!(choice, EncoderChoice { kind: Kind::V4l2, reason: "v4l2h264enc encodes in hardware".into() });
    }

    #[test]
    fn the_reason_says_why_no_better_encoder_runs() {
        let outcomes = |kind| match kind {
            Kind::V4l2 => Outcome::Missing,
            Kind::X264 => Outcome::Failed("no picture within 5 s".into()),
            Kind::OpenH264 => Outcome::Works,
        };
        let choice = choose_by(Prefer::Hardware, HD, outcomes).unwrap();
        assert_eq!(choice.kind, Kind::OpenH264);
        assert_eq!(
            choice.reason,
            "openh264enc encodes in software, since v4l2h264enc is not there and \
             x264enc failed its test (no picture within 5 s)"
        );
    }

    #[test]
    fn an_owner_who_wants_software_gets_it() {
        let choice = choose_by(Prefer::Software, HD, |_| Outcome::Works).unwrap();
        assert_eq!(choice.kind, Kind::X264);
        assert_eq!(choice.reason, "x264enc encodes in software, since a software encoder was asked for");
    }

    #[test]
    fn hardware_is_not_asked_for_what_makes_it_hang() {
        for picture in [
            Picture { rate: Rate { numerator: 25, denominator: 3 }, ..HD },
            Picture { width: 2560, height: 1440, ..HD },
        ] {
            let choice = choose_by(Prefer::Auto, picture, |_| Outcome::Works).unwrap();
            assert_eq!(choice.kind, Kind::X264, "{picture:?}");
        }
    }

    #[test]
    fn without_any_encoder_the_error_names_them_all() {
        let error = choose_by(Prefer::Auto, HD, |_| Outcome::Missing).unwrap_err().to_string();
        assert!(Kind::ALL.iter().all(|kind| error.contains(kind.name())), "{error}");
    }

    #[test]
    fn hardware_bitrates_keep_to_the_drivers_steps() {
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(1)), 25_000);
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(2049)), 2_025_000);
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(90_000)), 25_000_000);
    }

    #[test]
    fn the_level_fits_the_picture_and_is_never_below_4() {
        assert_eq!(level(&TEST_PICTURE), "4");
        assert_eq!(level(&Picture { width: 1920, height: 1080, rate: Rate::per_second(30) }), "4");
        assert_eq!(level(&Picture { width: 1920, height: 1080, rate: Rate::per_second(60) }), "4.2");
        assert_eq!(level(&Picture { width: 1920, height: 1920, rate: Rate::per_second(30) }), "5.1");
    }

    #[test]
    fn a_keyframe_interval_is_never_one_picture() {
        let settings =
            EncodeSettings { picture: HD, bitrate: Bitrate::from_kbps(1000), keyframe_interval: Duration::ZERO };
        assert_eq!(settings.pictures_per_keyframe(), 2);
    }
}
