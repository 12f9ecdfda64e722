"""Peers that are measured beside edgecam, on the same link, with the same picture and the same browser.

Janus sends what its encoder makes, whatever the network: encoder and rate are edgecam's. webrtcsink (gst-plugins-rs) adapts: GCC, an
encoder for each viewer, its own settings but for the rates' bounds, which are edgecam's.
"""

import shutil

from net import HERE, LabError
from programs import ROOT, Browser, listens, serve
from scene import CAMERA
from verdict import CASES, case

REFERENCES = ROOT / "benches/references"
WEBRTCSINK = ROOT / "target/references/webrtcsink/release/webrtcsink"

# edgecam's own test picture and encoder settings (src/camera/pipeline.rs, src/camera/encoder/element.rs).
PICTURE = "videotestsrc is-live=true pattern=smpte ! video/x-raw,format=I420,width=1280,height=720,framerate=30/1"
X264 = "x264enc speed-preset=superfast tune=zerolatency threads=2 bframes=0 key-int-max=60 bitrate=2500 aud=false"


class Janus:
    name = "Janus"

    def __init__(self, scene):
        if not shutil.which("janus"):
            raise LabError("Janus is not installed: scripts/install-packages bench")
        folder = scene.world.folder / "janus"
        shutil.copytree(REFERENCES / "janus", folder)
        http = folder / "janus.transport.http.jcfg"
        http.write_text(http.read_text().replace('ip = "127.0.0.1"', ""))
        scene.camera.start(["janus", "-F", folder], "janus.log")
        output = (
            "video/x-h264,profile=constrained-baseline ! rtph264pay pt=96 mtu=1200 config-interval=-1 ! udpsink host=127.0.0.1 port=15004"
        )
        scene.camera.start(["gst-launch-1.0", "-q", *f"{PICTURE} ! {X264} ! {output}".split()], "encoder.log")
        listens(scene.camera, CAMERA, 18088)
        self.page = empty_page(scene)

    def browse(self, namespace):
        return self.play(namespace, "janus.js", f"http://{CAMERA}:18088/janus")

    def play(self, namespace, script, url):
        return Browser(namespace, self.page, script={"file": str(HERE / "pages" / script), "url": url})

    def figures(self):
        return []


class Webrtcsink(Janus):
    name = "webrtcsink"

    def __init__(self, scene):
        if not WEBRTCSINK.exists():
            raise LabError("webrtcsink is not built: benches/references/install.sh webrtcsink")
        bounds = "start-bitrate=2000000 min-bitrate=150000 max-bitrate=2500000"
        sink = f"webrtcsink name=sink run-signalling-server=true signalling-server-host={CAMERA} video-caps=video/x-h264 {bounds}"
        # The signaller of the sink itself dials the server it starts.
        signaller = f"signaller::uri=ws://{CAMERA}:8443"
        scene.camera.start([WEBRTCSINK, *f"{PICTURE} ! {sink} {signaller}".split()], "webrtcsink.log")
        listens(scene.camera, CAMERA, 8443)
        self.page = empty_page(scene)

    def browse(self, namespace):
        return self.play(namespace, "webrtcsink.js", f"ws://{CAMERA}:8443")


def empty_page(scene):
    """At the camera's address: Chromium lets no page of elsewhere speak with a local network."""
    folder = scene.world.folder / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>Laboratory</title>")
    return serve(scene.camera, CAMERA, folder)


def beside(name, *peers):
    """The same case with a peer in edgecam's place; its misses are the peer's."""
    function = CASES[name]
    for peer in peers:
        title = f"{peer.name}: {function.title}"

        def measure(world, verdict, peer=peer):
            function(world, verdict, serve=peer)

        case(f"{name}-{peer.name.lower()}", title, function.seconds)(measure)


beside("step-down", Janus, Webrtcsink)
beside("steady", Janus, Webrtcsink)
