"""Ways to the camera: through NATs, by a TURN server, by TCP."""

import time

from measure import Seen
from net import block_udp, forward_port, symmetric_nat
from programs import Browser, Camera, Turn, until
from scene import MBIT, PAGE, QUEUE, Scene
from verdict import case

CAMERA_OUTSIDE, VIEWER_OUTSIDE, TURN = "10.80.1.2", "10.80.2.2", "10.80.9.2"
PAGE_OUTSIDE = f"http://{CAMERA_OUTSIDE}:8080/front"

# The certificate is the laboratory's own.
TRUSTING = ["--ignore-certificate-errors"]


class Homes:
    """Camera and viewer each behind a symmetric NAT; between them the network, with a TURN server.

    camera ── camera-router ── net ══ link ══ view-router ── view
                                └── turn
    """

    def __init__(self, world):
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
        symmetric_nat(self.camera_router, "wan")
        symmetric_nat(self.view_router, "dsl")
        # The page alone; no port of video is forwarded.
        forward_port(self.camera_router, "wan", 8080, "192.168.1.2:8080")
        self.coturn = Turn(self.turn, TURN)

    def open_camera(self):
        secret = self.world.folder / "turn-secret"
        secret.write_text(Turn.SECRET)
        secret.chmod(0o600)
        urls = [f"turn:{TURN}:{Turn.PORT}", f"turn:{TURN}:{Turn.PORT}?transport=tcp", f"turns:{TURN}:{Turn.TLS_PORT}?transport=tcp"]
        more = f'[ice]\nservers = [{{ urls = {urls}, secret_file = "{secret}" }}]\n'.replace("'", '"')
        # For TLS to the TURN server, whose certificate is the laboratory's own.
        return Camera(self.camera, more=more, environment={"SSL_CERT_FILE": str(self.coturn.certificate)})

    def allow_tcp_only_to(self, *ports):
        """No UDP, and TCP to these ports alone, from both homes: as in offices."""
        for router, outside in ((self.camera_router, "wan"), (self.view_router, "dsl")):
            others = f"-p tcp -m multiport ! --dports {','.join(map(str, ports))} -m state --state NEW"
            router.iptables("-I", "FORWARD", "-o", outside, *others.split(), "-j", "DROP")
            block_udp(router)


def through_turn(world, verdict, expected, hinder=lambda homes: None, more=lambda homes, browser: None):
    """A viewer comes; `expected` is how the browser or the camera is to reach the TURN server."""
    homes = Homes(world)
    hinder(homes)
    homes.open_camera()
    time.sleep(3)
    browser = Browser(homes.view, PAGE_OUTSIDE, args=TRUSTING)
    took = browser.pictures_after(within=25)
    verdict.bar("pictures after", took, 10, "s")
    more(homes, browser)
    browser.close()
    seen = Seen(browser.out)
    last = seen.stats[-1] if seen.stats else {}
    pair = f"{last.get('local')} to {last.get('remote')}"
    verdict.holds(f"the way is {expected}", took is not None and expected in pair, pair)


def check_credentials(verdict, homes, browser):
    """What the camera gave this viewer opens the TURN server; what is tampered with or expired does not."""
    given = browser.evaluate("window.lab.configurations.at(-1)?.iceServers.find((server) => server.username)")
    if not given:
        return verdict.holds("the viewer was given credentials", False)
    url = f"turn:{TURN}:{Turn.PORT}?transport=tcp"
    tampered = given["credential"][:-2] + ("A" if given["credential"][-2] != "A" else "B") + given["credential"][-1]
    later = f"{int(given['username'].split(':')[0]) + 86_400}:{given['username'].partition(':')[2]}"
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


@case("symmetric-nat-udp", "symmetric NAT on both sides, TURN by UDP", 35)
def symmetric_nat_udp(world, verdict):
    through_turn(world, verdict, "relay", more=lambda homes, browser: check_credentials(verdict, homes, browser))


@case("symmetric-nat-tcp", "symmetric NAT on both sides, UDP blocked, TURN by TCP", 30)
def symmetric_nat_tcp(world, verdict):
    through_turn(world, verdict, "relay", hinder=lambda homes: homes.allow_tcp_only_to(8080, Turn.PORT))


@case("symmetric-nat-tls", "symmetric NAT on both sides, UDP blocked, TURN by TLS only", 30)
def symmetric_nat_tls(world, verdict):
    through_turn(world, verdict, "relay", hinder=lambda homes: homes.allow_tcp_only_to(8080, Turn.TLS_PORT))


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
