//! Each fault and its words.

use std::time::Duration;

use super::facts::{
    About, BoardFacts, BrokerFacts, CameraFacts, ClockFacts, DaemonFacts, Facts, Look, NetworkFacts, NodeFacts,
    PictureFacts, PortFacts, Settled,
};
use super::judge::judge;
use super::service::{Identity, Unit};
use super::{Line, Scope, Verdict};
use crate::camera::encoder::EncoderReport;
use crate::camera::pipeline::Installed;
use crate::config::{ConfigError, Problem};
use crate::core::camera::Stream;
use crate::probe::ice_server::Answer;

#[test]
fn a_machine_in_order_is_told_so_line_by_line() {
    let lines = judge(&in_order());
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok && line.remedy.is_none()), "{lines:#?}");
    for (check, words) in [
        ("configuration", "good: device porch, page on http://0.0.0.0:8080/ with a token"),
        ("service", "runs"),
        ("permissions", "edgecam (in video, edgecam) may use /dev/video0, /dev/dma_heap/linux,cma"),
        ("gstreamer", "1.22.0, nothing is missing"),
        ("encoder", "v4l2h264enc works, in hardware (/dev/video11)"),
        (
            "camera front",
            "gives pictures: YUYV 1280x720 at 30 fps from /dev/video0; v4l2h264enc encodes in hardware; it offers YUYV, MJPG",
        ),
        ("broker", "broker port 8883 lets this device in, and takes what it says"),
        ("daemon", "runs and is well"),
        ("ports", "TCP 0.0.0.0:8080, for the page, is in use by edgecam itself"),
        ("ports", "UDP 8189, for the media, is in use by edgecam itself"),
        ("ports", "TCP 8189, for media where UDP is dropped, is in use by edgecam itself"),
        ("turn", "turn:turn.example.org takes the credentials viewers get, and relays from 203.0.113.9:49160"),
        ("stun", "stun:stun.example.org answers and sees us at 203.0.113.7:8189"),
        ("clock", "is set and synchronised"),
        ("memory", "900 MiB are left"),
        ("memory", "400 of 512 MiB are left for camera and encoder (CMA)"),
        ("power", "voltage and temperature were good since the board started"),
        ("disk", "5000 MiB are left for /var/lib/edgecam"),
    ] {
        assert!(lines.iter().any(|line| line.check == check && line.words == words), "{check}: {words}\n{lines:#?}");
    }
    assert_eq!(lines.len(), 18, "{lines:#?}");
}

#[test]
fn a_first_start_looks_at_the_picture_only() {
    let lines = judge(&Facts { scope: Scope::Picture, ..in_order() });
    let checks: Vec<&str> = lines.iter().map(|line| line.check.as_str()).collect();
    assert_eq!(checks, ["gstreamer", "encoder", "camera front", "broker"]);
}

/// What is wrong, what is said, and what is to be done.
macro_rules! fault {
    ($name:ident, $verdict:ident, $check:literal, $words:literal, $remedy:literal, $break:expr) => {
        #[test]
        fn $name() {
            let mut facts = in_order();
            let spoil: fn(&mut Facts) = $break;
            spoil(&mut facts);
            let lines = judge(&facts);
            let expected = Line {
                check: $check.into(),
                verdict: Verdict::$verdict,
                words: $words.into(),
                remedy: Some($remedy.into()),
            };
            assert!(lines.contains(&expected), "{expected:#?} is not among\n{lines:#?}");
            let others = lines.iter().filter(|line| **line != expected && line.verdict != Verdict::Ok);
            assert_eq!(others.count(), 0, "one fault, one complaint: {lines:#?}");
        }
    };
}

fault!(
    a_wrong_setting_is_told_as_check_tells_it,
    Fail,
    "configuration",
    "ice.udp_port: 70000 is outside 0 to 65535 (in edgecam.toml)",
    "put it right; `edgecam check` says when it is",
    |facts| {
        let problem = Problem {
            key: "ice.udp_port".into(),
            what: "70000 is outside 0 to 65535".into(),
            origin: "in edgecam.toml".into(),
        };
        facts.configuration = Err(ConfigError::Invalid(vec![problem]));
    }
);
fault!(
    a_secret_that_others_can_read_is_warned_of,
    Warn,
    "configuration",
    "/etc/edgecam/key can be read by other users",
    "run: chmod go= /etc/edgecam/key",
    |facts| warn(facts, "/etc/edgecam/key can be read by other users; run: chmod go= /etc/edgecam/key")
);
fault!(
    whoever_may_not_read_a_secret_is_sent_to_root,
    Warn,
    "configuration",
    "this user may not read /etc/edgecam/secrets/token-key, so nobody was asked who wants these",
    "look as root: sudo edgecam doctor",
    |facts| settled(facts).unread = vec!["/etc/edgecam/secrets/token-key".into()]
);
fault!(
    a_page_for_this_machine_only_hints_at_setup,
    Warn,
    "page",
    "the page is for this machine only",
    "for viewers elsewhere: sudo edgecam setup; with a proxy on this machine it is as it should be",
    |facts| settled(facts).listen = "127.0.0.1:8080".parse().unwrap()
);
fault!(
    a_service_that_refuses_its_configuration_is_told,
    Fail,
    "service",
    "does not start with this configuration",
    "edgecam check; then: sudo systemctl restart edgecam",
    |facts| facts.unit = Some(Unit { state: "failed".into(), exit_status: "78".into() })
);
fault!(
    a_service_that_dies_again_and_again_is_told,
    Fail,
    "service",
    "does not stay up (exit code 1)",
    "its last words: journalctl -u edgecam -n 30; then: sudo systemctl restart edgecam",
    |facts| facts.unit = Some(Unit { state: "activating".into(), exit_status: "1".into() })
);
fault!(
    a_service_that_was_stopped_is_told,
    Warn,
    "service",
    "does not run (inactive)",
    "sudo systemctl enable --now edgecam",
    |facts| facts.unit = Some(Unit { state: "inactive".into(), exit_status: "0".into() })
);
fault!(
    a_user_outside_the_cameras_group_is_told_how_to_get_in,
    Fail,
    "permissions",
    "edgecam may not use /dev/video0 (group video, mode 0660)",
    "sudo usermod -aG video edgecam && sudo systemctl restart edgecam",
    |facts| {
        facts.identity.gids = vec![994];
        facts.nodes.truncate(1);
    }
);
fault!(
    a_device_that_belongs_to_no_group_is_told_how_it_gets_one,
    Fail,
    "permissions",
    "edgecam may not use /dev/video0, /dev/video1 (group root, mode 0600)",
    "give it to the group video by a udev rule; until the next start: chgrp video /dev/video0 /dev/video1 && chmod g+rw /dev/video0 /dev/video1",
    |facts| facts.nodes = vec![node("/dev/video0", 0, "root", 0o600), node("/dev/video1", 0, "root", 0o600)]
);
fault!(
    a_missing_element_is_told_with_its_package,
    Fail,
    "gstreamer",
    "its element h264parse is missing",
    "sudo apt install gstreamer1.0-plugins-bad",
    |facts| {
        let missing = vec![("h264parse", "gstreamer1.0-plugins-bad")];
        facts.gstreamer = Some(Installed { version: "1.22.0".into(), missing });
    }
);
fault!(
    a_gstreamer_that_does_not_start_is_told,
    Fail,
    "gstreamer",
    "does not start",
    "reinstall it: sudo apt install --reinstall libgstreamer1.0-0",
    |facts| facts.gstreamer = None
);
fault!(
    no_encoder_at_all_is_told_with_what_was_tried,
    Fail,
    "encoder",
    "none works: v4l2h264enc is not there, x264enc is not there",
    "sudo apt install gstreamer1.0-plugins-ugly",
    |facts| facts.encoders = Ok(vec![missing("v4l2h264enc"), missing("x264enc")])
);
fault!(
    software_in_place_of_wanted_hardware_is_told,
    Warn,
    "encoder",
    "x264enc works, in software, since v4l2h264enc is not there, though a camera prefers hardware",
    "see that the encoder's driver is loaded and its /dev/video node may be used (permissions); or set prefer = \"auto\"",
    |facts| {
        settled(facts).wants_hardware = true;
        let x264 = EncoderReport { name: "x264enc", works: true, device: None, problem: String::new() };
        facts.encoders = Ok(vec![missing("v4l2h264enc"), x264]);
    }
);
fault!(
    a_camera_that_is_not_there_is_told_in_the_cameras_words,
    Fail,
    "camera front",
    "no camera at /dev/video0",
    "plug it in or correct `source`; there is no video device at all",
    |facts| {
        let error = "no camera at /dev/video0; plug it in or correct `source`; there is no video device at all";
        facts.cameras[0].picture = PictureFacts::Failed(error.into());
    }
);
fault!(
    a_camera_the_daemon_cannot_open_is_told_in_its_words,
    Fail,
    "camera front",
    "/dev/video0 is in use by vlc (pid 7)",
    "stop the other program or choose another camera",
    |facts| {
        let error = "/dev/video0 is in use by vlc (pid 7); stop the other program or choose another camera";
        facts.cameras[0].picture = PictureFacts::FailsThere(error.into());
    }
);
fault!(
    a_camera_that_hangs_is_told,
    Fail,
    "camera front",
    "v4l2:/dev/video0 gives neither picture nor error within 20 s",
    "unplug the camera and plug it in again; if that does not help, restart the board",
    |facts| facts.cameras[0].picture = PictureFacts::Silent(Duration::from_secs(20))
);
fault!(
    a_control_the_camera_does_not_have_is_told_with_those_it_has,
    Warn,
    "camera front",
    "it has no control brightnes",
    "correct [camera.controls]; it has brightness, contrast",
    |facts| facts.cameras[0].look.as_mut().unwrap().unknown_controls = vec!["brightnes".into()]
);
fault!(
    a_broker_that_keeps_us_out_is_told_in_the_links_words,
    Fail,
    "broker",
    "the broker wants to know who we are",
    "set username and password_file",
    |facts| broker(facts).visit = Err("the broker wants to know who we are; set username and password_file".into())
);
fault!(
    a_broker_that_refuses_topics_is_told_with_them,
    Fail,
    "broker",
    "broker port 8883 refuses this device its topics edgecam/porch/rpc/+",
    "allow them in the broker's access rules; docs/examples/mqtt/acl shows them",
    |facts| broker(facts).visit = Ok(vec!["edgecam/porch/rpc/+".into()])
);
fault!(
    an_unwell_daemon_says_why,
    Warn,
    "daemon",
    "runs, but 1 of 2 cameras fail; the log says why",
    "the other lines or its log say why: journalctl -u edgecam -n 30",
    |facts| {
        let reasons = vec!["1 of 2 cameras fail; the log says why".into()];
        network(facts).daemon = Some(DaemonFacts { reasons });
    }
);
fault!(
    a_page_whose_port_is_taken_is_told_with_who_has_it,
    Fail,
    "ports",
    "TCP 0.0.0.0:8080, for the page, is taken by nginx (pid 12)",
    "stop that program, or give another address to [http] listen",
    |facts| network(facts).listen = PortFacts::Taken { by: Some("nginx (pid 12)".into()) }
);
fault!(
    media_without_its_port_is_told_even_if_nobody_knows_who_has_it,
    Fail,
    "ports",
    "UDP 8189, for the media, is taken by another program",
    "stop that program, or give another number to [ice] udp_port",
    |facts| network(facts).media = PortFacts::Taken { by: None }
);
fault!(
    media_that_cannot_have_its_port_for_tcp_too_runs_and_is_told,
    Warn,
    "ports",
    "TCP 8189, for media where UDP is dropped, is taken by nginx (pid 12)",
    "stop that program, or give another number to [ice] udp_port, or tcp = false",
    |facts| network(facts).media_tcp = Some(PortFacts::Taken { by: Some("nginx (pid 12)".into()) })
);
fault!(
    an_address_this_machine_does_not_have_is_told,
    Fail,
    "ports",
    "TCP 0.0.0.0:8080, for the page, cannot be used: Cannot assign requested address",
    "give another address to [http] listen",
    |facts| network(facts).listen = PortFacts::Refused("Cannot assign requested address".into())
);
fault!(
    a_port_for_root_alone_is_told,
    Warn,
    "ports",
    "TCP 80 is below 1024, which edgecam may not use by itself",
    "take 8080; or allow it: systemctl edit edgecam, [Service] AmbientCapabilities=CAP_NET_BIND_SERVICE CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    |facts| settled(facts).listen = "0.0.0.0:80".parse().unwrap()
);
fault!(
    a_turn_server_that_refuses_us_is_told,
    Fail,
    "turn",
    "turn:turn.example.org: it refuses the credentials",
    "set the secret",
    |facts| facts.ice_servers[0].1 = Err("it refuses the credentials; set the secret".into())
);
fault!(
    a_turn_server_that_relays_into_itself_is_told,
    Warn,
    "turn",
    "turn:turn.example.org relays from 127.0.0.1:49160, which no viewer elsewhere reaches",
    "tell the server its own address: external-ip and relay-ip in turnserver.conf",
    |facts| facts.ice_servers[0].1 = Ok(Answer::Relays("127.0.0.1:49160".parse().unwrap()))
);
fault!(
    a_clock_that_is_not_set_is_told,
    Fail,
    "clock",
    "is not set: tokens with an end, TURN credentials and certificates are of no use until it is",
    "give this machine a time server it reaches: timedatectl set-ntp true; timedatectl timesync-status",
    |facts| facts.clock = ClockFacts { is_set: false, synchronised: Some(false) }
);
fault!(
    a_clock_nobody_confirmed_is_told,
    Warn,
    "clock",
    "is set, but no time server has confirmed it",
    "timedatectl set-ntp true; a minute off, and tokens made elsewhere are refused",
    |facts| facts.clock.synchronised = Some(false)
);
fault!(
    too_little_memory_is_told,
    Warn,
    "memory",
    "only 63 MiB are left",
    "stop what else runs here, or ask the camera for smaller pictures",
    |facts| facts.board.memory_available_mib = Some(63)
);
fault!(
    too_little_memory_for_the_encoder_is_told,
    Warn,
    "memory",
    "30 of 32 MiB are left for camera and encoder (CMA)",
    "add cma=128M to the one line of /boot/firmware/cmdline.txt, and restart the board",
    |facts| facts.board.cma_mib = Some((32, 30))
);
fault!(
    too_little_voltage_now_is_told,
    Fail,
    "power",
    "the board gets too little voltage now",
    "use the power supply made for this board, and a short cable",
    |facts| facts.board.throttled = Some(0x50005)
);
fault!(
    too_little_voltage_once_is_told,
    Warn,
    "power",
    "the board got too little voltage since it started",
    "use the power supply made for this board, and a short cable",
    |facts| facts.board.throttled = Some(0x50000)
);
fault!(
    a_board_that_is_too_hot_is_told,
    Warn,
    "power",
    "the board is too hot now and slows down",
    "give the board air or a heat sink, or ask the camera for fewer or smaller pictures",
    |facts| facts.board.throttled = Some(0x8)
);
fault!(
    a_full_disk_is_told,
    Fail,
    "disk",
    "only 3 MiB are left for /var/lib/edgecam",
    "make room there; a full disk forgets which cameras are switched off",
    |facts| facts.board.state = Some(("/var/lib/edgecam".into(), 3))
);

#[test]
fn what_this_version_does_not_need_may_be_shut() {
    let shut = node("/dev/dma_heap/system", 0, "root", 0o600);
    let mut facts = in_order();
    facts.nodes[1] = shut;
    let lines = judge(&facts);
    let line = lines.iter().find(|line| line.check == "permissions").unwrap();
    assert_eq!((line.verdict, line.words.as_str()), (Verdict::Ok, "edgecam (in video, edgecam) may use /dev/video0"));
}

#[test]
fn a_camera_that_edgecam_streams_is_well() {
    let mut facts = in_order();
    let what = "YUYV 1280x720 at 30 fps from /dev/video0, x264enc";
    for (picture, words) in [
        (PictureFacts::Streamed(None), "edgecam streams it now; it offers YUYV, MJPG".to_owned()),
        (
            PictureFacts::NotTold,
            "was left to the edgecam that runs; `sudo edgecam doctor` can ask how it fares; it offers YUYV, MJPG"
                .into(),
        ),
        (PictureFacts::Streamed(Some(what.into())), format!("edgecam streams it now: {what}; it offers YUYV, MJPG")),
    ] {
        facts.cameras[0].picture = picture;
        let lines = judge(&facts);
        assert!(lines.iter().any(|line| line.words == words && line.verdict == Verdict::Ok), "{words}\n{lines:#?}");
    }
}

#[test]
fn a_camera_that_is_switched_off_is_left_alone() {
    let mut facts = in_order();
    facts.cameras[0].picture = PictureFacts::SwitchedOff;
    let lines = judge(&facts);
    let line = lines.iter().find(|line| line.check == "camera front").unwrap();
    assert!(line.verdict == Verdict::Ok && line.words.starts_with("is switched off"), "{line:?}");
}

#[test]
fn free_ports_are_well_while_no_daemon_runs() {
    let network = NetworkFacts {
        daemon: None,
        listen: PortFacts::Free,
        media: PortFacts::Free,
        media_tcp: Some(PortFacts::Free),
    };
    let lines = judge(&Facts { network: Some(network), ..in_order() });
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok && line.check != "daemon"), "{lines:#?}");
}

/// A Raspberry Pi that streams its webcam.
fn in_order() -> Facts {
    let stream = Stream {
        source: "YUYV 1280x720 at 30 fps from /dev/video0".into(),
        width: 1280,
        height: 720,
        fps: 30,
        encoder: "v4l2h264enc".into(),
        encoder_reason: "v4l2h264enc encodes in hardware".into(),
    };
    let hardware =
        EncoderReport { name: "v4l2h264enc", works: true, device: Some("/dev/video11".into()), problem: String::new() };
    Facts {
        scope: Scope::Everything,
        about: About { gstreamer: Some("1.22.0".into()), kernel: "6.1.0".into(), board: None },
        configuration: Ok(Settled {
            device: "porch".into(),
            listen: "0.0.0.0:8080".parse().unwrap(),
            udp_port: 8189,
            needs_token: true,
            wants_hardware: false,
            warnings: Vec::new(),
            unread: Vec::new(),
        }),
        identity: Identity {
            user: "edgecam".into(),
            uid: 995,
            gids: vec![44, 994],
            groups: vec!["video".into(), "edgecam".into()],
        },
        unit: Some(Unit { state: "active".into(), exit_status: "0".into() }),
        nodes: vec![node("/dev/video0", 44, "video", 0o660), node("/dev/dma_heap/linux,cma", 44, "video", 0o660)],
        gstreamer: Some(Installed { version: "1.22.0".into(), missing: Vec::new() }),
        encoders: Ok(vec![hardware]),
        cameras: vec![CameraFacts {
            id: "front".into(),
            source: "v4l2:/dev/video0".into(),
            look: Some(Look {
                formats: vec!["YUYV".into(), "MJPG".into()],
                unknown_controls: Vec::new(),
                controls: vec!["brightness".into(), "contrast".into()],
            }),
            picture: PictureFacts::Came(stream),
        }],
        network: Some(NetworkFacts {
            daemon: Some(DaemonFacts { reasons: Vec::new() }),
            listen: PortFacts::Ours,
            media: PortFacts::Ours,
            media_tcp: Some(PortFacts::Ours),
        }),
        broker: Some(BrokerFacts { host: "broker".into(), port: 8883, visit: Ok(Vec::new()) }),
        ice_servers: vec![
            ("turn:turn.example.org".into(), Ok(Answer::Relays("203.0.113.9:49160".parse().unwrap()))),
            ("stun:stun.example.org".into(), Ok(Answer::Seen("203.0.113.7:8189".parse().unwrap()))),
        ],
        clock: ClockFacts { is_set: true, synchronised: Some(true) },
        board: BoardFacts {
            memory_available_mib: Some(900),
            cma_mib: Some((512, 400)),
            throttled: Some(0),
            state: Some(("/var/lib/edgecam".into(), 5000)),
        },
    }
}

fn node(path: &str, group: u32, group_name: &str, mode: u32) -> NodeFacts {
    NodeFacts { path: path.into(), owner: 0, group, group_name: group_name.into(), mode }
}

fn missing(name: &'static str) -> EncoderReport {
    EncoderReport { name, works: false, device: None, problem: "is not there".into() }
}

fn settled(facts: &mut Facts) -> &mut Settled {
    facts.configuration.as_mut().unwrap()
}

fn network(facts: &mut Facts) -> &mut NetworkFacts {
    facts.network.as_mut().unwrap()
}

fn broker(facts: &mut Facts) -> &mut BrokerFacts {
    facts.broker.as_mut().unwrap()
}

fn warn(facts: &mut Facts, warning: &str) {
    settled(facts).warnings.push(warning.into());
}
