//! Why there is no connection, in words for whoever can do something about it.

use std::io;

use rumqttc::v5::mqttbytes::Error as PacketError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError, TlsError};

use super::super::{MqttSettings, tls};

/// Why there is no connection: a stable word, and a sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Complaint {
    pub(in super::super) slug: &'static str,
    pub(in super::super) words: String,
}

const CLOSED: &str = "closed";
const TAKEN_OVER: &str = "taken-over";
const CUT_OFF_AGAIN: &str = "cut-off-again";

impl Complaint {
    /// The broker closed the connection and did not say why.
    pub(super) fn is_without_words(&self) -> bool {
        self.slug == CLOSED
    }

    /// The same again and again: what mosquitto does to the elder of two devices with one name, without a word.
    pub(super) fn of_cut_off_again() -> Self {
        let words = "the broker lets us in and soon closes the connection, again and again; if another device has this \
                     device's name, give each its own [device] id, else see the broker's log";
        Self { slug: CUT_OFF_AGAIN, words: words.into() }
    }
}

/// Whether another device is after our name: it, too, connects again at once.
pub(super) fn is_contended(complaint: &Complaint) -> bool {
    [TAKEN_OVER, CUT_OFF_AGAIN].contains(&complaint.slug)
}

/// What the library says, as its owner can use it.
pub(super) fn explain(error: &ConnectionError, was_connected: bool, settings: &MqttSettings) -> Complaint {
    let MqttSettings { host, port, tls, .. } = settings;
    let complaint = |slug, words: String| Complaint { slug, words };
    match error {
        ConnectionError::Timeout(_) => complaint(
            "no-answer",
            format!("{host} port {port} does not answer; see that url is right and that no firewall is between"),
        ),
        ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
            tls::explain(error).unwrap_or_else(|| explain_io(error, settings))
        }
        // Where the library was reading a packet, it hands the socket's error on as the packet's.
        ConnectionError::MqttState(StateError::Io(error) | StateError::Deserialization(PacketError::Io(error))) => {
            tls::explain(error).unwrap_or_else(|| explain_io(error, settings))
        }
        ConnectionError::ConnectionRefused(code) => explain_refusal(*code, settings),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            explain_disconnect(*reason_code, reason_string.as_deref())
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            complaint("silent", "the broker answers no pings any more".into())
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) if was_connected => {
            complaint(CLOSED, "the broker closed the connection".into())
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => complaint(
            "closed-at-once",
            if tls.is_some() {
                "the broker closes the connection at once; see its log, and that it takes this device's certificate"
                    .into()
            } else {
                format!(
                    "{host} port {port} closes the connection at once; if that is a TLS port, write mqtts:// in url"
                )
            },
        ),
        other => complaint("protocol", format!("the broker says what cannot be understood: {other}")),
    }
}

fn explain_io(error: &io::Error, MqttSettings { host, port, .. }: &MqttSettings) -> Complaint {
    use io::ErrorKind;
    let (slug, words) = match error.kind() {
        ErrorKind::ConnectionRefused => {
            ("refused", format!("nothing listens on {host} port {port}; see that the broker runs and url is right"))
        }
        ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionAborted => (CLOSED, format!("the connection to {host} port {port} was cut")),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            ("unreachable", format!("there is no way to {host}; see this device's network"))
        }
        _ if error.to_string().contains("lookup") => {
            ("no-such-name", format!("the name {host} cannot be found; see url and this device's DNS ({error})"))
        }
        _ => ("io", format!("{host} port {port} cannot be reached: {error}")),
    };
    Complaint { slug, words }
}

fn explain_refusal(code: ConnectReturnCode, settings: &MqttSettings) -> Complaint {
    use ConnectReturnCode as Code;
    let (slug, words) = match code {
        Code::BadUserNamePassword | Code::NotAuthorized if settings.username.is_empty() => {
            ("not-authorized", "the broker wants to know who we are; set username and password_file".into())
        }
        Code::BadUserNamePassword | Code::NotAuthorized => (
            "not-authorized",
            format!(
                "the broker does not take user {:?} with this password; see username and password_file",
                settings.username
            ),
        ),
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
            ("version", "the broker does not speak MQTT 5; use one that does, like mosquitto from 1.6 on".into())
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => {
            ("client-id", "the broker does not take this device's client id, edgecam-<device>; allow it there".into())
        }
        Code::ServerBusy | Code::ServerUnavailable | Code::ServiceUnavailable | Code::ConnectionRateExceeded => {
            ("busy", "the broker is too busy for us".into())
        }
        Code::Banned => ("banned", "the broker has banned this device; ask whoever runs it".into()),
        Code::RetainNotSupported => ("no-retain", "the broker keeps no messages; going on without".into()),
        Code::QoSNotSupported => ("no-qos", "the broker acknowledges no messages; going on without".into()),
        other => ("refused-by-broker", format!("the broker does not let us in: {other:?}; see its log")),
    };
    Complaint { slug, words }
}

fn explain_disconnect(code: DisconnectReasonCode, words: Option<&str>) -> Complaint {
    use DisconnectReasonCode as Code;
    let (slug, words) = match code {
        Code::SessionTakenOver => (
            TAKEN_OVER,
            "another device with this device's name has connected to the broker; give each its own [device] id".into(),
        ),
        Code::ServerShuttingDown => ("shutting-down", "the broker shuts down".into()),
        Code::NotAuthorized => (
            "not-authorized",
            "the broker does not let this device listen to or write its topics; allow it in the broker's access rules"
                .into(),
        ),
        Code::AdministrativeAction => ("kicked", "whoever runs the broker closed the connection".into()),
        other => {
            let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
            ("disconnected", format!("the broker ends the connection: {other:?}{words}; see its log"))
        }
    };
    Complaint { slug, words }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker on TLS that is killed says no close_notify; rustls then calls the end of the stream unexpected.
    #[test]
    fn a_broker_that_vanishes_in_the_middle_of_a_packet_was_cut_off_and_not_misunderstood() {
        let settings = MqttSettings { port: 8883, ..super::super::super::tests::settings() };
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        let error = ConnectionError::MqttState(StateError::Deserialization(PacketError::Io(error)));
        let complaint = explain(&error, true, &settings);
        assert!(complaint.is_without_words(), "{complaint:?}");
        assert_eq!(complaint.words, "the connection to broker port 8883 was cut");
    }
}
