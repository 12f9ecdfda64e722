"""The places of a case: a camera, the network between, viewers.

    camera ── veth ── net ══ link ══ view
                          ══ link ══ view2 …

The camera's address is 10.70.0.2; viewer i sits at 10.70.i.2 behind a shaped link "to-<name>", whose "down" leads to it.
"""

from net import World

CAMERA = "10.70.0.2"
PAGE = f"http://{CAMERA}:8080/front"

MBIT = 1_000_000
# A modem's queue: half a second at 1 Mbit/s, 52 ms at 10.
QUEUE = 65_536


class Scene:
    def __init__(self, world: World, *viewers, **shape):
        self.world = world
        self.camera = world.namespace("camera")
        self.net = world.namespace("net")
        self.net.forward()
        world.wire(self.net, self.camera, "home", "10.70.0.1/24", f"{CAMERA}/24")
        self.camera.route("default", "10.70.0.1")
        self.viewers, self.links = {}, {}
        for name in viewers or ("view",):
            self.add(name, **shape)

    def add(self, name, **shape):
        """Another viewer, behind a link of its own."""
        number = len(self.viewers) + 1
        viewer = self.world.namespace(name)
        shape = {"rate": 0, "delay": 0.025, "queue_bytes": QUEUE} | shape
        link = self.world.link(self.net, viewer, f"to-{name}", f"10.70.{number}.1/24", f"10.70.{number}.2/24", **shape)
        viewer.route("default", f"10.70.{number}.1")
        self.viewers[name], self.links[name] = viewer, link
        return viewer

    @property
    def view(self):
        return next(iter(self.viewers.values()))

    @property
    def link(self):
        return next(iter(self.links.values()))
