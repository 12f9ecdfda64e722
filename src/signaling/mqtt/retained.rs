//! What the broker is to keep for whoever comes later: one payload a topic, the latest wins.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

/// All retained topics of this device, and which of them the broker has still to be told.
///
/// The queue of what is pending holds each topic once, so it is as large as the number of topics, however often they change.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<String, Entry>,
    pending: VecDeque<String>,
}

#[derive(Debug)]
struct Entry {
    payload: Bytes,
    is_pending: bool,
}

impl Retained {
    /// What the topic is to say from now on. The same once more is not sent again.
    pub(super) fn put(&mut self, topic: String, payload: impl Into<Bytes>) {
        let payload = payload.into();
        match self.topics.get_mut(&topic) {
            Some(entry) if entry.payload == payload => {}
            Some(entry) => {
                entry.payload = payload;
                if !std::mem::replace(&mut entry.is_pending, true) {
                    self.pending.push_back(topic);
                }
            }
            None => {
                self.pending.push_back(topic.clone());
                self.topics.insert(topic, Entry { payload, is_pending: true });
            }
        }
    }

    /// This topic once more, whether the broker has it or not.
    pub(super) fn send_again(&mut self, topic: &str) {
        if let Some(entry) = self.topics.get_mut(topic)
            && !std::mem::replace(&mut entry.is_pending, true)
        {
            self.pending.push_back(topic.to_owned());
        }
    }

    /// A new connection: the broker may have forgotten everything. `last` goes out after all others.
    pub(super) fn send_all_again(&mut self, last: &str) {
        self.pending = self.topics.keys().filter(|topic| *topic != last).cloned().collect();
        self.pending.extend(self.topics.contains_key(last).then(|| last.to_owned()));
        self.topics.values_mut().for_each(|entry| entry.is_pending = true);
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What to send next; it stays pending until [`Self::done`].
    pub(super) fn next(&self) -> Option<(&str, &Bytes)> {
        let topic = self.pending.front()?;
        self.topics.get(topic).map(|entry| (topic.as_str(), &entry.payload))
    }

    /// What [`Self::next`] gave has gone out, or never will.
    pub(super) fn done(&mut self) {
        if let Some(topic) = self.pending.pop_front()
            && let Some(entry) = self.topics.get_mut(&topic)
        {
            entry.is_pending = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(retained: &mut Retained) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some((topic, payload)) = retained.next() {
            sent.push(format!("{topic}={}", std::str::from_utf8(payload).unwrap()));
            retained.done();
        }
        sent
    }

    #[test]
    fn of_many_changes_only_the_latest_is_sent() {
        let mut retained = Retained::default();
        for viewers in 0..1000 {
            retained.put("state".into(), viewers.to_string());
        }
        assert_eq!(drain(&mut retained), ["state=999"]);
    }

    #[test]
    fn what_has_not_changed_is_not_sent_again() {
        let mut retained = Retained::default();
        retained.put("state".into(), "1");
        drain(&mut retained);
        retained.put("state".into(), "1");
        assert!(!retained.has_pending());
        retained.send_again("state");
        retained.send_again("state");
        assert_eq!(drain(&mut retained), ["state=1"]);
    }

    #[test]
    fn a_new_broker_is_told_everything_and_that_we_are_online_last() {
        let mut retained = Retained::default();
        for topic in ["info", "status", "zone"] {
            retained.put(topic.into(), topic);
        }
        drain(&mut retained);
        retained.put("info".into(), "new");
        retained.send_all_again("status");
        assert_eq!(drain(&mut retained), ["info=new", "zone=zone", "status=status"]);
    }
}
