//! Whose a datagram is that names nobody: by where it comes from.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::core::candidate::{Candidate, CandidateKind};
use crate::core::sessions::SessionId;
use crate::core::transmit::Transport;

/// Where a datagram comes from or goes to. The same address by another way may be another viewer, behind a NAT or in a network of the
/// relay's.
pub(super) type Remote = (Way, SocketAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Udp,
    Tcp,
    Relay,
}

#[derive(Default)]
pub(super) struct Remotes {
    sessions: HashMap<Remote, SessionId>,
    /// Our addresses on TURN servers.
    relayed: Vec<SocketAddr>,
}

impl Remotes {
    /// Those of now. Nothing comes to a former one any more.
    pub(super) fn set_candidates(&mut self, candidates: &[Candidate]) {
        let relayed = candidates.iter().filter(|candidate| matches!(candidate.kind, CandidateKind::Relayed { .. }));
        self.relayed = relayed.map(|candidate| candidate.address).collect();
    }

    /// The other end of what comes to, or leaves from, our address `local`.
    pub(super) fn remote(&self, transport: Transport, local: SocketAddr, remote: SocketAddr) -> Remote {
        let way = match transport {
            Transport::Tcp => Way::Tcp,
            Transport::Udp if self.relayed.contains(&local) => Way::Relay,
            Transport::Udp => Way::Udp,
        };
        (way, remote)
    }

    pub(super) fn session(&self, remote: Remote) -> Option<SessionId> {
        self.sessions.get(&remote).copied()
    }

    /// Something is sent there for this session: what comes from there is its, unless it is another's already.
    pub(super) fn note(&mut self, remote: Remote, session: SessionId) {
        self.sessions.entry(remote).or_insert(session);
    }

    /// It proved to be there: what comes from there is its, whoever was there before.
    pub(super) fn take_over(&mut self, remote: Remote, session: SessionId) {
        self.sessions.insert(remote, session);
    }

    /// Another session may have taken the address over since; then it keeps it.
    pub(super) fn forget(&mut self, remote: Remote, session: SessionId) {
        if self.session(remote) == Some(session) {
            self.sessions.remove(&remote);
        }
    }

    /// A TCP connection is closed; tells whose it was.
    pub(super) fn forget_closed(&mut self, from: SocketAddr) -> Option<SessionId> {
        self.sessions.remove(&(Way::Tcp, from))
    }
}
