"""Networks that go away and come back elsewhere, while somebody watches."""

import os
import subprocess
import time

from measure import Seen
from net import forward_port
from programs import EDGECAM, Browser, Camera, serve, until
from scene import CAMERA, MBIT, PAGE, QUEUE, Scene
from verdict import case

NEW_ADDRESS = "10.70.0.3"


def note_return(verdict, seen, since, end, bound, what):
    """When pictures came again after `since`, for good, and whether it is the same connection still."""
    verdict.bar(f"20 pictures a second again after {what}", seen.steady_after(since, end, 20), bound, "s")
    verdict.bar("connections that the page made", max(row["peer"] for row in seen.stats), 1)
    last = seen.stats[-1]
    verdict.note(
        longest_gap_s=max(gap for _, gap in seen.gaps(since - 5, end)),
        fps_at_the_end=seen.fps(end - 4, end),
        way=f"{last.get('local')} to {last.get('remote')}",
    )


@case("roam", "the viewer moves from one network to another (F11)", 37)
def roam(world, verdict):
    scene = Scene(world, "view", rate=10 * MBIT)
    lte = {"rate": 5 * MBIT, "delay": 0.04, "queue_bytes": QUEUE}
    world.link(scene.net, scene.view, "lte", "10.71.0.1/24", "10.71.0.2/24", **lte)
    Camera(scene.camera)
    browser = Browser(scene.view, PAGE)
    browser.sees()
    time.sleep(8)
    moved = time.time()
    scene.view.ip("link", "set", "to-view", "down")
    scene.view.route("default", "10.71.0.1")
    time.sleep(22)
    end = time.time()
    browser.close()
    note_return(verdict, Seen(browser.out), moved, end, 10, "the move")


@case("flap", "the camera's network is down for 5 s (F09)", 37)
def flap(world, verdict):
    scene = Scene(world, rate=10 * MBIT)
    Camera(scene.camera)
    browser = Browser(scene.view, PAGE)
    browser.sees()
    time.sleep(8)
    scene.camera.ip("link", "set", "home", "down")
    time.sleep(5)
    scene.camera.ip("link", "set", "home", "up")
    up = time.time()
    # The kernel forgot it with the link; who configures networks puts it back.
    scene.camera.route("default", "10.70.0.1")
    time.sleep(20)
    end = time.time()
    browser.close()
    note_return(verdict, Seen(browser.out), up, end, 3, "the network is back")


@case("internet-lost", "the camera loses its way out, a viewer at home stays (F12)", 27)
def internet_lost(world, verdict):
    scene = Scene(world)
    home = world.namespace("local")
    # No modem: a network at home.
    world.link(scene.camera, home, "lan", "10.72.0.1/24", "10.72.0.2/24", rate=100 * MBIT, delay=0.001, queue_bytes=4 * QUEUE)
    Camera(scene.camera)
    browser = Browser(home, "http://10.72.0.1:8080/front")
    browser.sees()
    time.sleep(8)
    lost = time.time()
    scene.camera.ip("route", "delete", "default")
    scene.camera.ip("link", "set", "home", "down")
    time.sleep(10)
    started = time.time()
    another = Browser(home, "http://10.72.0.1:8080/front", name="another")
    took = another.pictures_after(within=20)
    end = time.time()
    another.close()
    browser.close()
    seen = Seen(browser.out)
    lost_before, *_, lost_after = seen.figure("lost", lost, end)
    verdict.bar("pictures a second", seen.fps(lost, started), 29.5, "fps", least=True)
    verdict.bar("packets that never came", lost_after - lost_before, 0)
    verdict.bar("longest gap", max(gap for _, gap in seen.gaps(lost, started)), 0.2, "s")
    verdict.bar("another viewer at home sees pictures after", took, 10, "s")


@case("renumber", "the camera gets another address, its page stands elsewhere (F10)", 47)
def renumber(world, verdict):
    """Through a broker, as a page at the camera's own address would be gone with it."""
    scene = Scene(world, rate=10 * MBIT)
    broker = world.folder / "mosquitto.conf"
    broker.write_text("user root\nset_tcp_nodelay true\nallow_anonymous true\nlistener 1883\nlistener 9001\nprotocol websockets\n")
    scene.net.start(["mosquitto", "-c", broker], "mosquitto.log")
    page = world.folder / "page"
    page.mkdir()
    made = subprocess.run([EDGECAM, "page", "--mqtt", "ws://10.70.0.1:9001"], capture_output=True, check=True, env=quiet())
    (page / "index.html").write_bytes(made.stdout)
    url = serve(scene.net, "10.70.0.1", page)
    Camera(scene.camera, more='[mqtt]\nurl = "mqtt://10.70.0.1:1883"\n')
    browser = Browser(scene.view, url)
    play = "document.querySelector('button[aria-label^=\"Play\"]')?.click() ?? document.querySelector('.tile button')?.click()"
    until("a tile", lambda: browser.evaluate("document.querySelectorAll('.tile button').length"), 15)
    browser.evaluate(play)
    browser.sees()
    time.sleep(8)
    moved = give_another_address(scene)
    time.sleep(25)
    end = time.time()
    browser.close()
    note_return(verdict, Seen(browser.out), moved, end, 10, "the new address")


@case("renumber-page", "the camera gets another address, its own page is found there (F10)", 47)
def renumber_page(world, verdict):
    """As by a name that follows the camera: the same URL leads there before and after."""
    scene = Scene(world, rate=10 * MBIT)
    forward_port(scene.net, "to-view", 8080, f"{CAMERA}:8080")
    Camera(scene.camera)
    browser = Browser(scene.view, "http://10.70.0.1:8080/front")
    browser.sees()
    time.sleep(8)
    moved = give_another_address(scene)
    scene.net.iptables("-t", "nat", "-F", "PREROUTING")
    forward_port(scene.net, "to-view", 8080, f"{NEW_ADDRESS}:8080")
    time.sleep(25)
    end = time.time()
    browser.close()
    note_return(verdict, Seen(browser.out), moved, end, 10, "the new address")


def give_another_address(scene):
    """In place of the one it has; gives when."""
    moved = time.time()
    scene.camera.ip("address", "add", f"{NEW_ADDRESS}/24", "dev", "home")
    scene.camera.ip("address", "delete", f"{CAMERA}/24", "dev", "home")
    scene.camera.ip("address", "replace", f"{NEW_ADDRESS}/24", "dev", "home")
    scene.camera.route("default", "10.70.0.1")
    return moved


def quiet():
    """edgecam refuses variables that look like settings and are none."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGECAM_")}
