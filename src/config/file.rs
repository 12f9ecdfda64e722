//! The shape of `edgecam.toml`, key for key, with the defaults.
//!
//! These types say what may stand in the file; what a part makes of it are the part's own settings (`settings.rs`).
//! Numbers are `i64` and words are text here, so that one out of range is refused in our words, with its key.
//! An empty text means "not given".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigToml {
    pub(super) device: DeviceToml,
    pub(super) http: HttpToml,
    pub(super) ice: IceToml,
    pub(super) auth: AuthToml,
    pub(super) mqtt: MqttToml,
    pub(super) limits: LimitsToml,
    pub(super) log: LogToml,
    pub(super) camera: Vec<CameraToml>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeviceToml {
    pub(super) id: String,
    pub(super) state_dir: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpToml {
    pub(super) listen: String,
    pub(super) max_connections: i64,
    pub(super) max_connections_per_address: i64,
    pub(super) header_timeout_s: i64,
    pub(super) body_timeout_s: i64,
    pub(super) allowed_origins: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IceToml {
    pub(super) udp_port: i64,
    pub(super) tcp: bool,
    pub(super) interfaces: Vec<String>,
    pub(super) advertise: Vec<String>,
    pub(super) servers: Vec<IceServerToml>,
    pub(super) relay: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IceServerToml {
    pub(super) urls: Vec<String>,
    pub(super) username: String,
    pub(super) credential_file: String,
    pub(super) secret_file: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuthToml {
    pub(super) token_key_file: String,
    pub(super) anyone_may_watch: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MqttToml {
    pub(super) url: String,
    pub(super) username: String,
    pub(super) password_file: String,
    pub(super) ca_file: String,
    pub(super) client_cert_file: String,
    pub(super) client_key_file: String,
    pub(super) prefix: String,
    pub(super) home_assistant: bool,
    pub(super) discovery_prefix: String,
    pub(super) page_url: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsToml {
    pub(super) negotiations: i64,
    pub(super) negotiation_s: i64,
    pub(super) candidates: i64,
    pub(super) vanished_s: i64,
    pub(super) keyframe_gap_ms: i64,
    pub(super) websocket_idle_s: i64,
    pub(super) websocket_messages_per_s: i64,
    pub(super) whep_sessions: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogToml {
    pub(super) level: String,
    pub(super) format: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CameraToml {
    pub(super) id: String,
    pub(super) source: String,
    pub(super) width: i64,
    pub(super) height: i64,
    pub(super) fps: i64,
    pub(super) linger_s: i64,
    pub(super) max_viewers: i64,
    pub(super) encoder: EncoderToml,
    pub(super) low: LowToml,
    pub(super) controls: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EncoderToml {
    pub(super) prefer: String,
    pub(super) max_kbps: i64,
    pub(super) min_kbps: i64,
    pub(super) keyframe_interval_s: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LowToml {
    pub(super) enabled: bool,
    pub(super) width: i64,
    pub(super) height: i64,
    pub(super) max_kbps: i64,
    pub(super) min_kbps: i64,
}

impl ConfigToml {
    /// One of everything, so that each key the file may hold can be seen: what a value is compared with for its type.
    pub(super) fn one_of_everything() -> Self {
        let text = || vec![String::new()];
        Self {
            http: HttpToml { allowed_origins: text(), ..HttpToml::default() },
            ice: IceToml {
                interfaces: text(),
                advertise: text(),
                servers: vec![IceServerToml { urls: text(), ..IceServerToml::default() }],
                ..IceToml::default()
            },
            camera: vec![CameraToml { controls: BTreeMap::from([(ANY_KEY.into(), 0)]), ..CameraToml::default() }],
            ..Self::default()
        }
    }
}

/// Stands in [`ConfigToml::one_of_everything`] for keys the owner chooses.
pub(super) const ANY_KEY: &str = "any";

impl Default for ConfigToml {
    fn default() -> Self {
        Self {
            device: DeviceToml::default(),
            http: HttpToml::default(),
            ice: IceToml::default(),
            auth: AuthToml::default(),
            mqtt: MqttToml::default(),
            limits: LimitsToml::default(),
            log: LogToml::default(),
            // Something to see before anything is configured.
            camera: vec![CameraToml { id: "test".into(), source: "test".into(), ..CameraToml::default() }],
        }
    }
}

impl Default for HttpToml {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            max_connections: 64,
            max_connections_per_address: 16,
            header_timeout_s: 5,
            body_timeout_s: 10,
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for IceToml {
    fn default() -> Self {
        Self {
            udp_port: 8189,
            tcp: true,
            interfaces: Vec::new(),
            advertise: Vec::new(),
            servers: Vec::new(),
            relay: true,
        }
    }
}

impl Default for MqttToml {
    fn default() -> Self {
        Self {
            url: String::new(),
            username: String::new(),
            password_file: String::new(),
            ca_file: String::new(),
            client_cert_file: String::new(),
            client_key_file: String::new(),
            prefix: "edgecam".into(),
            home_assistant: false,
            discovery_prefix: "homeassistant".into(),
            page_url: String::new(),
        }
    }
}

impl Default for LimitsToml {
    fn default() -> Self {
        Self {
            negotiations: 4,
            negotiation_s: 10,
            candidates: 64,
            vanished_s: 30,
            keyframe_gap_ms: 500,
            websocket_idle_s: 45,
            websocket_messages_per_s: 20,
            whep_sessions: 256,
        }
    }
}

impl Default for LogToml {
    fn default() -> Self {
        Self { level: "info".into(), format: "auto".into() }
    }
}

impl Default for CameraToml {
    fn default() -> Self {
        Self {
            id: String::new(),
            source: "auto".into(),
            width: 1280,
            height: 720,
            fps: 30,
            linger_s: 10,
            max_viewers: 8,
            encoder: EncoderToml::default(),
            low: LowToml::default(),
            controls: BTreeMap::new(),
        }
    }
}

impl Default for EncoderToml {
    fn default() -> Self {
        Self { prefer: "auto".into(), max_kbps: 2500, min_kbps: 150, keyframe_interval_s: 2 }
    }
}

impl Default for LowToml {
    fn default() -> Self {
        Self { enabled: true, width: 0, height: 0, max_kbps: 500, min_kbps: 100 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shape::Shape;

    #[test]
    fn the_example_uncommented_equals_the_defaults() {
        assert_eq!(example().try_deserialize::<ConfigToml>().unwrap(), ConfigToml::default());
    }

    #[test]
    fn the_example_shows_every_key() {
        let example = crate::config::shape::origins(&example().cache);
        for key in Shape::of_the_file().keys() {
            // Explained in words, as there is none by default.
            if key.starts_with("ice.servers.") || key.starts_with("camera.controls.") {
                continue;
            }
            let key = key.replacen("camera.", "camera[0].", 1);
            assert!(example.contains_key(&key), "{key} is not in the example");
        }
    }

    fn example() -> config::Config {
        let text = include_str!("../../docs/edgecam.example.toml");
        let setting =
            |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned();
        let text: String = text.lines().map(|line| setting(line) + "\n").collect();
        config::Config::builder().add_source(config::File::from_str(&text, config::FileFormat::Toml)).build().unwrap()
    }
}
