//! The event loop around [`Publisher`]: socket, timers, channels. It moves bytes and reads the clock; it decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::core::access_unit::AccessUnit;
use crate::core::camera::{CameraState, CameraStatus, Demand, LowState};
use crate::core::candidate::Candidate;
use crate::core::counters::{CameraCounters, ViewerCounters};
use crate::core::demand::StillId;
use crate::core::signal::{CameraId, ClientId, LinkId, RejectReason, Reply, Response, Signal};
use crate::core::transmit::{Transmit, Transport};
use crate::core::trigger::Event;
use crate::hub::{Delivery, Hub};
use crate::net::tcp::{Arrival, What};
use crate::net::{MediaSocket, Outgoing, ReadBuffer};
use crate::publisher::{Effect, Publisher};
use crate::relay::{Newsroom, Relay, Unwrapped};
use crate::signaling::{Inbound, Outbox};
use crate::telemetry::Pulse;

/// How long the loop rests when no timer is due.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// A socket that fails so often in a row will not work again in this process.
const MOST_FAILURES: u32 = 100;
/// How often it is noted how viewers fare.
const NOTED_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked, while somebody watches, whether this device's addresses are what they were.
const LOOKED_EVERY: Duration = Duration::from_secs(2);
/// What is left of a session's last words gets this long to leave the socket.
const FAREWELL: Duration = Duration::from_millis(200);

pub struct Engine {
    pub publisher: Publisher,
    pub socket: MediaSocket,
    /// What comes by TCP.
    pub connections: mpsc::Receiver<Arrival>,
    pub hub: Arc<Hub>,
    pub inbox: mpsc::Receiver<Inbound>,
    pub cameras: BTreeMap<CameraId, CameraLine>,
    /// What happens to the cameras, for whoever listens.
    pub events: broadcast::Sender<Event>,
    /// The cameras whose privacy switch is off.
    pub switched_off: watch::Sender<BTreeSet<CameraId>>,
    /// The servers that the camera itself uses, and what happens to the names and connections of these.
    pub relay: Relay,
    pub newsroom: Newsroom,
    pub counters: Arc<ViewerCounters>,
    /// The watchdog's question, answered by the loop itself.
    pub pulse: Pulse,
}

/// What ties the engine to one camera's task.
pub struct CameraLine {
    pub demand: watch::Sender<Demand>,
    pub status: watch::Receiver<CameraStatus>,
    pub counters: Arc<CameraCounters>,
}

/// What the loop keeps beside the publisher, so that both can be borrowed at once.
struct Rim {
    socket: MediaSocket,
    ways: Ways,
    /// The media socket's own candidates, when it was last asked for them.
    hosts: Vec<Candidate>,
    outboxes: HashMap<ClientId, Outbox>,
    cameras: BTreeMap<CameraId, CameraLine>,
    events: broadcast::Sender<Event>,
    switched_off: watch::Sender<BTreeSet<CameraId>>,
    /// Those who wait for a still. The publisher limits their number, and answers each once.
    stills: HashMap<StillId, StillReply>,
    last_still: u64,
    counters: Arc<ViewerCounters>,
    /// When it is noted next how viewers fare.
    note_at: Instant,
    /// When it is looked next at this device's addresses; `None`: nobody watches.
    look_at: Option<Instant>,
}

/// What takes datagrams away: the media port, through the relay's envelope where they leave from a relayed address.
struct Ways {
    outgoing: Outgoing,
    relay: Relay,
}

impl Ways {
    fn send(&mut self, transmit: Transmit, socket: &MediaSocket) {
        if let Some(transmit) = self.relay.route(transmit, now()) {
            self.outgoing.send(&transmit, socket);
        }
    }

    /// A datagram that came by UDP or through the relay, unless it was for the relay itself.
    fn deliver(&mut self, unwrapped: Option<Unwrapped<'_>>, publisher: &mut Publisher, socket: &MediaSocket) {
        if let Some(Unwrapped { from, to, data }) = unwrapped {
            publisher.handle_datagram(from, to, Transport::Udp, data, now(), &mut |out| self.send(out, socket));
        }
    }

    /// What the relay itself has to say to its servers.
    fn send_for_relay(&mut self, socket: &MediaSocket) {
        while let Some(transmit) = self.relay.poll_transmit() {
            self.outgoing.send(&transmit, socket);
        }
    }
}

type StillReply = oneshot::Sender<Result<AccessUnit, RejectReason>>;

impl Engine {
    /// Runs until `stopping`, then says bye to all.
    pub async fn run(self, stopping: CancellationToken) -> io::Result<()> {
        let Self { mut publisher, mut socket, mut connections, hub, .. } = self;
        let Self { mut inbox, cameras, events, switched_off, relay, mut newsroom, counters, pulse, .. } = self;
        let mut statuses: StreamMap<_, _> =
            cameras.iter().map(|(id, line)| (id.clone(), WatchStream::from_changes(line.status.clone()))).collect();
        let outgoing = Outgoing::new(counters.clone());
        let mut rim = Rim {
            hosts: socket.candidates(),
            socket,
            ways: Ways { outgoing, relay },
            outboxes: HashMap::new(),
            cameras,
            events,
            switched_off,
            stills: HashMap::new(),
            last_still: 0,
            counters,
            note_at: now(),
            look_at: None,
        };
        let mut buffer = ReadBuffer::default();
        let mut failures = 0;
        loop {
            let timeouts = [publisher.poll_timeout(), rim.ways.relay.poll_timeout(), rim.look_at];
            let wake_at = timeouts.into_iter().flatten().min().unwrap_or_else(|| now() + LONGEST_REST);
            // Not biased: whatever floods one arm, the others get their turn.
            tokio::select! {
                () = stopping.cancelled() => break,
                () = pulse.answer() => {}
                () = rim.socket.writable(), if rim.ways.outgoing.has_backlog() => rim.ways.outgoing.drain(&rim.socket),
                () = hub.changed() => rim.handle_units(&mut publisher, &hub),
                received = rim.socket.receive(&mut buffer, |from, to, data| {
                    let unwrapped = rim.ways.relay.handle_datagram(from, to, data, now());
                    rim.ways.deliver(unwrapped, &mut publisher, &rim.socket);
                }) => {
                    failures = if received.is_ok() { 0 } else { failures + 1 };
                    if let Err(error) = received {
                        warn!(%error, "the media socket failed");
                        if failures > MOST_FAILURES {
                            return Err(error);
                        }
                    }
                }
                Some(news) = newsroom.next() => {
                    let unwrapped = rim.ways.relay.handle_news(&news, now());
                    rim.ways.deliver(unwrapped, &mut publisher, &rim.socket);
                }
                Some(arrival) = connections.recv() => rim.handle_arrival(&mut publisher, arrival),
                Some(inbound) = inbox.recv() => rim.handle_inbound(&mut publisher, inbound),
                Some((camera, status)) = statuses.next() => rim.handle_status(&mut publisher, &camera, &status),
                () = sleep_until(wake_at.into()) => {
                    rim.ways.relay.handle_timeout(now());
                    let send = &mut |out| rim.ways.send(out, &rim.socket);
                    publisher.handle_timeout(now(), send);
                }
            }
            rim.look(&mut publisher);
            rim.carry_out(&mut publisher);
        }
        let send = &mut |out| rim.ways.send(out, &rim.socket);
        publisher.shut_down(now(), send);
        rim.ways.relay.shut_down(now());
        rim.carry_out(&mut publisher);
        // The links still have to take the byes out of their boxes, and the kernel what waits for it.
        let drain = async {
            while rim.ways.outgoing.has_backlog() {
                rim.socket.writable().await;
                rim.ways.outgoing.drain(&rim.socket);
            }
        };
        tokio::join!(timeout(FAREWELL, drain), sleep(FAREWELL)).0.ok();
        Ok(())
    }
}

impl Rim {
    fn handle_units(&mut self, publisher: &mut Publisher, hub: &Hub) {
        for (camera, rendition, Delivery { unit, encoded_at }) in hub.take() {
            let send = &mut |out| self.ways.send(out, &self.socket);
            publisher.handle_unit(&camera, rendition, &unit, now(), send);
            self.ways.outgoing.flush(&self.socket);
            self.counters.send_delay.observe(now() - encoded_at);
        }
    }

    fn handle_arrival(&mut self, publisher: &mut Publisher, Arrival { from, to, what }: Arrival) {
        match what {
            What::Opened { first, outlet } if publisher.knows_by_tcp(from, &first) => {
                self.ways.outgoing.open(from, outlet);
            }
            // Without its outlet the connection is closed.
            What::Opened { .. } => self.counters.tcp.strangers.add(1),
            What::Datagram(data) if publisher.knows_by_tcp(from, &data) => {
                let to = self.socket.candidate_for(Some(to.ip()));
                let send = &mut |out| self.ways.send(out, &self.socket);
                publisher.handle_datagram(from, to, Transport::Tcp, &data, now(), send);
            }
            What::Datagram(_) => self.ways.outgoing.close(from),
            What::Closed if self.ways.outgoing.forget_closed(from) => publisher.handle_closed(from),
            What::Closed => {}
        }
    }

    /// Where viewers can reach us now.
    fn candidates(&mut self) -> Vec<Candidate> {
        let hosts = self.socket.candidates();
        if hosts != self.hosts {
            debug!(?hosts, "this device's addresses changed");
            self.hosts.clone_from(&hosts);
            self.ways.relay.handle_addresses_changed(now());
        }
        let relayed = self.ways.relay.candidates(&hosts);
        [hosts, relayed].concat()
    }

    /// Looks at this device's addresses, if it is time to.
    fn look(&mut self, publisher: &mut Publisher) {
        if self.look_at.is_none_or(|at| now() < at) {
            return;
        }
        self.look_at = Some(now() + LOOKED_EVERY);
        let candidates = self.candidates();
        let send = &mut |out| self.ways.send(out, &self.socket);
        publisher.handle_candidates(candidates, now(), send);
    }

    fn handle_inbound(&mut self, publisher: &mut Publisher, inbound: Inbound) {
        if let Inbound::Request { request, .. } = &inbound
            && matches!(request.signal, Signal::Offer { .. } | Signal::Restart { .. })
        {
            publisher.set_candidates(self.candidates());
        }
        let send = &mut |out| self.ways.send(out, &self.socket);
        match inbound {
            Inbound::Request { request, outbox } => {
                // Those whose client is gone are swept out when a new one comes.
                self.outboxes.retain(|_, outbox| !outbox.is_closed());
                self.outboxes.insert(owner(&request.from.client), outbox);
                publisher.handle_request(request, now(), send);
            }
            Inbound::Left { client } => {
                self.outboxes.remove(&client);
                publisher.handle_left(&client, now(), send);
            }
            // Who does not wait for the answer any more does not get it.
            Inbound::Trigger { trigger, reply } => {
                let line = self.cameras.get(&trigger.camera);
                let outcome = publisher.handle_trigger(trigger, now(), send);
                if let (Some(line), Ok(())) = (line, &outcome) {
                    line.counters.triggers.add(1);
                }
                let _ = reply.send(outcome);
            }
            Inbound::Still { camera, reply } => {
                self.last_still += 1;
                let still = StillId(self.last_still);
                self.stills.insert(still, reply);
                publisher.handle_still(camera, still, now(), send);
            }
            Inbound::Figures { camera, reply } => {
                let _ = reply.send(publisher.figures(&camera, now()));
            }
            Inbound::Switch { camera, on, id, reply } => {
                let _ = reply.send(publisher.handle_switch(&camera, on, id, now(), send));
            }
        }
    }

    fn handle_status(&mut self, publisher: &mut Publisher, camera: &CameraId, status: &CameraStatus) {
        let send = &mut |out| self.ways.send(out, &self.socket);
        match &status.state {
            CameraState::BackingOff { error, .. } => publisher.handle_camera_lost(camera, error, now(), send),
            CameraState::Running => publisher.handle_camera_back(camera, now(), send),
            CameraState::Idle | CameraState::Opening => publisher.handle_camera_closed(camera),
        }
        let is_low_possible = !matches!(status.low, LowState::Unavailable { .. });
        publisher.handle_low(camera, is_low_possible, now(), send);
    }

    /// Delivers what the publisher decided, until it wants nothing more.
    fn carry_out(&mut self, publisher: &mut Publisher) {
        while let Some(effect) = publisher.poll_effect() {
            match effect {
                Effect::Respond(response) => self.respond(publisher, response),
                Effect::Demand { camera, demand } => {
                    if let Some(line) = self.cameras.get(&camera) {
                        line.demand.send_replace(demand);
                        line.counters.bitrate_kbps.set(demand.bitrate.kbps().into());
                    }
                }
                Effect::Still { camera, still, outcome } => {
                    if let (Some(line), Ok(_)) = (self.cameras.get(&camera), &outcome) {
                        line.counters.stills.add(1);
                    }
                    if let Some(reply) = self.stills.remove(&still) {
                        let _ = reply.send(outcome);
                    }
                }
                Effect::Event(event) => {
                    debug!(camera = %event.camera, what = event.happening.slug(), trigger = event.trigger.as_deref(), "event");
                    // Whether anybody listens is their own affair.
                    let _ = self.events.send(event);
                }
                Effect::Switched { camera, on } => {
                    if let Some(line) = self.cameras.get(&camera) {
                        line.counters.switched_off.set((!on).into());
                    }
                    self.switched_off.send_modify(|off| {
                        if on {
                            off.remove(&camera);
                        } else {
                            off.insert(camera);
                        }
                    });
                }
            }
        }
        self.ways.send_for_relay(&self.socket);
        self.ways.outgoing.flush(&self.socket);
        let is_due = now() >= self.note_at;
        if is_due {
            self.note_at = now() + NOTED_EVERY;
        }
        let mut is_watched = false;
        for (camera, line) in &self.cameras {
            let viewers = publisher.viewers(camera) as u64;
            is_watched |= viewers > 0;
            // When nobody watches any more the loop may rest for long, so the last to leave is noted at once.
            if viewers == 0 && line.counters.viewers.get() > 0 || viewers > 0 && is_due {
                line.counters.note(&publisher.figures(camera, now()));
            }
            line.counters.viewers.set(viewers);
        }
        self.look_at = is_watched.then(|| self.look_at.unwrap_or_else(|| now() + LOOKED_EVERY));
    }

    fn respond(&mut self, publisher: &mut Publisher, response: Response) {
        let client = response.to.client.clone();
        let owner = owner(&client);
        let Some(outbox) = self.outboxes.get(&owner) else { return };
        match outbox.try_send(response) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(response)) => {
                debug!(link = ?client.link, reply = name(&response.reply), "nobody there to take it");
                self.outboxes.remove(&owner);
                let send = &mut |out| self.ways.send(out, &self.socket);
                publisher.handle_left(&client, now(), send);
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                warn!(link = ?client.link, "a client does not take its messages; its sessions are closed");
                if owner == client {
                    self.outboxes.remove(&owner);
                }
                let send = &mut |out| self.ways.send(out, &self.socket);
                publisher.handle_full_outbox(&client, now(), send);
            }
        }
    }
}

/// Whose outbox a client has. All clients behind the broker share their link's, and any number of them may come and go.
fn owner(client: &ClientId) -> ClientId {
    match client.link {
        LinkId::WebSocket | LinkId::Whep => client.clone(),
        LinkId::Mqtt => ClientId { link: LinkId::Mqtt, name: "".into() },
    }
}

fn name(reply: &Reply) -> &'static str {
    match reply {
        Reply::Answer { .. } => "answer",
        Reply::Rejected(_) => "rejected",
        Reply::Notice(_) => "notice",
        Reply::Stats(_) => "stats",
        Reply::Bye(_) => "bye",
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time enters")]
fn now() -> Instant {
    Instant::now()
}
