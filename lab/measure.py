"""From traces to figures. Pure: reads files, starts nothing."""

import bisect
import csv
import itertools
import json
from collections import namedtuple

Packet = namedtuple("Packet", "time direction size queue_ms fate protocol")

CARRIED = "carried"
STEP = 0.05


def read_trace(path):
    """What link.py wrote, in order of time."""
    with open(path) as lines:
        rows = csv.reader(lines)
        next(rows)
        packets = [Packet(float(t), d, int(size), float(q), fate, int(p)) for t, d, size, q, fate, p in rows]
    return sorted(packets)


def read_lines(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def between(rows, start, end, time=lambda row: row["t"]):
    return [row for row in rows if start <= time(row) < end]


def percentile(values, part):
    """The value that `part` (0 to 1) of the values do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None


class Carried:
    """What a direction of a link carried."""

    def __init__(self, trace, direction="down"):
        self.packets = [packet for packet in trace if packet.direction == direction]

    def kbps(self, start, end):
        """Whole IP packets, all that passed."""
        size = sum(p.size for p in self.packets if start <= p.time < end and p.fate == CARRIED)
        return size * 8 / 1000 / (end - start)

    def queue_ms(self, start, end, part):
        """The percentile of the queue delays of the packets of a time."""
        return percentile([p.queue_ms for p in self.packets if start <= p.time < end], part)

    def calm_after(self, start, end, limit_ms):
        """Seconds from `start` until no packet, to `end`, waits `limit_ms` or longer; None if they never calm."""
        late = [p.time for p in self.packets if start <= p.time < end and p.queue_ms >= limit_ms]
        if not late:
            return 0.0
        return max(late) - start if max(late) < end - 0.5 else None

    def lost(self, start, end):
        return sum(p.fate != CARRIED for p in self.packets if start <= p.time < end)

    def rate_series(self, start, end, step=0.25):
        """(time, kbit/s) of every step."""
        steps = [0] * (int((end - start) / step) + 1)
        for p in self.packets:
            if p.fate == CARRIED and start <= p.time < end:
                steps[int((p.time - start) / step)] += p.size
        return [(start + (i + 0.5) * step, size * 8 / 1000 / step) for i, size in enumerate(steps[:-1])]

    def queue_series(self, start, end, step=0.1):
        """(time, longest queue delay in ms) of every step; 0 where no packet came."""
        steps = [0.0] * (int((end - start) / step) + 1)
        for p in self.packets:
            if start <= p.time < end:
                i = int((p.time - start) / step)
                steps[i] = max(steps[i], p.queue_ms)
        return [(start + (i + 0.5) * step, wait) for i, wait in enumerate(steps[:-1])]

    def loss_series(self, start, end, step=0.5):
        """(time, percent of the packets lost, for whatever reason) of every step."""
        steps = [[0, 0] for _ in range(int((end - start) / step) + 1)]
        for p in self.packets:
            if start <= p.time < end:
                its = steps[int((p.time - start) / step)]
                its[0] += p.fate != CARRIED
                its[1] += 1
        return [(start + (i + 0.5) * step, 100 * lost / all_ if all_ else 0.0) for i, (lost, all_) in enumerate(steps[:-1])]


class Seen:
    """What a browser showed: rows of viewer.mjs."""

    def __init__(self, path):
        rows = read_lines(path)
        self.frames = [row for row in rows if row["type"] == "frame"]
        self.stats = [row for row in rows if row["type"] == "stats"]
        self.events = [row for row in rows if row["type"] not in ("frame", "stats")]

    def shown(self, start, end):
        """When each picture was shown. A callback may stand for several pictures: they count, at its time."""
        times = []
        for before, now in itertools.pairwise(self.frames):
            if start <= now["t"] < end:
                # The counter belongs to an element; another element begins anew.
                more = now["n"] - before["n"] if now["video"] == before["video"] else 1
                times += [now["t"]] * max(more, 1)
        return times

    def fps(self, start, end):
        """Pictures decoded a second, by the decoder's own counter."""
        rows = between(self.stats, start, end)
        if len(rows) < 2 or rows[-1]["t"] == rows[0]["t"]:
            return 0.0
        return grown(rows, "decoded") / (rows[-1]["t"] - rows[0]["t"])

    def offered_at(self):
        """When the page made its first offer; None if it made none."""
        return next((row["t"] for row in self.events if row.get("signalingState") == "have-local-offer"), None)

    def first_picture(self):
        """Seconds from the first offer to the first picture; None if there is none."""
        offered = self.offered_at()
        # A tile without a picture is an element of two pixels.
        shown = next((row["t"] for row in self.frames if row["width"] > 2), None)
        return shown - offered if offered and shown else None

    def steady_after(self, start, end, fps, hold=5.0):
        """Seconds from `start` until every second of the `hold` that follow has `fps` pictures; None if that never comes."""
        since = 0.0
        for at, shown in self.seconds(start, end):
            if shown < fps:
                since = at + STEP - start
            elif at - start - since >= hold - 1.0:
                return since
        return None

    def worst_second(self, start, end):
        """The fewest pictures that any second of a time has."""
        return min((shown for _, shown in self.seconds(start, end)), default=None)

    def seconds(self, start, end):
        """(begin, pictures) of each second that begins in a time, and ends in it, a step apart."""
        times = self.shown(start, end)
        for i in range(int((end - start - 1.0) / STEP)):
            at = start + i * STEP
            yield at, bisect.bisect_left(times, at + 1.0) - bisect.bisect_left(times, at)

    def gaps(self, start, end):
        """(when, how long) nothing new was shown, the time from the last picture to `end` included; in seconds."""
        times = [start, *self.shown(start, end), end]
        return [(a, b - a) for a, b in itertools.pairwise(times)]

    def freezes(self, start, end, least):
        return [gap for gap in self.gaps(start, end) if gap[1] > least]

    def browser_freezes(self, start, end):
        """Chromium's own count: a gap of over three times the mean, and of over 150 ms more than it."""
        return grown(between(self.stats, start, end), "freezes")

    def figure(self, name, start, end):
        return [row[name] for row in between(self.stats, start, end) if row.get(name) is not None]


def grown(rows, name):
    """How much a counter grew over rows; one that fell back began anew, with another connection."""
    total = 0
    for before, now in itertools.pairwise(rows):
        total += now[name] - before[name] if now[name] >= before[name] else now[name]
    return total
