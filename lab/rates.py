"""Networks that are slow, become slow or fast, or lose packets."""

import contextlib
import time

from measure import Carried, Seen, percentile, read_lines, read_trace
from net import LabError
from plot import Plot
from programs import Browser, Camera
from scene import MBIT, PAGE, Scene
from verdict import case

MAX_KBPS = 2500


def watch(scene, server, warm_up=12.0):
    """Opens the server's page and lets the stream come to its rate; gives the browser. No picture is a result, too."""
    browser = server.browse(scene.view)
    with contextlib.suppress(LabError):
        browser.sees(within=12)
    time.sleep(warm_up)
    return browser


class Edgecam:
    """The program itself, as a server whose stream a browser can look at. Peers have the same two methods (peers.py)."""

    name = "edgecam"

    def __init__(self, scene):
        self.camera = Camera(scene.camera)

    def browse(self, namespace):
        return Browser(namespace, PAGE)

    def figures(self):
        """(time, estimate in kbit/s, rate sent in kbit/s, rendition) of the first viewer."""
        rows = read_lines(self.camera.figures.name)
        said = [(row["t"], row["sessions"][0]) for row in rows if row.get("sessions")]
        return [(t, it.get("estimate_kbps"), it.get("sent_kbps"), it.get("rendition")) for t, it in said]


def finish(scene, browser):
    """Ends what writes, and gives what was written: the link's trace and what the browser saw."""
    browser.close()
    note = scene.link.stat()
    scene.link.close()
    return Carried(read_trace(scene.link.trace)), Seen(browser.out), note


def plot_of(verdict, server, scene, carried, seen, start, end, marks=(), lossy=False):
    title = verdict.title if server.name in verdict.title else f"{server.name}: {verdict.title}"
    plot = Plot(verdict.name, title, start, end, marks)
    plot.rates(carried, scene.link.changes, server.figures())
    plot.loss(carried) if lossy else plot.queue(carried)
    plot.frames(seen)
    verdict.plots.append(plot)


def note_common(verdict, carried, seen, stat, start, end):
    verdict.note(
        fps=seen.fps(start, end),
        kbps=carried.kbps(start, end),
        queue_p95_ms=carried.queue_ms(start, end, 0.95),
        packets_lost=carried.lost(start, end),
        freezes_by_browser=seen.browser_freezes(start, end),
        longest_gap_s=max(gap for _, gap in seen.gaps(start, end)),
        picture_age_p50_ms=percentile([row["age"] for row in seen.frames if "age" in row and start <= row["t"] < end], 0.5),
        picture_age_p95_ms=percentile([row["age"] for row in seen.frames if "age" in row and start <= row["t"] < end], 0.95),
        link_late_p99_ms=stat["late_p99_ms"],
    )


SMOKE_FPS = 20


def fps_in_time(browser, enough, within=60, window=3):
    """Pictures a second in the first window that has enough of them: a machine may be busy with something else for a while."""
    give_up_at = time.time() + within
    while True:
        before, start = browser.decoded(), time.time()
        time.sleep(window)
        fps = (browser.decoded() - before) / (time.time() - start)
        if fps >= enough or time.time() > give_up_at:
            return fps


@case("smoke", "3 Mbit/s, 40 ms round trip", 12)
def smoke(world, verdict):
    scene = Scene(world, rate=3 * MBIT, delay=0.020)
    server = Edgecam(scene)
    browser = watch(scene, server, warm_up=3.0)
    fps = fps_in_time(browser, SMOKE_FPS)
    end = time.time()
    pair = browser.evaluate("window.lab.peers.length")
    carried, seen, stat = finish(scene, browser)
    last = seen.stats[-1]
    verdict.bar("pictures a second", fps, SMOKE_FPS, "fps", least=True)
    verdict.holds("one connection", pair == 1, f"{pair}")
    verdict.holds("the pair is host to host", "host" in last["local"] and "host" in last["remote"], f"{last['local']} to {last['remote']}")
    note_common(verdict, carried, seen, stat, end - 5, end)


@case("step-down", "10 to 1 Mbit/s, 50 ms round trip", 40)
def step_down(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=10 * MBIT)
    server = serve(scene)
    browser = watch(scene, server)
    step = scene.link.set(down={"rate": 1 * MBIT})
    time.sleep(22)
    end = step + 20
    carried, seen, stat = finish(scene, browser)
    verdict.bar("at least 24 fps again after", seen.steady_after(step, step + 15, 24), 2, "s")
    verdict.bar("longest freeze", max(gap for _, gap in seen.gaps(step, end)), 1, "s")
    verdict.bar("queue delay below 150 ms after", carried.calm_after(step, step + 15, 150), 3, "s")
    verdict.note(
        kbps_before=carried.kbps(step - 5, step),
        kbps_after=carried.kbps(end - 10, end),
        worst_second_later=seen.worst_second(step + 3, end),
    )
    note_common(verdict, carried, seen, stat, step, end)
    plot_of(verdict, server, scene, carried, seen, step - 8, end, [step])


@case("step-up", "1 to 10 Mbit/s, 50 ms round trip", 48)
def step_up(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=1 * MBIT)
    server = serve(scene)
    browser = watch(scene, server, warm_up=15)
    step = scene.link.set(down={"rate": 10 * MBIT})
    time.sleep(27)
    end = step + 25
    carried, seen, stat = finish(scene, browser)
    verdict.bar(f"{0.9 * MAX_KBPS:.0f} kbit/s, 90 % of max_kbps, after", reached(carried, step, end, 0.9 * MAX_KBPS), 10, "s")
    verdict.note(kbps_before=carried.kbps(step - 5, step), kbps_after=carried.kbps(end - 5, end))
    note_common(verdict, carried, seen, stat, step, end)
    plot_of(verdict, server, scene, carried, seen, step - 10, end, [step])


def reached(carried, start, end, kbps, window=1.0):
    """Seconds from `start` until a whole window carried so much."""
    at = start
    while at + window <= end:
        if carried.kbps(at, at + window) >= kbps:
            return at + window - start
        at += 0.1
    return None


@case("steady", "1.5 Mbit/s, 50 ms round trip", 54)
def steady(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=1.5 * MBIT)
    server = serve(scene)
    browser = watch(scene, server, warm_up=15)
    start = time.time()
    time.sleep(32)
    end = start + 30
    carried, seen, stat = finish(scene, browser)
    verdict.bar("of the link used", 100 * carried.kbps(start, end) / 1500, 85, "%", least=True)
    verdict.bar("pictures a second", seen.fps(start, end), 29, "fps", least=True)
    verdict.bar("queue delay, 95th percentile", carried.queue_ms(start, end, 0.95), 100, "ms")
    note_common(verdict, carried, seen, stat, start, end)
    plot_of(verdict, server, scene, carried, seen, start - 5, end)


@case("some-loss", "2 % lost by chance, 50 ms round trip, enough bandwidth", 77)
def some_loss(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=20 * MBIT)
    server = serve(scene)
    browser = watch(scene, server, warm_up=8)
    start = scene.link.set(down={"loss": 0.02}, up={"loss": 0.02})
    time.sleep(62)
    end = start + 60
    carried, seen, stat = finish(scene, browser)
    verdict.bar("pictures a second", seen.fps(start, end), 29, "fps", least=True)
    verdict.bar("freezes over 0.5 s in a minute", len(seen.freezes(start, end, 0.5)), 0, "")
    note_common(verdict, carried, seen, stat, start, end)


@case("random-loss", "5 % lost by chance, 50 ms round trip, enough bandwidth", 77)
def random_loss(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=20 * MBIT)
    server = serve(scene)
    browser = watch(scene, server, warm_up=8)
    start = scene.link.set(down={"loss": 0.05}, up={"loss": 0.05})
    time.sleep(62)
    end = start + 60
    carried, seen, stat = finish(scene, browser)
    verdict.bar("pictures a second", seen.fps(start, end), 29, "fps", least=True)
    verdict.bar("freezes in a minute (Chromium's count)", seen.browser_freezes(start, end), 1, "")
    note_common(verdict, carried, seen, stat, start, end)
    plot_of(verdict, server, scene, carried, seen, start - 5, end, [start], lossy=True)


@case("burst-loss", "2 % lost in bursts of 8, 50 ms round trip", 77)
def burst_loss(world, verdict, serve=Edgecam):
    scene = Scene(world, rate=20 * MBIT)
    server = serve(scene)
    browser = watch(scene, server, warm_up=8)
    start = scene.link.set(down={"burst_loss": 0.02, "burst": 8}, up={"burst_loss": 0.02, "burst": 8})
    time.sleep(62)
    end = start + 60
    carried, seen, stat = finish(scene, browser)
    verdict.bar("freezes over 1 s in a minute", len(seen.freezes(start, end, 1.0)), 1, "")
    note_common(verdict, carried, seen, stat, start, end)
    plot_of(verdict, server, scene, carried, seen, start - 5, end, [start], lossy=True)
