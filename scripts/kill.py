#!/usr/bin/env python3
"""Kills the local stack (kill -9) under load, again and again, and checks that every acknowledged event took
effect once.

Customers buy subscriptions and packs and spend credits, over many connections at once and with duplicates. A
request without an answer is sent again later, as Stripe and a careful app do. At the end every event must be
`processed` in the log, every document must be in the ledger once, every balance must be the sum of what was
bought and spent, and the queues must be empty.

    scripts/kill.py                     50 kills
    scripts/kill.py --kills 5
    scripts/kill.py --real-binaries     with the compiled functions
    scripts/kill.py --seed 7            the same customers and moments again, as far as timing allows
"""

import collections
import json
import random
import threading
import time

import shared
import stack
from stack import PACK, PRO, check, request

ADMIN = {"authorization": "Bearer admin-local"}


def arguments():
    parser = shared.parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--customers", type=int, default=30)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--max-life", type=float, default=2.0,
                        help="seconds between a start and the next kill")
    parser.add_argument("--real-binaries", action="store_true", help="run the compiled functions")
    parser.add_argument("--settle-seconds", type=float, default=120,
                        help="how long the queues may take to become empty; a message that waits for its "
                             "first retry takes 300")
    return parser.parse_args()


class Load:
    """What was sent, and what was acknowledged."""

    def __init__(self, client, options):
        self.client, self.random = client, random.Random(options.seed)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.customers = [stack.Customer(f"k{number}") for number in range(options.customers)]
        self.todo = collections.deque()
        self.numbers = collections.Counter()
        self.events = {}  # id -> (customer, ledger key or None, credits)
        self.spends = {}  # key -> (customer, credits), if answered with 200
        self.counts = collections.Counter()
        for customer in self.customers:
            for name, key, worth in (("customer.subscription.created", None, 0),
                                     ("invoice.paid", f"invoice#in_{customer.mark}0001", PRO),
                                     ("checkout.session.completed", None, 0)):
                self.todo.append(("event", customer, customer.event(name), key, worth))

    def next(self):
        with self.lock:
            if self.todo and self.random.random() < 0.7:
                return self.todo.popleft()
            customer = self.random.choice(self.customers)
            self.numbers[customer.user] += 1
            number = self.numbers[customer.user]
            if self.random.random() < 0.3:
                amount = self.random.randrange(1, 200)
                return ("spend", customer, f"job-{customer.mark}-{number}", None, amount)
            event = json.loads(customer.event("checkout.session.completed.pack"))
            event["id"] = f"evt_{customer.mark}{number}"
            session = event["data"]["object"]
            session["id"] = f"cs_test_{customer.mark}{number}"
            session["payment_intent"] = f"pi_{customer.mark}{number}"
            return ("event", customer, json.dumps(event), f"session#{session['id']}", PACK)

    def work(self):
        while not self.stopping.is_set():
            item = self.next()
            if not self.send(item):
                with self.lock:
                    self.todo.append(item)
                time.sleep(0.05)

    def send(self, item):
        """Sends one item, sometimes twice. Returns whether it was acknowledged."""
        what, customer, body, key, worth = item
        with self.lock:
            times = 2 if what == "event" and self.random.random() < 0.1 else 1
        acknowledged = False
        for _ in range(times):
            try:
                if what == "event":
                    status, _answer = self.client.post(body)
                else:
                    status, _answer = self.client.spend(customer.user, worth, body)
            except OSError:
                self.counts["unanswered"] += 1
                continue
            self.counts[f"{what} {status}"] += 1
            with self.lock:
                if what == "event" and status == 200:
                    acknowledged = True
                    self.events[json.loads(body)["id"]] = (customer, key, worth)
                elif what == "spend" and status in (200, 402, 404):
                    # 402: not enough credits. 404: no event of the user is applied yet. Both spend nothing.
                    acknowledged = True
                    if status == 200:
                        self.spends[body] = (customer, worth)
        return acknowledged

    def finish(self):
        """Sends everything that was never acknowledged, to a stack that stays up."""
        left, self.todo = list(self.todo), collections.deque()
        check(f"the {len(left)} unacknowledged items are acknowledged now", all(self.send(item)
                                                                                for item in left))


def at_rest(client):
    """Whether no message is queued, in flight or delayed."""
    status = request("GET", client.url + "/local/status")[1]
    counts = ("visible", "in_flight", "delayed")
    return status["at_rest"] and not any(queue.get(count) for queue in status["queues"] for count in counts)


def verify(client, load):
    outcomes = collections.Counter()
    for event in load.events:
        status, answer = request("GET", f"{client.url}/admin/stripe/webhook-logs/{event}", headers=ADMIN)
        outcome = answer["event"]["status"] if status == 200 else f"HTTP {status}"
        outcomes[outcome] += 1
        if outcome != "processed":
            print(f"       {event}: {answer}", flush=True)
    check(f"each of {len(load.events)} events is processed", set(outcomes) <= {"processed"}, dict(outcomes))

    wrong = []
    for customer in load.customers:
        keys = [key for who, key, _ in load.events.values() if who is customer and key]
        keys += [f"consume#{key}" for key, (who, _) in load.spends.items() if who is customer]
        due = sum(worth for who, _, worth in load.events.values() if who is customer)
        due -= sum(worth for who, worth in load.spends.values() if who is customer)
        ledger = client.ledger(customer.user) or []
        seen, wanted = collections.Counter(entry["key"] for entry in ledger), collections.Counter(keys)
        account = client.account(customer.user)[1]
        credits, deltas = account.get("credits"), sum(entry["delta"] for entry in ledger)
        if (seen, credits, deltas, account.get("tier")) != (wanted, due, due, "pro"):
            odd = dict((seen - wanted) + (wanted - seen))
            wrong.append(f"{customer.user}: {credits} credits, entries {deltas}, due {due}, wrong keys {odd}")
    check(f"{len(load.customers)} customers have what they bought less what they spent, each document once",
          not wrong, "\n         ".join(wrong[:5]))


def main():
    options = arguments()
    chance = random.Random(options.seed + 1)
    print(f"{options.kills} kills under load, seed {options.seed}")
    with stack.Stack(options.real_binaries) as local:
        local.build()
        client = stack.Client(local.url)
        load = Load(client, options)
        started = time.monotonic()
        local.start()
        workers = [threading.Thread(target=load.work, daemon=True) for _ in range(options.connections)]
        for worker in workers:
            worker.start()
        for _ in range(options.kills):
            time.sleep(chance.uniform(0.0, options.max_life))
            local.kill()
            local.start()
        load.stopping.set()
        for worker in workers:
            worker.join()
        load.finish()
        stack.eventually("the queues are empty", True, lambda: at_rest(client), options.settle_seconds)
        verify(client, load)
    acknowledged = ", ".join(f"{count} {what}" for what, count in sorted(load.counts.items()))
    print(f"{options.kills} kills in {time.monotonic() - started:.0f} s: {acknowledged}; seed {options.seed}")


if __name__ == "__main__":
    stack.run(main)
