//! The media port: UDP for all viewers, TCP on the same number for those whose network drops UDP, and the addresses that
//! viewers are told.

mod addresses;
pub mod framing;
mod outgoing;
mod socket;
pub mod tcp;

use std::net::SocketAddr;

pub use self::addresses::own_addresses;
pub use self::outgoing::Outgoing;
pub use self::socket::{MediaSocket, ReadBuffer, SocketError};
use self::tcp::TcpSettings;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaSettings {
    /// 0: any free port.
    pub udp_port: u16,
    /// What TCP on the same port needs; `None`: there is none.
    pub tcp: Option<TcpSettings>,
    /// Names of the interfaces whose addresses viewers are told; empty: all.
    pub interfaces: Vec<String>,
    /// Told in place of the interfaces' addresses, where a router forwards a port; port 0: the one that was bound.
    pub advertise: Vec<SocketAddr>,
    /// Whether viewers on this machine are told 127.0.0.1 too.
    pub loopback: bool,
}
