//! edgecam: a camera in a browser, from a small Linux board.

pub mod app;
pub mod camera;
pub mod config;
pub mod core;
pub mod engine;
pub mod http;
pub mod hub;
pub mod net;
pub mod peer;
pub mod probe;
pub mod publisher;
pub mod signaling;
pub mod telemetry;
pub mod web;
