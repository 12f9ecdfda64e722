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

#[tokio::test(start_paused = true)]
async fn the_low_rendition_is_open_while_it_is_wanted() {
    let mut rig = Rig::new(Device::default());
    rig.want_low(Some((300, 5)));
    rig.want(true);
    rig.reaches(&CameraState::Running).await;
    assert_eq!(rig.status.borrow().low, LowState::Closed, "it has given no picture yet");
    rig.device.low_is(open_low());
    rig.low_reaches(&open_low()).await;
    for (kbps, keyframe) in [(300, 5), (300, 6), (200, 6), (9000, 6)] {
        rig.want_low(Some((kbps, keyframe)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.want_low(None);
    rig.low_reaches(&LowState::Closed).await;
    let expected = ["low opens at 300 kbit/s", "low keyframe", "low 200 kbit/s", "low 500 kbit/s", "low closes"];
    assert_eq!(rig.device.log()[1..], expected);
    assert_eq!(rig.counters.low.keyframes_asked.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_low_rendition_that_fails_does_not_end_the_camera_and_is_tried_again() {
    let mut rig = Rig::new(Device::default());
    rig.want_low(Some((300, 0)));
    rig.want(true);
    rig.reaches(&CameraState::Running).await;
    let broken = LowState::Unavailable { reason: "broken".into() };
    rig.device.low_is(broken.clone());
    rig.low_reaches(&broken).await;
    rig.device.low.lock().unwrap().take();
    for _ in 0..20 {
        rig.device.feed().unit(now(), false, Bytes::new());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.device.low_is(open_low());
    rig.low_reaches(&open_low()).await;
    assert_eq!(rig.state(), CameraState::Running);
    assert_eq!(rig.device.log(), ["open at 1000 kbit/s", "low opens at 300 kbit/s", "low opens at 300 kbit/s"]);
    assert_eq!((rig.counters.low.failed.get(), rig.counters.failed.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_low_rendition_comes_back_with_the_camera() {
    let mut rig = Rig::new(Device::default());
    rig.want_low(Some((300, 0)));
    rig.want(true);
    rig.reaches(&CameraState::Running).await;
    rig.device.low_is(open_low());
    rig.low_reaches(&open_low()).await;
    rig.device.feed().failed(SourceError::Graph("pulled".into()));
    rig.failed().await;
    assert_eq!(rig.status.borrow().low, LowState::Closed);
    rig.reaches(&CameraState::Running).await;
    assert_eq!(rig.device.log()[2..], ["stop", "open at 1000 kbit/s", "low opens at 300 kbit/s"]);
}

#[tokio::test(start_paused = true)]
async fn a_camera_that_can_have_no_low_rendition_says_why() {
    let mut rig = Rig::new(Device { encodes_itself: true.into(), ..Device::default() });
    rig.want_low(Some((300, 0)));
    rig.want(true);
    rig.reaches(&CameraState::Running).await;
    assert_eq!(rig.status.borrow().low, LowState::Unavailable { reason: "it encodes itself".into() });
    assert_eq!(rig.device.log(), ["open at 1000 kbit/s"]);
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
        let low = Some(LowSettings { width: None, height: None, max: kbps(500), min: kbps(100) });
        let sink: Sink = Arc::new(|_, _| {});
        let task = CameraTask::new(
            opener,
            Limits { linger: LINGER, encoder, low },
            sink,
            status,
            Arc::clone(&counters),
            stopping.clone(),
        );
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

    fn want_low(&self, low: Option<(u32, u64)>) {
        let low = low.map(|(kbps, keyframe)| LowDemand { bitrate: Bitrate::from_kbps(kbps), keyframe });
        self.demand.send_modify(|demand| demand.low = low);
    }

    async fn low_reaches(&mut self, low: &LowState) {
        self.status.wait_for(|status| status.low == *low).await.unwrap();
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
    encodes_itself: AtomicBool,
    diary: Mutex<Vec<String>>,
    feed: Mutex<Option<Feed>>,
    low: Mutex<Option<LowFeed>>,
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

    fn low_is(&self, state: LowState) {
        self.low.lock().unwrap().as_ref().unwrap().set_state(state);
    }
}

fn of(rendition: Rendition) -> &'static str {
    match rendition {
        Rendition::High => "",
        Rendition::Low => "low ",
    }
}

fn open_low() -> LowState {
    LowState::Open { width: 2, height: 2, encoder: "none".into() }
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
        let no_low = device.encodes_itself.load(Ordering::Relaxed).then(|| "it encodes itself".into());
        Ok(Opened { source: Box::new(FakeSource(Arc::clone(device))), stream, no_low })
    }

    fn present(&self) -> Vec<PathBuf> {
        let is_there = !self.0.absent.load(Ordering::Relaxed);
        is_there.then(|| "/dev/fake".into()).into_iter().collect()
    }
}

struct FakeSource(Arc<Device>);

impl VideoSource for FakeSource {
    fn set_bitrate(&mut self, rendition: Rendition, bitrate: Bitrate) {
        self.0.note(format!("{}{bitrate}", of(rendition)));
    }

    fn request_keyframe(&mut self, rendition: Rendition) {
        self.0.note(format!("{}keyframe", of(rendition)));
    }

    fn open_low(&mut self, bitrate: Bitrate, feed: LowFeed) {
        self.0.note(format!("low opens at {bitrate}"));
        *self.0.low.lock().unwrap() = Some(feed);
    }

    fn close_low(&mut self) {
        self.0.note("low closes".into());
    }

    fn stop(self: Box<Self>) {
        self.0.note("stop".into());
    }
}
