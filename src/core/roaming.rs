//! Which viewers have to look for another way because this device's addresses are not what they were.

use std::net::{IpAddr, SocketAddr};

use super::candidate::{Candidate, CandidateKind};
use super::figures::Path;

/// Whether what was told to a viewer leads to it no more by the path in use: the address it left from is gone, or the NAT on the way
/// has another address now. `told` are the candidates of its last answer.
///
/// An address that it was never told says nothing, or it would be sent to look again and again.
pub fn is_stranded(path: &Path, told: &[Candidate], now: &[Candidate]) -> bool {
    let stands_in = |candidates: &[Candidate]| candidates.iter().any(|candidate| own(candidate) == path.local);
    stands_in(told) && (!stands_in(now) || is_outside(path) && has_moved_outside(path.local, told, now))
}

/// What leaves as this candidate leaves from this address.
fn own(candidate: &Candidate) -> SocketAddr {
    match candidate.kind {
        CandidateKind::ServerReflexive { base } => base,
        CandidateKind::Host | CandidateKind::Relayed { .. } => candidate.address,
    }
}

/// Whether the network that NATs see from outside was another one when the viewer was told. Their ports come and go without harm to
/// what is under way; and while none is known nothing is.
fn has_moved_outside(local: SocketAddr, told: &[Candidate], now: &[Candidate]) -> bool {
    let outside = |candidates: &[Candidate]| -> Vec<IpAddr> {
        let reflexive =
            candidates.iter().filter(|candidate| matches!(candidate.kind, CandidateKind::ServerReflexive { .. }));
        reflexive.filter(|candidate| own(candidate) == local).map(|candidate| candidate.address.ip()).collect()
    };
    let (before, after) = (outside(told), outside(now));
    !before.is_empty() && !after.is_empty() && !before.iter().any(|ip| after.contains(ip))
}

/// Whether the viewer is not on a network at home (RFC 1918, RFC 4193), to which no NAT of ours leads.
fn is_outside(path: &Path) -> bool {
    match path.remote.ip().to_canonical() {
        IpAddr::V4(ip) => !(ip.is_private() || ip.is_link_local() || ip.is_loopback()),
        IpAddr::V6(ip) => !(ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::transmit::Transport;

    const HOME: &str = "192.168.1.2:8189";
    const ELSEWHERE: &str = "192.168.7.9:8189";

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn host(address: &str) -> Candidate {
        Candidate::host(at(address))
    }

    fn reflexive(address: &str, base: &str) -> Candidate {
        let kind = CandidateKind::ServerReflexive { base: at(base) };
        Candidate { address: at(address), transport: Transport::Udp, kind }
    }

    fn relayed(address: &str) -> Candidate {
        let kind = CandidateKind::Relayed { mapped: at("203.0.113.5:8189") };
        Candidate { address: at(address), transport: Transport::Udp, kind }
    }

    fn path(local: &str, remote: &str) -> Path {
        let (local, remote) = (at(local), at(remote));
        Path { transport: Transport::Udp, local, local_kind: CandidateKind::Host, remote, is_remote_relayed: false }
    }

    #[test]
    fn a_viewer_is_stranded_when_the_address_that_its_pictures_leave_from_is_gone() {
        let path = path(HOME, "192.168.1.50:4000");
        let told = [host(HOME)];
        assert!(!is_stranded(&path, &told, &told));
        assert!(!is_stranded(&path, &told, &[host(ELSEWHERE), host(HOME)]), "there is only one more");
        assert!(is_stranded(&path, &told, &[host(ELSEWHERE)]));
        assert!(is_stranded(&path, &told, &[]));
        assert!(!is_stranded(&path, &[host(ELSEWHERE)], &[host(ELSEWHERE)]), "it found a way of which it was not told");
    }

    #[test]
    fn by_tcp_it_is_the_same() {
        let path = Path { transport: Transport::Tcp, ..path(HOME, "192.168.1.50:4000") };
        let told = [host(HOME), Candidate::tcp_host(at(HOME))];
        assert!(!is_stranded(&path, &told, &told));
        assert!(is_stranded(&path, &told, &[host(ELSEWHERE), Candidate::tcp_host(at(ELSEWHERE))]));
    }

    #[test]
    fn another_address_outside_strands_those_who_are_outside() {
        let told = [host(HOME), reflexive("203.0.113.5:8189", HOME)];
        let now = [host(HOME), reflexive("203.0.113.77:8189", HOME)];
        let outside = path(HOME, "198.51.100.3:4000");
        assert!(is_stranded(&outside, &told, &now));
        assert!(!is_stranded(&path(HOME, "192.168.1.50:4000"), &told, &now), "at home");
        assert!(!is_stranded(&outside, &told, &[host(HOME), reflexive("203.0.113.5:31000", HOME)]), "another port");
        assert!(!is_stranded(&outside, &told, &[host(HOME)]), "the server does not answer just now");
        assert!(!is_stranded(&outside, &[host(HOME)], &now), "the server answered only after it came");
    }

    #[test]
    fn a_relay_that_is_gone_strands_who_is_relayed_and_nobody_else() {
        let told = [host(HOME), relayed("203.0.113.200:50000")];
        let through = path("203.0.113.200:50000", "198.51.100.3:4000");
        assert!(!is_stranded(&through, &told, &told));
        assert!(is_stranded(&through, &told, &[host(HOME)]));
        assert!(is_stranded(&through, &told, &[host(HOME), relayed("203.0.113.201:50000")]));
        assert!(!is_stranded(&path(HOME, "198.51.100.3:4000"), &told, &[host(HOME)]));
    }
}
