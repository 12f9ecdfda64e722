//! Servers are asked for an allocation: the first in the owner's order at once, each other one beside those before it when they take
//! long, or fail (after RFC 8305, section 5). The first allocation that is given ends it; whatever else was asked for is given back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, warn};

use super::allocation::{Allocation, Failure};
use super::gathering::{How, Output, Outputs, Reached, Ticket};
use super::message::Heard;
use super::relaying::Mint;
use crate::core::counters::RelayCounters;
use crate::core::server_url::{ServerTransport, ServerUrl};

/// What each server has before the next is asked beside it: RFC 8305's Connection Attempt Delay. Its 250 ms are for one round trip;
/// an allocation takes two, after its server's name is looked up. Over UDP a lost request is repeated after as long, which still comes
/// before what begins with TCP and TLS then.
const LEAD: Duration = Duration::from_millis(500);

/// A TURN server that may be asked.
pub(super) struct Server {
    pub(super) url: ServerUrl,
    pub(super) mint: Mint,
    /// Said once, until it works again.
    pub(super) has_complained: bool,
    pub(super) counters: Arc<RelayCounters>,
}

/// An allocation that is asked for, or stands.
pub(super) struct Open {
    pub(super) server: usize,
    pub(super) way: Way,
    pub(super) allocation: Allocation,
}

/// How an allocation's messages travel. The server knows an allocation by that (its 5-tuple), so there is one on each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the media socket to this address of the server.
    Media(SocketAddr),
    Own(Ticket),
}

/// Every server is asked once, until one gives an allocation.
pub(super) struct Asking {
    attempts: Vec<Attempt>,
    /// The server that is asked next, and when.
    next: usize,
    next_at: Instant,
}

pub(super) enum Outcome {
    Given(Box<Open>),
    /// No server gives one.
    Nothing,
}

/// One server that is asked.
struct Attempt {
    server: usize,
    step: Step,
    /// Its addresses that were not tried yet.
    others: VecDeque<SocketAddr>,
}

enum Step {
    /// Its name is looked up, or a connection made.
    Reaching(Ticket),
    /// The next of its addresses is asked once no other attempt asks there.
    Waiting,
    Asking(Box<Open>),
    Failed(Failure),
}

impl Asking {
    pub(super) fn new(now: Instant) -> Self {
        Self { attempts: Vec::new(), next: 0, next_at: now }
    }

    pub(super) fn is_on(&self, way: Way) -> bool {
        self.attempts.iter().any(|attempt| attempt.is_on(way))
    }

    /// What a server sent. There is no peer's datagram among it before an allocation stands.
    pub(super) fn handle(&mut self, way: Way, heard: Heard<'_>, now: Instant) {
        let attempt = self.attempts.iter_mut().find(|attempt| attempt.is_on(way));
        if let Some(Attempt { step: Step::Asking(open), .. }) = attempt {
            open.allocation.handle(heard, now);
        }
    }

    pub(super) fn handle_reached(&mut self, of: Ticket, reached: Reached, servers: &[Server], now: Instant) {
        let is_reaching = |attempt: &&mut Attempt| matches!(attempt.step, Step::Reaching(ticket) if ticket == of);
        let Some(attempt) = self.attempts.iter_mut().find(is_reaching) else { return };
        attempt.step = match reached {
            Reached::Addresses(addresses) if addresses.is_empty() => {
                Step::Failed(Failure::Unreachable("its name has no address".to_owned()))
            }
            Reached::Addresses(addresses) => {
                attempt.others = addresses.into();
                Step::Waiting
            }
            Reached::Connected => Step::Asking(Open::ask(attempt.server, Way::Own(of), servers, now)),
            Reached::Failed(why) => Step::Failed(Failure::Unreachable(why)),
        };
    }

    pub(super) fn handle_closed(&mut self, ticket: Ticket, why: String) {
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.is_on(Way::Own(ticket))) {
            attempt.step = Step::Failed(Failure::Unreachable(why));
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for attempt in &mut self.attempts {
            if let Step::Asking(open) = &mut attempt.step {
                open.allocation.handle_timeout(now);
            }
        }
    }

    pub(super) fn poll_timeout(&self, servers: &[Server]) -> Option<Instant> {
        let attempts = self.attempts.iter().filter_map(|attempt| match &attempt.step {
            Step::Asking(open) => open.allocation.poll_timeout(),
            _ => None,
        });
        attempts.chain((self.next < servers.len()).then_some(self.next_at)).min()
    }

    /// Goes on after whatever happened, and sends what there is to say. `None`: it is not decided yet.
    pub(super) fn advance(&mut self, servers: &mut [Server], out: &mut Outputs, now: Instant) -> Option<Outcome> {
        if let Some(given) = self.take_given() {
            self.complain_about_those_before(given.server, servers);
            self.leave(out, now);
            return Some(Outcome::Given(given));
        }
        while self.step(servers, out, now) {}
        for attempt in &mut self.attempts {
            if let Step::Asking(open) = &mut attempt.step {
                open.flush(out);
            }
        }
        self.attempts.is_empty().then_some(Outcome::Nothing)
    }

    /// Leaves every attempt, politely.
    pub(super) fn leave(&mut self, out: &mut Outputs, now: Instant) {
        self.attempts.drain(..).for_each(|attempt| attempt.step.leave(out, now));
    }

    fn take_given(&mut self) -> Option<Box<Open>> {
        let at = self.attempts.iter().position(Attempt::is_given)?;
        match self.attempts.remove(at).step {
            Step::Asking(open) => Some(open),
            _ => None,
        }
    }

    /// Servers' owner wants to know that one further down had to be taken.
    fn complain_about_those_before(&self, given: usize, servers: &mut [Server]) {
        for attempt in self.attempts.iter().filter(|attempt| attempt.server < given) {
            servers[attempt.server].complain(&Failure::Late);
        }
    }

    /// Does one thing that is due; `false`: nothing is.
    fn step(&mut self, servers: &mut [Server], out: &mut Outputs, now: Instant) -> bool {
        let failed = |(at, attempt): (usize, &Attempt)| Some((at, attempt.failure()?.clone()));
        if let Some((at, failure)) = self.attempts.iter().enumerate().find_map(failed) {
            self.fail(at, &failure, servers, out, now);
        } else if let Some(at) = self.attempts.iter().position(|attempt| self.may_ask(attempt)) {
            let attempt = &mut self.attempts[at];
            if let Some(address) = attempt.others.pop_front() {
                attempt.step = Step::Asking(Open::ask(attempt.server, Way::Media(address), servers, now));
            }
        } else if self.next < servers.len() && self.next_at <= now {
            let url = &servers[self.next].url;
            let how = if url.transport == ServerTransport::Udp { How::Resolve } else { How::Connect };
            let step = Step::Reaching(out.reach(url, how));
            self.attempts.push(Attempt { server: self.next, step, others: VecDeque::new() });
            (self.next, self.next_at) = (self.next + 1, now + LEAD);
        } else {
            return false;
        }
        true
    }

    /// Two urls may lead to one address, where the server would take two attempts from the media socket for one.
    fn may_ask(&self, attempt: &Attempt) -> bool {
        let is_free = |address: &SocketAddr| !self.is_on(Way::Media(*address));
        matches!(attempt.step, Step::Waiting) && attempt.others.front().is_some_and(is_free)
    }

    /// The attempt goes on another way to its server, or ends.
    fn fail(&mut self, at: usize, failure: &Failure, servers: &mut [Server], out: &mut Outputs, now: Instant) {
        let attempt = &mut self.attempts[at];
        let server = &mut servers[attempt.server];
        let failed = std::mem::replace(&mut attempt.step, Step::Waiting);
        if *failure == Failure::Mismatch
            && let Step::Asking(open) = &failed
            && let Way::Media(_) = open.way
        {
            // The media socket's way to this server is taken until the server forgets what we had before a crash.
            debug!(server = %server.url, "it keeps an allocation of before; another port is tried");
            attempt.step = Step::Reaching(out.reach(&server.url, How::Connect));
        } else if attempt.others.is_empty() {
            server.complain(failure);
            self.attempts.remove(at);
            self.next_at = now;
        }
        failed.leave(out, now);
    }
}

impl Attempt {
    fn is_on(&self, way: Way) -> bool {
        matches!(&self.step, Step::Asking(open) if open.way == way)
    }

    fn is_given(&self) -> bool {
        matches!(&self.step, Step::Asking(open) if open.allocation.held().is_some())
    }

    fn failure(&self) -> Option<&Failure> {
        match &self.step {
            Step::Asking(open) => open.allocation.failure(),
            Step::Failed(failure) => Some(failure),
            Step::Reaching(_) | Step::Waiting => None,
        }
    }
}

impl Step {
    fn leave(self, out: &mut Outputs, now: Instant) {
        match self {
            Self::Reaching(ticket) => out.push(Output::Leave { ticket }),
            Self::Asking(open) => open.leave(out, now),
            Self::Waiting | Self::Failed(_) => {}
        }
    }
}

impl Open {
    fn ask(server: usize, way: Way, servers: &[Server], now: Instant) -> Box<Self> {
        let Server { url, mint, .. } = &servers[server];
        let allocation = Allocation::ask(mint(), url.transport != ServerTransport::Udp, now);
        Box::new(Self { server, way, allocation })
    }

    pub(super) fn flush(&mut self, out: &mut Outputs) {
        while let Some(data) = self.allocation.poll_transmit() {
            out.push(self.way.output(data));
        }
    }

    /// Ends it, politely.
    pub(super) fn leave(mut self, out: &mut Outputs, now: Instant) {
        self.allocation.give_back(now);
        self.flush(out);
        if let Way::Own(ticket) = self.way {
            out.push(Output::Leave { ticket });
        }
    }
}

impl Way {
    fn output(self, data: Bytes) -> Output {
        match self {
            Self::Media(to) => Output::Datagram { to, data },
            Self::Own(ticket) => Output::Write { ticket, data },
        }
    }
}

impl Server {
    pub(super) fn complain(&mut self, failure: &Failure) {
        self.counters.allocation_failures.add(1);
        if std::mem::replace(&mut self.has_complained, true) {
            debug!(server = %self.url, %failure, "the TURN server still does not relay for us");
        } else {
            warn!(server = %self.url, %failure, "the TURN server does not relay for us");
        }
    }
}

#[cfg(test)]
#[path = "asking_test.rs"]
mod tests;
