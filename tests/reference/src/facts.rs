//! The set of facts: every accepted document, sorted so that the order of arrival is forgotten.

use crate::Step;
use crate::catalog::{Catalog, Pack, Plan, Sold};
use crate::event::{Event, Fact, Invoice, Payment, Price, Session, Snapshot};
use crate::owner::Owners;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a session sold: a pack or product, or a lifetime plan, with its quantity.
pub type Sale<'a> = (Sold<'a>, i64);

/// One state of a refund or a dispute.
struct Reversal {
    payment: String,
    id: String,
    amount: i64,
    status: String,
    created: i64,
}

/// Every accepted document of all users.
pub struct Facts<'a> {
    pub catalog: &'a Catalog,
    pub owners: Owners,
    pub snapshots: BTreeMap<String, Vec<&'a Snapshot>>,
    pub invoices: BTreeMap<String, &'a Invoice>,
    pub sessions: BTreeMap<String, Session>,
    pub deleted_customers: BTreeMap<String, i64>,
    prices: BTreeMap<String, Price>,
    links: BTreeMap<String, BTreeMap<String, i64>>,
    amounts: BTreeMap<String, i64>,
    charges: Vec<(String, i64, i64)>,
    refunds: Vec<Reversal>,
    disputes: Vec<Reversal>,
}

impl<'a> Facts<'a> {
    /// Reads the accepted events among `steps`, each event id once.
    pub fn collect(catalog: &'a Catalog, steps: &'a [(Step, Option<Event>)]) -> Facts<'a> {
        let mut f = Facts {
            catalog,
            owners: Owners::play(catalog, steps),
            snapshots: BTreeMap::new(),
            invoices: BTreeMap::new(),
            sessions: BTreeMap::new(),
            deleted_customers: BTreeMap::new(),
            prices: BTreeMap::new(),
            links: BTreeMap::new(),
            amounts: BTreeMap::new(),
            charges: Vec::new(),
            refunds: Vec::new(),
            disputes: Vec::new(),
        };
        let mut heard: Vec<&Event> = steps.iter().filter_map(|(_, e)| e.as_ref()).collect();
        heard.retain(|e| f.owners.outcomes.get(&e.id).is_some_and(|o| o.status == "processed"));
        heard.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        heard.dedup_by(|a, b| a.id == b.id);
        let alias = aliases(&heard);
        let key = |p: &Payment| {
            let charge = || p.charge.as_ref().map(|c| alias.get(c).unwrap_or(c).clone());
            p.intent.clone().or_else(charge).unwrap_or_default()
        };
        for e in heard {
            match &e.fact {
                Fact::Session(s) => f.session(s),
                Fact::Snapshot(s) => {
                    s.items.iter().for_each(|i| f.learn(&i.price));
                    f.snapshots.entry(s.sub.clone()).or_default().push(s);
                }
                Fact::Invoice(i) => {
                    i.lines.iter().filter_map(|l| l.price.as_ref()).for_each(|p| f.learn(p));
                    if i.paid {
                        f.invoices.entry(i.id.clone()).or_insert(i);
                        f.link(&i.id, key(&i.payment), i.amount_paid);
                    }
                }
                Fact::Link { invoice, payment, amount } => {
                    let payment = alias.get(payment).unwrap_or(payment).clone();
                    amount.map(|a| f.amounts.insert(payment.clone(), a));
                    f.link(invoice, payment, amount.unwrap_or(0));
                }
                Fact::Charge { payment, refunded, amount, invoice } => {
                    let k = key(payment);
                    amount.map(|a| f.amounts.insert(k.clone(), a));
                    if let Some(invoice) = invoice {
                        f.link(invoice, k.clone(), 0);
                    }
                    f.charges.push((k, *refunded, e.created));
                }
                Fact::Refund { payment, id, amount, status } => {
                    f.refunds.push(reversal(key(payment), id, *amount, status, e.created));
                }
                Fact::Dispute { payment, id, amount, status } => {
                    f.disputes.push(reversal(key(payment), id, *amount, status, e.created));
                }
                Fact::CustomerDeleted(c) => {
                    f.deleted_customers.entry(c.clone()).or_insert(e.created);
                }
                Fact::Unknown => {}
            }
        }
        f.snapshots.values_mut().for_each(|v| *v = in_order(std::mem::take(v)));
        f
    }

    fn link(&mut self, document: &str, payment: String, amount: i64) {
        if !payment.is_empty() {
            let known = self.links.entry(document.into()).or_default().entry(payment).or_insert(0);
            *known = amount.max(*known);
        }
    }

    /// "What is learnt from the subscription … is remembered per price id" (selling.md §2).
    fn learn(&mut self, p: &Price) {
        let known = self.prices.entry(p.id.clone()).or_default();
        known.lookup = known.lookup.take().or_else(|| p.lookup.clone());
        known.product = known.product.take().or_else(|| p.product.clone());
        known.amount = known.amount.or(p.amount);
    }

    /// A session counts once it is paid; it was paid at the earliest event that says so.
    fn session(&mut self, s: &Session) {
        if let Some(intent) = &s.intent {
            self.link(&s.id, intent.clone(), s.total);
        }
        let known = self.sessions.entry(s.id.clone()).or_insert_with(|| s.clone());
        let invoice = known.invoice.take().or_else(|| s.invoice.clone());
        if s.paid && !known.paid {
            *known = s.clone();
        }
        known.invoice = invoice;
    }

    /// What a price sells, by all that is known about it.
    pub fn sold(&self, p: &Price) -> Option<Sold<'a>> {
        let known = self.prices.get(&p.id).unwrap_or(p);
        self.catalog.sold(&p.id, known.lookup.as_deref(), known.product.as_deref())
    }

    /// Whether a price's own amount is 0.
    pub fn is_free(&self, p: &Price) -> bool {
        p.amount.or_else(|| self.prices.get(&p.id)?.amount) == Some(0)
    }

    /// 2.5: the lines of a paid session of mode `payment`: its line items, else what its metadata names.
    pub fn sales(&self, s: &Session) -> Vec<Sale<'a>> {
        if !s.paid || s.mode != "payment" {
            return Vec::new();
        }
        if !s.lines.is_empty() {
            let sale = |l: &crate::event::Line| Some((self.sold(l.price.as_ref()?)?, l.quantity));
            return s.lines.iter().filter_map(sale).collect();
        }
        let word = |k: &str| s.metadata.get(k).and_then(Value::as_str);
        let pack = |list: &'a [Pack], k: &str| list.iter().find(|p| Some(p.name.as_str()) == word(k));
        let plan = || self.catalog.plan.iter().find(|p| Some(p.name.as_str()) == word("plan"));
        let goods = [pack(&self.catalog.pack, "pack"), pack(&self.catalog.product, "product")];
        let mut sales: Vec<Sale<'a>> =
            goods.into_iter().flatten().map(|p| (Sold::Pack(p), quantity(s, p.amount))).collect();
        if let Some(plan) = plan().filter(|_| !self.is_order(s)) {
            let plan: &'a Plan = plan;
            sales.push((Sold::Plan(plan), quantity(s, plan.amount)));
        }
        sales
    }

    /// 2.11: a paid one-time session whose `metadata.mode` names an order kind.
    pub fn is_order(&self, s: &Session) -> bool {
        let mode = s.metadata.get("mode").and_then(Value::as_str);
        s.paid && s.mode == "payment" && self.catalog.order.iter().any(|o| Some(o.mode.as_str()) == mode)
    }

    /// 2.5, one purchase: a session and an invoice "that are tied by payment intent, by `session.invoice` or by
    /// `invoice_payment.paid`".
    pub fn tied(&self, s: &Session, invoice: &str) -> bool {
        let payments = |d: &str| self.links.get(d).map(|m| m.keys().collect::<BTreeSet<_>>());
        let shared = |a: BTreeSet<_>, b: BTreeSet<_>| a.intersection(&b).next().is_some();
        s.invoice.as_deref() == Some(invoice)
            || payments(&s.id).zip(payments(invoice)).is_some_and(|(a, b)| shared(a, b))
    }

    /// The session that is the same purchase as an invoice and grants in its place.
    pub fn purchase(&self, invoice: &str) -> Option<&Session> {
        self.sessions.values().find(|s| !self.sales(s).is_empty() && self.tied(s, invoice))
    }

    /// 2.8: what each part loses: ⌊part × refunded / total⌋, at most the part.
    pub fn loss(&self, part: i64, document: &str, total: i64, before: i64) -> i64 {
        if total <= 0 { 0 } else { part * self.reversed(document, before, true).min(total) / total }
    }

    /// What was refunded of a session's or invoice's payments by events made before `before`; with disputes.
    pub fn reversed(&self, document: &str, before: i64, disputes: bool) -> i64 {
        let mut payments = self.links.get(document).cloned().unwrap_or_default();
        if let Some(s) = self.sessions.get(document).filter(|s| s.mode == "payment") {
            let tied = self.links.iter().filter(|(d, _)| self.tied(s, d) && !self.sessions.contains_key(*d));
            payments.extend(tied.flat_map(|(_, m)| m.clone()));
        }
        payments.iter().map(|(p, paid)| self.reversed_payment(document, p, *paid, before, disputes)).sum()
    }

    fn reversed_payment(&self, document: &str, p: &str, paid: i64, before: i64, disputes: bool) -> i64 {
        let refunded = self.refunded(p, before);
        let disputed = if disputes { self.disputed(p, before) } else { 0 };
        let amount = self.amounts.get(p).copied().unwrap_or(paid);
        let reversed = refunded.max((refunded + disputed).min(amount));
        // "One invoice may have several payments and the other way round": in proportion to what each invoice got.
        let invoices = self.links.iter().filter(|(d, _)| !self.sessions.contains_key(*d));
        let shares: Vec<(&String, i64)> = invoices.filter_map(|(d, m)| Some((d, *m.get(p)?))).collect();
        let sum: i64 = shares.iter().map(|(_, n)| n).sum();
        match shares.iter().find(|(d, _)| *d == document) {
            Some((_, share)) if shares.len() > 1 && sum > 0 => reversed * share / sum,
            _ => reversed,
        }
    }

    /// "Refunded = the larger of the sum of succeeded single refunds and the newest `amount_refunded` less
    /// refunds known to have failed or been cancelled; pending ones count nothing of their own."
    fn refunded(&self, payment: &str, before: i64) -> i64 {
        let mut newest: BTreeMap<&str, (i64, i32, &Reversal)> = BTreeMap::new();
        for r in self.refunds.iter().filter(|r| r.payment == payment && r.created < before) {
            let rank = match r.status.as_str() {
                "failed" | "canceled" => 2,
                "succeeded" => 1,
                _ => 0,
            };
            let known = newest.entry(&r.id).or_insert((r.created, rank, r));
            if (r.created, rank) > (known.0, known.1) {
                *known = (r.created, rank, r);
            }
        }
        let sum = |rank| newest.values().filter(|n| n.1 == rank).map(|n| n.2.amount).sum::<i64>();
        let of_charge = self.charges.iter().filter(|c| c.0 == payment && c.2 < before);
        let cumulative = of_charge.max_by_key(|c| (c.2, c.1)).map_or(0, |c| c.1);
        sum(1).max(cumulative - sum(2))
    }

    /// "Of two states of one dispute the later of warning_* < open < lost < won counts. An inquiry and
    /// `prevented` revoke nothing."
    fn disputed(&self, payment: &str, before: i64) -> i64 {
        let mut newest: BTreeMap<&str, (i32, i64)> = BTreeMap::new();
        for d in self.disputes.iter().filter(|d| d.payment == payment && d.created < before) {
            let known = newest.entry(&d.id).or_insert((0, d.amount));
            *known = (*known).max((dispute_rank(&d.status), d.amount));
        }
        newest.values().filter(|(rank, _)| matches!(rank, 1 | 2)).map(|(_, amount)| amount).sum()
    }

    /// Whether a dispute of a document's payment was open at a moment, and when its disputes changed.
    pub fn dispute_open(&self, document: &str, at: i64) -> bool {
        let states = self.disputes_of(document).filter(|d| d.created <= at);
        let mut newest: BTreeMap<&str, i32> = BTreeMap::new();
        for d in states {
            let known = newest.entry(&d.id).or_insert(0);
            *known = (*known).max(dispute_rank(&d.status));
        }
        newest.values().any(|rank| *rank == 1)
    }

    pub fn dispute_times(&self, document: &str) -> Vec<i64> {
        self.disputes_of(document).map(|d| d.created).collect()
    }

    fn disputes_of(&self, document: &str) -> impl Iterator<Item = &Reversal> {
        let payments = self.links.get(document);
        self.disputes.iter().filter(move |d| payments.is_some_and(|p| p.contains_key(&d.payment)))
    }
}

fn reversal(payment: String, id: &str, amount: i64, status: &str, created: i64) -> Reversal {
    Reversal { payment, id: id.into(), amount, status: status.into(), created }
}

fn dispute_rank(status: &str) -> i32 {
    match status {
        "needs_response" | "under_review" => 1,
        "lost" => 2,
        "won" => 3,
        _ => 0,
    }
}

/// 2.5, quantity: our checkout's metadata; for a Payment Link, or without one, what the amounts say, else 1.
fn quantity(s: &Session, amount: Option<i64>) -> i64 {
    let written = s.metadata.get("quantity");
    let written = written.and_then(|q| q.as_i64().or_else(|| q.as_str()?.parse().ok()));
    let computed = s.subtotal.zip(amount.filter(|a| *a > 0)).map(|(sum, each)| sum / each);
    written.filter(|q| !s.payment_link && *q > 0).or(computed.filter(|q| *q > 0)).unwrap_or(1)
}

/// Charge → payment intent, from every object that names both.
fn aliases(heard: &[&Event]) -> BTreeMap<String, String> {
    let pair = |e: &&Event| match &e.fact {
        Fact::Charge { payment, .. } | Fact::Refund { payment, .. } | Fact::Dispute { payment, .. } => {
            payment.charge.clone().zip(payment.intent.clone())
        }
        Fact::Invoice(i) => i.payment.charge.clone().zip(i.payment.intent.clone()),
        Fact::Session(_) | Fact::Snapshot(_) | Fact::Link { .. } => None,
        Fact::CustomerDeleted(_) | Fact::Unknown => None,
    };
    heard.iter().filter_map(pair).collect()
}

/// A terminal status is never left.
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "canceled" | "incomplete_expired")
}

/// 2.3: the order of the snapshots of one subscription; the last one wins.
fn in_order(mut snapshots: Vec<&Snapshot>) -> Vec<&Snapshot> {
    snapshots.sort_by_key(|s| s.created);
    let mut ordered: Vec<&Snapshot> = Vec::new();
    for second in snapshots.chunk_by(|a, b| a.created == b.created) {
        let mut group = second.to_vec();
        group.sort_by(|a, b| greatness(a).cmp(&greatness(b)));
        let mut chains = Vec::new();
        extend_chains(ordered.last().copied(), &mut Vec::new(), &group, &mut chains);
        let ends: BTreeSet<&str> = chains.iter().filter_map(|c| Some(c.last()?.event.as_str())).collect();
        ordered.extend(if ends.len() == 1 { chains.swap_remove(0) } else { group });
    }
    ordered.sort_by_key(|s| is_terminal(&s.status));
    ordered
}

/// "(terminal, item period start, status in the order …, price id, quantity, event id)".
fn greatness(s: &Snapshot) -> impl Ord {
    let order = ["incomplete", "trialing", "active", "past_due", "unpaid", "paused"];
    let prices: Vec<String> = s.items.iter().map(|i| i.price.id.clone()).collect();
    (
        is_terminal(&s.status),
        s.items.iter().map(|i| i.start).max(),
        order.iter().position(|o| *o == s.status),
        prices,
        s.items.iter().map(|i| i.quantity).sum::<i64>(),
        s.event.clone(),
    )
}

/// All chains through a whole second: each snapshot's `previous_attributes` describe the one before it.
fn extend_chains<'a>(
    earlier: Option<&'a Snapshot>,
    chain: &mut Vec<&'a Snapshot>,
    rest: &[&'a Snapshot],
    chains: &mut Vec<Vec<&'a Snapshot>>,
) {
    if rest.is_empty() {
        chains.push(chain.clone());
    }
    for (i, next) in rest.iter().enumerate() {
        if earlier.is_none_or(|e| follows(next, e)) && (earlier.is_some() || next.first) {
            let others: Vec<_> = rest.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, s)| *s).collect();
            chain.push(next);
            extend_chains(Some(next), chain, &others, chains);
            chain.pop();
        }
    }
}

fn follows(next: &Snapshot, earlier: &Snapshot) -> bool {
    let Some(previous) = next.previous.as_object() else { return false };
    let same = |k: &str| previous.contains_key(k) || next.object.get(k) == earlier.object.get(k);
    previous.iter().all(|(k, v)| part_of(v, earlier.object.get(k).unwrap_or(&Value::Null)))
        && same("status")
        && same("items")
}

fn part_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(p), Value::Object(_)) => {
            p.iter().all(|(k, v)| part_of(v, whole.get(k).unwrap_or(&Value::Null)))
        }
        (Value::Array(p), Value::Array(w)) => {
            p.len() == w.len() && p.iter().zip(w).all(|(p, w)| part_of(p, w))
        }
        _ => part == whole,
    }
}
