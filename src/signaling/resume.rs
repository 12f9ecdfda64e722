//! How a viewer's sessions outlive its socket: a new socket takes them over from the one before.
//!
//! Each socket that said `hello` has a name that nobody can guess, given to it in `welcome`. Whoever brings that name in a `hello` of its
//! own becomes the same client, with all that was not said to it yet; the engine notices nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Outbox;
use crate::core::signal::Response;

/// A conversation that is asked for its ends looks up from its socket at once, unless it is stuck.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(1);

/// Both ends of a client's outbox.
pub(super) struct Ends {
    pub(super) outbox: Outbox,
    pub(super) responses: mpsc::Receiver<Response>,
}

/// Where the ends are to go.
pub(super) type Successor = oneshot::Sender<Ends>;

/// Clients that may come back, by name.
#[derive(Default)]
pub(super) struct Resumable {
    clients: Mutex<HashMap<Arc<str>, oneshot::Sender<Successor>>>,
}

impl Resumable {
    /// From now on whoever knows `name` may take over; what is returned hears of it.
    pub(super) fn enter(&self, name: Arc<str>) -> oneshot::Receiver<Successor> {
        let (called, calls) = oneshot::channel();
        self.clients().insert(name, called);
        calls
    }

    pub(super) fn leave(&self, name: &str) {
        self.clients().remove(name);
    }

    /// Takes over from the client of this name. `None`: there is none, or not any more.
    pub(super) async fn take_over(&self, name: &str) -> Option<Ends> {
        let called = self.clients().remove(name)?;
        let (successor, ends) = oneshot::channel();
        called.send(successor).ok()?;
        timeout(HANDED_OVER_WITHIN, ends).await.ok()?.ok()
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, oneshot::Sender<Successor>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
