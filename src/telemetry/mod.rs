//! Floor 1. What the daemon tells about itself: logs, `/healthz`, `/metrics`, and systemd.

mod health;
mod log;
mod metrics;
mod systemd;

use std::sync::Arc;

use axum::Router;
use axum::http::request::Parts;
use tokio::sync::watch;

pub use self::health::{Health, Reasons};
pub use self::log::{BadLevel, LogError, LogFormat, LogSettings, init};
pub use self::metrics::Metrics;
pub use self::systemd::{Progress, Pulse, feed_watchdog, keep_status, ready, stopping};
use crate::core::camera::CameraStatus;
use crate::core::counters::CameraCounters;
use crate::core::signal::CameraId;

/// A camera as it is watched from here.
#[derive(Clone, Debug)]
pub struct WatchedCamera {
    pub id: CameraId,
    pub status: watch::Receiver<CameraStatus>,
    pub counters: Arc<CameraCounters>,
}

/// Whether a request may read the metrics: decided by whoever knows tokens and addresses.
pub type MayRead = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

/// `GET /healthz` for everyone, `GET /metrics` for those `may_read` lets in (others get 401).
pub fn router(health: Health, metrics: Metrics, may_read: MayRead) -> Router {
    health::router(health).merge(metrics::router(metrics, may_read))
}
