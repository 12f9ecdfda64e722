//! The one allocation that all viewers share, and what is done to have it: servers are asked, one that gives it is kept for as long as
//! it works, and when it is lost they are asked again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, info};

use super::allocation::{Credentials, Failure, Held};
use super::asking::{Asking, Open, Outcome, Server, Way};
use super::gathering::{Outputs, Reached, Ticket, Unwrapped};
use super::message::Heard;
use crate::core::backoff::Backoff;
use crate::core::counters::RelayCounters;
use crate::core::server_url::{ServerTransport, ServerUrl};

/// An allocation that stood so long is asked for again at once when it is lost; one that did not waits.
const PROVEN: Duration = Duration::from_secs(60);
/// Credentials are changed, which makes a new allocation, once nothing went through the old one for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Relayed addresses of before: peers' connections send from them until they notice, which is up to half a minute.
const FORMER: usize = 32;
const FORMER_FOR: Duration = Duration::from_secs(60);

/// Makes credentials for an allocation that is made now.
pub type Mint = Arc<dyn Fn() -> Credentials + Send + Sync>;

/// A STUN or TURN server that the camera itself uses.
#[derive(Clone)]
pub struct RelayServer {
    pub url: ServerUrl,
    /// `None`: it only shows where it sees us; of a TURN server no allocation is wanted, or it is none.
    pub mint: Option<Mint>,
}

/// What became of a packet on its way out.
pub(super) enum Carried {
    /// It does not leave from an address of the relay.
    NotRelayed,
    /// In an envelope, from the media socket to here.
    ByMedia(SocketAddr, BytesMut),
    ByOwn(Ticket, BytesMut),
    Dropped,
}

pub(super) struct Relaying {
    servers: Vec<Server>,
    state: State,
    backoff: Backoff,
    /// With the time they are forgotten at, the next one first. Empty as a rule, since every packet is compared with them.
    former: VecDeque<(SocketAddr, Instant)>,
    counters: Arc<RelayCounters>,
}

enum State {
    Resting { until: Instant },
    Asking(Asking),
    Held(Standing),
}

/// The allocation that stands.
struct Standing {
    open: Box<Open>,
    relayed: SocketAddr,
    since: Instant,
}

impl Relaying {
    /// `None`: no server is to relay.
    pub(super) fn new(servers: Vec<RelayServer>, counters: Arc<RelayCounters>, now: Instant) -> Option<Self> {
        let server = |RelayServer { url, mint }: RelayServer| {
            let mint = mint.filter(|_| url.is_turn)?;
            Some(Server { url, mint, has_complained: false, counters: Arc::clone(&counters) })
        };
        let servers: Vec<_> = servers.into_iter().filter_map(server).collect();
        (!servers.is_empty()).then(|| Self {
            servers,
            state: State::Resting { until: now },
            backoff: Backoff::default(),
            former: VecDeque::new(),
            counters,
        })
    }

    pub(super) fn held(&self) -> Option<Held> {
        match &self.state {
            State::Held(standing) => standing.open.allocation.held(),
            _ => None,
        }
    }

    /// How the server is reached that relays for us.
    pub(super) fn transport(&self) -> Option<ServerTransport> {
        match &self.state {
            State::Held(standing) => Some(self.servers[standing.open.server].url.transport),
            _ => None,
        }
    }

    /// Whether a server is spoken to on this way.
    pub(super) fn is_on(&self, way: Way) -> bool {
        match &self.state {
            State::Resting { .. } => false,
            State::Asking(asking) => asking.is_on(way),
            State::Held(standing) => standing.open.way == way,
        }
    }

    /// What the server sent; returns a peer's datagram.
    pub(super) fn handle<'a>(
        &mut self,
        way: Way,
        heard: Heard<'a>,
        out: &mut Outputs,
        now: Instant,
    ) -> Option<Unwrapped<'a>> {
        match &mut self.state {
            State::Held(Standing { open, relayed, .. }) if open.way == way => {
                if let Some((from, data)) = open.allocation.handle(heard, now) {
                    self.counters.bytes_received.add(data.len() as u64);
                    return Some(Unwrapped { from, to: *relayed, data });
                }
            }
            State::Asking(asking) => asking.handle(way, heard, now),
            _ => return None,
        }
        self.look(out, now);
        None
    }

    pub(super) fn handle_reached(&mut self, of: Ticket, reached: Reached, out: &mut Outputs, now: Instant) {
        if let State::Asking(asking) = &mut self.state {
            asking.handle_reached(of, reached, &self.servers, now);
            self.look(out, now);
        }
    }

    pub(super) fn handle_closed(&mut self, ticket: Ticket, why: String, out: &mut Outputs, now: Instant) {
        match &mut self.state {
            State::Held(standing) if standing.open.way == Way::Own(ticket) => {
                self.lose(&Failure::Unreachable(why), out, now);
            }
            State::Asking(asking) => {
                asking.handle_closed(ticket, why);
                self.look(out, now);
            }
            _ => {}
        }
    }

    /// A packet that leaves `from` one of our candidates for `to`.
    pub(super) fn carry(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        out: &mut Outputs,
        now: Instant,
    ) -> Carried {
        let carried = match &mut self.state {
            State::Held(Standing { open, relayed, .. }) if *relayed == from => {
                let wrapped = open.allocation.wrap(to, data, now);
                open.flush(out);
                wrapped.map(|wrapped| match open.way {
                    Way::Media(server) => Carried::ByMedia(server, wrapped),
                    Way::Own(ticket) => Carried::ByOwn(ticket, wrapped),
                })
            }
            _ if self.former.iter().any(|(former, until)| *former == from && now < *until) => None,
            _ => return Carried::NotRelayed,
        };
        let counters = &self.counters;
        if carried.is_some() {
            counters.bytes_sent.add(data.len() as u64);
        } else {
            counters.packets_dropped.add(1);
        }
        carried.unwrap_or(Carried::Dropped)
    }

    pub(super) fn handle_timeout(&mut self, out: &mut Outputs, now: Instant) {
        while self.former.front().is_some_and(|(_, until)| *until <= now) {
            self.former.pop_front();
        }
        match &mut self.state {
            State::Resting { until } if *until <= now => self.ask(out, now),
            State::Resting { .. } => {}
            State::Asking(asking) => {
                asking.handle_timeout(now);
                self.look(out, now);
            }
            State::Held(Standing { open, .. }) => {
                open.allocation.handle_timeout(now);
                let is_old = open.allocation.ages_at().is_some_and(|at| at <= now);
                let used_at = open.allocation.used_at();
                let is_quiet = used_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
                if is_old && is_quiet && open.allocation.held().is_some() {
                    debug!(server = %self.servers[open.server].url, "new credentials, so a new allocation");
                    self.leave(out, now);
                    self.ask(out, now);
                } else {
                    self.look(out, now);
                }
            }
        }
    }

    /// This machine's addresses are not what they were: the server knew us by one that may be gone.
    pub(super) fn hurry(&mut self, now: Instant) {
        match &mut self.state {
            State::Resting { until } => *until = now,
            State::Asking(_) => {}
            State::Held(standing) => standing.open.allocation.hurry(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Resting { until } => Some(*until),
            State::Asking(asking) => asking.poll_timeout(&self.servers),
            State::Held(standing) => standing.open.allocation.poll_timeout(),
        }
    }

    /// Nothing is asked for after this.
    pub(super) fn give_back(&mut self, out: &mut Outputs, now: Instant) {
        self.leave(out, now);
    }

    fn ask(&mut self, out: &mut Outputs, now: Instant) {
        self.state = State::Asking(Asking::new(now));
        self.look(out, now);
    }

    /// Sends what there is to say, and acts when something was decided.
    fn look(&mut self, out: &mut Outputs, now: Instant) {
        match &mut self.state {
            State::Resting { .. } => {}
            State::Asking(asking) => match asking.advance(&mut self.servers, out, now) {
                None => {}
                Some(Outcome::Given(open)) => self.keep(open, now),
                Some(Outcome::Nothing) => self.rest(now),
            },
            State::Held(Standing { open, .. }) => {
                open.flush(out);
                if let Some(failure) = open.allocation.failure().cloned() {
                    self.lose(&failure, out, now);
                }
            }
        }
    }

    fn keep(&mut self, open: Box<Open>, now: Instant) {
        let Some(held) = open.allocation.held() else { return };
        let server = &mut self.servers[open.server];
        server.has_complained = false;
        info!(server = %server.url, "the TURN server relays for us");
        debug!(?held, "relayed");
        self.counters.allocations.add(1);
        self.former.retain(|(former, _)| *former != held.relayed);
        self.state = State::Held(Standing { open, relayed: held.relayed, since: now });
    }

    fn lose(&mut self, failure: &Failure, out: &mut Outputs, now: Instant) {
        let State::Held(Standing { open, since, .. }) = &self.state else { return };
        let is_proven = now.saturating_duration_since(*since) >= PROVEN;
        self.servers[open.server].complain(failure);
        self.leave(out, now);
        if is_proven {
            self.backoff.reset();
            self.ask(out, now);
        } else {
            self.rest(now);
        }
    }

    fn rest(&mut self, now: Instant) {
        self.state = State::Resting { until: now + self.backoff.next(rand::random()) };
    }

    /// Leaves what stands or is asked for, politely.
    fn leave(&mut self, out: &mut Outputs, now: Instant) {
        match std::mem::replace(&mut self.state, State::Resting { until: now }) {
            State::Resting { .. } => {}
            State::Asking(mut asking) => asking.leave(out, now),
            State::Held(Standing { open, relayed, .. }) => {
                open.leave(out, now);
                self.former.push_back((relayed, now + FORMER_FOR));
                if self.former.len() > FORMER {
                    self.former.pop_front();
                }
            }
        }
    }
}
