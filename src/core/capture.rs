//! One camera's life: when its source is opened, closed and tried again.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::camera::CameraState;

/// What decides over one camera's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long the camera stays open when nobody watches any more.
    pub linger: Duration,
    /// Running, yet no picture for so long: the camera is closed and opened again.
    pub stall_after: Duration,
    /// Pictures for so long: the camera is well, and its next failure is retried soon.
    pub well_after: Duration,
}

/// What the owner of a [`Capture`] has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open the source; report with [`Capture::handle_opened`] or [`Capture::handle_failure`].
    Open,
    /// Close the source; report with [`Capture::handle_closed`] when the device is free.
    Close,
}

/// One camera: when it is opened, closed and tried again. Told the time, does nothing itself.
///
/// ```text
///          wanted              opened              unwanted for `linger`
///   Idle ─────────▶ Opening ───────────▶ Running ────────────────────────▶ Closing ─▶ Idle
///    ▲               ▲   │ failed           │ failed, stalled                 (wanted again: Opening)
///    │ unwanted      │   ▼                  ▼
///    └────────── BackingOff ◀── closed ── Closing
/// ```
#[derive(Debug)]
pub struct Capture {
    patience: Patience,
    phase: Phase,
    /// Since when nobody wants pictures; `None` while somebody does.
    unwanted_since: Option<Instant>,
    lingers: bool,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Opening,
    Running {
        since: Instant,
        last_unit: Instant,
        /// When it was seen to give no pictures.
        silent_at: Option<Instant>,
    },
    /// The device is being let go; with the reason when that was not our wish.
    Closing(Option<Failure>),
    BackingOff(Failure),
}

#[derive(Clone, Debug)]
struct Failure {
    error: String,
    retry_at: Instant,
}

impl Capture {
    /// A camera that seems silent is looked at once more after so long: where the whole machine stood still, what it gave
    /// meanwhile was only not counted yet.
    const SECOND_LOOK: Duration = Duration::from_millis(250);

    /// A closed camera that nobody watches.
    pub fn new(patience: Patience, now: Instant) -> Self {
        Self { patience, phase: Phase::Idle, unwanted_since: Some(now), lingers: true, backoff: Backoff::default() }
    }

    /// Whether anybody watches.
    pub fn set_wanted(&mut self, wanted: bool, now: Instant) -> Option<Step> {
        match (wanted, self.unwanted_since) {
            (true, _) => self.unwanted_since = None,
            (false, None) => self.unwanted_since = Some(now),
            (false, Some(_)) => {}
        }
        match self.phase {
            Phase::Idle if wanted => self.open(),
            // Lingering is for open devices: nobody needs a broken one kept warm.
            Phase::BackingOff(_) if !wanted => self.go_idle(),
            _ => self.close_if_lingered(now),
        }
    }

    /// Whether an open camera nobody wants may stay open for the linger; counts from the next call of anything else.
    pub fn set_lingering(&mut self, lingers: bool) {
        self.lingers = lingers;
    }

    /// Nobody will ask for this camera again.
    pub fn shut_down(&mut self, now: Instant) -> Option<Step> {
        self.set_lingering(false);
        self.set_wanted(false, now)
    }

    /// The source is open and has given its first picture.
    pub fn handle_opened(&mut self, now: Instant) -> Option<Step> {
        if !matches!(self.phase, Phase::Opening) {
            return None;
        }
        self.phase = Phase::Running { since: now, last_unit: now, silent_at: None };
        self.close_if_lingered(now)
    }

    /// Pictures have come, one or many, the newest at this time.
    pub fn handle_unit(&mut self, at: Instant) {
        if let Phase::Running { since, last_unit, silent_at } = &mut self.phase {
            if at > *last_unit {
                (*last_unit, *silent_at) = (at, None);
            }
            if at.saturating_duration_since(*since) >= self.patience.well_after {
                self.backoff.reset();
            }
        }
    }

    /// The source could not be opened, or failed while open. `random` in 0.0..=1.0 spreads the retry.
    pub fn handle_failure(&mut self, error: String, random: f64, now: Instant) -> Option<Step> {
        match self.phase {
            Phase::Opening if self.unwanted_since.is_some() => self.go_idle(),
            Phase::Opening => {
                self.phase = Phase::BackingOff(self.failure(error, random, now));
                None
            }
            Phase::Running { .. } => {
                self.phase = Phase::Closing(Some(self.failure(error, random, now)));
                Some(Step::Close)
            }
            Phase::Idle | Phase::Closing(_) | Phase::BackingOff(_) => None,
        }
    }

    /// The opening was cut short because nobody wanted it any more. Whoever has come since then did nothing wrong.
    pub fn handle_cancelled(&mut self) -> Option<Step> {
        match self.phase {
            Phase::Opening if self.unwanted_since.is_some() => self.go_idle(),
            Phase::Opening => self.open(),
            Phase::Idle | Phase::Running { .. } | Phase::Closing(_) | Phase::BackingOff(_) => None,
        }
    }

    /// The source is closed and the device free.
    pub fn handle_closed(&mut self, now: Instant) -> Option<Step> {
        let Phase::Closing(failure) = &mut self.phase else { return None };
        match failure.take() {
            _ if self.unwanted_since.is_some() => self.go_idle(),
            None => self.open(),
            Some(failure) => {
                self.phase = Phase::BackingOff(failure);
                self.handle_timeout(0.0, now)
            }
        }
    }

    /// A device has come that was missing: no need to wait longer.
    pub fn handle_plugged(&mut self) -> Option<Step> {
        let Phase::BackingOff(_) = self.phase else { return None };
        // It may need another moment, until its permissions are set.
        self.backoff.reset();
        self.open()
    }

    /// To be called at [`Self::poll_timeout`]; calling it early or late does no harm.
    pub fn handle_timeout(&mut self, random: f64, now: Instant) -> Option<Step> {
        let stall_after = self.patience.stall_after;
        match &mut self.phase {
            Phase::Running { last_unit, silent_at: Some(since), .. }
                if now >= *since + Self::SECOND_LOOK && now >= *last_unit + stall_after =>
            {
                let error = format!("no picture for {} s", stall_after.as_secs_f32());
                self.handle_failure(error, random, now)
            }
            Phase::Running { last_unit, silent_at, .. } => {
                if now + Self::SECOND_LOOK >= *last_unit + stall_after {
                    silent_at.get_or_insert(now);
                }
                self.close_if_lingered(now)
            }
            Phase::BackingOff(failure) if now >= failure.retry_at => self.open(),
            _ => None,
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None` while only an event can change anything.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running { last_unit, silent_at, .. } => {
                let stalled_at = *last_unit + self.patience.stall_after;
                let stalled_at =
                    silent_at.map_or(stalled_at - Self::SECOND_LOOK, |at| stalled_at.max(at + Self::SECOND_LOOK));
                Some(self.lingered_at().map_or(stalled_at, |at| at.min(stalled_at)))
            }
            Phase::BackingOff(failure) => Some(failure.retry_at),
            Phase::Idle | Phase::Opening | Phase::Closing(_) => None,
        }
    }

    /// Whether the device is certainly not ours: neither open nor on its way there or back.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::BackingOff(_))
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// What is told to the world.
    pub fn state(&self, now: Instant) -> CameraState {
        match &self.phase {
            Phase::Idle => CameraState::Idle,
            Phase::Closing(None) if self.unwanted_since.is_some() => CameraState::Running,
            Phase::Opening | Phase::Closing(None) => CameraState::Opening,
            Phase::Running { .. } => CameraState::Running,
            Phase::Closing(Some(failure)) | Phase::BackingOff(failure) => CameraState::BackingOff {
                error: failure.error.clone(),
                retry_in: failure.retry_at.saturating_duration_since(now),
            },
        }
    }

    fn open(&mut self) -> Option<Step> {
        self.phase = Phase::Opening;
        Some(Step::Open)
    }

    fn go_idle(&mut self) -> Option<Step> {
        self.phase = Phase::Idle;
        self.backoff.reset();
        None
    }

    fn close_if_lingered(&mut self, now: Instant) -> Option<Step> {
        let Phase::Running { .. } = self.phase else { return None };
        let lingered = self.lingered_at().is_some_and(|at| now >= at);
        lingered.then(|| {
            self.phase = Phase::Closing(None);
            Step::Close
        })
    }

    /// When a camera that is open is to be closed; `None` while it is wanted.
    fn lingered_at(&self) -> Option<Instant> {
        let linger = if self.lingers { self.patience.linger } else { Duration::ZERO };
        self.unwanted_since.map(|since| since + linger)
    }

    fn failure(&mut self, error: String, random: f64, now: Instant) -> Failure {
        Failure { error, retry_at: now + self.backoff.next(random) }
    }
}

#[cfg(test)]
#[path = "capture_test.rs"]
mod tests;
