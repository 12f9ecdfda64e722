//! edgecam: a camera in a browser, from a small Linux board.

pub mod core;
pub mod peer;
pub mod publisher;
pub mod web;
