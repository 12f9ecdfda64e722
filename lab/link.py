"""A network link between two namespaces, in user space: two TUN devices and what happens to a packet between them.

usage: link.py NAMESPACE_A NAMESPACE_B DEVICE TRACE.csv

It makes DEVICE in both namespaces and carries packets between the two. Direction "down" is from A to B, "up" from B to A.
Each line on stdin is a command and gets one line of JSON in answer:

    {"set": {"down": {"rate": 1e6, "queue_bytes": 65536, "delay": 0.025}, "up": {"delay": 0.025}}}
    {"stat": true}

It ends with the end of stdin. README.md says why this and not netem.
"""

import array
import collections
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
UDP = 17

# What became of a packet, as the trace names it.
CARRIED, FULL, LOST, BLOCKED = "carried", "full", "lost", "blocked"


class Shape:
    """What a direction does to packets. Times in seconds, rates in bit/s of whole IP packets."""

    def __init__(self):
        self.rate = 0.0  # 0: no limit
        self.queue_bytes = 1 << 20  # what waits for the bottleneck; a packet beyond it is dropped
        self.delay = 0.0
        self.jitter = 0.0  # added to the delay, evenly spread from 0 to this; packets keep their order
        self.loss = 0.0  # the part lost by chance, each packet for itself
        self.burst_loss = 0.0  # the part lost in bursts (Gilbert-Elliott), ...
        self.burst = 8.0  # ... whose mean length in packets is this
        self.reorder = 0.0  # the part of the packets that come `reorder_by` late, behind others
        self.reorder_by = 0.02
        self.drop_udp = False
        self.down = False  # nothing passes

    def set(self, changes):
        for name, value in changes.items():
            if not hasattr(self, name):
                raise ValueError(f"a link has no {name}")
            setattr(self, name, type(getattr(self, name))(value))


class Direction:
    """One way through the link. Told the time; reads and writes nothing itself.

    Every packet waits in one queue for the bottleneck, then takes its bits' time to pass it, may be lost behind it, and is under
    way for the delay. These times are computed, not waited for: that this program is woken late delays a packet, but neither
    the rate nor the recorded queue delay.
    """

    def __init__(self, name, chance):
        self.name = name
        self.shape = Shape()
        self.chance = chance
        self.queue = collections.deque()  # (arrived, packet)
        self.queued_bytes = 0
        self.finish = 0.0  # when the head of the queue has passed the bottleneck
        self.begin = 0.0  # when it began to, or the last one was through
        self.underway = []  # heap of (due, number, packet)
        self.number = 0
        self.last_due = 0.0
        self.in_burst = False
        self.counters = dict.fromkeys((CARRIED, FULL, LOST, BLOCKED), 0)
        self.bytes = 0
        self.trace = []  # (left the queue or was dropped, bytes, queue delay, fate, protocol)

    def set(self, changes, now):
        """Changes the shape; the packet that is just passing the bottleneck goes on at the new rate."""
        self.pass_bottleneck(now)
        before = self.shape.rate
        self.shape.set(changes)
        if self.queue and self.shape.rate != before:
            rest = (self.finish - now) * before if before else 0.0
            self.finish = now + (rest / self.shape.rate if self.shape.rate else 0.0)

    def push(self, packet, now):
        shape = self.shape
        if shape.down or (shape.drop_udp and protocol(packet) == UDP):
            return self.end(now, packet, 0.0, BLOCKED)
        if self.queue and self.queued_bytes + len(packet) > shape.queue_bytes:
            return self.end(now, packet, self.finish - now, FULL)
        self.queue.append((now, packet))
        self.queued_bytes += len(packet)
        if len(self.queue) == 1:
            self.start(max(now, self.begin))

    def start(self, at):
        """The head of the queue begins to pass the bottleneck."""
        rate = self.shape.rate
        self.begin = at
        self.finish = at + (len(self.queue[0][1]) * 8 / rate if rate else 0.0)

    def pass_bottleneck(self, now):
        while self.queue and self.finish <= now:
            arrived, packet = self.queue.popleft()
            self.queued_bytes -= len(packet)
            waited, finish = self.begin - arrived, self.finish
            self.begin = finish
            if self.queue:
                self.start(max(finish, self.queue[0][0]))
            if self.is_lost():
                self.end(finish, packet, waited, LOST)
            else:
                self.end(finish, packet, waited, CARRIED)
                self.send_off(packet, finish)

    def send_off(self, packet, at):
        shape = self.shape
        due = at + shape.delay + (self.chance.random() * shape.jitter if shape.jitter else 0.0)
        if shape.reorder and self.chance.random() < shape.reorder:
            due += shape.reorder_by
        else:
            due = self.last_due = max(due, self.last_due)
        self.number += 1
        heapq.heappush(self.underway, (due, self.number, packet))

    def is_lost(self):
        shape = self.shape
        if shape.down:
            return True
        if shape.loss and self.chance.random() < shape.loss:
            return True
        if not shape.burst_loss:
            return False
        change = 1 / shape.burst if self.in_burst else shape.burst_loss / (shape.burst * (1 - shape.burst_loss))
        if self.chance.random() < change:
            self.in_burst = not self.in_burst
        return self.in_burst

    def end(self, at, packet, waited, fate):
        self.counters[fate] += 1
        if fate == CARRIED:
            self.bytes += len(packet)
        self.trace.append((at, len(packet), waited, fate, protocol(packet)))

    def next_event(self):
        return min(self.finish if self.queue else 1e18, self.underway[0][0] if self.underway else 1e18)


def protocol(packet):
    """The transport's number: IPv4's field, or IPv6's first header."""
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def open_tun(namespace, device):
    """A TUN device in a namespace. This process stays in the last one it opened one in, which harms nobody."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", device.encode(), IFF_TUN | IFF_NO_PI))
    return tun


class Link:
    def __init__(self, tun_a, tun_b, trace):
        self.down = Direction("down", random.Random(1))
        self.up = Direction("up", random.Random(2))
        self.ways = ((self.down, tun_a, tun_b), (self.up, tun_b, tun_a))
        self.trace = trace
        self.late = array.array("f")  # how much later than due each packet was handed over
        self.refused = 0  # the kernel did not take them

    def run(self, commands):
        inputs = [self.ways[0][1], self.ways[1][1], commands]
        written = time.monotonic()
        while True:
            now = time.monotonic()
            wait = min(self.down.next_event(), self.up.next_event(), now + 1.0) - now
            ready = select.select(inputs, [], [], max(wait, 0.0))[0]
            if commands in ready and not self.obey(commands):
                return self.write_trace()
            for direction, source, sink in self.ways:
                if source in ready:
                    self.read(source, direction)
                self.move(direction, sink)
            if now - written > 1.0:
                self.write_trace()
                written = now

    def read(self, source, direction):
        """At most so many at a time, so that the other way has its turn."""
        for _ in range(64):
            try:
                packet = os.read(source, 65536)
            except BlockingIOError:
                return
            direction.push(packet, time.monotonic())

    def move(self, direction, sink):
        now = time.monotonic()
        direction.pass_bottleneck(now)
        underway = direction.underway
        while underway and underway[0][0] <= now:
            due, _, packet = heapq.heappop(underway)
            self.late.append(now - due)
            try:
                os.write(sink, packet)
            except OSError:
                self.refused += 1

    def obey(self, commands):
        """Gives whether there is more to come."""
        line = commands.readline()
        if not line:
            return False
        command = json.loads(line)
        for name, changes in command.get("set", {}).items():
            {"down": self.down, "up": self.up}[name].set(changes, time.monotonic())
        print(json.dumps(self.stat() if "stat" in command else {}), flush=True)
        return True

    def stat(self):
        late = sorted(self.late)
        return {
            "down": self.down.counters | {"bytes": self.down.bytes},
            "up": self.up.counters | {"bytes": self.up.bytes},
            "refused": self.refused,
            "late_p50_ms": 1000 * late[len(late) // 2] if late else 0.0,
            "late_p99_ms": 1000 * late[len(late) * 99 // 100] if late else 0.0,
            "cpu_s": time.process_time(),
        }

    def write_trace(self):
        to_wall = time.time() - time.monotonic()
        for direction, _, _ in self.ways:
            for at, size, waited, fate, number in direction.trace:
                self.trace.write(f"{at + to_wall:.4f},{direction.name},{size},{waited * 1000:.1f},{fate},{number}\n")
            direction.trace.clear()
        self.trace.flush()


def take_precedence():
    """The link must not wait for the programs it measures. Where this is not allowed, `late_p99_ms` tells what it costs."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        try:
            os.nice(-15)
        except OSError:
            pass


def main():
    namespace_a, namespace_b, device, trace = sys.argv[1:]
    take_precedence()
    with open(trace, "w") as out:
        out.write("time,direction,bytes,queue_ms,fate,protocol\n")
        link = Link(open_tun(namespace_a, device), open_tun(namespace_b, device), out)
        print("{}", flush=True)
        link.run(sys.stdin)


if __name__ == "__main__":
    main()
