//! The newest pictures of one camera.

use crate::core::camera::Rendition;
use crate::core::gop_ring::GopRing;
use crate::peer::Picture;

/// Pictures kept for those who join or lag: more than the longest time between two keyframes asked for.
const RING_PICTURES: usize = 64;

/// A ring for each rendition, both on the camera's one clock.
pub(super) struct Rings {
    high: GopRing<Picture>,
    low: GopRing<Picture>,
}

impl Rings {
    pub(super) fn new() -> Self {
        Self { high: GopRing::new(RING_PICTURES), low: GopRing::new(RING_PICTURES) }
    }

    pub(super) fn of(&self, rendition: Rendition) -> &GopRing<Picture> {
        match rendition {
            Rendition::High => &self.high,
            Rendition::Low => &self.low,
        }
    }

    pub(super) fn of_mut(&mut self, rendition: Rendition) -> &mut GopRing<Picture> {
        match rendition {
            Rendition::High => &mut self.high,
            Rendition::Low => &mut self.low,
        }
    }

    pub(super) fn clear(&mut self) {
        self.high.clear();
        self.low.clear();
    }
}
