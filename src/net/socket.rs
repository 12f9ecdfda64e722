//! The UDP half of the media port: one socket for all viewers, and the addresses that viewers are told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{trace, warn};

use super::MediaSettings;
use super::addresses::is_reachable;
use super::outgoing::Batch;
use super::tcp::{Listener, TcpSettings};
use crate::core::candidate::Candidate;
use crate::core::counters::ViewerCounters;

/// Room for a keyframe to 50 viewers in the kernel, should the network card lag.
const SEND_BUFFER: usize = 4 << 20;
const RECEIVE_BUFFER: usize = 1 << 20;
/// One read takes as many; viewers send little.
const READS: usize = 4;
const LARGEST_READ: usize = 65_536;
/// With any free port: how often one is looked for that is free for TCP, too.
const TRIES: u32 = 8;
/// Addresses that this machine had are remembered for as long as a viewer may be sent to from there; IPv6 changes its own every day.
const ADDRESSES_GONE: usize = 64;
/// A viewer opens a connection for each of them from each of its own networks.
const TCP_CANDIDATES: usize = 4;

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use UDP port {port} for media; is another edgecam running? Set [ice] udp_port to a free one, or 0 for any"
)]
pub struct SocketError {
    port: u16,
    #[source]
    source: io::Error,
}

pub struct MediaSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    settings: MediaSettings,
    /// This machine's addresses when it was last asked for candidates, and those that it had before.
    own: Vec<SocketAddr>,
    gone: Vec<SocketAddr>,
    port: u16,
    is_ipv6: bool,
    takes_tcp: bool,
}

struct Bound {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    is_ipv6: bool,
}

impl Bound {
    fn with_tcp(port: u16, tcp: Option<TcpSettings>) -> io::Result<(Self, Option<Listener>)> {
        let mut bound = Self::new(port)?;
        let Some(tcp) = tcp else { return Ok((bound, None)) };
        let mut tries = if port == 0 { TRIES } else { 1 };
        loop {
            match Listener::bind(bound.port, bound.is_ipv6, tcp) {
                Ok(listener) => return Ok((bound, Some(listener))),
                Err(error) if tries == 1 => {
                    warn!(
                        %error,
                        port = bound.port,
                        "cannot use the media port for TCP; viewers whose network drops UDP will need a TURN server. \
                         Stop the program that has it, give [ice] udp_port another number, or set [ice] tcp = false"
                    );
                    return Ok((bound, None));
                }
                Err(_) => {
                    tries -= 1;
                    bound = Self::new(port)?;
                }
            }
        }
    }

    fn new(port: u16) -> io::Result<Self> {
        let bind = |address: IpAddr| {
            let socket = std::net::UdpSocket::bind(SocketAddr::new(address, port))?;
            socket.set_nonblocking(true)?;
            let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
            // The kernel may grant less (net.core.wmem_max); then a burst more is dropped and counted.
            let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), SEND_BUFFER);
            let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), RECEIVE_BUFFER);
            let port = socket.local_addr()?.port();
            Ok(Self { socket: UdpSocket::from_std(socket)?, state, port, is_ipv6: address.is_ipv6() })
        };
        bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
    }
}

impl MediaSocket {
    /// Binds both IP versions on one socket, or IPv4 alone where there is no other, and TCP on the same port if it is wanted
    /// and can be had.
    ///
    /// # Errors
    /// The UDP port cannot be had.
    pub fn bind(mut settings: MediaSettings) -> Result<(Self, Option<Listener>), SocketError> {
        let error = |source| SocketError { port: settings.udp_port, source };
        let (bound, listener) = Bound::with_tcp(settings.udp_port, settings.tcp).map_err(error)?;
        let Bound { socket, state, port, is_ipv6 } = bound;
        for advertised in settings.advertise.iter_mut().filter(|advertised| advertised.port() == 0) {
            advertised.set_port(port);
        }
        let takes_tcp = listener.is_some();
        Ok((Self { socket, state, settings, own: Vec::new(), gone: Vec::new(), port, is_ipv6, takes_tcp }, listener))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where viewers can reach this socket, best first. Asked for again and again, since interfaces come and go.
    pub fn candidates(&mut self) -> Vec<Candidate> {
        self.look();
        let advertised = &self.settings.advertise;
        let told = if advertised.is_empty() { &self.own } else { advertised };
        let by_tcp = told.iter().take(if self.takes_tcp { TCP_CANDIDATES } else { 0 });
        let by_udp = told.iter().map(|&address| Candidate::host(address));
        by_udp.chain(by_tcp.map(|&address| Candidate::tcp_host(address))).collect()
    }

    fn look(&mut self) {
        let own = self.interface_addresses();
        if own == self.own {
            return;
        }
        let before = std::mem::replace(&mut self.own, own);
        self.gone.extend(before);
        self.gone.retain(|address| !self.own.contains(address));
        let forgotten = self.gone.len().saturating_sub(ADDRESSES_GONE);
        self.gone.drain(..forgotten);
        // After the EINVAL for an address that is gone, quinn-udp would never batch again.
        if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket)) {
            self.state = state;
        }
    }

    /// How many datagrams the kernel takes in one call.
    pub(super) fn most_in_one_call(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn interface_addresses(&self) -> Vec<SocketAddr> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let mut addresses: Vec<IpAddr> = interfaces
            .iter()
            .filter(|interface| {
                self.settings.interfaces.is_empty() || self.settings.interfaces.contains(&interface.name)
            })
            .map(if_addrs::Interface::ip)
            .filter(|ip| is_reachable(*ip) || (self.settings.loopback && ip.is_loopback() && ip.is_ipv4()))
            .filter(|ip| self.is_ipv6 || ip.is_ipv4())
            .collect();
        // IPv4 before IPv6, loopback last: the order in which they are likely to work on a home network.
        addresses.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
        addresses.dedup();
        addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect()
    }

    /// Hands each datagram that arrives to `take`, as (from, to which candidate's address, bytes).
    pub async fn receive(
        &self,
        buffer: &mut ReadBuffer,
        mut take: impl FnMut(SocketAddr, SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let count = {
            let mut slices = buffer.data.each_mut().map(|data| io::IoSliceMut::new(data));
            let metas = &mut buffer.metas;
            let socket = || UdpSockRef::from(&self.socket);
            self.socket.async_io(Interest::READABLE, || self.state.recv(socket(), &mut slices, metas)).await?
        };
        for (meta, data) in buffer.metas.iter().zip(&buffer.data).take(count) {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let to = self.candidate_for(meta.dst_ip);
            for datagram in data[..meta.len].chunks(meta.stride.max(1)) {
                take(from, to, datagram);
            }
        }
        Ok(())
    }

    /// The address under which the viewer knows us: what it was told, not what a router made of it.
    pub fn candidate_for(&self, destination: Option<IpAddr>) -> SocketAddr {
        let destination = destination.unwrap_or(Ipv4Addr::LOCALHOST.into()).to_canonical();
        let advertised =
            self.settings.advertise.iter().find(|advertised| advertised.is_ipv4() == destination.is_ipv4());
        advertised.copied().unwrap_or(SocketAddr::new(destination, self.port))
    }

    /// Until the kernel may have room again.
    pub async fn writable(&self) {
        // An error shows when something is sent.
        let _ = self.socket.writable().await;
    }

    /// Whether the kernel took it; false: it has no room now.
    pub(super) fn send(&self, batch: &Batch, counters: &ViewerCounters) -> bool {
        let (Some(to), Some(from)) = (batch.to, batch.from) else { return true };
        let datagrams = batch.data.len().div_ceil(batch.size.max(1)) as u64;
        // An advertised address is a router's, not ours to send from: then the kernel chooses.
        let src_ip = Some(from.ip()).filter(|ip| self.settings.advertise.is_empty() && !ip.is_unspecified());
        // From loopback to elsewhere and from what is not ours the kernel says EINVAL, and quinn-udp then gives up batching.
        let is_gone = |ip| self.gone.iter().any(|gone| gone.ip() == ip);
        if src_ip.is_some_and(|ip| is_gone(ip) || ip.is_loopback() && !self.is_on_this_machine(to.ip())) {
            counters.packets_dropped.add(datagrams);
            return true;
        }
        let destination = match to.ip() {
            IpAddr::V4(ip) if self.is_ipv6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        let transmit = quinn_udp::Transmit {
            destination,
            ecn: None,
            contents: &batch.data,
            segment_size: (datagrams > 1).then_some(batch.size),
            src_ip,
        };
        // Not through the runtime at first: it would have to see the socket writable before.
        match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
            Ok(()) => {
                counters.packets_sent.add(datagrams);
                counters.bytes_sent.add(batch.data.len() as u64);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Tells the runtime, so that `writable` waits.
                let _ =
                    self.socket.try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                false
            }
            // A network that is gone: NACK and keyframes mend it when it is back.
            Err(error) => {
                counters.packets_dropped.add(datagrams);
                trace!(%error, "datagrams not sent");
                true
            }
        }
    }

    fn is_on_this_machine(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.own.iter().any(|own| own.ip() == ip)
    }
}

/// Where received datagrams are put; one for the life of the socket.
pub struct ReadBuffer {
    data: [Vec<u8>; READS],
    metas: [RecvMeta; READS],
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self { data: std::array::from_fn(|_| vec![0; LARGEST_READ]), metas: [RecvMeta::default(); READS] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::access_unit::Bitrate;
    use crate::core::transmit::Transport;

    fn settings(advertise: Vec<SocketAddr>) -> MediaSettings {
        let tcp = Some(TcpSettings { bitrate: Bitrate::from_kbps(2000) });
        MediaSettings { udp_port: 0, tcp, interfaces: vec![], advertise, loopback: true }
    }

    #[tokio::test]
    async fn what_arrives_is_said_to_come_to_the_candidate_it_was_sent_to() {
        let (mut socket, _listener) = MediaSocket::bind(settings(vec![])).unwrap();
        let viewer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        viewer.send_to(b"hello", (Ipv4Addr::LOCALHOST, socket.port())).await.unwrap();
        let mut got = Vec::new();
        let mut buffer = ReadBuffer::default();
        socket.receive(&mut buffer, |from, to, data| got.push((from, to, data.to_vec()))).await.unwrap();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.port());
        assert_eq!(got, [(viewer.local_addr().unwrap(), to, b"hello".to_vec())]);
        assert!(socket.candidates().contains(&Candidate::host(to)));
    }

    #[tokio::test]
    async fn an_advertised_address_takes_the_place_of_the_interfaces() {
        let (mut socket, _listener) = MediaSocket::bind(settings(vec!["203.0.113.5:0".parse().unwrap()])).unwrap();
        let public = SocketAddr::from(([203, 0, 113, 5], socket.port()));
        assert_eq!(socket.candidates(), [Candidate::host(public), Candidate::tcp_host(public)]);
        assert_eq!(socket.candidate_for(Some(Ipv4Addr::LOCALHOST.into())), public);
    }
    #[tokio::test]
    async fn where_the_port_is_taken_for_tcp_nobody_is_told_to_use_it() {
        // Another test may have a port for UDP whose TCP half is free.
        let (taken, (mut socket, listener)) = (0..100)
            .find_map(|_| {
                let taken = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
                let udp_port = taken.local_addr().unwrap().port();
                Some((taken, MediaSocket::bind(MediaSettings { udp_port, ..settings(vec![]) }).ok()?))
            })
            .unwrap();
        assert!(listener.is_none());
        assert!(socket.candidates().iter().all(|candidate| candidate.transport == Transport::Udp));
        drop((socket, taken));
        let (mut socket, listener) = MediaSocket::bind(MediaSettings { tcp: None, ..settings(vec![]) }).unwrap();
        assert!(listener.is_none());
        assert!(socket.candidates().iter().all(|candidate| candidate.transport == Transport::Udp));
    }
}
