//! One encoded picture, and the units that describe a stream.

use std::fmt;
use std::time::Instant;

use bytes::Bytes;

/// One encoded picture in Annex B form (ITU-T H.264, annex B), whole.
///
/// A keyframe is an IDR picture and carries its parameter sets (SPS and PPS) in front.
#[derive(Clone, Debug)]
pub struct AccessUnit {
    /// When the camera took the picture, on this machine's monotonic clock: the stream's only time. It goes on when a
    /// camera is opened again, so viewers see no break in their clock.
    pub captured_at: Instant,
    pub is_keyframe: bool,
    pub data: Bytes,
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
