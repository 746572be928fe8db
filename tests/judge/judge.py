"""An independent judge of money: what a life is worth, by the contract alone, from its facts and the time.
`World` plays the steps of a case, as tests/cases/README.md says. Times are seconds; intervals half open."""

import calendar
import datetime
from collections import Counter, defaultdict, namedtuple

from facts import DAY, TERMINAL, Facts

NEVER = 10**12
Opening = namedtuple("Opening", "item sub start end plan quantity invoice left own at until billed opens_at shown")
Segment = namedtuple("Segment", "opening k due end")  # a paid period, or a month of one
Lot = namedtuple("Lot", "key bucket left since until free plan")


def add_months(at, months):
    start = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return int(start.replace(year=year, month=month + 1, day=min(start.day, last)).timestamp())


def sums(lines, start):
    """Of an item's lines: credits left after earlier charges, charges from `start` on, the credits' start and end."""
    near = lambda n: min((abs(c.start - n.start), c.start) for c in lines if c.amount >= 0)[1]  # its charge
    left = -sum(n.net for n in lines if near(n) < start or near(n) == start and n.amount < 0)
    credits = [(n.start, n.end) for n in lines if n.amount < 0 and near(n) <= start] or [(0, 0)]
    return max(0, left), sum(n.net for n in lines if n.start == start and n.amount > 0), *map(max, zip(*credits))


class User:
    """One user's money as of `now`. `world` has the facts, `spent` what was taken from each lot."""
    def __init__(self, world, name, now):
        self.world, self.facts, self.catalog = world, world.facts, world.facts.catalog
        self.name, self.now, self.spent, self.policy = name, now, world.spent[name], self.catalog.policy
        named = {*self.facts.snapshots, *(i.sub for i in self.facts.invoices.values() if i.sub)}
        self.subs = {sub for sub in named if self.facts.owner(sub) == name}
        self.came = lambda item, sub: min([s.created for s, _ in self.shown_as(item, sub)], default=0)
        self.deleted_at = lambda sub: self.facts.deleted_customers.get(self.facts.customer_of.get(sub), NEVER)
        self.back = lambda document, at: self.facts.went_back(document.id, at, now)
        self.kept = lambda n, doc, at: n - min(n, n * self.back(doc, at) // doc.total) if doc.total > 0 else n
        self.snapshots = lambda sub, at=NEVER: [s for s in self.facts.snapshots.get(sub, []) if s.created <= at]
        self.shown_as = lambda item, sub: [(s, s.items[item]) for s in self.snapshots(sub) if item in s.items]
        self.paid_plan = lambda o: max(self.charges_of(o) or [o], key=lambda c: (c.start, c.invoice.created)).plan
        self.plan_openings = lambda: [o for openings in self.openings.values() for o in openings]
        self.read_lines()
        self.handed = defaultdict(lambda: ([], Counter()))
        self.swap_items()

    def read_lines(self):
        self.openings, self.charges, self.void = defaultdict(list), defaultdict(list), defaultdict(list)
        self.named, self.trial_lines, flagged, credited = {}, {}, [], defaultdict(list)
        for invoice in sorted(self.facts.invoices.values(), key=lambda i: (i.created, i.id)):
            lines = defaultdict(list)
            for line in invoice.lines if invoice.sub in self.subs else ():
                item = line.item or (line.plan and self.item_of(invoice.sub, line.plan))
                if item and not line.pack:
                    lines[item].append(line)
            for item, group in lines.items():
                named = [n.end > invoice.made and all(c.amount >= 0 or c.start <= n.start for c in group)
                         and invoice.made or min(n.start, invoice.made) for n in group if n.amount >= 0]
                self.named[item] = max([self.named.get(item, 0), *named])  # not by what it bills of the past
                for line in group:
                    if not line.plan or line.amount < 0 or not (line.amount or line.quantity):
                        continue
                    opens_at = min(line.start, max(invoice.created, line.start - 3600))
                    billed = invoice.made if invoice.made + 60 < line.start else line.start
                    opening = Opening(item, invoice.sub, line.start, line.end, line.plan, line.quantity,
                                      invoice, *sums(group, line.start), billed, opens_at, line.start)
                    credited[item] += [opening._replace(end=opening.until)] if opening.until > line.end else []
                    first = invoice.reason == "subscription_create"
                    if line.flagged and not (first and line.amount > 0):
                        flagged.append((opening, line.amount))
                    elif line.amount or line.flagged or self.zero_line_opens(item, line, invoice):
                        self.openings[item].append(opening)
                    elif first:
                        self.trial_lines[item] = opening
        for opening, amount in sorted(flagged, key=lambda f: f[0].start):
            openings, known = self.openings[opening.item], self.shown_as(opening.item, opening.sub)
            shown = max((i.start for _, i in known if i.start <= opening.start), default=None)
            first = all(o.start > opening.start for o in openings)
            opens = shown == opening.start and all(o.start != opening.start for o in openings)
            # Snapshots show an added item with the start of the others; its first line is prorated.
            if amount > 0 and (opens or shown is not None and first and not opening.at):
                openings.append(opening._replace(shown=shown))
            else:
                self.charges[opening.item].append(opening)
        for openings in self.openings.values():
            openings.sort(key=lambda o: (o.start, -o.invoice.created))
            last = Counter({o.invoice.id: o.start for o in openings if o.start - 3600 <= o.invoice.created})
            openings[:] = [o for o in openings if o.start >= last[o.invoice.id]]
        for item, openings in self.openings.items():
            begun = []
            for o in openings:  # billed in advance: never begins after the item's end, or if billed or credited anew
                anew = any(q.start < o.start < q.end and q.billed >= o.billed and q.invoice.id != o.invoice.id
                           for q in begun + credited[item])
                never = o.billed < o.start and (anew or self.stopped(item, o.sub) <= o.start)
                (self.void[item] if never else begun).append(o)
            openings[:] = [o for o in begun if o.opens_at <= self.now]

    def stopped(self, item, sub):
        """When an item ended, unless failed payments ended it."""
        failed = any(s.status in TERMINAL and s.reason == "payment_failed" for s in self.snapshots(sub, self.now)[-1:])
        return self.removed_at(item, sub) if failed else self.end_of(item, sub)

    def item_of(self, sub, plan):
        items = {i.id: i for s in self.snapshots(sub) for i in s.items.values()}
        return next((i.id for i in items.values() if i.plan == plan or len(items) == 1), None)

    def zero_line_opens(self, item, line, invoice):
        shown = self.shown_as(item, invoice.sub)
        free = any(i.price == line.price and i.amount == 0 for _, i in shown)
        trialing = any(s.status == "trialing" and i.start == line.start for s, i in shown)
        return free or invoice.reason == "subscription_cycle" and not trialing

    def all_items(self):
        items = {item: sub for sub in self.subs for s in self.snapshots(sub) for item in s.items}
        return items | {o.item: o.sub for o in [*self.plan_openings(), *self.trial_lines.values()]}

    def shown(self, opening, after, until):
        """(created, plan, quantity) of the snapshots that can change the plan inside this paid period."""
        for s, item in self.shown_as(opening.item, opening.sub):
            # A trial on a paid item moves the item's period.
            trial = s.status == "trialing" and opening.start < item.start and s.created < opening.end
            counts = item.plan and s.status in ("active", "trialing") and after < s.created < until
            if counts and (item.start in (opening.start, opening.shown) or trial):
                yield s.created, item.plan, item.quantity

    def blocked(self, opening, at):
        """Whether no month begins at this moment."""
        known = [s for s in self.snapshots(opening.sub) if min(s.created, s.ended) <= at]
        gone = min(self.removed_at(opening.item, opening.sub), self.deleted_at(opening.sub)) <= at
        last, until_end = (known or [None])[-1], self.policy["pause_collection"] == "until_period_end"
        return (gone or self.all_refunded(opening, at) or self.facts.dispute_open(opening.invoice.id, at)
                or last and (last.status in TERMINAL and last.reason != "payment_failed"
                             or last.status == "paused" or last.pause_collection and until_end))

    def due(self, opening, start, until):
        """When the month that starts at `start` falls due: then, or as soon as nothing blocks it."""
        spans = [s for p in self.facts.payments(opening.invoice.id) for s in self.facts.dispute_spans(p)]
        moments = {s.created for s in self.snapshots(opening.sub)} | {end for _, end, _, _ in spans if end}
        moments = [start, *sorted(t for t in moments if start < t < until)]
        return next((t for t in moments if not self.blocked(opening, t)), None)

    def segments(self, item):
        """The paid periods of an item, or the months of those that are refilled, that began by now."""
        found, openings = [], self.openings[item]
        for n, opening in enumerate(openings):
            limit = openings[n + 1].start if n + 1 < len(openings) else NEVER
            months = 36 if self.catalog.plans[opening.plan].get("refill") == "month" else 1
            cuts = [add_months(opening.start, k) for k in range(months)]
            cuts = [cut for cut in cuts if cut in (opening.start, min(cut, opening.end - 4 * DAY))]
            for k, start in enumerate(cuts):
                end = cuts[k + 1] if k + 1 < len(cuts) else opening.end
                due = start if k == 0 else self.due(opening, start, min(end, limit))
                if start < limit and due is not None and (due <= self.now or k == 0):
                    found.append(Segment(opening, k, due, end))
        return found

    def in_force(self, segment, until):
        """The plans and quantities in force one after another within a segment."""
        opening = segment.opening
        before = list(self.shown(opening, opening.start, segment.due + 1)) if segment.k else []
        first = before[-1] if before else (segment.due, opening.plan, opening.quantity)
        return [first, *self.shown(opening, segment.due, until)]

    def taken_over(self, segment):
        """The plans that replaced items had before a segment, and what was spent of each."""
        item, first = segment.opening.item, segment.opening == self.openings[segment.opening.item][0]
        return self.handed[item] if first and not segment.k else ([], Counter())

    def plans(self, segment, until):
        plans = [*self.taken_over(segment)[0], *(plan for _, plan, _ in self.in_force(segment, until))]
        return [plan for n, plan in enumerate(plans) if n == 0 or plans[n - 1] != plan]

    def worth(self, segment, until):
        """(credits of the plan in force, plan in force, whether the whole period's spends count)."""
        phases, opening = self.in_force(segment, until), segment.opening
        if self.policy["plan_change"] == "at_once":
            _, plan, quantity = phases[-1]
            return self.catalog.amount(plan, quantity), plan, self.plans(segment, until).count(plan) > 1
        # What was not charged does not count at the start of a later month either.
        phases = [(0, opening.plan, opening.quantity), *self.shown(opening, opening.start, until)]
        amount, reached = self.catalog.amount(*phases[0][1:]), {phases[0][1:]}
        charges = [c for c in self.charges_of(opening) if c.start < until]
        for _, plan, quantity in phases[1:]:
            new = self.catalog.amount(plan, quantity)
            # The opening paid for its own plan with up to its own quantity.
            paid = any(c.plan == plan and c.quantity >= quantity for c in [opening, *charges])
            if new <= amount or (plan, quantity) in reached or paid:
                amount, reached = new, reached | {(plan, quantity)}
        return amount, phases[-1][1], True

    def charges_of(self, opening):
        end = min([opening.end, *(o.start for o in self.openings[opening.item] if o.start > opening.start)])
        return [c for c in self.charges[opening.item] if opening.start <= c.start < end
                and (c.billed == c.start or opening.billed < opening.start)]

    def after_refunds(self, chain, part, at, increment=False):
        """What is left of a part of the last of an opening and its charges. What credits pay is no increment."""
        newest, own, left = chain[-1], 0, 0
        older = chain[:-1] or self.credited(newest, newest.item, newest.at)
        payers = [(newest.left, newest.own, older)] if not increment or newest.left >= newest.own else []
        payers += [(c, n, self.credited(newest, i, start)) for i, c, n, start in self.moved(newest)]
        for credits, charged, older in payers if not increment or newest.invoice.total <= 0 else []:
            share = part * min(credits, charged) // charged if charged > 0 else 0
            part, own = part - share, own + share * (not older)
            left += self.after_refunds(older, share, at) if older and share else 0
        return left + self.kept(part + own, newest.invoice, at)

    def credited(self, by, item, at, period=None):
        """The opening of the period of an item that an invoice credits at a moment, and charges until then."""
        rank = lambda o: (o.billed, bool(o.left or [*self.moved(o)]) and o.invoice.created, o.invoice.id)
        old = lambda o: o.start <= at and o.invoice.id != by.invoice.id and rank(o) < rank(by)
        newest = lambda known: [o for o in [o for o in known[item] if old(o)][-1:] if o.end > at]
        period = period or newest(self.openings) or newest(self.void)
        return period + [c for o in period for c in self.charges_of(o) if c.own > 0 and old(c)]

    def moved(self, opening):
        """Of other items: (item, what the invoice credits of it, the charges that this pays for, its start)."""
        lines = sorted((n for n in opening.invoice.lines if n.item), key=lambda n: (n.start, n.end))
        credited, charged = ({n.item for n in lines if (n.amount < 0) == back} for back in (True, False))
        paid, net, start = opening.invoice.total > 0, Counter(), opening.start
        for n in lines:
            net[n.item] += (not paid or n.start == start and n.item not in credited & charged) * n.net
        need = sum(max(0, amount) for amount in net.values())
        renewed = {n.item for n in lines if n.start == start and n.amount >= 0 and n.end >= opening.end}
        newest = {n.item: n for n in lines if n.amount < 0 and net[n.item] < 0}
        for item in sorted(newest) if (opening.item not in credited if paid else net[opening.item] > 0) else []:
            gone = all(n.start < newest[item].start for n in lines if n.item == item and n.amount >= 0)
            if gone or newest[item].end >= opening.end or item in renewed and newest[item].end <= start:
                yield item, -net[item], need, newest[item].start
                need += net[item]

    def fill(self, opening, worth, at):
        """What is left of `worth` after what refunds, known at `at`, took; before what was spent."""
        level, rest, left = 0, worth, 0
        for one in [opening, *self.charges_of(opening)]:
            reached = self.catalog.amount(one.plan, one.quantity)
            part = min(rest, max(0, reached - level))
            level, rest = max(level, reached), rest - part
            chain = self.credited(one, one.item, one.at, one is not opening and [opening])
            left += self.after_refunds([*chain, one], part, at, one is not opening)
        return left + rest

    def spends(self, segments, n):
        """What was spent of each plan in a segment, also before it, and in later months that were undone."""
        opening, k = segments[n].opening, segments[n].k
        until = segments[n + 1].k or 99 if n + 1 < len(segments) else 99
        spent, undone = self.taken_over(segments[n])[1].copy(), Counter()
        starts = [add_months(s.opening.start, s.k) for s in segments[n : n + 2]] + [NEVER]
        plans = self.plans(segments[n], segments[n + 1].due if n + 1 < len(segments) else NEVER)
        for key, credits in self.spent.items():
            if key[:3] == ("item", opening.item, opening.start) and k <= key[3] < until:
                (spent if key[3] == k else undone)[key[4]] += credits
            elif key[:2] == ("item", opening.item) and any(o.start == key[2] for o in self.void[opening.item]):
                if starts[0] <= add_months(*key[2:4]) < starts[1]:
                    (spent if key[4] in plans else undone)[key[4]] += credits
        if n and k == 0 and opening.start < segments[n - 1].opening.end:
            before, undone_before = self.spends(segments, n - 1)
            spent[opening.plan] += self.unpaid(opening, (before + undone_before).total())
        return spent, undone

    def unpaid(self, opening, spent):
        total = opening.invoice.total
        return spent if total <= 0 else spent * (total - opening.invoice.paid) // total

    def swap_items(self):
        """Hands the spends of replaced items over to the new ones of the same update, the oldest first."""
        items = sorted(self.all_items().items())
        gone = {item: (self.missing(item, sub)[0], sub) for item, sub in items}
        for update in sorted(one for one in set(gone.values()) if one[0] < NEVER):
            new = [o for i, sub in items if (self.came(i, sub), sub) == update for o in self.openings[i][:1]]
            new, parts = sorted(new, key=lambda o: -self.catalog.amount(o.plan, o.quantity)), []
            for segments in filter(None, [self.segments(i) for i, _ in items if gone[i] == update]):
                old, (spent, undone) = segments[-1].opening, self.spends(segments, len(segments) - 1)
                # The first snapshot shows also items that were there before.
                known = self.snapshots(update[1])[0].created < update[0]
                within = [o for o in new if (known or o.start > old.start) and o.start < old.end]
                rest = [o for o in within if o.shown < o.start or o.end == old.end]
                for opening in rest:
                    self.handed[opening.item][0].extend(self.plans(segments[-1], NEVER))
                parts += [(plan, credits, rest) for plan, credits in sorted((spent + undone).items()) if rest]
                for o in within[: not rest]:  # a full period of its own, as far as it is not paid
                    self.handed[o.item][1][o.plan] += self.unpaid(o, (spent + undone).total())
            for plan, left, rest in sorted(parts, key=lambda p: p[0] not in [o.plan for o in new]):
                rest = sorted(rest, key=lambda o: o.plan != plan)
                for opening in rest:
                    spent = self.handed[opening.item][1]
                    room = max(0, self.catalog.amount(opening.plan, opening.quantity) - spent.total())
                    spent[plan], left = spent[plan] + min(left, room), max(0, left - room)
                self.handed[rest[0].item][1][plan] += left
        for at, old, sub in sorted((at, item, sub) for item, (at, sub) in gone.items() if at < NEVER):
            self.hand_trial_on(at, old, sub, gone)

    def hand_trial_on(self, at, old, sub, gone):
        """A subscription has one trial, also if an item comes and the one that has it goes."""
        spent = self.handed[old][1]["trial"] + (0 if self.openings[old] else self.spent["trial", old])
        costs = lambda o: any(n.amount > 0 for n in o.invoice.lines if n.item in (old, None))
        paid = self.handed[old][1]["paid"] or any(map(costs, self.openings[old]))
        since = max(self.came(old, sub), self.snapshots(sub)[0].created)
        new = sorted((-self.trial_of(i, sub)[1], i) for i, (end, of) in gone.items()
                     if of == sub and not self.openings[i] and self.came(i, sub) > since and end > at)
        for worth, item in new:
            part = min(spent, max(0, -worth - self.handed[item][1]["trial"]))
            self.handed[item][1].update(trial=part, paid=paid)
            spent -= part
        if new:
            self.handed[new[0][1]][1]["trial"] += spent

    def lot(self, key, bucket, granted, since, until, free=False, plan=False):
        return Lot(key, bucket, max(0, granted - self.spent.get(key, 0)), since, until, free, plan)

    def item_lots(self, item, sub):
        segments = self.segments(item)
        if not segments:
            return self.trial_lots(item, sub)
        rollovers = []
        for n, segment in enumerate(segments):
            opening, following = segment.opening, segments[n + 1] if n + 1 < len(segments) else None
            until = following.due if following else NEVER
            worth, plan, whole = self.worth(segment, until)
            spent, undone = self.spends(segments, n)
            counted = (spent.total() if whole else spent[plan]) + undone.total()
            left = max(0, self.fill(opening, worth, min(until, self.now)) - counted)
            rollovers.append((n, segment, left, plan))
        key = ("item", item, opening.start, segment.k, plan)
        lots = [Lot(key, item, left, segment.due, segment.end, False, True)]
        last_end = opening.end + self.policy["past_due_grace_days"] * DAY
        for n, segment, left, plan in rollovers[:-1]:
            rule, new = self.catalog.plans[plan].get("rollover", {}), segments[n + 1]
            if not rule.get("percent") or not new.k and new.opening.at and new.due < segment.opening.end:
                continue
            carried = then = min(left * rule["percent"] // 100, rule.get("max", 0))
            after = n + 1 + rule.get("periods", 1)
            ends = segments[after].due if after < len(segments) else last_end
            if not self.all_refunded(segment.opening, self.now):
                then = self.fill(segment.opening, carried, new.due)
            key = ("rollover", item, new.opening.start, new.k)
            carry = carried - then + self.fill(segment.opening, carried, self.now)
            if ends > self.now:
                carry = max(carry, self.spent.get(key, 0))
                lots.append(self.lot(key, "rollover " + item, carry, new.due, ends, plan=True))
        over = any(o.start >= self.end_of(item, sub) for o in self.plan_openings() if o.item != item)
        return [lot._replace(left=0) for lot in lots] if over else lots

    def trial_of(self, item, sub):
        shown = [i for s, i in self.shown_as(item, sub) if s.status == "trialing" and s.created <= self.now]
        shown = shown[-1] if shown else self.trial_lines.get(item)
        is_known = shown and shown.plan
        return is_known and shown, is_known and self.catalog.amount(shown.plan, shown.quantity, True) or 0

    def trial_lots(self, item, sub):
        (shown, amount), handed = self.trial_of(item, sub), self.handed[item][1]
        firsts = [(s.created, other) for other in self.subs for s in self.snapshots(other, self.now)
                  if s.status == "trialing"]
        late = self.policy["trials"] == "once" and firsts and min(firsts)[1] != sub
        if not shown or late or handed["paid"]:
            return []
        amount = amount - handed["trial"] if self.end_of(item, sub) == NEVER else 0
        return [self.lot(("trial", item), item, amount, shown.start, shown.end, free=True, plan=True)]

    def end_of(self, item, sub):
        """When the item's subscription ended, or it was removed from it."""
        ended = [s.ended for s in self.snapshots(sub, self.now)[-1:] if s.status in TERMINAL]
        return min([self.removed_at(item, sub), self.deleted_at(sub), *ended])

    def missing(self, item, sub):
        """The first snapshot without an item that was removed, and when the item was last named."""
        known = self.snapshots(sub, self.now)
        named = max([self.named.get(item, 0)] + [s.created for s in known if item in s.items])
        return next((s.created for s in known if s.created > named), NEVER), named

    def removed_at(self, item, sub):
        # What came in its place is billed from the time of the change, which the snapshot shows later.
        lacks, named = self.missing(item, sub)
        came = [o.start for o in self.plan_openings() if o.sub == sub and self.came(o.item, sub) > named]
        return min([lacks, *came]) if lacks < NEVER else NEVER

    def lots(self):
        lots = [lot for item, sub in sorted(self.all_items().items()) for lot in self.item_lots(item, sub)]
        lots += self.signup_lots() + self.purchase_lots()
        gifts = enumerate(self.world.grants[self.name])
        lots += [self.lot(("grant", n), "grant", *gift, free=True) for n, gift in gifts]
        lots = [lot._replace(left=0) if lot.until <= self.now and not lot.plan else lot for lot in lots]
        return sorted(lots, key=self.spend_order)

    def spend_order(self, lot):
        if self.policy["spend_order"] == "expiring_first":
            return lot.until, not lot.free, not lot.plan, lot.since, str(lot.key)
        if lot.plan and lot.bucket != "lifetime":
            item = lot.bucket.removeprefix("rollover ")
            period = [lot.until, *(s.end for s in self.segments(item))][-1]
            return 0, period, item, lot.key[0] == "rollover", lot.until, lot.since, str(lot.key)
        kind = ["lifetime", "signup", "grant", "addon"].index(lot.bucket)
        return kind + 1, lot.since, str(lot.key)

    def signup_lots(self):
        if (created := self.world.created.get(self.name)) is None:
            return []
        days, free, k = self.policy["signup_expires_days"], self.policy["free_credits"], 1
        until = created + days * DAY if days else NEVER
        lot = self.lot(("signup",), "signup", self.policy["signup_credits"], created, until, free=True)
        while free and (start := add_months(created, k)) <= self.now:
            if not self.plans_at(start):
                lot = self.lot(("free", k), "signup", free, start, NEVER, free=True)
            k += 1
        return [lot._replace(left=0) if any(o.start >= lot.since for o in self.plan_openings()) else lot]

    def purchase_lots(self):
        lots, sold = [], set()
        for session in self.facts.sessions.values():
            mine = self.facts.payments(session.id)
            tied = [i for i in self.facts.invoices if i == session.invoice or mine & self.facts.payments(i)]
            sold |= set(tied)
            if self.facts.owner(session.id) != self.name:
                continue
            spent = sum(self.spent["pack", document] for document in [session.id, *tied])
            if session.plan in self.catalog.plans:
                granted = self.catalog.amount(session.plan, session.quantity)
                lots.append(self.bought(session, "lifetime", granted, 0, spent))
            elif session.name in self.catalog.packs:
                lots.append(self.pack(session, session.name, session.quantity, spent))
        for invoice in self.facts.invoices.values():
            if invoice.id not in sold and self.facts.owner(invoice.id) == self.name:
                lots += [self.pack(invoice, line.pack, line.quantity, self.spent["pack", invoice.id])
                         for line in invoice.lines if line.pack and line.amount >= 0
                         and not (line.flagged and invoice.reason != "subscription_create")]
        return lots

    def pack(self, document, name, quantity, spent):
        credits, days = (self.catalog.packs[name].get(field, 0) for field in ("credits", "expires_days"))
        return self.bought(document, "addon", credits * quantity, days, spent)

    def bought(self, document, bucket, granted, days, spent):
        granted = self.kept(granted, document, self.now)
        reset = bucket == "addon" and self.policy["addons"] == "reset" and any(
            document.created < o.start and o.invoice.heard >= document.heard and o.invoice.id != document.id
            and self.catalog.plans[o.plan].get("per") != "seat" for o in self.plan_openings())
        left = 0 if reset else max(0, granted - spent)
        until = document.created + days * DAY if days else NEVER
        return Lot(("pack", document.id), bucket, left, document.created, until, False, bucket == "lifetime")

    def tier(self):
        default, tiers = self.policy["default_tier"], self.catalog.tiers
        best = max([tiers[default], *map(self.catalog.rank, self.plans_at(self.now))])
        return next(name for name, rank in tiers.items() if rank == best)

    def plans_at(self, at):
        plans = [self.item_access(item, sub, at) for item, sub in self.all_items().items()]
        plans += [s.plan for s in self.facts.sessions.values() if self.facts.owner(s.id) == self.name
                  and s.created <= at and not (s.total and self.back(s, at) >= s.total)]
        plans += [plan for plan, start, end in self.world.complimentary[self.name] if start <= at < end]
        return [plan for plan in plans if plan in self.catalog.plans]

    def item_access(self, item, sub, at):
        known = self.snapshots(sub, at)
        openings = [o for o in self.openings[item] if o.start <= at]
        running = openings[-1] if openings and at < openings[-1].end else None
        last = known[-1] if known else None
        back = self.policy["refunded_access"] == "end" and openings and self.all_refunded(openings[-1], at)
        if self.deleted_at(sub) <= at or back:
            return None
        if last is None or item not in last.items:
            newest = max([s.created for s in known if item in s.items] + [self.named.get(item, 0)])
            unseen = last is None or newest >= last.created and last.status in ("active", "trialing")
            return self.paid_plan(running) if running and unseen else None
        shown = last.items[item].plan
        newest = openings[-1:]
        if any(o.start > last.items[item].start and o.invoice.created > last.created for o in newest):
            shown = self.paid_plan(newest[0])
        if last.cancel_at is not None and last.cancel_at <= at and last.status not in TERMINAL:
            return None
        paid = self.paid_plan(openings[-1]) if openings else None
        lower = min([p for p in (paid, shown) if p], key=self.catalog.rank, default=None)
        status, late = last.status, last.status in ("incomplete", "past_due", "unpaid")
        if late and openings and self.paid_since(openings[-1], last):
            status = "active"  # the snapshot that says so has not arrived
        if status in ("active", "trialing"):
            until_end = last.pause_collection and self.policy["pause_collection"] == "until_period_end"
            return (lower if running else None) if until_end else shown
        if status in ("past_due", "unpaid") or status == "canceled" and last.reason == "payment_failed":
            # The grace runs from the first unpaid period, also if the subscription went on to others.
            seen = [(s, i.start) for s, i in self.shown_as(item, sub) if s.created <= at]
            fine = max([s.created for s, _ in seen if s.status in ("active", "trialing")], default=0)
            unpaid = [(s.created, start) for s, start in seen
                      if s.status in ("past_due", "unpaid") and s.created > fine] or [(0, NEVER)]
            end, days = max([o.end for o in openings[-1:]], default=0), last.days_until_due * DAY
            grace = min(max(min(start for _, start in unpaid), end), last.items[item].start)
            # An invoice that is sent may fall due in the next period, which snapshots show then.
            trials = {start for s, start in seen if s.status == "trialing"}
            due = [start for start in {end or NEVER, *(start for _, start in seen)} - trials
                   if end <= start < grace and start + days <= min(unpaid)[0]]
            grace = max(due) if due and min(unpaid)[0] < grace + days else grace
            grace += days + self.policy["past_due_grace_days"] * DAY
            if running or status == "past_due" and at < grace:
                return lower
        return None

    def paid_since(self, opening, snapshot):
        later = all(item.start <= opening.start for item in snapshot.items.values())
        paid = opening.invoice.created - snapshot.created
        return snapshot.status == "incomplete" and paid >= 0 or later and paid > 0

    def all_refunded(self, opening, at):
        every = all(self.back(c.invoice, at) >= c.invoice.total for c in self.charges_of(opening))
        return every and not self.after_refunds([opening], 10**6, at)


class World:
    """Plays the steps of a life and keeps what was spent from each lot."""
    def __init__(self, catalog, wall, any_time=False):
        self.facts, self.wall, self.any_time = Facts(catalog), wall, any_time
        self.spent = defaultdict(Counter)
        self.grants, self.complimentary = defaultdict(list), defaultdict(list)
        self.created, self.taken, self.holds, self.step = {}, {}, defaultdict(dict), 0

    def now(self, user):
        newest, clocked = self.facts.newest(user)
        return max(self.wall, self.facts.latest if self.any_time else newest * clocked)

    def lots(self, name):
        return User(self, name, self.now(name)).lots()

    def take(self, user, key, amount):
        takes = self.taken[user, key] = []
        for lot in self.lots(user):
            n = min(lot.left, amount)
            takes.append((lot.key, n))
            self.spent[user][lot.key] += n
            amount -= n
        return 200

    def available(self, user, lots=None):
        held = sum(n for n, end in self.holds[user].values() if end > self.now(user))
        return max(0, sum(lot.left for lot in lots or self.lots(user)) - held)

    def play(self, step, user):
        """Plays one step; the answer is the expected HTTP status, or None."""
        self.step += 1
        for event in step.get("send", ()):
            self.facts.hear(event, self.step)
        if "user" in step or step.get("http", [None])[0] == "PUT":
            self.created.setdefault(user, self.now(user))
        elif {"spend", "hold"} & set(step) and self.available(user) < step.get("spend", step.get("hold")):
            return 402
        elif "spend" in step:
            return self.take(user, step.get("key", self.step), step["spend"])
        elif "give_back" in step:
            return self.give_back(user, step["give_back"], step["amount"])
        elif "hold" in step:
            self.holds[user][step["key"]] = (step["hold"], self.now(user) + step["ttl"])
            return 201
        elif step.get("commit") in self.holds[user]:
            return self.commit(user, step["commit"], step["amount"])
        elif "release" in step:
            return 200 if self.holds[user].pop(step["release"], None) else None
        elif "fix" in step:
            self.fix(user, step["fix"])
        return None

    def fix(self, user, fix):
        at = {k: int(datetime.datetime.fromisoformat(fix[k].replace("Z", "+00:00")).timestamp())
              for k in ("from", "until") if fix.get(k)}
        start, until = at.get("from", self.now(user)), at.get("until", NEVER)
        if fix["action"] == "complimentary":
            self.complimentary[user].append((fix["plan"], start, until))
        if fix["action"] in ("grant", "complimentary") and fix.get("credits"):
            self.grants[user].append((fix["credits"], start, until))

    def commit(self, user, hold, amount):
        (held, end), now = self.holds[user][hold], self.now(user)
        if amount > (held if end > now else self.available(user)):
            return 400 if end > now else 402
        del self.holds[user][hold]
        return self.take(user, hold, amount)

    def give_back(self, user, spend, amount):
        if (takes := self.taken.get((user, spend))) is None or sum(n for _, n in takes) < amount:
            return None
        for n, (key, taken) in reversed(list(enumerate(takes))):
            back = min(taken, amount)
            amount -= back
            takes[n] = (key, taken - back)
            lot = next((k for k, *_ in self.lots(user) if k[:4] == key[:4] or k[0] == key[0] == "pack"
                        and self.facts.payments(k[1]) & self.facts.payments(key[1])), None)
            if lot and (key[0] in ("item", "trial") or not self.gone(user, lot)):
                self.spent[user][key] -= back
        return 200

    def gone(self, user, key):
        """Whether a lot ended: its period is over, it expired, or was reset. Refunds do not end it."""
        self.spent[user][key] -= NEVER
        alive = any(lot.key == key and lot.left > 0 for lot in self.lots(user))
        self.spent[user][key] += NEVER
        return not alive

    def state(self, user):
        lots = self.lots(user)
        tier, credits = User(self, user, self.now(user)).tier(), sum(lot.left for lot in lots)
        return {"tier": tier, "credits": credits, "available": self.available(user, lots),
                "lots": sorted([lot.bucket, lot.left] for lot in lots if lot.left)}
