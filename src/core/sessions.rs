//! All viewers of a device: who is admitted, who is told what, who must go, and what the cameras owe them.
//!
//! Events go in through the `handle_…` functions, what is to be done comes out of [`Sessions::poll_output`] in order.
//! Whoever carries the outputs out reports back: an `OpenPeer` or `RestartPeer` is answered by [`Sessions::handle_answer`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access_unit::Bitrate;
use super::camera::Demand;
use super::counters::ViewerCounters;
use super::session::{Event, State};
use super::signal::{
    Address, CameraId, ClientId, CloseReason, Correlation, Notice, RejectReason, Reply, Request, Response, Signal,
};

/// A session's number, never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

#[derive(Clone, Debug)]
pub struct SessionsSettings {
    pub cameras: Vec<ViewedCamera>,
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
    pub bitrate: Bitrate,
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
    Respond(Response),
    Demand {
        camera: CameraId,
        demand: Demand,
    },
}

#[derive(Debug)]
struct Session {
    address: Address,
    camera: CameraId,
    state: State,
    candidates: usize,
    /// The request that is answered next.
    pending: Correlation,
    /// Its offer was good; until then it holds its place, but nothing was done for it.
    is_answered: bool,
}

#[derive(Debug)]
struct Camera {
    settings: ViewedCamera,
    demand: Demand,
    viewers: usize,
    keyframe_asked_at: Option<Instant>,
    /// A keyframe that was wanted too soon after the last is asked for at this time.
    keyframe_due_at: Option<Instant>,
    /// Why it delivers nothing, while it does not.
    lost: Option<String>,
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
        let cameras = settings.cameras.iter().map(|camera| (camera.id.clone(), Camera::new(camera.clone()))).collect();
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
            Signal::Offer { camera, sdp } => self.open(&from, &id, camera, sdp, now),
            Signal::Restart { sdp } => self.restart(&from, &id, sdp),
            Signal::Candidate { line } => self.add_candidate(&from, &id, line),
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
            self.viewer_came(&camera, now);
        }
        match answer {
            Ok(sdp) => self.respond(to.clone(), id, Reply::Answer { sdp }),
            Err(reason) => self.respond(to.clone(), id, Reply::Rejected(reason)),
        }
        if is_first && let Some(reason) = self.cameras.get(&camera).and_then(|camera| camera.lost.clone()) {
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
                if let Some(known) = self.sessions.get_mut(&session) {
                    known.state = known.state.on(Event::Connected, now);
                    self.connecting.remove(&session);
                }
            }
            PeerEvent::Closed => self.close(session, CloseReason::ViewerLeft),
            PeerEvent::Lost => self.close(session, CloseReason::Lost),
            PeerEvent::KeyframeWanted => {
                if let Some(camera) = self.sessions.get(&session).map(|known| known.camera.clone()) {
                    self.want_keyframe(&camera, now);
                }
            }
        }
    }

    /// A viewer has to wait for a keyframe; ask for one, merged with what others asked.
    pub fn want_keyframe(&mut self, camera: &CameraId, now: Instant) {
        if let Some(known) = self.cameras.get_mut(camera)
            && known.want_keyframe(now, self.settings.keyframe_gap)
        {
            self.outputs.push_back(Output::Demand { camera: camera.clone(), demand: known.demand });
        }
    }

    /// The camera failed; its viewers stay and are told.
    pub fn handle_camera_lost(&mut self, camera: &CameraId, reason: &str) {
        if let Some(known) = self.cameras.get_mut(camera)
            && known.lost.replace(reason.to_owned()).is_none()
        {
            self.notify(camera, &Notice::CameraLost { reason: reason.to_owned() });
        }
    }

    /// The camera delivers.
    pub fn handle_camera_back(&mut self, camera: &CameraId) {
        if let Some(known) = self.cameras.get_mut(camera)
            && known.lost.take().is_some()
        {
            self.notify(camera, &Notice::CameraBack);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.connecting.values().any(|&give_up_at| now >= give_up_at) {
            let late = |session: &Session| matches!(session.state.on(Event::Timeout, now), State::Closed(_));
            self.close_all(CloseReason::ConnectTimeout, late);
        }
        for (id, camera) in &mut self.cameras {
            if camera.keyframe_due_at.is_some_and(|due| now >= due) && camera.want_keyframe(now, Duration::ZERO) {
                self.outputs.push_back(Output::Demand { camera: id.clone(), demand: camera.demand });
            }
        }
    }

    /// Says bye to everybody; new offers are refused from here on.
    pub fn shut_down(&mut self) {
        self.stopping = true;
        self.close_all(CloseReason::Shutdown, |_| true);
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.connecting.values().copied().chain(self.cameras.values().filter_map(|camera| camera.keyframe_due_at)).min()
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
        now: Instant,
    ) -> Result<(), RejectReason> {
        if self.stopping {
            return Err(RejectReason::ShuttingDown);
        }
        let Some(limit) = self.cameras.get(&camera).map(|camera| camera.settings.max_viewers) else {
            return Err(RejectReason::NoSuchCamera(camera));
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
            self.count_closed(CloseReason::Replaced);
            self.outputs.push_back(Output::ClosePeer { session: old });
            self.forget(old);
        }
        self.last_id += 1;
        let session = SessionId(self.last_id);
        let give_up_at = now + self.settings.negotiation_timeout;
        let known = Session {
            address: from.clone(),
            camera: camera.clone(),
            state: State::Connecting { give_up_at },
            candidates: 0,
            pending: id.clone(),
            is_answered: false,
        };
        self.sessions.insert(session, known);
        self.by_address.insert(from.clone(), session);
        self.connecting.insert(session, give_up_at);
        if let Some(known) = self.cameras.get_mut(&camera) {
            known.viewers += 1;
        }
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
        self.count_closed(reason);
        self.outputs.push_back(Output::ClosePeer { session });
        self.forget(session);
        self.respond(to, None, Reply::Bye(reason));
    }

    fn forget(&mut self, session: SessionId) {
        let Some(known) = self.sessions.remove(&session) else { return };
        self.by_address.remove(&known.address);
        self.connecting.remove(&session);
        if let Some(camera) = self.cameras.get_mut(&known.camera) {
            camera.viewers -= 1;
            if camera.viewers == 0 {
                camera.keyframe_due_at = None;
                camera.lost = None;
            }
            if camera.viewers == 0 && std::mem::take(&mut camera.demand.running) {
                self.outputs.push_back(Output::Demand { camera: known.camera, demand: camera.demand });
            }
        }
    }

    fn viewer_came(&mut self, camera: &CameraId, now: Instant) {
        let Some(known) = self.cameras.get_mut(camera) else { return };
        let starts = !std::mem::replace(&mut known.demand.running, true);
        // Asked for now, it is there when the connection is.
        let asked = known.want_keyframe(now, self.settings.keyframe_gap);
        if starts || asked {
            self.outputs.push_back(Output::Demand { camera: camera.clone(), demand: known.demand });
        }
    }

    fn notify(&mut self, camera: &CameraId, notice: &Notice) {
        let to: Vec<_> = self
            .sessions
            .values()
            .filter(|s| s.camera == *camera && s.is_answered)
            .map(|s| s.address.clone())
            .collect();
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

impl Camera {
    fn new(settings: ViewedCamera) -> Self {
        let demand = Demand { running: false, bitrate: settings.bitrate, keyframe: 0 };
        Self { settings, demand, viewers: 0, keyframe_asked_at: None, keyframe_due_at: None, lost: None }
    }

    /// Raises the demand's keyframe count, or puts it off when the last was less than `gap` ago. True: it was raised.
    fn want_keyframe(&mut self, now: Instant, gap: Duration) -> bool {
        let allowed_at = self.keyframe_asked_at.map_or(now, |asked| asked + gap);
        if now < allowed_at {
            self.keyframe_due_at = Some(allowed_at);
            return false;
        }
        self.keyframe_asked_at = Some(now);
        self.keyframe_due_at = None;
        self.demand.keyframe += 1;
        true
    }
}

#[cfg(test)]
#[path = "sessions_test.rs"]
mod tests;
