//! `GET /healthz`: is the daemon doing what it is there for?
//!
//! Open to everyone, so it names no version, camera or path; the log and `/api/cameras` say which camera and why.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::WatchedCamera;
use crate::core::camera::CameraState;

/// What is looked at when somebody asks.
#[derive(Clone, Debug)]
pub struct Health {
    cameras: Arc<[WatchedCamera]>,
    reported: Reasons,
}

/// Reasons that only the house knows ("stopping", "the engine does not answer"), set from outside.
#[derive(Clone, Debug, Default)]
pub struct Reasons(Arc<Mutex<Vec<&'static str>>>);

impl Reasons {
    /// Adds `reason` until it is taken back.
    pub fn report(&self, reason: &'static str) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    pub fn take_back(&self, reason: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != reason);
    }

    fn now(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Health {
    pub fn new(cameras: Vec<WatchedCamera>, reported: Reasons) -> Self {
        Self { cameras: cameras.into(), reported }
    }

    /// Everything that is wrong now; empty: all is well. A closed camera that nobody watches is well.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.reported.now().into_iter().map(str::to_owned).collect();
        let failed = |camera: &&WatchedCamera| matches!(camera.status.borrow().state, CameraState::BackingOff { .. });
        match self.cameras.iter().filter(failed).count() {
            0 => {}
            failed => reasons.push(format!("{failed} of {} cameras fail; the log says why", self.cameras.len())),
        }
        reasons
    }
}

pub(super) fn router(health: Health) -> Router {
    Router::new().route("/healthz", get(healthz)).with_state(health)
}

#[derive(Serialize)]
struct Unwell {
    status: &'static str,
    reasons: Vec<String>,
}

async fn healthz(State(health): State<Health>) -> Response {
    let reasons = health.reasons();
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(Unwell { status: "unwell", reasons })).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::*;
    use crate::core::camera::{CameraStatus, LowState};
    use crate::core::counters::CameraCounters;
    use crate::core::signal::CameraId;

    #[tokio::test]
    async fn a_daemon_whose_cameras_wait_or_run_is_well() {
        assert_eq!(ask(&[CameraState::Idle, CameraState::Running], &[]).await, (200, "ok\n".into()));
    }

    #[tokio::test]
    async fn a_failing_camera_is_told_without_its_name_or_path() {
        let error = "no camera at /dev/v4l/by-id/usb-secret".to_owned();
        let failed = CameraState::BackingOff { error, retry_in: Duration::from_secs(1) };
        let (status, body) = ask(&[failed, CameraState::Idle], &[]).await;
        assert_eq!(status, 503);
        assert_eq!(body, r#"{"status":"unwell","reasons":["1 of 2 cameras fail; the log says why"]}"#);
    }

    #[tokio::test]
    async fn what_the_house_reports_is_a_reason_too() {
        let (status, body) = ask(&[CameraState::Idle], &["stopping"]).await;
        assert_eq!((status, body.as_str()), (503, r#"{"status":"unwell","reasons":["stopping"]}"#));
    }

    #[test]
    fn a_reason_stands_until_it_is_taken_back() {
        let reasons = Reasons::default();
        reasons.report("stopping");
        reasons.report("stopping");
        assert_eq!(reasons.now(), ["stopping"]);
        reasons.take_back("stopping");
        assert!(reasons.now().is_empty());
    }

    async fn ask(states: &[CameraState], reported: &[&'static str]) -> (u16, String) {
        let camera = |state: &CameraState| WatchedCamera {
            id: CameraId::new("garden").unwrap(),
            status: watch::channel(CameraStatus { state: state.clone(), stream: None, low: LowState::Closed }).1,
            counters: Arc::new(CameraCounters::default()),
        };
        let reasons = Reasons::default();
        reported.iter().for_each(|reason| reasons.report(reason));
        let health = Health::new(states.iter().map(camera).collect(), reasons);
        let response = router(health).oneshot(Request::get("/healthz").body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}
