//! edgecam: a camera in a browser, from a small Linux board.

pub mod core;
pub mod probe;
