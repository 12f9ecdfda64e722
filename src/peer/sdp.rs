//! What edgecam reads in an offer and puts right in an answer. Everything else in SDP is `rtc`'s business.

use std::net::SocketAddr;

use crate::core::candidate::{Candidate, CandidateKind};
use crate::core::signal::RejectReason;
use crate::core::transmit::Transport;

/// Sections more than this are no offer of a viewer.
const MAX_SECTIONS: usize = 16;
/// Candidates more than this in one description are no viewer's either.
const MAX_CANDIDATES: usize = 64;

/// What the first video section of an offer allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct VideoOffer {
    pub(super) payload_type: u8,
    /// The H.264 format parameters as offered (RFC 6184, section 8.1), to be given back unchanged.
    pub(super) fmtp: String,
    /// The payload type of retransmissions of it (RFC 4588).
    pub(super) rtx_payload_type: Option<u8>,
    /// The viewer says when each packet arrived (draft-holmer-rmcat-transport-wide-cc-extensions-01).
    pub(super) transport_cc: bool,
}

/// Finds the H.264 that edgecam will send, or says in words for people why there is none.
pub(super) fn read_offer(sdp: &str) -> Result<VideoOffer, RejectReason> {
    let bad = |why: &str| RejectReason::BadOffer(why.to_owned());
    if !sdp.starts_with("v=0") {
        return Err(bad("it is not a session description (it does not begin with v=0)"));
    }
    let sections: Vec<Vec<&str>> = sections(sdp);
    if sections.len() > MAX_SECTIONS + 1 {
        return Err(bad("it has too many media sections"));
    }
    let session = &sections[0];
    let Some(video) = sections.iter().skip(1).find(|section| section[0].starts_with("m=video ")) else {
        return Err(bad("it has no video section"));
    };
    if video[0].starts_with("m=video 0 ") {
        return Err(bad("its video section is refused (port 0)"));
    }
    if ["a=sendonly", "a=inactive"].iter().any(|direction| video.contains(direction)) {
        return Err(bad("its video section is not for receiving; offer recvonly"));
    }
    for (attribute, why) in [
        ("a=ice-ufrag:", "it has no ice-ufrag"),
        ("a=ice-pwd:", "it has no ice-pwd"),
        ("a=fingerprint:", "it has no DTLS fingerprint"),
    ] {
        if !session.iter().chain(video).any(|line| line.starts_with(attribute)) {
            return Err(bad(why));
        }
    }
    let formats: Vec<_> = formats(video).collect();
    let h264 = formats.iter().filter(|format| format.codec.eq_ignore_ascii_case("H264/90000"));
    let best = h264.filter_map(|format| Some((preference(format.fmtp)?, format))).min_by_key(|(rank, _)| *rank);
    let Some((_, best)) = best else { return Err(RejectReason::NoCommonCodec) };
    let rtx = formats.iter().find(|format| {
        format.codec.eq_ignore_ascii_case("rtx/90000")
            && parameter(format.fmtp, "apt").is_some_and(|apt| apt.parse() == Ok(best.payload_type))
    });
    Ok(VideoOffer {
        payload_type: best.payload_type,
        fmtp: best.fmtp.to_owned(),
        rtx_payload_type: rtx.map(|format| format.payload_type),
        transport_cc: has_feedback(video, best.payload_type, "transport-cc"),
    })
}

/// The offer without its candidates, and these. `rtc` would check every one of them at once, and refuse the whole offer for
/// an odd one; taken like trickled ones, they are counted and looked at singly.
pub(super) fn take_candidates(offer: &str) -> Result<(String, Vec<&str>), RejectReason> {
    let mut rest = String::with_capacity(offer.len());
    let mut candidates = Vec::new();
    for line in offer.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if line.starts_with("a=candidate:") {
            candidates.push(line);
        } else {
            rest.push_str(line);
            rest.push_str("\r\n");
        }
    }
    if candidates.len() > MAX_CANDIDATES {
        return Err(RejectReason::TooManyCandidates(MAX_CANDIDATES));
    }
    Ok((rest, candidates))
}

/// The ICE user name fragment of a description: how its STUN requests are told from others' (RFC 8839, section 5.4).
pub(super) fn ice_ufrag(sdp: &str) -> Option<&str> {
    sdp.lines().find_map(|line| line.trim_end().strip_prefix("a=ice-ufrag:"))
}

/// Puts our candidates into the first accepted section, and nowhere else.
///
/// `rtc` lists them in the first section, refused or not, and once more for RTCP; GStreamer 1.22 turns an answer down
/// whose only candidates stand in a refused section. `None`: every section is refused.
pub(super) fn place_candidates(answer: &str, candidates: &[Candidate]) -> Option<String> {
    let mut out = String::with_capacity(answer.len() + 96 * candidates.len());
    let mut placed = false;
    for section in sections(answer) {
        for line in &section {
            if !line.starts_with("a=candidate:") && *line != "a=end-of-candidates" {
                out.push_str(line);
                out.push_str("\r\n");
            }
        }
        let accepted = section[0].starts_with("m=") && section[0].split(' ').nth(1) != Some("0");
        if accepted && !placed {
            placed = true;
            for (index, candidate) in candidates.iter().enumerate() {
                out.push_str("a=");
                out.push_str(&candidate_line(index, candidate));
                out.push_str("\r\n");
            }
            out.push_str("a=end-of-candidates\r\n");
        }
    }
    placed.then_some(out)
}

/// A candidate (RFC 8839, section 5.1). Within its kind, the earlier in our list the higher its priority (RFC 8445, section 5.1.2.1);
/// no two of ours share kind, base and server, so each has a foundation of its own (section 5.1.1.3). By TCP all but relays come last,
/// and viewers are to connect (RFC 6544, sections 4.2 and 4.5).
pub(super) fn candidate_line(index: usize, candidate: &Candidate) -> String {
    let Candidate { address, transport, kind } = candidate;
    let (type_preference, related) = match (kind, transport) {
        (CandidateKind::Host, Transport::Udp) => (126, None),
        // As in Chromium, below a server-reflexive one.
        (CandidateKind::Host, Transport::Tcp) => (90, None),
        (CandidateKind::ServerReflexive { base }, _) => (100, Some(base)),
        (CandidateKind::Relayed { mapped }, _) => (0, Some(mapped)),
    };
    let later = |most: u32| most.saturating_sub(u32::try_from(index).unwrap_or(most));
    let (transport, local_preference, tcp_type) = match transport {
        Transport::Udp => ("udp", later(65_535), ""),
        Transport::Tcp => ("tcp", (4 << 13) | later(8191), " tcptype passive"), // 4: the direction is passive
    };
    let priority = (type_preference << 24) | (local_preference << 8) | 255;
    let related = related.map(|related| format!(" raddr {} rport {}", related.ip(), related.port()));
    format!(
        "candidate:{} 1 {transport} {priority} {} {} typ {}{}{tcp_type}",
        index + 1,
        address.ip(),
        address.port(),
        kind.slug(),
        related.unwrap_or_default()
    )
}

/// What a viewer's candidate is worth to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RemoteCandidate {
    /// An address to check.
    Usable,
    /// Well-formed, but nothing to check: a name behind mDNS (the viewer's own checks will show its address), or TCP (whoever
    /// has it connects to us).
    Ignored,
}

/// Checks a trickled candidate's form before `rtc` gets it.
pub(super) fn read_candidate(line: &str) -> Result<RemoteCandidate, RejectReason> {
    let bad = |why: &str| RejectReason::BadCandidate(why.to_owned());
    let value = line.strip_prefix("a=").unwrap_or(line);
    let Some(value) = value.strip_prefix("candidate:") else { return Err(bad("it does not begin with candidate:")) };
    let words: Vec<_> = value.split_ascii_whitespace().collect();
    let [_foundation, component, transport, priority, address, port, "typ", _kind, ..] = words[..] else {
        return Err(bad(
            "it is not of the form candidate:<foundation> <component> <transport> <priority> <address> <port> typ <type>",
        ));
    };
    if component.parse::<u16>().is_err() || priority.parse::<u32>().is_err() {
        return Err(bad("its component or priority is not a number"));
    }
    let Ok(port) = port.parse::<u16>() else { return Err(bad("its port is not a number up to 65535")) };
    if !transport.eq_ignore_ascii_case("udp") || address.ends_with(".local") {
        return Ok(RemoteCandidate::Ignored);
    }
    if address.parse::<std::net::IpAddr>().is_err() {
        return Err(bad("its address is neither an IP address nor an mDNS name"));
    }
    if port == 0 {
        return Err(bad("its port is 0"));
    }
    Ok(RemoteCandidate::Usable)
}

/// The address of a candidate that a TURN server lends the viewer.
pub(super) fn relayed_address(line: &str) -> Option<SocketAddr> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, _, _, _, address, port, "typ", "relay", ..] = words[..] else { return None };
    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}

struct Format<'a> {
    payload_type: u8,
    codec: &'a str,
    fmtp: &'a str,
}

fn formats<'a>(section: &'a [&'a str]) -> impl Iterator<Item = Format<'a>> {
    section.iter().filter_map(|line| line.strip_prefix("a=rtpmap:")).filter_map(|map| {
        let (number, codec) = map.split_once(' ')?;
        let fmtp = section.iter().find_map(|line| {
            let (of, parameters) = line.strip_prefix("a=fmtp:")?.split_once(' ')?;
            (of == number).then_some(parameters)
        });
        Some(Format { payload_type: number.parse().ok()?, codec, fmtp: fmtp.unwrap_or("") })
    })
}

/// Whether a format's RTCP feedback is offered (RFC 4585, section 4.2).
fn has_feedback(section: &[&str], payload_type: u8, kind: &str) -> bool {
    section
        .iter()
        .filter_map(|line| line.strip_prefix("a=rtcp-fb:")?.split_once(' '))
        .any(|(format, offered)| offered.trim() == kind && (format == "*" || format.parse() == Ok(payload_type)))
}

fn parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    fmtp.split(';').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// How well an offered H.264 suits the constrained baseline stream that edgecam sends; lower is better, `None`: not at all.
///
/// Pictures are sent in fragments, so packetization-mode 1 is a must; a client that names no parameters at all
/// (GStreamer's) takes it as well. Every profile's decoder decodes constrained baseline.
fn preference(fmtp: &str) -> Option<u8> {
    if fmtp.is_empty() {
        return Some(4);
    }
    if parameter(fmtp, "packetization-mode") != Some("1") {
        return None;
    }
    let profile = parameter(fmtp, "profile-level-id").unwrap_or("").to_ascii_lowercase();
    Some(match profile.get(..4) {
        Some("42e0" | "42c0") => 0,
        Some("4200") => 1,
        Some(_) => 2,
        None => 3,
    })
}

/// The lines of a description: first the session's, then each media section's. Never empty.
fn sections(sdp: &str) -> Vec<Vec<&str>> {
    let mut sections = vec![Vec::new()];
    for line in sdp.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if line.starts_with("m=") {
            sections.push(Vec::new());
        }
        if let Some(section) = sections.last_mut() {
            section.push(line);
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn offer(video: &str) -> String {
        let head = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n";
        let ice = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=fingerprint:sha-256 AA\r\n";
        format!("{head}{ice}m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\n{video}")
    }

    const CHROMIUM: &str = "m=video 9 UDP/TLS/RTP/SAVPF 96 102 103 108 109\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n\
        a=rtpmap:102 H264/90000\r\na=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f\r\n\
        a=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=102\r\na=rtpmap:108 H264/90000\r\n\
        a=fmtp:108 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n\
        a=rtpmap:109 rtx/90000\r\na=fmtp:109 apt=108\r\n";

    #[test]
    fn constrained_baseline_is_preferred_and_its_retransmission_format_found() {
        let video = read_offer(&offer(CHROMIUM)).unwrap();
        assert_eq!((video.payload_type, video.rtx_payload_type), (108, Some(109)));
        assert!(video.fmtp.ends_with("profile-level-id=42e01f"));
    }

    #[test]
    fn transport_wide_feedback_counts_when_it_is_offered_for_the_chosen_format() {
        for (line, is_offered) in [
            ("", false),
            ("a=rtcp-fb:102 transport-cc\r\n", false),
            ("a=rtcp-fb:108 transport-cc\r\n", true),
            ("a=rtcp-fb:* transport-cc\r\n", true),
            ("a=rtcp-fb:108 transport-cc2\r\na=rtcp-fb:108\r\na=rtcp-fb:x transport-cc\r\n", false),
        ] {
            assert_eq!(read_offer(&offer(&format!("{CHROMIUM}{line}"))).unwrap().transport_cc, is_offered, "{line}");
        }
    }

    #[test]
    fn each_unusable_offer_is_told_its_fault() {
        let refused = |sdp: &str| read_offer(sdp).unwrap_err().to_string();
        let mode_0 = CHROMIUM.replace("packetization-mode=1", "packetization-mode=0");
        for (sdp, word) in [
            ("hello".to_owned(), "v=0"),
            (offer(""), "no video section"),
            (offer(&CHROMIUM.replace("video 9", "video 0")), "port 0"),
            (offer(&CHROMIUM.replace("recvonly", "sendonly")), "recvonly"),
            (offer(&CHROMIUM.replace("recvonly", "inactive")), "recvonly"),
            (offer(&CHROMIUM.replace("H264", "H265")), "no H.264"),
            (offer(&mode_0), "no H.264"),
            (offer(CHROMIUM).replace("a=ice-ufrag:abcd\r\n", ""), "ice-ufrag"),
            (offer(CHROMIUM).replace("a=fingerprint:sha-256 AA\r\n", ""), "fingerprint"),
            (offer(&CHROMIUM.repeat(17)), "too many"),
        ] {
            assert!(refused(&sdp).contains(word), "{word}: {}", refused(&sdp));
        }
    }

    #[test]
    fn an_offers_candidates_are_taken_out_and_too_many_refuse_it() {
        let line = "a=candidate:1 1 udp 1 192.0.2.7 5 typ host";
        let with = |count: usize| format!("v=0\r\n{}m=video 9 X 1\r\n", format!("{line}\r\n").repeat(count));
        assert_eq!(take_candidates(&with(2)), Ok(("v=0\r\nm=video 9 X 1\r\n".into(), vec![line; 2])));
        assert_eq!(take_candidates(&with(65)), Err(RejectReason::TooManyCandidates(64)));
    }

    #[test]
    fn candidates_stand_in_the_first_accepted_section_only() {
        let answer = "v=0\r\nm=audio 0 X 0\r\na=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\na=end-of-candidates\r\n\
            m=video 9 X 108\r\na=mid:1\r\n";
        let placed = place_candidates(answer, &[Candidate::host("192.0.2.1:8189".parse().unwrap())]);
        assert_eq!(
            placed.unwrap(),
            "v=0\r\nm=audio 0 X 0\r\nm=video 9 X 108\r\na=mid:1\r\n\
             a=candidate:1 1 udp 2130706431 192.0.2.1 8189 typ host\r\na=end-of-candidates\r\n"
        );
    }

    #[test]
    fn who_can_be_reached_directly_is_tried_before_the_relay_and_each_candidate_says_where_it_came_from() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let host = Candidate::host(address("192.168.1.9:8189"));
        let reflexive = Candidate {
            address: address("203.0.113.5:40001"),
            kind: CandidateKind::ServerReflexive { base: host.address },
            ..host
        };
        let relayed = Candidate {
            address: address("198.51.100.2:50000"),
            kind: CandidateKind::Relayed { mapped: reflexive.address },
            ..host
        };
        let lines: Vec<_> =
            [host, reflexive, relayed].iter().enumerate().map(|(index, one)| candidate_line(index, one)).collect();
        assert_eq!(
            lines,
            [
                "candidate:1 1 udp 2130706431 192.168.1.9 8189 typ host",
                "candidate:2 1 udp 1694498559 203.0.113.5 40001 typ srflx raddr 192.168.1.9 rport 8189",
                "candidate:3 1 udp 16776703 198.51.100.2 50000 typ relay raddr 203.0.113.5 rport 40001",
            ]
        );
    }

    #[test]
    fn a_candidate_by_tcp_is_passive_and_below_all_others_but_relays() {
        let address = "[2001:db8::1]:8189".parse().unwrap();
        let line = candidate_line(2, &Candidate::tcp_host(address));
        assert_eq!(line, "candidate:3 1 tcp 1520434687 2001:db8::1 8189 typ host tcptype passive");
        let priority = |line: &str| line.split(' ').nth(3).unwrap().parse::<u32>().unwrap();
        assert!(priority(&line) < 100 << 24, "a server-reflexive one");
        assert!(priority(&candidate_line(0, &Candidate::tcp_host(address))) > priority(&line));
    }

    #[test]
    fn an_answer_that_refuses_everything_is_none() {
        assert_eq!(place_candidates("v=0\r\nm=video 0 X 0\r\n", &[]), None);
    }

    #[test]
    fn browsers_hidden_and_tcp_candidates_are_passed_over_and_nonsense_is_named() {
        let host = "candidate:1 1 udp 2122260223 192.0.2.7 50000 typ host generation 0";
        let hidden = host.replace("192.0.2.7", "6a1b.local");
        let tcp = host.replace("udp", "tcp");
        assert_eq!(read_candidate(host), Ok(RemoteCandidate::Usable));
        assert_eq!(read_candidate(&hidden), Ok(RemoteCandidate::Ignored));
        assert_eq!(read_candidate(&tcp), Ok(RemoteCandidate::Ignored));
        for bad in ["", "candidate:", "x", &host.replace("50000", "99999"), &host.replace("192.0.2.7", "example.org")] {
            read_candidate(bad).unwrap_err();
        }
    }
}
