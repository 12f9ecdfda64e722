//! Floor 0. What edgecam decides, as plain data and pure functions: no clock, no async, no I/O, no serde.
//!
//! Time always arrives as an argument, so every rule here is tested in microseconds.

pub mod access_unit;
pub mod annex_b;
pub mod backoff;
pub mod camera;
pub mod candidate;
pub mod capture;
pub mod congestion;
pub mod counters;
pub mod demand;
pub mod figures;
pub mod gop_ring;
pub mod low;
pub mod pace;
pub mod places;
pub mod playout;
pub mod renditions;
pub mod roaming;
pub mod server_url;
pub mod session;
pub mod sessions;
pub mod signal;
pub mod thinning;
pub mod transmit;
pub mod trigger;
