//! What the tests share: a viewer on `rtc`, and a network that exists only in virtual time.

pub mod house;
pub mod network;
pub mod viewer;
