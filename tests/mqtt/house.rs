//! The tests' own tools have to be right before they are believed.

use rumqttc::v5::MqttOptions;

use super::broker::{Broker, BrokerPlan, BrokerTls};
use super::certificates::Authority;
use super::client::{Client, Extras, trusting};

#[tokio::test]
async fn two_clients_of_both_versions_talk_through_the_broker() {
    let broker = Broker::open().await;
    let mut five = Client::comes(broker.port(), "five").await;
    let mut three = Client::comes_with_3_1_1(broker.port(), "three").await;
    assert!(five.subscribes("hall/#").await);
    assert!(three.subscribes("hall/#").await);
    let extras = Extras { correlation: Some("17".into()), expiry_s: Some(30), ..Extras::default() };
    assert!(five.publishes_with("hall/a", "from five", extras).await);
    assert!(three.publishes("hall/b", "from three").await);
    assert_eq!(three.hears("hall/a").await.text(), "from five");
    assert_eq!(five.hears("hall/b").await.text(), "from three");
    let echo = five.hears("hall/a").await;
    assert_eq!((echo.correlation, echo.expiry_s), (Some("17".into()), Some(30)));
}

#[tokio::test]
async fn a_restarted_broker_is_on_the_same_port_and_remembers_nothing() {
    let mut broker = Broker::open().await;
    let mut before = Client::comes(broker.port(), "one").await;
    before.publishes_with("hall/a", "kept", Extras { retain: true, ..Extras::default() }).await;
    broker.restart().await;
    before.is_cut_off().await;
    let mut after = Client::comes(broker.port(), "one").await;
    after.subscribes("hall/a").await;
    assert_eq!(after.has_heard_by_now("hall/a").await, []);
}

#[tokio::test]
async fn a_broker_with_users_lets_nobody_else_in_and_knows_who_may_what() {
    let broker = Broker::with(BrokerPlan {
        users: vec![("anna".into(), "secret".into())],
        acl: Some("user anna\ntopic read open/#\ntopic readwrite anna/#\n".into()),
        ..BrokerPlan::default()
    })
    .await;
    assert!(Client::logs_in(broker.port(), "anna", "wrong").await.is_err());
    assert!(Client::with(MqttOptions::new("berta", "127.0.0.1", broker.port())).await.is_err());
    let mut anna = Client::logs_in(broker.port(), "anna", "secret").await.unwrap();
    assert!(anna.publishes("anna/x", "mine").await);
    assert!(!anna.publishes("open/x", "not mine").await);
}

#[tokio::test]
async fn a_broker_with_tls_shows_its_certificate() {
    let authority = Authority::new("house");
    let server = authority.server("localhost");
    let tls = BrokerTls {
        ca: authority.pem().to_owned(),
        certificate: server.certificate,
        key: server.key,
        asks_for_certificates: false,
    };
    let broker = Broker::with(BrokerPlan { tls: Some(tls), ..BrokerPlan::default() }).await;
    Client::with(trusting(authority.pem(), broker.tls_port())).await.unwrap();
    let stranger = Authority::new("somebody else");
    assert!(Client::with(trusting(stranger.pem(), broker.tls_port())).await.is_err());
}
