//! `[mqtt]` → the settings of the link to the broker.

use super::error::Wrong;
use super::file::MqttToml;
use super::secret::Secrets;
use crate::core::signal::{MAX_PREFIX_LEVELS, is_prefix};
use crate::signaling::mqtt::{ClientPem, MqttSettings, Tls, TlsError, is_host};

/// `None`: there is no broker.
pub(super) fn mqtt(
    mqtt: MqttToml,
    secrets: &Secrets,
    warnings: &mut Vec<String>,
) -> Result<Option<MqttSettings>, Wrong> {
    if mqtt.url.is_empty() {
        return match first_given(&mqtt) {
            Some(key) => {
                Err(Wrong::new(key, "goes with url, which is missing; write url = \"mqtts://broker.example.org\""))
            }
            None => Ok(None),
        };
    }
    let Url { host, port, is_tls } = read_url(&mqtt.url)?;
    let tls = tls(&mqtt, is_tls, secrets, warnings)?;
    let password = match (mqtt.username.as_str(), mqtt.password_file.as_str()) {
        (_, "") => String::new(),
        ("", _) => return Err(Wrong::new("username", "missing; it goes with password_file")),
        (_, name) => secrets.read("password_file", name, warnings)?,
    };
    if !is_tls && !password.is_empty() && !is_loopback(&host) {
        warnings
            .push(format!("the password for the broker at {host} travels in clear text; write mqtts:// in mqtt.url"));
    }
    if !is_prefix(&mqtt.prefix) {
        let what = format!("{:?} cannot begin a topic; {PREFIX_RULE}", mqtt.prefix);
        return Err(Wrong::new("prefix", what));
    }
    if !is_prefix(&mqtt.discovery_prefix) {
        let what = format!("{:?} cannot begin a topic; {PREFIX_RULE}", mqtt.discovery_prefix);
        return Err(Wrong::new("discovery_prefix", what));
    }
    if !mqtt.page_url.is_empty() && !is_page_url(&mqtt.page_url) {
        let what = format!("{:?} is not a page; write it like https://frontdoor.example.org/", mqtt.page_url);
        return Err(Wrong::new("page_url", what));
    }
    Ok(Some(MqttSettings {
        host,
        port,
        tls,
        username: mqtt.username,
        password,
        prefix: mqtt.prefix,
        home_assistant: mqtt.home_assistant.then_some(mqtt.discovery_prefix),
        page_url: Some(mqtt.page_url).filter(|url| !url.is_empty()),
    }))
}

const PREFIX_RULE: &str = "write one to three names of a-z A-Z 0-9 _ - with slashes between, like home/cams";
const _: () = assert!(MAX_PREFIX_LEVELS == 3, "as PREFIX_RULE says");

/// A key that says nothing without `url`.
fn first_given(mqtt: &MqttToml) -> Option<&'static str> {
    let texts = [
        ("username", &mqtt.username),
        ("password_file", &mqtt.password_file),
        ("ca_file", &mqtt.ca_file),
        ("client_cert_file", &mqtt.client_cert_file),
        ("client_key_file", &mqtt.client_key_file),
    ];
    let given = texts.iter().find(|(_, text)| !text.is_empty()).map(|(key, _)| *key);
    given.or(mqtt.home_assistant.then_some("home_assistant"))
}

struct Url {
    host: String,
    port: u16,
    is_tls: bool,
}

fn read_url(url: &str) -> Result<Url, Wrong> {
    let wrong = |what: &str| Wrong::new("url", what);
    let (scheme, authority) = url.split_once("://").ok_or_else(|| wrong(SHAPE))?;
    let (is_tls, default_port) = match scheme {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        "tcp" => return Err(wrong("write mqtt:// in place of tcp://")),
        "ssl" | "tls" => return Err(wrong("write mqtts:// for a broker with TLS")),
        "ws" | "wss" => return Err(wrong("edgecam speaks plain MQTT; name the broker's mqtt:// or mqtts:// port")),
        _ => return Err(wrong(SHAPE)),
    };
    // Not repeated: it may hold a password.
    if authority.contains('@') {
        return Err(wrong("user and password do not stand in the URL; set username and password_file"));
    }
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) => (host, rest.strip_prefix(':')),
        Some(None) => return Err(wrong(SHAPE)),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => default_port,
        Some(port) => port.parse().ok().filter(|&port| port > 0).ok_or_else(|| wrong("the port is 1 to 65535"))?,
    };
    if !is_host(host) {
        return Err(wrong(SHAPE));
    }
    Ok(Url { host: host.to_owned(), port, is_tls })
}

const SHAPE: &str =
    "not a broker's address; write mqtts://broker.example.org:8883, or mqtt://192.168.1.5:1883 without TLS";

fn tls(mqtt: &MqttToml, is_tls: bool, secrets: &Secrets, warnings: &mut Vec<String>) -> Result<Option<Tls>, Wrong> {
    let MqttToml { ca_file, client_cert_file, client_key_file, .. } = mqtt;
    let files = [("ca_file", ca_file), ("client_cert_file", client_cert_file), ("client_key_file", client_key_file)];
    if !is_tls {
        return match files.iter().find(|(_, name)| !name.is_empty()) {
            Some((key, _)) => Err(Wrong::new(*key, "goes with TLS; write mqtts:// in url")),
            None => Ok(None),
        };
    }
    let authority = if ca_file.is_empty() { None } else { Some(secrets.read_certificate("ca_file", ca_file)?) };
    let client = match (client_cert_file.as_str(), client_key_file.as_str()) {
        ("", "") => None,
        ("", _) => return Err(Wrong::new("client_cert_file", "missing; it goes with client_key_file")),
        (_, "") => return Err(Wrong::new("client_key_file", "missing; it goes with client_cert_file")),
        (certificate, key) => Some((
            secrets.read_certificate("client_cert_file", certificate)?,
            secrets.read("client_key_file", key, warnings)?,
        )),
    };
    let client = client
        .as_ref()
        .map(|(certificate, key)| ClientPem { certificate: certificate.as_bytes(), key: key.as_bytes() });
    let tls = Tls::new(authority.as_deref().map(str::as_bytes), client.as_ref());
    tls.map(Some).map_err(|error| {
        let key = match error {
            TlsError::NoSystemRoots | TlsError::NoAuthority => "ca_file",
            TlsError::NoClientCertificate => "client_cert_file",
            TlsError::NoClientKey | TlsError::Mismatch(_) => "client_key_file",
        };
        Wrong::new(key, error.to_string())
    })
}

fn is_page_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', ' ', '"', '#']))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
