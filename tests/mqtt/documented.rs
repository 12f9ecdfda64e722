//! The broker of `docs/examples/mqtt`, as it is written there: only folder and ports are the test's.

use std::fs;
use std::path::Path;

use rumqttc::v5::MqttOptions;

use super::broker::{Broker, write_passwords};
use super::certificates::Authority;
use super::client::{Client, trusting};

pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/mqtt");

/// Everybody the example's ACL knows.
pub const USERS: [&str; 6] = ["frontdoor", "garden", "anna", "berta", "bell", "house"];

pub struct Documented {
    pub broker: Broker,
    pub authority: Authority,
}

impl Documented {
    pub async fn starts() -> Self {
        let authority = Authority::new("the house's CA");
        let server = authority.server("localhost");
        let broker = Broker::of_configuration(|folder, port, websocket_port| {
            let users = USERS.map(|user| (user, password(user)));
            write_passwords(&folder.join("edgecam.passwords"), &users.each_ref().map(|(user, word)| (*user, &**word)));
            fs::copy(Path::new(EXAMPLES).join("acl"), folder.join("edgecam.acl")).unwrap();
            fs::write(folder.join("edgecam-server.pem"), &server.certificate).unwrap();
            fs::write(folder.join("edgecam-server.key"), &server.key).unwrap();
            fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
            let text = fs::read_to_string(Path::new(EXAMPLES).join("mosquitto.conf")).unwrap();
            let text = replaced(&text, "/etc/mosquitto/", &format!("{}/", folder.display()));
            let text = replaced(&text, "listener 8883\n", &format!("listener {port} 127.0.0.1\n"));
            let text = replaced(&text, "listener 9443\n", &format!("listener {websocket_port} 127.0.0.1\n"));
            // What a distribution's own mosquitto.conf says besides; `user` counts only where root runs the tests.
            format!("user root\npersistence false\nlog_dest stderr\nlog_type all\n{text}")
        })
        .await;
        Self { broker, authority }
    }

    /// For `[mqtt] url`: the plain port is the one with TLS here.
    pub fn url(&self) -> String {
        format!("mqtts://localhost:{}", self.broker.port())
    }

    pub async fn client(&self, user: &str) -> Client {
        Client::with(self.options(user)).await.unwrap()
    }

    pub fn options(&self, user: &str) -> MqttOptions {
        let mut options = trusting(self.authority.pem(), self.broker.port());
        options.set_client_id(user.to_owned());
        options.set_credentials(user, password(user));
        options
    }
}

pub fn password(user: &str) -> String {
    format!("{user}'s password")
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the example has no {from:?} any more");
    text.replace(from, to)
}
