//! A viewer who can be reached in one way only: whatever comes from elsewhere never reaches it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use super::device::Device;
use super::support::{Tells, Viewer};

pub struct RelayedViewer {
    viewer: Viewer,
    socket: UdpSocket,
    /// The candidate of the camera that it can reach.
    reachable: SocketAddr,
    /// Packets that came from elsewhere.
    pub strays: usize,
}

impl RelayedViewer {
    pub async fn watching(device: &Device) -> Self {
        Self::by(device, "relay").await
    }

    /// For comparison, one who can be reached directly only.
    pub async fn watching_directly(device: &Device) -> Self {
        Self::by(device, "host").await
    }

    async fn by(device: &Device, kind: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut viewer = Viewer::new(socket.local_addr().unwrap(), Tells::Arrivals, Instant::now());
        let offer = viewer.offer(false, Instant::now());
        let answer = device.offer(&offer).await;
        let kind = format!(" typ {kind}");
        let line = answer.lines().find(|line| line.contains("127.0.0.1") && line.contains(&kind));
        let words: Vec<_> = line.unwrap_or_else(|| panic!("no candidate{kind} in\n{answer}")).split(' ').collect();
        let reachable = format!("{}:{}", words[4], words[5]).parse().unwrap();
        let is_usable = |line: &&str| !line.starts_with("a=candidate:") || line.contains(&kind);
        let answer: String = answer.lines().filter(is_usable).map(|line| format!("{line}\r\n")).collect();
        viewer.answer(&answer, Instant::now());
        Self { viewer, socket, reachable, strays: 0 }
    }

    /// Watches until as many pictures more could be shown.
    pub async fn sees(&mut self, pictures: usize) {
        let wanted = self.pictures() + pictures;
        let watching = self.watch(|viewer| viewer.received.pictures_of_a_real_camera() >= wanted);
        let outcome = timeout(Duration::from_secs(20), watching).await;
        assert!(outcome.is_ok(), "{} of {wanted} pictures came", self.pictures());
    }

    /// Watches for so long.
    pub async fn watches_for(&mut self, time: Duration) {
        let _ = timeout(time, self.watch(|_| false)).await;
    }

    pub fn pictures(&self) -> usize {
        self.viewer.received.pictures_of_a_real_camera()
    }

    async fn watch(&mut self, is_enough: impl Fn(&Viewer) -> bool) {
        let mut buffer = [0; 2048];
        while !is_enough(&self.viewer) {
            while let Some((to, data)) = self.viewer.poll_transmit() {
                self.socket.send_to(&data, to).await.unwrap();
            }
            let wake_at = self.viewer.poll_timeout(Instant::now()).unwrap_or(Instant::now() + Duration::from_secs(1));
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    let (length, from) = received.unwrap();
                    if from == self.reachable {
                        self.viewer.handle_datagram(from, &buffer[..length], Instant::now());
                    } else {
                        self.strays += 1;
                    }
                }
                () = sleep_until(wake_at.into()) => self.viewer.handle_timeout(Instant::now()),
            }
        }
    }
}
