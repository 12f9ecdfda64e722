//! One viewer: its connection, and how far it has read.
//!
//! ```text
//!   ring (high)  K  p  p  p  p  p ─ ─ ─ ─      the picture under way is sent as its network allows;
//!                         ▲ cursor             only then the next is read
//!   ring (low)                  K  p  p
//!                               ▲ where it goes on, once moved
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Sender;
use super::remotes::{Remote, Remotes, Way};
use super::rings::Rings;
use super::stun::is_stun_success;
use crate::core::camera::Rendition;
use crate::core::figures::Figures;
use crate::core::gop_ring::{Cursor, Next};
use crate::core::pace::{Pace, Rate};
use crate::core::renditions::Network;
use crate::core::sessions::SessionId;
use crate::core::signal::CameraId;
use crate::core::thinning::Thinning;
use crate::peer::{Peer, Picture};

/// Addresses one viewer may send from before the oldest is forgotten: its interfaces, and a few changes of network.
const ADDRESSES: usize = 16;
/// Datagrams of one viewer from addresses we never sent to: a few checks of each of its candidates.
const STRANGERS: u32 = 1000;
/// Keyframes one viewer may ask for, or fall back to; each is paid for by all, in quality.
const KEYFRAME_REQUESTS: Rate = Rate::new(Duration::from_secs(2), 4);
/// Further behind the newest picture than this a viewer does not go on with the next but with a keyframe.
const MOST_BEHIND: Duration = Duration::from_millis(400);
/// A keyframe that takes longer than this is not waited for with the pictures after it.
const MOST_OF_A_KEYFRAME: Duration = Duration::from_secs(1);
/// So long after it was spared pictures a viewer counts as one who gets only some of them.
const THINNED_FOR: Duration = Duration::from_secs(4);

pub(super) struct Viewer {
    pub(super) peer: Peer,
    pub(super) camera: CameraId,
    pub(super) ice_ufrag: String,
    /// When it is to be woken, as the publisher has noted it.
    pub(super) timeout: Option<Instant>,
    reading: Rendition,
    /// Set once connected.
    cursor: Option<Cursor>,
    /// Where it goes on as soon as there is a keyframe.
    moving: Option<(Rendition, Cursor)>,
    thinning: Thinning,
    told_network: Option<Network>,
    units_skipped: u64,
    skipped_at: Option<Instant>,
    /// When the picture under way was begun, if it is a keyframe, and how long the last one took.
    keyframe_begun_at: Option<Instant>,
    keyframe_took: Duration,
    /// It was taken off its place and waits for a keyframe that nobody was asked for yet.
    needs_keyframe: bool,
    keyframe_requests: Option<Pace>,
    /// Where we sent to, oldest first.
    addresses: VecDeque<Remote>,
    /// Datagrams that came from elsewhere.
    strangers: u32,
}

/// What came of reading on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Pictures that it will not get.
    pub(super) skipped: u64,
    /// The rendition of which it waits for a keyframe that should be asked for.
    pub(super) wants_keyframe: Option<Rendition>,
    /// What is heard of its network, where that is news.
    pub(super) network: Option<Network>,
}

impl Viewer {
    pub(super) fn new(peer: Peer, camera: CameraId, ice_ufrag: String) -> Self {
        Self {
            peer,
            camera,
            ice_ufrag,
            timeout: None,
            reading: Rendition::High,
            cursor: None,
            moving: None,
            thinning: Thinning::default(),
            told_network: None,
            units_skipped: 0,
            skipped_at: None,
            keyframe_begun_at: None,
            keyframe_took: Duration::ZERO,
            needs_keyframe: false,
            keyframe_requests: None,
            addresses: VecDeque::new(),
            strangers: 0,
        }
    }

    /// It is connected: for the first time, or again after a change of networks. True: it waits for a keyframe.
    pub(super) fn join(&mut self, rings: &Rings, fresh: Duration, now: Instant) -> bool {
        self.told_network = None;
        let ring = rings.of(self.reading);
        let cursor = self.cursor.insert(ring.join(now, fresh));
        ring.awaits_keyframe(cursor)
    }

    pub(super) fn reading(&self) -> Rendition {
        self.reading
    }

    /// It is to get this rendition, from the next keyframe of that on; until then it gets the one that it has.
    pub(super) fn move_to(&mut self, rendition: Rendition, rings: &Rings, now: Instant) {
        self.moving = (rendition != self.reading).then(|| (rendition, rings.of(rendition).join(now, Duration::ZERO)));
    }

    /// A picture came for those who read this rendition.
    pub(super) fn earn(&mut self, rendition: Rendition, bytes: usize) {
        if rendition == self.reading {
            self.peer.earn(bytes);
        }
    }

    /// Sends what its network allows: of the picture under way, and of those that follow.
    pub(super) fn advance(&mut self, rings: &Rings, now: Instant) -> Progress {
        let mut progress = Progress::default();
        self.peer.flush(now);
        while !self.peer.is_sending()
            && let Some(picture) = self.next_picture(rings, &mut progress, now)
        {
            self.keyframe_begun_at = picture.is_keyframe().then_some(now);
            self.peer.begin(picture, now);
            self.peer.flush(now);
        }
        if progress.skipped > 0 {
            self.units_skipped += progress.skipped;
            self.skipped_at = Some(now);
        }
        progress.network = self.news_of_network(now);
        progress
    }

    fn next_picture(&mut self, rings: &Rings, progress: &mut Progress, now: Instant) -> Option<Picture> {
        self.move_on(rings, progress);
        let ring = rings.of(self.reading);
        let cursor = self.cursor.as_mut()?;
        if let Some(begun_at) = self.keyframe_begun_at.take() {
            self.keyframe_took = now.saturating_duration_since(begun_at).min(MOST_OF_A_KEYFRAME);
        }
        // Behind by a keyframe is nobody's fault; without the pictures after it, it would have been sent for nothing.
        let is_late = ring.behind(cursor) > MOST_BEHIND + self.keyframe_took;
        if is_late {
            progress.skipped += ring.skip_to_keyframe(cursor);
        }
        self.needs_keyframe |= is_late || ring.is_overtaken(cursor);
        let picture = loop {
            match ring.read(cursor) {
                Next::Picture(picture)
                    if self.peer.is_estimated() || self.thinning.takes(picture.is_keyframe(), now) =>
                {
                    break Some(picture);
                }
                Next::Picture(_) => progress.skipped += 1 + ring.skip_to_keyframe(cursor),
                Next::Skipped(count) => progress.skipped += count,
                Next::Empty => break None,
            }
        };
        self.needs_keyframe &= ring.awaits_keyframe(cursor);
        if self.needs_keyframe && pay(&mut self.keyframe_requests, now) {
            self.needs_keyframe = false;
            progress.wants_keyframe = Some(self.reading);
        }
        picture
    }

    /// Goes over to the rendition it was moved to, if that has a keyframe now.
    fn move_on(&mut self, rings: &Rings, progress: &mut Progress) {
        let Some((rendition, cursor)) = &mut self.moving else { return };
        if !rings.of(*rendition).seek_keyframe(cursor) {
            return;
        }
        if let Some(left) = self.cursor.replace(cursor.clone()) {
            progress.skipped += rings.of(self.reading).unread(&left);
        }
        self.reading = *rendition;
        self.moving = None;
    }

    /// A viewer's report on loss, and what its network carries.
    pub(super) fn hear(&mut self, now: Instant) {
        if let Some(lost) = self.peer.take_loss()
            && !self.peer.is_estimated()
        {
            self.thinning.handle_report(lost, now);
        }
    }

    fn news_of_network(&mut self, now: Instant) -> Option<Network> {
        let network = self.peer.network(now)?;
        (self.told_network.replace(network) != Some(network)).then_some(network)
    }

    /// Whether its wish for a keyframe is to be heeded.
    pub(super) fn may_ask_for_keyframe(&mut self, now: Instant) -> bool {
        let is_thinned = !self.peer.is_estimated() && self.thinning.is_thinned(now);
        !is_thinned && !self.peer.has_keyframe_on_the_way(now) && pay(&mut self.keyframe_requests, now)
    }

    /// False: too many of its datagrams came from where we never sent to. Each would be one more candidate in our ICE agent, for good.
    pub(super) fn admits(&mut self, from: Remote) -> bool {
        if !self.addresses.contains(&from) {
            self.strangers += 1;
        }
        self.strangers <= STRANGERS || self.addresses.contains(&from)
    }

    /// Hands on the datagrams that the peer made, and notes whose address is whose.
    pub(super) fn send(&mut self, session: SessionId, remotes: &mut Remotes, send: Sender<'_>) {
        while let Some(transmit) = self.peer.poll_transmit() {
            let remote = remotes.remote(transmit.transport, transmit.from, transmit.to);
            // The stream goes to the newest address, so the search is short.
            if !self.addresses.iter().rev().any(|known| *known == remote) {
                if self.addresses.len() == ADDRESSES
                    && let Some(oldest) = self.addresses.pop_front()
                {
                    remotes.forget(oldest, session);
                }
                self.addresses.push_back(remote);
                remotes.note(remote, session);
            }
            if is_stun_success(&transmit.data) {
                // Only who proved to know our password may take an address over from another viewer (RFC 8445, section 7.3).
                remotes.take_over(remote, session);
            }
            send(transmit);
        }
    }

    /// Its TCP connection from there is closed.
    pub(super) fn handle_closed(&mut self, from: SocketAddr) {
        self.addresses.retain(|known| *known != (Way::Tcp, from));
        self.peer.handle_closed(from);
    }

    pub(super) fn forget_addresses(&self, session: SessionId, remotes: &mut Remotes) {
        for address in &self.addresses {
            remotes.forget(*address, session);
        }
    }

    pub(super) fn figures(&self, now: Instant) -> Figures {
        let was_spared = self.skipped_at.is_some_and(|at| now.saturating_duration_since(at) < THINNED_FOR);
        Figures {
            rendition: self.cursor.as_ref().map(|_| self.reading),
            is_thinned: self.thinning.is_thinned(now) || was_spared,
            units_skipped: self.units_skipped,
            ..self.peer.figures(now)
        }
    }
}

/// Counts one keyframe against a viewer, if it may have it.
fn pay(pace: &mut Option<Pace>, now: Instant) -> bool {
    let pace = pace.get_or_insert_with(|| Pace::new(now));
    let may = pace.wait(KEYFRAME_REQUESTS, now).is_zero();
    if may {
        pace.count(KEYFRAME_REQUESTS, now);
    }
    may
}
