//! All that is decided about viewers, without I/O: sessions, their peers, and how far each has read.
//!
//! Requests, datagrams, pictures and time go in; datagrams and outputs come out. The engine around it moves bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::core::access_unit::AccessUnit;
use crate::core::camera::{Demand, Rendition};
use crate::core::candidate::Candidate;
use crate::core::counters::ViewerCounters;
use crate::core::demand::{StillId, Told};
use crate::core::figures::{Figures, Seen};
use crate::core::gop_ring::{Cursor, GopRing, Next};
use crate::core::pace::{Pace, Rate};
use crate::core::sessions::{Output, PeerEvent, SessionId, Sessions, SessionsSettings};
use crate::core::signal::{CameraId, ClientId, Correlation, RejectReason, Request, Response};
use crate::core::thinning::Thinning;
use crate::core::transmit::{Transmit, Transport};
use crate::core::trigger::{Event, Trigger};
use crate::peer::{Answer, Peer, PeerSettings, Picture};

/// Pictures kept for those who join or lag: more than the longest time between two keyframes asked for.
const RING_PICTURES: usize = 64;
/// Addresses one viewer may send from before the oldest is forgotten: its interfaces, and a few changes of network.
const ADDRESSES: usize = 16;

/// Datagrams of one viewer from addresses we never sent to: a few checks of each of its candidates.
const STRANGERS: u32 = 1000;

/// Keyframes one viewer may ask for; each is paid for by all, in quality.
const KEYFRAME_REQUESTS: Rate = Rate::new(Duration::from_secs(2), 4);

#[derive(Clone)]
pub struct PublisherSettings {
    pub sessions: SessionsSettings,
    pub peers: PeerSettings,
}

/// What the engine is to carry out.
#[derive(Clone, Debug)]
pub enum Effect {
    Respond(Response),
    Demand {
        camera: CameraId,
        demand: Demand,
    },
    Still {
        camera: CameraId,
        still: StillId,
        outcome: Result<AccessUnit, RejectReason>,
    },
    Event(Event),
    /// The privacy switch, to be kept over a restart.
    Switched {
        camera: CameraId,
        on: bool,
    },
}

pub struct Publisher {
    sessions: Sessions,
    viewers: BTreeMap<SessionId, Viewer>,
    rings: BTreeMap<CameraId, GopRing<Picture>>,
    /// Whose a datagram is: by where it comes from, the first one by the ICE user name it is addressed to.
    by_address: HashMap<Remote, SessionId>,
    by_ufrag: HashMap<String, SessionId>,
    timeouts: BTreeSet<(Instant, SessionId)>,
    effects: VecDeque<Effect>,
    settings: PublisherSettings,
    counters: Arc<ViewerCounters>,
}

/// Where a datagram comes from or goes to. The same address by UDP and by TCP may be two viewers, behind a NAT.
type Remote = (Transport, SocketAddr);

struct Viewer {
    peer: Peer,
    camera: CameraId,
    /// Set once connected.
    cursor: Option<Cursor>,
    thinning: Thinning,
    ice_ufrag: String,
    /// Where we sent to, oldest first.
    addresses: VecDeque<Remote>,
    /// Datagrams that came from elsewhere.
    strangers: u32,
    keyframe_requests: Option<Pace>,
    timeout: Option<Instant>,
}

/// Takes datagrams as they are made, so that a picture for many viewers is never held in memory for all of them.
pub type Sender<'a> = &'a mut dyn FnMut(Transmit);

impl Publisher {
    pub fn new(settings: PublisherSettings, counters: Arc<ViewerCounters>) -> Self {
        let rings = settings.sessions.cameras.iter().map(|camera| (camera.id.clone(), GopRing::new(RING_PICTURES)));
        Self {
            sessions: Sessions::new(settings.sessions.clone(), counters.clone()),
            viewers: BTreeMap::new(),
            rings: rings.collect(),
            by_address: HashMap::new(),
            by_ufrag: HashMap::new(),
            timeouts: BTreeSet::new(),
            effects: VecDeque::new(),
            settings,
            counters,
        }
    }

    /// Where viewers who come from now on are told to reach us.
    pub fn set_candidates(&mut self, candidates: Vec<Candidate>) {
        self.settings.peers.candidates = candidates;
    }

    pub fn handle_request(&mut self, request: Request, now: Instant, send: Sender<'_>) {
        self.sessions.handle_signal(request, now);
        self.carry_out(now, send);
    }

    /// A client's link went away.
    pub fn handle_left(&mut self, client: &ClientId, now: Instant, send: Sender<'_>) {
        self.sessions.handle_left(client);
        self.carry_out(now, send);
    }

    /// A client does not take its messages.
    pub fn handle_full_outbox(&mut self, client: &ClientId, now: Instant, send: Sender<'_>) {
        self.sessions.handle_full_outbox(client);
        self.carry_out(now, send);
    }

    /// # Errors
    /// There is no such camera, it is switched off, or all is shutting down.
    pub fn handle_trigger(&mut self, trigger: Trigger, now: Instant, send: Sender<'_>) -> Result<(), RejectReason> {
        let outcome = self.sessions.handle_trigger(trigger, now);
        self.carry_out(now, send);
        outcome
    }

    /// The camera's next keyframe is wanted. Answered by exactly one [`Effect::Still`], now or within seconds.
    pub fn handle_still(&mut self, camera: CameraId, still: StillId, now: Instant, send: Sender<'_>) {
        self.sessions.handle_still(camera, still, now);
        self.carry_out(now, send);
    }

    /// The privacy switch. When this returns, no picture is sent to a viewer nor given out for a still any more; those given out before
    /// are held back by the links.
    ///
    /// # Errors
    /// There is no such camera, or all is shutting down.
    pub fn handle_switch(
        &mut self,
        camera: &CameraId,
        on: bool,
        id: Correlation,
        now: Instant,
        send: Sender<'_>,
    ) -> Result<(), RejectReason> {
        let outcome = self.sessions.handle_switch(camera, on, id, now);
        self.carry_out(now, send);
        outcome
    }

    /// Whether a datagram is for one of our viewers, or comes from where one was found: who else connects by TCP is closed.
    pub fn knows(&self, from: SocketAddr, transport: Transport, data: &[u8]) -> bool {
        self.addressee(from, transport, data).is_some() || self.by_address.contains_key(&(transport, from))
    }

    fn addressee(&self, from: SocketAddr, transport: Transport, data: &[u8]) -> Option<SessionId> {
        let session = match stun_username(data).and_then(|name| name.split(':').next()) {
            Some(ufrag) => self.by_ufrag.get(ufrag),
            None => self.by_address.get(&(transport, from)),
        };
        session.copied()
    }

    /// A datagram that came `from` a viewer `to` one of our candidates.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        transport: Transport,
        data: &[u8],
        now: Instant,
        send: Sender<'_>,
    ) {
        let Some(session) = self.addressee(from, transport, data) else { return };
        if let Some(viewer) = self.viewers.get_mut(&session) {
            if !viewer.addresses.contains(&(transport, from)) {
                viewer.strangers += 1;
                if viewer.strangers > STRANGERS {
                    return; // each would be one more candidate in our ICE agent, for good
                }
            }
            viewer.peer.handle_datagram(from, to, transport, data, now);
            if let Some(lost) = viewer.peer.take_loss() {
                viewer.thinning.handle_report(lost, now);
            }
        }
        self.serve(session, now, send);
        self.carry_out(now, send);
    }

    /// A new picture of a camera, to everybody who watches it.
    pub fn handle_unit(
        &mut self,
        camera: &CameraId,
        rendition: Rendition,
        unit: &AccessUnit,
        now: Instant,
        send: Sender<'_>,
    ) {
        if !self.sessions.handle_unit(camera, rendition, unit, now) || rendition != Rendition::High {
            return;
        }
        let Some(ring) = self.rings.get_mut(camera) else { return };
        let picture = Picture::cut(unit);
        let bytes = picture.bytes();
        ring.push(unit.captured_at, unit.is_keyframe, picture);
        let (ring, by_address, counters) = (&*ring, &mut self.by_address, &self.counters);
        for (&session, viewer) in self.viewers.iter_mut().filter(|(_, viewer)| viewer.camera == *camera) {
            viewer.peer.earn(bytes);
            if viewer.read(ring, now) == 0 && viewer.cursor.is_some() {
                counters.units_skipped.add(1);
            }
            viewer.send(session, by_address, send);
        }
        self.carry_out(now, send);
    }

    /// The camera failed; its viewers stay.
    pub fn handle_camera_lost(&mut self, camera: &CameraId, reason: &str, now: Instant, send: Sender<'_>) {
        self.sessions.handle_camera_lost(camera, reason);
        self.carry_out(now, send);
    }

    pub fn handle_camera_back(&mut self, camera: &CameraId, now: Instant, send: Sender<'_>) {
        self.sessions.handle_camera_back(camera, now);
        self.carry_out(now, send);
    }

    /// The addresses of this device are others than before.
    pub fn handle_address_changed(&mut self, now: Instant, send: Sender<'_>) {
        self.sessions.handle_address_changed();
        self.carry_out(now, send);
    }

    /// The camera is closed, or only about to be opened.
    pub fn handle_camera_closed(&mut self, camera: &CameraId) {
        self.sessions.handle_camera_closed(camera);
    }

    /// Whether the camera can have a low rendition.
    pub fn handle_low(&mut self, camera: &CameraId, is_possible: bool, now: Instant, send: Sender<'_>) {
        self.sessions.handle_low(camera, is_possible, now);
        self.carry_out(now, send);
    }

    pub fn handle_timeout(&mut self, now: Instant, send: Sender<'_>) {
        while let Some(&(at, session)) = self.timeouts.first() {
            if at > now {
                break;
            }
            self.timeouts.pop_first();
            if let Some(viewer) = self.viewers.get_mut(&session) {
                viewer.timeout = None;
                viewer.peer.handle_timeout(now);
            }
            self.serve(session, now, send);
        }
        self.sessions.handle_timeout(now);
        self.carry_out(now, send);
    }

    /// Says bye to all; nobody is admitted from here on.
    pub fn shut_down(&mut self, now: Instant, send: Sender<'_>) {
        self.sessions.shut_down();
        self.carry_out(now, send);
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timeouts.first().map(|&(at, _)| at).into_iter().chain(self.sessions.poll_timeout()).min()
    }

    /// Sessions that hold a place with this camera.
    pub fn viewers(&self, camera: &CameraId) -> usize {
        self.sessions.viewers(camera)
    }

    /// How those who watch a camera fare.
    pub fn figures(&self, camera: &CameraId, now: Instant) -> Vec<Seen> {
        let watching = self.viewers.iter().filter(|(_, viewer)| viewer.camera == *camera);
        let seen = |&session: &SessionId| {
            let link = self.sessions.link(session)?;
            Some(Seen { number: session.number(), link, figures: self.figures_of(session, now) })
        };
        watching.filter_map(|(session, _)| seen(session)).collect()
    }

    fn figures_of(&self, session: SessionId, now: Instant) -> Figures {
        let unknown = Figures::unknown(self.sessions.quality(session));
        let Some(viewer) = self.viewers.get(&session) else { return unknown };
        let rendition = viewer.cursor.as_ref().map(|_| Rendition::High);
        Figures { rendition, is_thinned: viewer.thinning.is_thinned(now), ..unknown }
    }

    /// Does what the sessions decided, until they want nothing more.
    fn carry_out(&mut self, now: Instant, send: Sender<'_>) {
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::OpenPeer { session, camera, sdp } => {
                    self.open(session, camera, &sdp, now);
                    self.serve(session, now, send);
                }
                Output::RestartPeer { session, sdp } => {
                    self.restart(session, &sdp, now);
                    self.serve(session, now, send);
                }
                Output::AddCandidate { session, id, line } => {
                    self.add_candidate(session, id, &line);
                    self.serve(session, now, send);
                }
                Output::ClosePeer { session } => self.close(session, send),
                Output::Stats { session, id } => {
                    let figures = self.figures_of(session, now);
                    self.sessions.handle_stats(session, id, figures);
                }
                Output::Respond(response) => self.effects.push_back(Effect::Respond(response)),
                Output::Camera { camera, told } => self.tell(camera, told),
            }
        }
    }

    fn tell(&mut self, camera: CameraId, told: Told) {
        let effect = match told {
            Told::Demand(demand) => Effect::Demand { camera, demand },
            Told::Still { still, outcome } => Effect::Still { camera, still, outcome },
            Told::Event(event) => Effect::Event(event),
            Told::Switched { on } => Effect::Switched { camera, on },
            Told::Move { .. } => return, // there is one ring a camera yet
            Told::ForgetPictures => {
                if let Some(ring) = self.rings.get_mut(&camera) {
                    ring.clear();
                }
                return;
            }
        };
        self.effects.push_back(effect);
    }

    fn open(&mut self, session: SessionId, camera: CameraId, sdp: &str, now: Instant) {
        match Peer::answer(sdp, &self.settings.peers, self.counters.clone(), now) {
            Ok((peer, answer)) => {
                self.by_ufrag.insert(answer.ice_ufrag.clone(), session);
                self.viewers.insert(session, Viewer::new(peer, camera.clone(), answer.ice_ufrag));
                self.sessions.handle_answer(session, Ok(answer.sdp), now);
                info!(?session, %camera, "viewer came");
            }
            Err(reason) => {
                info!(%camera, code = reason.slug(), "offer refused");
                debug!(%reason, "refused because");
                self.sessions.handle_refused(session, reason);
            }
        }
    }

    fn restart(&mut self, session: SessionId, sdp: &str, now: Instant) {
        let Some(viewer) = self.viewers.get_mut(&session) else { return };
        let answer = viewer.peer.restart(sdp, &self.settings.peers.candidates, now).map(|Answer { sdp, ice_ufrag }| {
            self.by_ufrag.remove(&viewer.ice_ufrag);
            self.by_ufrag.insert(ice_ufrag.clone(), session);
            viewer.ice_ufrag = ice_ufrag;
            sdp
        });
        self.sessions.handle_answer(session, answer, now);
    }

    fn add_candidate(&mut self, session: SessionId, id: Correlation, line: &str) {
        let Some(viewer) = self.viewers.get_mut(&session) else { return };
        if let Err(reason) = viewer.peer.add_candidate(line) {
            self.sessions.handle_bad_candidate(session, id, reason);
        }
    }

    fn close(&mut self, session: SessionId, send: Sender<'_>) {
        let Some(mut viewer) = self.viewers.remove(&session) else { return };
        viewer.peer.close();
        viewer.send(session, &mut self.by_address, send);
        self.by_ufrag.remove(&viewer.ice_ufrag);
        for address in &viewer.addresses {
            // Another session may have taken the address over since.
            if self.by_address.get(address) == Some(&session) {
                self.by_address.remove(address);
            }
        }
        if let Some(at) = viewer.timeout {
            self.timeouts.remove(&(at, session));
        }
        info!(?session, camera = %viewer.camera, "viewer left");
    }

    /// After anything that concerned one peer: its datagrams, its events, its next timeout.
    fn serve(&mut self, session: SessionId, now: Instant, send: Sender<'_>) {
        let Some(viewer) = self.viewers.get_mut(&session) else { return };
        while let Some(event) = viewer.peer.poll_event() {
            if event == PeerEvent::Connected
                && let Some(ring) = self.rings.get(&viewer.camera)
            {
                let cursor = viewer.cursor.insert(ring.join(now, self.settings.sessions.keyframe_gap));
                if ring.awaits_keyframe(cursor) {
                    self.sessions.want_keyframe(&viewer.camera, Rendition::High, now);
                }
                viewer.read(ring, now);
            }
            if event != PeerEvent::KeyframeWanted || viewer.may_ask_for_keyframe(now) {
                self.sessions.handle_peer(session, event, now);
            }
        }
        viewer.send(session, &mut self.by_address, send);
        let timeout = viewer.peer.poll_timeout(now);
        if timeout != viewer.timeout {
            if let Some(at) = viewer.timeout {
                self.timeouts.remove(&(at, session));
            }
            if let Some(at) = timeout {
                self.timeouts.insert((at, session));
            }
            viewer.timeout = timeout;
        }
    }
}

impl Viewer {
    fn new(peer: Peer, camera: CameraId, ice_ufrag: String) -> Self {
        Self {
            peer,
            camera,
            cursor: None,
            thinning: Thinning::default(),
            ice_ufrag,
            addresses: VecDeque::new(),
            strangers: 0,
            keyframe_requests: None,
            timeout: None,
        }
    }

    fn may_ask_for_keyframe(&mut self, now: Instant) -> bool {
        let pace = self.keyframe_requests.get_or_insert_with(|| Pace::new(now));
        if self.thinning.is_thinned(now) || !pace.wait(KEYFRAME_REQUESTS, now).is_zero() {
            return false;
        }
        pace.count(KEYFRAME_REQUESTS, now);
        true
    }

    /// Hands the peer what it has not had yet; returns how many pictures that were.
    fn read(&mut self, ring: &GopRing<Picture>, now: Instant) -> usize {
        let Some(cursor) = &mut self.cursor else { return 0 };
        let mut written = 0;
        loop {
            match ring.read(cursor) {
                Next::Picture(picture) if self.thinning.takes(picture.is_keyframe(), now) => {
                    self.peer.write(&picture, now);
                    written += 1;
                }
                Next::Picture(_) => {
                    ring.skip_to_keyframe(cursor);
                }
                Next::Skipped(_) => {}
                Next::Empty => return written,
            }
        }
    }

    fn send(&mut self, session: SessionId, by_address: &mut HashMap<Remote, SessionId>, send: Sender<'_>) {
        while let Some(transmit) = self.peer.poll_transmit() {
            let remote = (transmit.transport, transmit.to);
            // The stream goes to the newest address, so the search is short.
            if !self.addresses.iter().rev().any(|known| *known == remote) {
                if self.addresses.len() == ADDRESSES
                    && let Some(oldest) = self.addresses.pop_front()
                    && by_address.get(&oldest) == Some(&session)
                {
                    by_address.remove(&oldest);
                }
                self.addresses.push_back(remote);
                by_address.entry(remote).or_insert(session);
            }
            if is_stun_success(&transmit.data) {
                // Only who proved to know our password may take an address over from another viewer (RFC 8445, section 7.3).
                by_address.insert(remote, session);
            }
            send(transmit);
        }
    }
}

/// Whether this answers a STUN request that our ICE agent found good (RFC 8489, section 5).
fn is_stun_success(data: &[u8]) -> bool {
    const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
    data.starts_with(&BINDING_SUCCESS)
}

/// The USERNAME of a STUN request (RFC 8489, section 14.3): `ours:theirs` in ICE. `None`: not such a datagram.
fn stun_username(data: &[u8]) -> Option<&str> {
    const HEADER: usize = 20;
    const USERNAME: [u8; 2] = [0x00, 0x06];
    const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
    const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
    if data.get(..2)? != BINDING_REQUEST || data.get(4..8)? != MAGIC_COOKIE {
        return None;
    }
    let mut rest = data.get(HEADER..)?;
    loop {
        let (kind, length) = (rest.get(..2)?, usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?])));
        let value = rest.get(4..4 + length)?;
        if kind == USERNAME {
            return std::str::from_utf8(value).ok();
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stun_request_names_whom_it_is_for() {
        let mut request = vec![0, 1, 0, 16, 0x21, 0x12, 0xA4, 0x42];
        request.extend([0; 12]);
        request.extend([0x80, 0x22, 0, 1, b'x', 0, 0, 0]); // SOFTWARE, padded
        request.extend([0, 6, 0, 5]);
        request.extend(*b"me:u\0");
        assert_eq!(stun_username(&request), Some("me:u\0"));
        for cut in 0..request.len() {
            assert_eq!(stun_username(&request[..cut]), None);
        }
    }
}
