//! The privacy switch, from message to answer. An `OFF` is never lost here: neither a flood of messages nor a busy engine is in its way.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, oneshot};

use super::super::Inbound;
use super::broker::Incoming;
use super::machines::Outcome;
use super::topics::Topics;
use super::trigger::{self, Refusal};
use super::viewers::ReplyTo;
use super::{BUSY_FOR, Link};
use crate::core::counters::MqttDrop;
use crate::core::signal::{CameraId, RejectReason};

const WHAT: &str = "switch";

/// `OFF`s that found no room among the messages that wait for the link: the latest for each camera.
#[derive(Default)]
pub(super) struct Offs {
    cameras: BTreeMap<Bytes, CameraId>,
    kept: Mutex<BTreeMap<CameraId, Incoming>>,
    news: Notify,
}

impl Offs {
    pub(super) fn new<'a>(topics: &Topics, cameras: impl Iterator<Item = &'a CameraId>) -> Self {
        let cameras = cameras.map(|camera| (Bytes::from(topics.enabled_set(camera)), camera.clone())).collect();
        Self { cameras, ..Self::default() }
    }

    /// Keeps the message if it is an `OFF` for a camera that is there.
    pub(super) fn keep(&self, message: Incoming) -> bool {
        if !matches!(trigger::parse_switch(&message.payload), Ok(false)) {
            return false;
        }
        let Some(camera) = self.cameras.get(&message.topic) else { return false };
        self.kept().insert(camera.clone(), message);
        self.news.notify_one();
        true
    }

    /// What was kept, once there is something. They came after all messages that waited then.
    pub(super) async fn take(&self) -> BTreeMap<CameraId, Incoming> {
        self.news.notified().await;
        std::mem::take(&mut *self.kept())
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<CameraId, Incoming>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub(super) fn handle_switch(&mut self, camera: CameraId, message: &Incoming, now: Instant) {
        let to = self.answer_to(message);
        let word = trigger::parse_switch(&message.payload);
        // Privacy is never told to wait, nor that it was not to be kept: what the broker had kept does not come here.
        let is_off = matches!(word, Ok(false)) && self.links.camera(&camera).is_some();
        if !is_off && let Err(refusal) = self.admit_trigger(&camera, message, now) {
            return self.refuse(camera, || trigger::id(&message.payload), to, &refusal);
        }
        let on = match word {
            Ok(on) => on,
            Err(refusal) => return self.refuse(camera, || None, to, &refusal),
        };
        if self.is_off_waiting(&camera) {
            // It has not overtaken what was said before it, and is not overtaken by what is said after it.
            return if on {
                self.refuse(camera, || None, to, &Refusal::Busy(BUSY_FOR));
            } else {
                self.drop(MqttDrop::Repeated);
            };
        }
        let (reply, decided) = oneshot::channel();
        let inbound = Inbound::Switch { camera: camera.clone(), on, id: None, reply };
        match self.links.engine.try_send(inbound) {
            Ok(()) => self.await_engine(camera, None, WHAT, to, Ok(()), decided),
            Err(TrySendError::Full(inbound)) if !on => self.insist(camera, to, inbound, decided),
            Err(TrySendError::Full(_)) => self.refuse(camera, || None, to, &Refusal::Busy(BUSY_FOR)),
            Err(TrySendError::Closed(_)) => self.refuse(camera, || None, to, &RejectReason::ShuttingDown.into()),
        }
    }

    fn is_off_waiting(&self, camera: &CameraId) -> bool {
        self.waiting_offs.get(camera).is_some_and(|waiting| !waiting.is_finished())
    }

    /// Waits for the engine to have room for an `OFF`: one for each camera.
    fn insist(
        &mut self,
        camera: CameraId,
        to: Option<ReplyTo>,
        inbound: Inbound,
        decided: oneshot::Receiver<Result<(), RejectReason>>,
    ) {
        let (engine, outcomes) = (self.links.engine.clone(), self.outcomes.clone());
        let of = camera.clone();
        let waiting = self.links.tasks.spawn(async move {
            // An engine that has ended drops the question, and with it the answer.
            let _ended = engine.send(inbound).await;
            let outcome = decided.await.unwrap_or(Err(RejectReason::ShuttingDown));
            let outcome = outcome.map(|()| None).map_err(Refusal::from);
            let _stopped = outcomes.send(Outcome { camera: of, id: None, what: WHAT, to, outcome }).await;
        });
        self.waiting_offs.insert(camera, waiting);
    }
}
