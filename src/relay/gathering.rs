//! All servers together (RFC 8445, section 5.1.1): a binding with every STUN server, an allocation with one TURN server. Without
//! I/O, told the time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::asking::Way;
use super::binding::StunServer;
use super::message::{self, Heard};
use super::relaying::{Carried, RelayServer, Relaying};
use crate::core::candidate::{Candidate, CandidateKind};
use crate::core::counters::RelayCounters;
use crate::core::server_url::{ServerTransport, ServerUrl};
use crate::core::transmit::{Transmit, Transport};

/// A way to a server, asked for or standing.
pub(super) type Ticket = u64;

#[derive(Debug)]
pub(super) enum Output {
    /// From the media socket.
    Datagram { to: SocketAddr, data: Bytes },
    /// Over a connection of its own.
    Write { ticket: Ticket, data: Bytes },
    /// Wants to be answered by [`Gathering::handle_reached`].
    Reach { ticket: Ticket, url: ServerUrl, how: How },
    /// The connection is not needed any more.
    Leave { ticket: Ticket },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Look up its addresses; the media socket does the rest.
    Resolve,
    /// Make a connection: TCP, TLS, or a UDP socket beside the media socket.
    Connect,
}

/// What became of a [`Output::Reach`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// At least one.
    Addresses(Vec<SocketAddr>),
    Connected,
    /// Why not, in words.
    Failed(String),
}

/// What is wanted of the world, in order.
#[derive(Default)]
pub(super) struct Outputs {
    queue: VecDeque<Output>,
    last_ticket: Ticket,
}

impl Outputs {
    pub(super) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(super) fn reach(&mut self, url: &ServerUrl, how: How) -> Ticket {
        self.last_ticket += 1;
        self.push(Output::Reach { ticket: self.last_ticket, url: url.clone(), how });
        self.last_ticket
    }
}

/// A datagram for the ICE agents: as it came, or out of the relay's envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrapped<'a> {
    pub from: SocketAddr,
    /// Which candidate's address it was sent to.
    pub to: SocketAddr,
    pub data: &'a [u8],
}

/// Where a transmit goes.
pub(super) enum Route {
    /// By the media socket, as it is now.
    Media(Transmit),
    Own(Ticket, BytesMut),
    /// The relay does not take it, now or any more.
    Nowhere,
}

pub(super) struct Gathering {
    stun: Vec<StunServer>,
    relaying: Option<Relaying>,
    out: Outputs,
}

impl Gathering {
    /// A TURN server over UDP answers Bindings too, so it is asked for both. STUN over anything else is left out: it would show
    /// another port than viewers need.
    pub(super) fn new(servers: Vec<RelayServer>, counters: &Arc<RelayCounters>, now: Instant) -> Self {
        let by_udp = servers.iter().map(|server| &server.url).filter(|url| url.transport == ServerTransport::Udp);
        let stun = by_udp.map(|url| StunServer::new(url.clone(), now)).collect();
        Self { stun, relaying: Relaying::new(servers, Arc::clone(counters), now), out: Outputs::default() }
    }

    /// What the servers add to the media socket's own candidates. A server-reflexive one whose base viewers are not told, or that
    /// they are told already, is left out.
    pub(super) fn candidates(&self, hosts: &[Candidate]) -> Vec<Candidate> {
        let relaying = self.relaying.as_ref();
        let mapped = self.stun.iter().filter_map(StunServer::mapped);
        let mut candidates: Vec<Candidate> = Vec::new();
        for mapped in mapped {
            let by_udp = |host: &&Candidate| host.transport == Transport::Udp;
            let is_told = |address: SocketAddr| hosts.iter().filter(by_udp).any(|host| host.address == address);
            let is_new = !candidates.iter().any(|other| other.address == mapped.address);
            if is_told(mapped.base) && !is_told(mapped.address) && is_new {
                let kind = CandidateKind::ServerReflexive { base: mapped.base };
                candidates.push(Candidate { address: mapped.address, transport: Transport::Udp, kind });
            }
        }
        if let Some(held) = relaying.and_then(Relaying::held) {
            let kind = CandidateKind::Relayed { mapped: held.mapped };
            candidates.push(Candidate { address: held.relayed, transport: Transport::Udp, kind });
        }
        candidates
    }

    /// What came to the media socket; `None`: it was for us.
    pub(super) fn handle_datagram<'a>(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        data: &'a [u8],
        now: Instant,
    ) -> Option<Unwrapped<'a>> {
        let is_stun = self.stun.iter().any(|server| server.is_at(from));
        let is_turn = self.relaying.as_ref().is_some_and(|relaying| relaying.is_on(Way::Media(from)));
        if !is_stun && !is_turn {
            return Some(Unwrapped { from, to, data });
        }
        let heard = message::read(data);
        if let Some(Heard::Response(response)) = &heard
            && let Some(server) = self.stun.iter_mut().find(|server| server.awaits(&response.id))
        {
            server.handle(response, to, now);
        } else if let (Some(heard), Some(relaying), true) = (heard, &mut self.relaying, is_turn) {
            return relaying.handle(Way::Media(from), heard, &mut self.out, now);
        }
        None
    }

    /// What came over a connection of its own: a datagram, or one frame of a stream.
    pub(super) fn handle_frame<'a>(&mut self, ticket: Ticket, frame: &'a [u8], now: Instant) -> Option<Unwrapped<'a>> {
        self.relaying.as_mut()?.handle(Way::Own(ticket), message::read(frame)?, &mut self.out, now)
    }

    pub(super) fn handle_reached(&mut self, ticket: Ticket, reached: Reached, now: Instant) {
        if let Some(server) = self.stun.iter_mut().find(|server| server.is_waiting_for(ticket)) {
            server.handle_reached(reached, now);
        } else if let Some(relaying) = &mut self.relaying {
            relaying.handle_reached(ticket, reached, &mut self.out, now);
        }
    }

    /// A connection ended.
    pub(super) fn handle_closed(&mut self, ticket: Ticket, why: String, now: Instant) {
        if let Some(relaying) = &mut self.relaying {
            relaying.handle_closed(ticket, why, &mut self.out, now);
        }
    }

    /// Puts into the relay's envelope what leaves from a relayed address.
    pub(super) fn route(&mut self, transmit: Transmit, now: Instant) -> Route {
        let Some(relaying) = &mut self.relaying else { return Route::Media(transmit) };
        match relaying.carry(transmit.from, transmit.to, &transmit.data, &mut self.out, now) {
            Carried::NotRelayed => Route::Media(transmit),
            Carried::ByMedia(to, data) => Route::Media(to_server(to, data)),
            Carried::ByOwn(ticket, data) => Route::Own(ticket, data),
            Carried::Dropped => Route::Nowhere,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for server in &mut self.stun {
            server.handle_timeout(&mut self.out, now);
        }
        if let Some(relaying) = &mut self.relaying {
            relaying.handle_timeout(&mut self.out, now);
        }
    }

    pub(super) fn hurry(&mut self, now: Instant) {
        self.stun.iter_mut().for_each(|server| server.hurry(now));
        self.relaying.iter_mut().for_each(|relaying| relaying.hurry(now));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let relaying = self.relaying.as_ref().and_then(Relaying::poll_timeout);
        self.stun.iter().filter_map(StunServer::poll_timeout).chain(relaying).min()
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.out.queue.pop_front()
    }

    /// Says in the counters what stands.
    pub(super) fn count(&self, counters: &RelayCounters) {
        let answering = self.stun.iter().filter(|server| server.mapped().is_some()).count();
        counters.stun_answering.set(answering as u64);
        let relayed_by = self.relaying.as_ref().and_then(Relaying::transport);
        for (transport, level) in ServerTransport::ALL.iter().zip(&counters.allocated) {
            level.set((relayed_by == Some(*transport)).into());
        }
    }

    /// Gives the allocation back.
    pub(super) fn shut_down(&mut self, now: Instant) {
        if let Some(relaying) = &mut self.relaying {
            relaying.give_back(&mut self.out, now);
        }
    }
}

/// From the media socket; which of our addresses it leaves from is the routing table's affair.
pub(super) fn to_server(to: SocketAddr, data: BytesMut) -> Transmit {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    Transmit { from: any, to, transport: Transport::Udp, data }
}

#[cfg(test)]
#[path = "gathering_test.rs"]
pub(super) mod tests;
