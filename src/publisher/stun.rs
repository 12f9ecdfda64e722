//! What is read in a STUN datagram before anybody's ICE agent sees it.

/// Whether this answers a STUN request that our ICE agent found good (RFC 8489, section 5).
pub(super) fn is_stun_success(data: &[u8]) -> bool {
    const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
    data.starts_with(&BINDING_SUCCESS)
}

/// The USERNAME of a STUN request (RFC 8489, section 14.3): `ours:theirs` in ICE. `None`: not such a datagram.
pub(super) fn stun_username(data: &[u8]) -> Option<&str> {
    const HEADER: usize = 20;
    const USERNAME: [u8; 2] = [0x00, 0x06];
    const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
    const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
    if data.get(..2)? != BINDING_REQUEST || data.get(4..8)? != MAGIC_COOKIE {
        return None;
    }
    let mut rest = data.get(HEADER..)?;
    loop {
        let (kind, length) = (rest.get(..2)?, usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?])));
        let value = rest.get(4..4 + length)?;
        if kind == USERNAME {
            return std::str::from_utf8(value).ok();
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stun_request_names_whom_it_is_for() {
        let mut request = vec![0, 1, 0, 16, 0x21, 0x12, 0xA4, 0x42];
        request.extend([0; 12]);
        request.extend([0x80, 0x22, 0, 1, b'x', 0, 0, 0]); // SOFTWARE, padded
        request.extend([0, 6, 0, 5]);
        request.extend(*b"me:u\0");
        assert_eq!(stun_username(&request), Some("me:u\0"));
        for cut in 0..request.len() {
            assert_eq!(stun_username(&request[..cut]), None);
        }
    }
}
