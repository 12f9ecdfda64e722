//! systemd: ready, status, stopping, and a watchdog that is fed only while the daemon proves that it works.
//!
//! A watchdog fed by a timer proves that timers work. Here each feeding needs an answer: the engine has answered since the
//! last one, and every camera that runs has delivered pictures. Without systemd all of this does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Notify;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::WatchedCamera;
use crate::core::camera::CameraState;
use crate::core::counters::Count;

/// Everything is up: listeners bound, parts started. A camera that fails keeps nobody from starting: `systemctl status` names
/// it, as [`keep_status`] goes on to do. `page` is the page's address.
pub fn ready(page: &str, cameras: &[WatchedCamera]) {
    notify(&[NotifyState::Ready, NotifyState::Status(&status_line(page, cameras))]);
}

/// Keeps the line of `systemctl status` true until `stopping`.
pub async fn keep_status(page: String, cameras: Vec<WatchedCamera>, stopping: CancellationToken) {
    let changes = cameras.iter().map(|camera| (camera.id.clone(), WatchStream::from_changes(camera.status.clone())));
    let mut changes: StreamMap<_, _> = changes.collect();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            Some(_) = changes.next() => notify(&[NotifyState::Status(&status_line(&page, &cameras))]),
        }
    }
}

/// Where the page is, and which cameras fail and why, in one line.
fn status_line(page: &str, cameras: &[WatchedCamera]) -> String {
    let mut line = format!("Page on {page}");
    for camera in cameras {
        if let CameraState::BackingOff { error, .. } = &camera.status.borrow().state {
            line.push_str(&format!("; camera {} fails: {}", camera.id, error.replace('\n', " ")));
        }
    }
    line
}

pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds systemd's watchdog until `stopping`, at half the time it allows. Returns at once when systemd wants none.
pub async fn feed_watchdog(engine: Pulse, cameras: Vec<WatchedCamera>, stopping: CancellationToken) {
    if let Some(allowed) = sd_notify::watchdog_enabled() {
        look_after(allowed, &engine, &cameras, &stopping, || notify(&[NotifyState::Watchdog])).await;
    }
}

/// A question put to a task now and then: one arm of its `select!`, high up, answers it.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    asked: Arc<Notify>,
    answers: Arc<Count>,
}

impl Pulse {
    /// Waits for the question and answers it. Cancel-safe.
    pub async fn answer(&self) {
        self.asked.notified().await;
        self.answers.add(1);
    }
}

/// What was seen at the last look, to be compared with the next.
#[derive(Debug, Default)]
pub struct Progress {
    last: BTreeMap<String, u64>,
}

impl Progress {
    /// `figures` has, for each part that has to work now, a number that goes up as it works. Returns the parts that had to
    /// work at the last look too, and have not moved since.
    pub fn look(&mut self, figures: BTreeMap<String, u64>) -> Vec<String> {
        let stuck = figures.iter().filter(|(part, figure)| self.last.get(*part) == Some(figure));
        let stuck = stuck.map(|(part, _)| part.clone()).collect();
        self.last = figures;
        stuck
    }
}

async fn look_after(
    allowed: Duration,
    engine: &Pulse,
    cameras: &[WatchedCamera],
    stopping: &CancellationToken,
    feed: impl Fn(),
) {
    let mut progress = Progress::default();
    let mut every = tokio::time::interval(allowed / 2);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let stuck = progress.look(figures(engine, cameras));
        if stuck.is_empty() {
            debug!("feeding the watchdog");
            feed();
        } else {
            error!(?stuck, ?allowed, "no progress; systemd will restart us unless it goes on");
        }
        engine.asked.notify_one();
    }
}

fn figures(engine: &Pulse, cameras: &[WatchedCamera]) -> BTreeMap<String, u64> {
    // A camera that fails says so in its state. One that claims to run and gives nothing is stuck.
    let running = cameras.iter().filter(|camera| camera.status.borrow().state == CameraState::Running);
    let cameras = running.map(|camera| (format!("camera {}", camera.id), camera.counters.units_captured.get()));
    cameras.chain([("engine".to_owned(), engine.answers.get())]).collect()
}

fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::core::camera::{CameraStatus, LowState};
    use crate::core::counters::CameraCounters;
    use crate::core::signal::CameraId;

    const ALLOWED: Duration = Duration::from_secs(30);

    #[test]
    fn the_status_names_the_cameras_that_fail_in_one_line() {
        let failing = CameraState::BackingOff { error: "it was\nunplugged".into(), retry_in: Duration::from_secs(30) };
        let cameras = [camera(CameraState::Running), camera(failing)];
        let line = status_line("http://127.0.0.1:8080/", &cameras);
        assert_eq!(line, "Page on http://127.0.0.1:8080/; camera front fails: it was unplugged");
    }

    #[test]
    fn a_part_that_moves_is_not_stuck() {
        let mut progress = Progress::default();
        for figure in 0..5 {
            assert!(progress.look(seen(&[("engine", figure)])).is_empty());
        }
    }

    #[test]
    fn a_part_that_stands_still_between_two_looks_is_stuck() {
        let mut progress = Progress::default();
        progress.look(seen(&[("engine", 1), ("camera front", 9)]));
        assert_eq!(progress.look(seen(&[("engine", 2), ("camera front", 9)])), ["camera front"]);
    }

    #[test]
    fn a_part_that_has_only_now_begun_to_work_is_given_time() {
        let mut progress = Progress::default();
        progress.look(seen(&[("engine", 1)]));
        assert!(progress.look(seen(&[("engine", 2), ("camera front", 0)])).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_the_engine_answers() {
        assert_eq!(fed(Engine::Answers, &[]).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_engine_starves_the_watchdog() {
        assert_eq!(fed(Engine::IsSilent, &[]).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_camera_that_claims_to_run_and_gives_no_pictures_starves_the_watchdog() {
        assert_eq!(fed(Engine::Answers, &[camera(CameraState::Running)]).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_or_failing_camera_does_not_starve_the_watchdog() {
        let failing = CameraState::BackingOff { error: "unplugged".into(), retry_in: Duration::from_secs(30) };
        let cameras = [camera(CameraState::Idle), camera(failing)];
        assert_eq!(fed(Engine::Answers, &cameras).await, 3);
    }

    /// How often the watchdog was fed in a little more than the time allowed: 3 times when all is well.
    async fn fed(engine: Engine, cameras: &[WatchedCamera]) -> u64 {
        let answers = engine == Engine::Answers;
        let engine = Pulse::default();
        let answering = async {
            loop {
                engine.answer().await;
            }
        };
        let fed = Count::default();
        let stopping = CancellationToken::new();
        tokio::select! {
            () = answering, if answers => {}
            () = look_after(ALLOWED, &engine, cameras, &stopping, || fed.add(1)) => {}
            () = tokio::time::sleep(ALLOWED + ALLOWED / 4) => {}
        }
        fed.get()
    }

    #[derive(PartialEq)]
    enum Engine {
        Answers,
        IsSilent,
    }

    fn camera(state: CameraState) -> WatchedCamera {
        WatchedCamera {
            id: CameraId::new("front").unwrap(),
            status: watch::channel(CameraStatus { state, stream: None, low: LowState::Closed }).1,
            counters: Arc::new(CameraCounters::default()),
        }
    }

    fn seen(figures: &[(&str, u64)]) -> BTreeMap<String, u64> {
        figures.iter().map(|(part, figure)| ((*part).to_owned(), *figure)).collect()
    }
}
