//! What one camera owes: to viewers who hold a place, to the trigger that woke it, to those who wait for a still. And its
//! privacy switch, which ends it all.
//!
//! The camera is to run exactly while one of them wants it. What follows of a change is left in `told`, in order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::access_unit::AccessUnit;
use super::camera::{Demand, LowDemand, Rendition};
use super::figures::Quality;
use super::pace::{Pace, Rate};
use super::renditions::{Decision, Network, Renditions, Wanted};
use super::sessions::{SessionId, ViewedCamera};
use super::signal::{CloseReason, Correlation, RejectReason};
use super::trigger::{Action, Event, Happening};

/// Those who may wait for a still of one camera at one time.
const MAX_STILLS: usize = 8;
/// A camera that was woken has this long for its first picture, however short the trigger's time is.
const OPENS_WITHIN: Duration = Duration::from_secs(10);
/// A still that is not there in this time will not come: opening a camera takes up to 5 s, and a camera whose keyframes come
/// as they come has them every few seconds.
const STILL_WITHIN: Duration = Duration::from_secs(10);

/// Keyframes that stills may cost those who watch, in quality; beyond that a still waits for one.
const STILL_KEYFRAMES: Rate = Rate::new(Duration::from_secs(2), 4);

/// Who waits for a still; given out by whoever asks, and given back with the still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StillId(pub u64);

/// What a change at a camera leads to.
#[derive(Clone, Debug)]
pub enum Told {
    Demand(Demand),
    /// Each still that was asked for gets exactly one of these.
    Still {
        still: StillId,
        outcome: Result<AccessUnit, RejectReason>,
    },
    Event(Event),
    /// No picture taken until now may be shown any more.
    ForgetPictures,
    /// The privacy switch, to be kept over a restart.
    Switched {
        on: bool,
    },
    /// This viewer is to be sent the other rendition, from its next keyframe on.
    Move {
        session: SessionId,
        rendition: Rendition,
    },
}

#[derive(Debug)]
pub(super) struct Camera {
    pub(super) settings: ViewedCamera,
    /// Sessions that hold a place.
    pub(super) viewers: usize,
    /// Those of them whose offer was answered.
    watching: usize,
    /// Its source is open, so everybody is told.
    is_open: bool,
    /// Why it delivers nothing, while it does not.
    lost: Option<String>,
    demand: Demand,
    /// The demand as it was told last.
    told_demand: Demand,
    renditions: Renditions,
    keyframe_gap: Duration,
    keyframes: KeyframeWish,
    low_keyframes: KeyframeWish,
    wake: Option<Wake>,
    /// In the order in which they were asked for.
    stills: VecDeque<Still>,
    still_keyframes: Option<Pace>,
    /// Pictures taken before this are from the other side of the switch.
    shows_from: Option<Instant>,
    told: VecDeque<Told>,
}

/// The keyframes asked of one encoder, with time between them.
#[derive(Debug, Default)]
struct KeyframeWish {
    /// As in [`Demand::keyframe`].
    count: u64,
    asked_at: Option<Instant>,
    /// One that was wanted too soon after the last is asked for at this time.
    due_at: Option<Instant>,
}

/// Triggers that keep the camera open, as one.
#[derive(Debug)]
struct Wake {
    /// Of the newest trigger.
    id: Correlation,
    /// For those that had their first picture.
    until: Instant,
    awaited: Option<Awaited>,
}

/// No picture has come since the newest trigger. Its time begins with the picture: who was promised a second has it, however
/// long the camera takes to open.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    ttl: Duration,
    give_up_at: Instant,
    /// It came, but the camera is not known to be open yet.
    has_picture: bool,
}

#[derive(Debug)]
struct Still {
    still: StillId,
    give_up_at: Instant,
}

impl Camera {
    pub(super) fn new(settings: ViewedCamera, is_on: bool, keyframe_gap: Duration) -> Self {
        let renditions = Renditions::new(settings.renditions);
        let bitrate = settings.renditions.high.most;
        let demand = Demand { running: false, off: !is_on, bitrate, keyframe: 0, low: None };
        Self {
            settings,
            viewers: 0,
            watching: 0,
            is_open: false,
            lost: None,
            demand,
            told_demand: demand,
            renditions,
            keyframe_gap,
            keyframes: KeyframeWish::default(),
            low_keyframes: KeyframeWish::default(),
            wake: None,
            stills: VecDeque::new(),
            still_keyframes: None,
            shows_from: None,
            told: VecDeque::new(),
        }
    }

    pub(super) fn take_told(&mut self) -> impl Iterator<Item = Told> {
        self.told.drain(..)
    }

    pub(super) fn is_on(&self) -> bool {
        !self.demand.off
    }

    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// A viewer's offer was answered; the keyframe asked for now is there when the connection is.
    pub(super) fn watch(&mut self, now: Instant) {
        self.watching += 1;
        self.want_pictures(now);
    }

    pub(super) fn unwatch(&mut self) {
        self.watching -= 1;
        self.settle();
    }

    /// It is connected. Which rendition it begins with is told as a move, unless it is the high one.
    pub(super) fn viewer_joined(&mut self, session: SessionId, quality: Quality, now: Instant) {
        self.renditions.join(session, quality, now);
        self.happened(Happening::ViewerJoined { viewers: self.viewers });
        self.decide(now);
    }

    pub(super) fn viewer_left(&mut self, session: SessionId, reason: CloseReason) {
        self.renditions.leave(session);
        self.happened(Happening::ViewerLeft { viewers: self.viewers, reason });
    }

    pub(super) fn prefer(&mut self, session: SessionId, quality: Quality, now: Instant) {
        self.renditions.prefer(session, quality);
        self.decide(now);
    }

    /// What is heard of a viewer's network.
    pub(super) fn hear(&mut self, session: SessionId, network: Network, now: Instant) {
        self.renditions.hear(session, network);
        self.decide(now);
    }

    pub(super) fn rendition(&self, session: SessionId) -> Rendition {
        self.renditions.rendition(session).unwrap_or(Rendition::High)
    }

    pub(super) fn wanted(&self, session: SessionId) -> Wanted {
        self.renditions.wanted(session)
    }

    pub(super) fn set_low_possible(&mut self, is_possible: bool, now: Instant) {
        self.renditions.set_low_possible(is_possible);
        self.decide(now);
    }

    pub(super) fn trigger(&mut self, action: Action, id: Correlation, now: Instant) -> Result<(), RejectReason> {
        match action {
            Action::Wake { ttl } => {
                self.check_on()?;
                let ttl = ttl.min(Action::LONGEST_TTL);
                let awaited = Awaited { ttl, give_up_at: now + ttl.max(OPENS_WITHIN), has_picture: false };
                self.wake = Some(match self.wake.take() {
                    Some(wake) => wake.joined_by(id, awaited),
                    None => Wake { id, until: now, awaited: Some(awaited) },
                });
                if !self.demand.running {
                    self.want_pictures(now);
                }
            }
            Action::Sleep => self.end_wake(id),
        }
        Ok(())
    }

    /// The next keyframe, as a [`Told::Still`].
    pub(super) fn ask_still(&mut self, still: StillId, now: Instant) {
        let refused = self.check_on().and_then(|()| match &self.lost {
            Some(reason) => Err(RejectReason::CameraLost(reason.clone())),
            None if self.stills.len() >= MAX_STILLS => Err(RejectReason::Busy { retry_after: Duration::from_secs(1) }),
            None => Ok(()),
        });
        if let Err(reason) = refused {
            self.told.push_back(Told::Still { still, outcome: Err(reason) });
            return;
        }
        self.stills.push_back(Still { still, give_up_at: now + STILL_WITHIN });
        let pace = self.still_keyframes.get_or_insert_with(|| Pace::new(now));
        let wait = pace.wait(STILL_KEYFRAMES, now);
        if self.watching > 0 && !wait.is_zero() {
            self.keyframes.put_off(now + wait);
        } else {
            pace.count(STILL_KEYFRAMES, now);
            self.want_pictures(now);
        }
    }

    /// The privacy switch. To what it is set already, it is not set again.
    pub(super) fn switch(&mut self, on: bool, id: Correlation, now: Instant) {
        if on == self.is_on() {
            return;
        }
        self.demand.off = !on;
        self.demand.running = false;
        self.shows_from = Some(now);
        // The camera first: whatever else there is to do can wait.
        self.tell();
        self.told.push_back(Told::ForgetPictures);
        self.told.push_back(Told::Switched { on });
        self.happened_by(id, if on { Happening::Enabled } else { Happening::Disabled });
        self.end_stills(&RejectReason::Disabled);
        self.end_wake(None);
        self.settle();
    }

    /// A picture came. False: it may not be shown.
    pub(super) fn handle_unit(&mut self, rendition: Rendition, unit: &AccessUnit, now: Instant) -> bool {
        if self.demand.off || self.shows_from.is_some_and(|from| unit.captured_at < from) {
            return false;
        }
        if rendition != Rendition::High {
            return true;
        }
        if let Some(awaited) = self.wake.as_mut().and_then(|wake| wake.awaited.as_mut()) {
            awaited.has_picture = true;
            self.note_woken(now);
        }
        if unit.is_keyframe && !self.stills.is_empty() {
            for Still { still, .. } in std::mem::take(&mut self.stills) {
                self.told.push_back(Told::Still { still, outcome: Ok(unit.clone()) });
            }
            self.settle();
        }
        true
    }

    /// It failed. True: that is news.
    pub(super) fn handle_lost(&mut self, reason: &str) -> bool {
        self.is_open = false;
        // Of a camera that is not wanted any more, this is old news.
        if !self.demand.running || self.lost.is_some() {
            return false;
        }
        self.lost = Some(reason.to_owned());
        self.happened(Happening::CameraLost { reason: reason.to_owned() });
        self.end_stills(&RejectReason::CameraLost(reason.to_owned()));
        self.settle();
        true
    }

    /// It delivers. True: that is news.
    pub(super) fn handle_back(&mut self, now: Instant) -> bool {
        self.is_open = true;
        let is_news = self.lost.take().is_some();
        if is_news {
            self.happened(Happening::CameraBack);
        }
        self.note_woken(now);
        is_news
    }

    /// Its source is closed, or only about to be opened.
    pub(super) fn handle_closed(&mut self) {
        self.is_open = false;
    }

    /// Asks for a keyframe of one rendition, or puts it off when the last was less than a gap ago.
    pub(super) fn want_keyframe(&mut self, rendition: Rendition, now: Instant) {
        self.raise_keyframe(rendition, now);
        self.tell();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for rendition in Rendition::ALL {
            if self.keyframes(rendition).due_at.is_some_and(|due| now >= due) {
                self.want_keyframe(rendition, now);
            }
        }
        self.decide(now);
        if self.wake.as_ref().is_some_and(|wake| now >= wake.ends_at()) {
            self.end_wake(None);
        }
        let late = self.stills.partition_point(|still| now >= still.give_up_at);
        for Still { still, .. } in self.stills.drain(..late) {
            let reason = format!("no keyframe within {} s", STILL_WITHIN.as_secs());
            self.told.push_back(Told::Still { still, outcome: Err(RejectReason::CameraLost(reason)) });
        }
        self.settle();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let wake = self.wake.as_ref().map(Wake::ends_at);
        let still = self.stills.front().map(|still| still.give_up_at);
        let renditions = self.renditions.poll_timeout();
        [self.keyframes.due_at, self.low_keyframes.due_at, wake, still, renditions].into_iter().flatten().min()
    }

    /// Nothing but viewers holds the camera from here on.
    pub(super) fn shut_down(&mut self) {
        self.end_stills(&RejectReason::ShuttingDown);
        self.end_wake(None);
    }

    fn check_on(&self) -> Result<(), RejectReason> {
        if self.is_on() { Ok(()) } else { Err(RejectReason::Disabled) }
    }

    /// Somebody came who wants pictures, from a keyframe on.
    fn want_pictures(&mut self, now: Instant) {
        self.demand.running = true;
        self.raise_keyframe(Rendition::High, now);
        self.tell();
    }

    /// Lets the camera go when nobody is left who wants it.
    fn settle(&mut self) {
        if self.watching > 0 || self.wake.is_some() || !self.stills.is_empty() {
            return;
        }
        self.keyframes.due_at = None;
        self.low_keyframes.due_at = None;
        self.lost = None;
        self.demand.running = false;
        self.tell();
    }

    /// The camera need not be kept ready any longer; `ended_by` names who says so, if somebody does.
    fn end_wake(&mut self, ended_by: Correlation) {
        if let Some(wake) = self.wake.take() {
            self.happened_by(ended_by.or(wake.id), Happening::Asleep);
            self.settle();
        }
    }

    fn note_woken(&mut self, now: Instant) {
        if let Some(wake) = &mut self.wake
            && let Some(awaited) = wake.awaited.take_if(|awaited| awaited.has_picture && self.is_open)
        {
            wake.until = wake.until.max(now + awaited.ttl);
            self.happened(Happening::Woken);
        }
    }

    fn end_stills(&mut self, reason: &RejectReason) {
        for Still { still, .. } in std::mem::take(&mut self.stills) {
            self.told.push_back(Told::Still { still, outcome: Err(reason.clone()) });
        }
        self.settle();
    }

    fn raise_keyframe(&mut self, rendition: Rendition, now: Instant) {
        let gap = self.keyframe_gap;
        self.keyframes(rendition).raise(gap, now);
    }

    fn keyframes(&mut self, rendition: Rendition) -> &mut KeyframeWish {
        match rendition {
            Rendition::High => &mut self.keyframes,
            Rendition::Low => &mut self.low_keyframes,
        }
    }

    /// Says what is demanded now, if that is news.
    fn tell(&mut self) {
        self.demand.keyframe = self.keyframes.count;
        if let Some(low) = &mut self.demand.low {
            low.keyframe = self.low_keyframes.count;
        }
        if self.demand != self.told_demand {
            self.told_demand = self.demand;
            self.told.push_back(Told::Demand(self.demand));
        }
    }

    /// Gives each viewer its rendition, and each rendition its bits.
    fn decide(&mut self, now: Instant) {
        if self.renditions.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let Decision { high, low, moves } = self.renditions.decide(now);
        let had_low = self.demand.low.is_some();
        self.demand.bitrate = high;
        self.demand.low = low.map(|bitrate| LowDemand { bitrate, keyframe: 0 });
        for (session, rendition) in moves {
            // An encoder that is only about to be opened begins with one.
            if rendition == Rendition::High || had_low {
                self.raise_keyframe(rendition, now);
            }
            self.told.push_back(Told::Move { session, rendition });
        }
        self.tell();
    }

    fn happened(&mut self, happening: Happening) {
        let id = self.wake.as_ref().and_then(|wake| wake.id.clone());
        self.happened_by(id, happening);
    }

    fn happened_by(&mut self, trigger: Correlation, happening: Happening) {
        self.told.push_back(Told::Event(Event { camera: self.settings.id.clone(), trigger, happening }));
    }
}

impl KeyframeWish {
    fn raise(&mut self, gap: Duration, now: Instant) {
        let allowed_at = self.asked_at.map_or(now, |asked| asked + gap);
        if now < allowed_at {
            self.due_at = Some(allowed_at);
            return;
        }
        *self = Self { count: self.count + 1, asked_at: Some(now), due_at: None };
    }

    fn put_off(&mut self, until: Instant) {
        self.due_at = Some(self.due_at.map_or(until, |due| due.min(until)));
    }
}

impl Wake {
    fn joined_by(self, id: Correlation, newest: Awaited) -> Self {
        let awaited = self.awaited.map_or(newest, |awaited| Awaited {
            ttl: awaited.ttl.max(newest.ttl),
            give_up_at: awaited.give_up_at.max(newest.give_up_at),
            has_picture: false,
        });
        Self { id, awaited: Some(awaited), ..self }
    }

    fn ends_at(&self) -> Instant {
        self.awaited.map_or(self.until, |awaited| awaited.give_up_at.max(self.until))
    }
}

#[cfg(test)]
#[path = "demand_test.rs"]
mod tests;
