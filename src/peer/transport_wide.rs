//! Transport-wide numbers: each packet that leaves bears one, and the viewer says when each arrived
//! (draft-holmer-rmcat-transport-wide-cc-extensions-01).

use std::time::Duration;

use bytes::Bytes;

use super::feedback::Arrivals;
use crate::core::congestion::Arrival;

pub(super) const TRANSPORT_WIDE_URI: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// A viewer's times count in steps of this from a zero of its own; the field has 24 bits, and wraps in twelve days.
const REFERENCE_STEP_US: i64 = 64_000;
const REFERENCE_BITS: u32 = 24;
/// Feedback on packets further back tells nothing any more, and half of all numbers cannot be told from those to come.
const REACH: u64 = 1 << 15;

/// One viewer's numbers, and its clock.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    next: u64,
    /// Where the viewer's clock stood in the last feedback, unwrapped, in steps.
    reference: Option<i64>,
}

impl Numbering {
    pub(super) fn starting_at(next: u64) -> Self {
        Self { next, reference: None }
    }

    pub(super) fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// What a viewer says about packets that left, in the order of their numbers. Nothing is said about others.
    pub(super) fn read(&mut self, arrivals: &Arrivals) -> Vec<Arrival> {
        let back = u64::from((self.next as u16).wrapping_sub(arrivals.base));
        let (1..=REACH, Some(base)) = (back, self.next.checked_sub(back)) else { return Vec::new() };
        let reference_us = self.unwrap(arrivals.reference) * REFERENCE_STEP_US;
        let at = |offset: i64| Duration::from_micros(u64::try_from(reference_us + offset).unwrap_or_default());
        let known = arrivals.packets.iter().take_while(|(ahead, _)| u64::from(*ahead) < back);
        known.map(|&(ahead, offset)| Arrival { number: base + u64::from(ahead), at: offset.map(at) }).collect()
    }

    fn unwrap(&mut self, reference: u32) -> i64 {
        const ROUND: i64 = 1 << REFERENCE_BITS;
        // One round ahead, so that feedback overtaken by the first is not before zero.
        let last = self.reference.unwrap_or(ROUND + i64::from(reference));
        let ahead = (i64::from(reference) - last).rem_euclid(ROUND);
        let unwrapped = if ahead < ROUND / 2 { last + ahead } else { last + ahead - ROUND };
        self.reference = Some(unwrapped);
        unwrapped
    }
}

/// A number as it stands in a packet's header extension, without an allocation.
pub(super) fn extension(number: u64) -> Bytes {
    let at = usize::from(number as u16) * 2;
    Bytes::from_static(&ALL[at..at + 2])
}

/// Every number that there is, one after the other.
static ALL: [u8; 2 << 16] = all();

const fn all() -> [u8; 2 << 16] {
    let mut all = [0; 2 << 16];
    let mut number = 0;
    while number < 1 << 16 {
        let bytes = (number as u16).to_be_bytes();
        (all[number * 2], all[number * 2 + 1]) = (bytes[0], bytes[1]);
        number += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrivals(base: u16, reference: u32, packets: &[(u16, Option<i64>)]) -> Arrivals {
        Arrivals { base, reference, packets: packets.to_vec() }
    }

    #[test]
    fn a_number_is_written_big_endian_and_wraps() {
        assert_eq!(extension(0x1_2345)[..], [0x23, 0x45]);
        assert_eq!(extension(0xFFFF)[..], [0xFF, 0xFF]);
    }

    #[test]
    fn what_is_said_about_wrapped_numbers_is_about_the_newest_ones() {
        let mut numbering = Numbering::starting_at(0x1_0003);
        let said = numbering.read(&arrivals(0xFFFE, 100, &[(0, Some(0)), (1, None), (2, Some(250)), (4, Some(500))]));
        let numbers: Vec<_> = said.iter().map(|arrival| (arrival.number, arrival.at.is_some())).collect();
        assert_eq!(numbers, [(0xFFFE, true), (0xFFFF, false), (0x1_0000, true), (0x1_0002, true)]);
        assert_eq!(said[2].at.unwrap() - said[0].at.unwrap(), Duration::from_micros(250));
    }

    #[test]
    fn packets_that_never_left_are_passed_over() {
        assert_eq!(Numbering::starting_at(0).read(&arrivals(0, 0, &[(0, Some(0))])), []);
        assert_eq!(Numbering::starting_at(10).read(&arrivals(10, 0, &[(0, Some(0))])), []);
        assert_eq!(Numbering::starting_at(10).read(&arrivals(9, 0, &[(0, None), (1, None), (2, Some(7))])).len(), 1);
        assert_eq!(Numbering::starting_at(10).read(&arrivals(65_000, 0, &[(0, Some(0))])), []);
    }

    #[test]
    fn the_viewers_clock_goes_on_over_its_wrap_and_back_for_feedback_that_was_overtaken() {
        let mut numbering = Numbering::starting_at(100);
        let mut at = |reference| numbering.read(&arrivals(1, reference, &[(0, Some(0))]))[0].at.unwrap();
        let (before, after, overtaken) = (at(0xFF_FFFF), at(1), at(0xFF_FFFE));
        assert_eq!(after - before, Duration::from_millis(128));
        assert_eq!(before - overtaken, Duration::from_millis(64));
    }

    proptest! {
        /// Whatever a viewer says: only about packets that left, each number as often as it is named, never a panic.
        #[test]
        fn hostile_feedback_names_nothing_that_did_not_leave(
            next in 0u64..200_000,
            said in proptest::collection::vec(
                (any::<u16>(), 0u32..1 << 24, proptest::collection::vec((any::<u16>(), any::<Option<i32>>()), 0..20)),
                0..20,
            ),
        ) {
            let mut numbering = Numbering::starting_at(next);
            for (base, reference, packets) in said {
                let packets: Vec<_> = packets.into_iter().map(|(at, offset)| (at, offset.map(i64::from))).collect();
                let read = numbering.read(&arrivals(base, reference, &packets));
                prop_assert!(read.len() <= packets.len());
                prop_assert!(read.iter().all(|arrival| arrival.number < next));
            }
        }
    }
}
