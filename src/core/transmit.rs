//! A datagram on its way out, and how it travels.

use std::net::SocketAddr;

use bytes::BytesMut;

/// What carries a datagram between a viewer and us. A relayed datagram counts as UDP: that is how it leaves the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    #[default]
    Udp,
    /// Framed in a connection that the viewer opened (RFC 6544, RFC 4571).
    Tcp,
}

impl Transport {
    /// As in SDP (RFC 8839, section 5.1).
    pub fn slug(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

#[derive(Debug)]
pub struct Transmit {
    /// The candidate's address that it leaves from.
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub transport: Transport,
    pub data: BytesMut,
}
