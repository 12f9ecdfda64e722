//! Against servers that are a thread each.

use std::thread;

use rtc_stun::error_code::ErrorCode;
use rtc_stun::message::{CLASS_ERROR_RESPONSE, METHOD_BINDING};

use super::*;

const RELAYED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 49_160);

#[test]
fn a_stun_server_tells_where_it_sees_us() {
    let (address, _) = server("", "");
    let Answer::Seen(seen) = ask(&asked(&format!("stun:{address}"), "")).unwrap() else { panic!("it relays") };
    assert_eq!(seen.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
}

#[test]
fn a_turn_server_gets_the_credentials_and_its_relay_back() {
    let (address, asked_for) = server("north", "south");
    assert_eq!(ask(&asked(&format!("turn:{address}"), "south")).unwrap(), Answer::Relays(RELAYED));
    assert_eq!(asked_for.join().unwrap(), [METHOD_ALLOCATE, METHOD_ALLOCATE, METHOD_REFRESH]);
}

#[test]
fn a_wrong_secret_is_told_from_a_server_that_is_not_there() {
    let (address, _) = server("north", "south");
    let error = ask(&asked(&format!("turn:{address}"), "east")).unwrap_err();
    assert!(matches!(error, AskError::Credentials), "{error}");

    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = ask(&asked(&format!("stun:{free}"), "")).unwrap_err();
    assert!(matches!(error, AskError::Silent { .. }), "{error}");
}

#[test]
fn what_answers_in_another_language_is_no_stun_server() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            // Enough of them, that nobody has to wait for the end of our patience.
            for _ in 0..STRAYS {
                let _ = socket.send_to(b"HTTP/1.1 400 Bad Request", from);
            }
        }
    });
    let error = ask(&asked(&format!("stun:{address}"), "")).unwrap_err();
    assert!(matches!(error, AskError::Nonsense(_)), "{error}");
}

#[test]
fn credentials_do_not_show_in_debug_output() {
    let shown = format!("{:?}", asked("turn:turn.example.org", "south"));
    assert!(!shown.contains("north") && !shown.contains("south"), "{shown}");
}

fn asked(url: &str, credential: &str) -> AskedServer {
    AskedServer { url: url.into(), username: "north".into(), credential: credential.into() }
}

/// A server on a port of its own; it ends with its first binding, refusal or refresh, and tells what it was asked.
fn server(
    username: &'static str,
    password: &'static str,
) -> (SocketAddr, thread::JoinHandle<Vec<rtc_stun::message::Method>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let serve = move || {
        let crypto = default_provider().unwrap();
        let key = MessageIntegrity::long_term_integrity_key(
            username.into(),
            "example.org".into(),
            password.into(),
            crypto.crypto(),
        );
        let key = key.unwrap();
        let (mut asked_for, mut known) = (Vec::new(), Vec::new());
        loop {
            let mut raw = vec![0; 2048];
            let (length, from) = socket.recv_from(&mut raw).unwrap();
            raw.truncate(length);
            let mut request = Message { raw, ..Message::default() };
            request.decode().unwrap();
            let method = request.typ.method;
            // Who is not answered soon asks again, with the same id.
            if !known.contains(&request.transaction_id) {
                known.push(request.transaction_id);
                asked_for.push(method);
            }
            let is_signed = request.contains(ATTR_USERNAME);
            let is_known = is_signed && MessageIntegrity::check(&mut request, &key, crypto.crypto()).is_ok();
            let is_let_in = is_known || method == METHOD_BINDING;
            let class = if is_let_in { CLASS_SUCCESS_RESPONSE } else { CLASS_ERROR_RESPONSE };
            let mut answer = Message::new();
            let kind = MessageType::new(method, class);
            answer.build(&[Box::new(kind), Box::new(request.transaction_id)]).unwrap();
            if is_let_in {
                let seen = XorMappedAddress { ip: from.ip(), port: from.port() };
                seen.add_to_as(&mut answer, ATTR_XORMAPPED_ADDRESS).unwrap();
                let relayed = XorMappedAddress { ip: RELAYED.ip(), port: RELAYED.port() };
                relayed.add_to_as(&mut answer, ATTR_XOR_RELAYED_ADDRESS).unwrap();
            } else {
                ErrorCode(401).add_to(&mut answer).unwrap();
                for (attribute, text) in [(ATTR_REALM, "example.org"), (ATTR_NONCE, "1")] {
                    TextAttribute::new(attribute, text.into()).add_to(&mut answer).unwrap();
                }
            }
            socket.send_to(&answer.raw, from).unwrap();
            if [METHOD_BINDING, METHOD_REFRESH].contains(&method) || (is_signed && !is_let_in) {
                return asked_for;
            }
        }
    };
    (address, thread::spawn(serve))
}
