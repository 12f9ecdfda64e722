//! A shell in the virtual machine of `camera-vm`, with edgecam running beside it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::ports::free_port;

/// One guest at a time: each is emulated on two processors.
static TURN: Mutex<()> = Mutex::new(());

/// The webcam, with buffers the encoder can read in place.
pub(crate) const WEBCAM: &str = "vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0 allocators=1";
/// The webcam as most USB ones are: its buffers are scattered in memory and must be copied for the encoder.
pub(crate) const SCATTERED_WEBCAM: &str = "vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0 allocators=0";
/// The encoder at /dev/video11.
pub(crate) const ENCODER: &str = "vh264";

/// Where edgecam listens inside the guest.
const HTTP_PORT: u16 = 8080;
const UDP_PORT: u16 = 8189;

/// Longer than any test should take on a busy machine; the guest is switched off then.
const TIME_LIMIT: &str = "600";

/// Closes each command's output in the stream.
const END_OF_OUTPUT: &str = "--- end of output, status ";

pub(crate) struct Guest {
    machine: Child,
    shell: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    http: u16,
    udp: u16,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    /// Boots a guest with these kernel modules.
    pub(crate) fn boot(modules: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (http, udp) = (free_port(), free_port());
        let program = Path::new(env!("CARGO_BIN_EXE_edgecam"));
        let folder = program.parent().expect("a program has a folder").display();
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/camera_vm/camera-vm"));
        command.args(["--timeout", TIME_LIMIT, "--share", &format!("{folder}:/edgecam:ro")]);
        command.args(["--tcp", &format!("{http}:{HTTP_PORT}"), "--udp", &format!("{udp}:{UDP_PORT}")]);
        command.args(modules.iter().flat_map(|module| ["--load", module]));
        command.args(["--", "bash"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut machine = command.spawn().expect("camera-vm can be started");
        let shell = machine.stdin.take();
        let output = BufReader::new(machine.stdout.take().expect("its output is a pipe"));
        let mut guest = Self { machine, shell, output, http, udp, _turn: turn };
        guest.run("true");
        guest
    }

    /// Runs a shell command in the guest and gives what it printed; one that fails ends the test.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let shell = self.shell.as_mut().expect("the shell is open");
        // A command of its own output ends its last line, so that the marker always begins one.
        writeln!(shell, "{{ {command}\n}} </dev/null 2>&1; printf '\\n{END_OF_OUTPUT}%d\\n' $?")
            .expect("the guest takes commands");
        let mut printed = String::new();
        let status = loop {
            let start = printed.len();
            let length = self.output.read_line(&mut printed).expect("the guest prints text");
            assert!(length > 0, "the guest ended during `{command}`, which had printed:\n{printed}");
            if let Some(status) = printed[start..].strip_prefix(END_OF_OUTPUT) {
                let status = status.trim_end().to_owned();
                printed.truncate(start);
                break status;
            }
        };
        let printed = printed.trim_end().to_owned();
        assert_eq!(status, "0", "`{command}` failed in the guest and printed:\n{printed}");
        printed
    }

    /// Makes /dev/video20 a webcam that sends 320x180 at 30 as `format`, from what these GStreamer elements encode.
    pub(crate) fn start_webcam(&mut self, format: &str, encode: &str) {
        self.run("modprobe v4l2loopback video_nr=20 exclusive_caps=1 card_label=webcam");
        self.run("v4l2-ctl -d /dev/video20 -c keep_format=1");
        self.run(&format!("v4l2-ctl -d /dev/video20 --set-fmt-video-out=width=320,height=180,pixelformat={format}"));
        self.run("echo @30/1 >/sys/class/video4linux/video20/format");
        // The driver takes each write as one picture.
        self.run(&format!(
            "gst-launch-1.0 -q videotestsrc is-live=true ! video/x-raw,width=320,height=180,framerate=30/1 \
             ! {encode} ! filesink location=/dev/video20 buffer-mode=unbuffered sync=false >/tmp/webcam 2>&1 & \
             until v4l2-ctl -d /dev/video20 --list-formats | grep {format}; do sleep 0.2; done"
        ));
    }

    /// One of the figures the encoder's driver keeps.
    pub(crate) fn encoder_figure(&mut self, name: &str) -> u64 {
        self.run(&format!("cat /sys/module/vh264/parameters/{name}")).parse().expect("a number")
    }

    /// Starts edgecam with one camera, named "cam", and waits until it answers.
    pub(crate) fn start_edgecam(&mut self, camera: &str) {
        let config = format!(
            r#"
            [http]
            listen = "0.0.0.0:{HTTP_PORT}"
            [auth]
            anyone_may_watch = true
            [ice]
            udp_port = {UDP_PORT}
            advertise = ["127.0.0.1:{}"]
            [log]
            level = "debug"
            [[camera]]
            id = "cam"
            {camera}
            "#,
            self.udp
        );
        self.run(&format!("cat >/tmp/edgecam.toml <<'END'\n{config}\nEND"));
        self.run("/edgecam/edgecam run --config /tmp/edgecam.toml >/tmp/log 2>&1 & echo $! >/tmp/pid");
        self.run(&format!(
            "( until : </dev/tcp/127.0.0.1/{HTTP_PORT}; do kill -0 $(cat /tmp/pid) || exit 1; sleep 0.2; done ) \
             || {{ cat /tmp/log; false; }}"
        ));
    }

    /// How many files of the webcam and the encoder edgecam holds open.
    pub(crate) fn open_devices(&mut self) -> usize {
        self.run("readlink /proc/$(cat /tmp/pid)/fd/* || true").matches("/dev/video").count()
    }

    /// Stops edgecam as an init system would; it must end with status 0.
    pub(crate) fn stop_edgecam(&mut self) {
        self.run(
            "kill -TERM $(cat /tmp/pid) && wait $(cat /tmp/pid) || { status=$?; tail -50 /tmp/log; (exit $status); }",
        );
    }

    /// What the camera says of itself at `/api/cameras`.
    pub(crate) fn camera(&self) -> Value {
        let url = format!("http://127.0.0.1:{}/api/cameras", self.http);
        let text = ureq::get(&url).call().expect("edgecam answers").into_body().read_to_string().expect("text");
        let mut answer: Value = serde_json::from_str(&text).expect("JSON");
        answer["cameras"][0].take()
    }

    pub(crate) fn whep_url(&self) -> String {
        format!("http://127.0.0.1:{}/whep/cam", self.http)
    }

    pub(crate) fn websocket_url(&self) -> String {
        format!("ws://127.0.0.1:{}/ws", self.http)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(shell) = &mut self.shell
        {
            let _ = writeln!(shell, "echo; echo edgecam said:; tail -n 60 /tmp/log; dmesg | tail -n 15");
        }
        drop(self.shell.take()); // the shell's end is the guest's
        let mut rest = String::new();
        while matches!(self.output.read_line(&mut rest), Ok(1..)) {}
        if std::thread::panicking() {
            eprintln!("{rest}");
        }
        let _ = self.machine.wait();
    }
}
