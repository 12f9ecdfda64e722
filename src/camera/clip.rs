//! A recorded clip as a live camera: played in a loop at a steady rate. For tests and demonstrations.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tracing::warn;

use super::input::Rate;
use super::{Feed, LowFeed, SourceError, VideoSource, now};
use crate::core::access_unit::Bitrate;
use crate::core::annex_b::{self, Contents, Sps, nal_type};
use crate::core::camera::Rendition;

/// The access units of a file, the first a keyframe, each keyframe with its parameter sets.
#[derive(Clone, Debug)]
pub struct Recording {
    units: Vec<Unit>,
    pub width: u32,
    pub height: u32,
}

#[derive(Clone, Debug)]
struct Unit {
    is_keyframe: bool,
    data: Bytes,
}

impl Recording {
    /// # Errors
    /// When the file cannot be read, or is no H.264 byte stream with a keyframe in it.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let unreadable = |source| SourceError::ClipUnreadable { path: path.to_owned(), source };
        let stream = Bytes::from(std::fs::read(path).map_err(unreadable)?);
        Self::parse(&stream).map_err(|why| SourceError::BadClip { path: path.to_owned(), why })
    }

    fn parse(stream: &Bytes) -> Result<Self, &'static str> {
        let mut parameter_sets = ParameterSets::default();
        let mut units: Vec<Unit> = annex_b::access_units(stream)
            .into_iter()
            .filter_map(|data| {
                let contents = Contents::of(&data);
                parameter_sets.learn(&data, contents);
                if contents.idr {
                    let data = parameter_sets.before(data, contents)?;
                    return Some(Unit { is_keyframe: true, data });
                }
                contents.slice.then_some(Unit { is_keyframe: false, data })
            })
            .collect();
        let first = units.iter().position(|unit| unit.is_keyframe);
        let first = first.ok_or("it holds no H.264 keyframe with parameter sets in Annex B form")?;
        units.drain(..first);
        let sps = Sps::find(&units[0].data).ok_or("its sequence parameter set cannot be read")?;
        Ok(Self { units, width: sps.width, height: sps.height })
    }
}

/// The newest SPS and PPS, with their start codes: a file may hold them only once, a live stream must not.
#[derive(Default)]
struct ParameterSets {
    sps: Bytes,
    pps: Bytes,
}

impl ParameterSets {
    fn learn(&mut self, unit: &[u8], contents: Contents) {
        let found = |wanted| {
            let mut found = BytesMut::new();
            for nal in annex_b::nal_units(unit).filter(|nal| annex_b::nal_type_of(nal) == wanted) {
                found.put_slice(&[0, 0, 0, 1]);
                found.put_slice(nal);
            }
            found.freeze()
        };
        if contents.sps {
            self.sps = found(nal_type::SPS);
        }
        if contents.pps {
            self.pps = found(nal_type::PPS);
        }
    }

    /// The unit with parameter sets in front; `None` while none are known.
    fn before(&self, unit: Bytes, contents: Contents) -> Option<Bytes> {
        if contents.is_keyframe() {
            return Some(unit);
        }
        if self.sps.is_empty() || self.pps.is_empty() {
            return None;
        }
        Some([&self.sps[..], &self.pps, &unit].concat().into())
    }
}

/// A recording that plays.
pub struct Clip {
    /// A request for a keyframe; dropped: the clip ends.
    wishes: SyncSender<()>,
    player: JoinHandle<()>,
}

impl Clip {
    /// Plays `recording` in a loop, from its first unit.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn play(recording: Recording, rate: Rate, feed: Feed) -> Result<Self, SourceError> {
        let (wishes, wished) = sync_channel(1);
        let interval = Duration::from_secs(1).div_f64(rate.as_f64().max(0.1));
        let player =
            std::thread::Builder::new().name("clip".into()).spawn(move || play(&recording, interval, &feed, &wished));
        let player = player.map_err(|error| SourceError::Graph(format!("no thread: {error}")))?;
        Ok(Self { wishes, player })
    }
}

impl VideoSource for Clip {
    /// Recorded pictures have the size they have.
    fn set_bitrate(&mut self, _: Rendition, _: Bitrate) {}

    /// Goes on with the next keyframe there is.
    fn request_keyframe(&mut self, _: Rendition) {
        // Full: the same wish is waiting already.
        let _ = self.wishes.try_send(());
    }

    /// There are no raw pictures to make a smaller one of.
    fn open_low(&mut self, _: Bitrate, _: LowFeed) {}

    fn close_low(&mut self) {}

    fn stop(self: Box<Self>) {
        drop(self.wishes);
        if self.player.join().is_err() {
            warn!("the clip's thread had panicked");
        }
    }
}

fn play(recording: &Recording, interval: Duration, feed: &Feed, wished: &Receiver<()>) {
    let units = &recording.units;
    let mut next = 0;
    let mut due = now();
    loop {
        match wait_until(due, wished) {
            Wake::Due => {}
            Wake::KeyframeWished => {
                let to_keyframe = (0..units.len()).find(|ahead| units[(next + ahead) % units.len()].is_keyframe);
                next = (next + to_keyframe.unwrap_or_default()) % units.len();
                continue;
            }
            Wake::Stopped => return,
        }
        feed.unit(due, units[next].is_keyframe, units[next].data.clone());
        next = (next + 1) % units.len();
        // Held up for long, the clip goes on from here: a live picture does not hurry to catch up.
        due = (due + interval).max(now().checked_sub(interval).unwrap_or(due));
    }
}

enum Wake {
    Due,
    KeyframeWished,
    Stopped,
}

fn wait_until(due: Instant, wished: &Receiver<()>) -> Wake {
    match wished.recv_timeout(due.saturating_duration_since(now())) {
        Ok(()) => Wake::KeyframeWished,
        Err(RecvTimeoutError::Timeout) => Wake::Due,
        Err(RecvTimeoutError::Disconnected) => Wake::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 1280x720, constrained baseline, from x264.
    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f, 0xd9, 0x00, 0x50, 0x05, 0xbb, 0x01, 0x10, 0x80];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xcb, 0x83, 0xcb, 0x20];
    const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0x88, 0x84, 0x21];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 0x24];

    #[test]
    fn each_keyframe_gets_the_parameter_sets_the_file_holds_once() {
        let recording = Recording::parse(&[SPS, PPS, IDR, P, IDR, P].concat().into()).unwrap();
        let keyframes: Vec<_> = recording.units.iter().filter(|unit| unit.is_keyframe).collect();
        assert_eq!(keyframes.len(), 2);
        assert!(keyframes.iter().all(|unit| Contents::of(&unit.data).is_keyframe()));
        assert_eq!((recording.width, recording.height), (1280, 720));
    }

    #[test]
    fn what_comes_before_the_first_keyframe_is_left_out() {
        let recording = Recording::parse(&[P, P, SPS, PPS, IDR, P].concat().into()).unwrap();
        assert_eq!(recording.units.len(), 2);
        assert!(recording.units[0].is_keyframe);
    }

    #[test]
    fn a_file_without_a_keyframe_is_no_clip() {
        for stream in [&b"\x00\x00\x00\x18ftypmp42"[..], P, &[IDR, P].concat(), b""] {
            assert!(Recording::parse(&Bytes::copy_from_slice(stream)).is_err());
        }
    }
}
