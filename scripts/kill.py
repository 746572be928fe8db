#!/usr/bin/env python3
"""Kills the local stack (kill -9) again and again under load, and then counts: everything acknowledged took effect once.

Customers buy subscriptions and packs and spend credits, from many connections at once, with duplicates. What gets no
answer because the stack has just died is sent again later, as Stripe and a careful app do. In the end every event must be
`processed` in the log, every document in the ledger once, every balance the sum of what was bought and spent, and the
queues empty.

    scripts/kill.py                 50 kills
    scripts/kill.py --kills 5       a quick look
    scripts/kill.py --seed 7        the same customers and the same moments again, as far as a machine repeats itself
"""

import argparse
import collections
import json
import pathlib
import random
import sys
import threading
import time

import smoke

PRO, PACK = smoke.PRO, smoke.PACK
ADMIN = {"authorization": "Bearer admin-local"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--customers", type=int, default=30)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--longest-life", type=float, default=2.0, help="seconds that the stack lives at most before a kill")
    parser.add_argument("--command", default="cargo run --quiet --", help="how to start the stack (default: %(default)s)")
    parser.add_argument("--build", default="cargo build --bin tallyhook", help="what to run before (default: %(default)s; empty: nothing)")
    parser.add_argument("--settle-seconds", type=float, default=900,
                        help="patience at the end: a message in flight at a kill comes back after its visibility timeout")
    options = parser.parse_args()
    options.secret, options.token, options.real_binaries, options.port, options.aws_port = "whsec_local", "app-local", False, 0, 0
    return options


class Load:
    """What was sent, and what was acknowledged."""

    def __init__(self, client, options):
        self.client, self.random = client, random.Random(options.seed)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.customers = [smoke.Customer(f"k{number}") for number in range(options.customers)]
        self.todo = collections.deque()
        self.numbers = collections.Counter()
        self.events = {}  # id -> (customer, ledger key or None, credits)
        self.spends = {}  # key -> (customer, credits) once answered with 200
        self.counts = collections.Counter()
        for customer in self.customers:
            for name, key, worth in (("customer.subscription.created", None, 0),
                                     ("invoice.paid", "invoice#in_{}0001", PRO), ("checkout.session.completed", None, 0)):
                body = customer.event(name)
                self.todo.append(("event", customer, body, key and key.format(customer.mark), worth))

    def next(self):
        with self.lock:
            if self.todo and self.random.random() < 0.7:
                return self.todo.popleft()
            customer = self.random.choice(self.customers)
            self.numbers[customer.user] += 1
            number = self.numbers[customer.user]
            if self.random.random() < 0.3:
                return ("spend", customer, f"job-{customer.mark}-{number}", None, self.random.randrange(1, 200))
            event = json.loads(customer.event("checkout.session.completed.pack"))
            event["id"] = f"evt_{customer.mark}{number}"
            session = event["data"]["object"]
            session["id"], session["payment_intent"] = f"cs_test_{customer.mark}{number}", f"pi_{customer.mark}{number}"
            return ("event", customer, json.dumps(event), f"session#{session['id']}", PACK)

    def work(self):
        while not self.stopping.is_set():
            item = self.next()
            if not self.send(item):
                with self.lock:
                    self.todo.append(item)
                time.sleep(0.05)

    def send(self, item):
        """Sends one thing; False when it was not acknowledged and must be sent again."""
        what, customer, body, key, worth = item
        with self.lock:
            times = 2 if what == "event" and self.random.random() < 0.1 else 1
        acknowledged = False
        for _ in range(times):
            try:
                if what == "event":
                    status, _answer = self.client.post(body)
                else:
                    headers = {**self.client.auth, "content-type": "application/json", "idempotency-key": body}
                    status, _answer = smoke.request("POST", f"{self.client.url}/users/{customer.user}/credits/consume",
                                                    json.dumps({"amount": worth}).encode(), headers)
            except OSError:
                self.counts["unanswered"] += 1
                continue
            self.counts[f"{what} {status}"] += 1
            with self.lock:
                if what == "event" and status == 200:
                    acknowledged = True
                    self.events[json.loads(body)["id"]] = (customer, key, worth)
                elif what == "spend" and status in (200, 402, 404):
                    # 402 and 404: not enough credits, or a user of whom no event was applied yet. Nothing was spent.
                    acknowledged = True
                    if status == 200:
                        self.spends[body] = (customer, worth)
        return acknowledged

    def finish(self):
        """Sends what was never acknowledged, on a stack that lives."""
        left, self.todo = list(self.todo), collections.deque()
        smoke.check(f"the {len(left)} that were not acknowledged are now", all(self.send(item) for item in left))


def at_rest(client):
    """Whether nothing is queued, in flight or delayed anywhere."""
    told = smoke.request("GET", client.url + "/local/status")[1]
    busy = [queue for queue in told["queues"] if any(queue.get(count) for count in ("visible", "in_flight", "delayed"))]
    return told["at_rest"] and not busy


def whole_ledger(client, user):
    entries, cursor = [], ""
    while True:
        status, page = smoke.request("GET", f"{client.url}/users/{user}/ledger{cursor}", headers=client.auth)
        if status != 200:
            return None
        entries += page["entries"]
        if not page.get("next"):
            return entries
        cursor = "?next=" + page["next"].replace("#", "%23")


def verify(client, load):
    outcomes = collections.Counter()
    for event in load.events:
        status, told = smoke.request("GET", f"{client.url}/admin/stripe/webhook-logs/{event}", headers=ADMIN)
        outcome = told["event"]["status"] if status == 200 else f"HTTP {status}"
        outcomes[outcome] += 1
        if outcome != "processed":
            print(f"       {event}: {told}", flush=True)
    smoke.check(f"each of {len(load.events)} events is processed", set(outcomes) <= {"processed"}, dict(outcomes))

    wrong = []
    for customer in load.customers:
        keys = [key for who, key, _ in load.events.values() if who is customer and key]
        keys += [f"consume#{key}" for key, (who, _) in load.spends.items() if who is customer]
        due = sum(worth for who, _, worth in load.events.values() if who is customer)
        due -= sum(worth for who, worth in load.spends.values() if who is customer)
        ledger = whole_ledger(client, customer.user) or []
        seen = collections.Counter(entry["key"] for entry in ledger)
        account = client.account(customer.user)[1]
        deltas = sum(entry["delta"] for entry in ledger)
        if (seen, account.get("credits"), deltas, account.get("tier")) != (collections.Counter(keys), due, due, "pro"):
            odd = (seen - collections.Counter(keys)) + (collections.Counter(keys) - seen)
            wrong.append(f"{customer.user}: {account.get('credits')} credits, entries {deltas}, due {due}; odd {dict(odd)}")
    smoke.check(f"{len(load.customers)} customers have what they bought less what they spent, each document once", not wrong,
                "\n         ".join(wrong[:5]))


def main():
    options = arguments()
    if options.build:
        print(f"  build: {options.build}", flush=True)
        smoke.subprocess.run(smoke.shlex.split(options.build), cwd=smoke.ROOT, check=True)
    stack = smoke.Stack(options)
    client = smoke.Client(stack.url, options)
    load, chance = Load(client, options), random.Random(options.seed + 1)
    print(f"{options.kills} kills under load, seed {options.seed}")
    started = time.monotonic()
    try:
        stack.start(600)
        workers = [threading.Thread(target=load.work, daemon=True) for _ in range(options.connections)]
        for worker in workers:
            worker.start()
        for number in range(options.kills):
            time.sleep(chance.uniform(0.0, options.longest_life))
            stack.kill()
            stack.start(60)
        load.stopping.set()
        for worker in workers:
            worker.join()
        load.finish()
        smoke.eventually("the queues are empty and nothing is under way", True, lambda: at_rest(client), options.settle_seconds)
        verify(client, load)
    except smoke.NoStack as error:
        smoke.check("the stack answers", False, error)
    finally:
        if smoke.failed:
            print(stack.tail())
        stack.remove()
    acknowledged = ", ".join(f"{count} {what}" for what, count in sorted(load.counts.items()))
    print(f"{options.kills} kills in {time.monotonic() - started:.0f} s: {acknowledged}; seed {options.seed}")
    print(f"{smoke.passed} passed, {smoke.failed} failed")
    return 1 if smoke.failed else 0


if __name__ == "__main__":
    sys.exit(main())
