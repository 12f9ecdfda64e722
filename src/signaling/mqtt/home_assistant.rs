//! Home Assistant's MQTT discovery, in its form for whole devices: one retained message says what this device is, and which of its
//! topics are a switch, a picture, a sensor or a button there.
//!
//! Field names are those of `homeassistant/components/mqtt/schemas.py`. Live video is not an entity of that integration; the
//! device's page is named as its configuration URL.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::wire;
use super::topics::Topics;
use crate::core::signal::CameraId;

/// Where Home Assistant says that it is back and has forgotten what was not retained.
pub(super) fn status_topic(discovery_prefix: &str) -> String {
    format!("{discovery_prefix}/status")
}

/// What it says there.
pub(super) const BACK: &[u8] = b"online";

/// Where the device is announced.
pub(super) fn config_topic(discovery_prefix: &str, device: &str) -> String {
    format!("{discovery_prefix}/device/edgecam_{device}/config")
}

/// The announcement.
pub(super) fn config(device: &str, cameras: &[CameraId], topics: &Topics, page_url: Option<&str>) -> String {
    let components = cameras.iter().flat_map(|camera| components(device, camera, topics)).collect();
    wire::write(&Discovery {
        device: Device {
            identifiers: [format!("edgecam_{device}")],
            name: device,
            manufacturer: "edgecam",
            model: "edgecam",
            sw_version: env!("CARGO_PKG_VERSION"),
            configuration_url: page_url,
        },
        origin: Origin { name: "edgecam", sw_version: env!("CARGO_PKG_VERSION") },
        availability_topic: topics.status(),
        // "stopped" is away, too.
        availability_template: "{{ 'online' if value == 'online' else 'offline' }}",
        qos: 1,
        components,
    })
}

/// One camera's, by their names within the device.
fn components(device: &str, camera: &CameraId, topics: &Topics) -> Vec<(String, Component)> {
    let state = topics.state(camera);
    let of_state = |platform, value_template| Component {
        platform,
        state_topic: Some(state.clone()),
        value_template: Some(value_template),
        ..Component::default()
    };
    let diagnostic =
        |value_template| Component { entity_category: Some("diagnostic"), ..of_state("sensor", value_template) };
    let named = |part: &str, words: &str, component: Component| {
        let name = if words.is_empty() { camera.to_string() } else { format!("{camera} {words}") };
        let unique_id = format!("edgecam_{device}_{camera}_{part}");
        (format!("{camera}_{part}"), Component { unique_id, name, ..component })
    };
    vec![
        named("still", "", Component { platform: "camera", topic: Some(topics.still(camera)), ..Component::default() }),
        named(
            "take_still",
            "take a picture",
            Component {
                platform: "button",
                command_topic: Some(topics.trigger(camera)),
                payload_press: Some(r#"{"v":1,"action":"still","reason":"Home Assistant"}"#),
                ..Component::default()
            },
        ),
        named(
            "on",
            "enabled",
            Component {
                platform: "switch",
                state_topic: Some(topics.enabled_state(camera)),
                command_topic: Some(topics.enabled_set(camera)),
                ..Component::default()
            },
        ),
        named(
            "live",
            "being watched",
            Component {
                device_class: Some("running"),
                ..of_state("binary_sensor", "{{ 'ON' if value_json.live else 'OFF' }}")
            },
        ),
        named(
            "viewers",
            "viewers",
            Component { state_class: Some("measurement"), ..of_state("sensor", "{{ value_json.viewers }}") },
        ),
        named("state", "state", diagnostic("{{ value_json.state }}")),
        named("encoder", "encoder", diagnostic("{{ value_json.encoder or 'unknown' }}")),
        named("error", "error", diagnostic("{{ (value_json.error or 'none')[:255] }}")),
    ]
}

#[derive(Serialize)]
struct Discovery<'a> {
    device: Device<'a>,
    origin: Origin,
    availability_topic: String,
    availability_template: &'static str,
    qos: u8,
    components: BTreeMap<String, Component>,
}

#[derive(Serialize)]
struct Device<'a> {
    identifiers: [String; 1],
    name: &'a str,
    manufacturer: &'static str,
    model: &'static str,
    sw_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_url: Option<&'a str>,
}

#[derive(Serialize)]
struct Origin {
    name: &'static str,
    sw_version: &'static str,
}

#[derive(Default, Serialize)]
struct Component {
    platform: &'static str,
    unique_id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_press: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_template: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_category: Option<&'static str>,
}
