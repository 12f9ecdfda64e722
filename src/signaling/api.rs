//! `/api/cameras`: what this device has and what each camera is doing, stills, who watches, and the privacy switch.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, put};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::figures::{LowJson, SessionJson};
use super::problem::Problem;
use super::token::{Grant, Permission};
use super::{CameraBoard, Inbound, Links, rim};
use crate::core::camera::{CameraState, Stream, Switch};
use crate::core::signal::RejectReason;

/// For a switch to be written down; the disk of a board can take its time.
const KEPT_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn router(links: Arc<Links>) -> Router {
    Router::new()
        .route("/api/cameras", get(cameras))
        .route("/api/cameras/{camera}/still.jpg", get(still))
        .route("/api/cameras/{camera}/sessions", get(sessions))
        .route("/api/cameras/{camera}/enabled", put(switch))
        .layer(middleware::from_fn_with_state(Arc::clone(&links), rim::check_token))
        .layer(middleware::from_fn_with_state(Arc::clone(&links), rim::check_page))
        .with_state(links)
}

/// Only the cameras that the token covers.
async fn cameras(State(links): State<Arc<Links>>, Extension(grant): Extension<Grant>) -> Json<Device> {
    let cameras = links.cameras.iter().filter(|board| grant.covers(&board.id)).map(Camera::from).collect();
    Json(Device { device: links.device.clone(), cameras })
}

/// A JPEG of the next keyframe.
async fn still(
    State(links): State<Arc<Links>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let camera = &rim::camera(&links, &grant, Permission::View, &camera)?.id;
    let jpeg = links.still(camera).await?;
    links.tell_still_taken(camera, None);
    Ok(([(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "no-store")], jpeg))
}

/// How everybody fares who watches. Where they are is among it, so to look on is not enough.
async fn sessions(
    State(links): State<Arc<Links>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let camera = rim::camera(&links, &grant, Permission::Control, &camera)?.id.clone();
    let (reply, told) = oneshot::channel();
    links.tell_engine(Inbound::Figures { camera, reply }).await?;
    let told = timeout(links.settings.answer_timeout, told).await.map_err(|_| Problem::no_answer())?;
    let sessions = told.map_err(|_| RejectReason::ShuttingDown)?.iter().map(SessionJson::from).collect();
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(Sessions { sessions })))
}

/// The privacy switch: `true` or `false`. Answered when it holds and is written down, or with the reason why it is not.
async fn switch(
    State(links): State<Arc<Links>>,
    Extension(grant): Extension<Grant>,
    Path(camera): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Enabled>, Problem> {
    let board = rim::camera(&links, &grant, Permission::Control, &camera)?;
    let body = rim::body_of(&links, &headers, "application/json", body).await?;
    let on = match body.trim_ascii() {
        b"true" => true,
        b"false" => false,
        _ => {
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-field",
                "the body is neither true nor false",
            ));
        }
    };
    let (reply, switched) = oneshot::channel();
    links.tell_engine(Inbound::Switch { camera: board.id.clone(), on, id: None, reply }).await?;
    let switched = timeout(links.settings.answer_timeout, switched).await.map_err(|_| Problem::no_answer())?;
    switched.unwrap_or(Err(RejectReason::ShuttingDown))?;
    info!(camera = %board.id, on, by = grant.subject, "switched");
    let mut shown = board.switch.clone();
    let kept = timeout(KEPT_WITHIN, shown.wait_for(|switch| switch.on == on)).await;
    Ok(Json(match kept {
        Ok(Ok(switch)) => Enabled::from(&*switch),
        Ok(Err(_)) | Err(_) => Enabled { enabled: on, unkept: Some("it is not written down yet".into()) },
    }))
}

/// The privacy switch as programs see it.
#[derive(Serialize)]
struct Enabled {
    enabled: bool,
    /// Why a restart would undo it.
    unkept: Option<String>,
}

impl From<&Switch> for Enabled {
    fn from(switch: &Switch) -> Self {
        Self { enabled: switch.on, unkept: switch.unkept.clone() }
    }
}

#[derive(Serialize)]
struct Sessions {
    sessions: Vec<SessionJson>,
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
    #[serde(flatten)]
    switch: Enabled,
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
    low: LowJson,
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
            switch: Enabled::from(&*board.switch.borrow()),
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
            low: LowJson::from(&status.low),
        }
    }
}
