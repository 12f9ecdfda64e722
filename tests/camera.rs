//! The whole camera, from demand to access units, on sources that need no hardware.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgecam::camera::{self, CameraSettings, EncoderSettings, Prefer, Source, still};
use edgecam::core::access_unit::{AccessUnit, Bitrate};
use edgecam::core::annex_b::{Contents, Sps};
use edgecam::core::camera::{CameraState, CameraStatus, Demand, LowState, Stream};
use edgecam::core::counters::CameraCounters;
use edgecam::core::signal::CameraId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_watched_camera_begins_with_a_keyframe_and_says_what_it_is() {
    let mut camera = Camera::start(Source::Test);
    assert_eq!(camera.status.borrow().state, CameraState::Idle);
    camera.want(true);
    let first = camera.next().await;
    assert!(first.is_keyframe);
    let sps = Sps::find(&first.data).unwrap();
    assert!(sps.is_constrained_baseline());
    assert_eq!((sps.width, sps.height), (640, 360));
    camera.reaches(|state| *state == CameraState::Running).await;
    let stream = camera.stream().unwrap();
    assert_eq!(stream.source, "test picture 640x360 at 30 fps");
    assert_eq!(stream.encoder, "x264enc");
    assert!(stream.encoder_reason.contains("v4l2h264enc is not there"), "{}", stream.encoder_reason);
    camera.stop().await;
}

#[tokio::test]
async fn the_camera_closes_after_the_linger_and_opens_again() {
    let mut camera = Camera::start(Source::Test);
    for opened in 1..=2 {
        camera.want(true);
        camera.reaches(|state| *state == CameraState::Running).await;
        assert_eq!(camera.counters.opened.get(), opened);
        camera.want(false);
        camera.reaches(|state| *state == CameraState::Idle).await;
        camera.drain();
    }
    assert!(camera.stream().is_some(), "what it was is still told");
    assert_eq!(camera.counters.failed.get(), 0);
    camera.stop().await;
}

#[tokio::test]
async fn a_wished_keyframe_comes_without_waiting_for_the_next_regular_one() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    for _ in 0..10 {
        camera.next().await;
    }
    camera.drain();
    camera.demand.send_modify(|demand| demand.keyframe += 1);
    let mut waited = 0;
    while !camera.next().await.is_keyframe {
        waited += 1;
        assert!(waited < 30, "no keyframe in 30 pictures, the regular one comes after 18000");
    }
    assert_eq!(camera.counters.keyframes_asked.get(), 1);
    camera.stop().await;
}

#[tokio::test]
async fn pictures_are_stamped_with_the_time_they_were_taken() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    let units = [camera.next().await, camera.next().await, camera.next().await];
    #[expect(clippy::disallowed_methods, reason = "what is tested is that the stamp lies on this clock")]
    let now = std::time::Instant::now();
    for unit in &units {
        assert!(unit.captured_at < now && now - unit.captured_at < PATIENCE);
    }
    let apart = units[2].captured_at - units[1].captured_at;
    assert!(apart >= Duration::from_millis(33), "{apart:?} between two pictures");
    camera.stop().await;
}

#[tokio::test]
async fn a_stopped_camera_gives_no_more_pictures() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    camera.next().await;
    camera.stopping.cancel();
    timeout(PATIENCE, &mut camera.task).await.expect("it stops").unwrap();
    assert_eq!(camera.status.borrow().state, CameraState::Idle);
    // The pipeline held the sink; that it is gone shows in the channel's end.
    camera.drain();
    assert!(matches!(camera.units.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}

#[tokio::test]
async fn a_camera_that_is_not_there_is_told_with_its_remedy_and_left_alone_when_nobody_watches() {
    let mut camera = Camera::start(Source::V4l2("/dev/nonexistent".into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("/dev/nonexistent") && error.contains("plug it in"), "{error}");
    assert!(camera.counters.failed.get() >= 1);
    camera.want(false);
    camera.reaches(|state| *state == CameraState::Idle).await;
    camera.stop().await;
}

#[tokio::test]
async fn a_node_that_is_no_video_device_is_refused() {
    let mut camera = Camera::start(Source::V4l2("/dev/null".into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("/dev/null is no camera"), "{error}");
    camera.stop().await;
}

#[tokio::test]
async fn auto_without_any_camera_says_what_was_seen() {
    if Path::new("/dev/video0").exists() {
        return;
    }
    let mut camera = Camera::start(Source::Auto);
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("there is no video device at all"), "{error}");
    camera.stop().await;
}

#[tokio::test]
async fn a_clip_plays_in_a_loop_as_a_camera() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let recorded = record(40).await;
    for unit in &recorded {
        file.write_all(&unit.data).unwrap();
    }
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    let mut played = Vec::new();
    for _ in 0..2 * recorded.len() {
        played.push(camera.next().await);
    }
    for (n, unit) in played.iter().enumerate() {
        assert_eq!(unit.data, recorded[n % recorded.len()].data, "picture {n}");
        assert_eq!(unit.is_keyframe, n % recorded.len() == 0);
    }
    assert!(played.is_sorted_by(|a, b| a.captured_at < b.captured_at));
    let stream = camera.stream().unwrap();
    assert_eq!((stream.width, stream.height, stream.encoder.as_str()), (640, 360, "passthrough"));
    camera.stop().await;
}

#[tokio::test]
async fn a_still_can_be_made_of_what_any_source_gives() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for unit in record(5).await {
        file.write_all(&unit.data).unwrap();
    }
    for source in [Source::Test, Source::Clip(file.path().into())] {
        let mut camera = Camera::start(source);
        camera.want(true);
        let jpeg = still::jpeg(&camera.next().await).unwrap();
        assert!(jpeg.starts_with(&[0xFF, 0xD8]) && jpeg.ends_with(&[0xFF, 0xD9]));
        // Height and width in the frame header (ITU-T T.81, B.2.2), behind its length and precision.
        let size = [360u16.to_be_bytes(), 640u16.to_be_bytes()].concat();
        let header = jpeg.windows(9).find(|bytes| bytes[..2] == [0xFF, 0xC0]).unwrap();
        assert_eq!(header[5..], size);
        camera.stop().await;
    }
}

#[tokio::test]
async fn a_clip_goes_on_with_a_keyframe_when_one_is_wished() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for unit in record(40).await {
        file.write_all(&unit.data).unwrap();
    }
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    for _ in 0..5 {
        camera.next().await;
    }
    camera.demand.send_modify(|demand| demand.keyframe += 1);
    let mut waited = 0;
    let mut next = camera.next().await;
    while !next.is_keyframe {
        waited += 1;
        next = camera.next().await;
    }
    assert!(Contents::of(&next.data).is_keyframe());
    assert!(waited < 30, "the clip's own keyframe would have come after 34 pictures");
    camera.stop().await;
}

#[tokio::test]
async fn a_file_that_is_no_clip_is_told() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"no H.264 in here").unwrap();
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("is no clip") && error.contains("ffmpeg"), "{error}");
    camera.stop().await;
}

/// The test source's first pictures.
async fn record(count: usize) -> Vec<AccessUnit> {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    let mut units = Vec::new();
    for _ in 0..count {
        units.push(camera.next().await);
    }
    camera.stop().await;
    units
}

struct Camera {
    demand: watch::Sender<Demand>,
    status: watch::Receiver<CameraStatus>,
    units: mpsc::Receiver<AccessUnit>,
    counters: Arc<CameraCounters>,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl Camera {
    fn start(source: Source) -> Self {
        let settings = CameraSettings {
            id: CameraId::new("front").unwrap(),
            source,
            width: 640,
            height: 360,
            fps: 30,
            linger: Duration::from_millis(100),
            encoder: EncoderSettings {
                prefer: Prefer::Auto,
                max: Bitrate::from_kbps(2000),
                min: Bitrate::from_kbps(150),
                keyframe_interval: Duration::from_secs(600),
            },
            controls: BTreeMap::new(),
        };
        let nothing = Demand { running: false, off: false, bitrate: Bitrate::from_kbps(1000), keyframe: 0, low: None };
        let (demand, wanted) = watch::channel(nothing);
        let (status, seen) =
            watch::channel(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed });
        let (sender, units) = mpsc::channel(10_000);
        let sink = Arc::new(move |_, unit| sender.try_send(unit).unwrap());
        let counters = Arc::new(CameraCounters::default());
        let stopping = CancellationToken::new();
        let task = camera::run(settings, wanted, sink, status, Arc::clone(&counters), stopping.clone());
        #[expect(clippy::disallowed_methods, reason = "the test waits for the task itself")]
        let task = tokio::spawn(task);
        Self { demand, status: seen, units, counters, stopping, task }
    }

    fn want(&self, running: bool) {
        self.demand.send_modify(|demand| demand.running = running);
    }

    async fn next(&mut self) -> AccessUnit {
        match timeout(PATIENCE, self.units.recv()).await {
            Ok(Some(unit)) => unit,
            _ => panic!("no picture; the camera is {:?}", self.status.borrow()),
        }
    }

    fn drain(&mut self) {
        while self.units.try_recv().is_ok() {}
    }

    async fn reaches(&mut self, is_reached: impl Fn(&CameraState) -> bool) -> CameraState {
        let reached = timeout(PATIENCE, self.status.wait_for(|status| is_reached(&status.state))).await;
        reached.expect("in time").expect("the task runs").state.clone()
    }

    async fn failure(&mut self) -> String {
        match self.reaches(|state| matches!(state, CameraState::BackingOff { .. })).await {
            CameraState::BackingOff { error, .. } => error,
            state => panic!("{state:?}"),
        }
    }

    fn stream(&self) -> Option<Stream> {
        self.status.borrow().stream.clone()
    }

    async fn stop(self) {
        self.stopping.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").unwrap();
    }
}
