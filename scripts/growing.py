#!/usr/bin/env python3
"""Simulates the loads of docs/growing.md that no test makes: one busy user, a burst, and an outage of the
table.

    scripts/growing.py                                the three tables of docs/growing.md
    scripts/growing.py --check                        fails if docs/growing.md shows other tables
    scripts/growing.py --read-ms 8 --write-ms 20      with your durations (SuccessfulRequestLatency)

Delays, attempts, batch size and concurrency are read from template.yaml. Two limits of the code are options.
AWS's behaviour is taken from its documentation and written below. The same seed gives the same tables."""

import heapq
import random
import re

import shared
from shared import ROOT

TEMPLATE = (ROOT / "template.yaml").read_text(encoding="utf-8")


def setting(pattern):
    found = re.search(pattern, TEMPLATE, re.DOTALL)
    if not found:
        raise SystemExit(f"template.yaml has no match for {pattern}")
    return found.group(1)


BATCH = int(setting(r"BatchSize: (\d+)"))
DELAYS = [int(delay) for delay in setting(r'RETRY_DELAYS_SECONDS: "([\d,]+)"').split(",")]
RECEIVES = int(setting(r"maxReceiveCount: (\d+)"))
WORKERS = int(setting(r"WorkerConcurrency:\s+Type: Number\s+Default: (\d+)"))
RUN_SECONDS = 60 * int(setting(r"\$\{Prefix\}-retry.*?rate\((\d+) minutes\)"))

# SQS returns no more messages of a standard queue while this many are in flight: received, and neither
# deleted nor visible again.
MAX_IN_FLIGHT = 120_000
# Lambda starts with this many concurrent batches of a queue and adds this many a minute. An execution
# environment runs at most ten invocations a second.
FIRST_INVOCATIONS, MORE_A_MINUTE, MIN_SECONDS = 5, 300, 0.1


def busy_user(workers, events, read, write, attempts, chance):
    """Many events of one user, received by several workers. A batch is one change on the version it read.

    A transaction fails if another one holds the account (`TransactionConflict`) or has changed its version
    since the read. The worker then reads again, at most `attempts` times, and returns the batch to the queue.
    """
    version, held_until, commits, conflicts, returned = 0, 0.0, 0, 0, 0
    waiting, steps = events, [(chance.uniform(0, read), worker, "take", None) for worker in range(workers)]
    heapq.heapify(steps)
    while steps:
        time, worker, step, batch = heapq.heappop(steps)
        if step == "take":
            size = min(BATCH, waiting)
            if size == 0:
                continue
            waiting -= size
            done = time + read * chance.uniform(0.8, 1.2)
            heapq.heappush(steps, (done, worker, "write", (size, 1, version)))
        elif step == "read":
            size, tried = batch
            done = time + read * chance.uniform(0.8, 1.2)
            heapq.heappush(steps, (done, worker, "write", (size, tried, version)))
        elif step == "write":
            size, tried, seen = batch
            done = time + write * chance.uniform(0.8, 1.2)
            good = time >= held_until and seen == version
            if good:
                held_until, version, commits = done, version + 1, commits + 1
                heapq.heappush(steps, (done, worker, "take", None))
            elif tried > attempts:  # the first try is for the whole batch, the others are for each account
                conflicts, returned = conflicts + 1, returned + size
                heapq.heappush(steps, (done, worker, "take", None))
            else:
                conflicts += 1
                wait = 0 if tried == 1 else 0.005 + chance.uniform(0, 0.010 * 2 ** min(tried - 1, 6))
                heapq.heappush(steps, (done + wait, worker, "read", (size, tried + 1)))
    return commits / time, (events - returned) / time, conflicts / commits, returned


def burst(rate, minutes, concurrency, batch_seconds):
    """A constant rate of one family for some minutes: the deepest queue, and the longest wait of an event."""
    waiting, deepest, slowest, second = 0.0, 0.0, 0.0, 0
    while second < minutes * 60 or waiting >= 1:
        waiting += rate if second < minutes * 60 else 0
        started = min(concurrency, FIRST_INVOCATIONS + MORE_A_MINUTE * second / 60)
        able = started * BATCH / max(batch_seconds, MIN_SECONDS)
        waiting -= min(waiting, able)
        deepest, slowest = max(deepest, waiting), max(slowest, waiting / able)
        second += 1
    return able, deepest, slowest


def outage(rate, minutes, able, retry_limit):
    """An outage of the table: the most events in flight, how many end as `failed`, and when the rest is done.

    SQS returns visible messages in no order, so old and new ones get their share.
    """
    waiting, returns = [0.0] * RECEIVES, {}  # by attempts made; by the second when they are visible
    in_flight, most, failed, second = 0.0, 0.0, 0.0, 0
    while second < minutes * 60 or in_flight + sum(waiting) >= 1:
        for attempts, count in returns.pop(second, []):
            in_flight -= count
            waiting[attempts] += count
        waiting[0] += rate
        share = min(1.0, min(able, MAX_IN_FLIGHT - in_flight) / sum(waiting))
        for attempts in range(RECEIVES):
            taken = waiting[attempts] * share
            waiting[attempts] -= taken
            if second >= minutes * 60:
                continue  # applied
            if attempts + 1 == RECEIVES:
                failed += taken
            elif taken:
                in_flight += taken
                returns.setdefault(second + DELAYS[attempts], []).append((attempts + 1, taken))
        most, second = max(most, in_flight), second + 1
    return most, failed, second / 60 - minutes, failed / retry_limit * RUN_SECONDS / 3600


def main():
    parser = shared.parser(__doc__)
    parser.add_argument("--read-ms", type=float, default=5, help="a consistent read (default: %(default)s)")
    parser.add_argument("--write-ms", type=float, default=10, help="a transaction (default: %(default)s)")
    parser.add_argument("--batch-ms", type=float, default=25,
                        help="a worker's whole batch (default: %(default)s)")
    parser.add_argument("--write-attempts", type=int, default=8,
                        help="of a worker for one account (default: %(default)s)")
    parser.add_argument("--retry-limit", type=int, default=5000,
                        help="failed events per run of retry (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true",
                        help="compare with docs/growing.md instead of printing")
    options = parser.parse_args()
    lines = list(tables(options))
    if not options.check:
        print("\n".join(lines))
        return
    missing = shared.lacks("docs/growing.md", lines)
    if missing:
        raise SystemExit("\n".join(missing))


def tables(options):
    chance = random.Random(options.seed)
    yield ("| workers on one user's 10,000 events | commits/s | events/s "
           "| lost races per commit | returned to the queue |")
    yield "|---|---|---|---|---|"
    for workers in (1, 2, 5, 10):
        read, write = options.read_ms / 1000, options.write_ms / 1000
        commits, events, conflicts, returned = busy_user(workers, 10_000, read, write, options.write_attempts,
                                                         chance)
        yield f"| {workers} | {commits:.0f} | {events:.0f} | {conflicts:.1f} | {returned:,} |"

    yield ""
    yield ("| ten minutes of one family at | `WorkerConcurrency` | served, a second "
           "| deepest queue | the slowest waited |")
    yield "|---|---|---|---|---|"
    for rate, concurrency in ((100, 2), (1_000, WORKERS), (1_000, 2 * WORKERS), (10_000, 2 * WORKERS),
                              (10_000, 120)):
        able, deepest, slowest = burst(rate, 10, concurrency, options.batch_ms / 1000)
        yield f"| {rate:,}/s | {concurrency} | {able:,.0f} | {deepest:,.0f} | {slowest:,.0f} s |"

    yield ""
    yield (f"| with {2 * WORKERS} workers, the table is down for | events of one family "
           "| in flight at most | end as `failed` "
           "| the rest done after | `failed` sent again within |")
    yield "|---|---|---|---|---|---|"
    for rate, minutes in ((10, 3), (10, 25), (10, 60), (1_000, 3), (1_000, 25), (1_000, 60)):
        able = 2 * WORKERS * BATCH / max(options.batch_ms / 1000, MIN_SECONDS)
        most, failed, after, again = outage(rate, minutes, able, options.retry_limit)
        yield (f"| {minutes} min | {rate:,}/s | {most:,.0f} | {failed:,.0f} "
               f"| {after:.0f} min | {again:,.1f} h |")


if __name__ == "__main__":
    main()
