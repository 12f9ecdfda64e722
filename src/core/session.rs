//! One viewer's life with one camera.
//!
//! ```text
//!   Connecting ──connected──▶ Live
//!       │ timeout, lost, bye    │ lost, bye
//!       ▼                       ▼
//!     Closed(CloseReason)  ◀── shutdown, replaced, link too slow: from every state
//! ```
//! An offer is answered or refused at once, so a session begins with its answer given.

use std::time::Instant;

use super::signal::CloseReason;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Answered; ICE and DTLS are not up yet.
    Connecting {
        give_up_at: Instant,
    },
    /// Pictures flow.
    Live,
    Closed(CloseReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Connected,
    Close(CloseReason),
    Timeout,
}

impl State {
    #[must_use]
    pub fn on(self, event: Event, now: Instant) -> Self {
        match (self, event) {
            (Self::Closed(reason), _) => Self::Closed(reason),
            (_, Event::Close(reason)) => Self::Closed(reason),
            (Self::Connecting { .. } | Self::Live, Event::Connected) => Self::Live,
            (Self::Connecting { give_up_at }, Event::Timeout) if now >= give_up_at => {
                Self::Closed(CloseReason::ConnectTimeout)
            }
            (state @ (Self::Connecting { .. } | Self::Live), Event::Timeout) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_viewer_who_never_connects_is_given_up() {
        let start = Instant::now();
        let connecting = State::Connecting { give_up_at: start + Duration::from_secs(10) };
        assert_eq!(connecting.on(Event::Timeout, start + Duration::from_secs(9)), connecting);
        let closed = State::Closed(CloseReason::ConnectTimeout);
        assert_eq!(connecting.on(Event::Timeout, start + Duration::from_secs(10)), closed);
    }

    #[test]
    fn the_first_reason_to_close_stays() {
        let now = Instant::now();
        let closed = State::Live.on(Event::Close(CloseReason::ViewerLeft), now);
        assert_eq!(closed.on(Event::Close(CloseReason::Lost), now), State::Closed(CloseReason::ViewerLeft));
        assert_eq!(closed.on(Event::Connected, now), closed);
    }
}
