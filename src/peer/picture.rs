//! One picture in RTP payloads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::packetizer::Payloader;

use crate::core::access_unit::AccessUnit;

/// RTP payload bytes of a packet: with RTP, SRTP, UDP and IPv6 headers below the 1280 bytes that any path carries.
const PAYLOAD_SIZE: usize = 1180;

/// One picture, cut into RTP payloads: done once, whatever the number of viewers.
#[derive(Clone, Debug)]
pub struct Picture {
    pub(super) captured_at: Instant,
    is_keyframe: bool,
    pub(super) payloads: Arc<[Bytes]>,
}

impl Picture {
    /// Cuts by RFC 6184, section 5: parameter sets in a STAP-A, what does not fit a packet in FU-As.
    pub fn cut(unit: &AccessUnit) -> Self {
        // The payloader keeps parameter sets for the next picture when they come last; ours always come first.
        let payloads = H264Payloader::default().payload(PAYLOAD_SIZE, &unit.data).unwrap_or_default();
        Self { captured_at: unit.captured_at, is_keyframe: unit.is_keyframe, payloads: payloads.into() }
    }

    pub fn is_keyframe(&self) -> bool {
        self.is_keyframe
    }

    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }
}

/// A picture on its way to one viewer.
#[derive(Debug)]
pub(super) struct Underway {
    pub(super) picture: Picture,
    pub(super) timestamp: u32,
    /// How long the viewer is to hold it back, where that is said.
    pub(super) playout_delay: Option<Duration>,
    /// The first payload that has not left.
    next: usize,
}

impl Underway {
    pub(super) fn new(picture: Picture, timestamp: u32, playout_delay: Option<Duration>) -> Self {
        Self { picture, timestamp, playout_delay, next: 0 }
    }

    /// The next payload, and whether it is the last.
    pub(super) fn next(&mut self) -> Option<(Bytes, bool)> {
        let payload = self.picture.payloads.get(self.next)?.clone();
        self.next += 1;
        Some((payload, self.is_whole()))
    }

    /// It is sent whole.
    pub(super) fn is_whole(&self) -> bool {
        self.next >= self.picture.payloads.len()
    }
}
