//! A datagram on its way out.

use std::net::SocketAddr;

use bytes::BytesMut;

#[derive(Debug)]
pub struct Transmit {
    /// The candidate's address that it leaves from.
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub data: BytesMut,
}
