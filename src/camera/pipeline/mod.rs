//! The GStreamer graph from lens to access unit. Beside [`encoder`](super::encoder), the only place that names elements.
//!
//! ```text
//! videotestsrc ─ caps ─ drawing ─┐
//! v4l2src ─ caps (raw) ──────────┼─ leaky queue ─ (convert) ─ encoder ─┐
//! v4l2src ─ caps (JPEG) ─────────┴─ leaky queue ─ jpegdec ─ convert ───┤
//! v4l2src ─ caps (H.264) ──────────────────────────────────────────────┴─ h264parse ─ appsink
//! ```
//!
//! When the encoder is late, the queue drops raw pictures. Behind the encoder nothing waits and nothing is dropped, since each
//! picture there is needed to decode the next: the sink is called from the thread that encodes.
//!
//! How the elements are put together says [`graph`]; [`low`] is the second, smaller graph beside this one.

mod graph;
mod low;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, warn};

use super::encoder::{self, EncodeSettings, Encoder, Kind, Picture};
use super::input::Choice;
use super::{Feed, LowFeed, SourceError, VideoSource, device, now};
use crate::core::access_unit::Bitrate;
use crate::core::camera::Rendition;
use low::{Beside, LowBranch, Tap};

pub use graph::{Installed, installed};
pub(super) use graph::{add_and_link, element, parser, raw_caps};

/// How long a source may take from its start to its first picture.
const FIRST_PICTURE_WITHIN: Duration = Duration::from_secs(5);
/// A source that is stopped after so long without a picture was stopped for it.
const SILENCE: Duration = Duration::from_secs(1);

/// What a graph is to be made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) capture: CapturePlan,
    /// `None`: the camera's own H.264 is passed through.
    pub(super) encoder: Option<(Kind, EncodeSettings)>,
    /// What a second encoder would be given; `None` where there is to be none. Needs an encoder.
    pub(super) low: Option<Picture>,
}

impl Plan {
    fn is_dmabuf(&self) -> bool {
        matches!(self.capture, CapturePlan::Device { dmabuf: true, .. })
    }
}

#[derive(Clone, Debug)]
pub(super) enum CapturePlan {
    Test(Picture),
    Device {
        path: PathBuf,
        choice: Choice,
        /// Pictures go from camera to encoder as DMABUFs, uncopied. Needs a hardware encoder and a camera whose buffers it can read.
        dmabuf: bool,
    },
}

/// Starts GStreamer; once is enough, again does no harm.
pub(super) fn init() -> Result<(), SourceError> {
    gst::init().map_err(|error| SourceError::NoGstreamer(error.into()))
}

/// A running graph. Whatever may wait for a driver happens on a thread of its own, which listens to the bus.
pub(super) struct Pipeline {
    remote: Remote,
    watcher: JoinHandle<()>,
    /// What a second encoder is made of; `None` where there can be none.
    beside: Option<Arc<Beside>>,
    /// The second encoder that was opened last; it may be closed already.
    low: Option<LowBranch>,
}

/// The way to a thread that looks after a graph and listens to its bus.
#[derive(Clone)]
struct Remote {
    wishes: Arc<Wishes>,
    bus: gst::Bus,
}

/// What a graph was asked for and has not done yet. The latest wish counts.
#[derive(Default)]
struct Wishes {
    /// In kbit/s; 0: no change.
    bitrate: AtomicU32,
    keyframe: AtomicBool,
    stop: AtomicBool,
}

impl Remote {
    fn to(bus: gst::Bus) -> Self {
        Self { wishes: Arc::default(), bus }
    }

    fn set_bitrate(&self, bitrate: Bitrate) {
        self.wishes.bitrate.store(bitrate.kbps().max(1), Ordering::Release);
        self.wake();
    }

    fn request_keyframe(&self) {
        self.wishes.keyframe.store(true, Ordering::Release);
        self.wake();
    }

    fn stop(&self) {
        self.wishes.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let wish = gst::message::Application::new(gst::Structure::new_empty(WISH));
        if let Err(error) = self.bus.post(wish) {
            debug!(%error, "the bus is closed");
        }
    }
}

impl Wishes {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn fulfil(&self, encoder: Option<&Encoder>) {
        let bitrate = self.bitrate.swap(0, Ordering::AcqRel);
        let keyframe = self.keyframe.swap(false, Ordering::AcqRel);
        if bitrate == 0 && !keyframe {
            return;
        }
        let Some(encoder) = encoder else {
            debug!("the camera's own H.264 follows neither bitrate nor requests for keyframes");
            return;
        };
        if bitrate > 0 {
            encoder.set_bitrate(Bitrate::from_kbps(bitrate));
        }
        if keyframe {
            encoder.request_keyframe();
        }
    }
}

impl Pipeline {
    /// Starts the graph and waits for its first picture.
    pub(super) fn open(plan: &Plan, feed: Feed, cancelled: &CancellationToken) -> Result<Self, SourceError> {
        let (running, tap) = Running::start(plan, feed, cancelled)?;
        let remote = Remote::to(running.bus.clone());
        let beside = tap.and_then(|tap| Beside::new(plan, tap, Arc::clone(&running.zero)));
        let watcher = std::thread::Builder::new().name("camera".into()).spawn({
            let (remote, span) = (remote.clone(), Span::current());
            move || span.in_scope(|| running.watch(&remote.wishes))
        });
        let watcher = watcher.map_err(|error| SourceError::Graph(format!("no thread: {error}")))?;
        Ok(Self { remote, watcher, beside: beside.map(Arc::new), low: None })
    }
}

impl VideoSource for Pipeline {
    fn set_bitrate(&mut self, rendition: Rendition, bitrate: Bitrate) {
        match rendition {
            Rendition::High => self.remote.set_bitrate(bitrate),
            Rendition::Low => self.low.iter().for_each(|low| low.set_bitrate(bitrate)),
        }
    }

    fn request_keyframe(&mut self, rendition: Rendition) {
        match rendition {
            Rendition::High => self.remote.request_keyframe(),
            Rendition::Low => self.low.iter().for_each(LowBranch::request_keyframe),
        }
    }

    fn open_low(&mut self, bitrate: Bitrate, feed: LowFeed) {
        let Some(beside) = &self.beside else { return };
        self.low = LowBranch::open(Arc::clone(beside), bitrate, feed, self.low.take());
    }

    fn close_low(&mut self) {
        self.low.iter().for_each(LowBranch::close);
    }

    fn stop(mut self: Box<Self>) {
        // First, since it may hold pictures that belong to the camera's driver.
        self.low.take().into_iter().for_each(LowBranch::stop);
        self.remote.stop();
        if self.watcher.join().is_err() {
            warn!("the camera's thread had panicked");
        }
    }
}

/// Names of our own messages on the bus.
const WISH: &str = "edgecam-wish";
const FIRST_PICTURE: &str = "edgecam-first-picture";
const SCATTERED: &str = "edgecam-scattered";

/// A graph that plays, until this is dropped.
struct Running {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    encoder: Option<Encoder>,
    feed: Feed,
    device: Option<PathBuf>,
    zero: Zero,
}

/// The instant at which a graph's running time was zero, once its first picture has come.
type Zero = Arc<OnceLock<Instant>>;

impl Running {
    fn start(plan: &Plan, feed: Feed, cancelled: &CancellationToken) -> Result<(Self, Option<Tap>), SourceError> {
        init()?;
        let pipeline = gst::Pipeline::new();
        let bus = pipeline.bus().ok_or_else(|| SourceError::Graph("a pipeline without a bus".into()))?;
        // The clock that `Instant` reads too, whatever clocks elements may offer.
        pipeline.use_clock(Some(&gst::SystemClock::obtain()));
        let zero = Zero::default();
        let deliver = {
            let feed = feed.clone();
            move |captured_at, is_keyframe, data| feed.unit(captured_at, is_keyframe, data)
        };
        let sink = graph::output(Arc::clone(&zero), bus.clone(), deliver);
        let (encoder, tap) = graph::build(&pipeline, plan, &sink)?;
        let device = match &plan.capture {
            CapturePlan::Test(_) => None,
            CapturePlan::Device { path, .. } => Some(path.clone()),
        };
        let running = Self { pipeline, bus, encoder, feed, device, zero };
        running.wait_for_first_picture(cancelled)?;
        Ok((running, tap))
    }

    fn wait_for_first_picture(&self, cancelled: &CancellationToken) -> Result<(), SourceError> {
        // A refused start has its reason on the bus, which the loop finds.
        let start = self.pipeline.set_state(gst::State::Playing);
        let give_up_at = now() + FIRST_PICTURE_WITHIN;
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos, gst::MessageType::Application];
        loop {
            match self.bus.timed_pop_filtered(gst::ClockTime::from_mseconds(50), &kinds) {
                Some(message) => match message.view() {
                    gst::MessageView::Application(own)
                        if own.structure().is_some_and(|s| s.name() == FIRST_PICTURE) =>
                    {
                        return Ok(());
                    }
                    gst::MessageView::Application(own) if own.structure().is_some_and(|s| s.name() == SCATTERED) => {
                        return Err(SourceError::Scattered);
                    }
                    gst::MessageView::Error(error) => return Err(self.failure(error)),
                    gst::MessageView::Eos(_) => return Err(ended()),
                    _ => {}
                },
                None if start.is_err() => return Err(SourceError::Graph("it does not start".into())),
                None if cancelled.is_cancelled() => return Err(SourceError::Cancelled),
                None if now() >= give_up_at => return Err(self.silent()),
                None => {}
            }
        }
    }

    /// Whose fault it is that no picture came.
    fn silent(&self) -> SourceError {
        let within = FIRST_PICTURE_WITHIN;
        match &self.encoder {
            Some(encoder) if encoder.was_fed() => SourceError::EncoderSilent { within },
            _ => SourceError::NoPicture { within },
        }
    }

    /// Fulfils wishes and reports failures, until told to stop.
    fn watch(self, wishes: &Wishes) {
        let kinds =
            [gst::MessageType::Error, gst::MessageType::Eos, gst::MessageType::Warning, gst::MessageType::Application];
        while !wishes.is_stopped() {
            let Some(message) = self.bus.timed_pop_filtered(gst::ClockTime::NONE, &kinds) else { continue };
            match message.view() {
                gst::MessageView::Application(_) => wishes.fulfil(self.encoder.as_ref()),
                gst::MessageView::Error(error) => {
                    self.doubt_encoder();
                    self.feed.failed(self.failure(error));
                }
                gst::MessageView::Eos(_) => self.feed.failed(ended()),
                gst::MessageView::Warning(warning) => {
                    debug!(element = %name_of(warning.src()), message = %warning.error(), "GStreamer warns");
                }
                _ => {}
            }
        }
        if self.feed.silence() > SILENCE {
            self.doubt_encoder();
        }
    }

    fn doubt_encoder(&self) {
        if let Some(encoder) = &self.encoder {
            encoder::doubt(encoder.kind());
        }
    }

    /// What an error on the bus means for the owner.
    fn failure(&self, error: &gst::message::Error) -> SourceError {
        let element = name_of(error.src());
        let [message, detail] = words(error);
        let is_camera = error.src().is_some_and(|src| src.type_().name() == "GstV4l2Src");
        if let Some(path) = self.device.clone().filter(|_| is_camera) {
            if error.error().kind::<gst::ResourceError>() == Some(gst::ResourceError::Busy) || detail.contains("busy") {
                return SourceError::busy(path);
            }
            if !path.exists() || detail.contains("No such device") {
                return SourceError::Missing { path, seen: device::seen() };
            }
        }
        SourceError::Pipeline { element, message, detail }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Returns when each element has closed its device.
        if let Err(error) = self.pipeline.set_state(gst::State::Null) {
            warn!(%error, "the pipeline does not stop");
        }
    }
}

/// What an error says to people, and what it says to experts.
pub(super) fn words(error: &gst::message::Error) -> [String; 2] {
    let detail = error.debug().unwrap_or_default();
    // The first line says where in GStreamer's source it happened, the second what the system said.
    let detail = detail.lines().nth(1).unwrap_or(&detail).to_owned();
    [error.error().message().trim_end_matches('.').to_owned(), detail]
}

fn ended() -> SourceError {
    SourceError::Graph("its stream ended".into())
}

fn name_of(source: Option<&gst::Object>) -> String {
    let factory = source.and_then(|object| object.downcast_ref::<gst::Element>()).and_then(gst::Element::factory);
    factory.map_or_else(|| "GStreamer".to_owned(), |factory| factory.name().to_string())
}
