"""The programs of a case: the camera, the browser, the TURN server."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from net import HERE, LabError, end

ROOT = HERE.parent
EDGECAM = Path(os.environ.get("LAB_PROGRAM", ROOT / "target/release/edgecam"))

CAMERA = """
[[camera]]
id = "front"
source = "test"
width = 1280
height = 720
fps = 30
[camera.encoder]
max_kbps = 2500
min_kbps = 150
"""


class Camera:
    """edgecam in a namespace, for everybody who reaches it. Its figures are polled once a second."""

    HEAD = """
[device]
id = "lab"
state_dir = "{folder}/state"
[http]
listen = "0.0.0.0:8080"
[auth]
anyone_may_watch = true
[log]
level = "{level}"
"""

    def __init__(self, namespace, toml=CAMERA, more="", name="camera", environment=None):
        if not EDGECAM.exists():
            raise LabError(f"there is no {EDGECAM}; build it, or name another in LAB_PROGRAM")
        self.namespace = namespace
        folder = namespace.world.folder
        self.config = folder / f"{name}.toml"
        level = os.environ.get("LAB_LOG", "info")
        self.config.write_text(self.HEAD.format(folder=folder, level=level) + more + toml)
        self.environment = os.environ | (environment or {})
        self.process = namespace.start([EDGECAM, "run", "--config", self.config], f"{name}.log", env=self.environment)
        until("the camera answers", lambda: self.get("/healthz"), 15)
        self.figures = (folder / f"{name}.jsonl").open("w")
        self.stopping = threading.Event()
        self.poller = threading.Thread(target=self.poll, daemon=True)
        self.poller.start()
        namespace.world.at_end.append(self.stop)

    def get(self, path):
        with self.namespace.entered(), urllib.request.urlopen(f"http://127.0.0.1:8080{path}", timeout=2) as answer:
            return answer.read().decode()

    def camera(self):
        return json.loads(self.get("/api/cameras"))["cameras"][0]

    def sessions(self):
        """What it says of its viewers; None where this version does not."""
        try:
            said = json.loads(self.get("/api/cameras/front/sessions"))
            return said["sessions"] if isinstance(said, dict) else said
        except urllib.error.HTTPError:
            return None

    def metric(self, name):
        """Of all its labels together."""
        samples = re.findall(rf"^{name}(?:{{.*}})? ([\d.e+-]+)$", self.get("/metrics"), re.MULTILINE)
        return sum(map(float, samples))

    def loop_seconds(self):
        """CPU that its event loop has used, which is its main thread: encoders have threads of their own."""
        fields = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def encoders(self):
        """How many graphs with an encoder are open: each has a thread that looks after it."""
        names = (task / "comm" for task in Path(f"/proc/{self.process.pid}/task").iterdir())
        return sum(name.read_text().startswith("camera") for name in names)

    def doctor(self, *checks):
        """The lines of `edgecam doctor` about these things: (verdict, words)."""
        command = ["ip", "netns", "exec", self.namespace.name, EDGECAM, "doctor", "--json", "--config", self.config]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=self.environment)
        (self.namespace.world.folder / "doctor.json").write_text(done.stdout + done.stderr)
        lines = json.JSONDecoder().raw_decode(done.stdout)[0]["lines"]
        return [(line["verdict"].lower(), line["words"]) for line in lines if line["check"] in checks]

    def poll(self):
        while not self.stopping.wait(1.0 - time.time() % 1.0):
            try:
                row = {"t": time.time(), "camera": self.camera(), "sessions": self.sessions(), "encoders": self.encoders()}
            except (OSError, ValueError, KeyError):
                continue
            self.figures.write(json.dumps(row) + "\n")
            self.figures.flush()

    def stop(self):
        """Asks it nothing more; the program itself ends with the world."""
        self.stopping.set()
        self.poller.join(timeout=5)


class Browser:
    """viewer.mjs in a namespace. What it saw: `<name>.jsonl` in the case's folder."""

    def __init__(self, namespace, url, name="viewer", **its):
        folder = namespace.world.folder
        self.out = folder / f"{name}.jsonl"
        its |= {"url": url, "out": str(self.out)}
        self.process = namespace.start(
            ["node", HERE / "viewer.mjs", json.dumps(its)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / f"{name}.log", "ab"),
            text=True,
        )
        opened = self.answer()
        if "error" in opened:
            raise LabError(f"the browser: {opened['error']}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise LabError(f"the browser ended, see {self.out.with_suffix('.log')}")
        return json.loads(line)

    def evaluate(self, script):
        self.process.stdin.write(json.dumps({"eval": script}) + "\n")
        self.process.stdin.flush()
        said = self.answer()
        if "error" in said:
            raise LabError(f"the page: {said['error']}")
        return said.get("result")

    def decoded(self):
        return self.evaluate(
            """(async () => {
              const stats = await window.lab.peers.at(-1)?.getStats();
              return [...(stats?.values() ?? [])].find(({ type }) => type === 'inbound-rtp')?.framesDecoded ?? 0;
            })()"""
        )

    def sees(self, within=20, pictures=15):
        """Until pictures move."""
        start = self.decoded()
        until("pictures in the browser", lambda: self.decoded() >= start + pictures, within)

    def pictures_after(self, within):
        """Seconds until pictures move; None if they do not."""
        started = time.time()
        try:
            self.sees(within)
        except LabError:
            return None
        return time.time() - started

    def close(self):
        """Everything it saw is written then."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        end(self.process)


class Probe:
    """`edgecam probe`: a viewer without a screen, that takes hardly any of the machine."""

    def __init__(self, namespace, url, seconds, name):
        self.log = namespace.world.folder / f"{name}.log"
        self.process = namespace.start([EDGECAM, "probe", "--seconds", seconds, url], self.log.name)

    def report(self):
        self.process.wait(timeout=120)
        said = self.log.read_text()
        rate = re.search(r"rate +([\d.]+) fps, (\d+) kbit/s", said)
        lost, gap = re.search(r"\((\d+) of \d+ packets", said), re.search(r"longest gap +(\d+) ms", said)
        if not (rate and lost and gap):
            raise LabError(f"the probe saw nothing, see {self.log}")
        return {"fps": float(rate[1]), "kbps": int(rate[2]), "lost": int(lost[1]), "gap_ms": int(gap[1])}


class Turn:
    """A real coturn with a shared secret: UDP, TCP and TLS."""

    SECRET = "a secret of the laboratory, of no use elsewhere"
    PORT, TLS_PORT = 3478, 5349

    def __init__(self, namespace, address):
        self.namespace, self.address = namespace, address
        folder = namespace.world.folder
        certificate, key = folder / "turn.pem", folder / "turn.key"
        # No authority: what stands for itself may not be one.
        subject = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}", "-addext", "basicConstraints=critical,CA:FALSE"]
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        subprocess.run([*make, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True)
        key.chmod(0o644)
        self.certificate = certificate
        self.command = [
            "turnserver", "-n", "--use-auth-secret", f"--static-auth-secret={self.SECRET}", "--realm=lab.invalid",
            f"--listening-ip={address}", f"--relay-ip={address}", f"--listening-port={self.PORT}", f"--tls-listening-port={self.TLS_PORT}",
            f"--cert={certificate}", f"--pkey={key}", "--no-cli", "--no-multicast-peers", "--log-file=stdout", "--simple-log",
            f"--pidfile={folder}/turn.pid", f"--userdb={folder}/turn.sqlite", "--verbose", "--allow-loopback-peers",
        ]  # fmt: skip
        self.start()

    def start(self):
        self.process = self.namespace.start(self.command, "turn.log")
        time.sleep(1.0)
        if self.process.poll() is not None:
            raise LabError("coturn ended, see turn.log")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def credentials(self, ttl, name="lab"):
        """As a REST API for TURN mints them: a user name that says until when, and its HMAC."""
        user = f"{int(time.time()) + ttl}:{name}"
        mac = hmac.new(self.SECRET.encode(), user.encode(), hashlib.sha1).digest()
        return {"username": user, "credential": base64.b64encode(mac).decode()}


class Page(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(namespace, address, folder, port=8000):
    """A web server for the files of a folder, in this process; gives its URL."""
    with namespace.entered():
        server = http.server.ThreadingHTTPServer((address, port), lambda *its: Page(*its, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{address}:{port}/"


def listens(namespace, address, port):
    """Until a server takes connections."""

    def connects():
        with namespace.entered(), socket.create_connection((address, port), timeout=1):
            return True

    until(f"a server at {address}:{port}", connects, 15)


def until(what, condition, within, every=0.1):
    """What `condition` gives once it is truthy."""
    deadline, last = time.monotonic() + within, None
    while time.monotonic() < deadline:
        try:
            met = condition()
            if met:
                return met
        except (OSError, ValueError) as error:
            last = error
        time.sleep(every)
    raise LabError(f"not within {within} s: {what}" + (f"; {last}" if last else ""))
