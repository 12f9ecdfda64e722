//! The task of one camera: carries out what [`Capture`] and [`LowCapture`] decide, and publishes it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info, warn};

use super::{EncoderSettings, Feed, LowFeed, LowSettings, Open, Opened, Sink, SourceError, VideoSource, now};
use crate::core::camera::{CameraState, CameraStatus, Demand, LowDemand, LowState, Rendition, Stream};
use crate::core::capture::{Capture, Patience, Step};
use crate::core::counters::CameraCounters;
use crate::core::low::{LowCapture, LowStep};

/// Running, yet no picture for so long: stalled.
const STALL_AFTER: Duration = Duration::from_secs(2);
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often is looked for a device that was plugged in, while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What demand may ask for at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) linger: Duration,
    pub(super) encoder: EncoderSettings,
    pub(super) low: Option<LowSettings>,
}

pub(super) struct CameraTask {
    opener: Arc<dyn Open>,
    limits: Limits,
    sink: Sink,
    status: watch::Sender<CameraStatus>,
    counters: Arc<CameraCounters>,
    stopping: CancellationToken,

    capture: Capture,
    wanted: Demand,
    /// What the source was told last.
    told: Demand,
    /// The opening or closing that is on its way, on a thread that may block.
    work: Option<JoinHandle<Work>>,
    /// Cuts the present opening short.
    cancelled: CancellationToken,
    source: Option<Box<dyn VideoSource>>,
    /// Of the present opening.
    last_unit: Arc<Mutex<Instant>>,
    failure: Option<mpsc::Receiver<SourceError>>,
    stream: Option<Stream>,
    low: LowCapture,
    /// What becomes of the second encoder, while there is to be one.
    low_state: Option<watch::Receiver<LowState>>,
    /// The files there were to be opened when they were looked for last.
    present: Vec<PathBuf>,
}

enum Work {
    Opened(Result<Opened, SourceError>),
    Closed,
}

impl CameraTask {
    pub(super) fn new(
        opener: Arc<dyn Open>,
        limits: Limits,
        sink: Sink,
        status: watch::Sender<CameraStatus>,
        counters: Arc<CameraCounters>,
        stopping: CancellationToken,
    ) -> Self {
        let start = now();
        let nothing = Demand { running: false, off: false, bitrate: limits.encoder.max, keyframe: 0, low: None };
        let patience = Patience { linger: limits.linger, stall_after: STALL_AFTER, well_after: WELL_AFTER };
        Self {
            opener,
            limits,
            sink,
            status,
            counters,
            cancelled: stopping.child_token(),
            stopping,
            capture: Capture::new(patience, start),
            wanted: nothing,
            told: nothing,
            work: None,
            source: None,
            last_unit: Arc::new(Mutex::new(start)),
            failure: None,
            stream: None,
            low: LowCapture::new(),
            low_state: None,
            present: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut demand: watch::Receiver<Demand>) {
        let stopping = self.stopping.clone();
        let mut listening = true;
        let first = *demand.borrow_and_update();
        let mut step = self.handle_demand(first);
        loop {
            self.carry_out(step);
            self.publish();
            if !listening && self.capture.is_closed() {
                return;
            }
            let wake_at = self.wake_at();
            step = tokio::select! {
                biased;
                () = stopping.cancelled(), if listening => {
                    listening = false;
                    self.capture.shut_down(now())
                }
                done = finished(&mut self.work) => self.handle_work(done),
                // While an opening is on its way, its own result comes first.
                error = failed(&mut self.failure), if self.work.is_none() => self.handle_failure(&error),
                state = changed(&mut self.low_state) => {
                    self.handle_low_state(state);
                    None
                }
                changed = demand.changed(), if listening => match changed {
                    Ok(()) => {
                        let wanted = *demand.borrow_and_update();
                        self.handle_demand(wanted)
                    }
                    // Nobody is left who could want anything.
                    Err(_) => {
                        listening = false;
                        self.capture.shut_down(now())
                    }
                },
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(now).into()), if wake_at.is_some() => {
                    self.handle_timeout()
                }
            };
        }
    }

    fn handle_demand(&mut self, wanted: Demand) -> Option<Step> {
        self.wanted = self.limited(wanted);
        let step = self.low.set_wanted(self.wanted.low.is_some());
        self.carry_out_low(step);
        self.tell();
        if wanted.off {
            self.cancelled.cancel();
        }
        self.capture.set_lingering(!wanted.off);
        self.capture.set_wanted(wanted.running && !wanted.off, now())
    }

    fn limited(&self, wanted: Demand) -> Demand {
        let Limits { encoder, low: limits, .. } = self.limits;
        let low = wanted.low.map(|low| match limits {
            Some(limits) => LowDemand { bitrate: low.bitrate.clamp(limits.min, limits.max), ..low },
            None => low,
        });
        Demand { bitrate: wanted.bitrate.clamp(encoder.min, encoder.max), low, ..wanted }
    }

    fn handle_work(&mut self, done: Result<Work, JoinError>) -> Option<Step> {
        self.work = None;
        match done {
            Ok(Work::Opened(Ok(Opened { source, stream, no_low }))) => {
                info!(source = stream.source, encoder = stream.encoder, reason = stream.encoder_reason, "camera open");
                self.counters.opened.add(1);
                self.source = Some(source);
                self.stream = Some(stream);
                let low = self.low.handle_source_opened(no_low);
                self.carry_out_low(low);
                self.tell();
                self.capture.handle_opened(now())
            }
            Ok(Work::Opened(Err(error))) => self.handle_failure(&error),
            Ok(Work::Closed) => {
                info!("camera closed");
                self.capture.handle_closed(now())
            }
            // Of the two, only opening leaves nothing behind that would have to be closed.
            Err(panic) if self.capture.is_closing() => {
                warn!(%panic, "closing the camera failed");
                self.capture.handle_closed(now())
            }
            Err(panic) => self.handle_failure(&SourceError::Defect(panic.to_string())),
        }
    }

    fn handle_failure(&mut self, error: &SourceError) -> Option<Step> {
        self.failure = None;
        if matches!(error, SourceError::Cancelled) {
            debug!("opening cut short");
            return self.capture.handle_cancelled();
        }
        self.note_failure(&error.in_full());
        self.capture.handle_failure(error.in_full(), rand::random(), now())
    }

    fn handle_low_state(&mut self, state: LowState) {
        match &state {
            LowState::Open { width, height, encoder } => {
                info!(width, height, encoder, "low rendition open");
                self.counters.low.opened.add(1);
            }
            LowState::Unavailable { reason } => {
                warn!(reason, "no low rendition");
                self.counters.low.failed.add(1);
                self.low_state = None;
            }
            LowState::Closed => {}
        }
        self.low.handle_state(state, rand::random(), now());
    }

    fn handle_timeout(&mut self) -> Option<Step> {
        let low = self.low.handle_timeout(now());
        self.carry_out_low(low);
        if self.capture.is_running() {
            self.capture.handle_unit(*self.last_unit.lock().unwrap_or_else(PoisonError::into_inner));
        } else {
            let before = std::mem::replace(&mut self.present, self.opener.present());
            if let Some(new) = self.present.iter().find(|path| !before.contains(path)) {
                debug!(path = %new.display(), "plugged in");
                return self.capture.handle_plugged();
            }
        }
        let was_running = self.capture.is_running();
        let step = self.capture.handle_timeout(rand::random(), now());
        if let CameraState::BackingOff { error, .. } = self.capture.state(now())
            && was_running
        {
            self.note_failure(&error);
        }
        step
    }

    fn note_failure(&mut self, error: &str) {
        warn!(error, "camera failed");
        self.counters.failed.add(1);
        self.present = self.opener.present();
    }

    /// When time alone changes something.
    fn wake_at(&self) -> Option<Instant> {
        let at = self.capture.poll_timeout()?;
        let low = self.low.poll_timeout().unwrap_or(at);
        Some(if self.capture.is_running() { at.min(low) } else { at.min(now() + LOOK_EVERY) })
    }

    fn carry_out(&mut self, step: Option<Step>) {
        let span = Span::current();
        match step {
            None => {}
            Some(Step::Open) => {
                let (failure, failures) = mpsc::channel(1);
                self.failure = Some(failures);
                self.last_unit = Arc::new(Mutex::new(now()));
                self.told = self.wanted;
                let feed = Feed {
                    sink: Arc::clone(&self.sink),
                    counters: Arc::clone(&self.counters),
                    last_unit: Arc::clone(&self.last_unit),
                    failure,
                };
                self.cancelled = self.stopping.child_token();
                let (opener, bitrate, cancelled) =
                    (Arc::clone(&self.opener), self.wanted.bitrate, self.cancelled.clone());
                self.work = Some(spawn_blocking(move || {
                    span.in_scope(|| Work::Opened(opener.open(bitrate, feed, &cancelled)))
                }));
            }
            Some(Step::Close) => {
                self.failure = None;
                self.low.handle_source_closed();
                self.low_state = None;
                let source = self.source.take();
                self.work = Some(spawn_blocking(move || {
                    span.in_scope(|| source.into_iter().for_each(VideoSource::stop));
                    Work::Closed
                }));
            }
        }
    }

    /// Tells an open source what has changed.
    fn tell(&mut self) {
        let Some(source) = &mut self.source else { return };
        if self.wanted.bitrate != self.told.bitrate {
            debug!(bitrate = %self.wanted.bitrate, "bitrate");
            source.set_bitrate(Rendition::High, self.wanted.bitrate);
        }
        if self.wanted.keyframe > self.told.keyframe {
            self.counters.keyframes_asked.add(1);
            source.request_keyframe(Rendition::High);
        }
        if let (Some(wanted), Some(told)) = (self.wanted.low, self.told.low)
            && self.low.is_open()
        {
            if wanted.bitrate != told.bitrate {
                debug!(bitrate = %wanted.bitrate, "bitrate of the low rendition");
                source.set_bitrate(Rendition::Low, wanted.bitrate);
            }
            if wanted.keyframe > told.keyframe {
                self.counters.low.keyframes_asked.add(1);
                source.request_keyframe(Rendition::Low);
            }
        }
        self.told = self.wanted;
    }

    fn carry_out_low(&mut self, step: Option<LowStep>) {
        let Some(source) = &mut self.source else { return };
        match (step, self.wanted.low) {
            (Some(LowStep::Open), Some(wanted)) => {
                let (state, states) = watch::channel(LowState::Closed);
                self.low_state = Some(states);
                let feed = LowFeed { sink: Arc::clone(&self.sink), counters: Arc::clone(&self.counters), state };
                debug!(bitrate = %wanted.bitrate, "low rendition wanted");
                source.open_low(wanted.bitrate, feed);
                // It begins with a keyframe and this bitrate: what was wished up to now is fulfilled.
                self.told.low = Some(wanted);
            }
            (Some(LowStep::Close), _) => {
                info!("low rendition closed");
                self.low_state = None;
                source.close_low();
            }
            (Some(LowStep::Open) | None, _) => {}
        }
    }

    fn publish(&self) {
        let low = self.wanted.low.filter(|_| self.low.is_open()).map_or(0, |low| low.bitrate.kbps());
        self.counters.low.bitrate_kbps.set(low.into());
        let new = CameraStatus { state: self.capture.state(now()), stream: self.stream.clone(), low: self.low.state() };
        self.status.send_if_modified(|status| {
            let same_state = is_same(&status.state, &new.state);
            let changed = status.stream != new.stream || status.low != new.low || !same_state;
            if changed {
                *status = new;
            }
            changed
        });
    }
}

/// Whether two states tell the same: time that passes while waiting is no news.
fn is_same(a: &CameraState, b: &CameraState) -> bool {
    match (a, b) {
        (CameraState::BackingOff { error: a, .. }, CameraState::BackingOff { error: b, .. }) => a == b,
        _ => a == b,
    }
}

async fn finished(work: &mut Option<JoinHandle<Work>>) -> Result<Work, JoinError> {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// The newest news; pending for ever where none can come any more.
async fn changed(state: &mut Option<watch::Receiver<LowState>>) -> LowState {
    if let Some(states) = state
        && states.changed().await.is_ok()
    {
        return states.borrow_and_update().clone();
    }
    std::future::pending().await
}

async fn failed(failure: &mut Option<mpsc::Receiver<SourceError>>) -> SourceError {
    match failure {
        Some(failures) => match failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "task_test.rs"]
mod tests;
