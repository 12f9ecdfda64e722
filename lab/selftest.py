"""Is the link honest? UDP blasted through it: rate, delay, queue and loss against what was asked."""

import socket
import statistics
import struct
import threading
import time

from measure import read_trace
from net import LabError

PORT = 9999


def selftest(world):
    """Gives (what, asked, measured, allowed difference) for each property."""
    a, b = world.namespace("a"), world.namespace("b")
    link = world.link(a, b, "lab0", "10.79.0.1/24", "10.79.0.2/24")
    results = []
    for rate in (400_000, 1_500_000, 10_000_000):
        link.set(down={"rate": rate, "queue_bytes": 32_768})
        received = blast(a, b, rate * 1.5, 2.0)
        ordered = sorted(at for at, _, _ in received)
        # The first packets fill the queue; from then on one follows the other.
        steady = [at for at in ordered if at - ordered[0] > 0.5]
        measured = (len(steady) - 1) * 1228 * 8 / (steady[-1] - steady[0])
        results.append((f"rate, {rate / 1e6} Mbit/s", rate, measured, 0.03))
        delay = statistics.median(at - sent for at, sent, _ in received if at - ordered[0] > 1.0)
        fits = 32_768 // 1228 * 1228  # whole packets only
        results.append((f"a full queue's delay at {rate / 1e6} Mbit/s, s", fits * 8 / rate, delay, 0.05))
    link.set(down={"rate": 0, "delay": 0.025})
    received = blast(a, b, 2_000_000, 1.0)
    results.append(("delay, s", 0.025, statistics.median(at - sent for at, sent, _ in received), 0.03))
    late = sorted(at - sent for at, sent, _ in received)[len(received) * 99 // 100]
    results.append(("delay, 99th percentile, s", 0.025, late, 0.15))
    link.set(down={"delay": 0.0, "loss": 0.05})
    received, sent = blast(a, b, 20_000_000, 3.0), 6106
    results.append(("loss by chance", 0.05, 1 - len(received) / sent, 0.2))
    link.set(down={"loss": 0.0, "burst_loss": 0.02, "burst": 8})
    numbers = {number for _, _, number in blast(a, b, 20_000_000, 6.0)}
    lost = [number for number in range(max(numbers)) if number not in numbers]
    bursts = sum(number - 1 not in lost for number in lost)
    results.append(("loss in bursts", 0.02, len(lost) / max(numbers), 0.3))
    results.append(("mean burst", 8, len(lost) / max(bursts, 1), 0.3))
    link.set(down={"burst_loss": 0.0, "rate": 1_000_000, "queue_bytes": 65_536})
    blast(a, b, 700_000, 2.0)
    stat = link.stat()
    link.close()
    quiet = [packet.queue_ms for packet in read_trace(link.trace)[-100:]]
    results.append(("recorded queue delay below the rate, ms", 0.0, statistics.median(quiet), 3.0))
    if stat["refused"]:
        raise LabError(f"the kernel refused {stat['refused']} packets of the link")
    return results, stat


def blast(a, b, rate, seconds, size=1200):
    """UDP packets of `size` payload bytes at an even pace; gives (received, sent, number) of those that came."""
    received = []
    with b.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sink.bind(("0.0.0.0", PORT))
    sink.settimeout(1.5)
    with a.entered():
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def listen():
        try:
            while True:
                packet = sink.recv(2048)
                received.append((time.monotonic(), *struct.unpack_from("dI", packet)))
        except TimeoutError:
            pass

    listener = threading.Thread(target=listen)
    listener.start()
    gap = (size + 28) * 8 / rate
    start = time.monotonic()
    for number in range(int(seconds / gap)):
        time.sleep(max(start + number * gap - time.monotonic(), 0))
        source.sendto(struct.pack("dI", time.monotonic(), number).ljust(size, b"\0"), ("10.79.0.2", PORT))
    listener.join()
    sink.close()
    source.close()
    return received
