//! Requests that are not answered yet, and when they are sent again (RFC 8489, section 6.2, cut short: who waits for an answer
//! here has others to turn to).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message::{Ask, Id, Signing, request};

/// Over UDP, after each sending. Six sendings in five seconds: a twentieth of the packets lost gives up on a good server less
/// than once in a hundred thousand requests.
const WAITS: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
];
/// A stream repeats by itself, but what was written to it may stand still for a while.
const STREAM_WAITS: [Duration; 2] = [Duration::from_secs(5); 2];
/// An allocation that is asked for twice is refused, if the first request did arrive (RFC 8656, section 7.2).
const STREAM_WAITS_ONCE: [Duration; 1] = [Duration::from_secs(5)];
/// How often the same thing is asked with another nonce.
const ROUNDS: u8 = 3;

pub(super) struct Transactions {
    open: Vec<Open>,
    is_stream: bool,
}

struct Open {
    id: Id,
    ask: Ask,
    round: u8,
    raw: Bytes,
    waits: &'static [Duration],
    sendings: usize,
    due: Instant,
}

/// What became of a request that was answered: take it as answered, or ask it again.
pub(super) struct Answered {
    pub(super) ask: Ask,
    round: u8,
}

impl Transactions {
    pub(super) fn new(is_stream: bool) -> Self {
        Self { open: Vec::new(), is_stream }
    }

    /// The request to send; `None` when it cannot be put into words.
    pub(super) fn begin(&mut self, ask: Ask, signing: Option<&Signing>, now: Instant) -> Option<Bytes> {
        self.begin_round(ask, 1, signing, now)
    }

    /// The same once more, signed anew; `None` when that was done often enough.
    pub(super) fn again(&mut self, answered: &Answered, signing: &Signing, now: Instant) -> Option<Bytes> {
        if answered.round == ROUNDS {
            return None;
        }
        self.begin_round(answered.ask, answered.round + 1, Some(signing), now)
    }

    fn begin_round(&mut self, ask: Ask, round: u8, signing: Option<&Signing>, now: Instant) -> Option<Bytes> {
        let (id, raw) = request(ask, signing)?;
        let waits: &[Duration] = match ask {
            _ if !self.is_stream => &WAITS,
            Ask::Allocate => &STREAM_WAITS_ONCE,
            _ => &STREAM_WAITS,
        };
        self.open.push(Open { id, ask, round, raw: raw.clone(), waits, sendings: 1, due: now + waits[0] });
        Some(raw)
    }

    pub(super) fn is_open(&self, id: &Id) -> bool {
        self.open.iter().any(|open| open.id == *id)
    }

    /// Ends the transaction that this is the answer to.
    pub(super) fn take(&mut self, id: &Id) -> Option<Answered> {
        let at = self.open.iter().position(|open| open.id == *id)?;
        let Open { ask, round, .. } = self.open.swap_remove(at);
        Some(Answered { ask, round })
    }

    /// What is to be sent again, and what is given up.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> (Vec<Bytes>, Vec<Ask>) {
        let (mut repeats, mut given_up) = (Vec::new(), Vec::new());
        self.open.retain_mut(|open| {
            if open.due > now {
                return true;
            }
            match open.waits.get(open.sendings) {
                Some(wait) => {
                    repeats.push(open.raw.clone());
                    open.sendings += 1;
                    open.due = now + *wait;
                    true
                }
                None => {
                    given_up.push(open.ask);
                    false
                }
            }
        });
        (repeats, given_up)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_udp_a_request_is_repeated_and_given_up_after_five_seconds() {
        let start = Instant::now();
        let mut transactions = Transactions::new(false);
        let first = transactions.begin(Ask::Binding, None, start).unwrap();
        let mut sent = 1;
        loop {
            let now = transactions.poll_timeout().unwrap();
            let (repeats, given_up) = transactions.handle_timeout(now);
            assert!(repeats.iter().all(|again| *again == first));
            sent += repeats.len();
            if given_up == [Ask::Binding] {
                assert_eq!((sent, now - start), (6, Duration::from_secs(5)));
                break;
            }
        }
        assert_eq!(transactions.poll_timeout(), None);
    }

    #[test]
    fn on_a_stream_an_allocation_is_asked_for_once_and_all_else_twice() {
        let start = Instant::now();
        let mut transactions = Transactions::new(true);
        transactions.begin(Ask::Allocate, None, start);
        let (repeats, given_up) = transactions.handle_timeout(transactions.poll_timeout().unwrap());
        assert_eq!((repeats.len(), given_up), (0, vec![Ask::Allocate]));
        let refresh = Ask::Refresh { lifetime: None };
        let first = transactions.begin(refresh, None, start).unwrap();
        let (repeats, given_up) = transactions.handle_timeout(transactions.poll_timeout().unwrap());
        assert_eq!((repeats, given_up), (vec![first], vec![]));
        let (repeats, given_up) = transactions.handle_timeout(transactions.poll_timeout().unwrap());
        assert_eq!((repeats.len(), given_up), (0, vec![refresh]));
    }

    #[test]
    fn a_server_that_always_wants_another_nonce_is_obeyed_twice() {
        let now = Instant::now();
        let signing = Signing::new("u", "p", "r".to_owned(), "n".to_owned()).unwrap();
        let mut transactions = Transactions::new(false);
        transactions.begin(Ask::Allocate, None, now);
        for obeyed in [true, true, false] {
            let id = transactions.open[0].id;
            let answered = transactions.take(&id).unwrap();
            assert_eq!(transactions.again(&answered, &signing, now).is_some(), obeyed);
        }
    }
}
