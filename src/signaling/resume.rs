//! How a viewer's sessions outlive its socket: a new socket takes them over from the one before.
//!
//! Each `welcome` gives the socket a secret. Whoever brings it in a `hello` of its own, and may see the cameras in question, becomes
//! the same client, with all that was not said to it yet; the engine notices nothing. A secret works once.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::token::{Grant, Permission};
use super::{Outbox, unguessable_name};
use crate::core::signal::{CameraId, ClientId, Response};

/// A conversation that is asked for its client looks up from its socket at once, unless it is stuck.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(1);

/// A client as the engine knows it, whichever socket it speaks through.
pub(super) struct Client {
    pub(super) id: ClientId,
    /// Both ends.
    pub(super) outbox: Outbox,
    pub(super) responses: mpsc::Receiver<Response>,
    /// What its sessions may show: every camera of this device that it made an offer for.
    pub(super) cameras: BTreeSet<CameraId>,
    /// An offer was accepted, so there may be sessions that are worth waiting for.
    pub(super) is_answered: bool,
}

impl Client {
    pub(super) fn new(id: ClientId, outbox: usize) -> Self {
        let (outbox, responses) = mpsc::channel(outbox);
        Self { id, outbox, responses, cameras: BTreeSet::new(), is_answered: false }
    }

    fn is_for(&self, grant: &Grant) -> bool {
        self.cameras.iter().all(|camera| grant.allows(Permission::View, camera))
    }
}

/// A new socket, which knows the secret, wants to be the client.
pub(super) struct Successor {
    grant: Grant,
    client: oneshot::Sender<Client>,
}

impl Successor {
    /// Gives the client to the new socket; back, if that may not have it, or did not wait.
    pub(super) fn take(self, client: Client) -> Result<(), Client> {
        if client.is_for(&self.grant) { self.client.send(client) } else { Err(client) }
    }
}

/// Clients that may come back, by secret.
#[derive(Clone, Default)]
pub(super) struct Resumable(Arc<Mutex<HashMap<Arc<str>, mpsc::Sender<Successor>>>>);

/// A client's place among them, until this is dropped.
pub(super) struct Entry {
    pub(super) secret: Arc<str>,
    calls: mpsc::Receiver<Successor>,
    entered_in: Resumable,
}

impl Resumable {
    /// From now on whoever knows the entry's secret may ask to take over.
    pub(super) fn enter(&self) -> Entry {
        let secret = Arc::<str>::from(unguessable_name());
        let (called, calls) = mpsc::channel(1);
        self.clients().insert(Arc::clone(&secret), called);
        Entry { secret, calls, entered_in: self.clone() }
    }

    /// Takes over from the client with this secret. `None`: there is none any more, or not for this grant.
    pub(super) async fn take_over(&self, secret: &str, grant: Grant) -> Option<Client> {
        let called = self.clients().get(secret)?.clone();
        let (successor, client) = oneshot::channel();
        called.try_send(Successor { grant, client: successor }).ok()?;
        timeout(HANDED_OVER_WITHIN, client).await.ok()?.ok()
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, mpsc::Sender<Successor>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The next one who wants to take over.
    pub(super) async fn called(&mut self) -> Successor {
        match self.calls.recv().await {
            Some(successor) => successor,
            None => pending().await,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.entered_in.clients().remove(&self.secret);
    }
}
