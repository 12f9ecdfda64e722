//! Which rendition each viewer of a camera gets, and at how many bits a second each is encoded.
//!
//! ```text
//!   estimates ─▶ usable rate of each viewer ─▶ who is healthy? ─▶ high: as much as the slowest healthy viewer carries
//!                                                     │
//!                                                     └ no ─────▶ low: as much as the slowest of these carries
//! ```
//! Down is quick, up is slow: a viewer is moved down when its network is too slow for a moment, up when it was good for a
//! while, and each time that this turns out wrong the next try waits longer. There are two encoders at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::access_unit::Bitrate;
use super::camera::Rendition;
use super::figures::Quality;
use super::sessions::SessionId;

/// Of an estimate, this part goes into pictures; the rest is for headers, repeats and an encoder that does not hit its mark.
const USABLE: f64 = 0.9;
/// A viewer that carries less than this part of what another could have would cost that one too much.
const DRAG: f64 = 0.5;
/// So long too slow, and a viewer is moved down. Until then it costs the others nothing either.
const DOWN_AFTER: Duration = Duration::from_millis(700);
/// When there is nobody to be spared, this long: just after its network became slower a viewer is thought slower than it is.
const DOWN_AFTER_ALONE: Duration = Duration::from_secs(3);
/// So long good by this much more than it needs, and a viewer is moved up.
const UP_AFTER: Duration = Duration::from_secs(4);
const UP_MARGIN: f64 = 1.25;
/// After a move down the next one up waits at least so long; twice that when the last one up was a mistake.
const FIRST_STAY: Duration = Duration::from_secs(8);
const LONGEST_STAY: Duration = Duration::from_secs(120);
/// A viewer that stayed up for so long was rightly moved up.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
/// Encoders take new rates in steps of this (V4L2 encoders do), and need time between them to settle.
const STEP_KBPS: u32 = 25;
const RAISE_AFTER: Duration = Duration::from_millis(500);
/// Less than this is not worth a change upwards.
const LEAST_RAISE: f64 = 0.05;
/// Reports come often; the sum of them is looked at so often.
const DECIDE_EVERY: Duration = Duration::from_millis(100);
/// A viewer that cannot be probed is moved up on trial, and has so long to show that its network carries it, unless it shows
/// the opposite: its estimate may rise by 8 % a second, and has a way to go.
const TRIAL: Duration = Duration::from_secs(30);
/// It has to carry what it gets meanwhile by this much more, unless that is all that a low rendition ever is.
const TRIED_FROM: f64 = 1.1;
/// A network is probed for a little more than is needed to be moved up.
const SLACK: f64 = 1.05;
/// The low encoder is kept for so long after its last viewer left it.
const LOW_LINGER: Duration = Duration::from_secs(5);

/// Least and most bits a second of one rendition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub least: Bitrate,
    pub most: Bitrate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenditionsSettings {
    pub high: Range,
    /// `None`: the owner wants no second rendition.
    pub low: Option<Range>,
}

/// What is heard of a viewer's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Carries {
        estimate: Bitrate,
        /// It carries all it is sent and cannot be probed: only more pictures would show whether it carries more.
        is_untried: bool,
    },
    /// Packets are on their way and nothing is said about them: the viewer may be gone, or the network for a moment.
    Silent,
}

/// What a viewer is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What its network would have to carry for the viewer to want no more.
    pub most: Bitrate,
    /// The bitrate of the rendition that it has on trial, whatever is thought of its network.
    pub on_trial: Option<Bitrate>,
}

/// What is to be encoded, and who is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub high: Bitrate,
    /// `None`: nobody needs it.
    pub low: Option<Bitrate>,
    pub moves: Vec<(SessionId, Rendition)>,
}

#[derive(Debug)]
pub struct Renditions {
    settings: RenditionsSettings,
    viewers: BTreeMap<SessionId, Seat>,
    /// The camera cannot have a low rendition now.
    is_low_impossible: bool,
    high: Level,
    low: Level,
    low_needed_at: Option<Instant>,
    /// Something changed since the last decision, or time alone may change something.
    is_open: bool,
    due_at: Option<Instant>,
}

/// The bitrate of one rendition, and when it was changed last.
#[derive(Debug)]
struct Level {
    bitrate: Bitrate,
    changed_at: Option<Instant>,
    /// More is due as soon as the last change has rested.
    is_held: bool,
}

/// One viewer's place.
#[derive(Debug)]
struct Seat {
    quality: Quality,
    rendition: Rendition,
    /// `None`: nothing is known of its network, and it is not asked about it.
    network: Option<Network>,
    /// Since when its network is too slow for the high rendition, or good enough for it.
    too_slow_since: Option<Instant>,
    good_since: Option<Instant>,
    moved_at: Option<Instant>,
    stay: Duration,
    /// Until then it may show that its network carries the high rendition.
    trial_ends_at: Option<Instant>,
}

impl Renditions {
    pub fn new(settings: RenditionsSettings) -> Self {
        let level = |bitrate| Level { bitrate, changed_at: None, is_held: false };
        Self {
            settings,
            viewers: BTreeMap::new(),
            is_low_impossible: false,
            high: level(settings.high.most),
            low: level(settings.low.map_or(settings.high.least, |low| low.most)),
            low_needed_at: None,
            is_open: false,
            due_at: None,
        }
    }

    /// A viewer is connected. It begins with the high rendition; what it asks for is decided next.
    pub fn join(&mut self, viewer: SessionId, quality: Quality, now: Instant) {
        self.viewers.insert(viewer, Seat::new(quality));
        self.is_open = true;
        self.due_at.get_or_insert(now);
    }

    pub fn leave(&mut self, viewer: SessionId) {
        self.viewers.remove(&viewer);
        self.is_open = true;
    }

    /// The viewer chose.
    pub fn prefer(&mut self, viewer: SessionId, quality: Quality) {
        if let Some(seat) = self.viewers.get_mut(&viewer) {
            // A choice counts at once, whatever was tried before.
            *seat = Seat { rendition: seat.rendition, network: seat.network, ..Seat::new(quality) };
            self.is_open = true;
        }
    }

    /// What is heard of a viewer's network now. One that is silent keeps its place and counts for nothing until it is heard again:
    /// most who fall silent have gone.
    pub fn hear(&mut self, viewer: SessionId, network: Network) {
        if let Some(seat) = self.viewers.get_mut(&viewer) {
            self.is_open |= seat.network.replace(network) != Some(network);
        }
    }

    /// Whether the camera can have a low rendition. While it cannot, everybody gets the high one, or what of it fits.
    pub fn set_low_possible(&mut self, is_possible: bool) {
        self.is_open |= self.is_low_impossible == is_possible;
        self.is_low_impossible = !is_possible;
    }

    pub fn rendition(&self, viewer: SessionId) -> Option<Rendition> {
        Some(self.viewers.get(&viewer)?.rendition)
    }

    pub fn wanted(&self, viewer: SessionId) -> Wanted {
        let seat = self.viewers.get(&viewer);
        let most = match self.low() {
            Some(low) if seat.is_some_and(|seat| seat.quality == Quality::Low) => low.most,
            Some(low) => self.settings.high.most.max(low.most),
            None => self.settings.high.most,
        };
        let on_trial = seat.and_then(|seat| seat.trial_ends_at).map(|_| self.high.bitrate);
        Wanted { most: scaled(most, UP_MARGIN * SLACK / USABLE), on_trial }
    }

    /// When the next decision is due; `None`: nothing will change by itself.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due_at.filter(|_| self.is_open)
    }

    /// Brings everything up to date.
    pub fn decide(&mut self, now: Instant) -> Decision {
        self.due_at = Some(now + DECIDE_EVERY);
        let needs = self.needs();
        let mut moves = Vec::new();
        for (&viewer, seat) in &mut self.viewers {
            if let Some(rendition) = seat.place(needs, now) {
                seat.rendition = rendition;
                moves.push((viewer, rendition));
            }
        }
        let high = || self.viewers.values().filter(|seat| seat.rendition == Rendition::High);
        // When nobody keeps up, there is nobody to be spared: then the slowest counts.
        let slowest = least_usable(high().filter(|seat| seat.counts(needs))).or_else(|| least_usable(high()));
        // What those get who were heard is kept for them, if they are all silent now.
        let otherwise = if high().any(Seat::is_silent) { self.high.bitrate } else { self.settings.high.most };
        self.high.follow(slowest.unwrap_or(otherwise), self.settings.high, now);
        let low = self.decide_low(now);
        let lingers = low.is_some() && !self.viewers.values().any(|seat| seat.rendition == Rendition::Low);
        let is_held = self.high.is_held || low.is_some() && self.low.is_held;
        self.is_open = lingers || is_held || self.viewers.values().any(Seat::is_about_to_move);
        Decision { high: self.high.bitrate, low, moves }
    }

    fn decide_low(&mut self, now: Instant) -> Option<Bitrate> {
        let limits = self.low()?;
        let seats = || self.viewers.values().filter(|seat| seat.rendition == Rendition::Low);
        if seats().next().is_some() {
            let is_new = self.low_needed_at.replace(now).is_none();
            let keeps_up = |seat: &&Seat| seat.usable().is_some_and(|usable| usable >= limits.least);
            let rate = least_usable(seats().filter(keeps_up)).unwrap_or_else(|| {
                if seats().any(|seat| seat.usable().is_some()) {
                    limits.least
                } else if seats().any(Seat::is_silent) {
                    self.low.bitrate
                } else {
                    limits.most
                }
            });
            if is_new {
                self.low = Level { bitrate: stepped(rate, limits), changed_at: Some(now), is_held: false };
            } else {
                self.low.follow(rate, limits, now);
            }
        } else {
            self.low.is_held = false;
            self.low_needed_at.take_if(|at| now.saturating_duration_since(*at) >= LOW_LINGER);
        }
        self.low_needed_at.map(|_| self.low.bitrate)
    }

    /// The range of the low rendition, if there can be one.
    fn low(&self) -> Option<Range> {
        self.settings.low.filter(|_| !self.is_low_impossible)
    }

    /// What a viewer has to carry to be healthy.
    fn needs(&self) -> Needs {
        let floor = match self.low() {
            // At a rate that the low rendition could use as well, its picture is the better one.
            Some(low) => self.settings.high.least.max(low.most),
            None => self.settings.high.least,
        };
        let best = self.viewers.values().filter(|seat| seat.quality != Quality::Low).filter_map(Seat::usable).max();
        let best = best.unwrap_or(self.settings.high.most).min(self.settings.high.most);
        let most_of_low = self.settings.low.map_or(floor, |low| low.most);
        let needs = Needs {
            has_low: self.low().is_some(),
            floor,
            share: scaled(best, DRAG),
            encoded: self.high.bitrate,
            tried_from: scaled(self.low.bitrate, TRIED_FROM).min(most_of_low),
            patience: DOWN_AFTER_ALONE,
        };
        let is_spared = |seat: &Seat| seat.rendition == Rendition::High && !seat.is_silent() && seat.counts(needs);
        let spares = self.viewers.values().any(is_spared);
        if spares { Needs { patience: DOWN_AFTER, ..needs } } else { needs }
    }
}

/// What the high rendition asks of a viewer now.
#[derive(Clone, Copy)]
struct Needs {
    has_low: bool,
    /// Whatever the others have.
    floor: Bitrate,
    /// Beside the best of the others.
    share: Bitrate,
    /// The high rendition's bitrate now.
    encoded: Bitrate,
    /// Of a viewer that cannot be probed.
    tried_from: Bitrate,
    /// How long a viewer may fall short of it.
    patience: Duration,
}

impl Needs {
    fn least(self) -> Bitrate {
        self.floor.max(self.share)
    }
}

impl Seat {
    fn new(quality: Quality) -> Self {
        Self {
            quality,
            rendition: Rendition::High,
            network: None,
            too_slow_since: None,
            good_since: None,
            moved_at: None,
            stay: FIRST_STAY,
            trial_ends_at: None,
        }
    }

    fn usable(&self) -> Option<Bitrate> {
        match self.network {
            Some(Network::Carries { estimate, .. }) => Some(scaled(estimate, USABLE)),
            Some(Network::Silent) | None => None,
        }
    }

    fn is_silent(&self) -> bool {
        self.network == Some(Network::Silent)
    }

    /// Whether to follow this viewer would cost the others too much.
    fn is_dragging(&self, needs: Needs) -> bool {
        self.usable().is_some_and(|usable| usable < needs.least())
    }

    /// Whether the high rendition follows it. While it is on trial, what is thought of its network says nothing yet.
    fn counts(&self, needs: Needs) -> bool {
        !self.is_dragging(needs) && self.trial_ends_at.is_none()
    }

    /// Time alone may move it.
    fn is_about_to_move(&self) -> bool {
        match self.rendition {
            Rendition::High => self.too_slow_since.is_some() || self.trial_ends_at.is_some(),
            Rendition::Low => self.good_since.is_some(),
        }
    }

    /// Where this viewer is to go, if it is to go anywhere.
    fn place(&mut self, needs: Needs, now: Instant) -> Option<Rendition> {
        let wished = match self.quality {
            _ if !needs.has_low => Some(Rendition::High),
            Quality::High => Some(Rendition::High),
            Quality::Low => Some(Rendition::Low),
            Quality::Auto => None,
        };
        if let Some(wished) = wished {
            // It did not come there by what was thought of its network: where it goes next shows no mistake.
            *self = Self { too_slow_since: None, good_since: None, moved_at: None, trial_ends_at: None, ..*self };
            return (wished != self.rendition).then_some(wished);
        }
        if self.is_silent() {
            (self.too_slow_since, self.good_since) = (None, None);
            return None;
        }
        let usable = self.usable();
        let is_good = usable.is_none_or(|usable| usable >= scaled(needs.least(), UP_MARGIN));
        let is_untried = matches!(self.network, Some(Network::Carries { is_untried: true, .. }));
        let may_be_tried = is_untried && usable >= Some(needs.tried_from);
        let is_proven = usable >= Some(needs.encoded);
        self.trial_ends_at.take_if(|at| now >= *at || !is_untried || is_proven);
        let is_too_slow = self.is_dragging(needs) && self.trial_ends_at.is_none();
        note(&mut self.too_slow_since, is_too_slow, now);
        note(&mut self.good_since, is_good || may_be_tried, now);
        match self.rendition {
            Rendition::High => {
                let held = self.moved_at.map(|at| now.saturating_duration_since(at));
                if held.is_some_and(|held| held >= PROVEN_AFTER) {
                    self.stay = FIRST_STAY;
                }
                if !lasts(self.too_slow_since, needs.patience, now) {
                    return None;
                }
                if held.is_some_and(|held| held < PROVEN_AFTER) {
                    self.stay = (self.stay * 2).min(LONGEST_STAY);
                }
                self.moved_at = Some(now);
                Some(Rendition::Low)
            }
            Rendition::Low => {
                let may_move = self.moved_at.is_none_or(|at| now.saturating_duration_since(at) >= self.stay);
                if !may_move || !lasts(self.good_since, UP_AFTER, now) {
                    return None;
                }
                self.moved_at = Some(now);
                self.trial_ends_at = (!is_good).then_some(now + TRIAL);
                Some(Rendition::High)
            }
        }
    }
}

impl Level {
    /// Down at once, up in its time.
    fn follow(&mut self, rate: Bitrate, limits: Range, now: Instant) {
        let wanted = stepped(rate, limits);
        let is_rested = self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= RAISE_AFTER);
        let is_worth_it = wanted >= scaled(self.bitrate, 1.0 + LEAST_RAISE) || wanted == limits.most;
        let is_raise = wanted > self.bitrate && is_worth_it;
        if wanted < self.bitrate || (is_raise && is_rested) {
            *self = Self { bitrate: wanted, changed_at: Some(now), is_held: false };
        } else {
            self.is_held = is_raise;
        }
    }
}

fn least_usable<'a>(seats: impl Iterator<Item = &'a Seat>) -> Option<Bitrate> {
    seats.filter_map(Seat::usable).min()
}

fn scaled(bitrate: Bitrate, by: f64) -> Bitrate {
    Bitrate::from_kbps((f64::from(bitrate.kbps()) * by) as u32)
}

/// In whole steps, rounded down, within the limits.
fn stepped(rate: Bitrate, limits: Range) -> Bitrate {
    Bitrate::from_kbps(rate.kbps() / STEP_KBPS * STEP_KBPS).clamp(limits.least, limits.most)
}

fn note(since: &mut Option<Instant>, is_so: bool, now: Instant) {
    *since = if is_so { since.or(Some(now)) } else { None };
}

fn lasts(since: Option<Instant>, time: Duration, now: Instant) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= time)
}

#[cfg(test)]
#[path = "renditions_test.rs"]
mod tests;
