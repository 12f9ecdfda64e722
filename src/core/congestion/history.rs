//! What was sent and not yet answered.

use std::collections::VecDeque;
use std::time::Duration;

/// Feedback about older packets tells nothing any more.
const KEPT: Duration = Duration::from_secs(3);
const MOST_KEPT: usize = 8192;
/// Numbers that were given to packets of which nobody told: more in a row, and it is a new beginning.
const GREATEST_GAP: u64 = 1000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Since the viewer came.
    pub(super) at: Duration,
    pub(super) bytes: u32,
    pub(super) probe: Option<u32>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Lost,
    Arrived,
}

/// What a line of feedback adds to what was known.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    Arrived(Sent),
    /// It was thought lost.
    ArrivedLate(Sent),
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// Of the oldest packet kept.
    first: u64,
    packets: VecDeque<Sent>,
}

impl History {
    pub(super) fn push(&mut self, number: u64, bytes: usize, probe: Option<u32>, at: Duration) {
        let next = self.next();
        if self.packets.is_empty() || number > next.saturating_add(GREATEST_GAP) {
            self.packets.clear();
            self.first = number;
        } else if number < next {
            return;
        } else {
            let blank = Sent { at, bytes: 0, probe: None, fate: Fate::Arrived };
            self.packets.extend((next..number).map(|_| blank));
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.packets.push_back(Sent { at, bytes, probe, fate: Fate::Unknown });
        while self.packets.len() > MOST_KEPT || self.packets.front().is_some_and(|oldest| at > oldest.at + KEPT) {
            self.packets.pop_front();
            self.first = self.first.saturating_add(1);
        }
    }

    /// `None`: nothing new, or nothing we know of.
    pub(super) fn answer(&mut self, number: u64, has_arrived: bool) -> Option<News> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let sent = self.packets.get_mut(index)?;
        match (sent.fate, has_arrived) {
            (Fate::Unknown, true) => {
                sent.fate = Fate::Arrived;
                Some(News::Arrived(*sent))
            }
            (Fate::Lost, true) => {
                sent.fate = Fate::Arrived;
                Some(News::ArrivedLate(*sent))
            }
            (Fate::Unknown, false) => {
                sent.fate = Fate::Lost;
                Some(News::Lost)
            }
            (Fate::Arrived, _) | (Fate::Lost, false) => None,
        }
    }

    /// The number after the newest.
    pub(super) fn next(&self) -> u64 {
        self.first.saturating_add(self.packets.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(numbers: impl IntoIterator<Item = u64>) -> History {
        let mut history = History::default();
        for number in numbers {
            history.push(number, 1200, None, Duration::from_millis(number));
        }
        history
    }

    #[test]
    fn each_packet_arrives_once_and_may_come_late() {
        let mut history = filled(10..20);
        assert!(matches!(history.answer(12, true), Some(News::Arrived(_))));
        assert!(history.answer(12, true).is_none());
        assert!(history.answer(12, false).is_none(), "what arrived is not lost later");
        assert!(matches!(history.answer(13, false), Some(News::Lost)));
        assert!(history.answer(13, false).is_none());
        assert!(matches!(history.answer(13, true), Some(News::ArrivedLate(_))));
        assert!(history.answer(9, true).is_none());
        assert!(history.answer(20, true).is_none());
    }

    #[test]
    fn numbers_given_to_others_are_stepped_over() {
        let mut history = filled([5, 6, 9]);
        assert!(history.answer(7, true).is_none());
        assert!(matches!(history.answer(9, true), Some(News::Arrived(sent)) if sent.bytes == 1200));
        assert_eq!(history.next(), 10);
        history.push(1_000_000, 1, None, Duration::from_secs(1));
        assert!(history.answer(6, true).is_none());
        assert!(matches!(history.answer(1_000_000, true), Some(News::Arrived(_))));
    }

    #[test]
    fn it_forgets_what_is_old_and_never_grows_without_bound() {
        let mut history = filled(0..10_000);
        assert!(history.packets.len() <= 3001);
        for number in 10_000..30_000 {
            history.push(number, 1, None, Duration::from_secs(10));
        }
        assert!(history.packets.len() <= MOST_KEPT);
    }
}
