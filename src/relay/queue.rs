//! What waits for one connection to a server. All relayed viewers share that, and so does what we ask of the server: a request that
//! waited behind pictures, or was dropped with them, would cost everybody the allocation.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::core::access_unit::Bitrate;

/// Requests for as many permissions and channels as there can be.
const REQUESTS: usize = 256;
/// Room beyond a viewer's share for checks, without which it would count as gone (RFC 7675).
const ROOM_FOR_CHECKS: usize = 4 << 10;
/// Viewers whose shares may be taken at one time.
const SHARES: usize = 4;

/// The engine's end, which never waits. Dropping it ends the connection.
pub(super) struct Outlet(Arc<Queue>);

/// The connection's end.
pub(super) struct Waiting(Arc<Queue>);

struct Queue {
    lanes: Mutex<Lanes>,
    /// Rung when there is something to write, or never will be again.
    bell: Notify,
    share: usize,
}

#[derive(Default)]
struct Lanes {
    /// Taken first.
    requests: VecDeque<Bytes>,
    packets: VecDeque<(SocketAddr, Bytes)>,
    packet_bytes: usize,
    /// Of those, for whom.
    by_peer: HashMap<SocketAddr, usize>,
    /// Nobody puts anything in any more.
    is_dropped: bool,
    /// Nobody takes anything out any more.
    has_ended: bool,
}

/// What may wait for one viewer, in bytes: half a second of the fastest stream, and a keyframe in any case. What comes on top is dropped.
pub(super) fn share(fastest: Bitrate) -> usize {
    const KEYFRAME: usize = 128 << 10;
    usize::try_from(fastest.bits_per_second() / 8 / 2).map_or(KEYFRAME, |half| half.max(KEYFRAME))
}

pub(super) fn queue(share: usize) -> (Outlet, Waiting) {
    let queue = Arc::new(Queue { lanes: Mutex::default(), bell: Notify::new(), share });
    (Outlet(Arc::clone(&queue)), Waiting(queue))
}

impl Outlet {
    /// For the server itself. Whether there was room.
    pub(super) fn request(&self, message: Bytes) -> bool {
        let mut lanes = self.0.lock();
        if lanes.has_ended || lanes.requests.len() == REQUESTS {
            return false;
        }
        lanes.requests.push_back(message);
        drop(lanes);
        self.0.bell.notify_one();
        true
    }

    /// For a peer, in its envelope. Whether there was room.
    pub(super) fn send(&self, peer: SocketAddr, packet: Bytes, is_check: bool) -> bool {
        let share = self.0.share + if is_check { ROOM_FOR_CHECKS } else { 0 };
        let mut lanes = self.0.lock();
        let own = lanes.by_peer.get(&peer).copied().unwrap_or(0) + packet.len();
        let all = lanes.packet_bytes + packet.len();
        if lanes.has_ended || own > share || all > SHARES * share {
            return false;
        }
        lanes.by_peer.insert(peer, own);
        lanes.packet_bytes = all;
        lanes.packets.push_back((peer, packet));
        drop(lanes);
        self.0.bell.notify_one();
        true
    }
}

impl Drop for Outlet {
    /// What was asked last, to be let go, is still sent; pictures are of no use without an allocation.
    fn drop(&mut self) {
        let mut lanes = self.0.lock();
        lanes.is_dropped = true;
        lanes.packets.clear();
        drop(lanes);
        self.0.bell.notify_one();
    }
}

impl Waiting {
    /// What comes next, up to so many bytes, but one message in any case; nothing when there never will be any.
    pub(super) async fn next(&self, most: usize) -> Vec<Bytes> {
        loop {
            {
                let mut lanes = self.0.lock();
                let next = lanes.take(most);
                if !next.is_empty() || lanes.is_dropped {
                    return next;
                }
            }
            self.0.bell.notified().await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        *self.0.lock() = Lanes { has_ended: true, ..Lanes::default() };
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    fn take(&mut self, most: usize) -> Vec<Bytes> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(len) = self.next_len()
            && (taken.is_empty() || bytes + len <= most)
        {
            bytes += len;
            taken.extend(self.take_one());
        }
        taken
    }

    fn next_len(&self) -> Option<usize> {
        self.requests.front().or(self.packets.front().map(|(_, packet)| packet)).map(Bytes::len)
    }

    fn take_one(&mut self) -> Option<Bytes> {
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        let (peer, packet) = self.packets.pop_front()?;
        self.packet_bytes -= packet.len();
        if let Some(own) = self.by_peer.get_mut(&peer) {
            *own -= packet.len();
            if *own == 0 {
                self.by_peer.remove(&peer);
            }
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: usize = 128 << 10;

    fn viewer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], port))
    }

    fn picture() -> Bytes {
        Bytes::from_static(&[0x40; 1200])
    }

    /// Until nothing is taken any more.
    fn fill(outlet: &Outlet, viewer: SocketAddr) -> usize {
        (0..).take_while(|_| outlet.send(viewer, picture(), false)).count()
    }

    #[tokio::test]
    async fn requests_come_before_pictures_however_many_wait() {
        let (outlet, waiting) = queue(SHARE);
        let queued = fill(&outlet, viewer(1));
        assert!(outlet.request(Bytes::from_static(b"refresh")));
        let next = waiting.next(3000).await;
        assert_eq!((next[0].as_ref(), next.len()), (&b"refresh"[..], 3));
        let mut got = 2;
        while got < queued {
            got += waiting.next(0).await.len();
        }
        assert!(waiting.0.lock().by_peer.is_empty(), "who waits for nothing is forgotten");
    }

    #[test]
    fn one_viewer_has_its_share_and_a_check_fits_where_no_picture_does() {
        let (outlet, _waiting) = queue(SHARE);
        let queued = fill(&outlet, viewer(1));
        assert_eq!(queued, SHARE / 1200);
        assert!(outlet.send(viewer(1), Bytes::from_static(&[0; 100]), true));
        assert_eq!(fill(&outlet, viewer(2)), queued, "others have theirs");
        let all: usize = (3..100).map(|port| fill(&outlet, viewer(port))).sum();
        assert!((2 * queued + all) * 1200 <= SHARES * SHARE, "{all}");
        assert!(outlet.send(viewer(1), Bytes::from_static(&[0; 100]), true));
    }

    #[tokio::test]
    async fn when_the_engine_lets_go_requests_are_sent_and_nothing_else() {
        let (outlet, waiting) = queue(SHARE);
        fill(&outlet, viewer(1));
        outlet.request(Bytes::from_static(b"let go"));
        drop(outlet);
        assert_eq!(waiting.next(9000).await, [Bytes::from_static(b"let go")]);
        assert!(waiting.next(9000).await.is_empty());
    }

    #[test]
    fn a_connection_that_ended_takes_nothing() {
        let (outlet, waiting) = queue(SHARE);
        drop(waiting);
        assert!(!outlet.request(picture()) && !outlet.send(viewer(1), picture(), true));
    }

    #[test]
    fn half_a_second_of_the_stream_may_wait_for_a_viewer_and_a_keyframe_in_any_case() {
        assert_eq!(share(Bitrate::from_kbps(8000)), 500_000);
        assert_eq!(share(Bitrate::from_kbps(100)), 131_072);
    }
}
