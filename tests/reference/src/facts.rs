//! The set of facts: every accepted event, sorted so that the order of arrival is forgotten.

use crate::catalog::{Catalog, Goods};
use crate::event::{Event, Family, Line, id, int};
use crate::owner::Owners;
use crate::{Outcome, ParsedStep};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Every accepted document of all users.
pub struct Facts<'a> {
    pub catalog: &'a Catalog,
    pub owners: Owners,
    /// Accepted events, oldest first.
    pub events: Vec<&'a Event<'a>>,
    /// The snapshots of each subscription, in the order in which they count.
    pub snapshots: BTreeMap<&'a str, Vec<&'a Event<'a>>>,
    /// Paid invoices, and paid sessions of mode `payment`.
    pub paid: BTreeMap<&'a str, &'a Event<'a>>,
    lines: BTreeMap<&'a str, Vec<&'a Line>>,
    /// Document → payment → what was paid.
    links: BTreeMap<String, BTreeMap<String, i64>>,
    amounts: BTreeMap<String, i64>,
    /// Charge → payment intent.
    intents: BTreeMap<String, String>,
    /// Refunds, disputes and charges with the payment that they name, oldest first.
    reversals: Vec<(String, &'a Event<'a>)>,
}

impl<'a> Facts<'a> {
    /// Reads the accepted events of `history`, each event id once.
    pub fn collect(catalog: &'a Catalog, history: &'a [ParsedStep<'a>]) -> Facts<'a> {
        let owners = Owners::play(catalog, history);
        let mut events: Vec<&Event> = history.iter().filter_map(|(_, e)| e.as_ref()).collect();
        events.retain(|e| owners.outcomes[&e.id].status == "processed");
        events.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        events.dedup_by(|a, b| a.id == b.id);
        let both =
            |e: &&Event| id(&e.object["charge"]).or(Some(e.doc.clone())).zip(id(&e.object["payment_intent"]));
        let intents = events.iter().filter_map(both).collect();
        let mut f = Facts {
            catalog,
            owners,
            snapshots: BTreeMap::new(),
            paid: BTreeMap::new(),
            lines: BTreeMap::new(),
            links: BTreeMap::new(),
            amounts: BTreeMap::new(),
            intents,
            events,
            reversals: Vec::new(),
        };
        for e in f.events.clone() {
            for l in e.lines.iter().filter(|l| !l.price.is_empty()) {
                f.lines.entry(&l.price).or_default().push(l);
            }
            let (o, payment) = (&e.object, f.payment(e));
            let invoice = id(&o["invoice"]).unwrap_or_default();
            let paid = int(&o["amount_paid"]).unwrap_or_else(|| e.int("amount_total"));
            match e.family {
                Family::Subscription => f.snapshots.entry(&e.doc).or_default().push(e),
                Family::Session if o["mode"] == "payment" => {
                    f.link(&e.doc, payment, paid);
                    // The session's own id stands for a payment that its invoice shares.
                    f.link(&e.doc, e.doc.clone(), 0);
                    f.link(&invoice, e.doc.clone(), 0);
                }
                Family::Invoice if e.paid => {
                    // Since basil an invoice names its payments in a list, where it shows them at all.
                    let list = o["payments"]["data"].as_array().into_iter().flatten();
                    let named: Vec<_> = list.filter_map(|p| id(&p["payment"]["payment_intent"])).collect();
                    let only = if named.is_empty() { vec![payment] } else { named };
                    only.into_iter().for_each(|p| f.link(&e.doc, p, paid));
                }
                Family::Link => f.link(&invoice, payment, paid),
                Family::Charge => {
                    f.link(&invoice, payment.clone(), 0);
                    f.reversals.push((payment, e));
                }
                Family::Refund | Family::Dispute => f.reversals.push((payment, e)),
                Family::Session | Family::Invoice | Family::Customer | Family::Unknown => {}
            }
            if e.paid && (e.family == Family::Invoice || o["mode"] == "payment") {
                f.paid.entry(&e.doc).or_insert(e);
            }
        }
        f.snapshots.values_mut().for_each(|v| *v = in_order(std::mem::take(v)));
        f
    }

    /// The outcomes of the owners, but for what the rules leave open: "a paid document of which nothing is
    /// known", and news about a payment that is tied to nothing yet.
    pub fn outcomes(&self) -> BTreeMap<String, Outcome> {
        let mut outcomes = self.owners.outcomes.clone();
        let plans = |sub: &String| {
            let invoices = self.paid.values().filter(|i| i.sub.as_ref() == Some(sub));
            let events = self.snapshots.get(sub.as_str()).into_iter().flatten().chain(invoices);
            events.flat_map(|e| &e.lines).any(|l| self.plan(l).is_some())
        };
        for e in &self.events {
            let payment = self.payment(e);
            let known = match e.family {
                Family::Session => {
                    !e.paid || e.sub.is_some() || self.is_order(e) || !self.sales(e).is_empty()
                }
                Family::Invoice => {
                    e.lines.iter().any(|l| self.sold(l).is_some()) || e.sub.as_ref().is_some_and(plans)
                }
                Family::Charge | Family::Refund | Family::Dispute => {
                    self.paid.keys().any(|d| self.links.get(*d).is_some_and(|m| m.contains_key(&payment)))
                }
                Family::Subscription | Family::Link | Family::Customer | Family::Unknown => true,
            };
            if !known {
                outcomes.insert(e.id.clone(), Outcome::new("unspecified", ""));
            }
        }
        outcomes
    }

    /// The payment that an event names: its payment intent, else its charge.
    fn payment(&self, e: &Event) -> String {
        let objects = [e.object, &e.object["payment"]];
        let charge = || objects.into_iter().find_map(|o| id(&o["charge"])).unwrap_or_else(|| e.doc.clone());
        let intent = objects.into_iter().find_map(|o| id(&o["payment_intent"]));
        intent.unwrap_or_else(|| self.intents.get(&charge()).cloned().unwrap_or_else(charge))
    }

    fn link(&mut self, document: &str, payment: String, paid: i64) {
        if !document.is_empty() {
            keep_greatest(self.links.entry(document.into()).or_default(), payment.clone(), paid);
            keep_greatest(&mut self.amounts, payment, paid);
        }
    }

    /// What a line's price sells. "What is learnt from the subscription … is remembered per price id."
    pub fn sold(&self, line: &Line) -> Option<&'a Goods> {
        let learnt = || self.lines.get(line.price.as_str())?.iter().find_map(|l| self.catalog.sold(l));
        let catalog: &'a Catalog = self.catalog;
        catalog.sold(line).or_else(learnt)
    }

    pub fn plan(&self, line: &Line) -> Option<&'a Goods> {
        self.sold(line).filter(|g| g.is_plan())
    }

    /// Whether a price's own amount is 0.
    pub fn is_free(&self, line: &Line) -> bool {
        let same = self.lines.get(line.price.as_str()).into_iter().flatten();
        line.unit.or_else(|| same.filter_map(|l| l.unit).next()) == Some(0)
    }

    /// 2.5: what a paid document sold, with quantities: the packs and products on an invoice's positive
    /// lines; a session's line items, else what its metadata names, a lifetime plan among them.
    pub fn sales(&self, e: &Event) -> Vec<(&'a Goods, i64)> {
        let mut sales: Vec<(&'a Goods, i64)> = Vec::new();
        let mut add =
            |goods: &'a Goods, quantity: i64| match sales.iter_mut().find(|s| s.0.name == goods.name) {
                Some(same) => same.1 += quantity,
                None => sales.push((goods, quantity)),
            };
        let sells = |g: &&Goods| e.family == Family::Session || !g.is_plan();
        // A proration of a pack that is sold by subscription does not say how much of the pack it bills.
        let prorated = |l: &&Line| l.flagged && e.object["billing_reason"] != "subscription_create";
        for l in e.lines.iter().filter(|l| l.amount > 0 && !prorated(l) || e.family == Family::Session) {
            self.sold(l).filter(sells).into_iter().for_each(|g| add(g, l.quantity));
        }
        if e.family == Family::Session && e.lines.is_empty() {
            let (c, metadata) = (self.catalog, &e.object["metadata"]);
            for (list, field) in [(&c.pack, "pack"), (&c.product, "product"), (&c.plan, "plan")] {
                let named = list.iter().find(|g| metadata[field] == g.name);
                let sold = named.filter(|g| !g.is_plan() || !self.is_order(e));
                sold.into_iter().for_each(|g| add(g, quantity(e, g)));
            }
        }
        sales
    }

    /// 2.11: a paid one-time session whose `metadata.mode` names an order kind.
    pub fn is_order(&self, e: &Event) -> bool {
        let mode = &e.object["metadata"]["mode"];
        e.family == Family::Session && self.catalog.order.iter().any(|o| o["mode"] == *mode)
    }

    /// 2.5, one purchase: the documents "that are tied by payment intent, by `session.invoice` or by
    /// `invoice_payment.paid`", this one among them.
    pub fn purchase(&self, document: &str) -> Vec<&str> {
        let mine = self.links.get(document);
        let shares =
            |other: &BTreeMap<String, i64>| mine.is_some_and(|m| m.keys().any(|p| other.contains_key(p)));
        let is_session = |d: &str| self.paid.get(d).map(|e| e.family == Family::Session);
        let tied = |d: &str| d == document || is_session(d) != is_session(document);
        self.links.iter().filter(|(d, other)| tied(d) && shares(other)).map(|(d, _)| d.as_str()).collect()
    }

    /// The session of an invoice's purchase grants, if it sold anything that is known.
    pub fn is_granted_by_session(&self, invoice: &str) -> bool {
        let tied = self.purchase(invoice).into_iter().filter_map(|d| self.paid.get(d));
        tied.filter(|e| e.family == Family::Session).any(|e| !self.sales(e).is_empty())
    }

    /// 2.8: what each part loses: ⌊part × refunded / total⌋, at most the part.
    pub fn loss(&self, part: i64, e: &Event, before: i64) -> i64 {
        let total = e.total();
        if total <= 0 { 0 } else { part * self.reversed(e, before, true).min(total) / total }
    }

    /// What events made before `before` gave back of a document's payments; with disputes or without.
    pub fn reversed(&self, e: &Event, before: i64, disputes: bool) -> i64 {
        let documents =
            if e.family == Family::Session { self.purchase(&e.doc) } else { vec![e.doc.as_str()] };
        let payments = documents.into_iter().filter_map(|d| self.links.get(d)).flatten();
        let each: BTreeSet<&String> = payments.map(|(p, _)| p).collect();
        each.into_iter().map(|p| self.share(e, p, self.reversed_payment(p, before, disputes))).sum()
    }

    /// "One invoice may have several payments and the other way round": in proportion to what each invoice
    /// got.
    fn share(&self, e: &Event, payment: &str, reversed: i64) -> i64 {
        let invoices = self
            .links
            .iter()
            .filter(|(d, _)| !self.paid.get(d.as_str()).is_some_and(|e| e.family == Family::Session));
        let parts: Vec<(&String, i64)> = invoices.filter_map(|(d, m)| Some((d, *m.get(payment)?))).collect();
        let sum: i64 = parts.iter().map(|p| p.1).sum();
        let own = parts.iter().find(|p| *p.0 == e.doc && parts.len() > 1 && sum > 0);
        own.map_or(reversed, |p| reversed * p.1 / sum)
    }

    /// "Refunded = the larger of the sum of succeeded single refunds and the newest `amount_refunded` less
    /// refunds known to have failed or been cancelled; pending ones count nothing of their own." "Of two
    /// states of one dispute the later of warning_* < open < lost < won counts. An inquiry and `prevented`
    /// revoke nothing."
    fn reversed_payment(&self, payment: &str, before: i64, disputes: bool) -> i64 {
        let (mut refunds, mut states, mut newest) = (BTreeMap::new(), BTreeMap::new(), (0, 0));
        let mut amount = self.amounts.get(payment).copied().unwrap_or(0);
        for (_, e) in self.reversals.iter().filter(|(p, e)| p == payment && e.created < before) {
            let (rank, sum) = (rank(e.status()), e.int("amount"));
            if e.family == Family::Refund {
                keep_greatest(&mut refunds, &e.doc, (e.created, rank, sum));
            } else if e.family == Family::Dispute {
                keep_greatest(&mut states, &e.doc, (rank, sum));
            } else {
                (newest, amount) = (newest.max((e.created, e.int("amount_refunded"))), sum);
            }
        }
        let sum = |rank| refunds.values().filter(|s| s.1 == rank).map(|s| s.2).sum::<i64>();
        let refunded = sum(SUCCEEDED).max(newest.1 - sum(FAILED));
        let open = states.values().filter(|s| disputes && matches!(s.0, OPEN | LOST));
        let disputed: i64 = open.map(|s| s.1).sum();
        refunded.max((refunded + disputed).min(amount))
    }

    /// Whether a dispute of a document's payment was open at a moment.
    pub fn is_disputed(&self, e: &Event, at: i64) -> bool {
        let mut states = BTreeMap::new();
        for d in self.disputes(e).filter(|d| d.created <= at) {
            keep_greatest(&mut states, &d.doc, rank(d.status()));
        }
        states.into_values().any(|s| s == OPEN)
    }

    pub fn disputes(&self, e: &Event) -> impl Iterator<Item = &'a Event<'a>> {
        let payments = self.links.get(&e.doc);
        let mine = move |(p, d): &&(String, &Event)| {
            d.family == Family::Dispute && payments.is_some_and(|m| m.contains_key(p))
        };
        self.reversals.iter().filter(mine).map(|(_, d)| *d)
    }
}

fn keep_greatest<K: Ord, V: Ord + Copy>(map: &mut BTreeMap<K, V>, key: K, value: V) {
    let known = map.entry(key).or_insert(value);
    *known = value.max(*known);
}

const OPEN: i32 = 1;
const LOST: i32 = 2;
const SUCCEEDED: i32 = 4;
const FAILED: i32 = 5;

/// The rank of a dispute's or refund's status: of two states of one object the greater counts.
fn rank(status: &str) -> i32 {
    match status {
        "needs_response" | "under_review" => OPEN,
        "lost" => LOST,
        "won" => 3,
        "succeeded" => SUCCEEDED,
        "failed" | "canceled" => FAILED,
        _ => 0,
    }
}

/// 2.5, quantity: our checkout's metadata; for a Payment Link, or without one, what the amounts say, else 1.
/// "⌊`amount_subtotal` / the price's amount⌋ where the catalog knows that amount": in that currency.
fn quantity(e: &Event, goods: &Goods) -> i64 {
    let written = int(&e.object["metadata"]["quantity"]).filter(|_| e.object["payment_link"].is_null());
    let converted = &e.object["currency_conversion"];
    let is_in =
        |code: &Value| goods.currency.as_deref().is_none_or(|own| code.as_str().is_none_or(|c| c == own));
    let subtotal = if converted.is_object() && is_in(&converted["source_currency"]) {
        int(&converted["amount_subtotal"])
    } else {
        int(&e.object["amount_subtotal"]).filter(|_| is_in(&e.object["currency"]))
    };
    let computed = || Some(subtotal? / goods.amount.filter(|a| *a > 0)?);
    written.or_else(computed).filter(|q| *q > 0).unwrap_or(1)
}

/// A terminal status is final.
pub fn is_terminal(e: &Event) -> bool {
    matches!(e.status(), "canceled" | "incomplete_expired")
}

/// 2.3: "The later `created` wins. … The last of the chain that `previous_attributes` makes from the newest
/// earlier snapshot wins; without a single chain, the greatest by (terminal, item period start, status in the
/// order …, price id, quantity, event id)."
fn in_order<'a>(snapshots: Vec<&'a Event<'a>>) -> Vec<&'a Event<'a>> {
    let mut ordered: Vec<&'a Event<'a>> = Vec::new();
    // `customer.subscription.deleted` has no `previous_attributes`. It is the last of any chain.
    let (ended, running): (Vec<_>, Vec<_>) = snapshots.into_iter().partition(|e| is_terminal(e));
    let is_one_second = |a: &&Event<'_>, b: &&Event<'_>| a.created == b.created;
    for second in running.chunk_by(is_one_second).chain(ended.chunk_by(is_one_second)) {
        let mut group = second.to_vec();
        group.sort_by_key(|e| {
            let order = ["incomplete", "trialing", "active", "past_due", "unpaid", "paused"];
            let prices: Vec<&String> = e.lines.iter().map(|l| &l.price).collect();
            let (start, sum) =
                (e.lines.iter().map(|l| l.start).max(), e.lines.iter().map(|l| l.quantity).sum::<i64>());
            (is_terminal(e), start, order.iter().position(|o| *o == e.status()), prices, sum, &e.id)
        });
        // While the snapshot before this second is not known, the chain begins with any of its own.
        let chain_from = |before| {
            let mut chains = Vec::new();
            extend_chains(before, &[], &group, &mut chains);
            let ends: BTreeSet<Option<&String>> = chains.iter().map(|c| c.last().map(|e| &e.id)).collect();
            (ends.len() == 1).then(|| chains.swap_remove(0))
        };
        let chain = chain_from(ordered.last().copied()).or_else(|| chain_from(None));
        ordered.extend(chain.unwrap_or(group));
    }
    ordered
}

/// All chains through a whole second: each snapshot's `previous_attributes` describe the one before it.
fn extend_chains<'a>(
    before: Option<&Event>,
    chain: &[&'a Event<'a>],
    rest: &[&'a Event<'a>],
    all: &mut Vec<Vec<&'a Event<'a>>>,
) {
    if rest.is_empty() {
        all.push(chain.to_vec());
    }
    for next in rest {
        let previous = &next.body["data"]["previous_attributes"];
        let fits = match before {
            None => true,
            Some(b) => {
                let same = |k: &&str| previous.get(*k).is_some() || next.object[*k] == b.object[*k];
                // An event that is no update, as `trial_will_end`, shows the state as it is.
                let all_else = ["status", "items", "cancel_at"].iter().all(same);
                (previous.is_null() || is_part(previous, b.object)) && all_else
            }
        };
        if fits {
            let others: Vec<&Event> = rest.iter().copied().filter(|e| e.id != next.id).collect();
            extend_chains(Some(next), &[chain, &[next]].concat(), &others, all);
        }
    }
}

fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(p), _) => p.iter().all(|(k, v)| is_part(v, &whole[k])),
        (Value::Array(p), Value::Array(w)) => {
            p.len() == w.len() && p.iter().zip(w).all(|(p, w)| is_part(p, w))
        }
        _ => part == whole,
    }
}
