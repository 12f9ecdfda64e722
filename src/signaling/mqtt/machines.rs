//! What machines ask of cameras: triggers, stills and the privacy switch, from message to answer. The rules stand in `trigger`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{debug, info};

use super::super::still::StillError;
use super::super::{Inbound, clock, wall_clock};
use super::broker::{Incoming, Outgoing, Unsent};
use super::trigger::{self, Ask, Refusal, What};
use super::viewers::ReplyTo;
use super::{BUSY_FOR, Link, presence};
use crate::core::pace::Rate;
use crate::core::signal::{CameraId, Correlation, RejectReason};
use crate::core::trigger::Trigger;

/// Triggers and switches of all cameras together: a flood of them must not reach the engine.
const TRIGGERS: Rate = Rate::new(Duration::from_millis(10), 200);

/// What became of a trigger or a switch, once the engine has decided.
pub(super) struct Outcome {
    camera: CameraId,
    id: Correlation,
    /// `wake`, `still`, `sleep`, `switch`.
    what: &'static str,
    to: Option<ReplyTo>,
    outcome: Result<Option<Bytes>, Refusal>,
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

    pub(super) fn handle_switch(&mut self, camera: CameraId, message: &Incoming, now: Instant) {
        let to = self.answer_to(message);
        let word = trigger::parse_switch(&message.payload);
        // Privacy is never told to wait.
        let is_off = matches!(word, Ok(false)) && !message.retained && self.links.camera(&camera).is_some();
        if !is_off && let Err(refusal) = self.admit_trigger(&camera, message, now) {
            return self.refuse(camera, || trigger::id(&message.payload), to, &refusal);
        }
        let on = match word {
            Ok(on) => on,
            Err(refusal) => return self.refuse(camera, || None, to, &refusal),
        };
        let (reply, decided) = oneshot::channel();
        let asked = self.ask_engine(Inbound::Switch { camera: camera.clone(), on, id: None, reply });
        self.await_engine(camera, None, "switch", to, asked, decided);
    }

    fn admit_trigger(&mut self, camera: &CameraId, message: &Incoming, now: Instant) -> Result<(), Refusal> {
        if message.retained {
            return Err(Refusal::Retained);
        }
        let wait = self.triggers_total.wait(TRIGGERS, now);
        if !wait.is_zero() {
            return Err(Refusal::RateLimited(wait));
        }
        self.triggers_total.count(TRIGGERS, now);
        self.triggers.check(camera, now)
    }

    /// Where the sender wants its answer, if that is a place for answers.
    fn answer_to(&self, message: &Incoming) -> Option<ReplyTo> {
        let topic = message.response_topic.clone().filter(|topic| self.topics.is_response_topic(topic))?;
        Some(ReplyTo { topic, correlation: message.correlation.clone() })
    }

    fn await_engine(
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
            let outcome = links.still(&camera, id.clone()).await.map(Some).map_err(Refusal::from);
            let _stopped = outcomes.send(Outcome { camera, id, what: What::Still.slug(), to, outcome }).await;
        });
    }

    pub(super) fn handle_outcome(&mut self, Outcome { camera, id, what, to, outcome }: Outcome) {
        let outcome = outcome.and_then(|jpeg| match jpeg {
            Some(jpeg) => self.publish_still(&camera, jpeg),
            None => Ok(()),
        });
        match outcome {
            Ok(()) => {
                if let Some(to) = to {
                    self.say(to, trigger::done(&id, &camera, what));
                }
            }
            Err(refusal) => self.refuse(camera, || id, to, &refusal),
        }
    }

    fn publish_still(&mut self, camera: &CameraId, jpeg: Bytes) -> Result<(), Refusal> {
        let still = Outgoing { topic: self.topics.still(camera), payload: jpeg, is_still: true, ..Outgoing::default() };
        match self.publish(still) {
            Ok(()) => Ok(()),
            Err(Some(unsent @ Unsent::TooLarge { .. })) => Err(Refusal::Unsent(unsent.to_string())),
            Err(_) => Err(Refusal::Busy(BUSY_FOR)),
        }
    }

    /// Says why it is not followed: to the sender, and on `event` for those who can only listen there. What may be a flood is
    /// told seldom, and its `id` read only then.
    fn refuse(&mut self, camera: CameraId, id: impl FnOnce() -> Correlation, to: Option<ReplyTo>, refusal: &Refusal) {
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
