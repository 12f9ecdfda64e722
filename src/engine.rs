//! The event loop around [`Publisher`]: socket, timers, channels. It moves bytes and reads the clock; it decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::core::camera::{CameraState, CameraStatus, Demand};
use crate::core::counters::{CameraCounters, ViewerCounters};
use crate::core::signal::{CameraId, ClientId, Reply, Response, Signal};
use crate::hub::{Delivery, Hub};
use crate::net::{MediaSocket, Outgoing, ReadBuffer};
use crate::publisher::{Effect, Publisher};
use crate::signaling::{Inbound, Outbox};
use crate::telemetry::Pulse;

/// How long the loop rests when no timer is due.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// A socket that fails so often in a row will not work again in this process.
const MOST_FAILURES: u32 = 100;
/// What is left of a session's last words gets this long to leave the socket.
const FAREWELL: Duration = Duration::from_millis(200);

pub struct Engine {
    pub publisher: Publisher,
    pub socket: MediaSocket,
    pub hub: Arc<Hub>,
    pub inbox: mpsc::Receiver<Inbound>,
    pub cameras: BTreeMap<CameraId, CameraLine>,
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
    outgoing: Outgoing,
    outboxes: HashMap<ClientId, Outbox>,
    cameras: BTreeMap<CameraId, CameraLine>,
    counters: Arc<ViewerCounters>,
}

impl Engine {
    /// Runs until `stopping`, then says bye to all.
    pub async fn run(self, stopping: CancellationToken) -> io::Result<()> {
        let Self { mut publisher, socket, hub, mut inbox, cameras, counters, pulse } = self;
        let mut statuses: StreamMap<_, _> =
            cameras.iter().map(|(id, line)| (id.clone(), WatchStream::from_changes(line.status.clone()))).collect();
        let outgoing = Outgoing::new(counters.clone());
        let mut rim = Rim { socket, outgoing, outboxes: HashMap::new(), cameras, counters };
        let mut buffer = ReadBuffer::default();
        let mut failures = 0;
        loop {
            let wake_at = publisher.poll_timeout().unwrap_or_else(|| now() + LONGEST_REST);
            // Not biased: whatever floods one arm, the others get their turn.
            tokio::select! {
                () = stopping.cancelled() => break,
                () = pulse.answer() => {}
                () = rim.socket.writable(), if rim.outgoing.has_backlog() => rim.outgoing.drain(&rim.socket),
                () = hub.changed() => rim.handle_units(&mut publisher, &hub),
                received = rim.socket.receive(&mut buffer, |from, to, data| {
                    let send = &mut |out| rim.outgoing.send(&out, &rim.socket);
                    publisher.handle_datagram(from, to, data, now(), send);
                }) => {
                    failures = if received.is_ok() { 0 } else { failures + 1 };
                    if let Err(error) = received {
                        warn!(%error, "the media socket failed");
                        if failures > MOST_FAILURES {
                            return Err(error);
                        }
                    }
                }
                Some(inbound) = inbox.recv() => rim.handle_inbound(&mut publisher, inbound),
                Some((camera, status)) = statuses.next() => rim.handle_status(&mut publisher, &camera, &status),
                () = sleep_until(wake_at.into()) => {
                    let send = &mut |out| rim.outgoing.send(&out, &rim.socket);
                    publisher.handle_timeout(now(), send);
                }
            }
            rim.carry_out(&mut publisher);
        }
        let send = &mut |out| rim.outgoing.send(&out, &rim.socket);
        publisher.shut_down(now(), send);
        rim.carry_out(&mut publisher);
        // The links still have to take the byes out of their boxes.
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    }
}

impl Rim {
    fn handle_units(&mut self, publisher: &mut Publisher, hub: &Hub) {
        for (camera, Delivery { unit, encoded_at }) in hub.take() {
            let send = &mut |out| self.outgoing.send(&out, &self.socket);
            publisher.handle_unit(&camera, &unit, now(), send);
            self.outgoing.flush(&self.socket);
            self.counters.send_delay.observe(now() - encoded_at);
        }
    }

    fn handle_inbound(&mut self, publisher: &mut Publisher, inbound: Inbound) {
        match inbound {
            Inbound::Request { request, outbox } => {
                if matches!(request.signal, Signal::Offer { .. } | Signal::Restart { .. }) {
                    publisher.set_candidates(self.socket.candidates());
                }
                // Those whose client is gone are swept out when a new one comes.
                self.outboxes.retain(|_, outbox| !outbox.is_closed());
                self.outboxes.insert(request.from.client.clone(), outbox);
                let send = &mut |out| self.outgoing.send(&out, &self.socket);
                publisher.handle_request(request, now(), send);
            }
            Inbound::Left { client } => {
                self.outboxes.remove(&client);
                let send = &mut |out| self.outgoing.send(&out, &self.socket);
                publisher.handle_left(&client, now(), send);
            }
            Inbound::Trigger { .. } | Inbound::Still { .. } | Inbound::Switch { .. } => {}
        }
    }

    fn handle_status(&mut self, publisher: &mut Publisher, camera: &CameraId, status: &CameraStatus) {
        let send = &mut |out| self.outgoing.send(&out, &self.socket);
        match &status.state {
            CameraState::BackingOff { error, .. } => publisher.handle_camera_lost(camera, error, now(), send),
            CameraState::Running => publisher.handle_camera_back(camera, now(), send),
            CameraState::Idle | CameraState::Opening => {}
        }
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
            }
        }
        self.outgoing.flush(&self.socket);
        for (camera, line) in &self.cameras {
            line.counters.viewers.set(publisher.viewers(camera) as u64);
        }
    }

    fn respond(&mut self, publisher: &mut Publisher, response: Response) {
        let client = response.to.client.clone();
        let Some(outbox) = self.outboxes.get(&client) else { return };
        match outbox.try_send(response) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(response)) => {
                debug!(link = ?client.link, reply = name(&response.reply), "nobody there to take it");
                self.outboxes.remove(&client);
                let send = &mut |out| self.outgoing.send(&out, &self.socket);
                publisher.handle_left(&client, now(), send);
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                warn!(link = ?client.link, "a client does not take its messages; its sessions are closed");
                self.outboxes.remove(&client);
                let send = &mut |out| self.outgoing.send(&out, &self.socket);
                publisher.handle_full_outbox(&client, now(), send);
            }
        }
    }
}

fn name(reply: &Reply) -> &'static str {
    match reply {
        Reply::Answer { .. } => "answer",
        Reply::Rejected(_) => "rejected",
        Reply::Notice(_) => "notice",
        Reply::Bye(_) => "bye",
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop is where time enters")]
fn now() -> Instant {
    Instant::now()
}
