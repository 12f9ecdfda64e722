"""Namespaces, the links between them, and NATs. Needs root; touches nothing outside the namespaces it makes."""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFIX = "lab-"
CLONE_NEWNET = 0x40000000


class LabError(Exception):
    """What keeps a case from being measured; it says nothing about the program."""


def run(*command):
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class World:
    """Everything a case sets up: at its end all processes are ended and all namespaces are gone, whatever happened."""

    def __init__(self, folder):
        self.folder = folder
        self.namespaces = []
        self.processes = []
        self.at_end = []  # called before anything is taken away

    def __enter__(self):
        if os.geteuid() != 0:
            raise LabError("network namespaces need root: run this as root")
        self.lock = open("/run/edgecam-lab.lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another laboratory is at work on this machine") from None
        remove_leftovers()
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_):
        for stop in self.at_end:
            stop()
        for process in reversed(self.processes):
            end(process)
        remove_leftovers()
        self.lock.close()

    def namespace(self, name):
        full = PREFIX + name
        run("ip", "netns", "add", full)
        self.namespaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return Namespace(self, full)

    def wire(self, a, b, device, address_a, address_b):
        """A veth pair: no delay, no limit. The device has the same name at both ends."""
        run("ip", "link", "add", device, "netns", a.name, "type", "veth", "peer", "name", device, "netns", b.name)
        for end_, address in ((a, address_a), (b, address_b)):
            end_.address(device, address)

    def link(self, a, b, device, address_a, address_b, **both):
        """A shaped link (link.py); "down" is from `a` to `b`. Keywords hold for both directions."""
        link = Link(self, a, b, device)
        for end_, address in ((a, address_a), (b, address_b)):
            end_.address(device, address)
        if both:
            link.set(down=both, up=both)
        return link


class Namespace:
    def __init__(self, world, name):
        self.world = world
        self.name = name

    def address(self, device, address):
        # No IPv6 of its own: its neighbour discovery would be in every trace.
        run("ip", "-n", self.name, "link", "set", device, "addrgenmode", "none")
        run("ip", "-n", self.name, "address", "add", address, "dev", device)
        run("ip", "-n", self.name, "link", "set", device, "up")

    def ip(self, *words):
        return run("ip", "-n", self.name, *words)

    def route(self, destination, via):
        self.ip("route", "replace", destination, "via", via)

    def forward(self):
        """Makes it a router. Reads and writes /proc as this namespace sees it."""
        with self.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def iptables(self, *words):
        run("ip", "netns", "exec", self.name, "iptables", "-w", *words)

    def start(self, command, log=None, **options):
        """A process in here, whose output goes to a file of the case's folder."""
        if log:
            options["stdout"] = options["stderr"] = open(self.world.folder / log, "ab")
        # Before whatever else the machine does: it is the network that is to be slow.
        words = ["nice", "-n", "-10", "ip", "netns", "exec", self.name, *(str(word) for word in command)]
        process = subprocess.Popen(words, start_new_session=True, cwd=self.world.folder, **options)
        self.world.processes.append(process)
        return process

    def run(self, *command):
        return run("ip", "netns", "exec", self.name, *command)

    @contextlib.contextmanager
    def entered(self):
        """This thread, and no other, is in the namespace for as long as the block lasts."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
                raise LabError(f"cannot enter {self.name}: {os.strerror(ctypes.get_errno())}")
            try:
                yield
            finally:
                libc.setns(home.fileno(), CLONE_NEWNET)


class Link:
    """A link.py that runs. Its trace: `<device>.csv` in the case's folder."""

    def __init__(self, world, a, b, device):
        self.trace = world.folder / f"{device}.csv"
        command = [sys.executable, HERE / "link.py", a.name, b.name, device, self.trace]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        world.processes.append(self.process)
        if not self.process.stdout.readline():
            raise LabError(f"no link {device}: it needs /dev/net/tun (see above)")
        self.changes = []

    def set(self, down=None, up=None):
        """Changes what the link does; gives when."""
        what = {name: changes for name, changes in (("down", down), ("up", up)) if changes}
        self.changes.append((time.time(), what))
        self.ask({"set": what})
        return self.changes[-1][0]

    def stat(self):
        return self.ask({"stat": True})

    def ask(self, command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        """Ends it; the trace is whole then."""
        self.process.stdin.close()
        self.process.wait(timeout=5)


def end(process):
    """Ends a process started here, and what it started (each has a session of its own)."""
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def remove_leftovers():
    """Namespaces of a laboratory that was killed, and what still runs in them. Ours alone: by their names."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX):
            for pid in run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", name)


# NATs, as routers that people have at home. `inside` and `outside` are devices of the router.


def port_restricted_nat(router, outside):
    """Keeps the port where it can: the same one for every destination. Answers come in from where something went out, to the port."""
    router.forward()
    router.iptables("-t", "nat", "-A", "POSTROUTING", "-o", outside, "-j", "MASQUERADE")
    drop_unasked(router, outside)


def symmetric_nat(router, outside):
    """Another port for every destination: what STUN told is of no use to others."""
    router.forward()
    router.iptables("-t", "nat", "-A", "POSTROUTING", "-o", outside, "-j", "MASQUERADE", "--random-fully")
    drop_unasked(router, outside)


def drop_unasked(router, outside):
    """Nothing comes in that no one asked for, not even to a port that is in use."""
    router.iptables("-A", "FORWARD", "-i", outside, "-m", "state", "--state", "ESTABLISHED,RELATED", "-j", "ACCEPT")
    router.iptables("-A", "FORWARD", "-i", outside, "-m", "state", "--state", "NEW", "-j", "DROP")
    # Taken for the router itself it would keep its port from who is behind it, when that one answers.
    router.iptables("-A", "INPUT", "-i", outside, "-m", "state", "--state", "NEW", "-j", "DROP")


def forward_port(router, outside, port, to, transport="tcp"):
    """What owners set up for a camera's page; the first rule for it, before whatever drops."""
    router.iptables("-t", "nat", "-A", "PREROUTING", "-i", outside, "-p", transport, "--dport", port, "-j", "DNAT", "--to-destination", to)
    router.iptables("-I", "FORWARD", "-i", outside, "-p", transport, "-d", to.split(":")[0], "-j", "ACCEPT")


def block_udp(router):
    router.iptables("-I", "FORWARD", "-p", "udp", "-j", "DROP")
