//! What waits for room on the connection: first come, first served, but nobody takes the room of all others. Pictures, which are
//! larger by far, wait elsewhere (`machines`).

use std::collections::VecDeque;

use super::broker::{Line, Outgoing, Unsent};

/// Messages that may wait.
const MAX_WAITING: usize = 256;
/// Those of one topic, so of one client: somebody who has much said to them waits for themselves.
const MAX_PER_TOPIC: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Post(VecDeque<Outgoing>);

impl Post {
    /// Hands a message over, or lets it wait.
    ///
    /// # Errors
    /// Too many wait already, or it is too large for this broker.
    pub(super) fn send(&mut self, message: Outgoing, line: &Line) -> Result<(), Unsent> {
        line.fits(&message)?;
        self.keep(message)?;
        self.drain(line);
        Ok(())
    }

    /// Hands over what there is room for.
    pub(super) fn drain(&mut self, line: &Line) {
        while let Some(message) = self.0.front() {
            if line.try_publish(message) == Err(Unsent::Full) {
                return;
            }
            self.0.pop_front();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connection is gone; what waited for it is of no use later. How much that was.
    pub(super) fn clear(&mut self) -> usize {
        let waited = self.0.len();
        self.0.clear();
        waited
    }

    fn keep(&mut self, message: Outgoing) -> Result<(), Unsent> {
        let same = self.0.iter().filter(|waiting| waiting.topic == message.topic).count();
        if self.0.len() >= MAX_WAITING || same >= MAX_PER_TOPIC {
            return Err(Unsent::Full);
        }
        self.0.push_back(message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(topic: &str) -> Outgoing {
        Outgoing { topic: topic.into(), ..Outgoing::default() }
    }

    #[test]
    fn one_client_cannot_take_the_room_of_the_others() {
        let mut post = Post::default();
        let taken = (0..1000).filter(|_| post.keep(to("rsp/flood")).is_ok()).count();
        assert_eq!(taken, MAX_PER_TOPIC);
        assert!(post.keep(to("rsp/anna")).is_ok());
    }

    #[test]
    fn what_waits_is_bounded_whoever_it_is_for() {
        let mut post = Post::default();
        let taken = (0..1000).filter(|client| post.keep(to(&format!("rsp/{client}"))).is_ok()).count();
        assert_eq!(taken, MAX_WAITING);
        assert_eq!(post.clear(), MAX_WAITING);
        assert!(post.is_empty());
    }
}
