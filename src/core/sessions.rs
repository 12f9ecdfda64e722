//! All viewers of a device: who is admitted, who is told what, who must go, and what the cameras owe them.
//!
//! Events go in through the `handle_…` functions, what is to be done comes out of [`Sessions::poll_output`] in order.
//! Whoever carries the outputs out reports back: an `OpenPeer` or `RestartPeer` is answered by [`Sessions::handle_answer`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access_unit::AccessUnit;
use super::camera::Rendition;
use super::counters::ViewerCounters;
use super::demand::{Camera, StillId, Told};
use super::figures::{Figures, Quality};
use super::renditions::{Network, RenditionsSettings, Wanted};
use super::session::{Event, State};
use super::signal::{
    Address, CameraId, ClientId, CloseReason, Correlation, LinkId, Notice, RejectReason, Reply, Request, Response,
    Signal,
};
use super::trigger::Trigger;

/// A session's number, never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    pub fn number(self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

#[derive(Clone, Debug)]
pub struct SessionsSettings {
    pub cameras: Vec<ViewedCamera>,
    /// Those whose privacy switch is off at the start.
    pub switched_off: BTreeSet<CameraId>,
    /// From offer to connection.
    pub negotiation_timeout: Duration,
    /// Sessions that may be between offer and connection at one time.
    pub max_negotiations: usize,
    /// ICE candidates a viewer may send in one session.
    pub max_candidates: usize,
    /// The least time between two keyframes asked of one encoder.
    pub keyframe_gap: Duration,
}

#[derive(Clone, Debug)]
pub struct ViewedCamera {
    pub id: CameraId,
    pub max_viewers: usize,
    pub renditions: RenditionsSettings,
}

/// What a peer reports about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    Connected,
    /// The viewer closed the connection (DTLS close_notify).
    Closed,
    /// Consent to send ran out (RFC 7675).
    Lost,
    /// PLI or FIR: the viewer cannot decode what it has.
    KeyframeWanted,
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Answered by `handle_answer` or `handle_refused` before anything else happens.
    OpenPeer {
        session: SessionId,
        camera: CameraId,
        sdp: String,
    },
    RestartPeer {
        session: SessionId,
        sdp: String,
    },
    AddCandidate {
        session: SessionId,
        id: Correlation,
        line: String,
    },
    ClosePeer {
        session: SessionId,
    },
    /// Answered by `handle_stats`.
    Stats {
        session: SessionId,
        id: Correlation,
    },
    Respond(Response),
    Camera {
        camera: CameraId,
        told: Told,
    },
}

#[derive(Debug)]
struct Session {
    address: Address,
    camera: CameraId,
    state: State,
    quality: Quality,
    candidates: usize,
    /// The request that is answered next.
    pending: Correlation,
    /// Its offer was good; until then it holds its place, but nothing was done for it.
    is_answered: bool,
}

/// A viewer who has not connected in this time may be let go for one who comes.
const SLOW_NEGOTIATION: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Sessions {
    settings: SessionsSettings,
    cameras: BTreeMap<CameraId, Camera>,
    sessions: BTreeMap<SessionId, Session>,
    by_address: HashMap<Address, SessionId>,
    /// Those between offer and connection, and when each is given up.
    connecting: BTreeMap<SessionId, Instant>,
    outputs: VecDeque<Output>,
    counters: Arc<ViewerCounters>,
    last_id: u64,
    stopping: bool,
}

impl Sessions {
    pub fn new(settings: SessionsSettings, counters: Arc<ViewerCounters>) -> Self {
        let camera = |camera: &ViewedCamera| {
            let is_on = !settings.switched_off.contains(&camera.id);
            (camera.id.clone(), Camera::new(camera.clone(), is_on, settings.keyframe_gap))
        };
        let cameras = settings.cameras.iter().map(camera).collect();
        Self {
            settings,
            cameras,
            sessions: BTreeMap::new(),
            by_address: HashMap::new(),
            connecting: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters,
            last_id: 0,
            stopping: false,
        }
    }

    pub fn handle_signal(&mut self, request: Request, now: Instant) {
        let Request { from, id, signal } = request;
        let outcome = match signal {
            Signal::Offer { camera, sdp, quality } => self.open(&from, &id, camera, sdp, quality, now),
            Signal::Restart { sdp } => self.restart(&from, &id, sdp),
            Signal::Candidate { line } => self.add_candidate(&from, &id, line),
            Signal::Prefer { quality } => self.session_of(&from).map(|session| self.prefer(session, quality, now)),
            Signal::Stats => {
                self.session_of(&from).map(|session| self.outputs.push_back(Output::Stats { session, id: id.clone() }))
            }
            Signal::Bye => {
                if let Some(&session) = self.by_address.get(&from) {
                    self.close(session, CloseReason::ViewerLeft);
                }
                Ok(())
            }
        };
        if let Err(reason) = outcome {
            self.respond(from, id, Reply::Rejected(reason));
        }
    }

    /// A client's link went away, and its sessions with it.
    pub fn handle_left(&mut self, client: &ClientId) {
        self.close_all(CloseReason::ViewerLeft, |session| session.address.client == *client);
    }

    /// A client does not take its messages.
    pub fn handle_full_outbox(&mut self, client: &ClientId) {
        self.close_all(CloseReason::LinkTooSlow, |session| session.address.client == *client);
    }

    /// The outcome of `OpenPeer` or `RestartPeer`. A failed restart leaves the session as it was.
    pub fn handle_answer(&mut self, session: SessionId, answer: Result<String, RejectReason>, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let (to, id, camera) = (known.address.clone(), known.pending.take(), known.camera.clone());
        let is_first = answer.is_ok() && !std::mem::replace(&mut known.is_answered, true);
        if is_first {
            self.counters.sessions_opened.add(1);
            self.change(&camera, |camera| camera.watch(now));
        }
        let sdp = match answer {
            Ok(sdp) => sdp,
            Err(reason) => return self.respond(to, id, Reply::Rejected(reason)),
        };
        self.respond(to.clone(), id, Reply::Answer { sdp });
        // Who restarts may have missed it with its old network.
        if let Some(reason) = self.cameras.get(&camera).and_then(Camera::lost) {
            let reason = reason.to_owned();
            self.respond(to, None, Reply::Notice(Notice::CameraLost { reason }));
        }
    }

    /// The offer of this session could not be answered: it ends without a word but the rejection.
    pub fn handle_refused(&mut self, session: SessionId, reason: RejectReason) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let (to, id) = (known.address.clone(), known.pending.take());
        self.respond(to, id, Reply::Rejected(reason));
        self.forget(session);
    }

    /// A trickled candidate was of no use; the session goes on.
    pub fn handle_bad_candidate(&mut self, session: SessionId, id: Correlation, reason: RejectReason) {
        if let Some(known) = self.sessions.get(&session) {
            let to = known.address.clone();
            self.respond(to, id, Reply::Rejected(reason));
        }
    }

    pub fn handle_peer(&mut self, session: SessionId, event: PeerEvent, now: Instant) {
        match event {
            PeerEvent::Connected => {
                self.connecting.remove(&session);
                let Some(known) = self.sessions.get_mut(&session) else { return };
                let (before, quality) = (known.state, known.quality);
                known.state = before.on(Event::Connected, now);
                if before != State::Live {
                    let camera = known.camera.clone();
                    self.change(&camera, |camera| camera.viewer_joined(session, quality, now));
                }
            }
            PeerEvent::Closed => self.close(session, CloseReason::ViewerLeft),
            PeerEvent::Lost => self.close(session, CloseReason::Lost),
            PeerEvent::KeyframeWanted => {
                if let Some(camera) = self.sessions.get(&session).map(|known| known.camera.clone()) {
                    self.change(&camera, |camera| camera.want_keyframe(camera.rendition(session), now));
                }
            }
        }
    }

    /// A viewer has to wait for a keyframe; ask for one, merged with what others asked.
    pub fn want_keyframe(&mut self, camera: &CameraId, rendition: Rendition, now: Instant) {
        self.change(camera, |camera| camera.want_keyframe(rendition, now));
    }

    /// The outcome of `Stats`.
    pub fn handle_stats(&mut self, session: SessionId, id: Correlation, figures: Figures) {
        if let Some(known) = self.sessions.get(&session) {
            let to = known.address.clone();
            self.respond(to, id, Reply::Stats(figures));
        }
    }

    /// What a viewer asked for last.
    pub fn quality(&self, session: SessionId) -> Quality {
        self.sessions.get(&session).map(|known| known.quality).unwrap_or_default()
    }

    /// The way in that a viewer uses.
    pub fn link(&self, session: SessionId) -> Option<LinkId> {
        self.sessions.get(&session).map(|known| known.address.client.link)
    }

    /// What is heard of a viewer's network.
    pub fn handle_network(&mut self, session: SessionId, network: Network, now: Instant) {
        if let Some(camera) = self.sessions.get(&session).map(|known| known.camera.clone()) {
            self.change(&camera, |camera| camera.hear(session, network, now));
        }
    }

    /// What a viewer is to be sent, and what its network is to be tried for.
    pub fn wanted(&self, session: SessionId) -> Option<Wanted> {
        let camera = self.cameras.get(&self.sessions.get(&session)?.camera)?;
        Some(camera.wanted(session))
    }

    /// Whether the camera can have a low rendition.
    pub fn handle_low(&mut self, camera: &CameraId, is_possible: bool, now: Instant) {
        self.change(camera, |camera| camera.set_low_possible(is_possible, now));
    }

    /// # Errors
    /// There is no such camera, it is switched off, or all is shutting down.
    pub fn handle_trigger(&mut self, trigger: Trigger, now: Instant) -> Result<(), RejectReason> {
        let Trigger { camera, id, action } = trigger;
        self.check_running()?;
        let outcome = self.change(&camera, |camera| camera.trigger(action, id, now));
        outcome.unwrap_or(Err(RejectReason::NoSuchCamera(camera)))
    }

    /// The camera's next keyframe is wanted. Answered by exactly one [`Told::Still`], now or within seconds.
    pub fn handle_still(&mut self, camera: CameraId, still: StillId, now: Instant) {
        let asked = self.check_running().and_then(|()| {
            self.change(&camera, |camera| camera.ask_still(still, now))
                .ok_or_else(|| RejectReason::NoSuchCamera(camera.clone()))
        });
        if let Err(reason) = asked {
            self.outputs.push_back(Output::Camera { camera, told: Told::Still { still, outcome: Err(reason) } });
        }
    }

    /// The privacy switch. Off: nobody sees anything any more, nor can ask to.
    ///
    /// # Errors
    /// There is no such camera, or all is shutting down.
    pub fn handle_switch(
        &mut self,
        camera: &CameraId,
        on: bool,
        id: Correlation,
        now: Instant,
    ) -> Result<(), RejectReason> {
        self.check_running()?;
        let switched = self.change(camera, |camera| camera.switch(on, id, now));
        switched.ok_or_else(|| RejectReason::NoSuchCamera(camera.clone()))?;
        if !on {
            self.close_all(CloseReason::Disabled, |session| session.camera == *camera);
        }
        Ok(())
    }

    /// A camera gave a picture. False: it may not be shown to anybody.
    pub fn handle_unit(&mut self, camera: &CameraId, rendition: Rendition, unit: &AccessUnit, now: Instant) -> bool {
        self.change(camera, |camera| camera.handle_unit(rendition, unit, now)).unwrap_or(false)
    }

    /// The camera failed; its viewers stay and are told.
    pub fn handle_camera_lost(&mut self, camera: &CameraId, reason: &str) {
        if self.change(camera, |camera| camera.handle_lost(reason)) == Some(true) {
            self.notify(&Notice::CameraLost { reason: reason.to_owned() }, |of| of == camera);
        }
    }

    /// The camera delivers.
    pub fn handle_camera_back(&mut self, camera: &CameraId, now: Instant) {
        if self.change(camera, |camera| camera.handle_back(now)) == Some(true) {
            self.notify(&Notice::CameraBack, |of| of == camera);
        }
    }

    /// The camera is closed, or only about to be opened.
    pub fn handle_camera_closed(&mut self, camera: &CameraId) {
        self.change(camera, Camera::handle_closed);
    }

    /// This device's network changed, and with it the way to this viewer, who is to try another.
    pub fn handle_stranded(&mut self, session: SessionId) {
        if let Some(known) = self.sessions.get(&session) {
            let to = known.address.clone();
            self.respond(to, None, Reply::Notice(Notice::AddressChanged));
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.connecting.values().any(|&give_up_at| now >= give_up_at) {
            let late = |session: &Session| matches!(session.state.on(Event::Timeout, now), State::Closed(_));
            self.close_all(CloseReason::ConnectTimeout, late);
        }
        self.change_all(|camera| camera.handle_timeout(now));
    }

    /// Says bye to everybody; new offers are refused from here on.
    pub fn shut_down(&mut self) {
        self.stopping = true;
        self.change_all(Camera::shut_down);
        self.close_all(CloseReason::Shutdown, |_| true);
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.connecting.values().copied().chain(self.cameras.values().filter_map(Camera::poll_timeout)).min()
    }

    /// Sessions that hold a place with this camera.
    pub fn viewers(&self, camera: &CameraId) -> usize {
        self.cameras.get(camera).map_or(0, |camera| camera.viewers)
    }

    fn open(
        &mut self,
        from: &Address,
        id: &Correlation,
        camera: CameraId,
        sdp: String,
        quality: Quality,
        now: Instant,
    ) -> Result<(), RejectReason> {
        self.check_running()?;
        let limit = match self.cameras.get(&camera) {
            None => return Err(RejectReason::NoSuchCamera(camera)),
            Some(known) if !known.is_on() => return Err(RejectReason::Disabled),
            Some(known) => known.settings.max_viewers,
        };
        // One who begins anew takes the place of its own old session, if it can have one.
        let old = self.by_address.get(from).copied();
        let replaced = old.and_then(|old| self.sessions.get(&old));
        let frees_place = replaced.is_some_and(|old| old.camera == camera);
        if self.viewers(&camera) - usize::from(frees_place) >= limit {
            return Err(RejectReason::Full { limit, retry_after: Duration::from_secs(10) });
        }
        let frees_turn = old.is_some_and(|old| self.connecting.contains_key(&old));
        if self.connecting.len() - usize::from(frees_turn) >= self.settings.max_negotiations {
            self.end_slowest_negotiation(now)?;
        }
        if let Some(old) = old {
            // No bye: to the same address it would be taken for the new session's.
            self.end(old, CloseReason::Replaced);
        }
        self.last_id += 1;
        let session = SessionId(self.last_id);
        let give_up_at = now + self.settings.negotiation_timeout;
        let known = Session {
            address: from.clone(),
            camera: camera.clone(),
            state: State::Connecting { give_up_at },
            quality,
            candidates: 0,
            pending: id.clone(),
            is_answered: false,
        };
        self.sessions.insert(session, known);
        self.by_address.insert(from.clone(), session);
        self.connecting.insert(session, give_up_at);
        self.change(&camera, |camera| camera.viewers += 1);
        self.outputs.push_back(Output::OpenPeer { session, camera, sdp });
        Ok(())
    }

    /// Makes room for a newcomer: offers that nobody follows up must not keep others out.
    fn end_slowest_negotiation(&mut self, now: Instant) -> Result<(), RejectReason> {
        let slowest = self.connecting.iter().min_by_key(|&(_, &give_up_at)| give_up_at);
        let started = slowest.map(|(&session, &give_up_at)| (session, give_up_at - self.settings.negotiation_timeout));
        match started {
            Some((session, started)) if now.saturating_duration_since(started) >= SLOW_NEGOTIATION => {
                self.close(session, CloseReason::ConnectTimeout);
                Ok(())
            }
            _ => Err(RejectReason::Busy { retry_after: Duration::from_secs(1) }),
        }
    }

    fn restart(&mut self, from: &Address, id: &Correlation, sdp: String) -> Result<(), RejectReason> {
        let session = self.session_of(from)?;
        if let Some(known) = self.sessions.get_mut(&session) {
            known.pending.clone_from(id);
            known.candidates = 0;
        }
        self.outputs.push_back(Output::RestartPeer { session, sdp });
        Ok(())
    }

    fn add_candidate(&mut self, from: &Address, id: &Correlation, line: String) -> Result<(), RejectReason> {
        let session = self.session_of(from)?;
        if line.is_empty() {
            return Ok(()); // the end of the viewer's candidates; ICE needs no such word to go on
        }
        let limit = self.settings.max_candidates;
        if let Some(known) = self.sessions.get_mut(&session) {
            if known.candidates >= limit {
                return Err(RejectReason::TooManyCandidates(limit));
            }
            known.candidates += 1;
        }
        self.outputs.push_back(Output::AddCandidate { session, id: id.clone(), line });
        Ok(())
    }

    /// Before it is connected the camera does not know of it.
    fn prefer(&mut self, session: SessionId, quality: Quality, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        known.quality = quality;
        if known.state == State::Live {
            let camera = known.camera.clone();
            self.change(&camera, |camera| camera.prefer(session, quality, now));
        }
    }

    fn session_of(&self, from: &Address) -> Result<SessionId, RejectReason> {
        self.by_address.get(from).copied().ok_or(RejectReason::NoSuchSession)
    }

    fn close_all(&mut self, reason: CloseReason, which: impl Fn(&Session) -> bool) {
        let ended: Vec<_> = self.sessions.iter().filter(|(_, session)| which(session)).map(|(&id, _)| id).collect();
        for session in ended {
            self.close(session, reason);
        }
    }

    fn close(&mut self, session: SessionId, reason: CloseReason) {
        let Some(known) = self.sessions.get(&session) else { return };
        let to = known.address.clone();
        self.end(session, reason);
        self.respond(to, None, Reply::Bye(reason));
    }

    fn end(&mut self, session: SessionId, reason: CloseReason) {
        self.count_closed(reason);
        self.outputs.push_back(Output::ClosePeer { session });
        if let Some(Session { camera, state: State::Live, .. }) = self.forget(session) {
            self.change(&camera, |camera| camera.viewer_left(session, reason));
        }
    }

    fn forget(&mut self, session: SessionId) -> Option<Session> {
        let known = self.sessions.remove(&session)?;
        self.by_address.remove(&known.address);
        self.connecting.remove(&session);
        self.change(&known.camera, |camera| {
            camera.viewers -= 1;
            if known.is_answered {
                camera.unwatch();
            }
        });
        Some(known)
    }

    fn check_running(&self) -> Result<(), RejectReason> {
        if self.stopping { Err(RejectReason::ShuttingDown) } else { Ok(()) }
    }

    /// Every change to a camera goes through here, so that nothing it tells stays behind. `None`: there is no such camera.
    fn change<T>(&mut self, camera: &CameraId, change: impl FnOnce(&mut Camera) -> T) -> Option<T> {
        let known = self.cameras.get_mut(camera)?;
        let outcome = change(known);
        self.outputs.extend(known.take_told().map(|told| Output::Camera { camera: camera.clone(), told }));
        Some(outcome)
    }

    fn change_all(&mut self, change: impl Fn(&mut Camera)) {
        for (id, camera) in &mut self.cameras {
            change(camera);
            self.outputs.extend(camera.take_told().map(|told| Output::Camera { camera: id.clone(), told }));
        }
    }

    fn notify(&mut self, notice: &Notice, concerns: impl Fn(&CameraId) -> bool) {
        let concerned = self.sessions.values().filter(|session| session.is_answered && concerns(&session.camera));
        let to: Vec<_> = concerned.map(|session| session.address.clone()).collect();
        for address in to {
            self.respond(address, None, Reply::Notice(notice.clone()));
        }
    }

    fn respond(&mut self, to: Address, id: Correlation, reply: Reply) {
        self.outputs.push_back(Output::Respond(Response { to, id, reply }));
    }

    fn count_closed(&self, reason: CloseReason) {
        if let Some(at) = CloseReason::ALL.iter().position(|&other| other == reason) {
            self.counters.sessions_closed[at].add(1);
        }
    }
}

#[cfg(test)]
#[path = "sessions_test.rs"]
mod tests;
