//! This machine's own addresses.

use std::net::{IpAddr, Ipv4Addr};

/// This machine's addresses as others reach it, the one on the way out first. IPv6 only where there is no IPv4: links with
/// those are hard to type.
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut addresses: Vec<IpAddr> =
        interfaces.iter().map(if_addrs::Interface::ip).filter(|ip| is_reachable(*ip)).collect();
    if addresses.iter().any(IpAddr::is_ipv4) {
        addresses.retain(IpAddr::is_ipv4);
    }
    let way_out = way_out();
    addresses.sort_by_key(|ip| Some(*ip) != way_out);
    addresses.dedup();
    addresses
}

/// The address that this machine would use to speak with the internet. Connecting a UDP socket sends nothing.
fn way_out() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether a viewer on another machine may reach this address: link-local IPv6 needs a zone that candidates cannot carry.
pub(super) fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}
