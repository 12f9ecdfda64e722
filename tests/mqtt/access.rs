//! Who may what on the documented broker: asked of the broker itself, with no device there.

use std::collections::BTreeSet;

use super::client::{Client, Extras};
use super::documented::{Documented, USERS};

#[tokio::test]
async fn nobody_comes_in_without_the_right_password() {
    let house = Documented::starts().await;
    for user in USERS {
        let mut options = house.options(user);
        options.set_credentials(user, "a guess");
        assert!(Client::with(options).await.is_err(), "{user} with a wrong password");
        house.client(user).await;
    }
    let mut nameless = super::client::trusting(house.authority.pem(), house.broker.port());
    nameless.set_client_id("anna".to_owned());
    assert!(Client::with(nameless).await.is_err(), "a client id is not a name");
}

#[tokio::test]
async fn a_viewer_may_ask_every_device_under_its_own_name_and_say_nothing_else() {
    let house = Documented::starts().await;
    let mut anna = house.client("anna").await;
    assert!(anna.publishes("edgecam/frontdoor/rpc/anna", "hello").await);
    assert!(anna.publishes("edgecam/garden/rpc/anna", "hello").await);
    for forbidden in [
        "edgecam/frontdoor/status",
        "edgecam/frontdoor/info",
        "edgecam/frontdoor/rpc/berta",
        "edgecam/frontdoor/rsp/anna",
        "edgecam/frontdoor/rsp/berta",
        "edgecam/frontdoor/cam/front/state",
        "edgecam/frontdoor/cam/front/trigger",
        "edgecam/frontdoor/cam/front/enabled/set",
        "edgecam/frontdoor/cam/front/enabled/state",
        "edgecam/anna/status",
        "homeassistant/device/edgecam_frontdoor/config",
        "anything",
    ] {
        assert!(!anna.publishes(forbidden, "online").await, "{forbidden}");
        let retained = Extras { retain: true, ..Extras::default() };
        assert!(!anna.publishes_with(forbidden, "online", retained).await, "{forbidden}, retained");
    }
}

#[tokio::test]
async fn a_viewer_hears_its_own_answers_and_nobody_elses() {
    let house = Documented::starts().await;
    let mut anna = house.client("anna").await;
    // A client id of somebody else's choosing changes nothing: what counts is who proved a password.
    let mut berta_as_anna = house.options("berta");
    berta_as_anna.set_client_id("anna2".to_owned());
    let mut berta = Client::with(berta_as_anna).await.unwrap();
    for client in [&mut anna, &mut berta] {
        client.subscribes("#").await;
        client.subscribes("edgecam/+/rsp/+").await;
        client.subscribes("edgecam/frontdoor/rsp/anna").await;
    }
    let mut device = house.client("frontdoor").await;
    assert!(device.publishes("edgecam/frontdoor/rpc/anna", "what anna asked").await);
    assert!(device.publishes("edgecam/frontdoor/rsp/anna", "for anna").await);
    assert!(device.publishes("edgecam/frontdoor/rsp/berta", "for berta").await);
    assert!(device.publishes("edgecam/frontdoor/status", "online").await);

    for (client, own) in [(&mut anna, "for anna"), (&mut berta, "for berta")] {
        // Once for each filter that fits. The broker sends in order, so with the last one all are here.
        let mut heard = BTreeSet::new();
        while !heard.contains("online") {
            heard.insert(client.hears_anything().await.text().to_owned());
        }
        assert_eq!(heard, BTreeSet::from([own.to_owned(), "online".to_owned()]));
    }
}

#[tokio::test]
async fn a_device_writes_below_its_own_level_and_hears_no_other_device() {
    let house = Documented::starts().await;
    let mut frontdoor = house.client("frontdoor").await;
    frontdoor.subscribes("#").await;
    for own in ["status", "info", "rsp/anna", "cam/front/state", "cam/front/event", "cam/front/still"] {
        assert!(frontdoor.publishes(&format!("edgecam/frontdoor/{own}"), "own").await, "{own}");
    }
    for foreign in
        ["edgecam/garden/status", "edgecam/garden/rsp/anna", "edgecam/garden/rpc/frontdoor", "other/frontdoor"]
    {
        assert!(!frontdoor.publishes(foreign, "foreign").await, "{foreign}");
    }
    let mut anna = house.client("anna").await;
    assert!(anna.publishes("edgecam/garden/rpc/anna", "for the garden").await);
    assert!(anna.publishes("edgecam/frontdoor/rpc/anna", "for the door").await);
    loop {
        let message = frontdoor.hears_anything().await;
        assert!(message.topic.starts_with("edgecam/frontdoor/"), "{message:?}");
        if message.text() == "for the door" {
            break;
        }
    }
}

#[tokio::test]
async fn a_sensor_triggers_its_camera_and_nothing_else() {
    let house = Documented::starts().await;
    let mut bell = house.client("bell").await;
    assert!(bell.publishes("edgecam/frontdoor/cam/front/trigger", "ring").await);
    for forbidden in [
        "edgecam/frontdoor/cam/back/trigger",
        "edgecam/garden/cam/front/trigger",
        "edgecam/frontdoor/cam/front/enabled/set",
        "edgecam/frontdoor/rpc/bell",
        "edgecam/frontdoor/status",
        "edgecam/frontdoor/rsp/bell",
    ] {
        assert!(!bell.publishes(forbidden, "ring").await, "{forbidden}");
    }
    bell.subscribes("#").await;
    let mut device = house.client("frontdoor").await;
    device.publishes("edgecam/frontdoor/cam/front/still", "a picture").await;
    device.publishes("edgecam/frontdoor/rsp/anna", "for anna").await;
    device.publishes("edgecam/frontdoor/rsp/bell", "done").await;
    assert_eq!(bell.hears_anything().await.text(), "done", "nothing but its own answer");
}
