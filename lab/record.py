#!/usr/bin/env python3
"""A case's trace as the estimator's tests replay it (tests/traces): what went to the viewer, and what came of it.

usage: record.py target/lab/CASE/to-view.csv [SECONDS [FROM]] > tests/traces/CASE.csv
"""

import csv
import sys

LEAST = 200  # smaller packets are STUN and reports
DELAY_US = 25_000  # of the laboratory's cases, one way


def main(path, seconds=20.0, start=0.0):
    with open(path, encoding="ascii") as trace:
        rows = [
            (round((float(row["time"]) - float(row["queue_ms"]) / 1000) * 1e6), round(float(row["time"]) * 1e6), row)
            for row in csv.DictReader(trace)
            if row["direction"] == "down" and row["protocol"] == "17" and int(row["bytes"]) >= LEAST
        ]
    rows.sort(key=lambda row: row[0])
    first = rows[0][0] + round(float(start) * 1e6)
    print("# sent, in microseconds; bytes with all headers; arrived, in microseconds, or lost")
    for sent, left, row in rows:
        if 0 <= sent - first < float(seconds) * 1e6:
            print(f"{sent - first},{row['bytes']},{left - first + DELAY_US if row['fate'] == 'carried' else 'lost'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
