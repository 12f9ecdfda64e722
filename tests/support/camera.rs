//! One camera, from demand to access units, without anything around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use edgecam::camera::{self, CameraSettings, EncoderSettings, LowSettings, Prefer, Source};
use edgecam::core::access_unit::{AccessUnit, Bitrate};
use edgecam::core::camera::{CameraState, CameraStatus, Demand, LowDemand, LowState, Rendition, Stream};
use edgecam::core::counters::CameraCounters;
use edgecam::core::signal::CameraId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; reached only when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Camera {
    pub demand: watch::Sender<Demand>,
    pub status: watch::Receiver<CameraStatus>,
    pub units: mpsc::Receiver<AccessUnit>,
    pub low_units: mpsc::Receiver<AccessUnit>,
    pub counters: Arc<CameraCounters>,
    pub stopping: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Camera {
    pub fn start(source: Source) -> Self {
        Self::sized(source, 640, 360, 2000)
    }

    pub fn sized(source: Source, width: u32, height: u32, max_kbps: u32) -> Self {
        let settings = CameraSettings {
            id: CameraId::new("front").unwrap(),
            source,
            width,
            height,
            fps: 30,
            linger: Duration::from_millis(100),
            encoder: EncoderSettings {
                prefer: Prefer::Auto,
                max: Bitrate::from_kbps(max_kbps),
                min: Bitrate::from_kbps(150),
                keyframe_interval: Duration::from_secs(600),
            },
            low: Some(LowSettings {
                width: None,
                height: None,
                max: Bitrate::from_kbps(500),
                min: Bitrate::from_kbps(100),
            }),
            controls: BTreeMap::new(),
        };
        let nothing =
            Demand { running: false, off: false, bitrate: Bitrate::from_kbps(max_kbps), keyframe: 0, low: None };
        let (demand, wanted) = watch::channel(nothing);
        let (status, seen) =
            watch::channel(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed });
        let (sender, units) = mpsc::channel(10_000);
        let (low_sender, low_units) = mpsc::channel(10_000);
        let sink = Arc::new(move |rendition, unit| match rendition {
            Rendition::High => sender.try_send(unit).unwrap(),
            Rendition::Low => low_sender.try_send(unit).unwrap(),
        });
        let counters = Arc::new(CameraCounters::default());
        let stopping = CancellationToken::new();
        let task = camera::run(settings, wanted, sink, status, Arc::clone(&counters), stopping.clone());
        #[expect(clippy::disallowed_methods, reason = "the test waits for the task itself")]
        let task = tokio::spawn(task);
        Self { demand, status: seen, units, low_units, counters, stopping, task }
    }

    pub fn want(&self, running: bool) {
        self.demand.send_modify(|demand| demand.running = running);
    }

    pub async fn next(&mut self) -> AccessUnit {
        match timeout(PATIENCE, self.units.recv()).await {
            Ok(Some(unit)) => unit,
            _ => panic!("no picture; the camera is {:?}", self.status.borrow()),
        }
    }

    pub fn drain(&mut self) {
        while self.units.try_recv().is_ok() {}
        while self.low_units.try_recv().is_ok() {}
    }

    pub fn want_low(&self, kbps: Option<u32>) {
        let low = |kbps| LowDemand { bitrate: Bitrate::from_kbps(kbps), keyframe: 0 };
        self.demand.send_modify(|demand| demand.low = kbps.map(low));
    }

    pub async fn next_low(&mut self) -> AccessUnit {
        match timeout(PATIENCE, self.low_units.recv()).await {
            Ok(Some(unit)) => unit,
            _ => panic!("no low picture; the camera is {:?}", self.status.borrow()),
        }
    }

    pub async fn low_comes_and_goes(&mut self) {
        self.want_low(Some(300));
        self.low_reaches(|low| matches!(low, LowState::Open { .. })).await;
        for _ in 0..10 {
            self.next_low().await;
        }
        self.want_low(None);
        self.low_reaches(|low| *low == LowState::Closed).await;
        while self.low_units.try_recv().is_ok() {}
    }

    pub async fn low_reaches(&mut self, is_reached: impl Fn(&LowState) -> bool) -> LowState {
        let reached = timeout(PATIENCE, self.status.wait_for(|status| is_reached(&status.low))).await;
        reached.expect("in time").expect("the task runs").low.clone()
    }

    pub async fn reaches(&mut self, is_reached: impl Fn(&CameraState) -> bool) -> CameraState {
        let reached = timeout(PATIENCE, self.status.wait_for(|status| is_reached(&status.state))).await;
        reached.expect("in time").expect("the task runs").state.clone()
    }

    pub async fn failure(&mut self) -> String {
        match self.reaches(|state| matches!(state, CameraState::BackingOff { .. })).await {
            CameraState::BackingOff { error, .. } => error,
            state => panic!("{state:?}"),
        }
    }

    pub fn stream(&self) -> Option<Stream> {
        self.status.borrow().stream.clone()
    }

    pub async fn stop(self) {
        self.stopping.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").unwrap();
    }
}
