//! What STUN and TURN servers do for the camera itself: server-reflexive and relayed candidates (RFC 8445, section 5.1.1), and the
//! way through the relay. One allocation, made before any viewer comes, serves them all.
//!
//! The protocol is without I/O and told the time; [`Relay`] is the end of it that the engine holds, [`Errands`] does what the loop
//! must not wait for. Without servers nothing of this runs.

mod allocation;
mod asking;
mod binding;
mod gathering;
mod message;
mod peers;
mod queue;
mod relaying;
mod transactions;
mod wires;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::gathering::{Gathering, Output, Reached, Route, Ticket, to_server};
use self::queue::{Outlet, queue, share};
use self::wires::{Order, Report};
use crate::core::access_unit::Bitrate;
use crate::core::candidate::Candidate;
use crate::core::counters::RelayCounters;
use crate::core::transmit::Transmit;

pub use self::allocation::Credentials;
pub use self::gathering::Unwrapped;
#[doc(hidden)]
pub use self::message::survive;
pub use self::relaying::{Mint, RelayServer};

/// Frames from servers' connections that may wait for the loop; then the connections wait.
const REPORTS: usize = 256;

/// The engine's end.
pub struct Relay {
    gathering: Gathering,
    orders: mpsc::Sender<Order>,
    connections: HashMap<Ticket, Outlet>,
    /// What may wait in each for one viewer.
    share: usize,
    counters: Arc<RelayCounters>,
}

/// What happened to names and connections, for [`Relay::handle_news`].
pub struct News(Report);

/// Where [`News`] come from. Ends, saying nothing, where no server is configured.
pub struct Newsroom(mpsc::Receiver<Report>);

impl Newsroom {
    /// `None`: there will be none.
    pub async fn next(&mut self) -> Option<News> {
        self.0.recv().await.map(News)
    }
}

/// What a task of its own does for the relay.
pub struct Errands {
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
}

impl Errands {
    pub async fn run(self, tasks: TaskTracker, stopping: CancellationToken) {
        wires::run(self.orders, self.reports, tasks, stopping).await;
    }
}

impl Relay {
    /// Begins at the first timeout, which is now. `fastest` is what the fastest stream may have.
    pub fn new(
        servers: Vec<RelayServer>,
        fastest: Bitrate,
        counters: Arc<RelayCounters>,
        now: Instant,
    ) -> (Self, Newsroom, Errands) {
        // Of each server one thing is asked for at a time, for its binding and for its allocation; so this is never full.
        let (orders, ordered) = mpsc::channel(2 * servers.len() + 1);
        let (reports, reported) = mpsc::channel(REPORTS);
        let gathering = Gathering::new(servers, &counters, now);
        let relay = Self { gathering, orders, connections: HashMap::new(), share: share(fastest), counters };
        (relay, Newsroom(reported), Errands { orders: ordered, reports })
    }

    /// What is to be told to viewers besides the media socket's own candidates, which are `hosts`.
    pub fn candidates(&self, hosts: &[Candidate]) -> Vec<Candidate> {
        self.gathering.candidates(hosts)
    }

    /// Something came to the media socket; returns what is for the ICE agents. [`Relay::poll_transmit`] has more to say after this, as
    /// after everything else.
    pub fn handle_datagram<'a>(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        data: &'a [u8],
        now: Instant,
    ) -> Option<Unwrapped<'a>> {
        self.gathering.handle_datagram(from, to, data, now)
    }

    /// Something happened elsewhere; returns what is for the ICE agents.
    pub fn handle_news<'a>(&mut self, news: &'a News, now: Instant) -> Option<Unwrapped<'a>> {
        match &news.0 {
            Report::Reached(ticket, reached) => {
                if *reached != Reached::Connected {
                    self.connections.remove(ticket);
                }
                self.gathering.handle_reached(*ticket, reached.clone(), now);
            }
            Report::Frame(ticket, frame) => return self.gathering.handle_frame(*ticket, frame, now),
            Report::Closed(ticket, why) => {
                self.connections.remove(ticket);
                self.gathering.handle_closed(*ticket, why.clone(), now);
            }
        }
        None
    }

    /// What the media socket is to send for this: itself, or its envelope; `None` when it goes, or fails to go, another way.
    pub fn route(&mut self, transmit: Transmit, now: Instant) -> Option<Transmit> {
        /// RFC 7983, section 7: STUN begins with 0 to 3.
        const STUN: std::ops::RangeInclusive<u8> = 0..=3;
        let (peer, is_check) = (transmit.to, transmit.data.first().is_some_and(|first| STUN.contains(first)));
        match self.gathering.route(transmit, now) {
            Route::Media(transmit) => Some(transmit),
            Route::Own(ticket, data) => {
                self.write(ticket, |connection| connection.send(peer, data.freeze(), is_check));
                None
            }
            Route::Nowhere => None,
        }
    }

    /// This machine's addresses are not what they were: what the servers know of us is asked for anew, at the next timeout, which is now.
    pub fn handle_addresses_changed(&mut self, now: Instant) {
        self.gathering.hurry(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.gathering.handle_timeout(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.gathering.poll_timeout()
    }

    /// What the media socket is to send to servers.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        while let Some(output) = self.gathering.poll_output() {
            match output {
                Output::Datagram { to, data } => return Some(to_server(to, data.as_ref().into())),
                Output::Write { ticket, data } => self.write(ticket, |connection| connection.request(data)),
                Output::Reach { ticket, url, how } => {
                    let (connection, waiting) = queue(self.share);
                    self.connections.insert(ticket, connection);
                    // Closed only when the house goes down.
                    let _ = self.orders.try_send(Order { ticket, url, how, waiting });
                }
                Output::Leave { ticket } => drop(self.connections.remove(&ticket)),
            }
        }
        self.gathering.count(&self.counters);
        None
    }

    /// Gives the allocation back, so that the next start finds its place free.
    pub fn shut_down(&mut self, now: Instant) {
        self.gathering.shut_down(now);
    }

    fn write(&self, ticket: Ticket, write: impl FnOnce(&Outlet) -> bool) {
        if !self.connections.get(&ticket).is_some_and(write) {
            self.counters.packets_dropped.add(1);
        }
    }
}

#[cfg(test)]
#[path = "relay_test.rs"]
mod tests;
