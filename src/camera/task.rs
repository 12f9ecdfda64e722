//! The task of one camera: carries out what [`Capture`] decides, and publishes it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info, warn};

use super::{EncoderSettings, Feed, Open, Opened, Sink, SourceError, VideoSource, now};
use crate::core::capture::{CameraState, CameraStatus, Capture, Demand, Patience, Step, Stream};
use crate::core::counters::CameraCounters;

/// Running, yet no picture for so long: stalled.
const STALL_AFTER: Duration = Duration::from_secs(2);
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often a missing device is looked for while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct CameraTask {
    opener: Arc<dyn Open>,
    encoder: EncoderSettings,
    sink: Sink,
    status: watch::Sender<CameraStatus>,
    counters: Arc<CameraCounters>,
    epoch: Instant,

    capture: Capture,
    wanted: Demand,
    /// What the source was told last.
    told: Demand,
    /// The opening or closing that is on its way, on a thread that may block.
    work: Option<JoinHandle<Work>>,
    source: Option<Box<dyn VideoSource>>,
    /// Of the present opening.
    last_unit: Arc<Mutex<Instant>>,
    failure: Option<mpsc::Receiver<SourceError>>,
    stream: Option<Stream>,
    /// Whether the device was not there when it was looked for last.
    missing: bool,
}

enum Work {
    Opened(Result<Opened, SourceError>),
    Closed,
}

impl CameraTask {
    pub(super) fn new(
        opener: Arc<dyn Open>,
        linger: Duration,
        encoder: EncoderSettings,
        sink: Sink,
        status: watch::Sender<CameraStatus>,
        counters: Arc<CameraCounters>,
    ) -> Self {
        let epoch = now();
        let nothing = Demand { running: false, bitrate: encoder.max, keyframe: 0 };
        let patience = Patience { linger, stall_after: STALL_AFTER, well_after: WELL_AFTER };
        Self {
            opener,
            encoder,
            sink,
            status,
            counters,
            epoch,
            capture: Capture::new(patience, epoch),
            wanted: nothing,
            told: nothing,
            work: None,
            source: None,
            last_unit: Arc::new(Mutex::new(epoch)),
            failure: None,
            stream: None,
            missing: false,
        }
    }

    pub(super) async fn run(mut self, mut demand: watch::Receiver<Demand>, stopping: CancellationToken) {
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
                () = tokio::time::sleep_until(wake_at.unwrap_or(self.epoch).into()), if wake_at.is_some() => {
                    self.handle_timeout()
                }
            };
        }
    }

    fn handle_demand(&mut self, wanted: Demand) -> Option<Step> {
        self.wanted = Demand { bitrate: wanted.bitrate.clamp(self.encoder.min, self.encoder.max), ..wanted };
        self.tell();
        self.capture.set_wanted(wanted.running, now())
    }

    fn handle_work(&mut self, done: Result<Work, JoinError>) -> Option<Step> {
        self.work = None;
        match done {
            Ok(Work::Opened(Ok(Opened { source, stream }))) => {
                info!(source = stream.source, encoder = stream.encoder, reason = stream.encoder_reason, "camera open");
                self.counters.opened.add(1);
                self.source = Some(source);
                self.stream = Some(stream);
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
        if matches!(error, SourceError::Stopping) {
            debug!("opening cut short");
        } else {
            self.note_failure(&error.in_full());
        }
        self.capture.handle_failure(error.in_full(), rand::random(), now())
    }

    fn handle_timeout(&mut self) -> Option<Step> {
        if self.capture.is_running() {
            self.capture.handle_unit(*self.last_unit.lock().unwrap_or_else(PoisonError::into_inner));
        } else {
            let was_missing = std::mem::replace(&mut self.missing, !self.opener.is_present());
            if was_missing && !self.missing {
                debug!("the device is there again");
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
        self.missing = !self.opener.is_present();
    }

    /// When time alone changes something.
    fn wake_at(&self) -> Option<Instant> {
        let at = self.capture.poll_timeout()?;
        Some(if self.capture.is_running() { at } else { at.min(now() + LOOK_EVERY) })
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
                let (opener, bitrate) = (Arc::clone(&self.opener), self.wanted.bitrate);
                self.work = Some(spawn_blocking(move || span.in_scope(|| Work::Opened(opener.open(bitrate, feed)))));
            }
            Some(Step::Close) => {
                self.failure = None;
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
            source.set_bitrate(self.wanted.bitrate);
        }
        if self.wanted.keyframe > self.told.keyframe {
            self.counters.keyframes_asked.add(1);
            source.request_keyframe();
        }
        self.told = self.wanted;
    }

    fn publish(&self) {
        let new = CameraStatus { state: self.capture.state(now()), stream: self.stream.clone() };
        self.status.send_if_modified(|status| {
            let changed = status.stream != new.stream || !is_same(&status.state, &new.state);
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

async fn failed(failure: &mut Option<mpsc::Receiver<SourceError>>) -> SourceError {
    match failure {
        Some(failures) => match failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
