//! Viewers behind the broker, and the manual against what is said. No broker is needed here.

use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::super::access::{Access, AccessSettings, Rule};
use super::super::token::{Grant, Permission, TokenKey, mint};
use super::super::{CameraBoard, LinkSettings, Stills};
use super::viewers::Verdict;
use super::*;
use crate::core::camera::{CameraState, CameraStatus, LowState, Stream, Switch};
use crate::core::counters::{CameraCounters, LinkCounters};
use crate::core::signal::{CloseReason, Correlation, Signal};
use crate::core::trigger::Happening;

const SDP: &str = "v=0\\r\\no=- 1 1 IN IP4 0.0.0.0\\r\\n";
const EACH: Rate = Rate::new(Duration::from_millis(50), 128);

/// One client speaks with a device; time stands still unless told.
struct Door {
    links: Links,
    topics: Topics,
    viewers: Viewers,
    now: Instant,
    /// What the engine is asked goes there.
    _engine: mpsc::Receiver<Inbound>,
}

impl Door {
    fn open() -> Self {
        Self::with(Rule::Open)
    }

    fn locked() -> Self {
        Self::with(Rule::Key(key()))
    }

    fn with(rule: Rule) -> Self {
        let (engine, inbox) = mpsc::channel(4);
        let now = Instant::now();
        Self {
            links: links(rule, engine),
            topics: Topics::new("edgecam", "frontdoor"),
            viewers: Viewers::new(EACH, now),
            now,
            _engine: inbox,
        }
    }

    fn hears(&mut self, client: &str, text: &str) -> Verdict {
        self.hears_message(client, &message(text))
    }

    fn hears_message(&mut self, client: &str, message: &Incoming) -> Verdict {
        self.viewers.handle(client, message, &self.topics, &self.links, self.now)
    }

    fn is_asked(&mut self, client: &str, text: &str) -> Request {
        match self.hears(client, text) {
            Verdict::Ask(request) => request,
            other => panic!("the engine is not asked: {other:?}"),
        }
    }

    fn says(&mut self, client: &str, text: &str) -> Value {
        match self.hears(client, text) {
            Verdict::Say { text, .. } => serde_json::from_str(&text).unwrap(),
            other => panic!("nothing is said: {other:?}"),
        }
    }
}

pub(super) fn message(text: &str) -> Incoming {
    Incoming {
        topic: Bytes::new(),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        retained: false,
        response_topic: None,
        correlation: None,
    }
}

fn key() -> TokenKey {
    TokenKey::new(b"a key of thirty-two bytes or more").unwrap()
}

fn token(ttl: Option<Duration>, age: Duration) -> String {
    let grant = Grant { camera: None, permissions: vec![Permission::View], subject: None };
    mint(&key(), "frontdoor", &grant, ttl, wall_clock() - age)
}

fn board() -> CameraBoard {
    let stream = Stream {
        source: "YUYV 1280x720 at 30 fps from /dev/video0".into(),
        width: 1280,
        height: 720,
        fps: 30,
        encoder: "x264enc".into(),
        encoder_reason: String::new(),
    };
    CameraBoard {
        id: front(),
        max_viewers: 8,
        status: watch::channel(CameraStatus {
            state: CameraState::Running,
            stream: Some(stream),
            low: LowState::Closed,
        })
        .1,
        switch: watch::channel(Switch::default()).1,
        counters: Arc::<CameraCounters>::default(),
    }
}

pub(super) fn front() -> CameraId {
    CameraId::new("front").unwrap()
}

pub(super) fn links(rule: Rule, engine: mpsc::Sender<Inbound>) -> Links {
    Links {
        device: "frontdoor".into(),
        cameras: vec![board()],
        engine,
        events: broadcast::Sender::new(4),
        stills: Stills::new(Arc::new(|_| Err(String::new())), watch::channel(Default::default()).1),
        access: Access::new(AccessSettings { rule, device: "frontdoor".into(), origins: Vec::new() }),
        ice_servers: Vec::new(),
        settings: LinkSettings::default(),
        counters: Arc::<LinkCounters>::default(),
        tasks: TaskTracker::new(),
        stopping: CancellationToken::new(),
    }
}

fn offer(id: &str, token: &str) -> String {
    format!(
        r#"{{"v":1,"id":"{id}","type":"offer","session":"s","camera":"front","token":"{token}","description":{{"type":"offer","sdp":"{SDP}"}}}}"#
    )
}

#[test]
fn an_offer_goes_to_the_engine_under_the_clients_name() {
    let request = Door::open().is_asked("kitchen", &offer("1", ""));
    assert_eq!(&*request.from.client.name, "kitchen");
    assert!(matches!(request.signal, Signal::Offer { camera, .. } if camera == front()));
}

#[test]
fn the_same_offer_again_is_dropped_and_a_new_try_is_not() {
    let mut door = Door::open();
    door.is_asked("kitchen", &offer("1", ""));
    assert!(matches!(door.hears("kitchen", &offer("1", "")), Verdict::Drop(MqttDrop::Repeated)));
    door.is_asked("kitchen", &offer("2", ""));
    // Somebody else's offer is another one.
    door.is_asked("hall", &offer("1", ""));
    door.now += Duration::from_secs(30);
    door.is_asked("kitchen", &offer("1", ""));
}

#[test]
fn a_rejected_offer_may_be_made_again_as_it_was() {
    let mut door = Door::open();
    for _ in 0..10 {
        let Request { from: to, id, .. } = door.is_asked("kitchen", &offer("1", ""));
        let rejected = Response { to, id, reply: Reply::Rejected(RejectReason::Busy { retry_after: BUSY_FOR }) };
        let (_, text) = door.viewers.reply(&rejected, &door.topics);
        assert!(text.contains(r#""code":"busy""#), "{text}");
    }
    let Request { from: to, id, .. } = door.is_asked("kitchen", &offer("1", ""));
    let answer = Response { to, id, reply: Reply::Answer { sdp: "v=0".into() } };
    door.viewers.reply(&answer, &door.topics);
    assert!(matches!(door.hears("kitchen", &offer("1", "")), Verdict::Drop(MqttDrop::Repeated)));
}

#[test]
fn what_the_broker_has_kept_is_stale() {
    let kept = Incoming { retained: true, ..message(&offer("1", "")) };
    assert!(matches!(Door::open().hears_message("kitchen", &kept), Verdict::Drop(MqttDrop::Retained)));
}

#[test]
fn without_a_token_nobody_watches_and_one_in_the_offer_is_enough() {
    let mut door = Door::locked();
    assert_eq!(door.says("kitchen", r#"{"v":1,"id":"1","type":"hello"}"#)["code"], "token-needed");
    assert_eq!(door.says("kitchen", &offer("2", "forged"))["code"], "token-invalid");
    door.is_asked("kitchen", &offer("3", &token(None, Duration::ZERO)));
}

#[test]
fn a_token_is_remembered_for_its_client_only() {
    let mut door = Door::locked();
    let hello = format!(r#"{{"v":1,"type":"hello","token":"{}"}}"#, token(None, Duration::ZERO));
    assert_eq!(door.says("kitchen", &hello)["cameras"][0], "front");
    let offer = offer("1", "").replace(r#""token":"","#, "");
    assert_eq!(door.says("hall", &offer)["code"], "token-needed");
    door.is_asked("kitchen", &offer);
}

#[test]
fn a_token_is_forgotten_when_its_client_was_silent_for_ten_minutes() {
    let mut door = Door::locked();
    let hello = format!(r#"{{"v":1,"type":"hello","token":"{}"}}"#, token(None, Duration::ZERO));
    door.says("kitchen", &hello);
    let offer = |id| offer(id, "").replace(r#""token":"","#, "");
    for id in ["1", "2"] {
        door.now += Duration::from_secs(599);
        door.is_asked("kitchen", &offer(id));
    }
    door.now += Duration::from_secs(600);
    assert_eq!(door.says("kitchen", &offer("3"))["code"], "token-needed");
}

#[test]
fn a_token_that_has_ended_opens_nothing() {
    let mut door = Door::locked();
    // It was good for an hour, and that was 61 minutes and more ago: beyond the leeway for clocks.
    let ended = token(Some(Duration::from_secs(3600)), Duration::from_secs(3600 + 120));
    let hello = format!(r#"{{"v":1,"type":"hello","token":"{ended}"}}"#);
    assert_eq!(door.says("kitchen", &hello)["code"], "token-expired");
}

#[test]
fn an_answer_goes_where_its_sender_may_have_it() {
    let mut door = Door::open();
    let asked = Incoming {
        response_topic: Some("edgecam/frontdoor/rsp/kitchen/7".into()),
        correlation: Some("mark".into()),
        ..message(&offer("1", ""))
    };
    let Verdict::Ask(request) = door.hears_message("kitchen", &asked) else { panic!("not asked") };
    let Request { from, id, .. } = request;
    let answer = Response { to: from.clone(), id, reply: Reply::Answer { sdp: "v=0".into() } };
    let (to, _) = door.viewers.reply(&answer, &door.topics);
    assert_eq!(to, ReplyTo { topic: "edgecam/frontdoor/rsp/kitchen/7".into(), correlation: Some("mark".into()) });
    // What the camera says by itself has no mark, and a place of its own.
    let (to, _) =
        door.viewers.reply(&Response { to: from, id: None, reply: Reply::Bye(CloseReason::Lost) }, &door.topics);
    assert_eq!(to, ReplyTo { topic: "edgecam/frontdoor/rsp/kitchen".into(), correlation: None });
}

#[test]
fn an_answer_has_the_form_of_its_offer_whatever_the_client_said_before() {
    let mut door = Door::open();
    let answer = |door: &mut Door, Request { from: to, id, .. }: Request| -> Value {
        let (_, text) =
            door.viewers.reply(&Response { to, id, reply: Reply::Answer { sdp: "v=0".into() } }, &door.topics);
        serde_json::from_str(&text).unwrap()
    };
    let bare = door.is_asked("kitchen", &format!(r#"{{"type":"offer","sdp":"{SDP}"}}"#));
    let whole = door.is_asked("kitchen", &offer("1", ""));
    assert_eq!(answer(&mut door, bare)["sdp"], "v=0");
    assert_eq!(answer(&mut door, whole)["description"]["sdp"], "v=0");
}

#[test]
fn nobody_has_answers_sent_to_somebody_else() {
    let mut door = Door::open();
    for elsewhere in ["edgecam/frontdoor/rsp/hall", "edgecam/frontdoor/status", "other/topic"] {
        let ping = Incoming { response_topic: Some(elsewhere.into()), ..message(r#"{"v":1,"type":"ping"}"#) };
        let Verdict::Say { to, .. } = door.hears_message("kitchen", &ping) else { panic!("nothing said") };
        assert_eq!(to.topic, "edgecam/frontdoor/rsp/kitchen");
    }
}

#[test]
fn who_says_too_much_is_told_once_a_second_and_disturbs_nobody() {
    let mut door = Door::open();
    let ping = r#"{"v":1,"type":"ping"}"#;
    for _ in 0..128 {
        assert_eq!(door.says("flood", ping)["type"], "pong");
    }
    assert_eq!(door.says("flood", ping)["code"], "rate-limited");
    for _ in 0..10_000 {
        assert!(matches!(door.hears("flood", ping), Verdict::Drop(MqttDrop::RateLimited)));
    }
    assert_eq!(door.says("kitchen", ping)["type"], "pong");
    door.now += Duration::from_secs(1);
    assert_eq!(door.says("flood", ping)["type"], "pong");
}

#[test]
fn a_thousand_names_a_second_are_bounded_in_number_and_rate() {
    let mut door = Door::open();
    let ping = r#"{"v":1,"type":"ping"}"#;
    let answered = (0..5000).filter(|n| matches!(door.hears(&format!("c{n}"), ping), Verdict::Say { .. })).count();
    assert_eq!(answered, 1000);
    for n in 0..5000 {
        door.now += Duration::from_millis(10);
        door.hears(&format!("d{n}"), ping);
    }
    assert!(door.viewers.clients() <= 1024);
}

#[test]
fn made_up_names_throw_nobody_out_who_has_a_token() {
    let mut door = Door::locked();
    let hello = format!(r#"{{"v":1,"type":"hello","token":"{}"}}"#, token(None, Duration::ZERO));
    door.says("kitchen", &hello);
    for n in 0..3000 {
        door.now += Duration::from_millis(100);
        door.hears(&format!("c{n}"), r#"{"v":1,"type":"ping"}"#);
    }
    door.is_asked("kitchen", &offer("1", "").replace(r#""token":"","#, ""));
}

/// The link, with an engine that takes nothing until it is asked to.
struct Switchboard {
    link: Link,
    engine: mpsc::Receiver<Inbound>,
    outcomes: mpsc::Receiver<Outcome>,
}

impl Switchboard {
    fn new() -> Self {
        let (engine, inbox) = mpsc::channel(1);
        let (outcomes, decided) = mpsc::channel(OUTCOMES);
        let topics = Topics::new("edgecam", "frontdoor");
        let link = Link::new(Arc::new(links(Rule::Open, engine)), topics, settings(), mpsc::channel(1).0, outcomes);
        Self { link, engine: inbox, outcomes: decided }
    }

    fn hears(&mut self, word: &str, retained: bool) {
        let topic = "edgecam/frontdoor/cam/front/enabled/set".into();
        self.link.handle_message(Incoming { topic, retained, ..message(word) });
    }

    /// The engine takes what waits next: ON or OFF.
    async fn switches(&mut self) -> bool {
        let asked = timeout(Duration::from_secs(10), self.engine.recv()).await.expect("the engine is asked");
        let Some(Inbound::Switch { on, reply, .. }) = asked else { panic!("another question") };
        reply.send(Ok(())).unwrap();
        assert!(self.outcomes.recv().await.unwrap().outcome.is_ok());
        on
    }

    fn dropped(&self, reason: MqttDrop) -> u64 {
        self.link.links.counters.mqtt.messages_dropped[reason as usize].get()
    }
}

#[tokio::test]
async fn an_off_waits_for_a_busy_engine_and_nothing_overtakes_it() {
    let mut board = Switchboard::new();
    board.hears("ON", false);
    // The engine has no room any more.
    for _ in 0..100 {
        board.hears("OFF", false);
    }
    board.hears("ON", false);
    assert!(board.switches().await);
    assert!(!board.switches().await);
    assert!(board.engine.try_recv().is_err(), "one question for all of them");
    assert_eq!((board.dropped(MqttDrop::Repeated), board.dropped(MqttDrop::Refused)), (99, 1));
    // And then it goes on as before.
    tokio::task::yield_now().await;
    board.hears("ON", false);
    assert!(board.switches().await);
}

#[tokio::test]
async fn an_off_with_the_retain_flag_is_obeyed_and_an_on_is_not() {
    let mut board = Switchboard::new();
    board.hears("ON", true);
    board.hears("OFF", true);
    assert!(!board.switches().await);
    assert!(board.engine.try_recv().is_err());
    assert_eq!(board.dropped(MqttDrop::Retained), 1);
}

/// For the tests of every file of this link.
pub(in crate::signaling::mqtt) fn settings() -> MqttSettings {
    MqttSettings {
        host: "broker".into(),
        port: 1883,
        tls: None,
        username: "frontdoor".into(),
        password: "canary".into(),
        prefix: "edgecam".into(),
        home_assistant: None,
        page_url: None,
    }
}

#[test]
fn settings_in_debug_output_hold_no_password() {
    assert!(!format!("{:?}", settings()).contains("canary"));
}

/// Every MQTT example in the manual against what is really read and said.
#[test]
fn the_manual_shows_what_is_published() {
    let manual = include_str!("../../../docs/signaling.md");
    let mut shown = Vec::new();
    for example in manual.split("```json mqtt ").skip(1) {
        let (kind, rest) = example.split_once('\n').unwrap();
        let text = rest.split("```").next().unwrap();
        let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        match kind {
            "trigger" => assert!(trigger::parse(&without_time(text), wall_clock()).is_ok(), "{text}"),
            _ => assert_eq!(keys(&json), keys(&ours_like(kind, &json)), "{text}"),
        }
        shown.push(kind);
    }
    for kind in ["info", "state", "trigger", "done", "error", "event", "home-assistant"] {
        assert!(shown.contains(&kind), "no example of {kind}");
    }
}

/// The example's time has long gone by.
fn without_time(text: &str) -> Vec<u8> {
    let mut json: Value = serde_json::from_str(text).unwrap();
    json.as_object_mut().unwrap().remove("at");
    json.to_string().into_bytes()
}

fn ours_like(kind: &str, example: &Value) -> Value {
    let (engine, _) = mpsc::channel(1);
    let links = links(Rule::Open, engine);
    let topics = Topics::new("edgecam", "frontdoor");
    let page = Some("https://frontdoor.example.org/");
    let id: Correlation = Some("bell-17".into());
    let refusal = trigger::Refusal::RateLimited(Duration::from_millis(700));
    let text = match kind {
        "info" => presence::info(&links, &topics, page),
        "state" => presence::state(&links.cameras[0]),
        "done" => trigger::done(&id, &front(), "wake"),
        "error" => trigger::error(&id, &refusal),
        "home-assistant" => home_assistant::config("frontdoor", &[front()], &topics, page),
        "event" if example["event"] == "trigger-refused" => presence::refused(&front(), &id, &refusal, wall_clock()),
        "event" => {
            let happening = happening(example["event"].as_str().unwrap());
            let trigger = example.get("trigger").and(id);
            presence::event(&Event { camera: front(), trigger, happening }, wall_clock())
        }
        other => panic!("we publish no {other}"),
    };
    let ours: Value = serde_json::from_str(&text).unwrap();
    if kind == "home-assistant" {
        assert_eq!(*example, ours, "the announcement is shown whole");
    }
    ours
}

fn happening(slug: &str) -> Happening {
    let all = [
        Happening::Woken,
        Happening::ViewerJoined { viewers: 1 },
        Happening::ViewerLeft { viewers: 0, reason: CloseReason::ViewerLeft },
        Happening::CameraLost { reason: "gone".into() },
    ];
    all.into_iter().find(|happening| happening.slug() == slug).unwrap()
}

fn keys(json: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
