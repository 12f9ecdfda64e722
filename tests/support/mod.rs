//! What the tests share: a viewer on `rtc`, a model of one that is only numbers, and a network that exists only in virtual
//! time.

pub mod house;
pub mod model;
pub mod network;
pub mod viewer;
