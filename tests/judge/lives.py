"""Random catalogs, and random lives in Stripe's shapes before and since basil.

A small Stripe: subscriptions renew, change, pause, fail and end; payments are refunded and disputed; packs are
bought. Times are `"@-86400"` style, relative to the moment of play. With a test clock a life lies ahead of that
moment, so that time passes between its steps.

Left out, because the account does not know when it happened: free credits in an unpaid period between two paid
ones (it counts as access). Left out, because the rules do not say it: signup credits beside a plan for life. Left
out, because the judge does not know when an event arrived: periods in advance beside packs that a period
ends. Not drawn: metered lines, thresholds, moves by an operator."""

import datetime
import random

from facts import DAY
from judge import add_months

MONTH = 30 * DAY


def catalog(rnd):
    """A catalog as a dict; toml() writes it."""
    monthly = rnd.random() < 0.65
    rollover = rnd.choice(
        [None, None, {"percent": 50, "max": 2000, "periods": 1}, {"percent": 30, "max": 900, "periods": 2}]
    )
    over = {"refill": "month"} if monthly else {}
    if rollover:
        over["rollover"] = rollover
    policy = {
        "default_tier": "free",
        "signup_credits": rnd.choice([500, 500, 0]),
        "signup_expires_days": rnd.choice([0, 0, 20]),
        "free_credits": rnd.choice([0, 200]),
        "addons": rnd.choice(["keep", "reset"]),
        "plan_change": rnd.choice(["at_once", "on_payment"]),
        "trials": rnd.choice(["once", "each"]),
        "spend_order": rnd.choice(["plan_first", "expiring_first"]),
        "pause_collection": rnd.choice(["keep", "until_period_end"]),
        "refunded_access": rnd.choice(["keep", "end"]),
        "past_due_grace_days": rnd.choice([7, 3]),
    }
    return {
        "tiers": {"free": 0, "basic": 1, "pro": 2, "biz": 3},
        "policy": policy,
        "plan": [
            {
                "name": "basic",
                "tier": "basic",
                "credits": 1000,
                "trial_credits": 100,
                **over,
                "prices": ["price_basic", "price_basic_year"],
            },
            {
                "name": "pro",
                "tier": "pro",
                "credits": 5000,
                "trial_credits": 300,
                **over,
                "prices": ["price_pro", "price_pro_year"],
            },
            {
                "name": "biz",
                "tier": "biz",
                "credits": 20000,
                **over,
                "prices": ["price_biz", "price_biz_year"],
            },
            {
                "name": "team",
                "tier": "basic",
                "credits": 70,
                "per": "seat",
                **over,
                "prices": ["price_team", "price_team_year"],
            },
            {"name": "idle", "tier": "free", "credits": 0, "prices": ["price_idle"]},
        ],
        "pack": [
            {"name": "pack", "credits": 1000, "expires_days": rnd.choice([0, 90]), "prices": ["price_pack"]},
            {"name": "big", "credits": 3000, "expires_days": 0, "prices": ["price_big"]},
        ],
        "product": [{"name": "course", "credits": 250, "prices": ["price_course"]}],
    }


AMOUNTS = {
    "price_basic": 1000,
    "price_basic_year": 10000,
    "price_pro": 4900,
    "price_pro_year": 49000,
    "price_biz": 19900,
    "price_biz_year": 199000,
    "price_team": 700,
    "price_team_year": 7000,
    "price_idle": 100,
}
# What the sessions of a life have in common.
SESSION = {"customer_details": {"email": "jo@example.com"}, "customer_email": None, "payment_link": None}
CREDITS_PLAN = ["price_basic", "price_pro", "price_biz"]


def toml(source):
    def value(v):
        if isinstance(v, bool):
            return str(v).lower()
        if isinstance(v, (int, float)):
            return str(v)
        if isinstance(v, str):
            return '"%s"' % v
        if isinstance(v, list):
            return "[%s]" % ", ".join(map(value, v))
        return "{ %s }" % ", ".join("%s = %s" % (k, value(x)) for k, x in v.items())

    lines = []
    for name in ("tiers", "policy"):
        lines += ["[%s]" % name] + ["%s = %s" % (k, value(v)) for k, v in source[name].items()]
    for name in ("plan", "pack", "product"):
        for entry in source[name]:
            lines += ["[[%s]]" % name] + ["%s = %s" % (k, value(v)) for k, v in entry.items()]
    return "\n".join(lines) + "\n"


def price_object(price):
    """A price as items and old lines embed it."""
    return {
        "id": price,
        "object": "price",
        "currency": "usd",
        "lookup_key": None,
        "metadata": {},
        "product": "prod_1",
        "unit_amount": AMOUNTS.get(price, 1500),
    }


def plan_object(price):
    """The plan that Stripe shows beside a recurring price."""
    return {"id": price, "object": "plan", "amount": AMOUNTS[price], "product": "prod_1"}


class Sub:
    def __init__(self, life, user, prices, trial_days=0):
        self.id, self.user, self.customer = life.new_id("sub"), user, life.customer
        self.created, self.status = life.t, "trialing" if trial_days else "active"
        self.trial_start = life.t
        self.trial_end = life.t + trial_days * DAY if trial_days else None
        self.items, self.over = {}, {}
        for price, quantity in prices:
            self.add_item(life, price, quantity)
        self.ended, self.reason, self.cancel_at_end, self.paused, self.send_invoice = (
            None,
            None,
            False,
            False,
            False,
        )
        self.schedule = {}
        # A coupon for ever, in percent. Flexible billing may list the discounts of prorations beside them.
        self.coupon, self.itemized = 0, life.rnd.random() < 0.5

    def add_item(self, life, price, quantity):
        item = life.new_id("si")
        end = self.trial_end if self.status == "trialing" else next_end(life, life.t, price)
        self.items[item] = {
            "price": price,
            "quantity": quantity,
            "start": life.t,
            "end": end,
            "anchor": life.t,
            "months": 0,
            "ahead": 0,  # how many periods after this one are billed
        }
        return item


def interval(price):
    return 12 if price.endswith("_year") else 1


def next_end(life, start, price):
    return add_months(start, interval(price))


class Life:
    def __init__(self, rnd, source, base, clocks):
        self.rnd, self.source = rnd, source
        self.reset = source["policy"]["addons"] == "reset"
        self.clocked = rnd.random() < 0.5 and clocks
        self.old = rnd.random() < 0.4  # API version before basil
        # Periods are cut by calendar months, so the life is laid out on true dates.
        self.base, self.n = base, 0
        self.t = base if self.clocked else base - rnd.randrange(20, 500) * DAY - rnd.randrange(DAY)
        self.until = self.t + rnd.randrange(20, 450) * DAY if self.clocked else base - 900
        self.customer, self.subs, self.payments = self.new_id("cus"), [], []
        self.steps, self.batch, self.spends, self.holds = [], [], [], []
        self.clock, self.clearing = None, []  # payments on their way

    def new_id(self, kind):
        self.n += 1
        return "%s_jNONCE%d" % (kind, self.n)

    def tick(self, seconds=None):
        self.t += seconds or self.rnd.randrange(1, 5)

    # Events.

    def emit(self, kind, obj, previous=None):
        self.tick()
        event = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": "2024-06-20" if self.old else "2025-09-30.clover",
            "created": self.t,
            "livemode": False,
            "type": kind,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "data": {"object": obj},
        }
        if previous is not None:
            event["data"]["previous_attributes"] = previous
        self.batch.append(event)

    def cut(self):
        """Ends a step: its events may be sent in any order."""
        if self.clocked:
            if self.clock is None:
                self.clock = {"id": self.new_id("sub"), "si": self.new_id("si")}
            self.emit("customer.subscription.updated", self.clock_sub(), {})
        if self.batch:
            self.steps.append({"send": self.batch, "any_order": True})
            self.batch = []

    def clock_sub(self):
        sub = Sub.__new__(Sub)
        sub.__dict__.update(
            id=self.clock["id"],
            user="USER",
            customer=self.customer,
            created=self.base,
            status="incomplete",
            trial_start=None,
            trial_end=None,
            ended=None,
            reason=None,
            cancel_at_end=False,
            paused=False,
            send_invoice=False,
            items={
                self.clock["si"]: {
                    "price": "price_idle",
                    "quantity": 1,
                    "start": self.base,
                    "end": self.base + MONTH,
                }
            },
        )
        return self.sub_object(sub)

    def sub_object(self, sub):
        items = []
        for item, i in sub.items.items():
            entry = {
                "id": item,
                "object": "subscription_item",
                "quantity": i["quantity"],
                "subscription": sub.id,
                "price": price_object(i["price"]),
                "plan": plan_object(i["price"]),
            }
            if not self.old:
                entry["current_period_start"], entry["current_period_end"] = i["start"], i["end"]
            items.append(entry)
        obj = {
            "id": sub.id,
            "object": "subscription",
            "customer": sub.customer,
            "status": sub.status,
            "livemode": False,
            "created": sub.created,
            "metadata": {"user_id": sub.user},
            "cancel_at_period_end": sub.cancel_at_end and self.old,
            "cancel_at": None,
            "canceled_at": sub.ended,
            "ended_at": sub.ended,
            "cancellation_details": {"reason": sub.reason, "comment": None, "feedback": None},
            "latest_invoice": "in_latest_of_" + sub.id,
            "collection_method": "charge_automatically",
            "days_until_due": None,
            "test_clock": None,
            "trial_start": sub.trial_start if sub.trial_end else None,
            "trial_end": sub.trial_end,
            "pause_collection": {"behavior": "void", "resumes_at": None} if sub.paused else None,
            "items": {"object": "list", "has_more": False, "data": items},
        }
        if sub.send_invoice:
            obj["collection_method"], obj["days_until_due"] = "send_invoice", sub.send_invoice
        if sub.cancel_at_end and not self.old:
            obj["cancel_at"] = min(i["end"] for i in sub.items.values())
        if self.clocked:
            obj["test_clock"] = "clock_1"
        if self.old:
            obj["current_period_start"] = max(i["start"] for i in sub.items.values())
            obj["current_period_end"] = min(i["end"] for i in sub.items.values())
            if len(items) == 1:
                obj["plan"], obj["quantity"] = items[0]["plan"], items[0]["quantity"]
        return obj

    def show(self, sub, kind="updated", previous=None):
        self.emit(
            "customer.subscription." + kind,
            self.sub_object(sub),
            None if kind in ("created", "deleted") else previous or {},
        )

    def line(self, sub, item, price, quantity, amount, start, end, flagged=False):
        off = int(amount * sub.coupon / 100) if sub and item else 0
        if flagged and off and not sub.itemized and sub.coupon < 100:
            amount, off = amount - off, 0
        line = {
            "id": self.new_id("il"),
            "object": "line_item",
            "amount": amount,
            "currency": "usd",
            "quantity": quantity,
            "metadata": {"user_id": sub.user} if sub else {},
            "period": {"start": start, "end": end},
            "discount_amounts": [{"amount": off, "discount": "di_1"}] if off else [],
        }
        if self.old:
            line.update(
                price=price_object(price),
                plan=plan_object(price) if item else None,
                proration=flagged,
                subscription=sub.id if sub else None,
                type="invoiceitem" if flagged or not item else "subscription",
            )
            if item:
                line["subscription_item"] = item
        else:
            line["pricing"] = {
                "type": "price_details",
                "price_details": {"price": price, "product": "prod_1"},
            }
            if item:
                line["parent"] = {
                    "type": "subscription_item_details",
                    "invoice_item_details": None,
                    "subscription_item_details": {
                        "subscription": sub.id,
                        "subscription_item": item,
                        "invoice_item": self.new_id("ii") if flagged else None,
                        "proration": flagged,
                        "proration_details": {"credited_items": None},
                    },
                }
            else:
                line["parent"] = {
                    "type": "invoice_item_details",
                    "subscription_item_details": None,
                    "invoice_item_details": {
                        "invoice_item": self.new_id("ii"),
                        "proration": flagged,
                        "proration_details": {"credited_items": None},
                        "subscription": sub.id if sub else None,
                    },
                }
        return line

    def invoice(self, sub, reason, lines, status="paid", discount=0, balance=0, user=None, pay=None, days=0):
        """`days`: how long the payment takes, as by bank debit."""
        discount += sum(part["amount"] for line in lines for part in line["discount_amounts"])
        total = sum(line["amount"] for line in lines) - discount
        paid = max(0, total - balance) if status == "paid" else 0
        owner = {"user_id": sub.user if sub else user}
        obj = {
            "id": self.new_id("in"),
            "object": "invoice",
            "customer": self.customer,
            "customer_email": "jo@example.com",
            "billing_reason": reason,
            "status": status,
            "amount_paid": paid,
            "amount_due": max(0, total - balance),
            "subtotal": total + discount,
            "total": total,
            "hosted_invoice_url": "https://invoice.stripe.com/i/test",
            "next_payment_attempt": None,
            "test_clock": None,
            "metadata": {},
            "currency": "usd",
            "livemode": False,
            "period_start": self.t - 60,
            "period_end": self.t,
            "attempt_count": 1,
            "created": self.t,
            "lines": {"object": "list", "has_more": False, "data": lines},
        }
        if sub and self.old:
            obj.update(subscription=sub.id, subscription_details={"metadata": owner})
        elif sub:
            obj["parent"] = {
                "type": "subscription_details",
                "quote_details": None,
                "subscription_details": {"subscription": sub.id, "metadata": owner},
            }
        else:
            obj["metadata"] = owner
            obj.update({"subscription": None, "subscription_details": {"metadata": None}} if self.old
                       else {"parent": None})
        if self.old:
            obj.update(paid=status == "paid", paid_out_of_band=False, charge=None, payment_intent=None)
        intent, charge = pay or (self.new_id("pi"), self.new_id("ch"))
        if status != "paid":
            self.emit("invoice.payment_failed", obj)
            return obj
        if self.old and paid:
            obj.update(charge=charge, payment_intent=intent)
        if days:
            self.clearing.append((self.t + days * DAY, obj, intent, charge))
        else:
            self.pay(obj, intent, charge)
        return obj

    def pay(self, obj, intent, charge):
        paid = obj["amount_paid"]
        self.emit("invoice.paid", obj)
        if paid and not self.old:
            self.emit(
                "invoice_payment.paid",
                {
                    "id": self.new_id("inpay"),
                    "object": "invoice_payment",
                    "invoice": obj["id"],
                    "amount_paid": paid,
                    "amount_requested": paid,
                    "currency": "usd",
                    "is_default": True,
                    "livemode": False,
                    "status": "paid",
                    "payment": {"type": "payment_intent", "payment_intent": intent},
                },
            )
        if paid:
            self.payments.append(
                {
                    "pi": intent,
                    "ch": charge,
                    "amount": paid,
                    "back": 0,
                    "disputed": False,
                    "invoice": obj["id"],
                }
            )

    # What happens at Stripe.

    def advance(self, to):
        """Lets time pass: trials end, periods renew."""
        while True:
            due = [
                (min(i["end"] for i in sub.items.values()), n, sub)
                for n, sub in enumerate(self.subs)
                if sub.status in ("active", "trialing", "past_due") and sub.items
            ]
            late = [(s.over["due"], n, s) for n, s in enumerate(self.subs) if "due" in s.over]
            paid = [(one[0], -1, one) for one in sorted(self.clearing, key=lambda one: one[0])[:1]]
            due = [d for d in due + late + paid if d[0] <= to]
            if not due:
                break
            at, n, sub = min(due, key=lambda d: d[:2])
            self.t = max(self.t, at)
            if n < 0:
                self.clearing.remove(sub)
                self.pay(*sub[1:])
                continue
            if at == sub.over.get("due"):
                del sub.over["due"]
                if sub.status == "active" and sub.over.get("unpaid"):
                    sub.status = "past_due"
                    self.show(sub, previous={"status": "active"})
                continue
            self.renew(sub, at)
        self.t = max(self.t, to)

    def renew(self, sub, at):
        if sub.cancel_at_end:
            return self.end(sub, "cancellation_requested", at)
        overdue = False
        if sub.status == "past_due":
            if self.rnd.random() < 0.5:
                return self.end(sub, "payment_failed", self.t)
            # Stripe goes on to the next period, also while the invoice of the last one is unpaid.
            overdue = self.rnd.random() < 0.5
            if not overdue:
                self.pay_late(sub)
                if sub.status == "past_due":
                    return None
        first = sub.status == "trialing"
        if first and self.rnd.random() < 0.25:
            if self.rnd.random() < 0.5:
                return self.end(sub, "cancellation_requested", at)
            sub.status = "paused"
            return self.show(sub)
        sub.status, lines, trial = "past_due" if overdue else "active", [], sub.trial_end
        for item, i in sub.items.items():
            if i["end"] > at:
                continue
            if item in sub.schedule:
                i["price"] = sub.schedule.pop(item)
                self.emit(
                    "subscription_schedule.updated",
                    {
                        "id": self.new_id("sub_sched"),
                        "object": "subscription_schedule",
                        "customer": sub.customer,
                        "status": "active",
                    },
                )
            if trial or i["end"] != add_months(i["anchor"], i["months"] + interval(i["price"])):
                i["anchor"], i["months"] = i["end"], 0
            else:
                i["months"] += interval(i["price"])
            i["start"], i["end"] = i["end"], add_months(i["anchor"], i["months"] + interval(i["price"]))
            if i["ahead"]:
                i["ahead"] -= 1
                continue
            lines.append(
                self.line(
                    sub,
                    item,
                    i["price"],
                    i["quantity"],
                    AMOUNTS[i["price"]] * i["quantity"],
                    i["start"],
                    i["end"],
                )
            )
        self.show(sub, previous={"items": {"data": []}})
        if not lines:
            return None
        pending = [line for line in sub.over.get("lines", [])]
        sub.over["lines"] = []
        self.tick(3600)
        if sub.paused:
            return None  # collection is paused: the invoice is voided
        if overdue or self.rnd.random() < 0.12 and not self.source["policy"]["free_credits"]:
            sub.over["unpaid"] = lines
            self.invoice(sub, "subscription_cycle", lines, "open")
            if sub.send_invoice and not overdue:
                sub.over["due"] = self.t + sub.send_invoice * DAY
                return None  # an invoice that is sent is late when it is due, perhaps in the next period
            sub.status = "past_due"
            return None if overdue else self.show(sub, previous={"status": "active"})
        self.invoice(sub, "subscription_cycle", pending + lines)
        return None

    def pay_late(self, sub):
        lines = sub.over.pop("unpaid", None)
        if lines and (sub.status in ("past_due", "unpaid") or "due" in sub.over):
            sub.over.pop("due", None)
            self.invoice(sub, "subscription_cycle", lines)
            if sub.status != "canceled":
                sub.status = "active"
                self.show(sub, previous={"status": "past_due"})

    def end(self, sub, reason, at):
        sub.status, sub.reason, sub.ended = "canceled", reason, at
        self.show(sub, "deleted")

    def subscribe(self, user="USER"):
        rnd, trial = self.rnd, 0
        price = rnd.choice(
            [
                "price_pro_year",
                "price_pro_year",
                "price_pro",
                "price_biz_year",
                "price_basic",
                "price_basic_year",
                "price_team",
                "price_team_year",
            ]
        )
        quantity = rnd.randrange(1, 6) if "team" in price else 1
        prices = [(price, quantity)]
        if not self.old and "team" not in price and rnd.random() < 0.25:
            prices.append((rnd.choice(["price_team", "price_team_year"]), rnd.randrange(1, 6)))
        if rnd.random() < 0.15:
            trial = rnd.choice([7, 14, 30])
        sub = Sub(self, user, prices, trial)
        sub.send_invoice = rnd.choice([0, 0, 0, 0, 0, 0, 10, 40])
        sub.coupon = rnd.choice([20, 50, 100]) if not self.old and rnd.random() < 0.15 else 0
        self.subs.append(sub)
        begin = rnd.random()
        if begin < 0.08 and not trial and len(sub.items) == 1:
            # The anchor lies ahead: a part of a period first, flagged before basil, and flagged or not since.
            for i in sub.items.values():
                i["end"] = self.t + rnd.randrange(3, 20) * DAY
        if self.old and not trial and rnd.random() < 0.5:
            sub.status = "incomplete"
            self.show(sub, "created")
            sub.status = "active"
            self.show(sub, previous={"status": "incomplete"})
        else:
            self.show(sub, "created")
        lines = []
        for item, i in sub.items.items():
            if 0.08 < begin < 0.16 and not trial and interval(i["price"]) == 1 and not self.old:
                for n in (2, 1):  # backdated: a line for each past period
                    lines.append(
                        self.line(
                            sub,
                            item,
                            i["price"],
                            i["quantity"],
                            AMOUNTS[i["price"]] * i["quantity"],
                            add_months(i["start"], -n),
                            add_months(i["start"], 1 - n),
                        )
                    )
            if begin < 0.08 and not trial and len(sub.items) == 1:
                lines.append(
                    self.line(
                        sub,
                        item,
                        i["price"],
                        i["quantity"],
                        AMOUNTS[i["price"]] * i["quantity"] // 3,
                        i["start"],
                        i["end"],
                        self.old or rnd.random() < 0.5,
                    )
                )
                continue
            amount = 0 if trial else AMOUNTS[i["price"]] * i["quantity"]
            lines.append(self.line(sub, item, i["price"], i["quantity"], amount, i["start"], i["end"]))
        pack = not trial and rnd.random() < 0.1
        if pack:
            lines.append(self.line(sub, None, "price_pack", 2, 3000, self.t, next_end(self, self.t, price)))
        total = sum(line["amount"] - sum(d["amount"] for d in line["discount_amounts"]) for line in lines)
        discount = total if not pack and rnd.random() < 0.07 else 0
        balance = rnd.randrange(total) if total and not discount and rnd.random() < 0.1 else 0
        self.invoice(sub, "subscription_create", lines, discount=discount, balance=balance)
        if not self.old and rnd.random() < 0.5:
            self.emit(
                "checkout.session.completed",
                {
                    "id": self.new_id("cs_test"),
                    "object": "checkout.session",
                    "mode": "subscription",
                    "status": "complete",
                    "payment_status": "no_payment_required" if trial else "paid",
                    "customer": self.customer,
                    **SESSION,
                    "created": self.t,
                    "client_reference_id": user,
                    "metadata": {"user_id": user},
                    "livemode": False,
                    "amount_subtotal": total,
                    "currency_conversion": None,
                    "amount_total": total,
                    "currency": "usd",
                    "subscription": sub.id,
                    "invoice": None,
                    "payment_intent": None,
                },
            )
        if pack:
            self.after_purchase()
        return sub

    def live(self, *states):
        return [
            s for s in self.subs if s.status in (states or ("active",)) and s.items and not s.cancel_at_end
        ]

    def change_plan(self):
        subs = self.live("active", "trialing")
        if not subs:
            return
        sub = self.rnd.choice(subs)
        item = self.rnd.choice(list(sub.items))
        i = sub.items[item]
        suffix = "_year" if i["price"].endswith("_year") else ""
        seats = "team" in i["price"]
        if seats:
            price, quantity = i["price"], self.rnd.randrange(1, 9)
        else:
            price, quantity = self.rnd.choice([p + suffix for p in CREDITS_PLAN]), 1
        if (price, quantity) == (i["price"], i["quantity"]):
            return
        if sub.status == "trialing":
            i["price"], i["quantity"] = price, quantity
            self.show(sub, previous={"items": {"data": []}})
            return
        hows = ["none", "later", "invoice", "invoice", "unpaid", "anchor", "schedule"]
        if i["ahead"]:  # a change of what is billed in advance is always prorated
            hows = ["later", "invoice", "invoice", "anchor"]
        how = self.rnd.choice(hows)
        if how == "schedule":
            sub.schedule[item] = price
            return
        share = (i["end"] - self.t) / (i["end"] - i["start"])
        old, credits = (i["price"], i["quantity"]), self.unused(sub, item, i)
        if how == "anchor" and not seats:
            if not self.old and self.rnd.random() < 0.4:  # another interval
                price = price.removesuffix("_year") + "_year" * (not suffix)
            i["price"], i["quantity"] = price, quantity
            i["start"], i["anchor"], i["months"], i["ahead"] = self.t, self.t, 0, 0
            i["end"] = next_end(self, self.t, price)
            self.show(sub, previous={"items": {"data": []}})
            lines = [
                *credits,
                self.line(
                    sub,
                    item,
                    price,
                    quantity,
                    AMOUNTS[price] * quantity,
                    i["start"],
                    i["end"],
                    self.rnd.random() < 0.3,
                ),
            ]
            self.invoice(sub, "subscription_update", lines)
            return
        i["price"], i["quantity"] = price, quantity
        self.show(sub, previous={"items": {"data": []}})
        lines = credits + self.unused(sub, item, i, 1)
        if self.rnd.random() < 0.15:
            # Another plan in between, in the same second. Stripe's lines are in reverse order of time.
            between = "price_team" + suffix, self.rnd.randrange(1, 9)
            amount = int(AMOUNTS[between[0]] * between[1] * share)
            if between != (price, quantity) and between != old:
                for part in (amount, -amount):
                    lines.append(self.line(sub, item, *between, part, self.t, i["end"], True))
                self.rnd.shuffle(lines)
        if how == "invoice":
            self.invoice(sub, "subscription_update", lines)
        elif how == "unpaid":
            self.invoice(sub, "subscription_update", lines, "open")
        elif how == "later":
            sub.over.setdefault("lines", []).extend(lines)

    def periods_ahead(self, i, number):
        """The periods after those that are billed, by the calendar months from the anchor."""
        after = range(i["ahead"] + 1, i["ahead"] + number + 2)
        ends = [add_months(i["anchor"], i["months"] + interval(i["price"]) * n) for n in after]
        return list(zip(ends, ends[1:]))

    def unused(self, sub, item, i, sign=-1):
        """Prorations of what is left of the period, and of those that are billed in advance."""
        amount = AMOUNTS[i["price"]] * i["quantity"]
        rest = int(amount * (i["end"] - self.t) / (i["end"] - i["start"]))
        ahead = self.periods_ahead(dict(i, ahead=0), i["ahead"])
        parts = [(rest, self.t, i["end"]), *((amount, *period) for period in ahead)]
        return [self.line(sub, item, i["price"], i["quantity"], sign * part, start, end, True)
                for part, start, end in parts]

    def prebill(self):
        """Bills coming periods in advance (docs.stripe.com/billing/subscriptions/prebilling)."""
        rnd = self.rnd
        subs = [s for s in self.live() if not (self.old or s.paused or s.schedule or s.send_invoice or self.reset)]
        subs = [s for s in subs if all(i["end"] == add_months(i["anchor"], i["months"] + interval(i["price"]))
                                       for i in s.items.values())]
        if not subs:
            return
        sub, lines = rnd.choice(subs), []
        for item, i in rnd.sample(sorted(sub.items.items()), rnd.randrange(1, len(sub.items) + 1)):
            periods = self.periods_ahead(i, rnd.choice([1, 1, 2]))
            i["ahead"] += len(periods)
            amount = AMOUNTS[i["price"]] * i["quantity"]
            lines += [self.line(sub, item, i["price"], i["quantity"], amount, *period) for period in periods]
        if rnd.random() < 0.5:
            lines = sub.over.pop("lines", []) + lines
        self.invoice(sub, "subscription_update", lines, days=rnd.choice([0, 0, rnd.randrange(3, 40)]))

    def pause(self):
        subs = self.live()
        if not subs:
            return
        sub = self.rnd.choice(subs)
        if self.rnd.random() < 0.6:
            sub.paused = not sub.paused
            self.show(sub, previous={"pause_collection": None})
        else:
            sub.status, sub.over["ends"] = "paused", {item: i["end"] for item, i in sub.items.items()}
            if not self.old and self.rnd.random() < 0.5:
                for i in sub.items.values():  # the Pause endpoint cuts the period
                    i["end"] = self.t
            self.show(sub, "paused", previous={"status": "active"})

    def resume(self):
        for sub in self.subs:
            if sub.status == "paused" and not sub.trial_end:
                sub.status = "active"
                for item, end in sub.over.pop("ends", {}).items():
                    if item in sub.items:
                        sub.items[item]["end"] = end
                self.show(sub, "resumed", previous={"status": "paused"})
            elif sub.paused:
                sub.paused = False
                self.show(sub, previous={"pause_collection": {"behavior": "void"}})

    def cancel(self):
        subs = self.live("active", "trialing", "past_due")
        if not subs:
            return
        sub = self.rnd.choice(subs)
        if self.rnd.random() < 0.5:
            sub.cancel_at_end = True
            self.show(sub, previous={"cancel_at_period_end": False})
        else:
            self.end(
                sub,
                self.rnd.choice(["cancellation_requested", "payment_failed"])
                if sub.status == "past_due"
                else "cancellation_requested",
                self.t,
            )

    def refund_object(self, p, amount):
        return {
            "id": self.new_id("re"),
            "object": "refund",
            "charge": p["ch"],
            "payment_intent": p["pi"],
            "amount": amount,
            "status": "succeeded",
            "currency": "usd",
            "metadata": {},
        }

    def refund(self):
        payments = [p for p in self.payments if p["back"] < p["amount"] and not p["disputed"]]
        if not payments:
            return
        p = payments[-1] if self.rnd.random() < 0.6 else self.rnd.choice(payments)
        if self.source["plan"][0].get("rollover") and p["back"]:
            return
        left = p["amount"] - p["back"]
        amount = left if self.rnd.random() < 0.4 else self.rnd.randrange(1, left + 1)
        p["back"] += amount
        shape = self.rnd.choice(["both", "charge", "refund", "note", "failed", "pending"])
        if shape in ("failed", "pending"):
            # A refund to a bank account is pending at first, and may fail.
            refund = self.refund_object(p, amount)
            self.emit("refund.created", dict(refund, status="pending") if shape == "pending" else refund)
            if self.rnd.random() < 0.5:
                self.app()
            if shape == "failed" or self.rnd.random() < 0.3:
                p["back"] -= amount
                self.emit("refund.failed", dict(refund, status="failed"))
            else:
                self.emit("refund.updated", refund)
            return
        if shape == "note":
            self.emit(
                "credit_note.created",
                {
                    "id": self.new_id("cn"),
                    "object": "credit_note",
                    "amount": amount,
                    "customer": self.customer,
                    "invoice": p["invoice"],
                },
            )
        charge = {
            "id": p["ch"],
            "object": "charge",
            "customer": self.customer,
            "payment_intent": p["pi"],
            "amount": p["amount"],
            "amount_captured": p["amount"],
            "amount_refunded": p["back"],
            "refunded": p["back"] == p["amount"],
            "currency": "usd",
            "metadata": {},
            "paid": True,
        }
        if self.old:
            charge["invoice"] = p["invoice"]
        events = [("charge.refunded", charge)]
        if shape != "charge":
            # A mix of charge-only and refund-only shapes would hide a part of the money.
            at = 0 if shape == "refund" else 1
            events.insert(at, ("refund.created", self.refund_object(p, amount)))
        for event in events:
            self.emit(*event)

    def dispute(self):
        payments = [p for p in self.payments if not p["disputed"] and p["back"] < p["amount"]]
        if not payments:
            return
        p = self.rnd.choice(payments[-2:])
        p["disputed"] = True
        p["dispute"] = {
            "id": self.new_id("dp"),
            "object": "dispute",
            "charge": p["ch"],
            "currency": "usd",
            "payment_intent": p["pi"],
            "amount": p["amount"],
            "created": self.t,
            "metadata": {},
            "reason": "fraudulent",
            "status": self.rnd.choice(["needs_response", "needs_response", "warning_needs_response"]),
        }
        self.emit("charge.dispute.created", dict(p["dispute"]))

    def goodwill(self):
        """A trial on a paying subscription moves its billing date."""
        subs = [s for s in self.live() if len(s.items) == 1 and not s.paused]
        if not subs:
            return
        sub = self.rnd.choice(subs)
        sub.status, sub.trial_start, sub.trial_end = "trialing", self.t, self.t + 14 * DAY
        for item, i in sub.items.items():
            credits = self.unused(sub, item, i) if i["ahead"] else []
            i["start"], i["end"], i["ahead"] = self.t, sub.trial_end, 0
            self.show(sub, previous={"status": "active"})
            self.invoice(
                sub,
                "subscription_update",
                [*credits, self.line(sub, item, i["price"], i["quantity"], 0, i["start"], i["end"])],
            )

    def delete_customer(self):
        if self.rnd.random() < 0.7:
            return
        self.emit("customer.deleted", {"id": self.customer, "object": "customer", "email": "jo@example.com"})
        for sub in self.subs:
            if sub.status not in ("canceled",):
                self.end(sub, "cancellation_requested", self.t)
        self.until = self.t

    def close_dispute(self):
        for p in self.payments:
            dispute = p.get("dispute")
            if dispute and dispute["status"] in ("needs_response", "warning_needs_response"):
                end = (
                    "warning_closed"
                    if dispute["status"].startswith("warning")
                    else self.rnd.choice(["won", "won", "lost"])
                )
                dispute["status"] = end
                self.emit("charge.dispute.closed", dict(dispute))

    def buy(self):
        how = self.rnd.choice(["session", "session", "tied", "manual", "product", "life"])
        quantity = self.rnd.randrange(1, 4)
        intent, charge = self.new_id("pi"), self.new_id("ch")
        if how == "manual":
            self.invoice(
                None,
                "manual",
                [self.line(None, None, "price_pack", quantity, 1500 * quantity, self.t, self.t)],
                user="USER",
            )
            return self.after_purchase()
        name = "pack" if how == "tied" else self.rnd.choice(["pack", "big"])
        amount = {"pack": 1500, "big": 4000}[name] * quantity
        metadata = {"user_id": "USER", "pack": name, "quantity": str(quantity)}
        if how == "product":
            metadata, amount = {"user_id": "USER", "product": "course"}, 2500
        if how == "life":
            if self.source["policy"]["signup_credits"]:  # whether it ends them is not written down
                return None
            metadata, amount = {"user_id": "USER", "plan": "basic"}, 30000
        session = {
            "id": self.new_id("cs_test"),
            "object": "checkout.session",
            "mode": "payment",
            "status": "complete",
            "payment_status": "paid",
            "customer": self.customer,
            **SESSION,
            "created": self.t,
            "client_reference_id": "USER",
            "metadata": metadata,
            "livemode": False,
            "amount_total": amount,
            "amount_subtotal": amount,
            "currency_conversion": None,
            "currency": "usd",
            "subscription": None,
            "invoice": None,
            "payment_intent": intent,
        }
        if how != "tied" and self.rnd.random() < 0.2:
            # A slow payment, by bank debit: the session completes before the money is there.
            self.emit("checkout.session.completed", dict(session, payment_status="unpaid"))
            if self.rnd.random() < 0.5:
                self.app()
            if self.rnd.random() < 0.3:
                self.emit("checkout.session.async_payment_failed", dict(session, payment_status="unpaid"))
                return None
            self.emit("checkout.session.async_payment_succeeded", session)
        else:
            self.emit("checkout.session.completed", session)
        if how == "tied":
            self.invoice(
                None,
                "manual",
                [self.line(None, None, "price_pack", quantity, amount, self.t, self.t)],
                user="USER",
                pay=(intent, charge),
            )
            return self.after_purchase()
        self.payments.append(
            {"pi": intent, "ch": charge, "amount": amount, "back": 0, "disputed": False, "invoice": None}
        )
        return self.after_purchase()

    def after_purchase(self):
        # A pack that is heard after a newer reset is granted in full: keep the order where it matters.
        if self.reset:
            self.cut()

    def change_items(self):
        subs = [s for s in self.live("active", "trialing") if not self.old]
        if not subs:
            return
        sub = self.rnd.choice(subs)
        if sub.status == "trialing":
            if len(sub.items) > 1 and self.rnd.random() < 0.5:
                sub.items.pop(self.rnd.choice(list(sub.items)))
            else:
                sub.add_item(self, self.rnd.choice(["price_basic", "price_team_year"]), 1)
            self.show(sub, previous={"items": {"data": []}})
            return
        if len(sub.items) > 1 and self.rnd.random() < 0.6:
            item = list(sub.items)[-1]
            gone = sub.items.pop(item)
            self.show(sub, previous={"items": {"data": []}})
            how = self.rnd.choice(["none", "later", "invoice"])
            if how == "invoice":
                self.invoice(sub, "subscription_update", self.unused(sub, item, gone))
            elif how == "later" or gone["ahead"]:
                sub.over.setdefault("lines", []).extend(self.unused(sub, item, gone))
        elif len(sub.items) == 1:
            price, quantity = self.rnd.choice([("price_team", 3), ("price_team_year", 2), ("price_basic", 1)])
            item = sub.add_item(self, price, quantity)
            i, amount, start = sub.items[item], AMOUNTS[price] * quantity, self.t
            only = next(iter(sub.items.values()))
            same_interval = interval(price) == interval(only["price"])
            classic = sub.status == "active" and same_interval and self.rnd.random() < 0.6
            if classic:
                # In the classic billing mode the item has the period of the others, and its line is prorated.
                i.update({name: only[name] for name in ("start", "end", "anchor", "months")})
                amount = max(1, amount * (i["end"] - start) // (i["end"] - i["start"]))
            self.show(sub, previous={"items": {"data": []}})
            line = self.line(sub, item, price, quantity, amount, start, i["end"], flagged=classic)
            self.invoice(sub, "subscription_update", [line])

    def swap(self):
        """Other items in the place of all items in one update, as Laravel Cashier does; often there and back."""
        subs = self.live("active", "active", "trialing")
        subs = [s for s in subs if len({(i["start"], i["end"]) for i in s.items.values()}) == 1]
        if not subs:
            return
        sub = self.rnd.choice(subs)
        for _ in range(self.rnd.randrange(1, 5)):
            self.swap_items(sub)
            self.app()
            self.tick(self.rnd.choice([60, DAY // 2]))
            if self.t >= min(i["end"] for i in sub.items.values()):
                return

    def swap_items(self, sub):
        rnd, old = self.rnd, sub.items
        period = next(iter(old.values()))
        own = rnd.random() < 0.15  # a price of the other interval: a full period of its own
        is_year = interval(period["price"]) == 12
        # The amounts can be those of a preview from two minutes ago.
        start = self.t if own else max(self.t - rnd.choice([0, 120]), period["start"] + 1)
        share = (period["end"] - start) / (period["end"] - period["start"])
        lines = [
            self.line(
                sub,
                item,
                i["price"],
                i["quantity"],
                -int(AMOUNTS[i["price"]] * i["quantity"] * share),
                start,
                i["end"],
                True,
            )
            for item, i in old.items()
        ]
        lines += [line for item, i in old.items() for line in self.unused(sub, item, i)[1:]]
        sub.items, sub.schedule = {}, {}
        names = rnd.sample([*CREDITS_PLAN, "price_team"], 1 if self.old else rnd.choice([1, 1, 1, len(old)]))
        if sub.status == "trialing":  # nothing is charged
            for name in names:
                item = sub.add_item(self, name, 3 if "team" in name else 1)
                sub.items[item].update({name: period[name] for name in ("start", "end")})
            return self.show(sub, previous={"items": {"data": []}})
        for name in names:
            price = name + "_year" * (is_year != own)
            quantity = rnd.randrange(1, 30) if "team" in price else 1
            item, amount = sub.add_item(self, price, quantity), AMOUNTS[price] * quantity
            i = sub.items[item]
            if not own:
                i.update({name: period[name] for name in ("start", "end", "anchor", "months")})
                amount = max(1, int(amount * share))
            lines.append(
                self.line(sub, item, price, quantity, amount, start, i["end"], not own)
            )
        self.show(sub, previous={"items": {"data": []}})
        self.invoice(sub, "subscription_update", lines, rnd.choice(["paid", "paid", "paid", "open"]))
        return None

    # What the app and the operator do.

    def app(self):
        self.cut()
        rnd, what = self.rnd, self.rnd.random()
        if what < 0.55:
            key = self.new_id("k")
            self.steps.append({"spend": rnd.choice([1, 30, 200, 700, 1200, 4000]), "key": key})
            self.spends.append(key)
        elif what < 0.7:
            key = self.new_id("h")
            self.steps.append({"hold": rnd.choice([50, 400, 3000]), "key": key, "ttl": 86000})
            self.holds.append(key)
        elif what < 0.8 and self.holds:
            hold = self.holds.pop()
            if rnd.random() < 0.7:
                self.steps.append({"commit": hold, "amount": rnd.choice([0, 20, 50])})
                self.spends.append(hold)
            else:
                self.steps.append({"release": hold})
        elif what < 0.9 and self.spends:
            self.steps.append({"give_back": rnd.choice(self.spends), "amount": rnd.choice([1, 25, 150])})
        elif what < 0.95:
            self.steps.append({"fix": {"action": "grant", "credits": rnd.choice([100, 700])}})
        elif what < 0.98:
            until = datetime.datetime.fromtimestamp(
                self.t + rnd.randrange(1, 60) * DAY, datetime.timezone.utc
            )
            self.steps.append(
                {
                    "fix": {
                        "action": "complimentary",
                        "plan": rnd.choice(["pro", "basic"]),
                        "credits": rnd.choice([0, 300]),
                        "until": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    }
                }
            )

    def play(self):
        rnd = self.rnd
        if self.clocked and rnd.random() < 0.7:
            self.steps.append({"user": True})
            self.tick(60)
        if rnd.random() < 0.25:
            self.buy()
        self.subscribe()
        acts = [
            (self.change_plan, 5),
            (self.pause, 2),
            (self.resume, 3),
            (self.cancel, 2),
            (self.refund, 3),
            (self.dispute, 2),
            (self.close_dispute, 3),
            (self.buy, 3),
            (self.change_items, 1),
            (self.swap, 2),
            (self.app, 7),
            (self.late_payment, 2),
            (self.another, 1),
            (self.goodwill, 1),
            (self.prebill, 2),
            (self.delete_customer, 1),
        ]
        if not (self.old or self.reset) and rnd.random() < 0.3:
            # What is billed in advance is then changed, removed or refunded.
            often = {self.prebill: 12, self.change_plan: 12, self.change_items: 6, self.refund: 6}
            acts = [(act, often.get(act, weight)) for act, weight in acts]
            self.advance(self.t + rnd.randrange(60, 20 * DAY))
            self.prebill()
        for _ in range(rnd.randrange(1, 9)):
            to = self.t + int(rnd.expovariate(1 / 25) * DAY) + rnd.randrange(60, 7200)
            if to >= self.until and not self.clocked:
                break  # a renewal before then would lie ahead of the moment of play
            self.advance(to)
            if self.t >= self.until:
                break
            rnd.choices([a for a, _ in acts], [w for _, w in acts])[0]()
        if not self.clocked:
            self.advance(max(self.t, min(self.until, self.base - rnd.randrange(1, 40) * DAY)))
        self.cut()
        if rnd.random() < 0.5:
            self.app()
            self.cut()
        return self

    def late_payment(self):
        for sub in self.subs:
            self.pay_late(sub)

    def another(self):
        self.subscribe(self.rnd.choice(["USER", "USER", "USER-b"]))


def delay(rnd, steps, reset):
    """Some events reach us later than the spends that follow them."""
    sends = [n for n, step in enumerate(steps) if "send" in step]
    for _ in range(rnd.randrange(1, 4)):
        source = rnd.choice(sends[:-1])
        events = steps[source]["send"]
        movable = [
            e for e in events if not reset or e["type"].startswith(("customer.sub", "refund", "charge"))
        ]
        movable = [e for e in movable if e["data"]["object"].get("test_clock") is None]
        if movable:
            event = rnd.choice(movable)
            events.remove(event)
            steps[rnd.choice([n for n in sends if n > source])]["send"].append(event)


def relative(value, base):
    """Rewrites the moments of events as "@seconds"."""
    if isinstance(value, dict):
        return {
            k: "@%d" % (v - base) if isinstance(v, int) and k in TIMES else relative(v, base)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [relative(v, base) for v in value]
    return value


TIMES = (
    "created",
    "current_period_start",
    "current_period_end",
    "start",
    "end",
    "period_start",
    "period_end",
    "ended_at",
    "canceled_at",
    "cancel_at",
    "trial_start",
    "trial_end",
)


def life(seed, source, base, clocks=False):
    rnd = random.Random(seed)
    made = Life(rnd, source, base, clocks)
    made.play()
    steps = made.steps
    if rnd.random() < 0.3 and sum("send" in s for s in steps) > 1:
        delay(rnd, steps, made.reset)
    steps = [s for s in steps if s.get("send", True)]
    return {
        "name": "life %s" % seed,
        "catalog": toml(source),
        "clocked": made.clocked,
        "steps": relative(steps, base),
    }
