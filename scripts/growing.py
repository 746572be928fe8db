#!/usr/bin/env python3
"""Simulates what docs/growing.md says about loads that no test makes: one busy user, a burst, and a table that is away for a while.

    scripts/growing.py                                the three tables of docs/growing.md
    scripts/growing.py --check                        whether they still are what that page shows
    scripts/growing.py --read-ms 8 --write-ms 20      with your own durations (CloudWatch: DynamoDB, SuccessfulRequestLatency)

The laws are read from template.yaml and the sources, so a changed setting changes the tables. What AWS does is taken from its documentation
and written below. The same seed gives the same tables.
"""

import argparse
import heapq
import pathlib
import random
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def told(path, pattern):
    """A number or list that a file of the project states."""
    found = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        raise SystemExit(f"{path} no longer states {pattern}")
    return found.group(1)


BATCH = int(told("template.yaml", r"BatchSize: (\d+)"))
DELAYS = [int(delay) for delay in told("template.yaml", r'RETRY_DELAYS_SECONDS: "([\d,]+)"').split(",")]
RECEIVES = int(told("template.yaml", r"maxReceiveCount: (\d+)"))
WORKERS = int(told("template.yaml", r"WorkerConcurrency:\s+Type: Number\s+Default: (\d+)"))
TRIES = int(told("common/service/src/process.rs", r"const ATTEMPTS: u32 = (\d+);"))
RESENT = int(told("common/service/src/resend/retry.rs", r"const MOST_DUE: usize = ([\d_]+);"))
RUN_SECONDS = 60 * int(told("template.yaml", r"\$\{Prefix\}-retry.*?rate\((\d+) minutes\)"))

# An SQS standard queue gives out no more while so many messages are in flight: given out, and neither deleted nor visible again.
IN_FLIGHT = 120_000
# Lambda begins with so many invocations of one queue at a time and adds so many a minute. An execution environment takes ten a second.
FIRST_INVOCATIONS, MORE_A_MINUTE, SHORTEST = 5, 300, 0.1


def busy_user(workers, events, read, write, chance):
    """Many events of one user, taken by several workers at once: a batch is one change on the version that was read.

    A transaction fails when another one holds the account (`TransactionConflict`) or has moved its version since the read. The worker then
    reads again, up to its bound, and gives the batch back.
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
            heapq.heappush(steps, (time + read * chance.uniform(0.8, 1.2), worker, "write", (size, 1, version)))
        elif step == "read":
            size, tried = batch
            heapq.heappush(steps, (time + read * chance.uniform(0.8, 1.2), worker, "write", (size, tried, version)))
        elif step == "write":
            size, tried, seen = batch
            done = time + write * chance.uniform(0.8, 1.2)
            good = time >= held_until and seen == version
            if good:
                held_until, version, commits = done, version + 1, commits + 1
                heapq.heappush(steps, (done, worker, "take", None))
            elif tried > TRIES:  # the batch as a whole, then so many by account
                conflicts, returned = conflicts + 1, returned + size
                heapq.heappush(steps, (done, worker, "take", None))
            else:
                conflicts += 1
                wait = 0 if tried == 1 else 0.005 + chance.uniform(0, 0.010 * 2 ** min(tried - 1, 6))
                heapq.heappush(steps, (done + wait, worker, "read", (size, tried + 1)))
    return commits / time, (events - returned) / time, conflicts / commits, returned


def burst(rate, minutes, concurrency, batch_seconds):
    """So many events a second for a while, all of one family: the deepest queue, and how long the slowest waited."""
    waiting, deepest, slowest, second = 0.0, 0.0, 0.0, 0
    while second < minutes * 60 or waiting >= 1:
        waiting += rate if second < minutes * 60 else 0
        able = min(concurrency, FIRST_INVOCATIONS + MORE_A_MINUTE * second / 60) * BATCH / max(batch_seconds, SHORTEST)
        waiting -= min(waiting, able)
        deepest, slowest = max(deepest, waiting), max(slowest, waiting / able)
        second += 1
    return able, deepest, slowest


def absence(rate, minutes, able):
    """The table is away for so many minutes: what is in flight at most, how many end as `failed`, and when the others are done.

    SQS gives out what is visible in no order, so old and new get their share.
    """
    waiting, returns = [0.0] * RECEIVES, {}  # by attempts made; by the second at which they are visible again
    in_flight, most, failed, second = 0.0, 0.0, 0.0, 0
    while second < minutes * 60 or in_flight + sum(waiting) >= 1:
        for attempts, count in returns.pop(second, []):
            in_flight -= count
            waiting[attempts] += count
        waiting[0] += rate
        share = min(1.0, min(able, IN_FLIGHT - in_flight) / sum(waiting))
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
    return most, failed, second / 60 - minutes, failed / RESENT * RUN_SECONDS / 3600


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read-ms", type=float, default=5, help="a consistent read (default: %(default)s)")
    parser.add_argument("--write-ms", type=float, default=10, help="a transaction (default: %(default)s)")
    parser.add_argument("--batch-ms", type=float, default=25, help="a worker's whole batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with docs/growing.md instead of printing")
    options = parser.parse_args()
    lines = list(tables(options))
    if not options.check:
        print("\n".join(lines))
        return
    page = (ROOT / "docs" / "growing.md").read_text(encoding="utf-8").splitlines()
    missing = [line for line in lines if line not in page]
    if missing:
        raise SystemExit("\n".join(["docs/growing.md does not show what scripts/growing.py says now:", *missing]))


def tables(options):
    chance = random.Random(options.seed)
    yield "| workers on one user's 10,000 events | commits/s | events/s | lost races per commit | given back to the queue |"
    yield "|---|---|---|---|---|"
    for workers in (1, 2, 5, 10):
        commits, events, conflicts, returned = busy_user(workers, 10_000, options.read_ms / 1000, options.write_ms / 1000, chance)
        yield f"| {workers} | {commits:.0f} | {events:.0f} | {conflicts:.1f} | {returned:,} |"

    yield ""
    yield "| ten minutes of one family at | `WorkerConcurrency` | served, a second | deepest queue | the slowest waited |"
    yield "|---|---|---|---|---|"
    for rate, concurrency in ((100, 2), (1_000, WORKERS), (1_000, 2 * WORKERS), (10_000, 2 * WORKERS), (10_000, 120)):
        able, deepest, slowest = burst(rate, 10, concurrency, options.batch_ms / 1000)
        yield f"| {rate:,}/s | {concurrency} | {able:,.0f} | {deepest:,.0f} | {slowest:,.0f} s |"

    yield ""
    yield (f"| with {2 * WORKERS} workers, the table is away for | events of one family | most in flight | end as `failed` "
           "| the rest done after | `failed` sent again within |")
    yield "|---|---|---|---|---|---|"
    for rate, minutes in ((10, 3), (10, 25), (10, 60), (1_000, 3), (1_000, 25), (1_000, 60)):
        most, failed, after, again = absence(rate, minutes, 2 * WORKERS * BATCH / max(options.batch_ms / 1000, SHORTEST))
        yield f"| {minutes} min | {rate:,}/s | {most:,.0f} | {failed:,.0f} | {after:.0f} min | {again:,.1f} h |"


if __name__ == "__main__":
    main()
