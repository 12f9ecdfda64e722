//! Floor 1. One camera: opened while somebody watches, closed after a linger, opened again when it fails.
//!
//! [`run`] carries out what [`core::capture`](crate::core::capture) decides. What runs between lens and access unit is
//! behind [`VideoSource`]: a GStreamer [`pipeline`] or a recorded [`clip`]. [`device`] says what V4L2 has to offer and
//! [`encoder`] what this machine can encode with; both give their reasons.

pub mod clip;
pub mod device;
pub mod encoder;
pub mod input;
pub mod pipeline;
pub mod still;
pub mod test_source;

mod error;
mod open;
mod task;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::core::access_unit::{AccessUnit, Bitrate};
use crate::core::camera::{CameraStatus, Demand, LowState, Rendition, Stream};
use crate::core::counters::CameraCounters;
use crate::core::signal::CameraId;

pub use error::SourceError;

/// What one camera is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraSettings {
    pub id: CameraId,
    pub source: Source,
    /// Wanted picture in pixels and pictures per second; a device gives the nearest it has.
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    /// How long the camera stays open after the last viewer.
    pub linger: Duration,
    pub encoder: EncoderSettings,
    /// `None`: the owner wants no second rendition.
    pub low: Option<LowSettings>,
    /// V4L2 controls set at each opening, by the names `edgecam devices` shows.
    pub controls: BTreeMap<String, i64>,
}

/// Where the pictures come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The first capture device that can be used.
    Auto,
    /// A moving test picture.
    Test,
    /// A V4L2 device node, or a link to one.
    V4l2(PathBuf),
    /// A recorded H.264 byte stream, played in a loop.
    Clip(PathBuf),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no source: use \"auto\", \"test\", \"v4l2:/dev/video0\" or \"clip:/path/to/file.h264\"")]
pub struct BadSource(String);

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let bad = || BadSource(text.to_owned());
        let path = |path: &str| match path {
            "" => Err(bad()),
            // The kernel's interfaces end a path at a zero byte.
            path if path.contains('\0') => Err(bad()),
            path => Ok(PathBuf::from(path)),
        };
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "test" => Ok(Self::Test),
            Some(("v4l2", device)) => Ok(Self::V4l2(path(device)?)),
            Some(("clip", file)) => Ok(Self::Clip(path(file)?)),
            _ => Err(bad()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderSettings {
    pub prefer: Prefer,
    pub max: Bitrate,
    pub min: Bitrate,
    pub keyframe_interval: Duration,
}

/// What the second, smaller rendition is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowSettings {
    /// In pixels; `None`, or what is not less than the camera gives: half of that.
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub max: Bitrate,
    pub min: Bitrate,
}

/// Which kind of encoder the owner would rather have. What is not there is replaced, and the replacement is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// The camera's own H.264, else a hardware encoder, else a software encoder.
    Auto,
    /// Not the camera's own H.264, whose bitrate nobody can change.
    Hardware,
    Software,
    /// The camera's own H.264, even at a lower frame rate.
    Passthrough,
}

/// Takes each access unit as it comes, on the source's own thread. Never waits.
pub type Sink = Arc<dyn Fn(Rendition, AccessUnit) + Send + Sync>;

/// A source of access units that is open. They go to the [`Feed`] it was opened with, from a thread of its own.
///
/// None of the calls but [`stop`](Self::stop) waits.
pub trait VideoSource: Send {
    fn set_bitrate(&mut self, rendition: Rendition, bitrate: Bitrate);
    fn request_keyframe(&mut self, rendition: Rendition);
    /// Opens the low rendition beside the high one, which does not notice. What becomes of it is told through `feed`. Only
    /// where [`Opened::no_low`] gave no reason against it.
    fn open_low(&mut self, bitrate: Bitrate, feed: LowFeed);
    fn close_low(&mut self);
    /// Stops and waits until the driver has let the device go.
    fn stop(self: Box<Self>);
}

/// What must stand in the environment when the process starts, since GStreamer asks for it there.
///
/// Without the first, GStreamer 1.22 to 1.24 leaks a V4L2 element and its open device each time a camera closes
/// (docs/decisions/0103).
pub const ENVIRONMENT: [(&str, &str); 1] = [("GST_V4L2_FORCE_DRAIN", "1")];

/// Looks for encoders and tries them, so that the first viewer does not wait for it. Takes up to seconds; blocks.
pub fn prepare() {
    encoder::prepare();
}

/// Runs one camera until `stopping`: the latest `demand` is followed, each access unit goes to `sink`, and what the
/// camera is doing is published in `status`.
///
/// The device is free when this returns.
pub async fn run(
    settings: CameraSettings,
    demand: watch::Receiver<Demand>,
    sink: Sink,
    status: watch::Sender<CameraStatus>,
    counters: Arc<CameraCounters>,
    stopping: CancellationToken,
) {
    let span = info_span!("camera", id = %settings.id);
    let limits = task::Limits { linger: settings.linger, encoder: settings.encoder, low: settings.low };
    let opener = Arc::new(open::Opener::new(settings));
    let task = task::CameraTask::new(opener, limits, sink, status, counters, stopping);
    task.run(demand).instrument(span).await;
}

/// What a source gives its pictures and its failure to.
#[derive(Clone)]
pub struct Feed {
    sink: Sink,
    counters: Arc<CameraCounters>,
    last_unit: Arc<Mutex<Instant>>,
    failure: mpsc::Sender<SourceError>,
}

impl Feed {
    /// A feed on its own, without a task that listens for failures.
    #[cfg(test)]
    fn to(sink: Sink) -> Self {
        let (failure, _) = mpsc::channel(1);
        let counters = Arc::default();
        Self { sink, counters, last_unit: Arc::new(Mutex::new(now())), failure }
    }

    /// One picture, taken at `captured_at`.
    fn unit(&self, captured_at: Instant, is_keyframe: bool, data: Bytes) {
        self.counters.units_captured.add(1);
        self.counters.bytes_captured.add(data.len() as u64);
        self.counters.keyframes_captured.add(u64::from(is_keyframe));
        *self.last_unit.lock().unwrap_or_else(PoisonError::into_inner) = now();
        (self.sink)(Rendition::High, AccessUnit { captured_at, is_keyframe, data });
    }

    /// How long ago the last picture came.
    fn silence(&self) -> Duration {
        now().saturating_duration_since(*self.last_unit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The source is broken. What it says after its first failure is of no interest.
    fn failed(&self, error: SourceError) {
        let _ = self.failure.try_send(error);
    }
}

/// What a low rendition gives its pictures to, and tells what became of it.
#[derive(Clone)]
pub struct LowFeed {
    sink: Sink,
    counters: Arc<CameraCounters>,
    state: watch::Sender<LowState>,
}

impl LowFeed {
    /// A feed on its own, without a task that listens for what becomes of it.
    #[cfg(test)]
    fn to(sink: Sink) -> Self {
        Self { sink, counters: Arc::default(), state: watch::Sender::new(LowState::Closed) }
    }

    fn unit(&self, captured_at: Instant, is_keyframe: bool, data: Bytes) {
        let counters = &self.counters.low;
        counters.units_captured.add(1);
        counters.bytes_captured.add(data.len() as u64);
        counters.keyframes_captured.add(u64::from(is_keyframe));
        (self.sink)(Rendition::Low, AccessUnit { captured_at, is_keyframe, data });
    }

    fn set_state(&self, state: LowState) {
        self.state.send_replace(state);
    }
}

/// What opens the source of one camera.
trait Open: Send + Sync {
    /// Blocks until the first picture, a failure, the end of its patience, or `cancelled`.
    fn open(&self, bitrate: Bitrate, feed: Feed, cancelled: &CancellationToken) -> Result<Opened, SourceError>;
    /// The files there are to be opened. Cheap: asked once a second while the camera is broken.
    fn present(&self) -> Vec<PathBuf>;
}

struct Opened {
    source: Box<dyn VideoSource>,
    stream: Stream,
    /// Why it can have no low rendition, in words for the owner.
    no_low: Option<String>,
}

/// The monotonic clock; in tests it can be tokio's paused one.
fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "the camera task and its threads are the edge: they stamp what happens"
    )]
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_from_one_word() {
        assert_eq!("auto".parse(), Ok(Source::Auto));
        assert_eq!("test".parse(), Ok(Source::Test));
        assert_eq!("v4l2:/dev/video0".parse(), Ok(Source::V4l2("/dev/video0".into())));
        assert_eq!("clip:/a:b.h264".parse(), Ok(Source::Clip("/a:b.h264".into())));
    }

    #[test]
    fn what_is_no_source_is_refused_with_the_ones_there_are() {
        for text in ["", "v4l2", "v4l2:", "clip:", "rtsp://camera", "/dev/video0", "test:", "v4l2:/dev/\0"] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains("v4l2:/dev/video0"), "{error}");
        }
    }
}
