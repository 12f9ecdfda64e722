//! The task of one camera: carries out what [`Capture`] decides, and publishes it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info, warn};

use super::{EncoderSettings, Feed, Open, Opened, Sink, SourceError, VideoSource, now};
use crate::core::camera::{CameraState, CameraStatus, Demand, LowState, Stream};
use crate::core::capture::{Capture, Patience, Step};
use crate::core::counters::CameraCounters;

/// Running, yet no picture for so long: stalled.
const STALL_AFTER: Duration = Duration::from_secs(2);
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often is looked for a device that was plugged in, while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct CameraTask {
    opener: Arc<dyn Open>,
    encoder: EncoderSettings,
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
        linger: Duration,
        encoder: EncoderSettings,
        sink: Sink,
        status: watch::Sender<CameraStatus>,
        counters: Arc<CameraCounters>,
        stopping: CancellationToken,
    ) -> Self {
        let start = now();
        let nothing = Demand { running: false, off: false, bitrate: encoder.max, keyframe: 0, low: None };
        let patience = Patience { linger, stall_after: STALL_AFTER, well_after: WELL_AFTER };
        Self {
            opener,
            encoder,
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
        self.wanted = Demand { bitrate: wanted.bitrate.clamp(self.encoder.min, self.encoder.max), ..wanted };
        self.tell();
        if wanted.off {
            self.cancelled.cancel();
        }
        self.capture.set_lingering(!wanted.off);
        self.capture.set_wanted(wanted.running && !wanted.off, now())
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
        if matches!(error, SourceError::Cancelled) {
            debug!("opening cut short");
            return self.capture.handle_cancelled();
        }
        self.note_failure(&error.in_full());
        self.capture.handle_failure(error.in_full(), rand::random(), now())
    }

    fn handle_timeout(&mut self) -> Option<Step> {
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
                self.cancelled = self.stopping.child_token();
                let (opener, bitrate, cancelled) =
                    (Arc::clone(&self.opener), self.wanted.bitrate, self.cancelled.clone());
                self.work = Some(spawn_blocking(move || {
                    span.in_scope(|| Work::Opened(opener.open(bitrate, feed, &cancelled)))
                }));
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
        let new = CameraStatus { state: self.capture.state(now()), stream: self.stream.clone(), low: LowState::Closed };
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::core::access_unit::Bitrate;

    #[tokio::test(start_paused = true)]
    async fn the_camera_opens_with_the_first_viewer_and_closes_a_linger_after_the_last() {
        let mut rig = Rig::new(Device::default());
        assert_eq!(rig.state(), CameraState::Idle);
        rig.want(true);
        rig.reaches(&CameraState::Running).await;
        rig.want(false);
        let started = now();
        rig.reaches(&CameraState::Idle).await;
        assert_eq!((now() - started).as_secs(), LINGER.as_secs());
        assert_eq!(rig.device.log(), ["open at 1000 kbit/s", "stop"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_source_hears_of_bitrate_and_keyframes_once_each() {
        let mut rig = Rig::new(Device::default());
        rig.want(true);
        rig.reaches(&CameraState::Running).await;
        for (kbps, keyframe) in [(1000, 1), (1000, 1), (500, 1), (500, 3), (90_000, 3), (1, 3)] {
            rig.demand.send_replace(Demand {
                running: true,
                off: false,
                bitrate: Bitrate::from_kbps(kbps),
                keyframe,
                low: None,
            });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let expected = ["open at 1000 kbit/s", "keyframe", "500 kbit/s", "keyframe", "2000 kbit/s", "100 kbit/s"];
        assert_eq!(rig.device.log(), expected);
        assert_eq!(rig.counters.keyframes_asked.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_keyframe_wished_while_opening_is_not_lost() {
        let mut rig = Rig::new(Device::default());
        rig.device.slow.store(true, Ordering::Relaxed);
        rig.want(true);
        rig.reaches(&CameraState::Opening).await;
        rig.demand.send_modify(|demand| demand.keyframe += 1);
        rig.device.slow.store(false, Ordering::Relaxed);
        rig.reaches(&CameraState::Running).await;
        assert_eq!(rig.device.log(), ["open at 1000 kbit/s", "keyframe"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_that_cannot_be_opened_is_tried_until_it_can() {
        let mut rig = Rig::new(Device::failing(20));
        rig.want(true);
        let error = rig.failed().await;
        assert!(error.contains("no first picture within 5 s"), "{error}");
        rig.reaches(&CameraState::Running).await;
        assert_eq!(rig.counters.failed.get(), 20);
        assert_eq!(rig.counters.opened.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_running_closes_and_opens_again() {
        let mut rig = Rig::new(Device::default());
        rig.want(true);
        rig.reaches(&CameraState::Running).await;
        rig.device.feed().failed(SourceError::Graph("pulled".into()));
        assert!(rig.failed().await.contains("pulled"));
        rig.reaches(&CameraState::Running).await;
        assert_eq!(rig.device.log(), ["open at 1000 kbit/s", "stop", "open at 1000 kbit/s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stall_is_noticed_within_two_seconds() {
        let mut rig = Rig::new(Device::default());
        rig.want(true);
        rig.reaches(&CameraState::Running).await;
        for _ in 0..10 {
            tokio::time::sleep(STALL_AFTER * 9 / 10).await;
            rig.device.feed().unit(now(), false, Bytes::new());
        }
        assert_eq!(rig.state(), CameraState::Running);
        let started = now();
        assert!(rig.failed().await.contains("no picture for 2 s"));
        assert_eq!((now() - started).as_secs(), STALL_AFTER.as_secs());
        rig.reaches(&CameraState::Running).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_plugged_in_again_does_not_wait_for_its_turn() {
        let mut rig = Rig::new(Device::failing(usize::MAX));
        rig.device.absent.store(true, Ordering::Relaxed);
        rig.want(true);
        rig.failed().await;
        tokio::time::sleep(Duration::from_secs(200)).await;
        rig.device.failures.store(0, Ordering::Relaxed);
        rig.device.absent.store(false, Ordering::Relaxed);
        let started = now();
        rig.reaches(&CameraState::Running).await;
        assert!(now() - started <= LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_switched_off_is_closed_without_linger() {
        let mut rig = Rig::new(Device::default());
        rig.want(true);
        rig.reaches(&CameraState::Running).await;
        rig.want(false);
        let started = now();
        rig.demand.send_modify(|demand| demand.off = true);
        rig.reaches(&CameraState::Idle).await;
        assert_eq!(now(), started);
        assert_eq!(rig.device.log().last().unwrap(), "stop");
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_switched_off_while_it_opens_does_not_open() {
        let mut rig = Rig::new(Device::default());
        rig.device.slow.store(true, Ordering::Relaxed);
        rig.want(true);
        rig.reaches(&CameraState::Opening).await;
        rig.demand.send_modify(|demand| (demand.running, demand.off) = (false, true));
        rig.reaches(&CameraState::Idle).await;
        assert_eq!(rig.device.log(), [""; 0]);
        rig.device.slow.store(false, Ordering::Relaxed);
        rig.demand.send_modify(|demand| (demand.running, demand.off) = (true, false));
        rig.reaches(&CameraState::Running).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_switched_off_and_on_while_it_opens_is_not_said_to_have_failed() {
        let mut rig = Rig::new(Device::default());
        rig.device.slow.store(true, Ordering::Relaxed);
        rig.device.deaf.store(true, Ordering::Relaxed);
        rig.want(true);
        rig.reaches(&CameraState::Opening).await;
        let started = now();
        rig.demand.send_modify(|demand| (demand.running, demand.off) = (false, true));
        tokio::task::yield_now().await;
        rig.demand.send_modify(|demand| (demand.running, demand.off) = (true, false));
        tokio::task::yield_now().await;
        // Only now does the driver come back from what was cut short.
        rig.device.deaf.store(false, Ordering::Relaxed);
        while !rig.device.cut_short.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        rig.device.slow.store(false, Ordering::Relaxed);
        rig.reaches(&CameraState::Running).await;
        assert_eq!(now(), started, "it waited before it opened again");
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_leaves_the_device_free() {
        for running in [true, false] {
            let mut rig = Rig::new(Device::default());
            rig.want(true);
            if running {
                rig.reaches(&CameraState::Running).await;
            }
            rig.stopping.cancel();
            rig.task.await.unwrap();
            let log = rig.device.log();
            assert!(log.last().is_none_or(|last| last == "stop"), "{log:?}");
            assert!(log.len() == 2 || !running, "{log:?}");
        }
    }

    const LINGER: Duration = Duration::from_secs(1);

    struct Rig {
        demand: watch::Sender<Demand>,
        status: watch::Receiver<CameraStatus>,
        counters: Arc<CameraCounters>,
        stopping: CancellationToken,
        device: Arc<Device>,
        task: JoinHandle<()>,
    }

    impl Rig {
        fn new(device: Device) -> Self {
            let device = Arc::new(device);
            let kbps = Bitrate::from_kbps;
            let encoder = EncoderSettings {
                prefer: super::super::Prefer::Auto,
                max: kbps(2000),
                min: kbps(100),
                keyframe_interval: Duration::from_secs(2),
            };
            let (demand, wanted) =
                watch::channel(Demand { running: false, off: false, bitrate: kbps(1000), keyframe: 0, low: None });
            let (status, seen) =
                watch::channel(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed });
            let counters = Arc::new(CameraCounters::default());
            let opener = Arc::new(FakeOpener(Arc::clone(&device)));
            let stopping = CancellationToken::new();
            let sink: Sink = Arc::new(|_, _| {});
            let task = CameraTask::new(opener, LINGER, encoder, sink, status, Arc::clone(&counters), stopping.clone());
            #[expect(clippy::disallowed_methods, reason = "the test waits for the task itself")]
            let task = tokio::spawn(task.run(wanted));
            Self { demand, status: seen, counters, stopping, device, task }
        }

        fn want(&self, running: bool) {
            self.demand.send_modify(|demand| demand.running = running);
        }

        fn state(&self) -> CameraState {
            self.status.borrow().state.clone()
        }

        async fn reaches(&mut self, state: &CameraState) {
            self.status.wait_for(|status| status.state == *state).await.unwrap();
        }

        async fn failed(&mut self) -> String {
            let is_failure = |status: &CameraStatus| matches!(status.state, CameraState::BackingOff { .. });
            match &self.status.wait_for(is_failure).await.unwrap().state {
                CameraState::BackingOff { error, .. } => error.clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A device that keeps a diary. Gives pictures only when a test makes it.
    #[derive(Default)]
    struct Device {
        failures: AtomicUsize,
        absent: AtomicBool,
        slow: AtomicBool,
        /// Being told to stop opening is not heard yet; and it was.
        deaf: AtomicBool,
        cut_short: AtomicBool,
        diary: Mutex<Vec<String>>,
        feed: Mutex<Option<Feed>>,
    }

    impl Device {
        fn failing(failures: usize) -> Self {
            Self { failures: failures.into(), ..Self::default() }
        }

        fn log(&self) -> Vec<String> {
            self.diary.lock().unwrap().clone()
        }

        fn note(&self, what: String) {
            self.diary.lock().unwrap().push(what);
        }

        fn feed(&self) -> Feed {
            self.feed.lock().unwrap().clone().unwrap()
        }
    }

    struct FakeOpener(Arc<Device>);

    impl Open for FakeOpener {
        fn open(&self, bitrate: Bitrate, feed: Feed, cancelled: &CancellationToken) -> Result<Opened, SourceError> {
            let device = &self.0;
            while device.slow.load(Ordering::Relaxed) {
                if cancelled.is_cancelled() && !device.deaf.load(Ordering::Relaxed) {
                    device.cut_short.store(true, Ordering::Relaxed);
                    return Err(SourceError::Cancelled);
                }
                std::thread::yield_now();
            }
            if device.failures.load(Ordering::Relaxed) > 0 {
                device.failures.fetch_sub(1, Ordering::Relaxed);
                return Err(SourceError::NoPicture { within: Duration::from_secs(5) });
            }
            device.note(format!("open at {bitrate}"));
            *device.feed.lock().unwrap() = Some(feed);
            let stream = Stream {
                source: "a fake".into(),
                width: 1,
                height: 1,
                fps: 1,
                encoder: "none".into(),
                encoder_reason: String::new(),
            };
            Ok(Opened { source: Box::new(FakeSource(Arc::clone(device))), stream })
        }

        fn present(&self) -> Vec<PathBuf> {
            let is_there = !self.0.absent.load(Ordering::Relaxed);
            is_there.then(|| "/dev/fake".into()).into_iter().collect()
        }
    }

    struct FakeSource(Arc<Device>);

    impl VideoSource for FakeSource {
        fn set_bitrate(&mut self, bitrate: Bitrate) {
            self.0.note(bitrate.to_string());
        }

        fn request_keyframe(&mut self) {
            self.0.note("keyframe".into());
        }

        fn stop(self: Box<Self>) {
            self.0.note("stop".into());
        }
    }
}
