//! 2.5, 2.6, 2.8 and credits.md §2, §4: the periods, slices and bucket of one subscription item.

use crate::catalog::{DAY, Plan, Sold};
use crate::event::{Invoice, Line, Snapshot, SnapshotItem};
use crate::facts::Facts;
use crate::time::add_months;
use crate::{Key, Takes};
use std::collections::{BTreeMap, BTreeSet};

/// A time after every other.
pub const NEVER: i64 = i64::MAX;

/// A paid period of an item, opened by a line of an invoice.
pub struct Period<'a> {
    pub start: i64,
    pub end: i64,
    pub plan: &'a Plan,
    pub quantity: i64,
    pub invoice: &'a Invoice,
    /// The item's lines on the invoice that are negative and positive: what unused time paid for.
    credits: i64,
    positives: i64,
}

/// A paid line that charges a plan change inside a period.
pub struct Charge<'a> {
    start: i64,
    at: i64,
    plan: &'a Plan,
    quantity: i64,
    invoice: &'a Invoice,
    credits: i64,
    positives: i64,
}

/// A plan and quantity that a snapshot or a charge shows from a moment on.
#[derive(Clone, Copy)]
struct State<'a> {
    at: i64,
    item_start: Option<i64>,
    plan: &'a Plan,
    quantity: i64,
}

/// A period, or a slice of it, that was granted.
pub struct Unit {
    pub period: usize,
    pub slice: usize,
    pub start: i64,
    /// When it was granted: its start, or the resume of a slice that was skipped at first.
    granted: i64,
    end: i64,
}

/// What a bucket holds and why.
pub struct Content {
    pub plan: String,
    pub left: i64,
    /// The part that was paid for, or is free by rule, and not given back.
    pub backed: i64,
}

/// A part of a period's worth: paid by the opening, by a charge, or by nothing.
enum Part<'a> {
    Opening(i64),
    Charge(i64, &'a Invoice),
    Uncharged(i64),
}

/// One subscription item.
pub struct Item<'a> {
    pub id: String,
    pub sub: String,
    names: BTreeSet<String>,
    pub periods: Vec<Period<'a>>,
    charges: Vec<Charge<'a>>,
    states: Vec<State<'a>>,
    pub units: Vec<Unit>,
    /// When the item's bucket may end: the end of the subscription, or the item's removal.
    pub end: Option<i64>,
    facts: &'a Facts<'a>,
    takes: &'a Takes,
}

/// A subscription with what decides about its items.
pub struct Sub<'a> {
    pub id: String,
    pub snapshots: Vec<&'a Snapshot>,
    /// Its end, and whether unpaid bills ended it.
    pub ended: Option<(i64, bool)>,
    pub items: Vec<Item<'a>>,
}

fn same_item<'s>(s: &'s Snapshot, item: &str) -> Option<&'s SnapshotItem> {
    s.items.iter().find(|i| i.id == item)
}

impl<'a> Sub<'a> {
    /// Reads a subscription as it stands at `now`.
    pub fn read(facts: &'a Facts<'a>, id: &str, takes: &'a Takes, now: i64) -> Sub<'a> {
        let snapshots = facts.snapshots.get(id).cloned().unwrap_or_default();
        let invoices: Vec<&Invoice> =
            facts.invoices.values().copied().filter(|i| i.sub.as_deref() == Some(id)).collect();
        let customers = snapshots.iter().filter_map(|s| s.customer.as_ref());
        let customers = customers.chain(invoices.iter().filter_map(|i| i.customer.as_ref()));
        let deleted = customers.filter_map(|c| facts.deleted_customers.get(c)).min();
        let terminal = snapshots.last().filter(|s| crate::facts::is_terminal(&s.status));
        let ended = [
            terminal.map(|s| (s.ended_at.unwrap_or(s.created), s.payment_failed)),
            deleted.map(|at| (*at, false)),
        ];
        let ended = ended.into_iter().flatten().min();
        let mut sub = Sub { id: id.into(), snapshots, ended, items: Vec::new() };
        let mut lines: BTreeMap<String, Vec<(&'a Invoice, &'a Line)>> = BTreeMap::new();
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for s in &sub.snapshots {
            for i in &s.items {
                lines.entry(i.id.clone()).or_default();
            }
        }
        let named = |i: &Invoice| i.lines.iter().filter_map(|l| l.item.clone()).collect::<Vec<_>>();
        let known: BTreeSet<String> =
            lines.keys().cloned().chain(invoices.iter().flat_map(|i| named(i))).collect();
        for invoice in invoices {
            for line in &invoice.lines {
                if let Some((item, name)) = sub.item_of(facts, line, &known) {
                    names.entry(item.clone()).or_default().insert(name);
                    lines.entry(item).or_default().push((invoice, line));
                }
            }
        }
        for (item, lines) in lines {
            let names = names.remove(&item).unwrap_or_default();
            let read = sub.item(facts, item, names, &lines, takes, now);
            sub.items.push(read);
        }
        sub
    }

    /// "A line belongs to the item that it names, else to the only item, else to the item of its plan." Without
    /// any item, the plan's name stands for it. Returns the item and the name that spends may carry.
    fn item_of(&self, facts: &Facts<'_>, line: &Line, known: &BTreeSet<String>) -> Option<(String, String)> {
        if let Some(item) = &line.item {
            return Some((item.clone(), item.clone()));
        }
        let Some(Sold::Plan(plan)) = facts.sold(line.price.as_ref()?) else { return None };
        let name = format!("{}/{}", self.id, plan.name);
        let has =
            |i: &SnapshotItem| matches!(facts.sold(&i.price), Some(Sold::Plan(p)) if p.name == plan.name);
        let of_plan = || self.snapshots.iter().rev().flat_map(|s| &s.items).find(|i| has(i));
        let item = match known.iter().next() {
            Some(only) if known.len() == 1 => only.clone(),
            _ => of_plan().map_or_else(|| name.clone(), |i| i.id.clone()),
        };
        Some((item, name))
    }

    /// Whether a snapshot of the item's period with this start is `trialing`.
    fn trialing(&self, item: &str, start: i64) -> bool {
        let of_period = |s: &&&Snapshot| {
            same_item(s, item).is_some_and(|i| i.start == start || i.start < start && start < i.end)
        };
        self.snapshots.iter().filter(of_period).any(|s| s.status == "trialing")
    }

    fn item(
        &self,
        facts: &'a Facts<'a>,
        id: String,
        mut names: BTreeSet<String>,
        lines: &[(&'a Invoice, &'a Line)],
        takes: &'a Takes,
        now: i64,
    ) -> Item<'a> {
        names.insert(id.clone());
        // "First the unflagged positive lines of known plan prices, and any positive one of a
        // `subscription_create` invoice"; "a zero line opens a period if its price's own amount is 0, or if a
        // `subscription_cycle` invoice bears it and no snapshot of that period is `trialing`".
        let (mut firm, mut weak, mut charges) = (Vec::new(), Vec::new(), Vec::new());
        for (invoice, line) in lines {
            let Some(Sold::Plan(plan)) = line.price.as_ref().and_then(|p| facts.sold(p)) else { continue };
            let zero = line.amount == 0;
            let trial = self.trialing(&id, line.start);
            let free = zero && line.price.as_ref().is_some_and(|p| facts.is_free(p));
            let cycle = zero && !line.flagged && invoice.reason == "subscription_cycle" && !trial;
            if line.amount > 0 || free || cycle {
                let first = !line.flagged || invoice.reason == "subscription_create";
                (if first { &mut firm } else { &mut weak }).push((*invoice, *line, plan));
            } else if zero && line.flagged && !trial {
                // 2.6: "positive or fully discounted".
                charges.push((*invoice, *line, plan));
            }
        }
        let order = |l: &(&Invoice, &Line, &'a Plan)| {
            (l.1.start, l.0.created, l.0.id.clone(), -l.2.worth(l.1.quantity))
        };
        firm.sort_by_key(order);
        weak.sort_by_key(order);
        let sums = |invoice: &Invoice| {
            let of = lines.iter().filter(|(i, _)| i.id == invoice.id).map(|(_, l)| l.amount);
            of.fold((0, 0), |(c, p), a| if a < 0 { (c - a, p) } else { (c, p + a) })
        };
        let mut periods: Vec<Period<'a>> = Vec::new();
        let mut open = |(invoice, line, plan): (&'a Invoice, &'a Line, &'a Plan), sure: bool| {
            let shown = |s: &&Snapshot| same_item(s, &id).is_some_and(|i| i.start == line.start);
            match periods.iter().find(|p| p.start == line.start) {
                // "The earliest invoice"; "if another invoice already opens that period, such a flagged line is
                // the charge of a plan change".
                Some(opened) if opened.invoice.id == invoice.id => {}
                None if sure || self.snapshots.iter().any(|s| shown(&s)) => {
                    let ((credits, positives), quantity) = (sums(invoice), line.quantity);
                    let (start, end) = (line.start, line.end);
                    periods.push(Period { start, end, plan, quantity, invoice, credits, positives });
                }
                Some(_) | None => charges.push((invoice, line, plan)),
            }
        };
        firm.into_iter().for_each(|l| open(l, true));
        weak.into_iter().for_each(|l| open(l, false));
        periods.sort_by_key(|p| p.start);
        // "The latest start that has opened by now, the others are superseded." "A line whose start lies ahead
        // opens at the later of its event and one hour before its start."
        let opens = |p: &Period<'_>| p.invoice.event_created.max(p.start - 3600);
        let born_late: Vec<(String, i64, i64)> =
            periods.iter().map(|p| (p.invoice.id.clone(), p.start, opens(p))).collect();
        periods.retain(|p| {
            let later = |(id, start, at): &(String, i64, i64)| {
                *id == p.invoice.id && *start > p.start && *at <= opens(p)
            };
            opens(p) <= now.max(p.invoice.event_created) && !born_late.iter().any(later)
        });
        let charge = |(invoice, line, plan): (&'a Invoice, &'a Line, &'a Plan)| {
            let (credits, positives) = sums(invoice);
            let at = if line.flagged { line.start } else { invoice.created };
            let (start, quantity) = (line.start, line.quantity);
            Charge { start, at, plan, quantity, invoice, credits, positives }
        };
        let mut charges: Vec<Charge<'a>> = charges.into_iter().map(charge).collect();
        charges.sort_by_key(|c| (c.at, c.invoice.created, c.invoice.id.clone()));
        // 2.6: "A change counts when an `active` or `trialing` snapshot in that period shows it." 2.5: "or the
        // invoice that charges it".
        let shown = |s: &&'a Snapshot| {
            let i = same_item(s, &id).filter(|_| matches!(s.status.as_str(), "active" | "trialing"))?;
            let Some(Sold::Plan(plan)) = facts.sold(&i.price) else { return None };
            Some(State { at: s.created, item_start: Some(i.start), plan, quantity: i.quantity })
        };
        let charged =
            |c: &Charge<'a>| State { at: c.at, item_start: None, plan: c.plan, quantity: c.quantity };
        let mut states: Vec<State<'a>> =
            charges.iter().map(charged).chain(self.snapshots.iter().filter_map(shown)).collect();
        states.sort_by_key(|s| s.at);
        let end = [self.ended.map(|e| e.0), self.removed(&id, lines)].into_iter().flatten().min();
        let sub = self.id.clone();
        let mut item =
            Item { id, sub, names, periods, charges, states, units: Vec::new(), end, facts, takes };
        item.units = (0..item.periods.len()).flat_map(|p| item.units_of(self, p, now)).collect();
        item
    }

    /// "An item is removed if the latest snapshot lacks it and is later than the newest snapshot or invoice that
    /// names it; the end is the earliest such snapshot." A line that only credits it does not count as naming.
    fn removed(&self, id: &str, lines: &[(&Invoice, &Line)]) -> Option<i64> {
        let has = |s: &&&Snapshot| same_item(s, id).is_some();
        let named = lines.iter().filter(|(i, l)| l.amount >= 0 && l.end > i.created).map(|(i, _)| i.created);
        let newest = named.chain(self.snapshots.iter().filter(has).map(|s| s.created)).max()?;
        self.snapshots.last().filter(|s| !has(s) && s.created > newest)?;
        self.snapshots.iter().filter(|s| !has(s) && s.created > newest).map(|s| s.created).min()
    }

    /// The newest snapshot that was created at or before a moment.
    pub fn snapshot_at(&self, at: i64) -> Option<&'a Snapshot> {
        self.snapshots.iter().rev().find(|s| s.created <= at).copied()
    }
}

impl<'a> Item<'a> {
    fn window_end(&self, period: usize) -> i64 {
        let next = self.periods.get(period + 1).map_or(NEVER, |p| p.start);
        self.periods[period].end.min(next)
    }

    /// credits.md §2: the period, and its slices that were granted by now.
    fn units_of(&self, sub: &Sub<'a>, period: usize, now: i64) -> Vec<Unit> {
        let p = &self.periods[period];
        let (last, slices) = (self.window_end(period), if p.plan.refill == "month" { 36 } else { 1 });
        // "k = 0, 1, … while the start is at least 4 days before E".
        let starts = (0..slices).map(|k| if k == 0 { p.start } else { add_months(p.start, k) });
        let starts: Vec<i64> =
            starts.enumerate().take_while(|(k, s)| *k == 0 || p.end - s >= 4 * DAY).map(|(_, s)| s).collect();
        let mut units = Vec::new();
        for (slice, start) in starts.iter().copied().enumerate() {
            let next = starts.get(slice + 1).copied().unwrap_or(NEVER);
            // "… the running one, which is granted in full at the resume or win, dated then".
            let mut times = vec![start];
            times.extend(sub.snapshots.iter().map(|s| s.created));
            times.extend(self.facts.dispute_times(&p.invoice.id));
            times.retain(|t| *t >= start && *t < next.min(last) && *t <= now);
            times.sort_unstable();
            let granted = times.into_iter().find(|t| !self.skipped(sub, p, *t));
            if let Some(granted) = if slice == 0 { Some(start) } else { granted } {
                units.push(Unit { period, slice, start, granted, end: NEVER });
            }
        }
        for i in 1..units.len() {
            units[i - 1].end = units[i].granted;
        }
        units
    }

    /// "A slice is due … unless at its start the subscription was ended by request, `paused`, or paused in
    /// collection under `until_period_end`, or a dispute of the period's payment was open."
    fn skipped(&self, sub: &Sub<'a>, p: &Period<'a>, at: i64) -> bool {
        let by_request =
            self.end.is_some_and(|end| end <= at) && !sub.ended.is_some_and(|(_, failed)| failed);
        let held = self.facts.catalog.policy.pause_collection == "until_period_end";
        let paused = |s: &Snapshot| s.status == "paused" || held && s.collection_paused;
        by_request || sub.snapshot_at(at).is_some_and(paused) || self.facts.dispute_open(&p.invoice.id, at)
    }

    /// The states of a period, in order: by item period where it matches one, else by time.
    fn states_of(&self, period: usize) -> Vec<State<'a>> {
        let (p, end) = (&self.periods[period], self.window_end(period));
        let other = |start: i64| self.periods.iter().any(|q| q.start == start);
        let inside = |s: &&State<'a>| match s.item_start {
            Some(start) if start == p.start => true,
            Some(start) => !other(start) && p.start < s.at && s.at < end && start < p.end,
            None => p.start <= s.at && s.at < end,
        };
        self.states.iter().filter(inside).copied().collect()
    }

    fn charges_of(&self, period: usize) -> impl Iterator<Item = &Charge<'a>> {
        let (start, end) = (self.periods[period].start, self.window_end(period));
        self.charges.iter().filter(move |c| start <= c.start && c.start < end)
    }

    /// 2.6: the plan and quantity that count at the end of a unit, and the plans whose grants a RESET ended.
    fn counted(&self, unit: &Unit) -> (&'a Plan, i64, Vec<&'a str>) {
        let p = &self.periods[unit.period];
        let states = self.states_of(unit.period);
        let (before, inside): (Vec<&State<'a>>, Vec<&State<'a>>) =
            states.iter().partition(|s| s.at <= unit.granted);
        let inside: Vec<_> = inside.into_iter().filter(|s| s.at < unit.end).collect();
        let base = (p.plan, p.quantity);
        if unit.slice == 0 {
            return self.walk(unit.period, base, before.into_iter().chain(inside));
        }
        let (plan, quantity, _) = self.walk(unit.period, base, before.into_iter());
        self.walk(unit.period, (plan, quantity), inside.into_iter())
    }

    fn walk<'s>(
        &self,
        period: usize,
        base: (&'a Plan, i64),
        states: impl Iterator<Item = &'s State<'a>>,
    ) -> (&'a Plan, i64, Vec<&'a str>)
    where
        'a: 's,
    {
        let at_once = self.facts.catalog.policy.plan_change == "at_once";
        let (mut plan, mut quantity) = base;
        let mut granted = vec![plan.name.as_str()];
        let mut ended = Vec::new();
        for s in states {
            let paid = self.charges_of(period).map(|c| (c.plan, c.quantity)).chain([base]);
            let paid: Vec<_> = paid.filter(|(p, _)| p.name == s.plan.name).map(|(_, q)| q).collect();
            let charged = paid.iter().any(|q| s.plan.per != "seat" || *q >= s.quantity);
            // on_payment: "more credits count when a paid invoice has charged them …; to fewer, or back: …".
            if !at_once && s.plan.worth(s.quantity) > plan.worth(quantity) && !charged {
                continue;
            }
            // at_once: "RESET to the new plan's amount, up or down; a plan is granted in full at most once per
            // period of its item". "Another price of the same plan is no change."
            if at_once && s.plan.name != plan.name {
                ended = granted.clone();
                if granted.contains(&s.plan.name.as_str()) {
                    ended.clear();
                }
                granted.push(&s.plan.name);
            }
            (plan, quantity) = (s.plan, s.quantity);
        }
        (plan, quantity, ended)
    }

    /// "Spent in the period" is what spends took from the unit's bucket. What they took from a unit that proved
    /// never to be granted counts against the one before it ("less what was spent since").
    fn taken(&self, unit: usize, without: &[&str]) -> i64 {
        let from = (self.units[unit].period_start(self), self.units[unit].slice);
        let to = self.units.get(unit + 1).map_or((NEVER, 0), |u| (u.period_start(self), u.slice));
        let of = self.takes.iter().filter(|(k, _)| match k {
            Key::Plan { item, start, slice, plan } => {
                self.names.contains(item)
                    && from <= (*start, *slice)
                    && (*start, *slice) < to
                    && !without.contains(&plan.as_str())
            }
            Key::Trial { .. }
            | Key::Rollover { .. }
            | Key::Signup { .. }
            | Key::Sale { .. }
            | Key::Fix(_) => false,
        });
        of.map(|(_, n)| n).sum()
    }

    /// "A change that opens a new period before the old one ended carries over what was spent in the old one: all
    /// of it if the invoice's `total` ≤ 0, else spent × (1 − paid / `total`), rounded down."
    fn carried(&self, unit: usize) -> i64 {
        let u = &self.units[unit];
        if u.slice > 0 || u.period == 0 || self.periods[u.period - 1].end <= u.start {
            return 0;
        }
        let (spent, invoice) = (self.spent(unit - 1), self.periods[u.period].invoice);
        if invoice.total <= 0 {
            return spent;
        }
        spent * (invoice.total - invoice.amount_paid.clamp(0, invoice.total)) / invoice.total
    }

    fn spent(&self, unit: usize) -> i64 {
        self.taken(unit, &[]) + self.carried(unit)
    }

    /// 2.8: "the worth of the plan in force is filled, in order, by the opening's grant, then by the increments
    /// that were charged, then by what was not charged."
    fn fill(&self, period: usize, worth: i64) -> Vec<Part<'a>> {
        let p = &self.periods[period];
        let mut level = p.plan.worth(p.quantity);
        let mut rest = worth - worth.min(level);
        let mut parts = vec![Part::Opening(worth.min(level))];
        for c in self.charges_of(period) {
            let increment = (c.plan.worth(c.quantity) - level).max(0);
            level += increment;
            parts.push(Part::Charge(increment.min(rest), c.invoice));
            rest -= increment.min(rest);
        }
        parts.push(Part::Uncharged(rest));
        parts
    }

    fn lost(&self, period: usize, part: &Part<'a>, before: i64) -> i64 {
        match part {
            Part::Opening(n) => self.opening_loss(*n, period, before),
            Part::Charge(n, invoice) => self.facts.loss(*n, &invoice.id, invoice.total, before),
            Part::Uncharged(_) => 0,
        }
    }

    /// "The share min(1, credits / positive lines of the item) was paid by the credited period's payment …: a
    /// refund of that payment takes that share, and the invoice's own refund takes the rest."
    fn opening_loss(&self, part: i64, period: usize, before: i64) -> i64 {
        let p = &self.periods[period];
        let share = share(part, p.credits, p.positives);
        let back = if period > 0 { self.loss_back(share, period - 1, before) } else { 0 };
        self.facts.loss(part - share, &p.invoice.id, p.invoice.total, before) + back
    }

    /// "The newest charge of that period, else its opening; and so on back."
    fn loss_back(&self, part: i64, period: usize, before: i64) -> i64 {
        let mut charges: Vec<&Charge<'a>> = self.charges_of(period).filter(|c| c.positives > 0).collect();
        let (mut part, mut lost) = (part, 0);
        while let Some(c) = charges.pop() {
            let share = share(part, c.credits, c.positives);
            lost += self.facts.loss(part - share, &c.invoice.id, c.invoice.total, before);
            part = share;
        }
        lost + self.opening_loss(part, period, before)
    }

    /// What is left of a unit's grant, as far as refunds made before `before` count.
    pub fn content(&self, unit: usize, before: i64) -> Content {
        let u = &self.units[unit];
        let (plan, quantity, ended) = self.counted(u);
        let parts = self.fill(u.period, plan.worth(quantity));
        let lost: i64 = parts.iter().map(|p| self.lost(u.period, p, before)).sum();
        let uncharged = match parts.last() {
            Some(Part::Uncharged(n)) => *n,
            Some(Part::Opening(_) | Part::Charge(..)) | None => 0,
        };
        let spent = if ended.is_empty() { self.spent(unit) } else { self.taken(unit, &ended) };
        let kept = plan.worth(quantity) - lost;
        Content { plan: plan.name.clone(), left: (kept - spent).max(0), backed: kept - uncharged }
    }

    /// credits.md §4: what a unit carried from the one before it, and until when.
    pub fn rollover(&self, unit: usize, grace: i64) -> Option<(i64, i64)> {
        let (last, u) = (&self.units[unit.checked_sub(1)?], &self.units[unit]);
        let rule = &self.counted(last).0.rollover;
        let left = self.content(unit - 1, u.start).left;
        let carry = (left * rule.percent / 100).min(rule.max);
        // "A refund of the older invoice takes its share of the carry."
        let parts = self.fill(last.period, carry);
        let lost = |before| parts.iter().map(|p| self.lost(last.period, p, before)).sum::<i64>();
        let next = self.units.get(unit + rule.periods.unwrap_or(1)).map(|u| u.granted);
        let until = next.or_else(|| Some(self.periods.last()?.end + grace))?;
        Some((carry - (lost(NEVER) - lost(u.start)), until))
    }

    /// The plan that was paid for at a moment inside a paid period: the opening's, or that of the last charge.
    pub fn paid_plan(&self, at: i64) -> Option<(&'a Plan, i64)> {
        let period = self.periods.iter().rposition(|p| p.start <= at || p.start - 3600 <= at)?;
        let charge = self.charges_of(period).filter(|c| c.at <= at).last();
        let p = &self.periods[period];
        (at < p.end).then(|| (charge.map_or(p.plan, |c| c.plan), p.end))
    }

    /// `refunded_access = "end"`: "everything paid for the running period is refunded, or disputed and not won".
    pub fn is_given_back(&self, at: i64) -> bool {
        let probe = 1_000_000_000;
        let Some(period) = self.periods.iter().rposition(|p| p.start - 3600 <= at && at < p.end) else {
            return false;
        };
        let whole = |c: &Charge<'a>| {
            c.invoice.total <= 0 || self.facts.loss(probe, &c.invoice.id, c.invoice.total, NEVER) == probe
        };
        self.opening_loss(probe, period, NEVER) == probe && self.charges_of(period).all(whole)
    }

    pub fn key(&self, unit: usize, plan: &str) -> Key {
        let u = &self.units[unit];
        let (start, slice) = (u.period_start(self), u.slice);
        Key::Plan { item: self.id.clone(), start, slice, plan: plan.into() }
    }
}

impl Unit {
    fn period_start(&self, item: &Item<'_>) -> i64 {
        item.periods[self.period].start
    }
}

fn share(part: i64, credits: i64, positives: i64) -> i64 {
    if positives > 0 { part * credits.min(positives) / positives } else { 0 }
}
