//! A TCP connection that breaks is replaced by another, and the stream goes on.
//!
//! A browser whose connection breaks opens a new one by itself, and says nothing of it by signaling: to it the connection
//! stands. The library keeps to the pair it once selected, and would send to the broken one until consent ends. So the new
//! one takes the broken one's name with the library, once a check that came on it was found good.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Whoever carries the stream answers our consent checks, one every two seconds. Many break without a word: a viewer that
/// changed networks, a NAT that forgot.
const SILENT_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Reconnection {
    /// The connection that carries the stream, by its name with the library: the address of the first that had it.
    stream: Option<Stream>,
    /// The newest name that is not the address itself.
    renamed: Option<Renamed>,
    /// Where the datagram that is being handled came from, if it came under the stream's name to see whether it is good.
    trial: Option<SocketAddr>,
}

#[derive(Debug)]
struct Stream {
    name: SocketAddr,
    heard_at: Instant,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Renamed {
    name: SocketAddr,
    address: SocketAddr,
}

impl Reconnection {
    /// The name under which the library is to see a datagram that came from an address.
    pub(super) fn name(&mut self, address: SocketAddr, datagram: &[u8], now: Instant) -> SocketAddr {
        self.end_trial();
        let name = self.renamed.filter(|renamed| renamed.address == address).map_or(address, |renamed| renamed.name);
        let Some(stream) = &mut self.stream else { return name };
        let is_broken = stream.is_closed || now.saturating_duration_since(stream.heard_at) > SILENT_AFTER;
        if name != stream.name && is_broken && datagram.starts_with(&BINDING_REQUEST) {
            self.trial = Some(address);
            return stream.name;
        }
        if name == stream.name {
            stream.heard_at = now;
        }
        name
    }

    /// Where a datagram goes that the library sends to a name.
    pub(super) fn address(&mut self, name: SocketAddr, datagram: &[u8], now: Instant) -> SocketAddr {
        let is_stream = datagram.first().is_some_and(|first| *first > LAST_OF_STUN);
        if is_stream && self.stream.as_ref().is_none_or(|stream| stream.name != name) {
            self.stream = Some(Stream { name, heard_at: now, is_closed: false });
        }
        // The library answers a check, or checks back, only when it knew the password.
        if [BINDING_SUCCESS, BINDING_REQUEST].iter().any(|kind| datagram.starts_with(kind))
            && self.stream.as_ref().is_some_and(|stream| stream.name == name)
            && let Some(address) = self.trial.take()
        {
            self.stream = Some(Stream { name, heard_at: now, is_closed: false });
            self.renamed = Some(Renamed { name, address });
        }
        self.current(name)
    }

    /// Everything that followed from a datagram went out: what the library sends from here on says nothing about it.
    pub(super) fn end_trial(&mut self) {
        self.trial = None;
    }

    pub(super) fn handle_closed(&mut self, address: SocketAddr) {
        let current = self.stream.as_ref().map(|stream| self.current(stream.name));
        if let Some(stream) = self.stream.as_mut().filter(|_| current == Some(address)) {
            stream.is_closed = true;
        }
    }

    fn current(&self, name: SocketAddr) -> SocketAddr {
        self.renamed.filter(|renamed| renamed.name == name).map_or(name, |renamed| renamed.address)
    }
}

/// RFC 8489, section 5.
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
/// RFC 7983, section 7: what begins with more is DTLS or the stream.
const LAST_OF_STUN: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIA: [u8; 2] = [0x80, 0x6c];

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], port))
    }

    /// A stream goes to port 1.
    fn streaming(now: Instant) -> Reconnection {
        let mut paths = Reconnection::default();
        assert_eq!(paths.name(at(1), &BINDING_REQUEST, now), at(1));
        assert_eq!(paths.address(at(1), &BINDING_SUCCESS, now), at(1));
        assert_eq!(paths.address(at(1), &MEDIA, now), at(1));
        paths
    }

    #[test]
    fn a_proven_connection_takes_the_place_of_a_closed_one_as_often_as_it_happens() {
        let now = Instant::now();
        let mut paths = streaming(now);
        // The library does not answer a nomination of what it has not checked yet, but checks.
        for (closed, new, answer) in [(1, 2, BINDING_SUCCESS), (2, 3, BINDING_REQUEST), (3, 4, BINDING_SUCCESS)] {
            paths.handle_closed(at(closed));
            assert_eq!(paths.name(at(new), &BINDING_REQUEST, now), at(1));
            assert_eq!(paths.address(at(1), &answer, now), at(new));
            assert_eq!(paths.address(at(1), &MEDIA, now), at(new));
            assert_eq!(paths.name(at(new), &MEDIA, now), at(1));
        }
    }

    #[test]
    fn a_connection_that_is_not_proven_gets_nothing() {
        let now = Instant::now();
        let mut paths = streaming(now);
        paths.handle_closed(at(1));
        assert_eq!(paths.name(at(2), &BINDING_REQUEST, now), at(1), "shown, and found bad: no answer");
        paths.end_trial();
        assert_eq!(paths.address(at(1), &BINDING_REQUEST, now), at(1), "of the library's own accord");
        assert_eq!(paths.address(at(1), &MEDIA, now), at(1));
        assert_eq!(paths.name(at(3), &MEDIA, now), at(3), "not even shown");
        assert_eq!(paths.address(at(1), &BINDING_SUCCESS, now), at(1), "to nobody's check");
        assert_eq!(paths.address(at(1), &MEDIA, now), at(1));
    }

    #[test]
    fn a_second_connection_stays_a_second_one_while_the_first_is_heard_and_replaces_it_when_that_is_silent() {
        let start = Instant::now();
        let mut paths = streaming(start);
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            paths.name(at(1), &BINDING_SUCCESS, now);
            assert_eq!(paths.name(at(2), &BINDING_REQUEST, now), at(2));
            assert_eq!(paths.address(at(2), &BINDING_SUCCESS, now), at(2));
        }
        let later = start + Duration::from_secs(19) + SILENT_AFTER + Duration::from_millis(1);
        assert_eq!(paths.name(at(2), &BINDING_REQUEST, later), at(1));
        assert_eq!(paths.address(at(1), &BINDING_SUCCESS, later), at(2));
        assert_eq!(paths.address(at(1), &MEDIA, later), at(2));
    }

    #[test]
    fn the_end_of_a_connection_that_carries_nothing_changes_nothing() {
        let now = Instant::now();
        let mut paths = streaming(now);
        paths.handle_closed(at(2));
        assert_eq!(paths.name(at(3), &BINDING_REQUEST, now), at(3));
    }
}
