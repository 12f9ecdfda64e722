//! Datagrams in a byte stream, each behind its length in two bytes (RFC 4571, section 2), as ICE over TCP wants them
//! (RFC 6544, section 3).

/// What a viewer sends is checks, handshakes and reports: all fit into one Ethernet frame.
pub const LARGEST_FRAME: usize = 2048;
const HEADER: usize = 2;

/// Takes a byte stream apart, however it was cut on its way.
#[derive(Debug, Default)]
pub struct Frames {
    data: Vec<u8>,
    /// Bytes at the front of `data` that are given out already.
    taken: usize,
}

/// No viewer sends frames so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, more than the {LARGEST_FRAME} that any viewer sends")]
pub struct TooLong(pub usize);

impl Frames {
    /// What came next. Whoever takes all frames out before pushing more keeps this below two frames and `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.drain(..self.taken);
        self.taken = 0;
        self.data.extend_from_slice(bytes);
    }

    /// The next whole datagram. Empty frames are passed over: they carry nothing.
    ///
    /// # Errors
    /// A frame is longer than a viewer's can be; nothing behind it can be trusted.
    pub fn next_datagram(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let rest = &self.data[self.taken..];
            let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
            let length = usize::from(u16::from_be_bytes(*header));
            if length > LARGEST_FRAME {
                return Err(TooLong(length));
            }
            if rest.len() < length {
                return Ok(None);
            }
            let start = self.taken + HEADER;
            self.taken = start + length;
            if length > 0 {
                return Ok(Some(&self.data[start..self.taken]));
            }
        }
    }
}

/// How long a datagram is as a frame.
pub fn framed_len(datagram: &[u8]) -> usize {
    HEADER + datagram.len()
}

/// Appends a datagram as a frame. One of more than 65 535 bytes has no frame, nor could it have come as a datagram.
pub fn put(datagram: &[u8], stream: &mut impl for<'a> Extend<&'a u8>) {
    let Ok(length) = u16::try_from(datagram.len()) else { return };
    stream.extend(&length.to_be_bytes());
    stream.extend(datagram);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(frames: &mut Frames) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| frames.next_datagram().unwrap().map(<[u8]>::to_vec)).collect()
    }

    proptest! {
        #[test]
        fn datagrams_come_out_as_they_went_in_wherever_the_stream_is_cut(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=LARGEST_FRAME), 0..8),
            cuts in prop::collection::vec(1_usize..3000, 1..50),
        ) {
            let mut stream = Vec::new();
            for datagram in &datagrams {
                put(datagram, &mut stream);
            }
            let (mut frames, mut got, mut rest) = (Frames::default(), Vec::new(), stream.as_slice());
            for cut in cuts.iter().cycle() {
                let (bytes, later) = rest.split_at((*cut).min(rest.len()));
                frames.push(bytes);
                got.extend(all(&mut frames));
                prop_assert!(frames.data.len() <= 2 * (LARGEST_FRAME + HEADER) + cut);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, datagrams);
        }
    }

    #[test]
    fn what_is_longer_than_any_viewer_sends_is_refused_before_it_is_read() {
        let mut frames = Frames::default();
        frames.push(&[0, 1, 7, 0xFF, 0xFF]);
        assert_eq!(frames.next_datagram(), Ok(Some(&[7][..])));
        assert_eq!(frames.next_datagram(), Err(TooLong(65_535)));
    }

    #[test]
    fn empty_frames_carry_nothing() {
        let mut frames = Frames::default();
        frames.push(&[0, 0, 0, 0, 0, 1, 9, 0, 0]);
        assert_eq!(all(&mut frames), [[9]]);
    }
}
