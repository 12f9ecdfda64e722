//! Where camera threads and the engine meet: a short queue a camera, and one bell for all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::core::access_unit::AccessUnit;
use crate::core::camera::Rendition;
use crate::core::signal::CameraId;

/// Access units that may wait for the engine: two seconds' worth, so only a stuck engine fills it.
const CAPACITY: usize = 64;

/// The queues of all renditions. When one is full it is emptied and takes nothing until the next keyframe, so that no viewer
/// is ever handed a picture whose reference is missing.
#[derive(Debug)]
pub struct Hub {
    queues: Mutex<BTreeMap<(CameraId, Rendition), Queue>>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    units: VecDeque<Delivery>,
    broken: bool,
}

/// An access unit, and when the encoder gave it out.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub unit: AccessUnit,
    pub encoded_at: Instant,
}

impl Hub {
    pub fn new(cameras: impl IntoIterator<Item = CameraId>) -> Arc<Self> {
        let queues = cameras
            .into_iter()
            .flat_map(|camera| Rendition::ALL.map(|rendition| ((camera.clone(), rendition), Queue::default())));
        Arc::new(Self { queues: Mutex::new(queues.collect()), bell: Notify::new() })
    }

    /// What a camera calls with each picture, on its own thread. Never waits longer than for a moment's lock.
    pub fn sink(self: &Arc<Self>, camera: CameraId) -> Arc<dyn Fn(Rendition, AccessUnit) + Send + Sync> {
        let hub = self.clone();
        Arc::new(move |rendition, unit| {
            #[expect(clippy::disallowed_methods, reason = "here a picture enters from its thread: an edge")]
            let encoded_at = Instant::now();
            hub.push(&(camera.clone(), rendition), Delivery { unit, encoded_at });
        })
    }

    /// Waits until something was pushed since the last call.
    pub async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Everything that waits, each rendition's in its order.
    pub fn take(&self) -> Vec<(CameraId, Rendition, Delivery)> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let all = queues.iter_mut().flat_map(|((camera, rendition), queue)| {
            queue.units.drain(..).map(|unit| (camera.clone(), *rendition, unit))
        });
        all.collect()
    }

    fn push(&self, from: &(CameraId, Rendition), delivery: Delivery) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get_mut(from) {
            queue.push(delivery);
        }
        drop(queues);
        self.bell.notify_one();
    }
}

impl Queue {
    fn push(&mut self, delivery: Delivery) {
        if self.units.len() == CAPACITY {
            tracing::warn!("the engine is stuck: pictures are thrown away up to the next keyframe");
            self.units.clear();
            self.broken = true;
        }
        if self.broken && !delivery.unit.is_keyframe {
            return;
        }
        self.broken = false;
        self.units.push_back(delivery);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(is_keyframe: bool) -> AccessUnit {
        AccessUnit { captured_at: Instant::now(), is_keyframe, data: bytes::Bytes::from_static(&[0]) }
    }

    #[tokio::test]
    async fn the_bell_rings_for_what_was_pushed_before_anybody_listened() {
        let front = CameraId::new("front").unwrap();
        let hub = Hub::new([front.clone()]);
        hub.sink(front)(Rendition::High, unit(true));
        hub.changed().await;
        assert_eq!(hub.take().len(), 1);
    }

    #[test]
    fn an_overfull_queue_goes_on_at_a_keyframe() {
        let front = CameraId::new("front").unwrap();
        let hub = Hub::new([front.clone()]);
        let sink = hub.sink(front);
        for _ in 0..=CAPACITY {
            sink(Rendition::High, unit(false));
        }
        assert_eq!(hub.take().len(), 0);
        sink(Rendition::High, unit(false));
        sink(Rendition::High, unit(true));
        sink(Rendition::High, unit(false));
        let kinds: Vec<_> = hub.take().into_iter().map(|(_, _, delivery)| delivery.unit.is_keyframe).collect();
        assert_eq!(kinds, [true, false]);
    }
}
