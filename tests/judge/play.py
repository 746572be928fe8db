#!/usr/bin/env python3
"""Plays random lives against the local stack and compares its accounts with the independent judge.

    tests/judge/play.py --binary target/debug/tallyhook [--seconds 60] [--seed 1] [--orders 3]
    tests/judge/play.py --core target/debug/examples/play_lives [--seconds 3600] …
    tests/judge/play.py --binary … --lives FILE…         plays cases, or lives that --out wrote
    tests/judge/play.py --lives CASE…                    compares what the judge says with `expect` of each case

With --core a life is played on the rules alone, without a store and without HTTP: a hundred times as fast, and
each step has a time of its own, so that trials, months, lots and free credits fall due between spends.

Each life is played as it happened, reversed, and shuffled with duplicates; spends and other calls of the app
stay between the events that they stood between. A life that differs is reduced to its smallest form and
printed. Exit 1 if one differs. Python 3.10 or newer, no packages."""

import argparse
import concurrent.futures
import copy
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import lives
from facts import Catalog
from judge import World

SECRET, APP, ADMIN = "whsec_judge_secret", "judge-app", "judge-admin"
DONE = ("processed", "duplicate", "ignored", "parked", "failed", "dismissed")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Stack:
    """One local stack in memory, with one catalog."""

    def __init__(self, binary, catalog):
        self.dir = tempfile.TemporaryDirectory(prefix="tallyhook-judge-")
        path = pathlib.Path(self.dir.name)
        (path / "catalog.toml").write_text(catalog, encoding="utf-8")
        self.port, self.local = free_port(), threading.local()
        env = dict(
            os.environ,
            STRIPE_WEBHOOK_SECRET=SECRET,
            APP_API_TOKEN=APP,
            ADMIN_API_TOKEN=ADMIN,
            RETRY_DELAYS_SECONDS="1,2,3",
            STRIPE_SECRET_KEY="",
        )
        self.log = open(path / "log", "wb")
        self.process = subprocess.Popen(
            [
                os.path.abspath(binary),
                "--memory",
                "--port",
                str(self.port),
                "--aws-port",
                str(free_port()),
                "--catalog",
                str(path / "catalog.toml"),
            ],
            env=env,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        for _ in range(300):
            if self.process.poll() is not None:
                break
            try:
                if self.call("GET", "/webhooks/stripe/health", token=None)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.stop()
        raise RuntimeError("the stack did not start: " + (path / "log").read_text()[-400:])

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(15)
        self.log.close()

    def call(self, method, path, body=None, token=APP, headers=None):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        if token:
            headers["Authorization"] = "Bearer " + token
        for attempt in (0, 1):
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = self.local.connection = http.client.HTTPConnection(
                    "127.0.0.1", self.port, timeout=30
                )
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                data = response.read()
                break
            except (http.client.HTTPException, OSError):
                self.local.connection = None
                if attempt:
                    raise
        return response.status, json.loads(data) if data[:1] in b"{[" else data

    def send(self, event):
        payload, at = json.dumps(event, separators=(",", ":")).encode(), int(time.time())
        mac = hmac.new(SECRET.encode(), b"%d." % at + payload, hashlib.sha256).hexdigest()
        status, _ = self.call(
            "POST", "/webhooks/stripe", payload, None, {"Stripe-Signature": f"t={at},v1={mac}"}
        )
        if status != 200:
            raise RuntimeError(f"{event['type']} answered {status}")

    def log_of(self, event):
        status, page = self.call("GET", "/admin/stripe/webhook-logs?id=" + event, token=ADMIN)
        return (page.get("events") or [{}])[0] if status == 200 else {}

    def settle(self, ids, seconds=60):
        end = time.time() + seconds
        for event in ids:
            while self.log_of(event).get("status") not in DONE:
                if time.time() > end:
                    raise RuntimeError(f"{event} never reached the log")
                time.sleep(0.01)


def reorder(events, order, rnd):
    if order == 0:
        return list(events)
    if order == 1:
        return events[::-1]
    return rnd.sample(events, len(events)) + rnd.sample(events, max(1, len(events) // 3))


def play(stack, life, order, seed, one_by_one=False):
    """Plays one life; the answer is the list of differences."""
    if isinstance(stack, Core):
        return stack.play(life, order, seed)
    rnd = random.Random(f"{seed}-{order}")
    nonce, now = "%x" % rnd.getrandbits(44) + os.urandom(2).hex(), int(time.time())
    user, problems, holds = "user_" + nonce, [], {}
    world, path = World(Catalog(lives_catalog(life)), now), "/users/user_" + nonce
    for step in fill(life["steps"], now, nonce):
        if "send" in step:
            events = reorder(step["send"], order, rnd)
            for event in events:
                stack.send(event)
                if one_by_one:
                    stack.settle([event["id"]])
            stack.settle({event["id"] for event in events if not_ignored(event)})
        got = act(stack, step, path, holds)
        if "fix" in step and got == 404:  # the user does not exist yet
            continue
        expected = world.play(step, user)
        if expected is not None and got != expected and (got, expected) != (404, 402):
            problems.append(f"{step} answered {got}, expected {expected}")
    for name in (user, user + "-b"):
        for attempt in range(5):
            status, account = stack.call("GET", "/users/" + name)
            want = world.state(name)
            found = {"tier": "free", "credits": 0, "available": 0, "lots": []}
            if status == 200:
                found = {key: account[key] for key in ("tier", "credits", "available")}
                found["lots"] = sorted([lot["bucket"], lot["left"]] for lot in account["lots"] if lot["left"])
            if found == want:
                break
            time.sleep(0.3)
        else:
            problems.append(
                f"{name.replace(nonce, '')}: found {found}, expected {want}".replace(nonce, "NONCE")
            )
    return problems


class Core:
    """The rules without a store: common/core/examples/play_lives.rs."""

    def __init__(self, binary, catalog):
        self.catalog, self.lock = catalog, threading.Lock()
        self.process = subprocess.Popen(
            [os.path.abspath(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self):
        self.process.stdin.close()
        self.process.wait(15)

    def play(self, life, order, seed):
        rnd, now, user = random.Random(f"{seed}-{order}"), life["base"], "user_n"
        world, steps, expected, held = World(Catalog(lives_catalog(life)), now, any_time=True), [], [], {}
        for step in fill(life["steps"], now, "n"):
            if "send" in step:
                step = {"send": reorder(step["send"], order, rnd)}
            if "hold" in step:
                held[step["key"]] = step["hold"]
            expected.append(world.play(step, user))
            for name in ("commit", "release"):
                if name in step:
                    step["held"] = held.get(step[name], 0)
            steps.append(
                dict(step, at=world.now(user), **({} if "key" in step else {"key": "k%d" % len(steps)}))
            )
            if expected[-1] is None and {"give_back", "commit", "release"} & set(step):
                steps.pop()
                expected.pop()
        with self.lock:
            self.process.stdin.write(
                json.dumps({"catalog": self.catalog, "steps": steps, "users": [user, user + "-b"]}) + "\n"
            )
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            return [answer["error"]]
        problems = [
            f"{s} answered {got}, expected {want}"
            for s, got, want in zip(steps, answer["answers"], expected)
            if want is not None and got != want
        ]
        for name, found in answer["users"].items():
            found["lots"], want = sorted(map(list, found["lots"])), world.state(name)
            if found != want:
                problems.append(f"{name}: found {found}, expected {want}")
        return problems


def not_ignored(event):
    return not event["type"].startswith(("credit_note", "subscription_schedule"))


def lives_catalog(life):
    if "catalog_source" not in life:
        import tomllib  # not in Python 3.10

        return tomllib.loads(life["catalog"])
    return life["catalog_source"]


def fill(value, now, nonce):
    """Replaces `@seconds`, USER and NONCE, as tests/cases/README.md says."""
    if isinstance(value, str):
        if value.startswith("@") and value[1:].lstrip("-").isdigit():
            return now + int(value[1:])
        return value.replace("NONCE", nonce).replace("USER", "user_" + nonce)
    if isinstance(value, dict):
        return {fill(k, now, nonce): fill(v, now, nonce) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, now, nonce) for v in value]
    return value


def act(stack, step, path, holds):
    if "user" in step:
        return stack.call("PUT", path)[0]
    if "spend" in step:
        return stack.call(
            "POST",
            path + "/credits/consume",
            {"amount": step["spend"]},
            headers={"Idempotency-Key": step["key"]},
        )[0]
    if "hold" in step:
        status, hold = stack.call(
            "POST",
            path + "/credits/holds",
            {"amount": step["hold"], "ttl_seconds": step["ttl"]},
            headers={"Idempotency-Key": step["key"]},
        )
        holds[step["key"]] = hold.get("hold")
        return status
    if "commit" in step and holds.get(step["commit"]):
        return stack.call(
            "POST", f"{path}/credits/holds/{holds[step['commit']]}/commit", {"amount": step["amount"]}
        )[0]
    if "release" in step and holds.get(step["release"]):
        return stack.call("POST", f"{path}/credits/holds/{holds[step['release']]}/release", {})[0]
    if "give_back" in step:
        spend = holds.get(step["give_back"], step["give_back"])
        return stack.call(
            "POST",
            path + "/credits/refund",
            {"spend": spend, "amount": step["amount"]},
            headers={"Idempotency-Key": "back-" + os.urandom(6).hex()},
        )[0]
    if "fix" in step:
        return stack.call(
            "POST",
            "/admin/stripe/fix-user/" + path.rsplit("/", 1)[1],
            {"actor": "judge", "reason": "judge", **step["fix"]},
            ADMIN,
            {"Idempotency-Key": os.urandom(6).hex()},
        )[0]
    return None


def shrink(stack, life, order, seed, budget=90):
    """The smallest part of the life that still differs."""
    end, life = time.time() + budget, copy.deepcopy(life)

    def differs(candidate):
        try:
            return play(stack, candidate, order, seed, one_by_one=True)
        except (RuntimeError, KeyError, ValueError, IndexError, TypeError):
            return []

    changed = True
    while changed and time.time() < end:
        changed = False
        for n in reversed(range(len(life["steps"]))):
            if (
                any(is_tick(event) for event in life["steps"][n].get("send", []))
                and len(life["steps"][n]["send"]) > 1
            ):
                continue
            candidate = copy.deepcopy(life)
            del candidate["steps"][n]
            if time.time() < end and differs(candidate):
                life, changed = candidate, True
        for n, step in reversed(list(enumerate(life["steps"]))):
            for i in reversed(range(len(step.get("send", [])))):
                if is_tick(step["send"][i]):
                    continue
                candidate = copy.deepcopy(life)
                del candidate["steps"][n]["send"][i]
                if time.time() < end and differs(candidate):
                    life, changed = candidate, True
                    step = life["steps"][n]
    return life, differs(life)


def is_tick(event):
    """Events of the incomplete subscription that only moves the test clock."""
    o = event["data"]["object"]
    return "items" in o and o["items"]["data"][0]["price"]["id"] == "price_idle"


def outline(event):
    o, kind = event["data"]["object"], event["type"]
    parts = [kind, event["created"], "old" if event["api_version"] < "2025" else "new"]
    if "items" in o:
        parts += [
            o["id"],
            o["status"],
            [
                [
                    i["id"],
                    i["price"]["id"],
                    i["quantity"],
                    i.get("current_period_start", o.get("current_period_start")),
                    i.get("current_period_end", o.get("current_period_end")),
                ]
                for i in o["items"]["data"]
            ],
        ]
        parts += [
            {
                k: o[k]
                for k in (
                    "ended_at",
                    "pause_collection",
                    "cancel_at_period_end",
                    "test_clock",
                    "cancellation_details",
                )
                if o.get(k)
            }
        ]
    elif "lines" in o:
        parts += [o["id"], o["billing_reason"], o["status"], "total", o["total"], "paid", o["amount_paid"]]
        for line in o["lines"]["data"]:
            part = (line.get("parent") or {}).get("subscription_item_details") or {}
            parts.append(
                [
                    line["amount"],
                    line["quantity"],
                    (line.get("price") or {}).get("id") or line["pricing"]["price_details"]["price"],
                    part.get("subscription_item") or line.get("subscription_item"),
                    "prorated" if part.get("proration", line.get("proration")) else "",
                    line["period"]["start"],
                    line["period"]["end"],
                ]
            )
        parts.append(o.get("payment_intent"))
    else:
        parts.append(
            {
                k: v
                for k, v in o.items()
                if k
                in (
                    "id",
                    "mode",
                    "metadata",
                    "amount",
                    "amount_refunded",
                    "amount_total",
                    "payment_intent",
                    "status",
                    "invoice",
                    "payment",
                )
            }
        )
    return " ".join(map(str, parts))


def report(life, order, problems, file=None):
    lines = [f"DIFFERENT {life['name']}, order {order}"] + ["    " + p for p in problems]
    for step in life["steps"]:
        lines += (
            ["    send"] + ["        " + outline(e) for e in step["send"]]
            if "send" in step
            else ["    " + json.dumps(step)]
        )
    print("\n".join(lines), flush=True)
    if file:
        file.write_text(json.dumps(life, indent=1), encoding="utf-8")
        print("    " + str(file), flush=True)


def player(args, catalog):
    return Core(args.core, catalog) if args.core else Stack(args.binary, catalog)


def judge_case(life):
    """The differences between what the judge says and what the case expects."""
    now, expect = int(time.time()), fill(life["expect"], 0, "n")
    world = World(Catalog(lives_catalog(life)), now)
    for step in fill(life["steps"], now, "n"):
        world.play(step, "user_n")
    state = world.state("user_n")
    wanted = {"USER": [expect.get(name, state[name]) for name in ("tier", "credits")], **expect.get("others", {})}
    states = {name: world.state("user_n" if name == "USER" else name) for name in wanted}
    return [f"{name}: {states[name]}, expected {want}" for name, want in wanted.items()
            if want and [states[name]["tier"], states[name]["credits"]] != want]


def play_files(args):
    bad = 0
    for path in args.lives:
        life = json.loads(path.read_text(encoding="utf-8"))
        life.setdefault("base", int(time.time()))
        if not args.core and not args.binary:
            problems = judge_case(life)
            print("".join(f"{path}: {problem}\n" for problem in problems), end="")
            bad += bool(problems)
            continue
        stack = player(args, life["catalog"])
        try:
            for order in range(args.orders):
                problems = play(stack, life, order, args.seed, one_by_one=order < 2)
                if problems:
                    bad += 1
                    report(life, order, problems)
                    break
        finally:
            stack.stop()
    print(f"{len(args.lives) - bad} lives agree, {bad} differ")
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--binary", help="the local stack")
    parser.add_argument("--core", help="the rules alone, instead of --binary")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--catalogs", type=int, default=4, help="a stack of its own for each")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--stop-after", type=int, default=5, help="this many differences")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the lives that differ")
    parser.add_argument("--clocks", action="store_true", help="half of the lives have a test clock")
    parser.add_argument("--lives", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    if args.lives:
        return play_files(args)
    end, played, differences = time.time() + args.seconds, 0, 0
    base = 1_790_000_000 if args.core else int(time.time())
    for n in range(args.catalogs):
        source = lives.catalog(random.Random(f"{args.seed}-{n}"))
        stop = time.time() + (end - time.time()) / (args.catalogs - n)
        stack, numbers = player(args, lives.toml(source)), iter(range(10**9))

        def one(_=None):
            """Plays lives until the time is over; the answer is (played, those that differ)."""
            count, bad = 0, []
            while time.time() < stop and len(bad) < 2:
                seed = f"{args.seed}-{n}-{next(numbers)}"
                life = dict(
                    lives.life(seed, source, base, bool(args.core) or args.clocks),
                    catalog_source=source,
                    base=base,
                )
                for order in range(args.orders):
                    count += 1
                    problems = play(stack, life, order, seed)
                    if problems:
                        bad.append((life, order, seed))
                        break
            return count, bad

        try:
            with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
                results = list(pool.map(one, range(args.threads)))
            played += sum(count for count, _ in results)
            for life, order, seed in [b for _, bad in results for b in bad]:
                differences += 1
                if differences <= args.stop_after:
                    small, problems = shrink(stack, life, order, seed)
                    problems = problems or ["only when sent all at once"]
                    report(small, order, problems, args.out and args.out / f"{seed}.json")
        finally:
            stack.stop()
    print(f"{played} plays of lives, {differences} differ")
    return 1 if differences or not played else 0


if __name__ == "__main__":
    sys.exit(main())
