//! edgecam: a camera in a browser, from a small Linux board.
//!
//! The modules stand on floors and import strictly downwards; `tests/architecture.rs` fails when one does not.
//!
//! | Floor | Modules | Task |
//! |---|---|---|
//! | 4 house | `main`, `cli`, [`app`], [`doctor`], [`setup`] | commands; builds, starts, watches and stops the parts; looks at what they need |
//! | 3 drive | [`engine`], [`config`] | moves bytes and time in and out; turns one file into each part's settings |
//! | 2 machine | [`publisher`] | all that is decided about viewers, without I/O |
//! | 1 parts | [`camera`], [`signaling`], [`peer`], [`hub`], [`net`], [`relay`], [`http`], [`switches`], [`telemetry`], [`web`], [`probe`] | each knows `core` and its own outside library |
//! | 0 core | [`core`] | plain data and rules, told the time |
//!
//! What holds everywhere: a picture is encoded once and cut into packets once, whatever the number of viewers; a slow,
//! hostile or vanished viewer costs the others nothing; every queue has a size and a rule for when it is full; only the
//! edges read the clock; only [`app`] spawns.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test is where time begins"))]

pub mod app;
pub mod camera;
pub mod config;
pub mod core;
pub mod doctor;
pub mod engine;
pub mod http;
pub mod hub;
pub mod net;
pub mod peer;
pub mod probe;
pub mod publisher;
pub mod relay;
pub mod setup;
pub mod signaling;
pub mod switches;
pub mod telemetry;
pub mod web;
