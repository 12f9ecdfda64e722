//! The second, smaller rendition: a graph of its own beside the camera's, fed with the same raw pictures.
//!
//! ```text
//! … ─┬─ leaky queue ─ (convert) ─ encoder ─ h264parse ─ appsink        the camera's graph
//!   tap
//!    └ ─ ─ ─ appsrc ─ scale ─ encoder ─ h264parse ─ appsink             this one, while it is wanted
//! ```
//!
//! The tap hands on references and never waits: nothing that happens here can delay, drop or end what is above
//! (docs/decisions/0106). Pictures keep their time stamps, so the same picture has the same time in both renditions.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use tracing::{Span, debug, info, warn};

use super::graph::{self, add_and_link, element, parser};
use super::{FIRST_PICTURE, Plan, Remote, Zero, name_of, words};
use crate::camera::encoder::{self, EncodeSettings, Encoder, EncoderChoice, Kind, Picture};
use crate::camera::{LowFeed, SourceError, now};
use crate::core::access_unit::Bitrate;
use crate::core::camera::LowState;

/// Pictures of the camera's that a graph beside it may hold at one time, one waiting and one being scaled.
pub(super) const HELD_BY_TAP: u32 = 2;
/// For the first picture, and between any two. A camera that gives none is found silent, and closed, sooner than this.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often the thread looks up when the bus is silent.
const LOOK_EVERY: gst::ClockTime = gst::ClockTime::from_mseconds(250);

/// Where the camera's raw pictures pass by.
pub(super) struct Tap {
    pad: gst::Pad,
    outlet: Arc<Mutex<Option<gst_app::AppSrc>>>,
}

impl Tap {
    pub(super) fn at(pad: gst::Pad) -> Self {
        let outlet = Arc::new(Mutex::new(None::<gst_app::AppSrc>));
        let connected = Arc::clone(&outlet);
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
            if let (Some(outlet), Some(picture)) = (&*lock(&connected), probe.buffer()) {
                // Full: it drops its oldest. Closing: it takes none. Either is its own affair.
                let _ = outlet.push_buffer(picture.clone());
            }
            gst::PadProbeReturn::Ok
        });
        Self { pad, outlet }
    }

    fn connect(&self, outlet: gst_app::AppSrc) {
        *lock(&self.outlet) = Some(outlet);
    }

    fn disconnect(&self) {
        *lock(&self.outlet) = None;
    }

    /// What passes by.
    fn caps(&self) -> Option<gst::Caps> {
        self.pad.current_caps()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What second graphs beside one camera's are made of.
pub(super) struct Beside {
    tap: Tap,
    zero: Zero,
    /// Encoder and picture of the camera's own graph.
    first: (Kind, Picture),
    picture: Picture,
    keyframe_interval: Duration,
    is_dmabuf: bool,
    /// Why the hardware is not asked again as long as the camera is open.
    hardware_failed: Mutex<Option<String>>,
}

impl Beside {
    /// `None` where the plan wants no second encoder.
    pub(super) fn new(plan: &Plan, tap: Tap, zero: Zero) -> Option<Self> {
        let (kind, EncodeSettings { picture: first, keyframe_interval, .. }) = plan.encoder?;
        let (picture, is_dmabuf) = (plan.low?, plan.is_dmabuf());
        let hardware_failed = Mutex::default();
        Some(Self { tap, zero, first: (kind, first), picture, keyframe_interval, is_dmabuf, hardware_failed })
    }

    fn choose(&self) -> Result<EncoderChoice, SourceError> {
        encoder::choose_beside(self.first, self.picture, lock(&self.hardware_failed).clone())
    }
}

/// A second graph from its opening to its end, on a thread of its own.
pub(super) struct LowBranch {
    remote: Remote,
    thread: JoinHandle<()>,
}

impl LowBranch {
    /// Opens one when `previous` is gone. What becomes of it is told through `feed`; at once, if it cannot even begin.
    pub(super) fn open(beside: Arc<Beside>, bitrate: Bitrate, feed: LowFeed, previous: Option<Self>) -> Option<Self> {
        let remote = Remote::to(gst::Bus::new());
        let untold = feed.clone();
        let thread = std::thread::Builder::new().name("camera-low".into()).spawn({
            let (remote, span) = (remote.clone(), Span::current());
            move || {
                previous.into_iter().for_each(Self::stop);
                span.in_scope(|| Life { beside, bitrate, feed, remote }.live());
            }
        });
        match thread {
            Ok(thread) => Some(Self { remote, thread }),
            Err(error) => {
                untold.set_state(LowState::Unavailable { reason: format!("no thread: {error}") });
                None
            }
        }
    }

    pub(super) fn set_bitrate(&self, bitrate: Bitrate) {
        self.remote.set_bitrate(bitrate);
    }

    pub(super) fn request_keyframe(&self) {
        self.remote.request_keyframe();
    }

    /// Lets it end, without waiting for it.
    pub(super) fn close(&self) {
        self.remote.stop();
    }

    /// Waits until it holds nothing of the camera's any more.
    pub(super) fn stop(self) {
        self.close();
        if self.thread.join().is_err() {
            warn!("the thread of the low rendition had panicked");
        }
    }
}

/// What the thread knows.
struct Life {
    beside: Arc<Beside>,
    bitrate: Bitrate,
    feed: LowFeed,
    remote: Remote,
}

impl Life {
    fn live(self) {
        if let Err(error) = self.try_all() {
            self.feed.set_state(LowState::Unavailable { reason: error.in_full() });
        }
    }

    /// The best way, then what is left when it does not work. `Ok`: it was told to stop.
    fn try_all(&self) -> Result<(), SourceError> {
        loop {
            let choice = self.beside.choose()?;
            // Scaling in hardware is only worth it where the encoder reads the pictures in place.
            let has_scaler = choice.kind == Kind::V4l2 && gst::ElementFactory::find("v4l2convert").is_some();
            if has_scaler && let Ok(()) = self.play(&choice, Scaler::Hardware).map_err(|failure| failure.note(&choice))
            {
                return Ok(());
            }
            match self.play(&choice, Scaler::Software) {
                Ok(()) => return Ok(()),
                Err(failure) if choice.kind == Kind::V4l2 => {
                    let was_open = failure.was_open;
                    let error = failure.note(&choice);
                    encoder::doubt(choice.kind);
                    *lock(&self.beside.hardware_failed) =
                        Some(format!("{} failed: {}", choice.kind.name(), error.in_full()));
                    if was_open {
                        return Err(error);
                    }
                }
                Err(failure) => return Err(failure.error),
            }
        }
    }

    fn play(&self, choice: &EncoderChoice, scaler: Scaler) -> Result<(), Failure> {
        let graph = Graph::start(self, choice.kind, scaler).map_err(Failure::early)?;
        let mut opened = false;
        let result = graph.watch(self, || {
            opened = true;
            let Picture { width, height, .. } = self.beside.picture;
            info!(width, height, encoder = choice.kind.name(), ?scaler, reason = choice.reason, "low rendition open");
            self.feed.set_state(LowState::Open { width, height, encoder: choice.kind.name().into() });
        });
        result.map_err(|error| Failure { error, was_open: opened })
    }
}

struct Failure {
    error: SourceError,
    /// It had given pictures.
    was_open: bool,
}

impl Failure {
    fn early(error: SourceError) -> Self {
        Self { error, was_open: false }
    }

    fn note(self, choice: &EncoderChoice) -> SourceError {
        debug!(encoder = choice.kind.name(), error = self.error.in_full(), "the low rendition failed");
        self.error
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scaler {
    /// The board's picture processor.
    Hardware,
    Software,
}

/// A graph that is fed from the tap, until this is dropped.
struct Graph<'a> {
    pipeline: gst::Pipeline,
    encoder: Encoder,
    tap: &'a Tap,
    last_unit: Arc<Mutex<Instant>>,
}

impl<'a> Graph<'a> {
    fn start(life: &'a Life, kind: Kind, scaler: Scaler) -> Result<Self, SourceError> {
        let Life { beside, bitrate, feed, remote } = life;
        let caps = beside.tap.caps().ok_or_else(|| SourceError::Graph("nobody knows what the camera gives".into()))?;
        let settings =
            EncodeSettings { picture: beside.picture, bitrate: *bitrate, keyframe_interval: beside.keyframe_interval };
        let encoder = Encoder::new(kind, &settings)?;
        let source =
            gst_app::AppSrc::builder().is_live(true).format(gst::Format::Time).caps(&caps).max_bytes(0).build();
        source.set_property("max-buffers", u64::from(HELD_BY_TAP - 1));
        source.set_property_from_str("leaky-type", "downstream");
        let last_unit = Arc::new(Mutex::new(now()));
        let deliver = {
            let (feed, last_unit) = (feed.clone(), Arc::clone(&last_unit));
            move |captured_at, is_keyframe, data| {
                *lock(&last_unit) = now();
                feed.unit(captured_at, is_keyframe, data);
            }
        };
        let sink = graph::output(Arc::clone(&beside.zero), remote.bus.clone(), deliver);
        let pipeline = gst::Pipeline::new();
        pipeline.set_bus(Some(&remote.bus));
        let scaling = match scaler {
            Scaler::Software => in_software(&caps, &beside.picture, &encoder)?,
            Scaler::Hardware => in_hardware(&beside.picture, &encoder, beside.is_dmabuf)?,
        };
        let chain = [vec![source.clone().upcast()], scaling, encoder.elements(), parser()?].concat();
        add_and_link(&pipeline, chain, sink.upcast_ref())?;
        let graph = Self { pipeline, encoder, tap: &beside.tap, last_unit };
        // A refused start has its reason on the bus.
        let _ = graph.pipeline.set_state(gst::State::Playing);
        beside.tap.connect(source);
        Ok(graph)
    }

    /// Fulfils wishes until told to stop; `Err`: it failed.
    fn watch(&self, life: &Life, opened: impl FnOnce()) -> Result<(), SourceError> {
        let Remote { wishes, bus } = &life.remote;
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos, gst::MessageType::Application];
        let mut opened = Some(opened);
        while !wishes.is_stopped() {
            let message = bus.timed_pop_filtered(LOOK_EVERY, &kinds);
            match message.as_ref().map(|message| message.view()) {
                Some(gst::MessageView::Application(own)) => {
                    if own.structure().is_some_and(|own| own.name() == FIRST_PICTURE)
                        && let Some(opened) = opened.take()
                    {
                        opened();
                    }
                }
                Some(gst::MessageView::Error(error)) => {
                    let [message, detail] = words(error);
                    return Err(SourceError::Pipeline { element: name_of(error.src()), message, detail });
                }
                Some(gst::MessageView::Eos(_)) => return Err(super::ended()),
                _ => {}
            }
            // Only of a running encoder: before, a wish might be lost.
            if opened.is_none() {
                wishes.fulfil(Some(&self.encoder));
            }
            if now().saturating_duration_since(*lock(&self.last_unit)) > PATIENCE {
                return Err(SourceError::EncoderSilent { within: PATIENCE });
            }
        }
        Ok(())
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        self.tap.disconnect();
        if let Err(error) = self.pipeline.set_state(gst::State::Null) {
            warn!(%error, "the graph of the low rendition does not stop");
        }
    }
}

fn in_software(caps: &gst::Caps, picture: &Picture, encoder: &Encoder) -> Result<Vec<gst::Element>, SourceError> {
    let given = gst_video::VideoInfo::from_caps(caps).map_err(|error| SourceError::Graph(error.to_string()))?;
    let scale = element("videoscale")?;
    scale.set_property("add-borders", differs_in_shape(&given, picture));
    // The large picture's colours: left to itself, GStreamer takes small ones for standard definition and computes each pixel anew.
    let small = filter(picture, |caps| caps.field("colorimetry", given.colorimetry().to_string()))?;
    // Converted after scaling, where a quarter of the pixels is left; not at all where the encoder takes them as they are.
    let format = given.format().to_str();
    let keeps = PLANAR.contains(&format.as_str()) && encoder.takes(format);
    let wanted = if keeps { format.as_str() } else { encoder.preferred_format() };
    let wanted = filter(picture, |caps| caps.field("format", wanted))?;
    Ok(vec![scale, small, element("videoconvert")?, wanted])
}

/// 4:2:0, as is encoded.
const PLANAR: [&str; 2] = ["I420", "NV12"];

fn in_hardware(picture: &Picture, encoder: &Encoder, is_dmabuf: bool) -> Result<Vec<gst::Element>, SourceError> {
    let scale = element("v4l2convert")?;
    if is_dmabuf {
        scale.set_property_from_str("output-io-mode", "dmabuf-import");
    }
    scale.set_property_from_str("capture-io-mode", "dmabuf");
    encoder.import_dmabuf();
    Ok(vec![scale, filter(picture, |caps| caps.field("format", encoder.preferred_format()))?])
}

type Caps = gst::caps::Builder<gst::caps::NoFeature>;

/// Lets only the small picture pass, with what else is asked of it.
fn filter(picture: &Picture, also: impl FnOnce(Caps) -> Caps) -> Result<gst::Element, SourceError> {
    let filter = element("capsfilter")?;
    let caps = gst::Caps::builder("video/x-raw")
        .field("width", picture.width.cast_signed())
        .field("height", picture.height.cast_signed())
        .field("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    filter.set_property("caps", also(caps).build());
    Ok(filter)
}

/// More than rounding to even numbers makes of it: such a picture gets borders, lest everybody in it is fat.
fn differs_in_shape(given: &gst_video::VideoInfo, picture: &Picture) -> bool {
    let shape = |width: u32, height: u32| f64::from(width) / f64::from(height);
    (shape(given.width(), given.height()) / shape(picture.width, picture.height) - 1.0).abs() > 0.02
}
