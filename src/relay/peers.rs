//! Whom the relay lets through to us and how: permissions by address, channels by address and port (RFC 8656, sections 9 and 12).
//!
//! Who our ICE agent sends to is said by viewers, so all of it is bounded: a permission costs a request, and a channel is bound
//! only for a peer from which something came.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::message::{Ask, CHANNELS};
use crate::core::pace::{Pace, Rate};

/// At one time; a viewer has a handful of addresses.
const PERMISSIONS: usize = 128;
/// At one time. More peers are served without: their packets carry 36 bytes instead of 4.
const PEERS_WITH_CHANNEL: usize = 64;
/// Requests for new permissions: those of two viewers at once, then ten a second.
const REQUESTS: Rate = Rate::new(Duration::from_millis(100), 32);

/// RFC 8656, section 9.
const PERMISSION_HOLDS: Duration = Duration::from_secs(300);
/// RFC 8656, section 12.
const CHANNEL_HOLDS: Duration = Duration::from_secs(600);
/// Renewed so long before they end, if they were used meanwhile.
const RENEW_BEFORE: Duration = Duration::from_secs(120);
/// Who was not sent to for so long is not there any more.
const IN_USE: Duration = Duration::from_secs(60);

pub(super) struct Peers {
    permissions: HashMap<IpAddr, Permission>,
    channels: HashMap<SocketAddr, Channel>,
    by_number: HashMap<u16, SocketAddr>,
    /// Never given to another peer within an allocation: the server would refuse that for a quarter of an hour.
    next_number: u16,
    pace: Pace,
}

struct Permission {
    standing: Standing,
    used_at: Instant,
    /// Something came from there.
    is_proven: bool,
}

struct Channel {
    standing: Standing,
    number: Option<u16>,
    used_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing asked yet; only for channels.
    Open,
    Asked,
    Granted {
        until: Instant,
        renewing: bool,
    },
    /// Not asked again before.
    Refused {
        until: Instant,
    },
}

/// How a packet for a peer may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Channel(u16),
    /// In a Send indication; and this is to be asked for meanwhile.
    Indication(Option<Ask>),
    /// Not yet: this is to be asked for first.
    Ask(Ask),
    /// Not now.
    Closed,
}

impl Peers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            permissions: HashMap::new(),
            channels: HashMap::new(),
            by_number: HashMap::new(),
            next_number: *CHANNELS.start(),
            pace: Pace::new(now),
        }
    }

    /// For a packet to `peer`.
    pub(super) fn route(&mut self, peer: SocketAddr, now: Instant) -> Route {
        let Some(permission) = self.permissions.get_mut(&peer.ip()) else { return self.open(peer.ip(), now) };
        permission.used_at = now;
        if !matches!(permission.standing, Standing::Granted { .. }) {
            return Route::Closed;
        }
        let Some(channel) = self.channels.get_mut(&peer) else { return Route::Indication(None) };
        channel.used_at = now;
        match (channel.standing, channel.number) {
            (Standing::Granted { .. }, Some(number)) => Route::Channel(number),
            (Standing::Open, _) if CHANNELS.contains(&self.next_number) => {
                let number = self.next_number;
                self.next_number += 1;
                channel.number = Some(number);
                channel.standing = Standing::Asked;
                self.by_number.insert(number, peer);
                Route::Indication(Some(Ask::ChannelBind { peer, number }))
            }
            _ => Route::Indication(None),
        }
    }

    fn open(&mut self, ip: IpAddr, now: Instant) -> Route {
        if !self.pace.wait(REQUESTS, now).is_zero() {
            return Route::Closed;
        }
        if self.permissions.len() == PERMISSIONS {
            // Who never answered makes room for who may.
            let oldest = self.permissions.iter().filter(|(_, permission)| !permission.is_proven);
            let Some(oldest) = oldest.min_by_key(|(_, permission)| permission.used_at).map(|(ip, _)| *ip) else {
                return Route::Closed;
            };
            self.permissions.remove(&oldest);
        }
        self.pace.count(REQUESTS, now);
        self.permissions.insert(ip, Permission { standing: Standing::Asked, used_at: now, is_proven: false });
        Route::Ask(Ask::CreatePermission { peer: ip })
    }

    /// Something came from this peer.
    pub(super) fn hear(&mut self, peer: SocketAddr, now: Instant) {
        if let Some(permission) = self.permissions.get_mut(&peer.ip()) {
            permission.is_proven = true;
            if self.channels.len() < PEERS_WITH_CHANNEL {
                let new = Channel { standing: Standing::Open, number: None, used_at: now };
                self.channels.entry(peer).or_insert(new);
            }
        }
    }

    /// Whose channel this is.
    pub(super) fn of_channel(&self, number: u16) -> Option<SocketAddr> {
        self.by_number.get(&number).copied()
    }

    /// A request was answered: granted, or not.
    pub(super) fn answered(&mut self, ask: Ask, is_granted: bool, now: Instant) {
        let standing = |holds: Duration| match is_granted {
            true => Standing::Granted { until: now + holds, renewing: false },
            false => Standing::Refused { until: now + holds },
        };
        match ask {
            Ask::CreatePermission { peer } => {
                if let Some(permission) = self.permissions.get_mut(&peer) {
                    permission.standing = standing(PERMISSION_HOLDS);
                }
            }
            Ask::ChannelBind { peer, .. } => {
                if let Some(channel) = self.channels.get_mut(&peer) {
                    channel.standing = standing(CHANNEL_HOLDS);
                }
                // Which implies the permission.
                if let (true, Some(permission)) = (is_granted, self.permissions.get_mut(&peer.ip())) {
                    permission.standing = standing(PERMISSION_HOLDS);
                }
            }
            Ask::Binding | Ask::Allocate | Ask::Refresh { .. } => {}
        }
    }

    /// The server did not answer: it may be asked again.
    pub(super) fn unanswered(&mut self, ask: Ask) {
        match ask {
            Ask::CreatePermission { peer } => match self.permissions.get_mut(&peer).map(|it| &mut it.standing) {
                Some(Standing::Granted { renewing, .. }) => *renewing = false,
                _ => drop(self.permissions.remove(&peer)),
            },
            Ask::ChannelBind { peer, .. } => match self.channels.get_mut(&peer).map(|it| &mut it.standing) {
                Some(Standing::Granted { renewing, .. }) => *renewing = false,
                // Whether it is bound cannot be known.
                _ => drop(self.channels.remove(&peer)),
            },
            Ask::Binding | Ask::Allocate | Ask::Refresh { .. } => {}
        }
    }

    /// Forgets what has ended; returns what is to be renewed. Wants to be called a few times a minute.
    pub(super) fn renew(&mut self, now: Instant) -> Vec<Ask> {
        let mut asks = Vec::new();
        self.permissions.retain(|ip, permission| {
            let stays = permission.standing.goes_on(permission.used_at, now);
            if stays == Stays::ToBeRenewed {
                asks.push(Ask::CreatePermission { peer: *ip });
            }
            stays != Stays::Ended
        });
        self.channels.retain(|peer, channel| {
            let stays = channel.standing.goes_on(channel.used_at, now);
            if let (Stays::ToBeRenewed, Some(number)) = (stays, channel.number) {
                asks.push(Ask::ChannelBind { peer: *peer, number });
            }
            stays != Stays::Ended
        });
        let channels = &self.channels;
        self.by_number.retain(|_, peer| channels.contains_key(peer));
        asks
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    AsItIs,
    ToBeRenewed,
    Ended,
}

impl Standing {
    fn goes_on(&mut self, used_at: Instant, now: Instant) -> Stays {
        let is_in_use = now.saturating_duration_since(used_at) < IN_USE;
        match self {
            Self::Asked => Stays::AsItIs,
            Self::Open if is_in_use => Stays::AsItIs,
            Self::Granted { until, renewing } if now < *until => {
                if !*renewing && is_in_use && until.saturating_duration_since(now) < RENEW_BEFORE {
                    *renewing = true;
                    return Stays::ToBeRenewed;
                }
                Stays::AsItIs
            }
            Self::Refused { until } if now < *until => Stays::AsItIs,
            Self::Open | Self::Granted { .. } | Self::Refused { .. } => Stays::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(host: u32, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::from(host.to_be_bytes()), port)
    }

    #[test]
    fn a_peer_gets_a_permission_first_and_a_channel_once_it_answered() {
        let now = Instant::now();
        let mut peers = Peers::new(now);
        let viewer = peer(0xC000_0207, 50_000);
        let ask = Ask::CreatePermission { peer: viewer.ip() };
        assert_eq!(peers.route(viewer, now), Route::Ask(ask));
        assert_eq!(peers.route(viewer, now), Route::Closed, "asked once");
        peers.answered(ask, true, now);
        assert_eq!(peers.route(viewer, now), Route::Indication(None), "no channel for who never answered");
        peers.hear(viewer, now);
        let bind = Ask::ChannelBind { peer: viewer, number: 0x4000 };
        assert_eq!(peers.route(viewer, now), Route::Indication(Some(bind)));
        assert_eq!(peers.route(viewer, now), Route::Indication(None));
        peers.answered(bind, true, now);
        assert_eq!(peers.route(viewer, now), Route::Channel(0x4000));
        assert_eq!(peers.of_channel(0x4000), Some(viewer));
    }

    #[test]
    fn what_is_used_is_renewed_and_what_is_not_ends() {
        let start = Instant::now();
        let mut peers = Peers::new(start);
        let (used, unused) = (peer(1, 5), peer(2, 5));
        for viewer in [used, unused] {
            peers.route(viewer, start);
            peers.answered(Ask::CreatePermission { peer: viewer.ip() }, true, start);
            peers.hear(viewer, start);
            if let Route::Indication(Some(bind)) = peers.route(viewer, start) {
                peers.answered(bind, true, start);
            }
        }
        let mut renewed = Vec::new();
        for seconds in (15..=900).step_by(15) {
            let now = start + Duration::from_secs(seconds);
            assert!(matches!(peers.route(used, now), Route::Channel(_)), "at {seconds} s");
            for ask in peers.renew(now) {
                renewed.push(ask);
                peers.answered(ask, true, now);
            }
        }
        assert!(renewed.iter().all(|ask| !matches!(ask, Ask::CreatePermission { peer } if *peer == unused.ip())));
        let channels = renewed.iter().filter(|ask| matches!(ask, Ask::ChannelBind { .. })).count();
        assert_eq!(channels, 1, "{renewed:?}");
        assert_eq!((peers.permissions.len(), peers.channels.len(), peers.by_number.len()), (1, 1, 1));
    }

    #[test]
    fn a_refused_peer_is_not_asked_for_again_with_every_packet() {
        let start = Instant::now();
        let mut peers = Peers::new(start);
        let viewer = peer(0x0A00_0001, 9);
        peers.route(viewer, start);
        peers.answered(Ask::CreatePermission { peer: viewer.ip() }, false, start);
        assert_eq!(peers.route(viewer, start + Duration::from_secs(200)), Route::Closed);
        peers.renew(start + PERMISSION_HOLDS);
        assert!(matches!(peers.route(viewer, start + PERMISSION_HOLDS), Route::Ask(_)));
    }

    proptest! {
        /// Whatever viewers make us send, and wherever from they send.
        #[test]
        fn what_viewers_can_make_us_open_is_bounded(
            events in prop::collection::vec((0u32..300, 1u16..200, 0u8..4, 0u64..200), 0..2000),
        ) {
            let mut now = Instant::now();
            let start = now;
            let mut peers = Peers::new(now);
            let mut asked = 0u32;
            for (host, port, what, later) in events {
                now += Duration::from_millis(later);
                let viewer = peer(host, port);
                match what {
                    0 | 1 => {
                        if let Route::Ask(ask) = peers.route(viewer, now) {
                            asked += 1;
                            peers.answered(ask, what == 0, now);
                        }
                    }
                    2 => peers.hear(viewer, now),
                    _ => {
                        peers.renew(now);
                    }
                }
                prop_assert!(peers.permissions.len() <= PERMISSIONS);
                prop_assert!(peers.channels.len() <= PEERS_WITH_CHANNEL);
                prop_assert!(peers.by_number.len() <= peers.channels.len());
            }
            let allowed = REQUESTS.burst + ((now - start).as_millis() / REQUESTS.gap.as_millis()) as u32 + 1;
            prop_assert!(asked <= allowed, "{asked} requests, {allowed} allowed");
        }
    }
}
