#!/usr/bin/python3
"""The network laboratory: real programs in network namespaces. Needs root. See README.md.

usage: run.py [--plots FOLDER] [CASE…]        every case when none is named; a README.md in FOLDER gets the table
       run.py --list                          the cases, and how long they take
       run.py --table                         what the last runs measured, as Markdown
       run.py --selftest                      is the link honest?
"""

import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from net import HERE, LabError, World
from selftest import selftest
from verdict import CASES, Verdict

for cases in ("rates", "viewers", "ways", "moves", "peers"):
    importlib.import_module(cases)

TRACES = HERE.parent / "target/lab"
TABLE_BEGIN, TABLE_END = "<!-- measured -->", "<!-- /measured -->"
# For a quick look, and for CI: it says nothing that the others do not.
NOT_BY_ITSELF = {"smoke"}


def main(arguments):
    if "--list" in arguments:
        for name, function in CASES.items():
            print(f"{name:16} {function.seconds:4} s  {function.title}")
        return 0
    if "--table" in arguments:
        print(table())
        return 0
    if "--selftest" in arguments:
        return check_link()
    plots = TRACES
    if arguments[:1] == ["--plots"]:
        plots, arguments = Path(arguments[1]), arguments[2:]
    names = arguments or [name for name in CASES if name not in NOT_BY_ITSELF]
    unknown = [name for name in names if name not in CASES]
    if unknown:
        print(f"no case named {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 64
    # Ctrl-C and a polite kill unwind the stack, so that every `with` cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{len(names)} cases, about {sum(CASES[name].seconds for name in names) / 60:.0f} minutes", flush=True)
    worst = max([run_case(name, plots) for name in names])
    put_table(plots / "README.md")
    return worst


def run_case(name, plots):
    """Gives 0 when every bar was kept, 1 when one was missed, 2 when it could not be measured."""
    function = CASES[name]
    verdict = Verdict(name, function.title)
    folder = TRACES / name
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{name}: {function.title}", flush=True)
    load, started = os.getloadavg()[0], time.time()
    try:
        with World(folder) as world:
            function(world, verdict)
    except LabError as error:
        verdict.error = str(error)
        print(f"  not measured: {error} (logs in {folder})")
    except Exception as error:
        verdict.error = repr(error)
        traceback.print_exc()
    verdict.note(load_before=load, load_after=os.getloadavg()[0], took_s=time.time() - started)
    for bar in verdict.bars:
        print(f"  {told(bar)}")
    print("  " + ", ".join(f"{name} {plain(value)}" for name, value in verdict.notes.items()), flush=True)
    if folder.exists():
        (folder / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=1) + "\n")
    plots.mkdir(parents=True, exist_ok=True)
    for plot in verdict.plots:
        plot.save(plots)
    if verdict.error:
        return 2
    return 0 if all(bar["kept"] for bar in verdict.bars) else 1


def check_link():
    with World(TRACES / "selftest") as world:
        results, stat = selftest(world)
    for what, asked, measured, within in results:
        good = abs(measured - asked) <= (within * asked if asked else within)
        print(f"{'ok  ' if good else 'FAIL'} {what}: asked {plain(asked)}, measured {plain(measured)}")
    carried = sum(stat[way][fate] for way in ("down", "up") for fate in ("carried", "full", "lost"))
    print(f"CPU: {1e6 * stat['cpu_s'] / carried:.0f} µs a packet")
    print(f"handed over late by {stat['late_p50_ms']:.3f} ms (p50), {stat['late_p99_ms']:.3f} ms (p99)")
    return 0


def table():
    """Of all cases that were run, in the order of the list."""
    lines = ["| case | | measured | bar |", "|---|---|---|---|"]
    for name in CASES:
        path = TRACES / name / "verdict.json"
        if not path.exists():
            continue
        verdict = json.loads(path.read_text())
        if verdict["error"]:
            lines.append(f"| {verdict['title']} | not measured: {verdict['error']} | | |")
        for i, bar in enumerate(verdict["bars"]):
            limit = "" if bar["limit"] == "yes" else f"{'≥' if bar['least'] else '≤'} {bar['limit']} {bar['unit']}".rstrip() + ": "
            kept = "kept" if bar["kept"] else "**missed**"
            lines.append(f"| {'' if i else verdict['title']} | {bar['what']} | {plain(bar['measured'])} {bar['unit']} | {limit}{kept} |")
    return "\n".join(lines)


def put_table(readme):
    """Into the text between the marks, where there is such a text."""
    if readme.exists():
        before, _, rest = readme.read_text().partition(TABLE_BEGIN)
        _, end, after = rest.partition(TABLE_END)
        if end:
            readme.write_text(f"{before}{TABLE_BEGIN}\n\n{table()}\n\n{end}{after}")


def told(bar):
    limit = "" if bar["limit"] == "yes" else f" (bar: {'≥' if bar['least'] else '≤'} {bar['limit']} {bar['unit']})"
    return f"{'kept  ' if bar['kept'] else 'MISSED'} {bar['what']}: {plain(bar['measured'])} {bar['unit']}{limit}"


def plain(value):
    if value is None:
        return "never"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
