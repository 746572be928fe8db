"""Reads a catalog and Stripe events, of API versions before and since basil, into plain facts.

Nothing here knows what a fact is worth; judge.py decides that."""

import collections
import json

DAY = 86_400
STATUS_ORDER = ["incomplete", "trialing", "active", "past_due", "unpaid", "paused"]
TERMINAL = ("canceled", "incomplete_expired")
Item = collections.namedtuple("Item", "id price plan quantity start end amount")
Line = collections.namedtuple("Line", "item price plan pack quantity amount start end flagged")


class Catalog:
    def __init__(self, source):
        if isinstance(source, str):
            try:
                import tomllib
            except ImportError:  # before Python 3.11
                source = json.loads(source)
            else:
                source = tomllib.loads(source)
        self.tiers = source["tiers"]
        self.policy = {
            "signup_credits": 500,
            "signup_expires_days": 0,
            "free_credits": 0,
            "addons": "reset",
            "plan_change": "at_once",
            "trials": "once",
            "spend_order": "plan_first",
            "past_due_grace_days": 7,
            "pause_collection": "keep",
            "refunded_access": "keep",
            "client_reference_id": "user",
            **source["policy"],
        }
        self.plans = {plan["name"]: plan for plan in source.get("plan", [])}
        self.packs = {pack["name"]: pack for pack in source.get("pack", []) + source.get("product", [])}
        self.plan_of = {price: plan["name"] for plan in self.plans.values() for price in plan["prices"]}
        self.pack_of = {price: pack["name"] for pack in self.packs.values() for price in pack["prices"]}

    def amount(self, plan, quantity):
        plan = self.plans[plan]
        return plan["credits"] * (quantity if plan.get("per") == "seat" else 1)

    def trial_amount(self, plan, quantity):
        plan = self.plans[plan]
        credits = plan.get("trial_credits", plan["credits"])
        return credits * (quantity if plan.get("per") == "seat" else 1)

    def rank(self, plan):
        return self.tiers[self.plans[plan]["tier"]]


class Snapshot:
    """What one event shows of a subscription."""

    def __init__(self, event, catalog):
        o = event["data"]["object"]
        self.sub, self.created, self.event = o["id"], event["created"], event["id"]
        self.status = o["status"]
        self.reason = (o.get("cancellation_details") or {}).get("reason")
        self.ended = o.get("ended_at") or event["created"]
        self.pause_collection = bool(o.get("pause_collection"))
        send = o.get("collection_method") == "send_invoice"
        self.days_until_due = o.get("days_until_due") or 0 if send else 0
        self.cancel_at = o.get("cancel_at")
        if o.get("cancel_at_period_end"):
            self.cancel_at = o.get("current_period_end") or min(
                item["current_period_end"] for item in o["items"]["data"]
            )
        self.items = {}
        for item in o["items"]["data"]:
            price = item["price"]
            self.items[item["id"]] = Item(
                item["id"],
                price["id"],
                catalog.plan_of.get(price["id"]),
                item.get("quantity", 1),
                item.get("current_period_start", o.get("current_period_start")),
                item.get("current_period_end", o.get("current_period_end")),
                price.get("unit_amount"),
            )

    def order(self):
        rank = STATUS_ORDER.index(self.status) if self.status in STATUS_ORDER else -1
        items = list(self.items.values())
        return (
            self.created,
            self.status in TERMINAL,
            max([i.start for i in items], default=0),
            rank,
            [i.price for i in items],
            [i.quantity for i in items],
            self.event,
        )


class Invoice:
    """A paid invoice."""

    def __init__(self, event, catalog, heard):
        o = event["data"]["object"]
        self.id, self.created, self.heard = o["id"], event["created"], heard
        self.reason, self.total, self.paid = (
            o.get("billing_reason"),
            o.get("total", 0),
            o.get("amount_paid", 0),
        )
        if o.get("paid_out_of_band"):
            self.paid = self.total
        details = ((o.get("parent") or {}).get("subscription_details")) or {}
        self.sub = details.get("subscription") or o.get("subscription")
        self.lines = []
        for line in o["lines"]["data"]:
            parent = line.get("parent") or {}
            part = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
            price = (line.get("price") or {}).get("id")
            if not price:
                price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
            self.sub = self.sub or part.get("subscription") or line.get("subscription")
            self.lines.append(
                Line(
                    part.get("subscription_item") or line.get("subscription_item"),
                    price,
                    catalog.plan_of.get(price),
                    catalog.pack_of.get(price),
                    line.get("quantity") or 1,
                    line["amount"],
                    line["period"]["start"],
                    line["period"]["end"],
                    bool(part.get("proration", line.get("proration", False))),
                )
            )


class Session:
    """A paid session of mode `payment`."""

    def __init__(self, event, heard):
        o = event["data"]["object"]
        self.id, self.created, self.heard = o["id"], event["created"], heard
        self.total, self.invoice = o.get("amount_total") or 0, o.get("invoice")
        meta = o.get("metadata") or {}
        self.name = meta.get("pack") or meta.get("product")
        self.plan = meta.get("plan") if "mode" not in meta else None
        self.quantity = int(meta.get("quantity", 1))


def user_in(metadata):
    return (metadata or {}).get("user_id") or (metadata or {}).get("client_id")


class Facts:
    """All that was heard so far. `heard` counts the steps of the life."""

    def __init__(self, catalog):
        self.catalog = catalog
        self.snapshots, self.invoices, self.sessions = {}, {}, {}
        self.seen, self.owners, self.customer_owner, self.clock = set(), {}, {}, {}
        self.paid_by = collections.defaultdict(set)  # document -> payments
        self.same = {}  # charge -> payment intent
        self.refunds, self.charges, self.disputes = {}, {}, collections.defaultdict(list)
        self.deleted_customers, self.customer_of = {}, {}
        self.latest = 0
        self.payment_news = []  # (created, payment)

    def hear(self, event, heard):
        if event["id"] in self.seen:
            return
        self.seen.add(event["id"])
        self.latest = max(self.latest, event["created"])
        kind, o = event["type"], event["data"]["object"]
        if kind.startswith("customer.subscription."):
            snapshot = Snapshot(event, self.catalog)
            self.snapshots.setdefault(o["id"], []).append(snapshot)
            self.snapshots[o["id"]].sort(key=Snapshot.order)
            self.own(o["id"], user_in(o.get("metadata")), o.get("customer"), event, o.get("test_clock"))
        elif kind == "invoice.paid":
            invoice = Invoice(event, self.catalog, heard)
            self.invoices.setdefault(invoice.id, invoice)
            for payment in (o.get("payment_intent"), o.get("charge")):
                if payment:
                    self.paid_by[invoice.id].add(payment)
            if o.get("payment_intent") and o.get("charge"):
                self.same[o["charge"]] = o["payment_intent"]
            details = ((o.get("parent") or {}).get("subscription_details")) or o.get("subscription_details")
            user = user_in((details or {}).get("metadata")) or user_in(o.get("metadata"))
            for line in o["lines"]["data"]:
                user = user or user_in(line.get("metadata"))
            self.own(invoice.sub or invoice.id, user, o.get("customer"), event)
            self.own(invoice.id, user, o.get("customer"), event)
        elif kind == "invoice_payment.paid":
            payment = o["payment"].get("payment_intent") or o["payment"].get("charge")
            self.paid_by[o["invoice"]].add(payment)
        elif kind in ("checkout.session.completed", "checkout.session.async_payment_succeeded"):
            user = user_in(o.get("metadata")) or o.get("client_reference_id")
            if o.get("subscription"):
                self.own(o["subscription"], user, o.get("customer"), event)
            if o["mode"] == "payment" and o["payment_status"] in ("paid", "no_payment_required"):
                self.sessions.setdefault(o["id"], Session(event, heard))
                self.own(o["id"], user, o.get("customer"), event)
                if o.get("payment_intent"):
                    self.paid_by[o["id"]].add(o["payment_intent"])
        elif kind == "charge.refunded":
            self.pay(o["id"], o.get("payment_intent"), event["created"])
            self.charges.setdefault(o["id"], []).append((event["created"], o["amount_refunded"]))
        elif kind.startswith("refund."):
            self.pay(o.get("charge"), o.get("payment_intent"), event["created"])
            known = self.refunds.setdefault(o["id"], [])
            known.append(
                (event["created"], o.get("payment_intent") or o.get("charge"), o["amount"], o["status"])
            )
        elif kind.startswith("charge.dispute."):
            self.pay(o.get("charge"), o.get("payment_intent"), event["created"])
            self.disputes[o["id"]].append(
                (event["created"], o.get("payment_intent") or o.get("charge"), o["amount"], o["status"])
            )
        elif kind == "customer.deleted":
            self.deleted_customers[o["id"]] = event["created"]

    def pay(self, charge, intent, created):
        if charge and intent:
            self.same[charge] = intent
        self.payment_news.append((created, intent or charge))

    def newest(self, user):
        """The newest `created` heard of an account, and whether it has a test clock."""
        newest, clocked = self.clock.get(user, (0, False))
        mine = {
            self.same.get(p, p)
            for document, payments in self.paid_by.items()
            if self.owner(document) == user
            for p in payments
        }
        return max([newest] + [at for at, p in self.payment_news if self.same.get(p, p) in mine]), clocked

    def own(self, document, user, customer, event, test_clock=None):
        self.customer_of.setdefault(document, customer)
        if user:
            self.owners.setdefault(document, user)
            if customer:
                self.customer_owner.setdefault(customer, user)
        owner = self.owner(document)
        newest, clocked = self.clock.get(owner, (0, False))
        self.clock[owner] = (max(newest, event["created"]), clocked or bool(test_clock))

    def owner(self, document):
        return self.owners.get(document) or self.customer_owner.get(self.customer_of.get(document))

    # What went back of a document's payments, as of a moment.

    def payments(self, document):
        mine = {self.same.get(payment, payment) for payment in self.paid_by.get(document, ())}
        tied = {
            other
            for other in self.paid_by
            if mine & {self.same.get(payment, payment) for payment in self.paid_by[other]}
        }
        session = self.sessions.get(document)
        for other in tied | ({session.invoice} if session and session.invoice else set()):
            mine |= {self.same.get(payment, payment) for payment in self.paid_by.get(other, ())}
        return mine

    def went_back(self, document, at, now):
        """Minor units that had gone back at a moment, as is known now: a dispute that was won took nothing."""
        return sum(
            self.refunded(payment, at)
            + sum(
                amount
                for start, end, won, amount in self.dispute_spans(payment)
                if start <= at and not (won and end <= now)
            )
            for payment in self.payments(document)
        )

    def refunded(self, payment, at):
        single = failed = 0
        for states in self.refunds.values():
            if self.same.get(states[0][1], states[0][1]) != payment:
                continue
            begun = min([s[0] for s in states if s[3] == "succeeded"], default=0)
            if any(s[3] in ("failed", "canceled") for s in states):
                failed += states[0][2] if begun <= at else 0
            elif begun and begun <= at:
                single += states[0][2]
        charges = [
            max(seen)[1]
            for charge, states in self.charges.items()
            if self.same.get(charge, charge) == payment
            for seen in [[s for s in states if s[0] <= at]]
            if seen
        ]
        return max(single, sum(charges) - failed if charges else 0)

    def dispute_spans(self, payment):
        """(opened, closed or None, whether it was won, amount) of each dispute that takes credits."""
        for states in self.disputes.values():
            if self.same.get(states[0][1], states[0][1]) != payment:
                continue
            opened = [s for s in states if s[3] in ("needs_response", "under_review", "lost")]
            won = [s[0] for s in states if s[3] == "won"]
            closed = won or [s[0] for s in states if s[3] == "lost"]
            if opened:
                yield min(opened)[0], min(closed, default=None), bool(won), max(opened)[2]

    def dispute_open(self, document, at):
        return any(
            start <= at and (end is None or at < end)
            for payment in self.payments(document)
            for start, end, _, _ in self.dispute_spans(payment)
        )
