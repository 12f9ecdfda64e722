//! One allocation on a TURN server, from the first request to its end (RFC 8656): asked for, kept alive, used, given back.
//!
//! Without I/O: what the server sends goes in, what it is to be sent comes out of [`Allocation::poll_transmit`].

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc_stun::attributes::{ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS};

use super::message::{Ask, Heard, Refusal, Response, Signing, channel_data, send_indication};
use super::peers::{Peers, Route};
use super::transactions::Transactions;

/// A Refresh so often keeps the NAT's mapping open (some forget after 30 s), and finds a dead server, or one that forgot us,
/// before a viewer is told of a candidate long dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What we ask for when we ask again; the server decides.
const LIFETIME: Duration = Duration::from_secs(600);

/// Who we are to a TURN server.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// `None`: for ever.
    pub hold_for: Option<Duration>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("hold_for", &self.hold_for).finish_non_exhaustive()
    }
}

/// Why a server does not serve us, and what its owner can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("it does not answer; see that it runs, and that firewalls let us through to its port")]
    Silent,
    #[error(
        "it refuses the credentials; its static-auth-secret or user has to be the one in the file that [ice] names, and both clocks right"
    )]
    Credentials,
    /// RFC 8656, section 7.4: this way to it is taken by an allocation that is not ours any more; or ours is gone.
    #[error("it has lost our allocation, or keeps one from before for up to ten minutes")]
    Mismatch,
    #[error("it refuses ({code} {reason}); its log says why")]
    Refused { code: u16, reason: String },
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("its answer names no address")]
    Nonsense,
    /// Nothing is known against it.
    #[error(
        "another one was quicker; if that is always so, see that it runs, and that firewalls let us through to its port"
    )]
    Late,
}

pub(super) struct Allocation {
    credentials: Credentials,
    signing: Option<Signing>,
    transactions: Transactions,
    state: State,
    peers: Peers,
    is_stream: bool,
    made_at: Instant,
    out: VecDeque<Bytes>,
}

enum State {
    Asking,
    Held {
        held: Held,
        refresh_at: Instant,
        /// Something went through it last.
        used_at: Option<Instant>,
    },
    Ended(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) relayed: SocketAddr,
    /// Where the server sees us.
    pub(super) mapped: SocketAddr,
}

impl Allocation {
    /// Asks for one. On a stream little is repeated, and ChannelData is padded.
    pub(super) fn ask(credentials: Credentials, is_stream: bool, now: Instant) -> Self {
        let mut new = Self {
            credentials,
            signing: None,
            transactions: Transactions::new(is_stream),
            state: State::Asking,
            peers: Peers::new(now),
            is_stream,
            made_at: now,
            out: VecDeque::new(),
        };
        new.begin(Ask::Allocate, now);
        new
    }

    pub(super) fn held(&self) -> Option<Held> {
        match &self.state {
            State::Held { held, .. } => Some(*held),
            _ => None,
        }
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Ended(failure) => Some(failure),
            _ => None,
        }
    }

    /// When something last went through it.
    pub(super) fn used_at(&self) -> Option<Instant> {
        match &self.state {
            State::Held { used_at, .. } => *used_at,
            _ => None,
        }
    }

    /// When half the time is over that its credentials hold.
    pub(super) fn ages_at(&self) -> Option<Instant> {
        self.credentials.hold_for.map(|hold_for| self.made_at + hold_for / 2)
    }

    /// What the server sent; returns a peer's datagram.
    pub(super) fn handle<'a>(&mut self, heard: Heard<'a>, now: Instant) -> Option<(SocketAddr, &'a [u8])> {
        let (peer, data) = match heard {
            Heard::Response(response) => {
                self.handle_response(&response, now);
                return None;
            }
            Heard::Data { peer, data } => (peer, data),
            Heard::Channel { number, data } => (self.peers.of_channel(number)?, data),
        };
        let State::Held { used_at, .. } = &mut self.state else { return None };
        *used_at = Some(now);
        self.peers.hear(peer, now);
        Some((peer, data))
    }

    /// What the server is to be sent so that `peer` gets this; `None` while it does not let us through to there: then the ICE
    /// agent's next check, or the viewer's repair, comes again.
    pub(super) fn wrap(&mut self, peer: SocketAddr, data: &[u8], now: Instant) -> Option<BytesMut> {
        let State::Held { held, used_at, .. } = &mut self.state else { return None };
        if peer.is_ipv4() != held.relayed.is_ipv4() {
            return None;
        }
        match self.peers.route(peer, now) {
            Route::Channel(number) => {
                *used_at = Some(now);
                channel_data(number, data, self.is_stream)
            }
            Route::Indication(ask) => {
                *used_at = Some(now);
                if let Some(ask) = ask {
                    self.begin(ask, now);
                }
                send_indication(peer, data)
            }
            Route::Ask(ask) => {
                self.begin(ask, now);
                None
            }
            Route::Closed => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let (repeats, given_up) = self.transactions.handle_timeout(now);
        self.out.extend(repeats);
        for ask in given_up {
            match ask {
                Ask::Allocate | Ask::Refresh { .. } => self.end(Failure::Silent),
                _ => self.peers.unanswered(ask),
            }
        }
        if let State::Held { refresh_at, .. } = &mut self.state
            && *refresh_at <= now
        {
            *refresh_at = now + KEEP_ALIVE;
            self.begin(Ask::Refresh { lifetime: Some(LIFETIME) }, now);
            for ask in self.peers.renew(now) {
                self.begin(ask, now);
            }
        }
    }

    /// Looks now whether the server still knows us.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let State::Held { refresh_at, .. } = &mut self.state {
            *refresh_at = now;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let refresh_at = match &self.state {
            State::Held { refresh_at, .. } => Some(*refresh_at),
            State::Asking => None,
            State::Ended(_) => return None,
        };
        self.transactions.poll_timeout().into_iter().chain(refresh_at).min()
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// Gives it back, or what the server may have given, of which we did not hear: it hears this after the Allocate. Nothing may be sent
    /// after it: an Allocate that is repeated would ask for another one. The server may not hear it, and then forgets it after ten minutes.
    pub(super) fn give_back(&mut self, now: Instant) {
        if self.failure().is_none_or(|failure| *failure == Failure::Silent) {
            self.begin(Ask::Refresh { lifetime: Some(Duration::ZERO) }, now);
        }
    }

    fn begin(&mut self, ask: Ask, now: Instant) {
        match self.transactions.begin(ask, self.signing.as_ref(), now) {
            Some(raw) => self.out.push_back(raw),
            // Only a user name or a nonce that is too long for STUN.
            None => self.end(Failure::Credentials),
        }
    }

    fn end(&mut self, failure: Failure) {
        if self.failure().is_none() {
            self.state = State::Ended(failure);
        }
    }

    fn handle_response(&mut self, response: &Response<'_>, now: Instant) {
        if !self.transactions.is_open(&response.id) {
            return; // late, or not for us
        }
        let outcome = response.outcome();
        // A refusal for want of a signature is not signed itself.
        if outcome.is_ok() && self.signing.as_ref().is_some_and(|signing| !response.is_signed(signing)) {
            return;
        }
        let Some(answered) = self.transactions.take(&response.id) else { return };
        match outcome {
            Ok(()) => self.granted(answered.ask, response, now),
            Err(Refusal { code: code @ (401 | 438), .. }) => {
                let Credentials { username, password, .. } = &self.credentials;
                let challenge = response.challenge();
                self.signing = challenge.and_then(|(realm, nonce)| Signing::new(username, password, realm, nonce));
                let again = self.signing.as_ref().and_then(|it| self.transactions.again(&answered, it, now));
                match again {
                    Some(raw) => self.out.push_back(raw),
                    None if code == 401 => self.end(Failure::Credentials),
                    None => self.refused(answered.ask, Refusal { code, reason: "stale nonce".to_owned() }, now),
                }
            }
            Err(refusal) => self.refused(answered.ask, refusal, now),
        }
    }

    fn granted(&mut self, ask: Ask, response: &Response<'_>, now: Instant) {
        match ask {
            Ask::Allocate => {
                let relayed = response.address(ATTR_XOR_RELAYED_ADDRESS);
                let Some((relayed, mapped)) = relayed.zip(response.address(ATTR_XORMAPPED_ADDRESS)) else {
                    return self.end(Failure::Nonsense);
                };
                let lifetime = response.lifetime().unwrap_or(LIFETIME);
                let refresh_at = now + KEEP_ALIVE.min(lifetime / 2).max(Duration::from_secs(1));
                self.state = State::Held { held: Held { relayed, mapped }, refresh_at, used_at: None };
            }
            Ask::CreatePermission { .. } | Ask::ChannelBind { .. } => self.peers.answered(ask, true, now),
            Ask::Binding | Ask::Refresh { .. } => {}
        }
    }

    fn refused(&mut self, ask: Ask, refusal: Refusal, now: Instant) {
        let Refusal { code, reason } = refusal;
        match ask {
            Ask::Allocate | Ask::Refresh { .. } => self.end(match code {
                437 => Failure::Mismatch,
                441 => Failure::Credentials,
                _ => Failure::Refused { code, reason },
            }),
            Ask::CreatePermission { .. } | Ask::ChannelBind { .. } if code == 437 => self.end(Failure::Mismatch),
            Ask::CreatePermission { .. } | Ask::ChannelBind { .. } => self.peers.answered(ask, false, now),
            Ask::Binding => {}
        }
    }
}
