//! One user at one moment: the lots of every bucket, and the tier.

use crate::catalog::Goods;
use crate::event::{Event, Family};
use crate::facts::Facts;
use crate::item::{Item, NEVER, Sub};
use crate::time::{DAY, add_months, moment};
use crate::{Action, Key, ParsedStep, Ranks, Takes, User};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// One grant with what is left of it (credits.md §3).
pub struct Lot {
    pub key: Key,
    bucket: String,
    pub left: i64,
    /// What was paid for and not given back, or is free by rule.
    backed: i64,
    since: i64,
    until: i64,
    /// The place under `plan_first`, and whether it was paid for.
    order: (Kind, i64),
    is_paid: bool,
}

/// "Plan items by earliest period end, each followed by its rollover, then `signup`, `grant`, `addon`."
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Plan,
    Signup,
    Grant,
    Addon,
}

/// A user with everything that decides about it.
pub struct Account<'a> {
    facts: &'a Facts<'a>,
    user: &'a str,
    now: i64,
    subs: Vec<Sub<'a>>,
    /// The user's paid sessions and invoices.
    paid: Vec<&'a Event<'a>>,
    takes: &'a Takes,
    /// Operators' repairs: step, time and body.
    fixes: Vec<(usize, i64, &'a Value)>,
    put: Option<i64>,
}

impl<'a> Account<'a> {
    pub fn read(
        facts: &'a Facts<'a>,
        user: &'a str,
        history: &'a [ParsedStep<'a>],
        takes: &'a Takes,
        now: i64,
    ) -> Self {
        let mine: Vec<&Event> =
            facts.events.iter().copied().filter(|e| facts.owners.of(e).is_some_and(|o| o == user)).collect();
        // 2.9, test clocks: "time is the later of the wall clock and the newest `created` heard".
        let has_clock = mine.iter().any(|e| e.object["test_clock"].is_string());
        let now = mine.iter().filter(|_| has_clock).map(|e| e.created).chain([now]).max().unwrap_or(now);
        let ids: BTreeSet<&String> =
            mine.iter().filter(|e| e.family != Family::Session).filter_map(|e| e.sub.as_ref()).collect();
        let (mut put, mut fixes) = (None, Vec::new());
        for (index, (step, _)) in history.iter().enumerate() {
            match &step.action {
                Action::Put { user: u } if u == user => put = put.or(Some(step.at)),
                Action::Fix { user: u, body } if u == user => fixes.push((index, step.at, body)),
                Action::Put { .. } | Action::Fix { .. } | Action::Send(_) | Action::Spend { .. } => {}
            }
        }
        let subs = ids.into_iter().map(|id| Sub::read(facts, id, takes, now)).collect();
        let paid =
            facts.paid.values().copied().filter(|e| facts.owners.of(e).is_some_and(|o| o == user)).collect();
        Account { facts, user, now, subs, paid, takes, fixes, put }
    }

    fn items(&self) -> impl Iterator<Item = &Item<'a>> {
        self.subs.iter().flat_map(|s| &s.items)
    }

    /// "What ends a bucket: of an ended subscription or a removed item, once another item's paid period
    /// starts at or after that end, whichever is heard first."
    fn is_over(&self, item: &Item<'a>) -> bool {
        let mut others = self.items().filter(|i| i.id != item.id).flat_map(|i| &i.periods);
        item.end.is_some_and(|end| others.any(|p| p.start >= end))
    }

    /// All lots that live now, in the order in which a spend takes from them.
    pub fn lots(&self, ranks: &mut Ranks, step: usize) -> Vec<Lot> {
        let mut lots = Vec::new();
        self.items().filter(|i| !self.is_over(i)).for_each(|i| self.add_item(i, &mut lots));
        self.add_trials(&mut lots);
        self.add_signup(&mut lots);
        self.add_gifts(&mut lots);
        self.add_sales(ranks, step, &mut lots);
        lots.retain(|l| l.until > self.now && l.left > 0);
        if self.facts.catalog.policy("spend_order", "plan_first") == "expiring_first" {
            // "Earliest `until`; ties: free before paid, plan before pack, then `since`, then key."
            lots.sort_by_key(|l| (l.until, l.is_paid, l.order.0, l.since, l.key.clone()));
        } else {
            // Of packs the one that ends first, then the oldest.
            let age = |l: &Lot| if l.order.0 == Kind::Addon { (l.until, l.since) } else { (0, 0) };
            lots.sort_by_key(|l| {
                (l.order, age(l), l.key.id.clone(), l.key.kind, l.until, l.since, l.key.clone())
            });
        }
        lots
    }

    fn lot(&self, key: Key, bucket: &str, granted: i64, since: i64, order: (Kind, i64)) -> Lot {
        let left = granted - self.takes.get(&key).copied().unwrap_or(0);
        let is_paid = !matches!(order.0, Kind::Signup | Kind::Grant);
        Lot { key, bucket: bucket.into(), left, backed: granted, since, until: NEVER, order, is_paid }
    }

    fn add_item(&self, item: &Item<'a>, lots: &mut Vec<Lot>) {
        let Some(last) = item.units.len().checked_sub(1) else { return };
        let order = (Kind::Plan, item.periods[item.units[last].period].end);
        let (plan, left, backed) = item.content(last, NEVER);
        let lot = self.lot(item.key("plan", last, &plan.name), &item.id, 0, item.units[last].start, order);
        lots.push(Lot { left, backed, ..lot });
        let grace = self.facts.catalog.number("past_due_grace_days", 7) * DAY;
        for unit in 1..=last {
            let (carry, until) = item.rollover(unit, grace);
            let lot =
                self.lot(item.key("rollover", unit, ""), &item.id, carry, item.units[unit].start, order);
            lots.push(Lot { until, ..lot });
        }
    }

    /// 2.5: "Any other zero line is a trial or nothing": of a subscription's first invoice, unflagged zero
    /// lines that open nothing, with a period that no snapshot shows as `active`, as (start, end, item, plan,
    /// quantity). A zero line of a later invoice belongs to a goodwill trial, which its snapshots show.
    fn zero_lines(&self, sub: &Sub<'a>) -> Vec<(i64, i64, String, &'a Goods, i64)> {
        let first = sub.invoices.iter().filter(|i| i.object["billing_reason"] == "subscription_create");
        let lines = first.flat_map(|i| &i.lines).filter(|l| l.amount == 0 && !l.flagged);
        let trial = |l: &'a crate::event::Line| {
            let plan = self.facts.plan(l).filter(|_| !self.facts.is_free(l))?;
            let item = sub.items.iter().find(|i| l.item.as_ref().is_none_or(|id| *id == i.id))?;
            let shown = sub.snapshots_of(&item.id, l.start, false);
            let is = |status: &str| shown.iter().any(|s| s.status() == status);
            let denied = is("active") && !is("trialing");
            let opens = item.periods.iter().any(|p| p.start == l.start);
            (!denied && !opens).then(|| (l.start, l.end, item.id.clone(), plan, l.quantity))
        };
        let mut lines: Vec<_> = lines.filter_map(trial).collect();
        lines.sort_by_key(|l| l.0);
        lines
    }

    /// 2.7: "A trial grants, per item, `trial_credits` of the plan in the latest `trialing` snapshot, once
    /// per subscription." "Under `once`, only the user's earliest trial (earliest `trialing` snapshot, ties:
    /// the smaller id) grants." A paid period takes its place. "Credits of a trial that is cancelled unpaid
    /// end with it", also those of an item that was removed.
    fn add_trials(&self, lots: &mut Vec<Lot>) {
        let shown =
            |sub: &Sub<'a>| sub.snapshots.iter().find(|s| s.status() == "trialing").map(|s| s.created);
        let earliest = self.subs.iter().filter_map(|s| Some((shown(s)?, s.id))).min();
        let once = self.facts.catalog.policy("trials", "once") == "once";
        for sub in self.subs.iter().filter(|s| s.ended.is_none()) {
            let zero = || self.zero_lines(sub).first().map(|l| l.0);
            let counts = !once || earliest.is_none_or(|(_, first)| first == sub.id);
            let Some(since) = shown(sub).or_else(zero).filter(|_| counts) else { continue };
            let latest = sub.snapshots.iter().rev().find(|s| s.status() == "trialing");
            let mut grants: BTreeMap<String, (&Goods, i64, i64)> = BTreeMap::new();
            match latest {
                Some(s) => grants.extend(
                    s.lines
                        .iter()
                        .filter_map(|l| Some((l.item.clone()?, (self.facts.plan(l)?, l.quantity, l.end)))),
                ),
                None => grants.extend(
                    self.zero_lines(sub).into_iter().map(|(_, end, item, plan, n)| (item, (plan, n, end))),
                ),
            }
            let on_trial = |i: &&Item<'a>| i.periods.is_empty() && !i.handed.was_paid && i.gone.is_none();
            for item in sub.items.iter().filter(on_trial) {
                if let Some((plan, quantity, end)) = grants.get(&item.id) {
                    let key = item.trial_key();
                    let lot = self.lot(key, &item.id, plan.trial(*quantity), since, (Kind::Plan, *end));
                    lots.push(Lot { is_paid: false, left: lot.left - item.handed.trial, ..lot });
                }
            }
        }
    }

    /// 2.5: signup credits, "once", until a paid period. credits.md §2: free refills are a "SET of the bucket
    /// `signup`; only while no plan gives access"; "one that proves due is granted, only the newest".
    fn add_signup(&self, lots: &mut Vec<Lot>) {
        let (c, Some(put)) = (self.facts.catalog, self.put) else { return };
        let refill = c.number("free_credits", 0);
        let due =
            (1_i64..).map(|k| (k, add_months(put, k))).take_while(|(_, at)| refill > 0 && *at <= self.now);
        let newest = due.collect::<Vec<_>>().into_iter().rev().find(|(_, at)| self.best_plan(*at).is_none());
        let (index, since, granted) =
            newest.map_or((0, put, c.number("signup_credits", 500)), |(k, at)| (k, at, refill));
        if self.items().flat_map(|i| &i.periods).any(|p| index == 0 || p.start >= since) {
            return;
        }
        // What was spent of a refill that was undone counts against the one before it.
        let later =
            self.takes.iter().filter(|(k, _)| k.kind == "signup" && k.id == self.user && k.start > index);
        let key = Key { kind: "signup", id: self.user.into(), start: index, ..Key::default() };
        let lot = self.lot(key, "signup", granted, since, (Kind::Signup, 0));
        let left = lot.left - later.map(|(_, n)| n).sum::<i64>();
        let until = if index == 0 { expiry(since, c.number("signup_expires_days", 0)) } else { NEVER };
        lots.push(Lot { left, until, ..lot });
    }

    /// 2.5: grants by hand, and complimentary credits, "a lot of `grant` that ends with it".
    fn add_gifts(&self, lots: &mut Vec<Lot>) {
        for (step, at, body) in &self.fixes {
            let since = moment(&body["from"]).unwrap_or(*at);
            if matches!(body["action"].as_str(), Some("grant" | "complimentary")) && since <= self.now {
                let key = Key { kind: "fix", start: i64::try_from(*step).unwrap_or(0), ..Key::default() };
                let lot =
                    self.lot(key, "grant", body["credits"].as_i64().unwrap_or(0), since, (Kind::Grant, 0));
                let until = moment(&body["until"]).or_else(|| moment(&body["expires"])).unwrap_or(NEVER);
                lots.push(Lot { until, ..lot });
            }
        }
    }

    /// 2.5: packs and products by session and by invoice, lifetime plans, and the add-on reset.
    fn add_sales(&self, ranks: &mut Ranks, step: usize, lots: &mut Vec<Lot>) {
        let mut resets = Vec::new();
        for (item, p) in self.items().flat_map(|i| i.periods.iter().map(move |p| (i, p))) {
            // "Openings of items of a `per = "subscription"` plan reset; seat items … do not."
            if item.resets(p) && self.facts.catalog.policy("addons", "reset") == "reset" {
                let rank = *ranks.entry(format!("{}#{}", item.id, p.start)).or_insert(step);
                resets.push((p.start, &p.invoice.doc, rank));
            }
        }
        for e in &self.paid {
            if e.family == Family::Invoice && self.facts.is_granted_by_session(&e.doc) {
                continue;
            }
            // "What was spent of [the invoice's entry] counts against the session's lot."
            let purchase = self.facts.purchase(&e.doc);
            let rank = purchase.iter().filter_map(|d| ranks.get(*d)).min().copied().unwrap_or(step);
            for (goods, quantity) in self.facts.sales(e) {
                ranks.entry(e.doc.clone()).or_insert(rank);
                // "Packs bought before it end, at or after it stay, so does a pack on the same invoice." 2.3
                // (b): "a pack that reaches us after a newer reset is granted in full".
                // From then on it counts from that reset: an older one that arrives later does not end it.
                let newer = resets.iter().filter(|r| r.0 > e.created && r.2 < rank).map(|r| r.0).max();
                let since = newer.unwrap_or(e.created);
                let ends = |r: &(i64, &String, usize)| r.0 > since && *r.1 != e.doc && r.2 >= rank;
                if !goods.is_plan() && resets.iter().any(ends) {
                    continue;
                }
                let key =
                    |d: &str| Key { kind: "sale", id: d.into(), name: goods.name.clone(), ..Key::default() };
                let granted = goods.worth(quantity) - self.facts.loss(goods.worth(quantity), e, NEVER);
                let lifetime = format!("lifetime#{}", e.doc);
                let bucket = if goods.is_plan() { &lifetime } else { "addon" };
                let order = if goods.is_plan() { (Kind::Plan, NEVER) } else { (Kind::Addon, 0) };
                let lot = self.lot(key(&e.doc), bucket, granted, e.created, order);
                let others = purchase.iter().filter(|d| **d != e.doc).filter_map(|d| self.takes.get(&key(d)));
                let left = lot.left - others.sum::<i64>();
                lots.push(Lot { left, until: expiry(e.created, goods.expires_days), ..lot });
            }
        }
    }

    /// 2.9: the highest plan that gives access at a moment.
    fn best_plan(&self, at: i64) -> Option<&'a Goods> {
        let subs = self.subs.iter().flat_map(|s| self.plans(s, at));
        // Lifetime: "tier until refunded". A dispute that was won was never one.
        let back = |e: &Event| self.facts.reversed(e, at + 1, true).min(self.facts.reversed(e, NEVER, true));
        let kept = |e: &&&Event| e.created <= at && (e.total() <= 0 || back(e) < e.total());
        let bought = self.paid.iter().filter(kept).flat_map(|e| self.facts.sales(e)).map(|s| s.0);
        let given = self.fixes.iter().filter(|(.., b)| b["action"] == "complimentary").filter(|(.., b)| {
            moment(&b["from"]).is_none_or(|from| from <= at)
                && moment(&b["until"]).is_none_or(|until| at < until)
        });
        let catalog: &'a crate::catalog::Catalog = self.facts.catalog;
        let given = given.filter_map(|(.., b)| catalog.plan.iter().find(|p| b["plan"] == p.name));
        subs.chain(bought.filter(|g| g.is_plan())).chain(given).max_by_key(|p| catalog.rank(p))
    }

    /// 2.9, the table: the plans to which a subscription gives access at a moment.
    fn plans(&self, sub: &Sub<'a>, at: i64) -> Vec<&'a Goods> {
        let (facts, catalog) = (self.facts, self.facts.catalog);
        let latest = if at >= self.now { sub.snapshots.last().copied() } else { sub.snapshot_at(at) };
        let ended = sub.ended.filter(|(end, _)| *end <= at);
        let status = match (ended, latest) {
            (Some((_, true)), _) => "unpaid",
            (Some((_, false)), _) => "canceled",
            (None, Some(s)) => s.status(),
            (None, None) => "active",
        };
        let plan_of = |item: &Item<'a>| {
            let shown = latest.and_then(|s| s.item(&item.id));
            let plan = shown.and_then(|l| facts.plan(l));
            let running = item.running(at);
            let removed = ended.is_none() && item.end.is_some_and(|end| end <= at);
            let given_back = running.is_some_and(|(p, _)| item.is_given_back(p, at + 1));
            let ends = given_back && catalog.policy("refunded_access", "keep") == "end";
            if removed || ends {
                return None;
            }
            let is_held = catalog.policy("pause_collection", "keep") == "until_period_end"
                && latest.is_some_and(|s| s.object["pause_collection"].is_object());
            // A planned end falls due by time, also before Stripe says that the subscription ended.
            let planned = latest.and_then(|s| {
                let at_period_end = s.object["cancel_at_period_end"] == true;
                moment(&s.object["cancel_at"]).or_else(|| shown.filter(|_| at_period_end).map(|l| l.end))
            });
            if planned.is_some_and(|planned| planned <= at) {
                return None;
            }
            match (status, running) {
                ("active" | "trialing", None) if is_held => None,
                // "An item with a running paid period and no snapshot yet gives access."
                ("active" | "trialing", _) => plan.or(running.map(|r| r.1)),
                // "Per item, to the end of its own paid period: the lower of the plan that was paid for and
                // the plan in the latest snapshot."
                ("past_due" | "unpaid", Some((_, paid))) => {
                    Some(plan.filter(|p| catalog.rank(p) < catalog.rank(paid)).unwrap_or(paid))
                }
                // "`past_due_grace_days` after the unpaid period began; with `send_invoice` after the
                // period's start plus `days_until_due`."
                ("past_due", None) => {
                    // "The plan that was paid for holds to the end of its paid period, and no more than that"
                    // (tests/cases/upgrade-declined-on-day-20.json): also where the snapshot's period is
                    // paid.
                    // "After the unpaid period began": the first one. Stripe goes on to further periods while
                    // the status stays `past_due`.
                    let shown = shown?.start;
                    let known = || {
                        let heard = sub.snapshots.iter().filter(|s| at >= self.now || s.created <= at);
                        heard.filter_map(|s| Some((s.status(), s.created, s.item(&item.id)?)))
                    };
                    let is_fine = |status: &str| matches!(status, "active" | "trialing");
                    let fine = known().filter(|k| is_fine(k.0) && facts.plan(k.2).is_some()).map(|k| k.1);
                    let fine = fine.max();
                    let late = known().filter(|k| matches!(k.0, "past_due" | "unpaid") && Some(k.1) > fine);
                    let late: Vec<_> = late.collect();
                    let first = late.iter().map(|k| k.2.start).min().unwrap_or(shown);
                    let unpaid = first.max(item.paid_until(at)).min(shown);
                    // An invoice that is sent may fall due after the next period began: the snapshots show
                    // that one then, and its own invoice is not due.
                    let invoiced = latest.filter(|s| s.object["collection_method"] == "send_invoice");
                    let due = invoiced.map_or(0, |s| s.int("days_until_due") * DAY);
                    let seen = late.iter().map(|k| k.1).min().unwrap_or(i64::MIN);
                    let trial = |start| known().any(|k| k.0 == "trialing" && k.2.start == start);
                    let starts =
                        known().map(|k| k.2.start).chain(item.paid_last(at).map(|_| item.paid_until(at)));
                    let was_due =
                        |start: &i64| item.paid_until(at) <= *start && *start + due <= seen && !trial(*start);
                    let earlier = starts.filter(|start| *start < unpaid && was_due(start)).max();
                    let earlier = earlier.filter(|_| invoiced.is_some() && seen < unpaid + due);
                    let due = due + earlier.unwrap_or(unpaid);
                    let days = catalog.number("past_due_grace_days", 7);
                    // The lower of the plan that was paid for last and the plan shown, as in the paid period:
                    // an upgrade that is not paid gives nothing.
                    let paid = item.paid_last(at);
                    let lower =
                        paid.filter(|paid| plan.is_some_and(|p| catalog.rank(paid) < catalog.rank(p)));
                    lower.or(plan).filter(|_| at < due + days * DAY)
                }
                _ => None,
            }
        };
        sub.items.iter().filter_map(plan_of).collect()
    }

    /// The user as it reads now.
    pub fn user(&self, lots: &[Lot]) -> User {
        let tier = self.best_plan(self.now).map(|p| p.tier.clone());
        let tier = tier.unwrap_or_else(|| self.facts.catalog.policy("default_tier", "free").into());
        let mut user = User { tier, ..User::default() };
        for lot in lots {
            user.credits += lot.left;
            *user.buckets.entry(lot.bucket.clone()).or_insert(0) += lot.left;
            *user.backed.entry(lot.bucket.clone()).or_insert(0) += lot.backed;
        }
        for e in self.paid.iter().filter(|e| self.facts.is_order(e)) {
            // 2.11: "`REFUNDED` from any, set only by a full refund".
            let refunded = e.total() > 0 && self.facts.reversed(e, NEVER, false) >= e.total();
            user.orders.insert(e.doc.clone(), if refunded { "REFUNDED" } else { "NEW" }.into());
        }
        user
    }
}

fn expiry(since: i64, days: i64) -> i64 {
    if days > 0 { since + days * DAY } else { NEVER }
}
