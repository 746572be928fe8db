//! One user at one moment: the lots of every bucket, and the tier.

use crate::catalog::{DAY, Pack, Plan, Sold};
use crate::event::Session;
use crate::facts::Facts;
use crate::item::{Item, NEVER, Sub};
use crate::time::{add_months, moment};
use crate::{Action, Key, Mark, Ranks, Step, Takes, User};
use serde_json::Value;
use std::collections::BTreeMap;

/// One grant with what is left of it (credits.md §3).
pub struct Lot {
    pub key: Key,
    pub bucket: String,
    pub left: i64,
    /// What was paid for and not given back, or is free by rule: the law of money bounds `left` by it.
    pub backed: i64,
    pub free: bool,
    pub since: i64,
    pub until: i64,
    /// `plan_first`: plan items by earliest period end, each followed by its rollover, `signup`, `grant`, `addon`.
    order: (i32, i64, String, i32),
}

/// A user with everything that decides about it.
pub struct Account<'a> {
    facts: &'a Facts<'a>,
    user: &'a str,
    now: i64,
    subs: Vec<Sub<'a>>,
    takes: &'a Takes,
    fixes: Vec<(usize, i64, &'a Value)>,
    put: Option<i64>,
}

impl<'a> Account<'a> {
    pub fn read<E>(
        facts: &'a Facts<'a>,
        user: &'a str,
        steps: &'a [(Step, E)],
        takes: &'a Takes,
        now: i64,
    ) -> Account<'a> {
        let customer = |id: &str| {
            let of_snapshot = facts.snapshots.get(id).and_then(|v| v.last()?.customer.as_deref());
            let invoice = || facts.invoices.values().find(|i| i.sub.as_deref() == Some(id));
            of_snapshot.or_else(|| invoice()?.customer.as_deref())
        };
        let of_invoices = facts.invoices.values().filter_map(|i| i.sub.as_ref());
        let mut ids: Vec<&String> = facts.snapshots.keys().chain(of_invoices).collect();
        ids.sort();
        ids.dedup();
        ids.retain(|id| facts.owners.of_sub(id, customer(id)).is_some_and(|o| o == user));
        // 2.9, test clocks: "time is the later of the wall clock and the newest `created` heard".
        let snapshots = || ids.iter().filter_map(|id| facts.snapshots.get(*id)).flatten();
        let newest =
            snapshots().map(|s| s.created).chain(facts.invoices.values().map(|i| i.event_created)).max();
        let clock = snapshots().any(|s| s.test_clock).then_some(newest).flatten();
        let now = clock.map_or(now, |c| c.max(now));
        let subs = ids.iter().map(|id| Sub::read(facts, id, takes, now)).collect();
        let fix = |(i, (step, _)): (usize, &'a (Step, E))| match &step.action {
            Action::Fix { user: u, body } if u == user => Some((i, step.at, body)),
            Action::Fix { .. } | Action::Put { .. } | Action::Send(_) | Action::Spend { .. } => None,
        };
        let put = steps.iter().filter(|(s, _)| matches!(&s.action, Action::Put { user: u } if u == user));
        let put = put.map(|(s, _)| s.at).min();
        let fixes = steps.iter().enumerate().filter_map(fix).collect();
        Account { facts, user, now, subs, takes, fixes, put }
    }

    fn items(&self) -> impl Iterator<Item = &Item<'a>> {
        self.subs.iter().flat_map(|s| &s.items)
    }

    fn taken(&self, key: &Key) -> i64 {
        self.takes.get(key).copied().unwrap_or(0)
    }

    /// All lots that live now, in the order in which a spend takes from them.
    pub fn lots(&self, ranks: &mut Ranks, step: usize) -> Vec<Lot> {
        let mut lots = Vec::new();
        for sub in &self.subs {
            sub.items.iter().for_each(|i| self.item_lots(i, &mut lots));
        }
        self.trial_lots(&mut lots);
        self.signup_lot(&mut lots);
        self.given_lots(&mut lots);
        self.sale_lots(ranks, step, &mut lots);
        lots.retain(|l| l.until > self.now && l.left > 0);
        if self.facts.catalog.policy.spend_order == "expiring_first" {
            // "Earliest `until`; ties: free before paid, plan before pack, then `since`, then key."
            lots.sort_by_key(|l| (l.until, !l.free, l.order.0, l.since, l.key.clone()));
        } else {
            lots.sort_by_key(|l| (l.order.clone(), l.until, l.since, l.key.clone()));
        }
        lots
    }

    fn item_lots(&self, item: &Item<'a>, lots: &mut Vec<Lot>) {
        let Some(unit) = item.units.len().checked_sub(1) else { return };
        // 2.5: "of an ended subscription or a removed item, once another item's paid period starts at or after
        // that end, whichever is heard first".
        let others = || self.items().filter(|i| i.id != item.id).flat_map(|i| &i.periods);
        if item.end.is_some_and(|end| others().any(|p| p.start >= end)) {
            return;
        }
        let content = item.content(unit, NEVER);
        let (u, grace) = (&item.units[unit], self.facts.catalog.policy.past_due_grace_days * DAY);
        let end = item.periods[u.period].end;
        lots.push(Lot {
            key: item.key(unit, &content.plan),
            bucket: item.id.clone(),
            left: content.left,
            backed: content.backed,
            free: false,
            since: u.start,
            until: NEVER,
            order: (0, end, item.id.clone(), 0),
        });
        for i in 1..item.units.len() {
            let Some((carry, until)) = item.rollover(i, grace) else { continue };
            let (start, slice) = (item.periods[item.units[i].period].start, item.units[i].slice);
            let key = Key::Rollover { item: item.id.clone(), start, slice };
            lots.push(Lot {
                left: carry - self.taken(&key),
                key,
                bucket: item.id.clone(),
                backed: carry,
                free: false,
                since: item.units[i].start,
                until,
                order: (0, end, item.id.clone(), 1),
            });
        }
    }

    /// 2.7: when a subscription's trial began: its earliest `trialing` snapshot, else a zero line that is a trial.
    fn trial_start(&self, sub: &Sub<'a>) -> Option<i64> {
        let trialing = sub.snapshots.iter().filter(|s| s.status == "trialing").map(|s| s.created).min();
        trialing.or_else(|| self.zero_lines(sub).map(|(l, ..)| l.1).min())
    }

    /// Unflagged zero lines that open nothing, and that no snapshot of their period contradicts: (item, start, …).
    fn zero_lines<'s>(
        &'s self,
        sub: &'s Sub<'a>,
    ) -> impl Iterator<Item = ((&'s str, i64), &'a Plan, i64)> + 's {
        let invoices = self.facts.invoices.values().filter(|i| i.sub.as_deref() == Some(sub.id.as_str()));
        let lines = invoices.flat_map(|i| i.lines.iter().filter(|l| l.amount == 0 && !l.flagged));
        lines.filter_map(|l| {
            let price = l.price.as_ref().filter(|p| !self.facts.is_free(p))?;
            let Some(Sold::Plan(plan)) = self.facts.sold(price) else { return None };
            let named = l.item.as_deref();
            let item = sub.items.iter().find(|i| named.is_none_or(|n| n == i.id))?;
            let of_period =
                |s: &&&crate::event::Snapshot| s.items.iter().any(|i| i.id == item.id && i.start == l.start);
            let mut shown = sub.snapshots.iter().filter(of_period).peekable();
            let free = shown.peek().is_none() || shown.any(|s| s.status == "trialing");
            let opens = item.periods.iter().any(|p| p.start == l.start);
            (free && !opens).then_some(((item.id.as_str(), l.start), plan, l.quantity))
        })
    }

    /// 2.7: "A trial grants, per item, `trial_credits` of the plan in the latest `trialing` snapshot, once per
    /// subscription. Under `once`, only the user's earliest trial grants." A paid period takes its place; "credits
    /// of a trial that is cancelled unpaid end with it".
    fn trial_lots(&self, lots: &mut Vec<Lot>) {
        let starts = self.subs.iter().filter_map(|s| Some((self.trial_start(s)?, &s.id)));
        let earliest = starts.min();
        let once = self.facts.catalog.policy.trials == "once";
        for sub in &self.subs {
            let Some(start) = self.trial_start(sub) else { continue };
            if sub.ended.is_some() || once && earliest != Some((start, &sub.id)) {
                continue;
            }
            let latest = sub.snapshots.iter().rev().find(|s| s.status == "trialing");
            let mut grants: BTreeMap<&str, (&Plan, i64, i64)> = BTreeMap::new();
            for i in latest.iter().flat_map(|s| &s.items) {
                if let Some(Sold::Plan(plan)) = self.facts.sold(&i.price) {
                    grants.insert(&i.id, (plan, i.quantity, i.end));
                }
            }
            let mut zero: Vec<_> = self.zero_lines(sub).filter(|_| latest.is_none()).collect();
            zero.sort_by_key(|z| z.0);
            grants.extend(
                zero.into_iter().map(|((item, start), plan, quantity)| (item, (plan, quantity, start))),
            );
            for (id, (plan, quantity, end)) in grants {
                let Some(item) = sub.items.iter().find(|i| i.id == id && i.periods.is_empty()) else {
                    continue;
                };
                let others = || self.items().filter(|i| i.id != item.id).flat_map(|i| &i.periods);
                let gone = item.end.is_some_and(|end| others().any(|p| p.start >= end));
                let key = Key::Trial { sub: sub.id.clone(), item: id.into() };
                let granted = if gone { 0 } else { plan.trial(quantity) };
                let left = granted - self.taken(&key);
                let (bucket, order) = (id.to_string(), (0, end, id.into(), 0));
                let (free, until) = (true, NEVER);
                lots.push(Lot { key, bucket, left, backed: granted, free, since: start, until, order });
            }
        }
    }

    /// 2.5: signup credits, "once", ended by a paid period; credits.md §2: free refills, "only while no plan gives
    /// access"; "one that proves due is granted, only the newest".
    fn signup_lot(&self, lots: &mut Vec<Lot>) {
        let Some(put) = self.put else { return };
        let policy = &self.facts.catalog.policy;
        let openings = || self.items().flat_map(|i| &i.periods).map(|p| p.start);
        let refills = policy.free_credits > 0 && policy.free_refill == "month";
        let due = (1..).map(|k| (k, add_months(put, k))).take_while(|(_, at)| refills && *at <= self.now);
        let newest = due.collect::<Vec<_>>().into_iter().rev().find(|(_, at)| self.plan_at(*at).is_none());
        let (index, since, granted) =
            newest.map_or((0, put, policy.signup_credits), |(k, at)| (k, at, policy.free_credits));
        if openings().any(|start| index == 0 || start >= since) {
            return;
        }
        let of_user = self.takes.iter().filter(|(k, _)| match k {
            Key::Signup { user, refill } => user == self.user && *refill >= index,
            Key::Plan { .. } | Key::Trial { .. } | Key::Rollover { .. } | Key::Sale { .. } | Key::Fix(_) => {
                false
            }
        });
        let expires = if index == 0 { policy.signup_expires_days } else { 0 };
        lots.push(Lot {
            key: Key::Signup { user: self.user.into(), refill: index },
            bucket: "signup".into(),
            left: granted - of_user.map(|(_, n)| n).sum::<i64>(),
            backed: granted,
            free: true,
            since,
            until: expiry(since, expires),
            order: (1, 0, String::new(), 0),
        });
    }

    /// 2.5: grants by hand and complimentary credits live in `grant`, "which no renewal ends".
    fn given_lots(&self, lots: &mut Vec<Lot>) {
        for (index, at, body) in &self.fixes {
            let action = body.get("action").and_then(Value::as_str);
            let since = self.comp(body).map_or(*at, |(_, from, _)| from);
            if !matches!(action, Some("grant" | "complimentary")) || since > self.now {
                continue;
            }
            let granted = body.get("credits").and_then(Value::as_i64).unwrap_or(0);
            let until = ["until", "expires"].iter().find_map(|k| moment(body.get(*k)?)).unwrap_or(NEVER);
            let key = Key::Fix(*index);
            let (left, bucket) = (granted - self.taken(&key), "grant".into());
            let order = (2, 0, String::new(), 0);
            lots.push(Lot { key, bucket, left, backed: granted, free: true, since, until, order });
        }
    }

    /// A complimentary plan: its tier, from and until.
    fn comp<'v>(&'v self, body: &'v Value) -> Option<(&'v Plan, i64, i64)> {
        let name = body.get("action").filter(|a| *a == "complimentary").and(body.get("plan"))?.as_str();
        let plan = self.facts.catalog.plan.iter().find(|p| Some(p.name.as_str()) == name)?;
        let at = |k: &str| body.get(k).and_then(moment);
        Some((plan, at("from").unwrap_or(0), at("until").unwrap_or(NEVER)))
    }

    /// 2.5: packs and products by session and by invoice, lifetime plans, and the add-on reset.
    fn sale_lots(&self, ranks: &mut Ranks, step: usize, lots: &mut Vec<Lot>) {
        let mut resets = Vec::new();
        for item in self.items() {
            // "Openings of items of a `per = "subscription"` plan reset; seat items … do not."
            for p in item.periods.iter().filter(|p| p.plan.per != "seat") {
                let mark = Mark::Opening(item.id.clone(), p.start);
                resets.push((p.start, p.invoice.id.as_str(), *ranks.entry(mark).or_insert(step)));
            }
        }
        let reset = self.facts.catalog.policy.addons == "reset";
        let mut addon =
            |document: &str, pack: &Pack, quantity, at, rank: usize, taken, loss: &dyn Fn(i64) -> i64| {
                // "Packs bought before it end, at or after it stay, so does a pack on the same invoice." 2.3 (b): "a
                // pack that reaches us after a newer reset is granted in full".
                let ends = |r: &(i64, &str, usize)| r.0 > at && r.1 != document && r.2 >= rank;
                if reset && resets.iter().any(ends) {
                    return;
                }
                let backed = pack.credits * quantity - loss(pack.credits * quantity);
                lots.push(Lot {
                    key: Key::Sale { document: document.into(), name: pack.name.clone() },
                    bucket: "addon".into(),
                    left: backed - taken,
                    backed,
                    free: false,
                    since: at,
                    until: expiry(at, pack.expires_days),
                    order: (3, 0, String::new(), 0),
                });
            };
        let mut lifetime = Vec::new();
        for s in self.sessions() {
            let tied: Vec<&String> = self.facts.invoices.keys().filter(|i| self.facts.tied(s, i)).collect();
            let documents = || tied.iter().copied().chain([&s.id]);
            let known = documents().filter_map(|d| ranks.get(&Mark::Sale(d.clone()))).min().copied();
            let rank = *ranks.entry(Mark::Sale(s.id.clone())).or_insert(known.unwrap_or(step));
            let rank = known.map_or(rank, |k| k.min(rank));
            let loss = |part| self.facts.loss(part, &s.id, s.total, NEVER);
            // "What was spent of [the invoice's entry] counts against the session's lot."
            let taken = |name: &str| -> i64 {
                let key = |d: &String| Key::Sale { document: d.clone(), name: name.into() };
                documents().map(|d| self.taken(&key(d))).sum()
            };
            for (sold, quantity) in merged(self.facts.sales(s)) {
                match sold {
                    Sold::Pack(p) => addon(&s.id, p, quantity, s.created, rank, taken(&p.name), &loss),
                    Sold::Plan(p) => lifetime.push((s, p, quantity, taken(&p.name))),
                }
            }
        }
        for i in self.facts.invoices.values().filter(|i| self.facts.purchase(&i.id).is_none()) {
            let owner = match &i.sub {
                Some(sub) => self.facts.owners.of_sub(sub, i.customer.as_deref()),
                None => self.facts.owners.of_document(&i.id),
            };
            let sold = i.lines.iter().filter(|l| l.amount > 0).filter_map(|l| {
                let sold = self.facts.sold(l.price.as_ref()?)?;
                matches!(sold, Sold::Pack(_)).then_some((sold, l.quantity))
            });
            let sold = merged(sold.collect());
            if owner.is_none_or(|o| o != self.user) || sold.is_empty() {
                continue;
            }
            let rank = *ranks.entry(Mark::Sale(i.id.clone())).or_insert(step);
            let loss = |part| self.facts.loss(part, &i.id, i.total, NEVER);
            for (sold, quantity) in sold {
                if let Sold::Pack(p) = sold {
                    let taken = self.taken(&Key::Sale { document: i.id.clone(), name: p.name.clone() });
                    addon(&i.id, p, quantity, i.event_created, rank, taken, &loss);
                }
            }
        }
        for (s, plan, quantity, taken) in lifetime {
            let backed = plan.worth(quantity) - self.facts.loss(plan.worth(quantity), &s.id, s.total, NEVER);
            let bucket = format!("lifetime#{}", s.id);
            lots.push(Lot {
                key: Key::Sale { document: s.id.clone(), name: plan.name.clone() },
                order: (0, NEVER, bucket.clone(), 0),
                bucket,
                left: backed - taken,
                backed,
                free: false,
                since: s.created,
                until: NEVER,
            });
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &'a Session> {
        let mine = |s: &&Session| self.facts.owners.of_document(&s.id).is_some_and(|o| o == self.user);
        self.facts.sessions.values().filter(mine)
    }

    /// 2.9: the highest plan that gives access at a moment, as (rank, tier).
    fn plan_at(&self, at: i64) -> Option<(i64, &str)> {
        let catalog = self.facts.catalog;
        let of_sub = self.subs.iter().flat_map(|s| self.sub_plans(s, at));
        // Lifetime: "tier until refunded".
        let refunded = |s: &Session| s.total > 0 && self.facts.reversed(&s.id, NEVER, true) >= s.total;
        let bought = self.sessions().filter(|s| s.created <= at && !refunded(s));
        let bought = bought.flat_map(|s| self.facts.sales(s)).filter_map(|(sold, _)| match sold {
            Sold::Plan(plan) => Some(plan),
            Sold::Pack(_) => None,
        });
        let given = self.fixes.iter().filter_map(|(_, _, body)| self.comp(body));
        let given = given.filter(|(_, from, until)| *from <= at && at < *until).map(|(plan, ..)| plan);
        let plans = of_sub.chain(bought).map(|p| (catalog.rank(&p.tier), p.tier.as_str()));
        plans.chain(given.map(|p| (catalog.rank(&p.tier), p.tier.as_str()))).max()
    }

    /// 2.9, the table: the plans to which a subscription gives access at a moment.
    fn sub_plans(&self, sub: &Sub<'a>, at: i64) -> Vec<&'a Plan> {
        let policy = &self.facts.catalog.policy;
        let latest = if at >= self.now { sub.snapshots.last().copied() } else { sub.snapshot_at(at) };
        let ended = sub.ended.filter(|(end, _)| *end <= at);
        let status = match (ended, latest) {
            (Some((_, failed)), _) => {
                if failed {
                    "unpaid"
                } else {
                    "canceled"
                }
            }
            (None, Some(s)) => &s.status,
            // "An item with a running paid period and no snapshot yet gives access."
            (None, None) => "active",
        };
        let mut plans = Vec::new();
        for item in &sub.items {
            let shown = latest.and_then(|s| s.items.iter().find(|i| i.id == item.id));
            let plan = shown.and_then(|i| match self.facts.sold(&i.price) {
                Some(Sold::Plan(plan)) => Some(plan),
                Some(Sold::Pack(_)) | None => None,
            });
            let paid = item.paid_plan(at);
            let removed = item.end.is_some_and(|end| end <= at) && ended.is_none();
            let given_back = policy.refunded_access == "end" && item.is_given_back(at);
            if removed || given_back || shown.is_some() && plan.is_none() {
                continue;
            }
            let lower = |paid: &'a Plan| {
                let rank = |p: &Plan| self.facts.catalog.rank(&p.tier);
                plan.filter(|p| rank(p) < rank(paid)).unwrap_or(paid)
            };
            let held = policy.pause_collection == "until_period_end"
                && latest.is_some_and(|s| s.collection_paused)
                && !paid.is_some_and(|(_, end)| at < end);
            plans.extend(match status {
                "active" | "trialing" if held => None,
                "active" | "trialing" => plan.or(paid.map(|p| p.0)),
                // "Per item, to the end of its own paid period: the lower of the plan that was paid for and the
                // plan in the latest snapshot."
                "past_due" | "unpaid" if paid.is_some() => paid.map(|p| lower(p.0)),
                "past_due" => plan.filter(|_| {
                    let last = item.periods.last().filter(|p| p.start <= at);
                    let start = shown.map_or(0, |i| i.start);
                    let unpaid = last.filter(|p| p.start == start).map_or(start, |p| p.end);
                    let days = match latest.and_then(|s| s.due_days) {
                        Some(due) => due,
                        None => policy.past_due_grace_days,
                    };
                    at < unpaid + days * DAY
                }),
                _ => None,
            });
        }
        plans
    }

    /// The user as it reads now.
    pub fn user(&self, lots: &[Lot]) -> User {
        let tier = self.plan_at(self.now).map_or(self.facts.catalog.policy.default_tier.as_str(), |p| p.1);
        let mut user = User { tier: tier.into(), ..User::default() };
        for lot in lots {
            user.credits += lot.left;
            *user.buckets.entry(lot.bucket.clone()).or_insert(0) += lot.left;
            *user.backed.entry(lot.bucket.clone()).or_insert(0) += lot.backed;
        }
        for s in self.sessions().filter(|s| self.facts.is_order(s)) {
            // 2.11: "`REFUNDED` from any, set only by a full refund".
            let refunded = s.total > 0 && self.facts.reversed(&s.id, NEVER, false) >= s.total;
            user.orders.insert(s.id.clone(), if refunded { "REFUNDED" } else { "NEW" }.into());
        }
        user
    }
}

fn expiry(since: i64, days: i64) -> i64 {
    if days > 0 { since + days * DAY } else { NEVER }
}

/// Lines of one document that sell the same thing are one sale.
fn merged<'a>(sales: Vec<(Sold<'a>, i64)>) -> Vec<(Sold<'a>, i64)> {
    let mut sums: BTreeMap<(bool, String), (Sold<'a>, i64)> = BTreeMap::new();
    for (sold, quantity) in sales {
        let key = match sold {
            Sold::Plan(p) => (true, p.name.clone()),
            Sold::Pack(p) => (false, p.name.clone()),
        };
        sums.entry(key).or_insert((sold, 0)).1 += quantity;
    }
    sums.into_values().collect()
}
