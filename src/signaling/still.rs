//! Stills, for every link: the engine gives a keyframe, and it is made a JPEG. One at a time, and few wait for their turn.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::warn;

use super::{Inbound, Links};
use crate::core::access_unit::AccessUnit;
use crate::core::signal::{CameraId, Correlation, RejectReason};

/// Makes a JPEG picture of a keyframe; may take long, so it is called on a thread that may block.
pub type MakeJpeg = Arc<dyn Fn(AccessUnit) -> Result<Bytes, String> + Send + Sync>;

/// Those with a keyframe to be made a picture, over all cameras: the one whose turn it is, and those behind it.
const PLACES: usize = 8;
/// A place is free again when a picture or two have been made.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// From request to picture: the camera is opened (5 s) and gives a keyframe (10 s in all), which is decoded.
const WITHIN: Duration = Duration::from_secs(20);

/// What makes pictures of keyframes.
pub struct Stills {
    make_jpeg: MakeJpeg,
    places: Semaphore,
    /// Each takes a whole core and a picture's memory, and viewers' pictures come first.
    turn: Arc<Semaphore>,
}

/// Why there is no still.
#[derive(Debug, thiserror::Error)]
pub(super) enum StillError {
    #[error(transparent)]
    Rejected(#[from] RejectReason),
    #[error("{0}")]
    NotMade(String),
    #[error("it took longer than {} s", WITHIN.as_secs())]
    Late,
}

impl Stills {
    pub fn new(make_jpeg: MakeJpeg) -> Self {
        Self { make_jpeg, places: Semaphore::new(PLACES), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Links {
    /// A JPEG of the camera's next keyframe. Who drops this future frees its place.
    pub(super) async fn still(&self, camera: &CameraId, id: Correlation) -> Result<Bytes, StillError> {
        timeout(WITHIN, self.take_still(camera, id)).await.unwrap_or(Err(StillError::Late))
    }

    async fn take_still(&self, camera: &CameraId, id: Correlation) -> Result<Bytes, StillError> {
        let Stills { make_jpeg, places, turn } = &self.stills;
        let (reply, keyframe) = oneshot::channel();
        self.tell_engine(Inbound::Still { camera: camera.clone(), id, reply }).await?;
        let keyframe = keyframe.await.unwrap_or(Err(RejectReason::ShuttingDown))?;
        let _place = places.try_acquire().map_err(|_| RejectReason::Busy { retry_after: BUSY_FOR })?;
        let turn = Arc::clone(turn).acquire_owned().await.map_err(|_| RejectReason::ShuttingDown)?;
        let make_jpeg = Arc::clone(make_jpeg);
        // The thread holds the turn: it decodes on when nobody waits for it any more.
        let made = self.tasks.spawn_blocking(move || {
            let _turn = turn;
            make_jpeg(keyframe)
        });
        made.await.unwrap_or_else(|panic| Err(panic.to_string())).map_err(|why| {
            warn!(%camera, why, "no still was made");
            StillError::NotMade(why)
        })
    }
}
