//! `GET /api/cameras`: what this device has, and what each camera is doing.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::Serialize;

use super::token::Grant;
use super::{CameraBoard, Links, rim};
use crate::core::camera::{CameraState, Stream};

pub(super) fn router(links: Arc<Links>) -> Router {
    Router::new()
        .route("/api/cameras", get(cameras))
        .layer(middleware::from_fn_with_state(Arc::clone(&links), rim::check_token))
        .layer(middleware::from_fn_with_state(Arc::clone(&links), rim::check_page))
        .with_state(links)
}

/// Only the cameras that the token covers.
async fn cameras(State(links): State<Arc<Links>>, Extension(grant): Extension<Grant>) -> Json<Device> {
    let cameras = links.cameras.iter().filter(|board| grant.covers(&board.id)).map(Camera::from).collect();
    Json(Device { device: links.device.clone(), cameras })
}

#[derive(Serialize)]
struct Device {
    device: String,
    cameras: Vec<Camera>,
}

/// One camera; what is not known before it was opened once is `null`.
#[derive(Serialize)]
struct Camera {
    id: String,
    state: &'static str,
    error: Option<String>,
    retry_in_ms: Option<u64>,
    viewers: u64,
    max_viewers: usize,
    source: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    fps: Option<u32>,
    encoder: Option<String>,
    encoder_reason: Option<String>,
    bitrate_kbps: Option<u64>,
}

impl From<&CameraBoard> for Camera {
    fn from(board: &CameraBoard) -> Self {
        let status = board.status.borrow().clone();
        let (error, retry_in_ms) = match &status.state {
            CameraState::BackingOff { error, retry_in } => {
                (Some(error.clone()), Some(u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX)))
            }
            CameraState::Idle | CameraState::Opening | CameraState::Running => (None, None),
        };
        let stream = status.stream.as_ref();
        let of = |field: fn(&Stream) -> u32| stream.map(field);
        Self {
            id: board.id.to_string(),
            state: status.state.slug(),
            error,
            retry_in_ms,
            viewers: board.counters.viewers.get(),
            max_viewers: board.max_viewers,
            source: stream.map(|stream| stream.source.clone()),
            width: of(|stream| stream.width),
            height: of(|stream| stream.height),
            fps: of(|stream| stream.fps),
            encoder: stream.map(|stream| stream.encoder.clone()),
            encoder_reason: stream.map(|stream| stream.encoder_reason.clone()),
            bitrate_kbps: Some(board.counters.bitrate_kbps.get()).filter(|&kbps| kbps > 0),
        }
    }
}
