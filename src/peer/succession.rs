//! A viewer that leaves the path of its stream for another is followed, and the stream goes on.
//!
//! It says nothing of it by signaling. A browser on another network nominates another pair of candidates, and takes its connection for
//! unbroken; one whose TCP connection broke opens a new one. The library keeps to the pair that was nominated first (RFC 8445 would have
//! it follow, section 8.1.1), and would send to the old one until consent ends. So with the library the two paths swap names, once a
//! check that came on the new one was found good.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::core::transmit::Transport;

/// Whoever carries the stream answers our consent checks, one every two seconds. Many break without a word: a viewer that
/// changed networks, a NAT that forgot.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// A viewer tells several times a second what arrived, by the path that it has chosen. While it still chooses it nominates now this
/// path, now that: none is followed before the old one is left.
const LEFT_AFTER: Duration = Duration::from_secs(1);

/// Where datagrams go, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) transport: Transport,
    /// Our address.
    pub(super) local: SocketAddr,
    /// The viewer's.
    pub(super) remote: SocketAddr,
}

#[derive(Debug, Default)]
pub(super) struct Succession {
    /// The path that carries the stream, by its name with the library: the first that did.
    stream: Option<Stream>,
    swapped: Option<Swapped>,
    /// The path of the datagram that is being handled, if it is shown as the stream's to see whether it is good.
    trial: Option<Way>,
}

#[derive(Debug)]
struct Stream {
    name: Way,
    heard_at: Instant,
    is_closed: bool,
}

/// Two paths, each of which has the other's name.
#[derive(Clone, Copy, Debug)]
struct Swapped(Way, Way);

impl Succession {
    /// The name under which the library is to see a datagram that came by a path.
    pub(super) fn name(&mut self, way: Way, datagram: &[u8], now: Instant) -> Way {
        self.end_trial();
        let name = self.other(way);
        let Some(stream) = &mut self.stream else { return name };
        if name == stream.name {
            stream.heard_at = now;
        } else if stream.is_left_by(datagram, now) {
            self.trial = Some(way);
            return stream.name;
        }
        name
    }

    /// Which path a datagram takes that the library sends by a name.
    pub(super) fn way(&mut self, name: Way, datagram: &[u8], now: Instant) -> Way {
        let is_stream = datagram.first().is_some_and(|first| *first > LAST_OF_STUN);
        if is_stream && self.stream.as_ref().is_none_or(|stream| stream.name != name) {
            self.stream = Some(Stream { name, heard_at: now, is_closed: false });
        }
        // The library answers a check, or checks back, only when it knew the password.
        if [BINDING_SUCCESS, BINDING_REQUEST].iter().any(|kind| datagram.starts_with(kind))
            && self.stream.as_ref().is_some_and(|stream| stream.name == name)
            && let Some(way) = self.trial.take()
        {
            self.stream = Some(Stream { name, heard_at: now, is_closed: false });
            self.swapped = Some(Swapped(name, way));
        }
        self.other(name)
    }

    /// Everything that followed from a datagram went out: what the library sends from here on says nothing about it.
    pub(super) fn end_trial(&mut self) {
        self.trial = None;
    }

    /// The viewer's TCP connection from there is closed.
    pub(super) fn handle_closed(&mut self, remote: SocketAddr) {
        let current = self.stream.as_ref().map(|stream| self.other(stream.name));
        let is_current = current.is_some_and(|way| way.transport == Transport::Tcp && way.remote == remote);
        if let Some(stream) = self.stream.as_mut().filter(|_| is_current) {
            stream.is_closed = true;
        }
    }

    /// Names are swapped both ways, so this is from path to name and back.
    fn other(&self, way: Way) -> Way {
        match self.swapped {
            Some(Swapped(one, two)) if way == one => two,
            Some(Swapped(one, two)) if way == two => one,
            _ => way,
        }
    }
}

impl Stream {
    /// Whether this came by another path because the viewer does not use this one any more.
    fn is_left_by(&self, datagram: &[u8], now: Instant) -> bool {
        let silent_for = now.saturating_duration_since(self.heard_at);
        let is_broken = self.is_closed || silent_for > SILENT_AFTER;
        is_broken && datagram.starts_with(&BINDING_REQUEST) || silent_for > LEFT_AFTER && nominates(datagram)
    }
}

/// RFC 8489, section 5.
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
/// RFC 7983, section 7: what begins with more is DTLS or the stream.
const LAST_OF_STUN: u8 = 3;

/// Whether this is a check with USE-CANDIDATE (RFC 8445, section 7.1.2).
fn nominates(datagram: &[u8]) -> bool {
    const HEADER: usize = 20;
    const USE_CANDIDATE: [u8; 2] = [0x00, 0x25];
    let Some(mut rest) = datagram.get(HEADER..).filter(|_| datagram.starts_with(&BINDING_REQUEST)) else {
        return false;
    };
    while let Some(&[kind_high, kind_low, length_high, length_low]) = rest.first_chunk() {
        if [kind_high, kind_low] == USE_CANDIDATE {
            return true;
        }
        let length = usize::from(u16::from_be_bytes([length_high, length_low])).next_multiple_of(4);
        rest = rest.get(4 + length..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIA: [u8; 2] = [0x80, 0x6c];
    const MS: Duration = Duration::from_millis(1);

    fn tcp(port: u16) -> Way {
        Way { transport: Transport::Tcp, local: at(8189), remote: at(port) }
    }

    fn udp(port: u16) -> Way {
        Way { transport: Transport::Udp, ..tcp(port) }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], port))
    }

    /// A check with PRIORITY, and USE-CANDIDATE after it.
    fn nomination() -> Vec<u8> {
        let mut check = [&BINDING_REQUEST[..], &[0; 18]].concat();
        check.extend([0x00, 0x24, 0, 4, 1, 2, 3, 4]);
        check.extend([0x00, 0x25, 0, 0]);
        check
    }

    /// A stream goes this way.
    fn streaming(way: Way, now: Instant) -> Succession {
        let mut paths = Succession::default();
        assert_eq!(paths.name(way, &BINDING_REQUEST, now), way);
        assert_eq!(paths.way(way, &BINDING_SUCCESS, now), way);
        assert_eq!(paths.way(way, &MEDIA, now), way);
        paths
    }

    /// The viewer nominates a path, and the library, which sees it as `name`, finds the check good.
    fn nominated(paths: &mut Succession, way: Way, name: Way, now: Instant) {
        assert_eq!(paths.name(way, &nomination(), now), name);
        assert_eq!(paths.way(name, &BINDING_SUCCESS, now), way);
    }

    #[test]
    fn a_proven_connection_takes_the_place_of_a_closed_one_as_often_as_it_happens() {
        let now = Instant::now();
        let mut paths = streaming(tcp(1), now);
        // The library does not answer a nomination of what it has not checked yet, but checks.
        for (closed, new, answer) in [(1, 2, BINDING_SUCCESS), (2, 3, BINDING_REQUEST), (3, 4, BINDING_SUCCESS)] {
            paths.handle_closed(at(closed));
            assert_eq!(paths.name(tcp(new), &BINDING_REQUEST, now), tcp(1));
            assert_eq!(paths.way(tcp(1), &answer, now), tcp(new));
            assert_eq!(paths.way(tcp(1), &MEDIA, now), tcp(new));
            assert_eq!(paths.name(tcp(new), &MEDIA, now), tcp(1));
        }
    }

    #[test]
    fn a_connection_that_is_not_proven_gets_nothing() {
        let now = Instant::now();
        let mut paths = streaming(tcp(1), now);
        paths.handle_closed(at(1));
        assert_eq!(paths.name(tcp(2), &BINDING_REQUEST, now), tcp(1), "shown, and found bad: no answer");
        paths.end_trial();
        assert_eq!(paths.way(tcp(1), &BINDING_REQUEST, now), tcp(1), "of the library's own accord");
        assert_eq!(paths.way(tcp(1), &MEDIA, now), tcp(1));
        assert_eq!(paths.name(tcp(3), &MEDIA, now), tcp(3), "not even shown");
        assert_eq!(paths.way(tcp(1), &BINDING_SUCCESS, now), tcp(1), "to nobody's check");
        assert_eq!(paths.way(tcp(1), &MEDIA, now), tcp(1));
    }

    #[test]
    fn a_second_path_stays_a_second_one_while_the_first_is_heard_and_replaces_it_when_that_is_silent() {
        let start = Instant::now();
        for by in [tcp, udp] {
            let mut paths = streaming(by(1), start);
            for second in 0..20 {
                let now = start + Duration::from_secs(second);
                paths.name(by(1), &BINDING_SUCCESS, now);
                assert_eq!(paths.name(by(2), &BINDING_REQUEST, now), by(2));
                assert_eq!(paths.way(by(2), &BINDING_SUCCESS, now), by(2));
            }
            let later = start + Duration::from_secs(19) + SILENT_AFTER + MS;
            assert_eq!(paths.name(by(2), &BINDING_REQUEST, later), by(1));
            assert_eq!(paths.way(by(1), &BINDING_SUCCESS, later), by(2));
            assert_eq!(paths.way(by(1), &MEDIA, later), by(2));
        }
    }

    #[test]
    fn the_end_of_a_connection_that_carries_nothing_changes_nothing() {
        let now = Instant::now();
        let mut paths = streaming(tcp(1), now);
        paths.handle_closed(at(2));
        assert_eq!(paths.name(tcp(3), &BINDING_REQUEST, now), tcp(3));
        let mut paths = streaming(udp(1), now);
        paths.handle_closed(at(1));
        assert_eq!(paths.name(tcp(3), &BINDING_REQUEST, now), tcp(3), "the same port by UDP is another");
    }

    #[test]
    fn a_nominated_path_is_followed_as_soon_as_the_old_one_is_left() {
        let start = Instant::now();
        let mut paths = streaming(udp(1), start);
        assert_eq!(paths.name(udp(2), &nomination(), start + LEFT_AFTER), udp(2), "it may still choose");
        let left = start + LEFT_AFTER + MS;
        assert_eq!(paths.name(udp(2), &BINDING_REQUEST, left), udp(2), "checked, but not nominated");
        nominated(&mut paths, udp(2), udp(1), left);
        assert_eq!(paths.way(udp(1), &MEDIA, left), udp(2));
        // From Wi-Fi to TCP on another of our addresses.
        let elsewhere = Way { local: SocketAddr::from(([198, 51, 100, 1], 8189)), ..tcp(3) };
        let later = left + LEFT_AFTER + MS;
        nominated(&mut paths, elsewhere, udp(1), later);
        assert_eq!(paths.way(udp(1), &MEDIA, later), elsewhere);
    }

    #[test]
    fn the_path_that_was_left_still_answers_and_can_be_taken_again() {
        let start = Instant::now();
        let mut paths = streaming(udp(1), start);
        let left = start + LEFT_AFTER + MS;
        nominated(&mut paths, udp(2), udp(1), left);
        assert_eq!(paths.name(udp(1), &BINDING_REQUEST, left), udp(2), "under the other's name");
        assert_eq!(paths.way(udp(2), &BINDING_SUCCESS, left), udp(1));
        let back = left + LEFT_AFTER + MS;
        nominated(&mut paths, udp(1), udp(1), back);
        assert_eq!(paths.way(udp(1), &MEDIA, back), udp(1));
        assert_eq!(paths.way(udp(2), &BINDING_SUCCESS, back), udp(2));
    }

    #[test]
    fn nominations_are_read_whatever_comes() {
        assert!(nominates(&nomination()));
        assert!(!nominates(&BINDING_REQUEST));
        assert!(!nominates(&[&BINDING_SUCCESS[..], &nomination()[2..]].concat()), "an answer");
        for cut in 0..nomination().len() {
            assert!(!nominates(&nomination()[..cut]));
        }
        let endless = [&nomination()[..20], &[0x80, 0x22, 0xff, 0xff]].concat();
        assert!(!nominates(&endless));
    }
}
