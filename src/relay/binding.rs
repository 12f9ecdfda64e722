//! Where a STUN server sees the media socket (RFC 8489, section 2; RFC 8445, section 5.1.1.2).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtc_stun::attributes::ATTR_XORMAPPED_ADDRESS;
use tracing::{debug, info, warn};

use super::gathering::{How, Output, Outputs, Reached, Ticket};
use super::message::{Ask, Id, Response};
use super::transactions::Transactions;
use crate::core::backoff::Backoff;
use crate::core::server_url::ServerUrl;

/// Keeps the NAT's mapping open, viewers or not: what stands in the next answer has to work then.
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// What the NAT made of which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) address: SocketAddr,
    pub(super) base: SocketAddr,
}

/// A STUN server, or a TURN server in this capacity, found and asked over and over.
pub(super) struct StunServer {
    url: ServerUrl,
    state: State,
    backoff: Backoff,
    /// Said once, until it works again.
    has_complained: bool,
}

enum State {
    Resting { until: Instant },
    Reaching { ticket: Ticket },
    Asking { address: SocketAddr, transactions: Transactions, ask_at: Instant, mapped: Option<Mapped> },
}

impl StunServer {
    pub(super) fn new(url: ServerUrl, now: Instant) -> Self {
        let state = State::Resting { until: now };
        Self { url, state, backoff: Backoff::default(), has_complained: false }
    }

    pub(super) fn mapped(&self) -> Option<Mapped> {
        match &self.state {
            State::Asking { mapped, .. } => *mapped,
            _ => None,
        }
    }

    pub(super) fn is_at(&self, from: SocketAddr) -> bool {
        matches!(&self.state, State::Asking { address, .. } if *address == from)
    }

    pub(super) fn awaits(&self, id: &Id) -> bool {
        matches!(&self.state, State::Asking { transactions, .. } if transactions.is_open(id))
    }

    pub(super) fn is_waiting_for(&self, of: Ticket) -> bool {
        matches!(&self.state, State::Reaching { ticket } if *ticket == of)
    }

    pub(super) fn handle_reached(&mut self, reached: Reached, now: Instant) {
        let address = match reached {
            Reached::Addresses(addresses) => addresses.first().copied().ok_or_else(|| "it has no address".to_owned()),
            Reached::Connected => return,
            Reached::Failed(why) => Err(why),
        };
        match address {
            Ok(address) => {
                let transactions = Transactions::new(false);
                self.state = State::Asking { address, transactions, ask_at: now, mapped: None };
            }
            Err(why) => self.rest(&why, now),
        }
    }

    /// The server's answer, which came `to` one of our addresses.
    pub(super) fn handle(&mut self, response: &Response<'_>, to: SocketAddr, now: Instant) {
        let State::Asking { transactions, mapped, .. } = &mut self.state else { return };
        if transactions.take(&response.id).is_none() {
            return;
        }
        let seen = response.outcome().ok().and_then(|()| response.address(ATTR_XORMAPPED_ADDRESS));
        let Some(address) = seen else { return self.rest("its answer names no address", now) };
        let new = Mapped { address, base: to };
        if *mapped != Some(new) {
            debug!(server = %self.url, ?new, "where it sees us");
        }
        if mapped.replace(new).is_none() {
            info!(server = %self.url, "the server shows where it sees us");
            self.backoff.reset();
            self.has_complained = false;
        }
    }

    pub(super) fn handle_timeout(&mut self, out: &mut Outputs, now: Instant) {
        match &mut self.state {
            State::Resting { until } if *until <= now => {
                self.state = State::Reaching { ticket: out.reach(&self.url, How::Resolve) };
            }
            State::Resting { .. } | State::Reaching { .. } => {}
            State::Asking { address, transactions, ask_at, .. } => {
                let (mut requests, given_up) = transactions.handle_timeout(now);
                if !given_up.is_empty() {
                    return self
                        .rest("it does not answer; see that it runs, and that firewalls let UDP to its port", now);
                }
                if *ask_at <= now {
                    *ask_at = now + KEEP_ALIVE;
                    requests.extend(transactions.begin(Ask::Binding, None, now));
                }
                for data in requests {
                    out.push(Output::Datagram { to: *address, data });
                }
            }
        }
    }

    /// This machine's addresses are not what they were.
    pub(super) fn hurry(&mut self, now: Instant) {
        match &mut self.state {
            State::Resting { until: at } | State::Asking { ask_at: at, .. } => *at = now,
            State::Reaching { .. } => {}
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Resting { until } => Some(*until),
            State::Reaching { .. } => None,
            State::Asking { transactions, ask_at, .. } => {
                Some(transactions.poll_timeout().map_or(*ask_at, |at| at.min(*ask_at)))
            }
        }
    }

    /// Until it is tried again, its address looked up anew.
    fn rest(&mut self, why: &str, now: Instant) {
        // Of a TURN server there is more to say than that.
        if !std::mem::replace(&mut self.has_complained, true) && !self.url.is_turn {
            warn!(server = %self.url, why, "the STUN server is of no use now");
        }
        self.state = State::Resting { until: now + self.backoff.next(rand::random()) };
    }
}
