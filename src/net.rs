//! The media socket: one UDP port for all viewers, datagrams of one picture sent in one call, and the addresses that
//! viewers are told.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::core::candidate::Candidate;
use crate::core::counters::ViewerCounters;
use crate::core::transmit::Transmit;

/// Room for a keyframe to 50 viewers in the kernel, should the network card lag.
const SEND_BUFFER: usize = 4 << 20;
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel takes no more in one call.
const LARGEST_BATCH: usize = 65_000;
/// What may wait for the network: half a second of it at 50 Mbit/s. Older pictures are of no use.
const LARGEST_BACKLOG: usize = 3 << 20;
/// One read takes as many; viewers send little.
const READS: usize = 4;
const LARGEST_READ: usize = 65_536;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaSettings {
    /// 0: any free port.
    pub udp_port: u16,
    /// Names of the interfaces whose addresses viewers are told; empty: all.
    pub interfaces: Vec<String>,
    /// Told in place of the interfaces' addresses, where a router forwards a port; port 0: the one that was bound.
    pub advertise: Vec<SocketAddr>,
    /// Whether viewers on this machine are told 127.0.0.1 too.
    pub loopback: bool,
}

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
    /// This machine's addresses when it was last asked for candidates.
    own: Vec<SocketAddr>,
    port: u16,
    is_ipv6: bool,
}

impl MediaSocket {
    /// Binds both IP versions on one socket, or IPv4 alone where there is no other.
    pub fn bind(mut settings: MediaSettings) -> Result<Self, SocketError> {
        let bind = |address: IpAddr| {
            let socket = std::net::UdpSocket::bind(SocketAddr::new(address, settings.udp_port))?;
            socket.set_nonblocking(true)?;
            let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
            // The kernel may grant less (net.core.wmem_max); then a burst more is dropped and counted.
            let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), SEND_BUFFER);
            let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), RECEIVE_BUFFER);
            let port = socket.local_addr()?.port();
            io::Result::Ok((UdpSocket::from_std(socket)?, state, port, address.is_ipv6()))
        };
        let (socket, state, port, is_ipv6) = bind(Ipv6Addr::UNSPECIFIED.into())
            .or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
            .map_err(|source| SocketError { port: settings.udp_port, source })?;
        for advertised in settings.advertise.iter_mut().filter(|advertised| advertised.port() == 0) {
            advertised.set_port(port);
        }
        Ok(Self { socket, state, settings, own: Vec::new(), port, is_ipv6 })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where viewers can reach this socket, best first. Asked for each viewer, since interfaces come and go.
    pub fn candidates(&mut self) -> Vec<Candidate> {
        self.own = self.interface_addresses();
        let advertised = &self.settings.advertise;
        let told = if advertised.is_empty() { &self.own } else { advertised };
        told.iter().map(|&address| Candidate::host(address)).collect()
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
    fn candidate_for(&self, destination: Option<IpAddr>) -> SocketAddr {
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
    fn send(&self, batch: &Batch, counters: &ViewerCounters) -> bool {
        let (Some(to), Some(from)) = (batch.to, batch.from) else { return true };
        let datagrams = batch.data.len().div_ceil(batch.size.max(1)) as u64;
        // An advertised address is a router's, not ours to send from: then the kernel chooses.
        let src_ip = self.settings.advertise.is_empty().then_some(from.ip());
        // From loopback to elsewhere the kernel says EINVAL, and quinn-udp then gives up batching for good.
        if src_ip.is_some_and(|ip| ip.is_loopback()) && !self.is_on_this_machine(to.ip()) {
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
                tracing::trace!(%error, "datagrams not sent");
                true
            }
        }
    }

    fn is_on_this_machine(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.own.iter().any(|own| own.ip() == ip)
    }
}

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
fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
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

/// Collects datagrams of one size to one viewer and sends them in one call (UDP_SEGMENT, udp(7)).
pub struct Outgoing {
    batch: Batch,
    /// What the kernel had no room for, oldest first.
    backlog: VecDeque<Batch>,
    backlog_bytes: usize,
    counters: Arc<ViewerCounters>,
}

#[derive(Default)]
struct Batch {
    to: Option<SocketAddr>,
    from: Option<SocketAddr>,
    /// Of all datagrams but the last, which may be shorter.
    size: usize,
    /// A shorter one came: nothing can follow it.
    is_closed: bool,
    data: Vec<u8>,
}

impl Outgoing {
    pub fn new(counters: Arc<ViewerCounters>) -> Self {
        Self { batch: Batch::default(), backlog: VecDeque::new(), backlog_bytes: 0, counters }
    }

    pub fn send(&mut self, transmit: &Transmit, socket: &MediaSocket) {
        let batch = &self.batch;
        let fits = batch.to == Some(transmit.to)
            && batch.from == Some(transmit.from)
            && !batch.is_closed
            && transmit.data.len() <= batch.size
            && batch.data.len() + transmit.data.len() <= LARGEST_BATCH
            && batch.data.len() / batch.size.max(1) < socket.state.max_gso_segments();
        if !fits {
            self.flush(socket);
            self.batch.to = Some(transmit.to);
            self.batch.from = Some(transmit.from);
            self.batch.size = transmit.data.len();
        }
        self.batch.is_closed = transmit.data.len() < self.batch.size;
        self.batch.data.extend_from_slice(&transmit.data);
    }

    pub fn flush(&mut self, socket: &MediaSocket) {
        if self.batch.data.is_empty() {
            return;
        }
        if self.has_backlog() || !socket.send(&self.batch, &self.counters) {
            self.put_by();
        }
        self.batch.data.clear();
        self.batch.to = None;
        self.batch.is_closed = false;
    }

    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends what waits, as far as the kernel takes it.
    pub fn drain(&mut self, socket: &MediaSocket) {
        while let Some(batch) = self.backlog.front() {
            if !socket.send(batch, &self.counters) {
                return;
            }
            self.backlog_bytes -= batch.data.len();
            self.backlog.pop_front();
        }
    }

    /// Keeps the batch for when there is room: a keyframe for many viewers is more than the kernel's buffer on a slow
    /// network. Beyond `LARGEST_BACKLOG` it is dropped and counted.
    fn put_by(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if self.backlog_bytes + batch.data.len() > LARGEST_BACKLOG {
            self.counters.packets_dropped.add(batch.data.len().div_ceil(batch.size.max(1)) as u64);
            return;
        }
        self.backlog_bytes += batch.data.len();
        self.backlog.push_back(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::transmit::Transport;

    fn settings(advertise: Vec<SocketAddr>) -> MediaSettings {
        MediaSettings { udp_port: 0, interfaces: vec![], advertise, loopback: true }
    }

    #[tokio::test]
    async fn datagrams_of_many_sizes_arrive_one_by_one_and_in_order() {
        let socket = MediaSocket::bind(settings(vec![])).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let counters = Arc::<ViewerCounters>::default();
        let mut outgoing = Outgoing::new(counters.clone());
        let sizes = [1200, 1200, 1200, 700, 1200, 1200, 100, 100, 1300, 5];
        for size in sizes {
            let transmit = Transmit {
                from: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.port()),
                to: receiver.local_addr().unwrap(),
                transport: Transport::Udp,
                data: vec![size as u8; size].as_slice().into(),
            };
            outgoing.send(&transmit, &socket);
        }
        outgoing.flush(&socket);
        let mut buffer = [0; 2000];
        for size in sizes {
            let (got, from) = receiver.recv_from(&mut buffer).await.unwrap();
            assert_eq!((got, from.port()), (size, socket.port()));
        }
        assert_eq!(counters.packets_sent.get(), sizes.len() as u64);
    }

    #[tokio::test]
    async fn what_the_kernel_has_no_room_for_waits_and_is_bounded() {
        let socket = MediaSocket::bind(settings(vec![])).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let counters = Arc::<ViewerCounters>::default();
        let mut outgoing = Outgoing::new(counters.clone());
        let from = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.port());
        let to = receiver.local_addr().unwrap();
        let batch =
            |bytes: usize| Batch { to: Some(to), from: Some(from), size: 1000, is_closed: false, data: vec![7; bytes] };
        outgoing.batch = batch(LARGEST_BACKLOG - 1000);
        outgoing.put_by();
        outgoing.batch = batch(3000);
        outgoing.put_by();
        assert_eq!(counters.packets_dropped.get(), 3);
        outgoing.backlog.clear();
        outgoing.backlog_bytes = 0;
        outgoing.batch = batch(1000);
        outgoing.put_by();
        let transmit = Transmit { from, to, transport: Transport::Udp, data: [8; 500].as_slice().into() };
        outgoing.send(&transmit, &socket);
        outgoing.flush(&socket);
        outgoing.drain(&socket);
        let mut buffer = [0; 2000];
        for size in [1000, 500] {
            assert_eq!(receiver.recv(&mut buffer).await.unwrap(), size, "in the order they were made");
        }
        assert!(!outgoing.has_backlog());
    }

    #[tokio::test]
    async fn what_arrives_is_said_to_come_to_the_candidate_it_was_sent_to() {
        let mut socket = MediaSocket::bind(settings(vec![])).unwrap();
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
        let mut socket = MediaSocket::bind(settings(vec!["203.0.113.5:0".parse().unwrap()])).unwrap();
        let public = SocketAddr::from(([203, 0, 113, 5], socket.port()));
        assert_eq!(socket.candidates(), [Candidate::host(public)]);
        assert_eq!(socket.candidate_for(Some(Ipv4Addr::LOCALHOST.into())), public);
    }
}
