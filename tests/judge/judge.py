"""An independent judge of money: what a life must be worth, computed from its facts and the time.

    python3 tests/judge/judge.py CASE.json...    compares what the judge says with `expect` of each case

It follows the contract alone and shares no code with common/core. A case has a catalog and steps (send, spend,
fix, http), as tests/cases/README.md says. Times are seconds; intervals are half open."""

import calendar
import collections
import datetime
import json
import sys
import time

from facts import DAY, TERMINAL, Catalog, Facts

NEVER = 10**12
Opening = collections.namedtuple(
    "Opening", "item sub start end plan quantity invoice credits positive opens_at shown"
)
Segment = collections.namedtuple("Segment", "opening k due end")  # a paid period, or a month of one
Lot = collections.namedtuple("Lot", "key bucket granted left since until free plan")


def add_months(at, months):
    start = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return int(start.replace(year=year, month=month + 1, day=min(start.day, last)).timestamp())


class User:
    """One user's money as of `now`. `world` has the facts, `spent` what was taken from each lot."""

    def __init__(self, world, name, now):
        self.world, self.facts, self.catalog = world, world.facts, world.facts.catalog
        self.name, self.now, self.spent = name, now, world.spent[name]
        self.policy = self.catalog.policy
        self.subs = {sub for sub in self.facts.snapshots if self.facts.owner(sub) == name}
        self.subs |= {
            i.sub for i in self.facts.invoices.values() if i.sub and self.facts.owner(i.sub) == name
        }
        self.read_lines()

    # Which lines open a paid period, and which charge a plan change.

    def read_lines(self):
        self.openings, self.charges = collections.defaultdict(list), collections.defaultdict(list)
        self.named, self.trial_lines, flagged = {}, {}, []
        for invoice in sorted(self.facts.invoices.values(), key=lambda i: (i.created, i.id)):
            if invoice.sub not in self.subs:
                continue
            lines = collections.defaultdict(list)
            for line in invoice.lines:
                item = line.item or (line.plan and self.item_of(invoice.sub, line.plan))
                if item and not line.pack:
                    lines[item].append(line)
            for item, group in lines.items():
                self.named[item] = max(self.named.get(item, 0), invoice.created)
                negative = -sum(line.amount for line in group if line.amount < 0)
                positive = sum(line.amount for line in group if line.amount > 0)
                for line in group:
                    if not line.plan or line.amount < 0:
                        continue
                    opens_at = line.start
                    if line.start > invoice.created:
                        opens_at = max(invoice.created, line.start - 3600)
                    opening = Opening(
                        item,
                        invoice.sub,
                        line.start,
                        line.end,
                        line.plan,
                        line.quantity,
                        invoice,
                        negative,
                        positive,
                        opens_at,
                        line.start,
                    )
                    if line.amount == 0 and not line.flagged:
                        if self.zero_line_opens(item, line, invoice):
                            self.openings[item].append(opening)
                        elif invoice.reason == "subscription_create":
                            self.trial_lines[item] = opening
                    elif not line.flagged or (invoice.reason == "subscription_create" and line.amount > 0):
                        self.openings[item].append(opening)
                    else:
                        flagged.append((opening, line.amount))
        for opening, amount in sorted(flagged, key=lambda f: f[0].start):
            item, sub = opening.item, opening.sub
            others = [o for o in self.openings[item] if o.start == opening.start]
            starts = [s.items[item].start for s in self.facts.snapshots.get(sub, []) if item in s.items]
            if amount > 0 and opening.start in starts and not others:
                self.openings[item].append(opening)
                continue
            # An item that is added within the subscription's period has that period's start in snapshots. Its
            # first line is prorated, and its invoice credits nothing of it.
            earlier = [start for start in starts if start < opening.start]
            first = all(o.start > opening.start for o in self.openings[item])
            if amount > 0 and not opening.credits and earlier and first:
                self.openings[item].append(opening._replace(shown=max(earlier)))
            else:
                self.charges[item].append(opening)
        for item, openings in self.openings.items():
            openings.sort(key=lambda o: (o.start, -o.invoice.created))
            openings[:] = [o for o in openings if o.opens_at <= self.now]

    def item_of(self, sub, plan):
        items = {i.id: i for s in self.facts.snapshots.get(sub, []) for i in s.items.values()}
        if len(items) == 1:
            return next(iter(items))
        return next((i.id for i in items.values() if i.plan == plan), None)

    def zero_line_opens(self, item, line, invoice):
        shown = [(s, s.items[item]) for s in self.facts.snapshots.get(invoice.sub, []) if item in s.items]
        if any(i.price == line.price and i.amount == 0 for _, i in shown):
            return True
        trialing = any(s.status == "trialing" and i.start == line.start for s, i in shown)
        return invoice.reason == "subscription_cycle" and not trialing

    def all_items(self):
        items = {
            item: sub for sub in self.subs for s in self.facts.snapshots.get(sub, []) for item in s.items
        }
        items.update({item: o[0].sub for item, o in self.openings.items() if o})
        items.update({item: opening.sub for item, opening in self.trial_lines.items()})
        return items

    # The time line of one item.

    def snapshots(self, sub, at):
        return [s for s in self.facts.snapshots.get(sub, []) if s.created <= at]

    def shown(self, opening, after, until):
        """(created, plan, quantity) of the snapshots that can change the plan inside this paid period."""
        for s in self.facts.snapshots.get(opening.sub, []):
            item = s.items.get(opening.item)
            # A trial on a paid item moves the item's period.
            trial = item and s.status == "trialing" and opening.start < item.start and s.created < opening.end
            if (
                item
                and item.plan
                and s.status in ("active", "trialing")
                and after < s.created < until
                and (item.start in (opening.start, opening.shown) or trial)
            ):
                yield s.created, item.plan, item.quantity

    def blocked(self, opening, at):
        """Whether no month begins at this moment."""
        known = [
            s
            for s in self.facts.snapshots.get(opening.sub, [])
            if s.created <= at or s.status in TERMINAL and s.ended <= at
        ]
        removed = self.removed_at(opening.item, opening.sub)
        if self.all_refunded(opening, at) or removed is not None and removed <= at:
            return True
        if self.deleted_at(opening.sub) <= at or self.facts.dispute_open(opening.invoice.id, at):
            return True
        if not known:
            return False
        last = known[-1]
        return (
            last.status in TERMINAL
            and last.reason != "payment_failed"
            or last.status == "paused"
            or last.pause_collection
            and self.policy["pause_collection"] == "until_period_end"
        )

    def deleted_at(self, sub):
        return self.facts.deleted_customers.get(self.facts.customer_of.get(sub), NEVER)

    def due(self, opening, start, until):
        """When the month that starts at `start` falls due: then, or as soon as nothing blocks it."""
        moments = [start] + sorted(
            t
            for t in {s.created for s in self.facts.snapshots.get(opening.sub, [])}
            | {
                end
                for p in self.facts.payments(opening.invoice.id)
                for _, end, _, _ in self.facts.dispute_spans(p)
                if end
            }
            if start < t < until
        )
        return next((t for t in moments if not self.blocked(opening, t)), None)

    def segments(self, item):
        """The paid periods of an item, or the months of those that are refilled, that began by now."""
        found, openings = [], self.openings[item]
        for n, opening in enumerate(openings):
            limit = openings[n + 1].start if n + 1 < len(openings) else NEVER
            cuts = [opening.start]
            if self.catalog.plans[opening.plan].get("refill") == "month":
                while len(cuts) < 36 and add_months(opening.start, len(cuts)) <= opening.end - 4 * DAY:
                    cuts.append(add_months(opening.start, len(cuts)))
            for k, start in enumerate(cuts):
                end = cuts[k + 1] if k + 1 < len(cuts) else opening.end
                due = start if k == 0 else self.due(opening, start, min(end, limit))
                if start < limit and due is not None and (due <= self.now or k == 0):
                    found.append(Segment(opening, k, due, end))
        return found

    def in_force(self, segment, until):
        """The plans and quantities in force one after another within a segment."""
        opening = segment.opening
        phases = [(segment.due, opening.plan, opening.quantity)]
        for change in self.shown(opening, opening.start, segment.due + 1) if segment.k else ():
            phases = [change]
        return phases + list(self.shown(opening, segment.due, until))

    def worth(self, segment, until):
        """(credits of the plan in force, plan in force, whether the whole period's spends count)."""
        phases, opening = self.in_force(segment, until), segment.opening
        if self.policy["plan_change"] == "at_once":
            plans = [p for n, (_, p, _) in enumerate(phases) if n == 0 or phases[n - 1][1] != p]
            _, plan, quantity = phases[-1]
            return self.catalog.amount(plan, quantity), plan, plans.count(plan) > 1
        # What was not charged does not count at the start of a later month either.
        phases = [(0, opening.plan, opening.quantity), *self.shown(opening, opening.start, until)]
        amount, reached = self.catalog.amount(*phases[0][1:]), {phases[0][1:]}
        for _, plan, quantity in phases[1:]:
            new = self.catalog.amount(plan, quantity)
            # The opening paid for its own plan with up to its own quantity.
            paid = plan == opening.plan and quantity <= opening.quantity
            paid = paid or self.charged(opening, plan, quantity, until)
            if new <= amount or (plan, quantity) in reached or paid:
                amount = new
                reached.add((plan, quantity))
        return amount, phases[-1][1], True

    def charged(self, opening, plan, quantity, until):
        charges = [c for c in self.charges_of(opening) if c.start < until]
        return any(c.plan == plan and c.quantity >= quantity for c in charges)

    def charges_of(self, opening):
        later = [o.start for o in self.openings[opening.item] if o.start > opening.start]
        return [
            c for c in self.charges[opening.item] if opening.start <= c.start < min([opening.end, *later])
        ]

    # What refunds and disputes took.

    def lost(self, part, invoice, at):
        if invoice.total <= 0:
            return 0
        return min(part, part * self.facts.went_back(invoice.id, at, self.now) // invoice.total)

    def after_refunds(self, opening, part, at):
        """What is left of a part that the opening granted; unused time was paid by the period before."""
        openings = self.openings[opening.item]
        before = [o for o in openings if o.start < opening.start]
        by_before = 0
        # If the invoice also charges a change in the period before, its credits are set off against that charge.
        charged = before and any(c.invoice.id == opening.invoice.id for c in self.charges_of(before[-1]))
        if opening.credits and before and not charged:
            by_before = part * min(opening.credits, opening.positive) // opening.positive
        own = part - by_before
        own -= self.lost(own, opening.invoice, at)
        if by_before:
            rest, left = by_before, 0
            for charge in reversed(self.charges_of(before[-1])):
                if charge.positive > 0:
                    older = rest * min(charge.credits, charge.positive) // charge.positive
                    left += rest - older - self.lost(rest - older, charge.invoice, at)
                    rest = older
            by_before = left + self.after_refunds(before[-1], rest, at)
        return own + by_before

    def granted(self, segment, until, at):
        """What a segment's lot is worth after what refunds, known at `at`, took; before what was spent."""
        return self.fill(segment.opening, self.worth(segment, until)[0], at)

    def fill(self, opening, worth, at):
        level = self.catalog.amount(opening.plan, opening.quantity)
        rest, part = worth - min(worth, level), min(worth, level)
        left = self.after_refunds(opening, part, at)
        for charge in self.charges_of(opening):
            reached = self.catalog.amount(charge.plan, charge.quantity)
            part = min(rest, max(0, reached - level))
            level, rest = max(level, reached), rest - part
            left += part - self.lost(part, charge.invoice, at)
        return left + rest

    # Buckets of an item.

    def spends(self, item, start, k=None, plan=None):
        return sum(
            n
            for key, n in self.spent.items()
            if key[0] == "item"
            and key[1] == item
            and key[2] == start
            and (k is None or key[3] == k)
            and (plan is None or key[4] == plan)
        )

    def item_lots(self, item, sub):
        segments = self.segments(item)
        if not segments:
            return self.trial_lots(item, sub)
        lots, carried_spend, spent_before = [], 0, 0
        rollovers = []
        for n, segment in enumerate(segments):
            opening = segment.opening
            until = segments[n + 1].due if n + 1 < len(segments) else NEVER
            skipped_to = segments[n + 1].k if n + 1 < len(segments) and segments[n + 1].k else 99
            undone = sum(self.spends(item, opening.start, k) for k in range(segment.k + 1, skipped_to))
            carried_spend = 0
            if n and segment.k == 0 and opening.start < segments[n - 1].opening.end:
                invoice = opening.invoice
                unpaid = invoice.total - invoice.paid
                carried_spend = spent_before if invoice.total <= 0 else spent_before * unpaid // invoice.total
            worth, plan, whole = self.worth(segment, until)
            first = self.in_force(segment, until)[0][1]
            spent_all = self.spends(item, opening.start, segment.k) + carried_spend
            counted = (
                spent_all
                if whole
                else self.spends(item, opening.start, segment.k, plan)
                + (carried_spend if plan == first else 0)
            )
            at = min(until, self.now)
            granted = self.granted(segment, until, at)
            left = max(0, max(0, granted - counted) - undone)
            spent_before = spent_all + undone
            if n + 1 < len(segments):
                rollovers.append((n, segment, left, plan))
        lots.append(
            Lot(
                ("item", item, opening.start, segment.k, plan),
                item,
                granted,
                left,
                segment.due,
                segment.end,
                False,
                True,
            )
        )
        last_end = segments[-1].opening.end + self.policy["past_due_grace_days"] * DAY
        for n, segment, left, plan in rollovers:
            rule = self.catalog.plans[plan].get("rollover", {})
            following = segments[n + 1]
            if not rule.get("percent") or (following.k == 0 and following.opening.credits):
                continue
            carry = min(left * rule["percent"] // 100, rule.get("max", 0))
            periods = rule.get("periods", 1)
            ends = segments[n + 1 + periods].due if n + 1 + periods < len(segments) else last_end
            carried = carry
            then = carried
            if not self.all_refunded(segment.opening, self.now):
                then = self.fill(segment.opening, carried, following.due)
            carry -= then - self.fill(segment.opening, carried, self.now)
            key = ("rollover", item, following.opening.start, following.k)
            carry = max(carry, self.spent.get(key, 0))
            if ends > self.now:
                lots.append(
                    Lot(
                        key,
                        "rollover " + item,
                        carry,
                        carry - self.spent.get(key, 0),
                        following.due,
                        ends,
                        False,
                        True,
                    )
                )
        if self.is_over(item, sub):
            lots = [lot._replace(left=0) for lot in lots]
        return lots

    def trial_lots(self, item, sub):
        known = self.snapshots(sub, self.now)
        trials = [s for s in known if s.status == "trialing" and item in s.items]
        shown = trials[-1].items[item] if trials else self.trial_lines.get(item)
        if not shown or not shown.plan or known and known[-1].status in TERMINAL:
            return []
        if self.policy["trials"] == "once":
            firsts = [
                (s.created, other)
                for other in self.subs
                for s in self.snapshots(other, self.now)
                if s.status == "trialing"
            ]
            if firsts and min(firsts)[1] != sub:
                return []
        if self.deleted_at(sub) <= self.now or self.end_of(item, sub) is not None:
            return []
        amount = self.catalog.trial_amount(shown.plan, shown.quantity)
        key = ("trial", item)
        return [
            Lot(
                key, item, amount, max(0, amount - self.spent.get(key, 0)), shown.start, shown.end, True, True
            )
        ]

    def end_of(self, item, sub):
        """When the item's subscription ended, or it was removed from it."""
        known = self.snapshots(sub, self.now)
        ends = [self.deleted_at(sub)] if self.deleted_at(sub) <= self.now else []
        if known and known[-1].status in TERMINAL:
            ends.append(known[-1].ended)
        removed = self.removed_at(item, sub)
        return min(ends + ([] if removed is None else [removed]), default=None)

    def removed_at(self, item, sub):
        known = self.snapshots(sub, self.now)
        named = max([self.named.get(item, 0)] + [s.created for s in known if item in s.items])
        if known and item not in known[-1].items and known[-1].created > named:
            return min(s.created for s in known if s.created > named)
        return None

    def is_over(self, item, sub):
        end = self.end_of(item, sub)
        return end is not None and any(
            o.start >= end for other, openings in self.openings.items() if other != item for o in openings
        )

    # All lots, in the order in which they are spent.

    def lots(self):
        lots = []
        for item, sub in sorted(self.all_items().items()):
            lots += self.item_lots(item, sub)
        lots += self.signup_lots() + self.purchase_lots() + self.grant_lots()
        lots = [lot._replace(left=0) if lot.until <= self.now and not lot.plan else lot for lot in lots]
        return sorted(lots, key=self.spend_order)

    def spend_order(self, lot):
        if self.policy["spend_order"] == "expiring_first":
            return lot.until, not lot.free, not lot.plan, lot.since, str(lot.key)
        kind = ["plan", "lifetime", "signup", "grant", "addon"].index(self.kind(lot))
        if kind == 0:
            item = lot.bucket.removeprefix("rollover ")
            period = max([s.end for s in self.segments(item)] + [0 if self.segments(item) else lot.until])
            return kind, period, item, lot.key[0] == "rollover", lot.until, lot.since, str(lot.key)
        return kind, lot.since, str(lot.key)

    def kind(self, lot):
        return "plan" if lot.plan and lot.bucket != "lifetime" else lot.bucket

    def plan_openings(self):
        return [o for openings in self.openings.values() for o in openings]

    def signup_lots(self):
        created = self.world.created.get(self.name)
        if created is None:
            return []
        days = self.policy["signup_expires_days"]
        key, granted, since = ("signup",), self.policy["signup_credits"], created
        until = created + days * DAY if days else NEVER
        if self.policy["free_credits"]:
            k = 1
            while add_months(created, k) <= self.now:
                start = add_months(created, k)
                if not self.plan_gives_access(start):
                    key, granted, since, until = ("free", k), self.policy["free_credits"], start, NEVER
                k += 1
        over = any(o.start >= since for o in self.plan_openings())
        left = 0 if over else max(0, granted - self.spent.get(key, 0))
        return [Lot(key, "signup", granted, left, since, until, True, False)]

    def purchase_lots(self):
        lots = []
        for session in self.facts.sessions.values():
            if self.facts.owner(session.id) != self.name:
                continue
            tied = self.tied_invoices(session)
            spent = sum(self.spent.get(("pack", document), 0) for document in [session.id, *tied])
            if session.plan in self.catalog.plans:
                granted = self.catalog.amount(session.plan, session.quantity)
                lots.append(self.bought(session, "lifetime", granted, 0, spent))
            elif session.name in self.catalog.packs:
                pack = self.catalog.packs[session.name]
                granted = pack.get("credits", 0) * session.quantity
                lots.append(self.bought(session, "addon", granted, pack.get("expires_days", 0), spent))
        sold = {i for s in self.facts.sessions.values() for i in self.tied_invoices(s)}
        for invoice in self.facts.invoices.values():
            if invoice.id in sold or self.facts.owner(invoice.id) != self.name:
                continue
            for line in invoice.lines:
                if line.pack and line.amount >= 0:
                    pack = self.catalog.packs[line.pack]
                    spent = self.spent.get(("pack", invoice.id), 0)
                    lots.append(
                        self.bought(
                            invoice,
                            "addon",
                            pack.get("credits", 0) * line.quantity,
                            pack.get("expires_days", 0),
                            spent,
                        )
                    )
        return lots

    def tied_invoices(self, session):
        mine = self.facts.payments(session.id)
        return [
            i.id
            for i in self.facts.invoices.values()
            if i.id == session.invoice or mine & self.facts.payments(i.id)
        ]

    def bought(self, document, bucket, granted, days, spent):
        if document.total > 0:
            granted -= min(
                granted, granted * self.facts.went_back(document.id, self.now, self.now) // document.total
            )
        left = max(0, granted - spent)
        if (
            bucket == "addon"
            and self.policy["addons"] == "reset"
            and any(
                document.created < o.start
                and o.invoice.heard >= document.heard
                and o.invoice.id != document.id
                and self.catalog.plans[o.plan].get("per") != "seat"
                for o in self.plan_openings()
            )
        ):
            left = 0
        until = document.created + days * DAY if days else NEVER
        return Lot(
            ("pack", document.id), bucket, granted, left, document.created, until, False, bucket == "lifetime"
        )

    def grant_lots(self):
        return [
            Lot(
                ("grant", n),
                "grant",
                credits,
                max(0, credits - self.spent.get(("grant", n), 0)),
                since,
                until,
                True,
                False,
            )
            for n, (credits, since, until) in enumerate(self.world.grants[self.name])
        ]

    # Access.

    def plan_gives_access(self, at):
        return bool(self.plans_at(at))

    def tier(self):
        ranks = [self.catalog.rank(plan) for plan in self.plans_at(self.now)]
        ranks.append(self.catalog.tiers[self.policy["default_tier"]])
        return next(name for name, rank in self.catalog.tiers.items() if rank == max(ranks))

    def plans_at(self, at):
        plans = []
        for sub in self.subs:
            known = self.snapshots(sub, at)
            items = {item for item, s in self.all_items().items() if s == sub}
            for item in items:
                plan = self.item_access(item, sub, known, at)
                if plan:
                    plans.append(plan)
        for session in self.facts.sessions.values():
            if (
                self.facts.owner(session.id) == self.name
                and session.plan in self.catalog.plans
                and session.created <= at
            ):
                if not (session.total and self.facts.went_back(session.id, at, self.now) >= session.total):
                    plans.append(session.plan)
        plans += [plan for plan, start, end in self.world.complimentary[self.name] if start <= at < end]
        return plans

    def item_access(self, item, sub, known, at):
        openings = [o for o in self.openings[item] if o.start <= at]
        running = openings[-1] if openings and at < openings[-1].end else None
        last = known[-1] if known else None
        if self.deleted_at(sub) <= at:
            return None
        if last is None or item not in last.items:
            newest = max([s.created for s in known if item in s.items] + [self.named.get(item, 0)])
            if last is None or (newest >= last.created and last.status in ("active", "trialing")):
                return running and self.paid_plan(running)
            return None
        shown = last.items[item].plan
        if running and running.start > last.items[item].start and running.invoice.created > last.created:
            shown = self.paid_plan(running)
        if last.cancel_at is not None and last.cancel_at <= at and last.status not in TERMINAL:
            return None
        paid = self.paid_plan(openings[-1]) if openings else None
        if self.policy["refunded_access"] == "end" and openings and self.all_refunded(openings[-1], at):
            return None
        status = last.status
        if (
            status in ("incomplete", "past_due", "unpaid")
            and openings
            and self.paid_since(openings[-1], last)
        ):
            status = "active"  # the snapshot that says so has not arrived
        if status in ("active", "trialing"):
            if last.pause_collection and self.policy["pause_collection"] == "until_period_end":
                return min([p for p in (paid, shown) if p], key=self.catalog.rank) if running else None
            return shown
        failed = status == "canceled" and last.reason == "payment_failed"
        if status in ("past_due", "unpaid") or failed:
            lower = min([p for p in (paid, shown) if p], key=self.catalog.rank, default=None)
            if running:
                return lower
            grace = last.items[item].start + (last.days_until_due + self.policy["past_due_grace_days"]) * DAY
            if status == "past_due" and at < grace:
                return lower
        return None

    @staticmethod
    def paid_since(opening, snapshot):
        if snapshot.status == "incomplete":
            return opening.invoice.created >= snapshot.created
        return opening.invoice.created > snapshot.created and all(
            item.start <= opening.start for item in snapshot.items.values()
        )

    def paid_plan(self, opening):
        """The plan that was paid for: the newest charge's, else the opening's."""
        charges = self.charges_of(opening)
        return max(charges, key=lambda c: (c.start, c.invoice.created)).plan if charges else opening.plan

    def all_refunded(self, opening, at):
        charges = [c.invoice for c in self.charges_of(opening) if c.invoice.total > 0]
        return opening.invoice.total > 0 and all(
            self.facts.went_back(i.id, at, self.now) >= i.total for i in [opening.invoice, *charges]
        )


class World:
    """Plays the steps of a life and keeps what was spent from each lot."""

    def __init__(self, catalog, wall, any_time=False):
        self.facts, self.wall, self.any_time = Facts(catalog), wall, any_time
        self.spent = collections.defaultdict(collections.Counter)
        self.grants, self.complimentary = collections.defaultdict(list), collections.defaultdict(list)
        self.created, self.taken, self.holds, self.step = {}, {}, collections.defaultdict(dict), 0
        self.answers = []

    def now(self, user):
        if self.any_time:
            return max(self.wall, self.facts.latest)
        newest, clocked = self.facts.newest(user)
        return max(self.wall, newest) if clocked else self.wall

    def user(self, name):
        return User(self, name, self.now(name))

    def take(self, user, key, amount):
        takes = []
        for lot in self.user(user).lots():
            n = min(lot.left, amount)
            if n:
                takes.append((lot.key, n))
                self.spent[user][lot.key] += n
                amount -= n
        self.taken[user, key] = takes
        return amount

    def credits(self, user):
        return sum(lot.left for lot in self.user(user).lots())

    def held(self, user):
        return sum(n for n, end in self.holds[user].values() if end > self.now(user))

    def available(self, user):
        return max(0, self.credits(user) - self.held(user))

    def play(self, step, user):
        """Plays one step; the answer is the expected HTTP status, or None."""
        self.step += 1
        if "send" in step:
            for event in step["send"]:
                self.facts.hear(event, self.step)
        elif "user" in step:
            self.created.setdefault(user, self.now(user))
        elif "spend" in step:
            if self.available(user) < step["spend"]:
                return 402
            self.take(user, step.get("key", self.step), step["spend"])
            return 200
        elif "give_back" in step:
            return self.give_back(user, step["give_back"], step["amount"])
        elif "hold" in step:
            if self.available(user) < step["hold"]:
                return 402
            self.holds[user][step["key"]] = (step["hold"], self.now(user) + step["ttl"])
            return 201
        elif "commit" in step:
            return self.commit(user, step["commit"], step["amount"])
        elif "release" in step:
            return 200 if self.holds[user].pop(step["release"], None) else None
        elif "fix" in step and step["fix"]["action"] == "grant":
            until = parse_time(step["fix"].get("until"))
            self.grants[user].append((step["fix"]["credits"], self.now(user), until))
        elif "fix" in step and step["fix"]["action"] == "complimentary":
            fix = step["fix"]
            start = parse_time(fix["from"]) if "from" in fix else self.now(user)
            until = parse_time(fix.get("until"))
            self.complimentary[user].append((fix["plan"], start, until))
            if fix.get("credits"):
                self.grants[user].append((fix["credits"], start, until))
        elif "http" in step and step["http"][0] == "PUT":
            self.created.setdefault(user, self.now(user))
        return None

    def commit(self, user, hold, amount):
        if hold not in self.holds[user]:
            return None
        held, end = self.holds[user][hold]
        if end <= self.now(user):
            if self.available(user) < amount:
                return 402
        elif amount > held:
            return 400
        del self.holds[user][hold]
        self.take(user, hold, amount)
        return 200

    def give_back(self, user, spend, amount):
        takes = self.taken.get((user, spend))
        if takes is None or sum(n for _, n in takes) < amount:
            return None
        living = [lot.key[:4] for lot in self.user(user).lots()]
        for n, (key, taken) in reversed(list(enumerate(takes))):
            back = min(taken, amount)
            amount -= back
            takes[n] = (key, taken - back)
            if key[:4] in living and not self.gone(user, key):
                self.spent[user][key] -= back
        return 200

    def gone(self, user, key):
        """Whether a lot ended: its period is over, it expired, or something reset it."""
        self.spent[user][key] -= 1
        user_then = self.user(user)
        alive = any(lot.key == key and lot.left > 0 for lot in user_then.lots())
        self.spent[user][key] += 1
        return not alive

    def state(self, user):
        found = self.user(user)
        lots = found.lots()
        return {
            "tier": found.tier(),
            "credits": sum(lot.left for lot in lots),
            "available": max(0, sum(lot.left for lot in lots) - self.held(user)),
            "lots": sorted([lot.bucket, lot.left] for lot in lots if lot.left),
        }


def parse_time(text):
    if text is None:
        return NEVER
    return int(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def fill(value, now, nonce):
    """Replaces `@seconds`, USER and NONCE, as the player of the cases does."""
    if isinstance(value, str):
        if value.startswith("@") and value[1:].lstrip("-").isdigit():
            return now + int(value[1:])
        return value.replace("NONCE", nonce).replace("USER", "user_" + nonce)
    if isinstance(value, dict):
        return {
            fill(k, now, nonce) if isinstance(k, str) else k: fill(v, now, nonce) for k, v in value.items()
        }
    if isinstance(value, list):
        return [fill(v, now, nonce) for v in value]
    return value


def main():
    bad = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            case = json.load(file)
        now = int(time.time())
        world, case = World(Catalog(case["catalog"]), now), fill(case, now, "n1")
        for step in case["steps"]:
            world.play(step, "user_n1")
        state, expect = world.state("user_n1"), case["expect"]
        problems = [
            f"{name} {state[name]}, expected {expect[name]}"
            for name in ("tier", "credits")
            if name in expect and state[name] != expect[name]
        ]
        for other, want in expect.get("others", {}).items():
            got = world.state(other)
            if want and [got["tier"], got["credits"]] != want:
                problems.append(f"{other} {got}, expected {want}")
        bad += bool(problems)
        if problems:
            print(path, "; ".join(problems))
    print(f"{len(sys.argv) - 1 - bad} agree, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
