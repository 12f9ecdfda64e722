//! Where viewers can reach us (RFC 8445, section 5.1).

use std::net::SocketAddr;

use super::transmit::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// What viewers are told.
    pub address: SocketAddr,
    pub transport: Transport,
    pub kind: CandidateKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CandidateKind {
    /// An address of this machine, or one that a router forwards to it.
    Host,
    /// What a NAT made of `base`, an address of this machine.
    ServerReflexive { base: SocketAddr },
    /// An address of a TURN server (RFC 8656), which knows us as `mapped`.
    Relayed { mapped: SocketAddr },
}

impl CandidateKind {
    /// As in SDP (RFC 8839, section 5.1).
    pub fn slug(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ServerReflexive { .. } => "srflx",
            Self::Relayed { .. } => "relay",
        }
    }
}

impl Candidate {
    /// Reached by UDP, without anybody between.
    pub fn host(address: SocketAddr) -> Self {
        Self { address, transport: Transport::Udp, kind: CandidateKind::Host }
    }

    /// The same for viewers who connect by TCP: the passive end (RFC 6544).
    pub fn tcp_host(address: SocketAddr) -> Self {
        Self { transport: Transport::Tcp, ..Self::host(address) }
    }
}
