"""Reads a catalog and Stripe events, before and since basil, into plain facts. judge.py knows their worth."""

import collections

DAY = 86_400
STATUS_ORDER = ["incomplete", "trialing", "active", "past_due", "unpaid", "paused"]
TERMINAL = ("canceled", "incomplete_expired")
DEFAULTS = {
    "signup_credits": 500, "signup_expires_days": 0, "free_credits": 0, "past_due_grace_days": 7,
    "addons": "reset", "trials": "once", "plan_change": "at_once", "spend_order": "plan_first",
    "pause_collection": "keep", "refunded_access": "keep",
}
Item = collections.namedtuple("Item", "id price plan quantity start end amount")
Line = collections.namedtuple("Line", "item price plan pack quantity amount net start end flagged")


class Catalog:
    def __init__(self, source):
        self.tiers, self.policy = source["tiers"], {**DEFAULTS, **source["policy"]}
        self.plans = {plan["name"]: plan for plan in source.get("plan", [])}
        self.packs = {pack["name"]: pack for pack in source.get("pack", []) + source.get("product", [])}
        self.plan_of = {price: plan["name"] for plan in self.plans.values() for price in plan["prices"]}
        self.pack_of = {price: pack["name"] for pack in self.packs.values() for price in pack["prices"]}

    def amount(self, plan, quantity, trial=False):
        plan = self.plans[plan]
        credits = plan.get("trial_credits", plan["credits"]) if trial else plan["credits"]
        return credits * (quantity if plan.get("per") == "seat" else 1)

    def rank(self, plan):
        return self.tiers[self.plans[plan]["tier"]]


class Snapshot:
    """What one event shows of a subscription."""
    def __init__(self, event, catalog):
        o = event["data"]["object"]
        self.created, self.event, self.status = event["created"], event["id"], o["status"]
        self.reason = (o.get("cancellation_details") or {}).get("reason")
        self.ended = o.get("ended_at") or event["created"]
        self.pause_collection = bool(o.get("pause_collection"))
        self.days_until_due = o.get("collection_method") == "send_invoice" and o.get("days_until_due") or 0
        self.items = {}
        for item in o["items"]["data"]:
            price, whole = item["price"], item if "current_period_end" in item else o
            self.items[item["id"]] = Item(
                item["id"], price["id"], catalog.plan_of.get(price["id"]), item.get("quantity", 1),
                whole.get("current_period_start"), whole.get("current_period_end"), price.get("unit_amount"))
        self.cancel_at = o.get("cancel_at")
        if o.get("cancel_at_period_end"):
            self.cancel_at = o.get("current_period_end") or min(item.end for item in self.items.values())

    def order(self):
        rank = STATUS_ORDER.index(self.status) if self.status in STATUS_ORDER else -1
        items = list(self.items.values())
        return (self.created, self.status in TERMINAL, max([i.start for i in items], default=0), rank,
                [i.price for i in items], [i.quantity for i in items], self.event)


class Invoice:  # a paid one
    def __init__(self, event, catalog, heard):
        o = event["data"]["object"]
        self.id, self.created, self.heard = o["id"], event["created"], heard
        self.reason, self.total = o.get("billing_reason"), o.get("total", 0)
        self.made = o.get("created", self.created)
        self.paid = self.total if o.get("paid_out_of_band") else o.get("amount_paid", 0)
        details = (o.get("parent") or {}).get("subscription_details") or {}
        self.sub = details.get("subscription") or o.get("subscription")
        self.lines = []
        for line in o["lines"]["data"]:
            parent = line.get("parent") or {}
            part = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
            price = (line.get("price") or {}).get("id")
            price = price or ((line.get("pricing") or {}).get("price_details") or {}).get("price")
            self.sub = self.sub or part.get("subscription") or line.get("subscription")
            item, period = part.get("subscription_item") or line.get("subscription_item"), line["period"]
            flagged = bool(part.get("proration", line.get("proration", False)))
            off, amount = sum(abs(part["amount"]) for part in line.get("discount_amounts") or ()), line["amount"]
            line = Line(item, price, catalog.plan_of.get(price), catalog.pack_of.get(price),
                        line.get("quantity", 1), amount, amount - (off if amount > 0 else -off),
                        period["start"], period["end"], flagged)
            # A change that was changed again in the same second is both charged and credited.
            undone = [one for one in self.lines if one._replace(amount=amount, net=line.net) == line
                      and flagged and one.amount * line.amount < 0][:1]
            self.lines = [one for one in self.lines if one not in undone] + [line][bool(undone):]


class Session:
    """A paid session of mode `payment`."""
    def __init__(self, event, heard):
        o = event["data"]["object"]
        self.id, self.created, self.heard = o["id"], event["created"], heard
        self.total, self.invoice = o.get("amount_total") or 0, o.get("invoice")
        meta = o.get("metadata") or {}
        self.name, self.quantity = meta.get("pack") or meta.get("product"), int(meta.get("quantity", 1))
        self.plan = meta.get("plan") if "mode" not in meta else None


def user_in(thing):
    metadata = (thing or {}).get("metadata") or {}
    return metadata.get("user_id") or metadata.get("client_id")


class Facts:
    """All that was heard so far. `heard` counts the steps of the life."""
    def __init__(self, catalog):
        self.catalog, self.latest = catalog, 0
        self.snapshots, self.invoices, self.sessions = {}, {}, {}
        self.seen, self.owners, self.customer_owner, self.clock = set(), {}, {}, {}
        self.paid_by = collections.defaultdict(set)  # document -> payments
        self.deleted_customers, self.customer_of, self.same = {}, {}, {}  # same: charge -> payment intent
        # (created, payment, amount, status) of each refund or dispute; of a charge what it charged
        self.refunds, self.disputes, self.charges = (collections.defaultdict(list) for _ in range(3))
        self.payment_news = []  # (created, payment)
        self.payment = lambda name: self.same.get(name, name)

    def hear(self, event, heard):
        if event["id"] in self.seen:
            return
        self.seen.add(event["id"])
        created, kind, o = event["created"], event["type"], event["data"]["object"]
        self.latest = max(self.latest, created)
        intent, charge = o.get("payment_intent"), o.get("charge")
        if kind.startswith("customer.subscription."):
            self.snapshots.setdefault(o["id"], []).append(Snapshot(event, self.catalog))
            self.snapshots[o["id"]].sort(key=Snapshot.order)
            self.own(o["id"], user_in(o), event)
        elif kind == "invoice.paid":
            invoice = self.invoices.setdefault(o["id"], Invoice(event, self.catalog, heard))
            self.paid_by[invoice.id] |= {payment for payment in (intent, charge) if payment}
            self.same |= {charge: intent} if intent and charge else {}
            details = (o.get("parent") or {}).get("subscription_details") or o.get("subscription_details")
            user = next(filter(None, map(user_in, [details, o, *o["lines"]["data"]])), None)
            self.own(invoice.sub or invoice.id, user, event)
            self.own(invoice.id, user, event)
        elif kind == "invoice_payment.paid":
            self.paid_by[o["invoice"]].add(o["payment"].get("payment_intent") or o["payment"].get("charge"))
        elif kind in ("checkout.session.completed", "checkout.session.async_payment_succeeded"):
            user = user_in(o) or o.get("client_reference_id")
            if o.get("subscription"):
                self.own(o["subscription"], user, event)
            if o["mode"] == "payment" and o["payment_status"] in ("paid", "no_payment_required"):
                self.sessions.setdefault(o["id"], Session(event, heard))
                self.own(o["id"], user, event)
                self.paid_by[o["id"]] |= {intent} if intent else set()
        elif kind == "charge.refunded":
            self.pay(o["id"], intent, created)
            self.charges[o["id"]].append((created, intent or o["id"], o["amount_refunded"], o["amount"]))
        elif kind.startswith(("refund.", "charge.dispute.")):
            self.pay(charge, intent, created)
            news = self.refunds if kind.startswith("refund.") else self.disputes
            news[o["id"]].append((created, intent or charge, o["amount"], o["status"]))
        elif kind == "customer.deleted":
            self.deleted_customers[o["id"]] = created

    def pay(self, charge, intent, created):
        self.same |= {charge: intent} if intent and charge else {}
        self.payment_news.append((created, intent or charge))

    def newest(self, user):
        """The newest `created` heard of an account, and whether it has a test clock."""
        newest, clocked = self.clock.get(user, (0, False))
        mine = {self.payment(p) for document, payments in self.paid_by.items()
                if self.owner(document) == user for p in payments}
        return max([newest] + [at for at, p in self.payment_news if self.payment(p) in mine]), clocked

    def own(self, document, user, event):
        o = event["data"]["object"]
        customer = o.get("customer")
        self.customer_of.setdefault(document, customer)
        if user:
            self.owners.setdefault(document, user)
            if customer:
                self.customer_owner.setdefault(customer, user)
        owner = self.owner(document)
        newest, clocked = self.clock.get(owner, (0, False))
        self.clock[owner] = max(newest, event["created"]), clocked or "items" in o and bool(o.get("test_clock"))

    def owner(self, document):
        return self.owners.get(document) or self.customer_owner.get(self.customer_of.get(document))

    def paid(self, document):
        return {self.payment(name) for name in self.paid_by.get(document, ())}

    def payments(self, document):
        mine, session = self.paid(document), self.sessions.get(document)
        tied = {other for other in self.paid_by if mine & self.paid(other)} | {session and session.invoice}
        return mine.union(*map(self.paid, tied))

    def went_back(self, document, at, now):
        """Minor units that had gone back at a moment, as is known now: no more than was paid. A dispute that was
        won takes none."""
        back = 0
        for payment in self.payments(document):
            disputed = sum(amount for start, end, won, amount in self.dispute_spans(payment)
                           if start <= at and not (won and end <= now))
            refunded, charges = self.refunded(payment, at), self.of_payment(self.charges, payment)
            back += max(refunded, min([refunded + disputed, *(states[0][3] for states in charges)]))
        invoice = self.invoices.get(document)
        return min(back, invoice.paid) if invoice else back

    def of_payment(self, news, payment):
        return [states for states in news.values() if self.payment(states[0][1]) == payment]

    def refunded(self, payment, at):
        single = failed = 0
        for states in self.of_payment(self.refunds, payment):
            begun = min([s[0] for s in states if s[3] == "succeeded"], default=0)
            if any(s[3] in ("failed", "canceled") for s in states):
                failed += states[0][2] if begun <= at else 0
            elif begun and begun <= at:
                single += states[0][2]
        charges = [s for states in self.of_payment(self.charges, payment) for s in states if s[0] <= at]
        return max(single, max(charges)[2] - failed if charges else 0)

    def dispute_spans(self, payment):
        """(opened, closed or None, whether it was won, amount) of each dispute that takes credits."""
        for states in self.of_payment(self.disputes, payment):
            opened = [s for s in states if s[3] in ("needs_response", "under_review", "lost")]
            won = [s[0] for s in states if s[3] == "won"]
            closed = won or [s[0] for s in states if s[3] == "lost"]
            if opened:
                yield min(opened)[0], min(closed, default=None), bool(won), max(opened)[2]

    def dispute_open(self, document, at):
        return any(start <= at and (end is None or at < end) for payment in self.payments(document)
                   for start, end, _, _ in self.dispute_spans(payment))
