//! The MQTT link of the real program, against a real mosquitto.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a failed step is a failed test; here time begins")]
#![allow(dead_code, unreachable_pub, reason = "one program, whose modules use what they need of each other")]

#[path = "../support/broker.rs"]
mod broker;
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/mqtt_client.rs"]
mod client;
#[path = "../support/ports.rs"]
mod ports;

mod access;
mod daemon;
mod documented;
mod examples;
mod faults;
mod house;
mod limits;
mod presence;
mod proxy;
mod secrets;
mod triggers;
mod viewing;
mod watching;
