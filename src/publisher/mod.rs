//! All that is decided about viewers, without I/O: sessions, their peers, and how far each has read.
//!
//! Requests, datagrams, pictures and time go in; datagrams and outputs come out. The engine around it moves bytes.

mod remotes;
mod rings;
mod stun;
mod viewer;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info};

use self::remotes::{Remote, Remotes, Way};
use self::rings::Rings;
use self::stun::stun_username;
use self::viewer::Viewer;
use crate::core::access_unit::{AccessUnit, Bitrate};
use crate::core::camera::{Demand, Rendition};
use crate::core::candidate::Candidate;
use crate::core::congestion::CongestionSettings;
use crate::core::counters::ViewerCounters;
use crate::core::demand::{StillId, Told};
use crate::core::figures::{Figures, Seen};
use crate::core::sessions::{Output, PeerEvent, SessionId, Sessions, SessionsSettings};
use crate::core::signal::{CameraId, ClientId, Correlation, RejectReason, Request, Response};
use crate::core::transmit::{Transmit, Transport};
use crate::core::trigger::{Event, Trigger};
use crate::peer::{Answer, Peer, PeerSettings, Picture};

/// What a viewer sends is below the size of an Ethernet frame; more in one piece is only work for us.
const LARGEST_DATAGRAM: usize = 2048;
/// What is thought of a far network until its viewer tells: no more than a slow home's way to the internet carries. The first
/// keyframe probes for more.
const STARTING_ESTIMATE: Bitrate = Bitrate::from_kbps(1000);
/// Estimates are no lower: the least that shows a picture now and then.
const LEAST_ESTIMATE: Bitrate = Bitrate::from_kbps(50);

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
    rings: BTreeMap<CameraId, Rings>,
    /// Whose a datagram is: by where it comes from, the first one by the ICE user name it is addressed to.
    remotes: Remotes,
    by_ufrag: HashMap<String, SessionId>,
    timeouts: BTreeSet<(Instant, SessionId)>,
    effects: VecDeque<Effect>,
    settings: PublisherSettings,
    counters: Arc<ViewerCounters>,
}

/// Takes datagrams as they are made, so that a picture for many viewers is never held in memory for all of them.
pub type Sender<'a> = &'a mut dyn FnMut(Transmit);

impl Publisher {
    pub fn new(settings: PublisherSettings, counters: Arc<ViewerCounters>) -> Self {
        let rings = settings.sessions.cameras.iter().map(|camera| (camera.id.clone(), Rings::new()));
        Self {
            sessions: Sessions::new(settings.sessions.clone(), counters.clone()),
            viewers: BTreeMap::new(),
            rings: rings.collect(),
            remotes: Remotes::default(),
            by_ufrag: HashMap::new(),
            timeouts: BTreeSet::new(),
            effects: VecDeque::new(),
            settings,
            counters,
        }
    }

    /// Where viewers who come from now on are told to reach us.
    pub fn set_candidates(&mut self, candidates: Vec<Candidate>) {
        self.remotes.set_candidates(&candidates);
        self.settings.peers.candidates = candidates;
    }

    /// Where we can be reached, looked up while somebody watches. Whose way is gone is told so, at every look until it looks for another:
    /// what carries the word may have gone with the same address.
    pub fn handle_candidates(&mut self, candidates: Vec<Candidate>, now: Instant, send: Sender<'_>) {
        for (&session, _) in self.viewers.iter().filter(|(_, viewer)| viewer.peer.is_stranded(&candidates)) {
            debug!(?session, "its way is gone with an address of ours");
            self.sessions.handle_stranded(session);
        }
        self.set_candidates(candidates);
        self.carry_out(now, send);
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

    /// Whether what came by TCP is for one of our viewers, or comes from where one was found: who else connects is closed.
    pub fn knows_by_tcp(&self, from: SocketAddr, data: &[u8]) -> bool {
        let remote = (Way::Tcp, from);
        self.addressee(remote, data).is_some() || self.remotes.session(remote).is_some()
    }

    fn addressee(&self, from: Remote, data: &[u8]) -> Option<SessionId> {
        match stun_username(data).and_then(|name| name.split(':').next()) {
            Some(ufrag) => self.by_ufrag.get(ufrag).copied(),
            None => self.remotes.session(from),
        }
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
        if data.len() > LARGEST_DATAGRAM {
            return;
        }
        let remote = self.remotes.remote(transport, to, from);
        let Some(session) = self.addressee(remote, data) else { return };
        if let Some(viewer) = self.viewers.get_mut(&session) {
            if !viewer.admits(remote) {
                return;
            }
            viewer.peer.handle_datagram(from, to, transport, data, now);
            viewer.hear(now);
        }
        self.serve(session, now, send);
        self.carry_out(now, send);
    }

    /// A viewer's TCP connection is closed.
    pub fn handle_closed(&mut self, from: SocketAddr) {
        let Some(session) = self.remotes.forget_closed(from) else { return };
        if let Some(viewer) = self.viewers.get_mut(&session) {
            viewer.handle_closed(from);
        }
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
        if !self.sessions.handle_unit(camera, rendition, unit, now) {
            return;
        }
        let Some(rings) = self.rings.get_mut(camera) else { return };
        let picture = Picture::cut(unit);
        let bytes = picture.bytes();
        rings.of_mut(rendition).push(unit.captured_at, unit.is_keyframe, picture);
        let rings = &*rings;
        let mut wanted = Rendition::ALL.map(|rendition| (rendition, false));
        for (&session, viewer) in self.viewers.iter_mut().filter(|(_, viewer)| viewer.camera == *camera) {
            viewer.earn(rendition, bytes);
            let progress = viewer.advance(rings, now);
            self.counters.units_skipped.add(progress.skipped);
            for (rendition, is_wanted) in &mut wanted {
                *is_wanted |= progress.wants_keyframe == Some(*rendition);
            }
            if let Some(network) = progress.network {
                self.sessions.handle_network(session, network, now);
            }
            viewer.send(session, &mut self.remotes, send);
            let timeout = viewer.peer.timeout(now);
            note_timeout(&mut self.timeouts, session, viewer, timeout);
        }
        for (rendition, _) in wanted.into_iter().filter(|(_, is_wanted)| *is_wanted) {
            self.sessions.want_keyframe(camera, rendition, now);
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
            let Some(viewer) = self.viewers.get_mut(&session) else { continue };
            viewer.timeout = None;
            if viewer.peer.handle_timeout(now) {
                self.serve(session, now, send);
            } else {
                self.advance(session, now, send);
            }
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
        let quality = self.sessions.quality(session);
        match self.viewers.get(&session) {
            Some(viewer) => Figures { quality, ..viewer.figures(now) },
            None => Figures::unknown(quality),
        }
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
                Output::Camera { camera, told } => self.tell(camera, told, now),
            }
        }
    }

    fn tell(&mut self, camera: CameraId, told: Told, now: Instant) {
        let effect = match told {
            Told::Demand(demand) => Effect::Demand { camera, demand },
            Told::Still { still, outcome } => Effect::Still { camera, still, outcome },
            Told::Event(event) => Effect::Event(event),
            Told::Switched { on } => Effect::Switched { camera, on },
            Told::Move { session, rendition } => {
                if let (Some(viewer), Some(rings)) = (self.viewers.get_mut(&session), self.rings.get(&camera)) {
                    debug!(?session, rendition = rendition.slug(), "moved");
                    viewer.move_to(rendition, rings, now);
                }
                return;
            }
            Told::ForgetPictures => {
                if let Some(rings) = self.rings.get_mut(&camera) {
                    rings.clear();
                }
                return;
            }
        };
        self.effects.push_back(effect);
    }

    fn open(&mut self, session: SessionId, camera: CameraId, sdp: &str, now: Instant) {
        let congestion = self.congestion_settings(&camera);
        match Peer::answer(sdp, &self.settings.peers, congestion, self.counters.clone(), now) {
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
        viewer.send(session, &mut self.remotes, send);
        self.by_ufrag.remove(&viewer.ice_ufrag);
        viewer.forget_addresses(session, &mut self.remotes);
        note_timeout(&mut self.timeouts, session, &mut viewer, None);
        info!(?session, camera = %viewer.camera, "viewer left");
    }

    /// After anything that concerned one peer: its events, what its network carries now, its datagrams, its next timeout.
    fn serve(&mut self, session: SessionId, now: Instant, send: Sender<'_>) {
        let Some(viewer) = self.viewers.get_mut(&session) else { return };
        let Some(rings) = self.rings.get(&viewer.camera) else { return };
        while let Some(event) = viewer.peer.poll_event() {
            if event == PeerEvent::Connected && viewer.join(rings, self.settings.sessions.keyframe_gap, now) {
                self.sessions.want_keyframe(&viewer.camera, viewer.reading(), now);
            }
            if event != PeerEvent::KeyframeWanted || viewer.may_ask_for_keyframe(now) {
                self.sessions.handle_peer(session, event, now);
            }
        }
        if let Some(wanted) = self.sessions.wanted(session) {
            viewer.peer.set_wanted(wanted, now);
        }
        self.advance(session, now, send);
        if let Some(viewer) = self.viewers.get_mut(&session) {
            let timeout = viewer.peer.poll_timeout(now);
            note_timeout(&mut self.timeouts, session, viewer, timeout);
        }
    }

    /// Sends what one viewer's network allows, and has it woken when there is more.
    fn advance(&mut self, session: SessionId, now: Instant, send: Sender<'_>) {
        let Some(viewer) = self.viewers.get_mut(&session) else { return };
        let Some(rings) = self.rings.get(&viewer.camera) else { return };
        let progress = viewer.advance(rings, now);
        self.counters.units_skipped.add(progress.skipped);
        if let Some(rendition) = progress.wants_keyframe {
            self.sessions.want_keyframe(&viewer.camera, rendition, now);
        }
        if let Some(network) = progress.network {
            self.sessions.handle_network(session, network, now);
        }
        viewer.send(session, &mut self.remotes, send);
        let timeout = viewer.peer.timeout(now);
        note_timeout(&mut self.timeouts, session, viewer, timeout);
    }

    fn congestion_settings(&self, camera: &CameraId) -> CongestionSettings {
        let known = self.settings.sessions.cameras.iter().find(|known| known.id == *camera);
        let most = known.map_or(STARTING_ESTIMATE, |known| known.renditions.high.most);
        // Headers and repeats come on top, and room for more is what shows that a viewer may be moved up.
        let most = Bitrate::from_kbps(most.kbps().saturating_mul(2)).max(LEAST_ESTIMATE);
        CongestionSettings { start: STARTING_ESTIMATE.min(most), least: LEAST_ESTIMATE, most }
    }
}

/// Has a viewer woken at this time, and at no other.
fn note_timeout(
    timeouts: &mut BTreeSet<(Instant, SessionId)>,
    session: SessionId,
    viewer: &mut Viewer,
    timeout: Option<Instant>,
) {
    if timeout == viewer.timeout {
        return;
    }
    if let Some(at) = viewer.timeout {
        timeouts.remove(&(at, session));
    }
    if let Some(at) = timeout {
        timeouts.insert((at, session));
    }
    viewer.timeout = timeout;
}
