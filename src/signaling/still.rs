//! Stills, for every link: the engine gives a keyframe, and it is made a JPEG. One at a time, and few wait for their turn.
//! None is given out once the engine has switched its camera off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Inbound, Links};
use crate::core::access_unit::AccessUnit;
use crate::core::signal::{CameraId, Correlation, RejectReason};
use crate::core::trigger::{Event, Happening};

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
    /// What the engine has switched off. The boards say so later, when it is written down.
    switched_off: watch::Receiver<BTreeSet<CameraId>>,
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
    pub fn new(make_jpeg: MakeJpeg, switched_off: watch::Receiver<BTreeSet<CameraId>>) -> Self {
        Self { make_jpeg, switched_off, places: Semaphore::new(PLACES), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The cameras of which no picture may leave, as the engine has it.
    pub(super) fn switched_off(&self) -> watch::Receiver<BTreeSet<CameraId>> {
        self.switched_off.clone()
    }

    /// Until no picture of this camera may leave any more; and why.
    async fn forbidden(&self, camera: &CameraId) -> RejectReason {
        match self.switched_off().wait_for(|off| off.contains(camera)).await {
            Ok(_) => RejectReason::Disabled,
            // Nobody is left who would tell.
            Err(_) => RejectReason::ShuttingDown,
        }
    }
}

impl Links {
    /// A JPEG of the camera's next keyframe. Who drops this future frees its place.
    pub(super) async fn still(&self, camera: &CameraId) -> Result<Bytes, StillError> {
        tokio::select! {
            // The switch first: a picture that is ready when it is off does not leave.
            biased;
            reason = self.stills.forbidden(camera) => Err(reason.into()),
            taken = timeout(WITHIN, self.take_still(camera)) => taken.unwrap_or(Err(StillError::Late)),
        }
    }

    /// Tells everybody that a still went to somebody.
    pub(super) fn tell_still_taken(&self, camera: &CameraId, trigger: Correlation) {
        debug!(%camera, trigger = trigger.as_deref(), "still taken");
        // Whether anybody listens is their own affair.
        let _ = self.events.send(Event { camera: camera.clone(), trigger, happening: Happening::StillTaken });
    }

    async fn take_still(&self, camera: &CameraId) -> Result<Bytes, StillError> {
        let Stills { make_jpeg, switched_off: _, places, turn } = &self.stills;
        let (reply, keyframe) = oneshot::channel();
        self.tell_engine(Inbound::Still { camera: camera.clone(), reply }).await?;
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
