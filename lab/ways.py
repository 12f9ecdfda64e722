"""Ways to the camera: through NATs, by a TURN server, by TCP."""

import time
from types import SimpleNamespace

from measure import Seen
from net import block_udp, forward_port, port_restricted_nat, symmetric_nat
from programs import Browser, Camera, Turn, until
from scene import MBIT, PAGE, QUEUE, Scene
from verdict import case

CAMERA_OUTSIDE, VIEWER_OUTSIDE, TURN = "10.80.1.2", "10.80.2.2", "10.80.9.2"
PAGE_OUTSIDE = f"http://{CAMERA_OUTSIDE}:8080/front"
MEDIA = 8189

BY_UDP = f"turn:{TURN}:{Turn.PORT}"
BY_TCP = f"turn:{TURN}:{Turn.PORT}?transport=tcp"
BY_TLS = f"turns:{TURN}:{Turn.TLS_PORT}?transport=tcp"
STUN = f"stun:{TURN}:{Turn.PORT}"

# The certificate is the laboratory's own.
TRUSTING = ["--ignore-certificate-errors"]
# How long a viewer is watched, once it sees pictures, in seconds.
WATCHED = 10


class Homes:
    """Camera and viewer each behind a NAT; between them the network, with a TURN server.

    camera ── camera-router ── net ══ link ══ view-router ── view
                                └── turn
    """

    def __init__(self, world, camera_nat=symmetric_nat, view_nat=symmetric_nat):
        self.world = world
        names = ("camera", "camera-router", "net", "view-router", "view", "turn")
        self.camera, self.camera_router, self.net, self.view_router, self.view, self.turn = map(world.namespace, names)
        self.net.forward()
        world.wire(self.camera_router, self.camera, "lan", "192.168.1.1/24", "192.168.1.2/24")
        world.wire(self.net, self.camera_router, "wan", "10.80.1.1/24", f"{CAMERA_OUTSIDE}/24")
        self.link = world.link(self.net, self.view_router, "dsl", "10.80.2.1/24", f"{VIEWER_OUTSIDE}/24", delay=0.01, queue_bytes=QUEUE)
        world.wire(self.view_router, self.view, "lan", "192.168.2.1/24", "192.168.2.2/24")
        world.wire(self.net, self.turn, "host", "10.80.9.1/24", f"{TURN}/24")
        for namespace, via in (
            (self.camera, "192.168.1.1"),
            (self.camera_router, "10.80.1.1"),
            (self.view_router, "10.80.2.1"),
            (self.view, "192.168.2.1"),
            (self.turn, "10.80.9.1"),
        ):
            namespace.route("default", via)
        camera_nat(self.camera_router, "wan")
        view_nat(self.view_router, "dsl")
        # The page alone; who forwards the port of video does so in the case.
        forward_port(self.camera_router, "wan", 8080, "192.168.1.2:8080")
        self.coturn = Turn(self.turn, TURN)

    def open_camera(self, urls=(BY_UDP, BY_TCP, BY_TLS), ice=""):
        secret = self.world.folder / "turn-secret"
        secret.write_text(Turn.SECRET)
        secret.chmod(0o600)
        servers = [self.server(url, secret) for url in urls]
        more = f"[ice]\nservers = [{', '.join(servers)}]\n{ice}\n"
        # For TLS to the TURN server, whose certificate is the laboratory's own.
        return Camera(self.camera, more=more, environment={"SSL_CERT_FILE": str(self.coturn.certificate)})

    @staticmethod
    def server(url, secret):
        return f'{{ urls = ["{url}"]' + ("" if url.startswith("stun") else f', secret_file = "{secret}"') + " }"

    def allow_tcp_only_to(self, *ports):
        """No UDP, and TCP to these ports alone, from both homes: as in offices."""
        for router, outside in ((self.camera_router, "wan"), (self.view_router, "dsl")):
            others = f"-p tcp -m multiport ! --dports {','.join(map(str, ports))} -m state --state NEW"
            router.iptables("-I", "FORWARD", "-o", outside, *others.split(), "-j", "DROP")
            block_udp(router)

    def forward_media(self, *transports):
        for transport in transports:
            forward_port(self.camera_router, "wan", MEDIA, f"192.168.1.2:{MEDIA}", transport)


def watched(verdict, homes, camera, expects, servers="", more=lambda browser: None):
    """A viewer comes. `expects` says of the viewer's pair, and of the camera's path, whether they are what the case is about."""
    # What the loop needs for nobody: its figures are polled.
    idle = camera.loop_seconds()
    time.sleep(3)
    verdict.note(loop_idle_percent=100 * (camera.loop_seconds() - idle) / 3)
    browser = Browser(homes.view, PAGE_OUTSIDE, args=TRUSTING, servers=servers)
    took = browser.pictures_after(within=25)
    began, used = time.time(), camera.loop_seconds()
    if took is not None:
        time.sleep(WATCHED)
    end, used = time.time(), camera.loop_seconds() - used
    paths = [session["path"] for session in camera.sessions() if session["path"]]
    more(browser)
    browser.close()
    seen = Seen(browser.out)
    verdict.bar("first picture after", seen.first_picture() if took is not None else None, 10, "s")
    verdict.bar("pictures a second", seen.fps(began, end), 29, "fps", least=True)
    rows = [row for row in seen.stats if row.get("local") and row["t"] < end]
    pair = SimpleNamespace(local=rows[-1]["local"], remote=rows[-1]["remote"]) if rows else SimpleNamespace(local="", remote="")
    path = SimpleNamespace(**paths[-1]) if paths else None
    verdict.holds("as the viewer sees its way", took is not None and expects(pair, path), f"{pair.local} to {pair.remote}")
    said = path and f"{path.transport} {path.local_type} {path.local} to {'relayed ' if path.remote_relayed else ''}{path.remote}"
    verdict.holds("as the camera sees it", path and expects(pair, path), said or "no path")
    verdict.note(loop_cpu_percent=100 * used / (end - began) if took is not None else None)


def until_relayed(verdict, camera):
    started = time.time()
    until("an allocation of the camera's own", lambda: camera.metric("edgecam_relay_allocated") == 1, 30)
    verdict.note(relay_stands_after_s=time.time() - started)


def check_doctor(verdict, camera, **expected):
    """What `edgecam doctor` says of each server: `expected` are those that have to do, or not to."""
    said = camera.doctor("turn", "stun")
    for transport, url in (("udp", BY_UDP), ("tcp", BY_TCP), ("tls", BY_TLS)):
        its = next(((result, words) for result, words in said if words.startswith((f"{url} ", f"{url}:"))), ("nothing", ""))
        verdict.holds(f"doctor on TURN by {transport}", its[0] == expected.get(transport, "fail"), ": ".join(its))


def check_credentials(verdict, homes, browser, url):
    """What the camera gave this viewer opens the TURN server; what is tampered with or expired does not."""
    given = browser.evaluate("window.lab.configurations.at(-1)?.iceServers.find((server) => server.username)")
    if not given:
        return verdict.holds("the viewer was given credentials", False)
    tampered = given["credential"][:-2] + ("A" if given["credential"][-2] != "A" else "B") + given["credential"][-1]
    later = f"{int(given['username'].split(':')[0]) + 86_400}{''.join(given['username'].partition(':')[1:])}"
    for what, user, password, opens in (
        ("as given", given["username"], given["credential"], True),
        ("with another password", given["username"], tampered, False),
        ("with a later expiry written in", later, given["credential"], False),
        ("expired a minute ago", *homes.coturn.credentials(-60).values(), False),
    ):
        relayed = browser.evaluate(RELAYED % (url, user, password))
        verdict.holds(
            f"credentials {what} {'open' if opens else 'do not open'} the TURN server", (relayed > 0) == opens, f"{relayed} candidates"
        )


# The relayed candidates that a browser gets with these credentials, in 6 s.
RELAYED = """(async () => {
  const peer = new RTCPeerConnection({ iceServers: [{ urls: '%s', username: '%s', credential: '%s' }], iceTransportPolicy: 'relay' });
  window.lab.peers.pop();
  let relayed = 0;
  const done = new Promise((end) => {
    peer.onicecandidate = ({ candidate }) => (candidate?.candidate ? relayed++ : end());
    setTimeout(end, 6000);
  });
  peer.createDataChannel('x');
  await peer.setLocalDescription();
  await done;
  peer.close();
  return relayed;
})()"""


def relayed_for_viewer(pair, path):
    """By the viewer's relay; the camera's own, or none. Where the viewer went over from one of its allocations to another, Chromium
    calls that peer-reflexive (decision 205); how the relay is reached it says of relays alone."""
    return pair.local.startswith(("relay udp by ", "prflx udp by ")) and path.remote_relayed


def relayed_for_camera(pair, path):
    return not pair.local.startswith("relay") and f"{TURN}:" in pair.remote and path.local_type == "relay" and not path.remote_relayed


def relayed_for_both(how):
    return lambda pair, path: f"by {how} " in pair.local and path.local_type == "relay" and path.remote_relayed


@case("symmetric-nat-udp", "symmetric NAT on both sides, TURN by UDP", 40)
def symmetric_nat_udp(world, verdict):
    homes = Homes(world)
    camera = homes.open_camera()
    until_relayed(verdict, camera)
    check_doctor(verdict, camera, udp="ok", tcp="ok", tls="ok")
    watched(verdict, homes, camera, relayed_for_viewer, more=lambda browser: check_credentials(verdict, homes, browser, BY_UDP))


@case("symmetric-nat-tcp", "symmetric NAT on both sides, UDP blocked, TURN by TCP", 50)
def symmetric_nat_tcp(world, verdict):
    homes = Homes(world)
    homes.allow_tcp_only_to(8080, Turn.PORT)
    camera = homes.open_camera()
    until_relayed(verdict, camera)
    check_doctor(verdict, camera, tcp="ok")
    expects = relayed_for_both("tcp")
    watched(verdict, homes, camera, expects, more=lambda browser: check_credentials(verdict, homes, browser, BY_TCP))


@case("symmetric-nat-tls", "symmetric NAT on both sides, UDP blocked, TURN by TLS only", 60)
def symmetric_nat_tls(world, verdict):
    homes = Homes(world)
    homes.allow_tcp_only_to(8080, Turn.TLS_PORT)
    camera = homes.open_camera()
    until_relayed(verdict, camera)
    check_doctor(verdict, camera, tls="ok")
    expects = relayed_for_both("tls")
    watched(verdict, homes, camera, expects, more=lambda browser: check_credentials(verdict, homes, browser, BY_TLS))


@case("viewers-relay", "symmetric NAT on both sides, only the viewer has a relay", 25)
def viewers_relay(world, verdict):
    homes = Homes(world)
    camera = homes.open_camera(ice="relay = false")

    def expects(pair, path):
        return relayed_for_viewer(pair, path) and path.local_type == "host"

    watched(verdict, homes, camera, expects)
    verdict.holds("the camera has no allocation", camera.metric("edgecam_relay_allocations_total") == 0)


@case("cameras-relay", "symmetric NAT on both sides, only the camera has a relay, the viewer STUN", 25)
def cameras_relay(world, verdict):
    homes = Homes(world)
    camera = homes.open_camera(urls=(STUN, BY_UDP))
    until_relayed(verdict, camera)
    watched(verdict, homes, camera, relayed_for_camera, servers="stun")


@case("stun-only", "port-restricted NAT on both sides, STUN and no TURN", 25)
def stun_only(world, verdict):
    homes = Homes(world, port_restricted_nat, port_restricted_nat)
    camera = homes.open_camera(urls=(STUN,))
    until("the STUN server's answer", lambda: camera.metric("edgecam_stun_servers_answering") == 1, 15)

    def expects(pair, path):
        return f"udp {CAMERA_OUTSIDE}:" in pair.remote and path.remote.startswith(f"{VIEWER_OUTSIDE}:") and not path.remote_relayed

    watched(verdict, homes, camera, expects)


def forwarded(verdict, homes, transport):
    camera = homes.open_camera(urls=(), ice=f'advertise = ["{CAMERA_OUTSIDE}"]')

    def expects(pair, path):
        to_router = pair.remote == f"host {transport} {CAMERA_OUTSIDE}:{MEDIA}"
        return to_router and path.transport == transport and path.local == f"{CAMERA_OUTSIDE}:{MEDIA}"

    watched(verdict, homes, camera, expects)


@case("port-forward", "the camera's router forwards the port; symmetric NAT at the viewer's, no servers", 25)
def port_forward(world, verdict):
    homes = Homes(world)
    homes.forward_media("udp")
    forwarded(verdict, homes, "udp")


@case("port-forward-tcp", "the same by TCP, as the viewer's network drops UDP", 25)
def port_forward_tcp(world, verdict):
    homes = Homes(world)
    homes.forward_media("udp", "tcp")
    block_udp(homes.view_router)
    forwarded(verdict, homes, "tcp")


@case("ice-tcp", "no UDP, no TURN server: TCP to the camera's media port", 10)
def ice_tcp(world, verdict):
    scene = Scene(world, rate=10 * MBIT)
    scene.link.set(down={"drop_udp": True}, up={"drop_udp": True})
    Camera(scene.camera)
    browser = Browser(scene.view, PAGE)
    took = browser.pictures_after(within=20)
    verdict.bar("pictures after", took, 10, "s")
    browser.close()
    seen = Seen(browser.out)
    last = seen.stats[-1] if seen.stats else {}
    verdict.holds("the way is TCP", took is not None and "tcp" in str(last.get("remote")), f"{last.get('local')} to {last.get('remote')}")


@case("turn-dies", "coturn killed while a viewer is relayed and another is not (F14)", 90)
def turn_dies(world, verdict):
    homes = Homes(world)
    # Somebody in the camera's own home.
    beside = world.namespace("beside")
    near = world.link(homes.camera, beside, "near", "192.168.3.1/24", "192.168.3.2/24")
    camera = homes.open_camera()
    time.sleep(3)
    browser = Browser(homes.view, PAGE_OUTSIDE, args=TRUSTING)
    browser.sees(within=25)
    direct = Browser(beside, "http://192.168.3.1:8080/front", name="direct")
    direct.sees()
    time.sleep(5)
    killed = time.time()
    homes.coturn.kill()
    told = "document.querySelector('.tile')?.dataset.state ?? ''"
    until("the page to notice", lambda: browser.evaluate(told) != "live", 45)
    ended = time.time() - killed
    said = browser.evaluate("document.querySelector('.tile')?.innerText ?? ''")
    time.sleep(max(0, 30 - ended))
    end = time.time()
    homes.coturn.start()
    back = browser.pictures_after(within=40)
    browser.close()
    direct.close()
    verdict.bar("the relayed viewer is told after", ended, 30, "s")
    verdict.note(told=" ".join(said.split())[:120], pictures_again_after_its_return_s=back, sessions=len(camera.sessions() or []))
    watched = Seen(direct.out)
    verdict.bar("the direct viewer's pictures a second", watched.fps(killed, end), 29, "fps", least=True)
    verdict.bar("its longest gap", max(gap for _, gap in watched.gaps(killed, end)), 0.5, "s")
    near.close()
