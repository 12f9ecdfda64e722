//! The newest pictures of one stream, and how far each viewer has read.
//!
//! ```text
//!   front                         newest keyframe            end
//!     │ K  p  p  p  p  p  K  p  p  │ K  p  p  p               │
//!               ▲ a cursor                      ▲ another
//! ```
//! A reader only ever starts at a keyframe (`K`), since what follows one cannot be decoded without it. A reader that is
//! overtaken by the front jumps to a keyframe and is told how much it missed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What the ring needs to know about a picture; `P` is whatever its owner keeps of it.
#[derive(Clone, Debug)]
struct Entry<P> {
    captured_at: Instant,
    is_keyframe: bool,
    picture: P,
}

/// A bounded store of pictures. When it is full the oldest picture goes.
#[derive(Debug)]
pub struct GopRing<P> {
    entries: VecDeque<Entry<P>>,
    capacity: usize,
    /// The number of the picture at the front; pictures are numbered from 0 for the life of the ring.
    front: u64,
}

/// One reader's place in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    next: u64,
    /// Everything up to the next keyframe is passed over.
    awaits_keyframe: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<P> {
    Picture(P),
    /// The reader was too slow for this many pictures; reading goes on at a keyframe.
    Skipped(u64),
    Empty,
}

impl<P: Clone> GopRing<P> {
    /// A ring that keeps the newest `capacity` pictures (at least one).
    pub fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), capacity: capacity.max(1), front: 0 }
    }

    pub fn push(&mut self, captured_at: Instant, is_keyframe: bool, picture: P) {
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
            self.front += 1;
        }
        self.entries.push_back(Entry { captured_at, is_keyframe, picture });
    }

    /// Forgets every picture. All readers go on at the next keyframe to come.
    pub fn clear(&mut self) {
        // One further: so those are overtaken, too, who have read everything.
        self.front = self.end() + 1;
        self.entries.clear();
    }

    /// A place to start: the newest keyframe if it is younger than `fresh`, else the next one to come.
    ///
    /// An old keyframe is no start: the reader would get a burst of stale pictures.
    pub fn join(&self, now: Instant, fresh: Duration) -> Cursor {
        let start = self.newest_keyframe().filter(|&at| {
            let entry = &self.entries[self.index(at)];
            now.saturating_duration_since(entry.captured_at) < fresh
        });
        match start {
            Some(next) => Cursor { next, awaits_keyframe: false },
            None => Cursor { next: self.end(), awaits_keyframe: true },
        }
    }

    /// The next picture for this reader, who then stands behind it.
    pub fn read(&self, cursor: &mut Cursor) -> Next<P> {
        if cursor.next < self.front {
            return Next::Skipped(self.skip_to_keyframe(cursor));
        }
        let from = cursor.next;
        if !self.seek_keyframe(cursor) || cursor.next > from {
            return if cursor.next > from { Next::Skipped(cursor.next - from) } else { Next::Empty };
        }
        if cursor.next == self.end() {
            return Next::Empty;
        }
        let picture = self.entries[self.index(cursor.next)].picture.clone();
        cursor.next += 1;
        Next::Picture(picture)
    }

    /// Takes a reader who waits for a keyframe to the first one. False: there is none yet.
    pub fn seek_keyframe(&self, cursor: &mut Cursor) -> bool {
        if cursor.awaits_keyframe {
            let mut unread = cursor.next.max(self.front)..self.end();
            *cursor = match unread.find(|&at| self.entries[self.index(at)].is_keyframe) {
                Some(next) => Cursor { next, awaits_keyframe: false },
                None => Cursor { next: self.end(), awaits_keyframe: true },
            };
        }
        !cursor.awaits_keyframe
    }

    /// Gives up what this reader has not read: on at the newest keyframe it has not seen, else at the next one to come. Returns
    /// how many pictures it passed over.
    pub fn skip_to_keyframe(&self, cursor: &mut Cursor) -> u64 {
        let from = cursor.next;
        *cursor = match self.newest_keyframe().filter(|&at| at >= from) {
            Some(next) => Cursor { next, awaits_keyframe: false },
            None => Cursor { next: self.end(), awaits_keyframe: true },
        };
        cursor.next - from
    }

    /// Whether what this reader was to read next is gone.
    pub fn is_overtaken(&self, cursor: &Cursor) -> bool {
        !cursor.awaits_keyframe && cursor.next < self.front
    }

    /// How much older than the newest picture is the one that this reader is to read next.
    pub fn behind(&self, cursor: &Cursor) -> Duration {
        if cursor.awaits_keyframe || cursor.next < self.front || cursor.next >= self.end() {
            return Duration::ZERO;
        }
        let newest = &self.entries[self.entries.len() - 1];
        newest.captured_at.saturating_duration_since(self.entries[self.index(cursor.next)].captured_at)
    }

    /// How many pictures this reader has not read.
    pub fn unread(&self, cursor: &Cursor) -> u64 {
        self.end() - cursor.next.max(self.front).min(self.end())
    }

    /// Whether this reader waits for a keyframe that is not there yet.
    pub fn awaits_keyframe(&self, cursor: &Cursor) -> bool {
        cursor.awaits_keyframe
    }

    fn newest_keyframe(&self) -> Option<u64> {
        let index = self.entries.iter().rposition(|entry| entry.is_keyframe)?;
        Some(self.front + index as u64)
    }

    fn end(&self) -> u64 {
        self.front + self.entries.len() as u64
    }

    /// The index of a picture that is in the ring: its distance from the front, which fits since the ring does.
    fn index(&self, at: u64) -> usize {
        (at - self.front) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRESH: Duration = Duration::from_millis(500);

    /// A ring fed one picture each 33 ms: `K` is a keyframe, anything else is not. A picture is its number.
    fn ring(capacity: usize, pictures: &str) -> (GopRing<u64>, Instant) {
        let start = Instant::now();
        let mut ring = GopRing::new(capacity);
        let mut now = start;
        for (number, kind) in (0..).zip(pictures.chars()) {
            now = start + Duration::from_millis(33 * number);
            ring.push(now, kind == 'K', number);
        }
        (ring, now)
    }

    #[test]
    fn a_viewer_who_joins_just_after_a_keyframe_starts_with_it() {
        let (ring, now) = ring(100, "KpppppKpp");
        let mut cursor = ring.join(now, FRESH);
        assert_eq!(ring.read(&mut cursor), Next::Picture(6));
        assert_eq!(ring.read(&mut cursor), Next::Picture(7));
    }

    #[test]
    fn a_viewer_who_joins_long_after_a_keyframe_waits_for_the_next() {
        let (mut ring, now) = ring(100, "Kpppppppppppppppppppppppp");
        let mut cursor = ring.join(now, FRESH);
        assert_eq!(ring.read(&mut cursor), Next::Empty);
        ring.push(now, false, 100);
        assert_eq!(ring.read(&mut cursor), Next::Skipped(1));
        assert_eq!(ring.read(&mut cursor), Next::Empty);
        ring.push(now, true, 101);
        assert_eq!(ring.read(&mut cursor), Next::Picture(101));
    }

    #[test]
    fn an_overtaken_reader_is_told_and_goes_on_at_a_keyframe() {
        let (mut ring, now) = ring(4, "Kppp");
        let mut cursor = ring.join(now, FRESH);
        for (number, is_keyframe) in [(4, false), (5, true), (6, false), (7, false)] {
            ring.push(now, is_keyframe, number);
        }
        assert_eq!(ring.read(&mut cursor), Next::Skipped(5));
        assert_eq!(ring.read(&mut cursor), Next::Picture(5));
    }

    #[test]
    fn a_reader_that_gives_up_its_place_waits_for_a_keyframe_it_has_not_seen() {
        let (mut ring, now) = ring(100, "Kpp");
        let mut cursor = ring.join(now, FRESH);
        ring.read(&mut cursor);
        ring.skip_to_keyframe(&mut cursor);
        assert_eq!(ring.read(&mut cursor), Next::Empty);
        ring.push(now, true, 3);
        assert_eq!(ring.read(&mut cursor), Next::Picture(3));
    }

    #[test]
    fn a_reader_is_as_far_behind_as_its_next_picture_is_older_than_the_newest() {
        let (mut ring, now) = ring(100, "Kppp");
        let mut cursor = ring.join(now, FRESH);
        assert_eq!((ring.behind(&cursor), ring.unread(&cursor)), (Duration::from_millis(99), 4));
        ring.read(&mut cursor);
        assert_eq!((ring.behind(&cursor), ring.unread(&cursor)), (Duration::from_millis(66), 3));
        assert_eq!(ring.skip_to_keyframe(&mut cursor), 3);
        ring.push(now, false, 4);
        assert_eq!(ring.behind(&cursor), Duration::ZERO, "it waits for a keyframe");
    }

    #[test]
    fn a_reader_that_waits_is_taken_to_the_first_keyframe() {
        let (mut ring, now) = ring(100, "Kp");
        let mut cursor = ring.join(now, Duration::ZERO);
        assert!(!ring.seek_keyframe(&mut cursor));
        for (number, is_keyframe) in [(2, false), (3, true), (4, true)] {
            ring.push(now, is_keyframe, number);
        }
        assert!(ring.seek_keyframe(&mut cursor));
        assert_eq!(ring.read(&mut cursor), Next::Picture(3));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push { is_keyframe: bool },
        Clear,
        Join,
        Read(usize),
        Skip(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => any::<bool>().prop_map(|is_keyframe| Op::Push { is_keyframe }),
            1 => Just(Op::Clear),
            1 => Just(Op::Join),
            4 => (0..4usize).prop_map(Op::Read),
            1 => (0..4usize).prop_map(Op::Skip),
        ]
    }

    proptest! {
        /// What a reader gets is: after a join, a skip or a loss a keyframe, and then each picture in its turn; and nothing
        /// from before the ring was cleared.
        #[test]
        fn no_reader_starts_inside_a_gop(capacity in 1usize..8, ops in proptest::collection::vec(op(), 0..200)) {
            let now = Instant::now();
            let mut ring = GopRing::new(capacity);
            let mut pushed: Vec<bool> = Vec::new();
            let mut cleared_at = 0;
            let mut readers: Vec<(Cursor, Option<u64>)> = Vec::new(); // the cursor, and the picture it read last
            for op in ops {
                match op {
                    Op::Push { is_keyframe } => {
                        ring.push(now, is_keyframe, pushed.len() as u64);
                        pushed.push(is_keyframe);
                    }
                    Op::Clear => {
                        ring.clear();
                        cleared_at = pushed.len() as u64;
                        readers.iter_mut().for_each(|(_, last)| *last = None);
                    }
                    Op::Join => readers.push((ring.join(now, FRESH), None)),
                    Op::Read(reader) => if let Some((cursor, last)) = readers.get_mut(reader) {
                        match ring.read(cursor) {
                            Next::Picture(number) => {
                                prop_assert!(number >= cleared_at, "picture {number} was forgotten");
                                let follows = last.is_some_and(|last| last + 1 == number);
                                prop_assert!(follows || pushed[number as usize], "picture {number} follows {last:?}");
                                *last = Some(number);
                            }
                            Next::Skipped(_) => *last = None,
                            Next::Empty => {}
                        }
                    },
                    Op::Skip(reader) => if let Some((cursor, last)) = readers.get_mut(reader) {
                        ring.skip_to_keyframe(cursor);
                        *last = None;
                    },
                }
            }
        }
    }
}
