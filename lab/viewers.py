"""Several viewers of one camera."""

import time

from measure import Carried, Seen, percentile, read_lines, read_trace
from plot import Plot
from programs import Browser, Camera, Probe
from scene import MBIT, PAGE, Scene
from verdict import case

FAST = ("one", "two", "three")
# Of IP (RFC 9293).
TCP = 6


@case("four-viewers", "three on 10 Mbit/s, one on 400 kbit/s, 50 ms round trip", 77)
def four_viewers(world, verdict):
    """The slow one has the browser. The fast ones are `edgecam probe`: four browsers would be the machine's limit, not the network's."""
    scene = Scene(world, "slow", *FAST, rate=10 * MBIT)
    scene.links["slow"].set(down={"rate": 0.4 * MBIT})
    camera = Camera(scene.camera)
    probes = {name: Probe(scene.viewers[name], PAGE, 74, name) for name in FAST}
    time.sleep(26)
    together = time.time()
    browser = Browser(scene.view, PAGE)
    time.sleep(40)
    end = time.time()
    browser.close()
    reports = {name: probe.report() for name, probe in probes.items()}
    figures = read_lines(camera.figures.name)
    for link in scene.links.values():
        link.close()
    carried = {name: Carried(read_trace(link.trace)) for name, link in scene.links.items()}
    seen = Seen(browser.out)

    lost = {name: report["lost"] for name, report in reports.items()}
    verdict.bar("packets that the three others never got", sum(lost.values()), 0)
    # A picture left out by the camera leaves no gap in the packets' numbers; it shows in the rate.
    verdict.bar("least pictures a second of the three", min(report["fps"] for report in reports.values()), 29.8, "fps", least=True)
    alone = {name: carried[name].kbps(together - 12, together - 1) for name in FAST}
    beside = {name: carried[name].kbps(together + 15, end) for name in FAST}
    change = max(abs(beside[name] / alone[name] - 1) if alone[name] else 1 for name in FAST)
    verdict.bar("their rates differ from those alone by", 100 * change, 5, "%")
    verdict.bar("the slow one's pictures a second", seen.fps(end - 25, end), 15, "fps", least=True)
    early, late = age(seen, end - 25, end - 15), age(seen, end - 10, end)
    growth = late - early if early is not None and late is not None else None
    verdict.bar("its pictures' age grows in 20 s by", growth, 100, "ms")
    verdict.bar("encoders", max((row["encoders"] for row in figures), default=None), 2)
    asked = next(packet.time for packet in carried["slow"].packets if packet.protocol == TCP)
    verdict.note(
        slow_page_s=seen.offered_at() - asked,
        slow_first_picture_s=seen.first_picture(),
        slow_kbps=carried["slow"].kbps(end - 25, end),
        slow_queue_p95_ms=carried["slow"].queue_ms(end - 25, end, 0.95),
        slow_freezes_over_1_s=len(seen.freezes(end - 25, end, 1.0)),
        slow_picture_age_p50_ms=late,
        slow_width=seen.stats[-1]["width"] if seen.stats else None,
        kbps_alone=round(sum(alone.values()) / 3),
        kbps_beside=round(sum(beside.values()) / 3),
        longest_gap_ms_of_three=max(report["gap_ms"] for report in reports.values()),
    )
    plot = Plot(verdict.name, verdict.title, together - 12, end, [together])
    plot.rates_of({"slow": carried["slow"], "another": carried["one"]})
    plot.queue(carried["slow"])
    plot.frames(seen)
    verdict.plots.append(plot)


def age(seen, start, end):
    return percentile([row["age"] for row in seen.frames if "age" in row and start <= row["t"] < end], 0.5)
