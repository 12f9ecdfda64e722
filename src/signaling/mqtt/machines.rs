//! What machines ask of cameras: triggers and stills, from message to answer. The rules stand in `trigger`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{debug, info};

use super::super::still::StillError;
use super::super::{Inbound, clock, wall_clock};
use super::broker::{Incoming, Outgoing, Unsent};
use super::trigger::{self, Ask, Refusal, What};
use super::viewers::{MAX_CORRELATION, ReplyTo};
use super::{BUSY_FOR, Link, presence};
use crate::core::counters::MqttDrop;
use crate::core::signal::{CameraId, Correlation, RejectReason};
use crate::core::trigger::Trigger;

/// Pictures that may wait for room on the connection.
const MAX_STILLS: usize = 2;

/// A picture that is ready, and whom to tell when it is published.
pub(super) struct Still {
    camera: CameraId,
    id: Correlation,
    to: Option<ReplyTo>,
    picture: Outgoing,
}

/// What became of a trigger or a switch, once the engine has decided.
pub(super) struct Outcome {
    pub(super) camera: CameraId,
    pub(super) id: Correlation,
    /// `wake`, `still`, `sleep`, `switch`.
    pub(super) what: &'static str,
    pub(super) to: Option<ReplyTo>,
    pub(super) outcome: Result<Option<Bytes>, Refusal>,
}

impl Link {
    pub(super) fn handle_trigger(&mut self, camera: CameraId, message: &Incoming, now: Instant) {
        let to = self.answer_to(message);
        if let Err(refusal) = self.admit_trigger(&camera, message, now) {
            return self.refuse(camera, || trigger::id(&message.payload), to, &refusal);
        }
        let Ask { id, what, reason } = match trigger::parse(&message.payload, wall_clock()) {
            Ok(ask) => ask,
            Err((id, refusal)) => return self.refuse(camera, || id, to, &refusal),
        };
        info!(%camera, trigger = id.as_deref(), action = what.slug(), reason, "triggered");
        match what {
            What::Camera(action) => {
                let trigger = Trigger { camera: camera.clone(), id: id.clone(), action };
                let (reply, decided) = oneshot::channel();
                let asked = self.ask_engine(Inbound::Trigger { trigger, reply });
                self.await_engine(camera, id, what.slug(), to, asked, decided);
            }
            What::Still => self.await_still(camera, id, to),
        }
    }

    pub(super) fn admit_trigger(&mut self, camera: &CameraId, message: &Incoming, now: Instant) -> Result<(), Refusal> {
        if message.retained {
            return Err(Refusal::Retained);
        }
        self.triggers.check(camera, now)
    }

    /// Where the sender wants its answer, if that is a place for answers.
    pub(super) fn answer_to(&self, message: &Incoming) -> Option<ReplyTo> {
        let topic = message.response_topic.clone().filter(|topic| self.topics.is_response_topic(topic))?;
        let correlation = message.correlation.clone().filter(|data| data.len() <= MAX_CORRELATION);
        Some(ReplyTo { topic, correlation })
    }

    pub(super) fn await_engine(
        &mut self,
        camera: CameraId,
        id: Correlation,
        what: &'static str,
        to: Option<ReplyTo>,
        asked: Result<(), RejectReason>,
        decided: oneshot::Receiver<Result<(), RejectReason>>,
    ) {
        if let Err(reason) = asked {
            return self.refuse(camera, || id, to, &reason.into());
        }
        let outcomes = self.outcomes.clone();
        self.links.tasks.spawn(async move {
            let outcome =
                decided.await.unwrap_or(Err(RejectReason::ShuttingDown)).map(|()| None).map_err(Refusal::from);
            let _stopped = outcomes.send(Outcome { camera, id, what, to, outcome }).await;
        });
    }

    fn await_still(&self, camera: CameraId, id: Correlation, to: Option<ReplyTo>) {
        let outcomes = self.outcomes.clone();
        let links = Arc::clone(&self.links);
        self.links.tasks.spawn(async move {
            let outcome = links.still(&camera).await.map(Some).map_err(Refusal::from);
            let _stopped = outcomes.send(Outcome { camera, id, what: What::Still.slug(), to, outcome }).await;
        });
    }

    pub(super) fn handle_outcome(&mut self, Outcome { camera, id, what, to, outcome }: Outcome) {
        match outcome {
            Ok(None) => self.tell_done(&camera, &id, to, what),
            Ok(Some(jpeg)) => {
                let topic = self.topics.still(&camera);
                let picture = Outgoing { topic, payload: jpeg, is_still: true, ..Outgoing::default() };
                self.keep_still(Still { camera, id, to, picture });
            }
            Err(refusal) => self.refuse(camera, || id, to, &refusal),
        }
    }

    /// Lets a picture wait for its turn.
    fn keep_still(&mut self, still: Still) {
        let Some(line) = &self.line else { return self.drop(MqttDrop::Away) };
        let (dropped, refusal) = match line.fits(&still.picture) {
            Ok(()) if self.stills.len() < MAX_STILLS => return self.stills.push_back(still),
            Ok(()) => (MqttDrop::Full, Refusal::Busy(BUSY_FOR)),
            Err(unsent) => (unsent.into(), Refusal::Unsent(unsent.to_string())),
        };
        self.drop(dropped);
        self.refuse(still.camera, || still.id, still.to, &refusal);
    }

    /// Hands over the picture whose turn it is, if there is room; none whose camera the engine has switched off.
    pub(super) fn send_stills(&mut self) {
        let off = self.switched_off.borrow().clone();
        self.refuse_stills(&RejectReason::Disabled, |camera| off.contains(camera));
        while let (Some(line), Some(still)) = (&self.line, self.stills.front())
            && line.try_publish(&still.picture) != Err(Unsent::Full)
            && let Some(Still { camera, id, to, picture: _ }) = self.stills.pop_front()
        {
            self.tell_done(&camera, &id, to, What::Still.slug());
            self.links.tell_still_taken(&camera, id);
        }
    }

    /// Ends the waiting of those pictures whose camera this is true of.
    pub(super) fn refuse_stills(&mut self, reason: &RejectReason, whose: impl Fn(&CameraId) -> bool) {
        while let Some(at) = self.stills.iter().position(|still| whose(&still.camera))
            && let Some(Still { camera, id, to, picture: _ }) = self.stills.remove(at)
        {
            self.refuse(camera, || id, to, &reason.clone().into());
        }
    }

    fn tell_done(&mut self, camera: &CameraId, id: &Correlation, to: Option<ReplyTo>, what: &'static str) {
        if let Some(to) = to {
            self.say(to, trigger::done(id, camera, what));
        }
    }

    /// Says why it is not followed: to the sender, and on `event` for those who can only listen there. What may be a flood is
    /// told seldom, and its `id` read only then.
    pub(super) fn refuse(
        &mut self,
        camera: CameraId,
        id: impl FnOnce() -> Correlation,
        to: Option<ReplyTo>,
        refusal: &Refusal,
    ) {
        self.drop(refusal.into());
        let is_told = self.triggers.may_tell(&camera, clock());
        if !is_told && (refusal.may_be_flood() || to.is_none()) {
            return;
        }
        let id = id();
        debug!(%camera, trigger = id.as_deref(), code = refusal.slug(), "a trigger is not followed");
        if let Some(to) = to {
            self.say(to, trigger::error(&id, refusal));
        }
        if is_told {
            self.publish_event(&camera, presence::refused(&camera, &id, refusal, wall_clock()));
        }
    }
}

impl From<StillError> for Refusal {
    fn from(error: StillError) -> Self {
        match error {
            StillError::Rejected(reason) => reason.into(),
            StillError::NotMade(_) | StillError::Late => Self::NoPicture(error.to_string()),
        }
    }
}

#[cfg(test)]
#[path = "machines_test.rs"]
mod tests;
