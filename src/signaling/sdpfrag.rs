//! SDP fragments (RFC 8840, section 9): how a WHEP player trickles candidates and restarts ICE, and what it is told in return.
//!
//! Only the ICE attributes matter here; everything else in a fragment or a description is left alone.

/// ICE credentials of one side: `ice-ufrag` and `ice-pwd` (RFC 8839, section 5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceCredentials {
    pub ufrag: String,
    pub pwd: String,
}

/// What a player sent in a PATCH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub credentials: Option<IceCredentials>,
    /// Values of `a=candidate`, with the name: `candidate:…`.
    pub candidates: Vec<String>,
    pub end_of_candidates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFragment {
    #[error("the fragment holds neither a candidate nor ICE credentials")]
    Empty,
    #[error("ice-ufrag and ice-pwd belong together, of 4 to 256 and 22 to 256 letters, digits, + and /")]
    Credentials,
    #[error("a candidate line is longer than {MAX_CANDIDATE} characters")]
    LongCandidate,
}

/// Longer than any real candidate, with its host name, foundation and extensions.
const MAX_CANDIDATE: usize = 512;

impl Fragment {
    /// # Errors
    /// [`BadFragment`].
    pub fn parse(text: &str) -> Result<Self, BadFragment> {
        let mut fragment = Self { credentials: IceCredentials::find(text)?, ..Self::default() };
        for attribute in attributes(text) {
            if attribute.starts_with("candidate:") {
                if attribute.len() > MAX_CANDIDATE {
                    return Err(BadFragment::LongCandidate);
                }
                fragment.candidates.push(attribute.to_owned());
            }
            fragment.end_of_candidates |= attribute == "end-of-candidates";
        }
        if fragment == Self::default() { Err(BadFragment::Empty) } else { Ok(fragment) }
    }

    /// The credentials and candidates of a whole description, as a fragment.
    pub fn of_answer(sdp: &str) -> String {
        let mut fragment = String::new();
        if let Ok(Some(IceCredentials { ufrag, pwd })) = IceCredentials::find(sdp) {
            fragment += &format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n");
        }
        // All media are bundled into one transport (RFC 9143), whose candidates stand in one section.
        let Some(section) = sections(sdp).into_iter().find(|s| s.contains("\na=candidate:")) else { return fragment };
        for line in lines(section) {
            let is_wanted = line.starts_with("m=")
                || line.starts_with("a=mid:")
                || line.starts_with("a=candidate:")
                || line == "a=end-of-candidates";
            if is_wanted {
                fragment += line;
                fragment += "\r\n";
            }
        }
        fragment
    }
}

impl IceCredentials {
    /// The first credentials in a description or a fragment; `None` when there are none.
    ///
    /// # Errors
    /// One without the other, or characters that may not stand there.
    pub fn find(text: &str) -> Result<Option<Self>, BadFragment> {
        let value = |name: &str| attributes(text).find_map(|attribute| attribute.strip_prefix(name));
        match (value("ice-ufrag:"), value("ice-pwd:")) {
            (None, None) => Ok(None),
            (Some(ufrag), Some(pwd)) if is_ice(ufrag, 4) && is_ice(pwd, 22) => {
                Ok(Some(Self { ufrag: ufrag.to_owned(), pwd: pwd.to_owned() }))
            }
            _ => Err(BadFragment::Credentials),
        }
    }
}

/// The offer that a restarted player would have sent: the old one with new credentials, a higher version, and no candidates.
pub fn restarted(offer: &str, new: &IceCredentials) -> String {
    let mut sdp = String::with_capacity(offer.len() + 64);
    for line in lines(offer) {
        match line.split_once(':').map_or(line, |(name, _)| name) {
            "a=candidate" | "a=end-of-candidates" => continue,
            "a=ice-ufrag" => sdp += &format!("a=ice-ufrag:{}", new.ufrag),
            "a=ice-pwd" => sdp += &format!("a=ice-pwd:{}", new.pwd),
            _ if line.starts_with("o=") => sdp += &with_next_version(line),
            _ => sdp += line,
        }
        sdp += "\r\n";
    }
    sdp
}

/// `o=<username> <sess-id> <sess-version> …`: the version rises with every change (RFC 3264, section 8).
fn with_next_version(origin: &str) -> String {
    let mut parts: Vec<_> = origin.split(' ').map(str::to_owned).collect();
    if let Some(version) = parts.get_mut(2)
        && let Ok(number) = version.parse::<u64>()
    {
        *version = number.wrapping_add(1).to_string();
    }
    parts.join(" ")
}

fn is_ice(text: &str, at_least: usize) -> bool {
    (at_least..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty())
}

fn attributes(text: &str) -> impl Iterator<Item = &str> {
    lines(text).filter_map(|line| line.strip_prefix("a="))
}

/// The media sections of a description, each from its `m=` on.
fn sections(sdp: &str) -> Vec<&str> {
    let starts: Vec<_> = sdp.match_indices("\nm=").map(|(at, _)| at + 1).collect();
    let ends = starts.iter().skip(1).copied().chain([sdp.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &sdp[start..end]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PWD: &str = "0123456789012345678901";

    fn new() -> IceCredentials {
        IceCredentials { ufrag: "newU".into(), pwd: PWD.into() }
    }

    #[test]
    fn mediamtx_reader_trickles_by_media_section() {
        let text = format!(
            "a=ice-ufrag:abcd\r\na=ice-pwd:{PWD}\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\n\
             a=candidate:1 1 udp 2113937151 f3a1.local 50000 typ host generation 0 ufrag abcd\r\n"
        );
        let fragment = Fragment::parse(&text).unwrap();
        assert_eq!(fragment.credentials, Some(IceCredentials { ufrag: "abcd".into(), pwd: PWD.into() }));
        assert_eq!(
            fragment.candidates,
            ["candidate:1 1 udp 2113937151 f3a1.local 50000 typ host generation 0 ufrag abcd"]
        );
        assert!(!fragment.end_of_candidates);
    }

    #[test]
    fn line_ends_may_be_of_either_kind_and_the_last_may_be_missing() {
        let fragment = Fragment::parse("a=candidate:1 1 udp 1 10.0.0.1 1 typ host\na=end-of-candidates").unwrap();
        assert_eq!(fragment.candidates.len(), 1);
        assert!(fragment.end_of_candidates);
    }

    #[test]
    fn a_fragment_that_says_nothing_of_use_is_refused() {
        let long = format!("a=candidate:{}", "x".repeat(600));
        let table = [
            ("", BadFragment::Empty),
            ("m=video 9 RTP/AVP 0\r\na=mid:0\r\n", BadFragment::Empty),
            ("a=ice-ufrag:abcd\r\n", BadFragment::Credentials),
            ("a=ice-ufrag:abcd\r\na=ice-pwd:short\r\n", BadFragment::Credentials),
            ("a=ice-ufrag:a b c\r\na=ice-pwd:0123456789012345678901\r\n", BadFragment::Credentials),
            (long.as_str(), BadFragment::LongCandidate),
        ];
        for (text, wanted) in table {
            assert_eq!(Fragment::parse(text), Err(wanted), "{text}");
        }
    }

    #[test]
    fn a_restarted_offer_differs_in_credentials_version_and_candidates_alone() {
        let offer = format!(
            "v=0\r\no=- 46117 2 IN IP4 127.0.0.1\r\ns=-\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:abcd\r\n\
             a=ice-pwd:{PWD}x\r\na=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\na=end-of-candidates\r\na=mid:0\r\n"
        );
        let wanted = format!(
            "v=0\r\no=- 46117 3 IN IP4 127.0.0.1\r\ns=-\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:newU\r\n\
             a=ice-pwd:{PWD}\r\na=mid:0\r\n"
        );
        assert_eq!(restarted(&offer, &new()), wanted);
    }

    #[test]
    fn an_answer_becomes_a_fragment_of_the_section_that_has_the_candidates() {
        let answer = format!(
            "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nm=audio 0 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:newU\r\na=ice-pwd:{PWD}\r\na=mid:1\r\na=sendonly\r\n\
             a=candidate:1 1 udp 1 10.0.0.1 8189 typ host\r\na=end-of-candidates\r\n"
        );
        let wanted = format!(
            "a=ice-ufrag:newU\r\na=ice-pwd:{PWD}\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\n\
             a=candidate:1 1 udp 1 10.0.0.1 8189 typ host\r\na=end-of-candidates\r\n"
        );
        assert_eq!(Fragment::of_answer(&answer), wanted);
    }
}
