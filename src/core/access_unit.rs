//! One encoded picture, and the units that describe a stream.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// One encoded picture in Annex B form (ITU-T H.264, annex B), whole.
///
/// A keyframe is an IDR picture and carries its parameter sets (SPS and PPS) in front.
#[derive(Clone, Debug)]
pub struct AccessUnit {
    /// Presentation time on the stream's own clock.
    pub pts: MediaTime,
    /// When the camera delivered the raw picture, on this machine's monotonic clock.
    pub captured_at: Instant,
    pub is_keyframe: bool,
    pub data: Bytes,
}

/// A point on a stream's clock: time since the stream began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MediaTime(Duration);

impl MediaTime {
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The same point in ticks of 90 kHz, the RTP clock of video (RFC 6184, section 8.2.1), wrapped to 32 bits.
    pub fn rtp_ticks(self) -> u32 {
        // Wrapping is what RTP asks for, so the cut is the point of this cast.
        (self.0.as_nanos() * 90 / 1_000_000) as u32
    }
}

/// Bits per second, counted in whole kilobits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bitrate {
    kbps: u32,
}

impl Bitrate {
    pub const fn from_kbps(kbps: u32) -> Self {
        Self { kbps }
    }

    pub const fn kbps(self) -> u32 {
        self.kbps
    }

    pub const fn bits_per_second(self) -> u64 {
        self.kbps as u64 * 1000
    }
}

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kbit/s", self.kbps)
    }
}
