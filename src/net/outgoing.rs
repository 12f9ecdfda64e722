//! Datagrams on their way out: those of one picture to one viewer in one call, those to a viewer on TCP into its connection.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use super::socket::MediaSocket;
use super::tcp::Outlet;
use crate::core::counters::ViewerCounters;
use crate::core::transmit::{Transmit, Transport};

/// The kernel takes no more in one call.
const LARGEST_BATCH: usize = 65_000;
/// What may wait for the network: half a second of it at 50 Mbit/s. Older pictures are of no use.
const LARGEST_BACKLOG: usize = 3 << 20;

/// Collects datagrams of one size to one viewer and sends them in one call (UDP_SEGMENT, udp(7)).
pub struct Outgoing {
    batch: Batch,
    /// What the kernel had no room for, oldest first.
    backlog: VecDeque<Batch>,
    backlog_bytes: usize,
    /// The open connections of viewers on TCP, by the other end's address.
    connections: HashMap<SocketAddr, Outlet>,
    counters: Arc<ViewerCounters>,
}

#[derive(Default)]
pub(super) struct Batch {
    pub(super) to: Option<SocketAddr>,
    pub(super) from: Option<SocketAddr>,
    /// Of all datagrams but the last, which may be shorter.
    pub(super) size: usize,
    /// A shorter one came: nothing can follow it.
    is_closed: bool,
    pub(super) data: Vec<u8>,
}

impl Outgoing {
    pub fn new(counters: Arc<ViewerCounters>) -> Self {
        Self {
            batch: Batch::default(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            connections: HashMap::new(),
            counters,
        }
    }

    /// A viewer's TCP connection stands. One from the same address before it is closed.
    pub fn open(&mut self, to: SocketAddr, outlet: Outlet) {
        self.connections.insert(to, outlet);
    }

    /// Closes the connection, if there is one, after what waits for it.
    pub fn close(&mut self, to: SocketAddr) {
        self.connections.remove(&to);
    }

    /// A connection ended. Whether there is none from that address any more: another may stand already.
    pub fn forget_closed(&mut self, to: SocketAddr) -> bool {
        let is_gone = self.connections.get(&to).is_some_and(Outlet::has_ended);
        if is_gone {
            self.connections.remove(&to);
        }
        is_gone
    }

    pub fn send(&mut self, transmit: &Transmit, socket: &MediaSocket) {
        match transmit.transport {
            Transport::Udp => self.send_by_udp(transmit, socket),
            Transport::Tcp => self.send_by_tcp(transmit),
        }
    }

    /// What the connection has no room for is gone: a viewer that takes nothing must not hold up others.
    fn send_by_tcp(&self, transmit: &Transmit) {
        let bytes = transmit.data.len() as u64;
        if self.connections.get(&transmit.to).is_some_and(|outlet| outlet.send(&transmit.data)) {
            self.counters.packets_sent.add(1);
            self.counters.bytes_sent.add(bytes);
        } else {
            self.counters.packets_dropped.add(1);
            self.counters.tcp.bytes_dropped.add(bytes);
        }
    }

    fn send_by_udp(&mut self, transmit: &Transmit, socket: &MediaSocket) {
        let batch = &self.batch;
        let fits = batch.to == Some(transmit.to)
            && batch.from == Some(transmit.from)
            && !batch.is_closed
            && transmit.data.len() <= batch.size
            && batch.data.len() + transmit.data.len() <= LARGEST_BATCH
            && batch.data.len() / batch.size.max(1) < socket.most_in_one_call();
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
    use std::net::Ipv4Addr;

    use tokio::net::UdpSocket;

    use super::*;
    use crate::net::MediaSettings;

    fn socket() -> MediaSocket {
        let settings = MediaSettings { udp_port: 0, tcp: None, interfaces: vec![], advertise: vec![], loopback: true };
        MediaSocket::bind(settings).unwrap().0
    }

    #[tokio::test]
    async fn datagrams_of_many_sizes_arrive_one_by_one_and_in_order() {
        let socket = socket();
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
        let socket = socket();
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
}
