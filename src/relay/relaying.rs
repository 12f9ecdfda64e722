//! The one allocation that all viewers share, and what is done to have it: the first server that gives one, in the owner's order;
//! when it is lost, from the first on again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, info, warn};

use super::allocation::{Allocation, Credentials, Failure, Held};
use super::gathering::{How, Output, Outputs, Reached, Ticket, Unwrapped};
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

struct Server {
    url: ServerUrl,
    mint: Mint,
    /// Said once, until it works again.
    has_complained: bool,
}

enum State {
    Resting { until: Instant },
    Reaching { server: usize, ticket: Ticket },
    Open(Box<Open>),
}

/// An allocation that is asked for, or stands.
struct Open {
    server: usize,
    way: Way,
    /// Of the same server, not tried yet.
    others: VecDeque<SocketAddr>,
    allocation: Allocation,
    /// Since when it stands, or stood, and for which address.
    held_since: Option<(Instant, SocketAddr)>,
}

/// How an allocation's messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the media socket to this address of the server.
    Media(SocketAddr),
    Own(Ticket),
}

impl Way {
    fn output(self, data: bytes::Bytes) -> Output {
        match self {
            Self::Media(to) => Output::Datagram { to, data },
            Self::Own(ticket) => Output::Write { ticket, data },
        }
    }
}

impl Relaying {
    /// `None`: no server is to relay.
    pub(super) fn new(servers: Vec<RelayServer>, counters: Arc<RelayCounters>, now: Instant) -> Option<Self> {
        let server = |RelayServer { url, mint }: RelayServer| {
            mint.filter(|_| url.is_turn).map(|mint| Server { url, mint, has_complained: false })
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
            State::Open(open) => open.allocation.held(),
            _ => None,
        }
    }

    /// How the server is reached that relays for us.
    pub(super) fn transport(&self) -> Option<ServerTransport> {
        match &self.state {
            State::Open(open) if open.allocation.held().is_some() => Some(self.servers[open.server].url.transport),
            _ => None,
        }
    }

    pub(super) fn is_at(&self, from: SocketAddr) -> bool {
        matches!(&self.state, State::Open(open) if open.way == Way::Media(from))
    }

    pub(super) fn is_over(&self, ticket: Ticket) -> bool {
        matches!(&self.state, State::Open(open) if open.way == Way::Own(ticket))
    }

    /// What the server sent; returns a peer's datagram.
    pub(super) fn handle<'a>(&mut self, heard: Heard<'a>, out: &mut Outputs, now: Instant) -> Option<Unwrapped<'a>> {
        let State::Open(open) = &mut self.state else { return None };
        if let Some((from, data)) = open.allocation.handle(heard, now) {
            self.counters.bytes_received.add(data.len() as u64);
            let to = open.allocation.held()?.relayed;
            return Some(Unwrapped { from, to, data });
        }
        if let (Some(held), None) = (open.allocation.held(), open.held_since) {
            open.held_since = Some((now, held.relayed));
            let server = &mut self.servers[open.server];
            server.has_complained = false;
            info!(server = %server.url, "the TURN server relays for us");
            debug!(?held, "relayed");
            self.counters.allocations.add(1);
            self.former.retain(|(former, _)| *former != held.relayed);
        }
        self.look(out, now);
        None
    }

    pub(super) fn handle_reached(&mut self, of: Ticket, reached: Reached, out: &mut Outputs, now: Instant) {
        let State::Reaching { server, ticket } = self.state else { return };
        if ticket != of {
            return;
        }
        match reached {
            Reached::Addresses(addresses) => self.ask_next(server, addresses.into(), out, now),
            Reached::Connected => self.ask(server, Way::Own(ticket), VecDeque::new(), out, now),
            Reached::Failed(why) => self.try_next(server, &Failure::Unreachable(why), out, now),
        }
    }

    pub(super) fn handle_closed(&mut self, ticket: Ticket, why: String, out: &mut Outputs, now: Instant) {
        if self.is_over(ticket) {
            self.fail(Failure::Unreachable(why), out, now);
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
            State::Open(open) if open.allocation.held().is_some_and(|held| held.relayed == from) => {
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
            State::Resting { until } if *until <= now => self.reach(0, out),
            State::Resting { .. } | State::Reaching { .. } => {}
            State::Open(open) => {
                open.allocation.handle_timeout(now);
                open.flush(out);
                let is_old = open.allocation.ages_at().is_some_and(|at| at <= now);
                let used_at = open.allocation.used_at();
                let is_quiet = used_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
                if is_old && is_quiet && open.allocation.held().is_some() {
                    debug!(server = %self.servers[open.server].url, "new credentials, so a new allocation");
                    self.leave(out, now);
                    self.reach(0, out);
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
            State::Reaching { .. } => {}
            State::Open(open) => open.allocation.hurry(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Resting { until } => Some(*until),
            State::Reaching { .. } => None,
            State::Open(open) => open.allocation.poll_timeout(),
        }
    }

    /// Nothing is asked for after this.
    pub(super) fn give_back(&mut self, out: &mut Outputs, now: Instant) {
        self.leave(out, now);
    }

    /// Sends what the allocation has to say, and acts when it has ended.
    fn look(&mut self, out: &mut Outputs, now: Instant) {
        let State::Open(open) = &mut self.state else { return };
        open.flush(out);
        if let Some(failure) = open.allocation.failure().cloned() {
            self.fail(failure, out, now);
        }
    }

    fn reach(&mut self, server: usize, out: &mut Outputs) {
        let url = &self.servers[server].url;
        let how = if url.transport == ServerTransport::Udp { How::Resolve } else { How::Connect };
        self.state = State::Reaching { server, ticket: out.reach(url, how) };
    }

    fn ask_next(&mut self, server: usize, mut addresses: VecDeque<SocketAddr>, out: &mut Outputs, now: Instant) {
        match addresses.pop_front() {
            Some(address) => self.ask(server, Way::Media(address), addresses, out, now),
            None => self.try_next(server, &Failure::Unreachable("its name has no address".to_owned()), out, now),
        }
    }

    fn ask(&mut self, server: usize, way: Way, others: VecDeque<SocketAddr>, out: &mut Outputs, now: Instant) {
        let Server { url, mint, .. } = &self.servers[server];
        let allocation = Allocation::ask(mint(), url.transport != ServerTransport::Udp, now);
        let mut open = Open { server, way, others, allocation, held_since: None };
        open.flush(out);
        self.state = State::Open(Box::new(open));
    }

    /// The allocation that was asked for is not given, or the one that stood is lost.
    fn fail(&mut self, failure: Failure, out: &mut Outputs, now: Instant) {
        let State::Open(open) = &mut self.state else { return };
        let (server, way, others) = (open.server, open.way, std::mem::take(&mut open.others));
        let held_since = open.held_since;
        self.leave(out, now);
        match held_since {
            Some((since, _)) => {
                self.complain(server, &failure);
                if now.saturating_duration_since(since) >= PROVEN {
                    self.backoff.reset();
                    self.reach(0, out);
                } else {
                    self.rest(now);
                }
            }
            // The media socket's way to this server is taken until the server forgets what we had before a crash.
            None if failure == Failure::Mismatch && matches!(way, Way::Media(_)) => {
                let url = &self.servers[server].url;
                debug!(server = %url, "it keeps an allocation of before; another port is tried");
                self.state = State::Reaching { server, ticket: out.reach(url, How::Connect) };
            }
            None if !others.is_empty() => self.ask_next(server, others, out, now),
            None => self.try_next(server, &failure, out, now),
        }
    }

    fn try_next(&mut self, failed: usize, failure: &Failure, out: &mut Outputs, now: Instant) {
        self.complain(failed, failure);
        if failed + 1 < self.servers.len() { self.reach(failed + 1, out) } else { self.rest(now) }
    }

    fn rest(&mut self, now: Instant) {
        self.state = State::Resting { until: now + self.backoff.next(rand::random()) };
    }

    fn complain(&mut self, server: usize, failure: &Failure) {
        self.counters.allocation_failures.add(1);
        let server = &mut self.servers[server];
        if std::mem::replace(&mut server.has_complained, true) {
            debug!(server = %server.url, %failure, "the TURN server still does not relay for us");
        } else {
            warn!(server = %server.url, %failure, "the TURN server does not relay for us");
        }
    }

    /// Leaves what is open, politely.
    fn leave(&mut self, out: &mut Outputs, now: Instant) {
        let State::Open(open) = &mut self.state else { return };
        open.allocation.give_back(now);
        open.flush(out);
        self.former.extend(open.held_since.map(|(_, relayed)| (relayed, now + FORMER_FOR)));
        if self.former.len() > FORMER {
            self.former.pop_front();
        }
        if let Way::Own(ticket) = open.way {
            out.push(Output::Leave { ticket });
        }
        self.state = State::Resting { until: now };
    }
}

impl Open {
    fn flush(&mut self, out: &mut Outputs) {
        while let Some(data) = self.allocation.poll_transmit() {
            out.push(self.way.output(data));
        }
    }
}
