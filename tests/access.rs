//! Tokens, the pages that may call, and those who try too often.

#[path = "support/door.rs"]
mod door;

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use door::{Door, key, offer, token};
use edgecam::core::signal::CameraId;
use edgecam::signaling::access::{Access, AccessSettings, Denied, Rule};
use edgecam::signaling::token::{Grant, Permission, TokenError, TokenKey, check, mint};
use ring::hmac;

const SECRET: &[u8] = b"a key of thirty-two bytes or more";
const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// 2026-12-01, noon.
fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOON)
}
const NOON: u64 = 1_796_126_400;

fn b64(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn signed_by(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", b64(signature))
}

fn signed(header: &str, claims: &str) -> String {
    signed_by(SECRET, header, claims)
}

fn claims(more: &str) -> String {
    format!(r#"{{"aud":"frontdoor","perm":["view"]{more}}}"#)
}

fn viewer() -> Grant {
    Grant { camera: None, permissions: vec![Permission::View], subject: None }
}

#[test]
fn a_minted_token_is_good_until_it_expires() {
    let camera = CameraId::new("front").unwrap();
    let grant = Grant {
        camera: Some(camera),
        permissions: vec![Permission::View, Permission::Control],
        subject: Some("me".into()),
    };
    let token = mint(&key(), "frontdoor", &grant, Some(Duration::from_secs(3600)), noon());
    let at = |seconds: u64| check(&key(), "frontdoor", &token, UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(NOON), Ok(grant.clone()));
    assert_eq!(at(NOON - 60), Ok(grant.clone()), "a minute of leeway before");
    assert_eq!(at(NOON - 61), Err(TokenError::NotYet));
    assert_eq!(at(NOON + 3659), Ok(grant), "and after");
    assert_eq!(at(NOON + 3660), Err(TokenError::Expired));
}

#[test]
fn a_token_without_times_is_good_even_before_the_clock_is_set() {
    let token = mint(&key(), "frontdoor", &viewer(), None, UNIX_EPOCH);
    assert_eq!(check(&key(), "frontdoor", &token, UNIX_EPOCH), Ok(viewer()));
    assert_eq!(check(&key(), "frontdoor", &token, noon()), Ok(viewer()));
}

#[test]
fn times_cannot_be_checked_before_the_clock_is_set() {
    let token = mint(&key(), "frontdoor", &viewer(), Some(Duration::from_secs(3600)), noon());
    for unset in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1_700_000_000)] {
        assert_eq!(check(&key(), "frontdoor", &token, unset), Err(TokenError::ClockNotSet));
    }
}

#[test]
fn tokens_of_other_makers_are_read_as_the_standard_has_them() {
    for claims in [
        claims(""),
        claims(r#","sub":"door bell","jti":"1","iat":1796126400,"cam":null"#),
        claims(&format!(r#","exp":{}"#, NOON + 5)),
    ] {
        assert!(check(&key(), "frontdoor", &signed(HS256, &claims), noon()).is_ok(), "{claims}");
    }
    let short_header = signed(r#"{"alg":"HS256"}"#, &claims(""));
    assert!(check(&key(), "frontdoor", &short_header, noon()).is_ok());
}

#[test]
fn bad_tokens_open_nothing() {
    use TokenError::{Expired, Invalid, NotYet};
    let good = signed(HS256, &claims(""));
    let (head, tail) = good.split_once('.').unwrap();
    let (body, signature) = tail.split_once('.').unwrap();
    let with_alg = |alg: &str| signed(&format!(r#"{{"alg":{alg},"typ":"JWT"}}"#), &claims(""));
    let unsigned = |alg: &str| format!("{}.{body}.", b64(format!(r#"{{"alg":"{alg}"}}"#)));
    let mut flipped = good.clone().into_bytes();
    let last = flipped.len() - 2;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    // The last character of 32 bytes in base64 has two bits to spare; only one spelling of a signature is good.
    let spare = {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = good.clone().into_bytes();
        let end = bytes.last_mut().unwrap();
        let at = alphabet.iter().position(|a| a == end).unwrap();
        *end = alphabet[at ^ 1];
        String::from_utf8(bytes).unwrap()
    };
    let table: Vec<(&str, String, TokenError)> = vec![
        ("empty", String::new(), Invalid),
        ("no token at all", "hello".into(), Invalid),
        ("dots alone", "..".into(), Invalid),
        ("two parts", format!("{head}.{body}"), Invalid),
        ("four parts", format!("{good}.{signature}"), Invalid),
        ("no signature", format!("{head}.{body}."), Invalid),
        ("a signature cut short", good[..good.len() - 4].into(), Invalid),
        ("one bit of the signature changed", String::from_utf8(flipped).unwrap(), Invalid),
        ("the same signature spelled otherwise", spare, Invalid),
        ("a signature with padding", format!("{good}="), Invalid),
        ("a line break after it", format!("{good}\n"), Invalid),
        ("a space before it", format!(" {good}"), Invalid),
        ("another key", signed_by(b"another key of thirty-two bytes !", HS256, &claims("")), Invalid),
        ("the empty key", signed_by(b"", HS256, &claims("")), Invalid),
        ("claims changed after signing", format!("{head}.{}.{signature}", b64(claims(r#","cam":"x""#))), Invalid),
        ("alg none without signature", unsigned("none"), Invalid),
        ("alg None", unsigned("None"), Invalid),
        ("alg none, signed", with_alg(r#""none""#), Invalid),
        ("alg HS384", with_alg(r#""HS384""#), Invalid),
        ("alg HS512", with_alg(r#""HS512""#), Invalid),
        ("alg RS256", with_alg(r#""RS256""#), Invalid),
        ("alg in lower case", with_alg(r#""hs256""#), Invalid),
        ("alg null", with_alg("null"), Invalid),
        ("alg a list", with_alg(r#"["HS256"]"#), Invalid),
        ("no alg", signed("{}", &claims("")), Invalid),
        ("alg twice", signed(r#"{"alg":"HS256","alg":"none"}"#, &claims("")), Invalid),
        ("encrypted type", signed(r#"{"alg":"HS256","typ":"JWE"}"#, &claims("")), Invalid),
        ("a header that is no JSON", signed("HS256", &claims("")), Invalid),
        ("claims that are no JSON", signed(HS256, "view"), Invalid),
        ("claims that are a list", signed(HS256, "[]"), Invalid),
        ("binary claims", signed(HS256, "\u{0}\u{1}"), Invalid),
        ("another device", signed(HS256, r#"{"aud":"backdoor","perm":["view"]}"#), Invalid),
        ("no device", signed(HS256, r#"{"perm":["view"]}"#), Invalid),
        ("a list of devices", signed(HS256, r#"{"aud":["frontdoor"],"perm":["view"]}"#), Invalid),
        ("no permissions", signed(HS256, r#"{"aud":"frontdoor"}"#), Invalid),
        ("an unknown permission", signed(HS256, r#"{"aud":"frontdoor","perm":["root"]}"#), Invalid),
        ("a permission that is no list", signed(HS256, r#"{"aud":"frontdoor","perm":"view"}"#), Invalid),
        ("a camera that is no name", signed(HS256, &claims(r#","cam":"../x""#)), Invalid),
        ("a camera that is a number", signed(HS256, &claims(r#","cam":5"#)), Invalid),
        ("exp as text", signed(HS256, &claims(r#","exp":"9999999999""#)), Invalid),
        ("exp negative", signed(HS256, &claims(r#","exp":-1"#)), Invalid),
        ("exp beyond every number", signed(HS256, &claims(r#","exp":1e300"#)), Invalid),
        ("aud twice", signed(HS256, r#"{"aud":"frontdoor","aud":"frontdoor","perm":["view"]}"#), Invalid),
        ("expired", signed(HS256, &claims(&format!(r#","exp":{}"#, NOON - 60))), Expired),
        ("expired in 1970", signed(HS256, &claims(r#","exp":0"#)), Expired),
        ("not valid yet", signed(HS256, &claims(&format!(r#","nbf":{}"#, NOON + 61))), NotYet),
        ("never valid", signed(HS256, &claims(&format!(r#","nbf":{}"#, u64::MAX))), NotYet),
        ("too long", signed(HS256, &claims(&format!(r#","sub":"{}""#, "x".repeat(3000)))), Invalid),
    ];
    assert!(check(&key(), "frontdoor", &good, noon()).is_ok(), "the token that the bad ones are made of is good");
    for (what, token, wanted) in table {
        assert_eq!(check(&key(), "frontdoor", &token, noon()), Err(wanted), "{what}");
    }
}

#[test]
fn a_short_key_is_refused_and_no_key_shows() {
    let error = TokenKey::new(b"short\n").unwrap_err().to_string();
    assert!(error.contains("5 bytes") && error.contains("openssl rand"), "{error}");
    assert!(TokenKey::new(&[b' '; 64]).is_err(), "white space is no secret");
    let text = String::from_utf8_lossy(SECRET);
    assert!(!format!("{:?}", key()).contains(&*text));
}

#[test]
fn white_space_around_a_key_does_not_change_it() {
    let token = mint(&key(), "frontdoor", &viewer(), None, noon());
    let other = TokenKey::new(&[b"\n ", SECRET, b"\n"].concat()).unwrap();
    assert!(check(&other, "frontdoor", &token, noon()).is_ok());
}

#[test]
fn control_is_not_part_of_view() {
    let camera = CameraId::new("front").unwrap();
    assert!(viewer().allows(Permission::View, &camera));
    assert!(!viewer().allows(Permission::Control, &camera));
}

fn access(rule: Rule) -> Access {
    Access::new(AccessSettings {
        rule,
        device: "frontdoor".into(),
        origins: vec!["https://Panel.example.org".into(), "http://cam.example.net:8080".into()],
    })
}

#[expect(clippy::disallowed_methods, reason = "a starting point for made-up times")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn a_thousand_guesses_in_a_minute_are_answered_twenty_times() {
    let (door, now, guesser) = (access(Rule::Key(key())), start(), IpAddr::from([192, 0, 2, 1]));
    let answered = (0..1000)
        .map(|n| door.admit(Some("bad"), guesser, noon(), now + Duration::from_millis(60) * n))
        .filter(|outcome| *outcome == Err(Denied::Token(TokenError::Invalid)))
        .count();
    assert!((10..=20).contains(&answered), "{answered}");
}

#[test]
fn who_brought_too_many_bad_tokens_waits_even_with_a_good_one_and_nobody_else_does() {
    let (door, now) = (access(Rule::Key(key())), start());
    let (guesser, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    let good = mint(&key(), "frontdoor", &viewer(), None, noon());
    for _ in 0..10 {
        assert_eq!(door.admit(Some("bad"), guesser, noon(), now), Err(Denied::Token(TokenError::Invalid)));
    }
    let retry_after = Duration::from_secs(6);
    assert_eq!(door.admit(Some(&good), guesser, noon(), now), Err(Denied::TooManyTries { retry_after }));
    assert!(door.admit(Some(&good), other, noon(), now).is_ok());
    assert!(door.admit(Some(&good), guesser, noon(), now + retry_after).is_ok(), "the wait is as long as was said");
}

#[test]
fn an_expired_token_and_none_at_all_are_no_guesses() {
    let (door, now, caller) = (access(Rule::Key(key())), start(), IpAddr::from([192, 0, 2, 1]));
    let old = mint(&key(), "frontdoor", &viewer(), Some(Duration::from_secs(1)), noon() - Duration::from_secs(3600));
    for _ in 0..50 {
        assert_eq!(door.admit(Some(&old), caller, noon(), now), Err(Denied::Token(TokenError::Expired)));
        assert_eq!(door.admit(None, caller, noon(), now), Err(Denied::TokenNeeded));
    }
}

#[test]
fn a_proxy_on_this_machine_is_not_shut_out_for_what_one_of_its_clients_does() {
    let (door, now, proxy) = (access(Rule::Key(key())), start(), IpAddr::from([127, 0, 0, 1]));
    for _ in 0..100 {
        assert_eq!(door.admit(Some("bad"), proxy, noon(), now), Err(Denied::Token(TokenError::Invalid)));
    }
}

#[test]
fn a_crowd_of_guessers_does_not_make_the_door_forget_the_worst() {
    let (door, now) = (access(Rule::Key(key())), start());
    let worst = IpAddr::from([192, 0, 2, 1]);
    for _ in 0..20 {
        let _ = door.admit(Some("bad"), worst, noon(), now);
    }
    for n in 0..5000u32 {
        let _ = door.admit(Some("bad"), IpAddr::from(n.to_be_bytes()), noon(), now);
    }
    assert!(matches!(door.admit(Some("bad"), worst, noon(), now), Err(Denied::TooManyTries { .. })));
}

#[test]
fn without_tokens_only_own_and_listed_pages_may_call() {
    let open = access(Rule::Open);
    let table: &[(Option<&str>, Option<&str>, bool)] = &[
        (None, Some("127.0.0.1:8080"), true),
        (None, Some("localhost:8080"), true),
        (None, Some("[::1]:8080"), true),
        (None, Some("frontdoor"), true),
        (None, Some("frontdoor.local"), true),
        (None, Some("FrontDoor.Local:8080"), true),
        (None, Some("cam.example.net:8080"), true),
        (None, None, true),
        (Some("http://127.0.0.1:8080"), Some("127.0.0.1:8080"), true),
        (Some("http://frontdoor.local"), Some("frontdoor.local"), true),
        (Some("https://panel.example.org"), Some("192.168.1.5:8080"), true),
        (Some("http://cam.example.net:8080"), Some("cam.example.net:8080"), true),
        (Some("https://evil.example"), Some("127.0.0.1:8080"), false),
        (Some("https://panel.example.org.evil.example"), Some("127.0.0.1:8080"), false),
        (Some("http://127.0.0.1:9999"), Some("127.0.0.1:8080"), false),
        (Some("null"), Some("127.0.0.1:8080"), false),
        (Some("null"), None, false),
        (Some(""), Some("127.0.0.1:8080"), false),
        // A name that a stranger's DNS points at this device.
        (Some("http://evil.example:8080"), Some("evil.example:8080"), false),
        (None, Some("evil.example:8080"), false),
        (None, Some("127.0.0.1.evil.example"), false),
        (None, Some("frontdoor.local.evil.example."), false),
        (None, Some("evil.example."), false),
    ];
    for &(origin, host, may) in table {
        assert_eq!(open.admit_page(origin, host).is_ok(), may, "Origin {origin:?}, Host {host:?}");
    }
    let locked = access(Rule::Key(key()));
    assert_eq!(locked.admit_page(Some("https://evil.example"), Some("evil.example")), Ok(()), "the token decides");
}

#[tokio::test]
async fn every_way_in_wants_the_token() {
    let device = Door::locked().await;
    let sdp = ("Content-Type", "application/sdp");
    for (method, path) in [
        ("GET", "/api/cameras"),
        ("POST", "/whep/front"),
        ("POST", "/whep/no-such-camera"),
        ("GET", "/whep/front"),
        ("HEAD", "/whep/front"),
        ("OPTIONS", "/whep/front"),
        ("PATCH", "/whep/front/0123456789abcdef"),
        ("DELETE", "/whep/front/0123456789abcdef"),
    ] {
        let without = device.call(method, path, &[sdp], &offer()).await;
        assert_eq!(without.status, 401, "{method} {path}");
        assert_eq!(without.header("www-authenticate"), Some("Bearer"));
        assert!(!without.body.contains("front"), "says nothing about what there is: {}", without.body);
        let with = [sdp, ("Authorization", "Bearer a.b.c")];
        let bad = device.call(method, path, &with, &offer()).await;
        assert_eq!(bad.status, 401);
        assert_eq!(bad.header("www-authenticate"), Some(r#"Bearer error="invalid_token""#));
    }
}

#[tokio::test]
async fn a_token_for_one_camera_shows_and_opens_that_one_alone() {
    let device = Door::locked().await;
    let bearer = format!("bearer {}", token(Some("front")));
    let (auth, sdp) = (("Authorization", bearer.as_str()), ("Content-Type", "application/sdp"));
    let list = device.call("GET", "/api/cameras", &[auth], "").await.json();
    assert_eq!(list["cameras"].as_array().unwrap().len(), 1);
    assert_eq!(device.call("POST", "/whep/front", &[auth, sdp], &offer()).await.status, 201);
    for other in ["/whep/full", "/whep/no-such-camera"] {
        let refused = device.call("POST", other, &[auth, sdp], &offer()).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "not-allowed"), "{other}");
    }
}

#[tokio::test]
async fn a_token_in_the_url_is_not_looked_at() {
    let device = Door::locked().await;
    let path = format!("/api/cameras?token={}", token(None));
    assert_eq!(device.call("GET", &path, &[], "").await.status, 401);
}

#[tokio::test]
async fn other_schemes_and_odd_headers_are_no_tokens() {
    let device = Door::locked().await;
    for header in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Bearer\u{e9} x", "bearerabc"] {
        let answer = device.call("GET", "/api/cameras", &[("Authorization", header)], "").await;
        assert_eq!(answer.status, 401, "{header}");
    }
}

#[tokio::test]
async fn a_preflight_needs_no_token_and_names_no_ice_server() {
    let device = Door::locked().await;
    let headers = [("Origin", "https://any.example"), ("Access-Control-Request-Method", "POST")];
    let answer = device.call("OPTIONS", "/whep/front", &headers, "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("link"), None);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("Authorization"));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("PATCH"));
}

#[tokio::test]
async fn a_page_can_read_what_whep_tells_it() {
    let device = Door::open().await;
    let headers = [("Content-Type", "application/sdp"), ("Origin", "https://panel.example.org")];
    let answer = device.call("POST", "/whep/front", &headers, &offer()).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://panel.example.org"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in ["Location", "ETag", "Link", "Accept-Patch", "Retry-After"] {
        assert!(exposed.contains(name), "{name}");
    }
}

#[tokio::test]
async fn a_foreign_page_gets_nothing_where_no_token_is_needed() {
    let mut device = Door::open().await;
    let foreign = [("Content-Type", "application/sdp"), ("Origin", "https://evil.example")];
    for (method, path) in [("POST", "/whep/front"), ("OPTIONS", "/whep/front"), ("GET", "/api/cameras")] {
        let answer = device.call(method, path, &foreign, &offer()).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "foreign-page"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let rebound = device.call("GET", "/api/cameras", &[("Host", "evil.example")], "").await;
    assert_eq!(rebound.status, 403);
    assert!(device.has_heard_nothing());
}
