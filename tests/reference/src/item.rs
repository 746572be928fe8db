//! 2.5, 2.6, 2.8 and credits.md §2, §4: the periods, slices and bucket of one subscription item.

use crate::catalog::Goods;
use crate::event::{Event, Line};
use crate::facts::{Facts, is_terminal};
use crate::swap::Handed;
use crate::time::{DAY, add_months};
use crate::{Key, Takes};
use std::collections::{BTreeMap, BTreeSet};

/// A time after every other.
pub const NEVER: i64 = i64::MAX;

/// A line of a paid invoice that opens a period of an item, or that charges a plan change in one.
pub struct Paid<'a> {
    pub start: i64,
    pub end: i64,
    /// When it was billed: at its start, or when its invoice was made if that bills it in advance.
    billed: i64,
    /// The start that snapshots show, which is earlier for an item that was added within the period.
    pub shown: i64,
    /// When a change took effect.
    at: i64,
    pub plan: &'a Goods,
    pub quantity: i64,
    pub invoice: &'a Event<'a>,
    /// The sums of the item's negative and positive lines on the invoice, before discounts.
    credits: i64,
    positives: i64,
    /// The positive lines of this start, and what the negative lines leave for them after the positive lines
    /// of earlier starts. After discounts.
    own: i64,
    left: i64,
    /// Where the newest of its negative lines starts, and the last one ends.
    credited_at: i64,
    credited_until: i64,
}

/// A plan and quantity that a snapshot shows from a moment on.
struct State<'a> {
    at: i64,
    item_start: i64,
    is_trial: bool,
    plan: &'a Goods,
    quantity: i64,
}

/// A period, or a slice of it, that was granted.
pub struct Unit {
    pub period: usize,
    slice: usize,
    pub start: i64,
    /// Its start, or the resume of a slice that was skipped at first.
    granted: i64,
    end: i64,
}

/// One subscription item.
pub struct Item<'a> {
    pub id: String,
    /// The item's id, and the names that stood for it while it was unknown.
    names: BTreeSet<String>,
    pub periods: Vec<Paid<'a>>,
    /// Periods that begin later, and those that were billed in advance and never begin.
    ahead: Vec<Paid<'a>>,
    void: Vec<Paid<'a>>,
    charges: Vec<Paid<'a>>,
    states: Vec<State<'a>>,
    pub units: Vec<Unit>,
    /// The end of the subscription, or the item's removal.
    pub end: Option<i64>,
    removed: Option<i64>,
    /// The first snapshot that shows it, and the first one without it after all that name it.
    pub came: Option<i64>,
    pub gone: Option<i64>,
    pub handed: Handed,
    /// What its trial is worth by the latest `trialing` snapshot that shows it.
    trial: Option<i64>,
    /// By start and invoice of a period or charge, the payers whose money its invoice moves to this item from
    /// others.
    moved: BTreeMap<(i64, &'a str), Vec<Share<'a>>>,
    facts: &'a Facts<'a>,
    takes: &'a Takes,
}

/// An invoice whose payment paid for a part of a grant, and who paid the shares that it credits.
#[derive(Clone)]
struct Payer<'a> {
    invoice: &'a Event<'a>,
    older: Vec<Share<'a>>,
}

/// A credit, the charges that it and the credits after it pay for, and who paid what is credited.
type Share<'a> = (i64, i64, Option<Payer<'a>>);

impl Payer<'_> {
    fn loss(&self, facts: &Facts<'_>, part: i64, before: i64) -> i64 {
        let (mut rest, mut own, mut lost) = (part, 0, 0);
        for (credits, charged, older) in self.older.iter().filter(|o| o.1 > 0) {
            let share = rest * credits.min(charged) / charged;
            rest -= share;
            match older {
                Some(older) => lost += older.loss(facts, share, before),
                None => own += share,
            }
        }
        lost + facts.loss(own + rest, self.invoice, before)
    }
}

impl Item<'_> {
    /// Whether a period ends packs. Either invoice of a plan that replaces seats in the second of their start
    /// may come first, so the charge counts as well.
    pub fn resets(&self, p: &Paid<'_>) -> bool {
        !p.plan.is_seat() || self.charges.iter().any(|c| c.start == p.start && !c.plan.is_seat())
    }
}

/// A subscription.
pub struct Sub<'a> {
    pub id: &'a str,
    pub snapshots: Vec<&'a Event<'a>>,
    pub invoices: Vec<&'a Event<'a>>,
    /// Its end, and whether unpaid bills ended it.
    pub ended: Option<(i64, bool)>,
    pub items: Vec<Item<'a>>,
}

impl<'a> Sub<'a> {
    /// Reads a subscription as it stands at `now`.
    pub fn read(facts: &'a Facts<'a>, id: &'a str, takes: &'a Takes, now: i64) -> Sub<'a> {
        let snapshots = facts.snapshots.get(id).cloned().unwrap_or_default();
        let invoices: Vec<&Event> =
            facts.paid.values().copied().filter(|i| i.sub.as_deref() == Some(id)).collect();
        // 2.3: "`customer.deleted` ends the customer's subscriptions at its `created`."
        let customers: BTreeSet<_> = snapshots.iter().chain(&invoices).map(|e| &e.customer).collect();
        let deleted =
            |e: &&&Event| e.family == crate::event::Family::Customer && customers.contains(&e.customer);
        let deleted = facts.events.iter().find(deleted).map(|e| (e.created, false));
        let terminal = snapshots.last().filter(|s| is_terminal(s)).map(|s| {
            let failed = s.object["cancellation_details"]["reason"] == "payment_failed";
            (crate::event::int(&s.object["ended_at"]).unwrap_or(s.created), failed)
        });
        let ended = [terminal, deleted].into_iter().flatten().min();
        let mut sub = Sub { id, snapshots, invoices, ended, items: Vec::new() };
        let mut lines: BTreeMap<String, Vec<(&Event, &Line, String)>> = BTreeMap::new();
        for item in sub.snapshots.iter().flat_map(|s| &s.lines).filter_map(|l| l.item.clone()) {
            lines.entry(item).or_default();
        }
        let named = sub.invoices.iter().flat_map(|i| &i.lines).filter_map(|l| l.item.clone());
        let known: BTreeSet<String> = lines.keys().cloned().chain(named).collect();
        for (invoice, line) in sub.invoices.iter().flat_map(|i| i.lines.iter().map(move |l| (*i, l))) {
            if let Some((item, name)) = sub.item_of(facts, line, &known) {
                lines.entry(item).or_default().push((invoice, line, name));
            }
        }
        sub.items = lines.iter().map(|(item, lines)| sub.item(facts, item, lines, takes, now)).collect();
        let periods = sub.items.iter().enumerate();
        let paid =
            |(i, item): (usize, &Item<'a>)| item.paid().map(|p| (p.order(), p.start, i)).collect::<Vec<_>>();
        let mut all: Vec<((i64, i64, &'a str), i64, usize)> = periods.flat_map(paid).collect();
        all.sort_unstable();
        for ((.., invoice), start, i) in all {
            let item = &sub.items[i];
            let found = item.paid().find(|p| (p.start, p.invoice.doc.as_str()) == (start, invoice));
            if let Some(shares) = found.map(|p| item.moved_to(p, &sub.items)) {
                sub.items[i].moved.insert((start, invoice), shares);
            }
        }
        sub.swap_items();
        sub
    }

    /// "A line belongs to the item that it names, else to the only item, else to the item of its plan."
    /// Without any item, the plan's name stands for it. Returns the item, and the name that spends may carry.
    fn item_of(&self, facts: &Facts<'_>, line: &Line, known: &BTreeSet<String>) -> Option<(String, String)> {
        if let Some(item) = &line.item {
            return Some((item.clone(), item.clone()));
        }
        let plan = facts.plan(line)?;
        let name = format!("{}/{}", self.id, plan.name);
        let same = |l: &&Line| facts.plan(l).is_some_and(|p| p.name == plan.name);
        let shown = || self.snapshots.iter().rev().flat_map(|s| &s.lines).find(same)?.item.clone();
        let only = known.first().filter(|_| known.len() == 1).cloned();
        Some((only.or_else(shown).unwrap_or_else(|| name.clone()), name))
    }

    /// The snapshots of the item's period that starts at a moment; with `inside`, also of one that contains
    /// it.
    pub fn snapshots_of(&self, item: &str, start: i64, inside: bool) -> Vec<&'a Event<'a>> {
        let of = |l: &Line| l.start == start || inside && l.start < start && start < l.end;
        self.snapshots.iter().copied().filter(|s| s.item(item).is_some_and(of)).collect()
    }

    fn item(
        &self,
        facts: &'a Facts<'a>,
        id: &str,
        lines: &[(&'a Event<'a>, &'a Line, String)],
        takes: &'a Takes,
        now: i64,
    ) -> Item<'a> {
        let (mut firm, mut weak, mut charges, mut periods) = (vec![], vec![], vec![], Vec::<Paid<'a>>::new());
        let mut credits = Vec::new();
        for (invoice, line, _) in lines {
            let Some(plan) = facts.plan(line) else { continue };
            let of_invoice = lines.iter().filter(|(i, ..)| i.id == invoice.id);
            let amounts = of_invoice.clone().map(|(_, l, _)| l.amount);
            let charged = of_invoice.clone().filter(|(_, l, _)| l.amount >= 0).map(|(_, l, _)| l.start);
            // A credit is of the change that is billed with it: the two may start seconds apart.
            let start = |l: &Line| match charged.clone().min_by_key(|s| ((s - l.start).abs(), *s)) {
                Some(start) if l.amount < 0 => start,
                _ => l.start,
            };
            let sum = |of: &dyn Fn(&Line) -> bool| -> i64 {
                of_invoice.clone().filter(|(_, l, _)| of(l)).map(|(_, l, _)| l.net).sum()
            };
            let credited = of_invoice.clone().filter(|(_, l, _)| l.amount < 0 && start(l) <= line.start);
            let paid = Paid {
                start: line.start,
                end: line.end,
                billed: if invoice.made() + 60 < line.start { invoice.made() } else { line.start },
                shown: line.start,
                at: if line.flagged { line.start } else { invoice.made() },
                plan,
                quantity: line.quantity,
                invoice,
                credits: -amounts.clone().filter(|a| *a < 0).sum::<i64>(),
                positives: amounts.filter(|a| *a > 0).sum(),
                own: sum(&|l| l.amount > 0 && l.start == line.start),
                left: (-sum(&|l| start(l) < line.start || start(l) == line.start && l.amount < 0)).max(0),
                credited_at: credited.clone().map(|(_, l, _)| l.start).max().unwrap_or(line.start),
                credited_until: credited.map(|(_, l, _)| l.end).max().unwrap_or(line.start),
            };
            if line.amount > 0 || line.amount == 0 && line.quantity > 0 {
                let until = Some(paid.credited_until).filter(|until| *until > paid.end);
                credits.extend(until.map(|until| (paid.invoice.doc.clone(), paid.start, until, paid.billed)));
            }
            let reason = |r: &str| invoice.object["billing_reason"] == r;
            let trialing = self.snapshots_of(id, line.start, true).iter().any(|s| s.status() == "trialing");
            // "A zero line opens a period if its price's own amount is 0, or if a `subscription_cycle`
            // invoice bears it and no snapshot of that period is `trialing`."
            let cycle = !line.flagged && reason("subscription_cycle") && !trialing;
            let counts = line.amount > 0 || line.amount == 0 && (facts.is_free(line) || cycle);
            // "First the unflagged positive lines …, and any positive one of a `subscription_create`
            // invoice".
            match counts {
                true if !line.flagged || reason("subscription_create") => firm.push(paid),
                true => weak.push(paid),
                // 2.6: a charge is "positive or fully discounted".
                false if line.amount == 0 && line.flagged && !trialing => charges.push(paid),
                false => {}
            }
        }
        let order =
            |p: &Paid<'a>| (p.start, p.invoice.made(), p.invoice.doc.clone(), -p.plan.worth(p.quantity));
        firm.sort_by_key(order);
        weak.sort_by_key(order);
        let sure = firm.len();
        let flagged: BTreeSet<_> = weak.iter().map(|p| (p.invoice.doc.clone(), p.start)).collect();
        // "… then the earliest invoice whose flagged positive line starts where a snapshot says that the
        // item's current period starts. If another invoice already opens that period, such a flagged line is
        // the charge of a plan change."
        // An item that is added within the subscription's period has that period's start in snapshots. Its
        // first line is prorated, and its invoice credits nothing of it.
        let added = |paid: &Paid<'_>, periods: &[Paid<'_>]| {
            let starts = self.snapshots.iter().filter_map(|s| Some(s.item(id)?.start));
            let first = paid.credits == 0 && periods.iter().all(|p| p.start > paid.start);
            starts.filter(|start| first && *start < paid.start).max()
        };
        for (i, mut paid) in firm.into_iter().chain(weak).enumerate() {
            match periods.iter().find(|p| p.start == paid.start) {
                Some(opening) if opening.invoice.doc == paid.invoice.doc => {}
                None if i < sure || !self.snapshots_of(id, paid.start, false).is_empty() => {
                    periods.push(paid)
                }
                None => match added(&paid, &periods) {
                    Some(shown) => {
                        paid.shown = shown;
                        periods.push(paid);
                    }
                    None => charges.push(paid),
                },
                // The line in advance may prove never to open its period.
                Some(opening) if opening.billed < opening.start => periods.push(paid),
                Some(_) => charges.push(paid),
            }
        }
        periods.sort_by_key(|p| p.start);
        charges.sort_by_key(|c| (c.at, c.invoice.made(), c.invoice.doc.clone()));
        // "A line whose start lies ahead opens at the later of its event and one hour before its start."
        // "Several lines of one item: the latest start that has opened by now, the others are superseded."
        let opens = |p: &Paid<'_>| p.invoice.created.max(p.start - 3600);
        let all: Vec<_> = periods.iter().map(|p| (p.invoice.doc.clone(), p.start, opens(p))).collect();
        let (superseded, opened): (Vec<_>, Vec<_>) = periods.into_iter().partition(|p| {
            all.iter().any(|(i, s, at)| *i == p.invoice.doc && *s > p.start && *at <= opens(p))
        });
        // A flagged line that opens nothing charges a change.
        charges
            .extend(superseded.into_iter().filter(|p| flagged.contains(&(p.invoice.doc.clone(), p.start))));
        charges.sort_by_key(|c| (c.at, c.invoice.made(), c.invoice.doc.clone()));
        // "No month begins after the end of the item", and no period that was billed in advance. It does not
        // begin either if a newer invoice opens an earlier period and bills or credits the time at its start.
        let over = self.ended.filter(|(_, failed)| !failed).map(|(end, _)| end);
        let (gone, removed) = self.removed(id, lines).unzip();
        let over = over.into_iter().chain(removed).min();
        let (mut periods, mut ahead, mut void) = (Vec::<Paid<'a>>::new(), Vec::new(), Vec::new());
        for p in opened {
            let billed = periods.iter().chain(&ahead).map(|q| (&q.invoice.doc, q.start, q.end, q.billed));
            let credited = credits.iter().map(|(doc, start, until, billed)| (doc, *start, *until, *billed));
            let replaces = |(doc, start, until, billed): (&String, i64, i64, i64)| {
                *doc != p.invoice.doc && start < p.start && p.start < until && billed >= p.billed
            };
            let never = over.is_some_and(|end| end <= p.start) || billed.chain(credited).any(replaces);
            let is_void = p.billed < p.start && never;
            let same = if is_void {
                &mut void
            } else if opens(&p) > now.max(p.invoice.created) {
                &mut ahead
            } else {
                &mut periods
            };
            if same.last().is_some_and(|q: &Paid<'_>| q.start == p.start) {
                charges.push(p);
            } else {
                same.push(p);
            }
        }
        charges.sort_by_key(|c| (c.at, c.invoice.made(), c.invoice.doc.clone()));
        // 2.6: "A change counts when an `active` or `trialing` snapshot in that period shows it".
        let live = self.snapshots.iter().filter(|s| matches!(s.status(), "active" | "trialing"));
        let shown = live.filter_map(|s| {
            let (l, at) = (s.item(id)?, s.created);
            let is_trial = s.status() == "trialing";
            Some(State { at, item_start: l.start, is_trial, plan: facts.plan(l)?, quantity: l.quantity })
        });
        let mut states: Vec<State<'a>> = shown.collect();
        states.sort_by_key(|s| s.at);
        let end = [self.ended.map(|e| e.0), removed].into_iter().flatten().min();
        let came = self.snapshots.iter().find(|s| s.item(id).is_some()).map(|s| s.created);
        let trials = self.snapshots.iter().rev().filter(|s| s.status() == "trialing");
        let worth = |l: &Line| Some(facts.plan(l)?.trial(l.quantity));
        let trial = trials.filter_map(|s| s.item(id)).find_map(worth);
        let names = lines.iter().map(|(.., name)| name.clone()).chain([id.into()]).collect();
        let units = Vec::new();
        let (id, handed) = (id.into(), Handed::default());
        let mut item = Item {
            id,
            names,
            periods,
            ahead,
            void,
            charges,
            states,
            units,
            end,
            removed,
            came,
            gone,
            handed,
            trial,
            moved: BTreeMap::new(),
            facts,
            takes,
        };
        item.units = (0..item.periods.len()).flat_map(|p| item.units_of(self, p, now)).collect();
        item
    }

    /// "An item is removed if the latest snapshot lacks it and is later than the newest snapshot or invoice
    /// that names it; the end is the earliest such snapshot." A line that only credits the item does not
    /// prove it. Returns that snapshot, and the end.
    fn removed(&self, id: &str, lines: &[(&Event, &Line, String)]) -> Option<(i64, i64)> {
        // An invoice credits a removed item from its removal on, perhaps beside an earlier charge of it.
        let is_credited = |invoice: &Event, start: i64| {
            lines.iter().any(|(i, l, _)| i.id == invoice.id && l.amount < 0 && l.start > start)
        };
        let proves = |i: &Event, l: &Line| l.end > i.made() && !is_credited(i, l.start);
        // A line that only bills time before the invoice was made shows that the item was there at its start.
        let named = lines.iter().filter(|(_, l, _)| l.amount >= 0);
        let billed = named.map(|(i, l, _)| if proves(i, l) { i.made() } else { l.start.min(i.made()) });
        let shown = self.snapshots.iter().filter(|s| s.item(id).is_some()).map(|s| s.created);
        let newest = billed.chain(shown).max()?;
        let lacks = |s: &&&Event| s.item(id).is_none() && s.created > newest;
        self.snapshots.last().filter(|s| lacks(s))?;
        // An item that came in its place is billed from the time of the change, which the snapshot shows later.
        let is_new = |other: &str| {
            let mut shown = self.snapshots.iter().filter(|s| s.item(other).is_some()).peekable();
            shown.peek().is_some() && shown.all(|s| s.created > newest)
        };
        let paid = self.invoices.iter().flat_map(|i| &i.lines).filter(|l| l.amount > 0);
        let came = paid.filter(|l| l.item.as_deref().is_some_and(is_new)).map(|l| l.start);
        let gone = self.snapshots.iter().find(lacks)?.created;
        Some((gone, came.chain([gone]).min()?))
    }

    /// The newest snapshot that was created at or before a moment.
    pub fn snapshot_at(&self, at: i64) -> Option<&'a Event<'a>> {
        self.snapshots.iter().rev().find(|s| s.created <= at).copied()
    }
}

impl<'a> Item<'a> {
    fn window_end(&self, period: usize) -> i64 {
        self.periods.get(period + 1).map_or(NEVER, |p| p.start).min(self.periods[period].end)
    }

    /// credits.md §2: a period's slices that were granted by now; without `refill`, the period itself.
    fn units_of(&self, sub: &Sub<'a>, period: usize, now: i64) -> Vec<Unit> {
        let p = &self.periods[period];
        let mut starts = vec![p.start];
        if p.plan.refill == "month" {
            // "While the start is at least 4 days before E. At most 36 slices."
            starts.extend((1..36).map(|k| add_months(p.start, k)).take_while(|s| p.end - s >= 4 * DAY));
        }
        let mut units: Vec<Unit> = Vec::new();
        for (slice, start) in starts.iter().copied().enumerate() {
            let next = starts.get(slice + 1).copied().unwrap_or(NEVER).min(self.window_end(period));
            // "… the running one, which is granted in full at the resume or win, dated then".
            let disputes = self.facts.disputes(p.invoice);
            let changes = sub.snapshots.iter().copied().chain(disputes).map(|e| e.created);
            let mut times: Vec<i64> = changes.filter(|t| *t > start).chain([start]).collect();
            times.retain(|t| *t < next && *t <= now);
            times.sort_unstable();
            let due = times.into_iter().find(|t| !self.is_skipped(sub, p, *t));
            if let Some(granted) = if slice == 0 { Some(start) } else { due } {
                units.last_mut().into_iter().for_each(|u| u.end = granted);
                units.push(Unit { period, slice, start, granted, end: NEVER });
            }
        }
        units
    }

    /// "A slice is due … unless at its start the subscription was ended by request, `paused`, or paused in
    /// collection under `until_period_end`, or a dispute of the period's payment was open."
    fn is_skipped(&self, sub: &Sub<'a>, p: &Paid<'a>, at: i64) -> bool {
        let over = sub.ended.filter(|(_, failed)| !failed).map(|(end, _)| end);
        let ended = [over, self.removed].into_iter().flatten().any(|end| end <= at);
        let held = self.facts.catalog.policy("pause_collection", "keep") == "until_period_end";
        let is_paused =
            |s: &Event| s.status() == "paused" || held && s.object["pause_collection"].is_object();
        ended || sub.snapshot_at(at).is_some_and(is_paused) || self.facts.is_disputed(p.invoice, at)
    }

    /// The states of a period, in order: those of the snapshots that show that item period. A trial moves the
    /// item's period: its snapshots belong to the paid period in which they were made.
    fn states_of(&self, period: usize) -> impl Iterator<Item = &State<'a>> {
        let (p, end) = (&self.periods[period], self.window_end(period));
        self.states.iter().filter(move |s| match s.item_start {
            start if self.periods.iter().any(|q| q.start == start) => start == p.start,
            start if start == p.shown => true,
            start => s.is_trial && p.start < start && p.start <= s.at && s.at < end,
        })
    }

    fn charges_of(&self, period: usize) -> impl DoubleEndedIterator<Item = &Paid<'a>> {
        self.charges_in(&self.periods[period])
    }

    fn charges_in(&self, p: &Paid<'a>) -> impl DoubleEndedIterator<Item = &Paid<'a>> {
        let later = self.periods.iter().map(|q| q.start).filter(|start| *start > p.start);
        let (start, end) = (p.start, later.chain([p.end]).min().unwrap_or(p.end));
        let advance = p.billed < p.start;
        let of = move |c: &&Paid<'a>| c.billed == c.start || advance;
        self.charges.iter().filter(of).filter(move |c| start <= c.start && c.start < end)
    }

    /// All that its invoices charge it.
    fn paid(&self) -> impl Iterator<Item = &Paid<'a>> {
        self.periods.iter().chain(&self.ahead).chain(&self.void).chain(&self.charges)
    }

    /// What the items that this one replaced hand over to a unit.
    fn handed_to(&self, unit: &Unit) -> Option<&Handed> {
        (unit.period == 0 && unit.slice == 0).then_some(&self.handed)
    }

    /// The plans in force in a unit, in order, with those that were handed over.
    pub fn plans_of(&self, unit: usize) -> Vec<String> {
        self.counted(&self.units[unit]).3.into_iter().map(str::to_owned).collect()
    }

    /// What counts as spent in a unit, by plan. What an earlier period carried is of the plan that opened it.
    pub fn spent_by_plan(&self, unit: usize) -> BTreeMap<String, i64> {
        let mut spent = Handed::default();
        let mut taken = 0;
        for (plan, n) in self.taken_by_plan(unit) {
            spent.add(plan, n);
            taken += n;
        }
        spent.add(&self.periods[self.units[unit].period].plan.name, self.spent(unit) - taken);
        spent.spent.retain(|_, n| *n > 0);
        spent.spent
    }

    /// 2.6: the plan and quantity that count at the end of a unit, the plans whose grants a RESET ended, and
    /// all plans that were in force.
    fn counted(&self, unit: &Unit) -> (&'a Goods, i64, Vec<&str>, Vec<&str>) {
        let at_once = self.facts.catalog.policy("plan_change", "at_once") == "at_once";
        let p = &self.periods[unit.period];
        let (mut plan, mut quantity) = (p.plan, p.quantity);
        let before = self.handed_to(unit).map_or(&[][..], |handed| &handed.plans);
        let (mut granted, mut ended): (Vec<&str>, Vec<&str>) = (vec![], vec![]);
        for name in before.iter().chain([&plan.name]) {
            reset(name, &mut granted, &mut ended);
        }
        let mut begun = unit.slice == 0;
        for s in self.states_of(unit.period) {
            if !begun && s.at > unit.granted {
                // "Amount = plan and seats in force at the slice's start."
                (begun, granted, ended) = (true, vec![plan.name.as_str()], vec![]);
            }
            if s.at >= unit.end {
                break;
            }
            let mut charged = self.charges_of(unit.period).chain([p]).filter(|c| c.plan.name == s.plan.name);
            // on_payment: "more credits count when a paid invoice has charged them (… the new price and at
            // least the new quantity) …; to fewer, or back: the plan's amount less what was spent in the
            // period".
            let more = s.plan.worth(s.quantity) > plan.worth(quantity);
            if !at_once && more && !charged.any(|c| !s.plan.is_seat() || c.quantity >= s.quantity) {
                continue;
            }
            reset(&s.plan.name, &mut granted, &mut ended);
            (plan, quantity) = (s.plan, s.quantity);
        }
        if !begun {
            granted = vec![plan.name.as_str()];
        }
        if !begun || !at_once {
            ended.clear();
        }
        (plan, quantity, ended, granted)
    }

    fn position(&self, unit: usize) -> Option<(i64, usize)> {
        self.units.get(unit).map(|u| (self.periods[u.period].start, u.slice))
    }

    /// What spends took from a unit's bucket. What they took from a unit that proved never to be granted
    /// counts against the one that ran when it would have begun.
    fn taken(&self, unit: usize, without: &[&str]) -> i64 {
        self.taken_by_plan(unit).filter(|(plan, _)| !without.contains(plan)).map(|(_, n)| n).sum()
    }

    fn taken_by_plan(&self, unit: usize) -> impl Iterator<Item = (&str, i64)> {
        let (from, to) = (self.position(unit), self.position(unit + 1).unwrap_or((NEVER, 0)));
        let times = (self.units[unit].start, self.units.get(unit + 1).map_or(NEVER, |next| next.start));
        let mine = |k: &Key| k.kind == "plan" && self.names.contains(&k.id);
        let within = move |k: &Key| {
            let start = add_months(k.start, i64::try_from(k.slice).unwrap_or(0));
            match self.void.iter().any(|p| p.start == k.start) {
                true => times.0 <= start && start < times.1,
                false => from <= Some((k.start, k.slice)) && (k.start, k.slice) < to,
            }
        };
        let own = self.takes.iter().filter(move |(k, _)| mine(k) && within(k));
        let handed = self.handed_to(&self.units[unit]).into_iter().flat_map(|handed| &handed.spent);
        own.map(|(k, n)| (k.name.as_str(), *n)).chain(handed.map(|(plan, n)| (plan.as_str(), *n)))
    }

    /// "A change that opens a new period before the old one ended carries over what was spent in the old one:
    /// all of it if the invoice's `total` ≤ 0, else spent × (1 − (`amount_paid` + paid out of band) /
    /// `total`), rounded down. What is carried counts as spent in the new period."
    fn spent(&self, unit: usize) -> i64 {
        let u = &self.units[unit];
        let taken = self.taken(unit, &[]);
        if u.slice > 0 || u.period == 0 || self.periods[u.period - 1].end <= u.start {
            return taken;
        }
        taken + self.periods[u.period].unpaid(self.spent(unit - 1))
    }

    /// 2.8: "the worth of the plan in force is filled, in order, by the opening's grant, then by the
    /// increments that were charged, then by what was not charged." The first part is the opening's.
    fn fill(&self, period: usize, worth: i64) -> Vec<(i64, &Paid<'a>)> {
        let p = &self.periods[period];
        let (mut level, mut rest) = (0, worth);
        let mut parts = Vec::new();
        for c in [p].into_iter().chain(self.charges_of(period)) {
            let part = (c.plan.worth(c.quantity) - level).clamp(0, rest);
            level = level.max(c.plan.worth(c.quantity));
            rest -= part;
            parts.push((part, c));
        }
        parts
    }

    /// What refunds and disputes made before `before` take of a worth.
    fn loss(&self, period: usize, worth: i64, before: i64) -> i64 {
        let parts = self.fill(period, worth);
        let charge = |(n, c): &(i64, &Paid<'a>)| self.increment_payer(period, c).loss(self.facts, *n, before);
        self.opening_loss(parts[0].0, period, before) + parts.iter().skip(1).map(charge).sum::<i64>()
    }

    fn opening_loss(&self, part: i64, period: usize, before: i64) -> i64 {
        self.payer(&self.periods[period]).loss(self.facts, part, before)
    }

    /// "Where the invoice that opened the current period credits unused time of the item (its negative
    /// lines), the share min(1, credits / positive lines of the item) was paid by the credited period's
    /// payment …: a refund of that payment takes that share, and the invoice's own refund takes the rest." What
    /// the invoice charges for the time before is paid by the credits first.
    fn payer(&self, p: &Paid<'a>) -> Payer<'a> {
        let mut payer = Payer { invoice: p.invoice, older: Vec::new() };
        if p.left > 0 {
            let credited = self.credited(p).map(|earlier| self.newest_payer(earlier, p));
            payer.older.push((p.left, p.own, credited));
        }
        payer.older.extend(self.moved_of(p));
        payer
    }

    /// Of a charge's increment, the rest of its price was paid by its own invoice. If that was paid by credits
    /// alone, their payers paid for the increment.
    fn increment_payer(&self, period: usize, c: &Paid<'a>) -> Payer<'a> {
        let older = match c.invoice.total() {
            1.. => Vec::new(),
            _ if c.left > 0 && c.left >= c.own => {
                vec![(1, 1, Some(self.newest_payer(&self.periods[period], c)))]
            }
            _ => self.moved_of(c),
        };
        Payer { invoice: c.invoice, older }
    }

    fn moved_of(&self, p: &Paid<'a>) -> Vec<Share<'a>> {
        self.moved.get(&(p.start, p.invoice.doc.as_str())).cloned().unwrap_or_default()
    }

    /// The period in which the newest credit of an invoice starts. One that is over is not credited, and no
    /// invoice credits a period that it opens. A period that never begins is credited if no other one is.
    fn credited(&self, by: &Paid<'a>) -> Option<&Paid<'a>> {
        let newest = |all: Vec<&'_ Paid<'a>>| -> Option<usize> {
            let period = all.iter().rposition(|q| q.start <= by.credited_at && self.precedes(q, by))?;
            (all[period].end > by.credited_at).then_some(period)
        };
        let begun: Vec<_> = self.periods.iter().chain(&self.ahead).collect();
        let place = newest(begun.clone()).map(|place| begun[place]);
        place.or_else(|| newest(self.void.iter().collect()).map(|place| &self.void[place]))
    }

    /// Whether a line may have paid for another one. In one second, an invoice without credits may come late.
    fn precedes(&self, q: &Paid<'a>, p: &Paid<'a>) -> bool {
        let is_leaf = || q.left == 0 && self.moved_of(q).is_empty();
        q.invoice.doc != p.invoice.doc
            && (q.billed < p.billed || q.billed == p.billed && (is_leaf() || q.order() < p.order()))
    }

    /// "The newest charge of that period, else its opening; and so on back."
    fn newest_payer(&self, period: &Paid<'a>, by: &Paid<'a>) -> Payer<'a> {
        let before = |c: &&Paid<'a>| c.own > 0 && c.start <= by.credited_at && self.precedes(c, by);
        self.charges_in(period).filter(before).fold(self.payer(period), |older, c| {
            let own = (c.left > 0).then_some((c.left, c.own, Some(older)));
            Payer { invoice: c.invoice, older: own.into_iter().chain(self.moved_of(c)).collect() }
        })
    }

    /// What an invoice moves to this item from others. Of items that it replaces by others, this one among
    /// them, it only credits the ones and only charges the others, from the same moment. If nothing was to be
    /// paid, what it credits other items beyond their charges pays for what it charges beyond its credits; of
    /// items that stay only if their credit lasts to the end of this period, or if the invoice renews both.
    fn moved_to(&self, p: &Paid<'a>, items: &[Item<'a>]) -> Vec<Share<'a>> {
        let lines = |item: &'a str| p.invoice.lines.iter().filter(move |l| l.item.as_deref() == Some(item));
        let net = |item: &'a str| lines(item).map(|l| l.net).sum::<i64>();
        let here = |item: &'a str| lines(item).filter(|l| l.start == p.start).map(|l| l.net).sum::<i64>();
        let credits = |item: &'a str| lines(item).filter(|l| l.amount < 0);
        let newest = |item: &'a str| credits(item).max_by_key(|l| (l.start, l.end));
        let all_below = |item: &'a str| lines(item).all(|l| l.amount < 0);
        let none_below = |item: &'a str| lines(item).all(|l| l.amount >= 0);
        let named: BTreeSet<&'a str> = p.invoice.lines.iter().filter_map(|l| l.item.as_deref()).collect();
        let Some(own) = named.get(self.id.as_str()) else { return Vec::new() };
        let (credits, mut charged): (Vec<(&str, i64)>, i64) = if p.invoice.total() <= 0 {
            if net(own) <= 0 {
                return Vec::new();
            }
            let counts = |i: &&&'a str| {
                let charges = || lines(i).filter(|l| l.amount >= 0);
                let renews = |l: &Line| l.start == p.start && l.end >= p.end;
                let is_renewed = |l: &Line| l.end <= p.start && charges().any(renews);
                // The item was changed, and then removed: nothing is charged from its last credit on.
                let is_gone = |l: &Line| charges().all(|c| c.start < l.start);
                newest(i).is_some_and(|l| is_gone(l) || is_renewed(l) || l.end >= p.end)
            };
            let credits = named.iter().filter(counts).map(|i| (*i, -net(i))).filter(|(_, n)| *n > 0);
            (credits.collect(), named.iter().map(|i| net(i).max(0)).sum())
        } else {
            if !none_below(own) {
                return Vec::new();
            }
            let gone = named.iter().filter(|i| all_below(i) && here(i) < 0).map(|i| (*i, -here(i)));
            (gone.collect(), named.iter().filter(|i| none_below(i)).map(|i| here(i)).sum())
        };
        let mut shares = Vec::new();
        for (id, credits) in credits {
            let Some(newest) = newest(id) else { continue };
            let by = Paid { credited_at: newest.start, ..*p };
            let item = items.iter().find(|i| i.id == *id);
            let payer = item.and_then(|i| Some(i.newest_payer(i.credited(&by)?, &by)));
            shares.push((credits, charged, payer));
            charged -= credits;
        }
        shares
    }

    /// The plan of a unit, what is left of it, and how much of it was paid for and not given back.
    pub fn content(&self, unit: usize, before: i64) -> (&'a Goods, i64, i64) {
        let period = self.units[unit].period;
        let (plan, quantity, ended, granted) = self.counted(&self.units[unit]);
        let worth = plan.worth(quantity);
        let charged: i64 = self.fill(period, worth).iter().map(|p| p.0).sum();
        let lost = self.loss(period, worth, before);
        let spent = if ended.is_empty() { self.spent(unit) } else { self.taken(unit, &ended) };
        // A RESET leaves nothing of another plan's spends, also if an invoice that arrived later shows that the
        // other plan never opened the unit.
        let at_once = self.facts.catalog.policy("plan_change", "at_once") == "at_once";
        let is_reset = at_once && (granted.len() == 1 || !ended.is_empty());
        let position = self.position(unit);
        let is_other = |k: &Key| {
            let is_own = k.kind == "plan" && self.names.contains(&k.id);
            is_own
                && Some((k.start, k.slice)) == position
                && k.name != plan.name
                && !ended.contains(&k.name.as_str())
        };
        let others = self.takes.iter().filter(|(k, _)| is_reset && is_other(k)).map(|(_, n)| n).sum::<i64>();
        (plan, (worth - lost - (spent - others)).max(0), charged - lost)
    }

    /// credits.md §4: what a unit carried from the one before it, less the share of later refunds; and until
    /// when.
    pub fn rollover(&self, unit: usize, grace: i64) -> (i64, i64) {
        let (last, u) = (&self.units[unit - 1], &self.units[unit]);
        // What an invoice pays back of a period that it cuts short is not also carried over.
        let (from, to) = (&self.periods[last.period], &self.periods[u.period]);
        if last.period != u.period && to.credits > 0 && from.end > to.start {
            return (0, u.granted);
        }
        let rule = self.counted(last).0;
        let left = self.content(unit - 1, u.start).1;
        let carry = (left * rule.rollover("percent", 0) / 100).min(rule.rollover("max", 0));
        let lost = |before| self.loss(last.period, carry, before);
        let periods = usize::try_from(rule.rollover("periods", 1)).unwrap_or(1);
        let last_end = || self.periods.last().map_or(0, |p| p.end + grace);
        let until = self.units.get(unit + periods).map_or_else(last_end, |u| u.granted);
        (carry - (lost(NEVER) - lost(u.start)), until)
    }

    /// The running paid period, with the plan that was paid for: the opening's, or that of the last charge.
    pub fn running(&self, at: i64) -> Option<(usize, &'a Goods)> {
        let period = self.periods.iter().rposition(|p| p.start - 3600 <= at)?;
        self.periods.get(period).filter(|p| at < p.end)?;
        let charge = self.charges_of(period).rfind(|c| c.at <= at);
        Some((period, charge.map_or(self.periods[period].plan, |c| c.plan)))
    }

    /// The plan that was paid for last, whether its period runs or is over.
    pub fn paid_last(&self, at: i64) -> Option<&'a Goods> {
        let period = self.periods.iter().rposition(|p| p.start - 3600 <= at)?;
        let charge = self.charges_of(period).rfind(|c| c.at <= at);
        Some(charge.map_or(self.periods[period].plan, |c| c.plan))
    }

    /// The end of the newest paid period.
    pub fn paid_until(&self, at: i64) -> i64 {
        let begun = self.periods.iter().rfind(|p| p.start - 3600 <= at);
        begun.map_or(i64::MIN, |p| p.end)
    }

    /// `refunded_access`: "everything paid for the running period is refunded, or disputed and not won", by a
    /// moment.
    pub fn is_given_back(&self, period: usize, before: i64) -> bool {
        let whole = 1_000_000;
        let back = |before: i64| {
            let charge =
                |c: &Paid<'a>| c.invoice.total() <= 0 || self.facts.loss(whole, c.invoice, before) == whole;
            self.opening_loss(whole, period, before) == whole && self.charges_of(period).all(charge)
        };
        back(before) && back(NEVER)
    }

    pub fn trial_key(&self) -> Key {
        Key { kind: "trial", id: self.id.clone(), ..Key::default() }
    }

    pub fn trial_worth(&self) -> i64 {
        self.trial.unwrap_or(0)
    }

    /// What was spent of its trial, also before it took the place of another item.
    pub fn trial_spent(&self) -> i64 {
        let own = self.takes.get(&self.trial_key()).filter(|_| self.periods.is_empty());
        own.copied().unwrap_or(0) + self.handed.trial
    }

    pub fn key(&self, kind: &'static str, unit: usize, plan: &str) -> Key {
        let (start, slice) = self.position(unit).unwrap_or_default();
        Key { kind, id: self.id.clone(), start, slice, name: plan.into() }
    }
}

/// 2.6, `at_once`: "RESET to the new plan's amount, up or down; a plan is granted in full at most once per period
/// of its item". "Another price of the same plan is no change."
fn reset<'n>(plan: &'n str, granted: &mut Vec<&'n str>, ended: &mut Vec<&'n str>) {
    if granted.last() != Some(&plan) {
        *ended = if granted.contains(&plan) { vec![] } else { granted.clone() };
        granted.push(plan);
    }
}

impl<'a> Paid<'a> {
    fn order(&self) -> (i64, i64, &'a str) {
        (self.billed, self.invoice.created, self.invoice.doc.as_str())
    }

    /// Whether its price has an amount.
    pub fn costs(&self) -> bool {
        self.positives > 0
    }

    /// The share of what was spent before that the period's invoice leaves unpaid.
    pub fn unpaid(&self, spent: i64) -> i64 {
        let total = self.invoice.total();
        let outside = self.invoice.object["paid_out_of_band"] == true;
        let paid = self.invoice.int("amount_paid") + self.invoice.int("amount_paid_off_stripe");
        let unpaid = if outside { 0 } else { total - paid.clamp(0, total.max(0)) };
        if total <= 0 { spent } else { spent * unpaid / total }
    }
}
