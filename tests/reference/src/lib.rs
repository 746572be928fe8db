//! An independent judge of the money rules.
//!
//! It computes tiers and credits the slow and obvious way: it keeps every event, and reads the whole set
//! again after each step. It is written from the rules alone and shares no code with the system that it
//! judges, so a misread rule shows as a difference. Comments quote the rule that a function implements
//! (`2.5`: a section of the product rules).
//!
//! Only three things depend on the order of arrival, as the rules say: owners (2.4), the lots that a spend
//! took from (2.3 (a)), and packs that arrive after a newer reset (2.3 (b)).
//!
//! # Where the rules leave a choice
//!
//! - **2.3 snapshots without a chain**: the item period start is the greatest of all items; quantities are
//!   added.
//! - **2.3 (a) and RESET under `at_once`**: a spend is tied to item, period, slice and plan; a RESET forgets
//!   the spends of the plans before it, also if it arrives after them.
//! - **2.4 two references on one customer**: they make it shared; a reference beside metadata does not.
//! - **2.4 `known_user`**: an unknown reference falls back to the customer's owner before it parks.
//! - **2.4 a reference that metadata replaces**: documents of the subscription move with it; packs stay.
//! - **2.5 waiting lines**: a matching snapshot opens the period, whatever arrived before; until then the
//!   line is a charge.
//! - **2.5 an item that is added within a period**: snapshots may show it with the subscription's period. Its
//!   first prorated line opens its period if the invoice credits nothing of the item.
//! - **2.5 two unflagged lines with one start**: the earlier invoice opens, the other is a charge; on one
//!   invoice the one worth more opens.
//! - **2.5 a zero line whose price is 0**: it counts as a positive line, flagged or not.
//! - **2.5 removed items**: a line that only credits the item, or that is about past time, does not prove
//!   that it is there; nor does a charge on an invoice that credits the item from a later moment on.
//! - **2.5 signup credits**: any paid period ends them, also one that began before the `PUT`.
//! - **2.5 lifetime plans**: they end no signup credits and no packs.
//! - **2.5 products**: their credits are add-ons, once for each paid line.
//! - **2.6 states of a period**: by the item period that the snapshot shows; a trial's, if that opens no
//!   period, by `created`.
//! - **2.6 `on_payment`**: what was spent is always subtracted; there is no RESET inside a period.
//! - **2.7 zero lines**: a trial until an `active` snapshot of the same period denies it.
//! - **2.7 `once`**: a trial on a paid item is the user's earliest trial too.
//! - **2.8 increments**: a charge adds what its plan is worth above the greatest worth paid before it.
//! - **2.8 credits of an opening**: all negative lines of the item count, of whatever period.
//! - **2.8 a credited period that is not known**: the invoice's own refund takes the whole.
//! - **2.8 disputes**: refunds and disputes of a payment add up to at most its amount.
//! - **2.9 the unpaid period**: it starts where the latest snapshot says, or at the end of the paid period if
//!   that is the same.
//! - **2.9 an unknown price on an item**: the plan that was paid for counts to the end of its paid period.
//! - **2.9 lifetime**: refunds and open or lost disputes of the whole amount end the tier.
//! - **credits.md §2**: the opening's plan decides about slices; free refills start one month after the
//!   `PUT`.
//! - **credits.md §3**: a plan's bucket has no `until`; trials are free lots.
//! - **credits.md §4**: refunds made before the new period lower what is left; later ones take their share of
//!   the carry.

#![expect(missing_docs, reason = "the fields of the steps and of the world name themselves")]

mod account;
mod catalog;
mod event;
mod facts;
mod item;
mod owner;
mod swap;
mod time;

use account::{Account, Lot};
use catalog::Catalog;
use event::Event;
use facts::Facts;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One step of a life, at a moment of the wall clock (Unix seconds).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Step {
    pub at: i64,
    #[serde(flatten)]
    pub action: Action,
}

/// What happens in a step.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Stripe sends an event.
    Send(Value),
    /// The app creates the user: `PUT /users/{id}`.
    Put { user: String },
    /// The app spends credits. A spend that the balance does not cover takes nothing.
    Spend { user: String, amount: i64 },
    /// An operator's `POST /admin/stripe/fix-user/{id}`.
    Fix { user: String, body: Value },
}

/// The state of everything after all steps.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct World {
    pub users: BTreeMap<String, User>,
    pub outcomes: BTreeMap<String, Outcome>,
    /// For each spend, in order: whether the balance covered it.
    pub spends: Vec<bool>,
}

/// One user.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct User {
    pub tier: String,
    pub credits: i64,
    /// What is in each bucket: `signup`, `addon`, `grant`, `lifetime#<session>`, or the id of an item.
    pub buckets: BTreeMap<String, i64>,
    /// What was paid for and not given back, or is free by rule, for each bucket.
    pub backed: BTreeMap<String, i64>,
    /// The status of each order, by session.
    pub orders: BTreeMap<String, String>,
}

/// How an event ends: `processed`, `parked` or `ignored`, with the reason where the rules name one.
/// `unspecified`: the rules do not say, as for a paid document of which nothing is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    pub status: &'static str,
    pub reason: &'static str,
}

impl Outcome {
    fn new(status: &'static str, reason: &'static str) -> Outcome {
        Outcome { status, reason }
    }
}

/// Which grant a spend took from. A later fact never changes it.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// `plan`, `rollover`, `trial`, `signup`, `sale` or `fix`.
    kind: &'static str,
    /// The item, the user, or the document.
    id: String,
    /// The period's start, the number of a refill, or the step of a repair.
    start: i64,
    slice: usize,
    /// The plan in force, or what was sold.
    name: String,
}

type Takes = BTreeMap<Key, i64>;
/// When an opening or a sale was first counted, for 2.3 (b).
type Ranks = BTreeMap<String, usize>;
/// A step with the event that it sends.
type ParsedStep<'a> = (&'a Step, Option<Event<'a>>);

/// Plays the steps and returns the state of the world at `now`. Panics if the catalog does not parse.
pub fn judge(catalog: &str, steps: &[Step], now: i64) -> World {
    let catalog: Catalog =
        toml::from_str(catalog).unwrap_or_else(|e| panic!("the catalog does not parse: {e}"));
    let parsed = steps.iter().map(|step| match &step.action {
        Action::Send(e) => (step, event::parse(e)),
        Action::Put { .. } | Action::Spend { .. } | Action::Fix { .. } => (step, None),
    });
    let history: Vec<ParsedStep<'_>> = parsed.collect();
    let all = Facts::collect(&catalog, &history);
    let is_ranked = catalog.policy("addons", "reset") == "reset";
    let is_ranked = is_ranked && all.paid.values().any(|e| !all.sales(e).is_empty());
    let (mut takes, mut ranks, mut spends) = (Takes::new(), Ranks::new(), Vec::new());
    let mut read_at = None;
    for (index, step) in steps.iter().enumerate() {
        let mut read =
            |end, rank, takes: &Takes| read(&catalog, &history[..end], takes, &mut ranks, step.at, rank);
        if let Action::Spend { user, amount } = &step.action {
            let lots = read(index, 2 * index, &takes).1.remove(user).unwrap_or_default();
            spends.push(spend(&lots, *amount, &mut takes));
        } else if is_ranked {
            // What falls due by time falls due before the step.
            if read_at.replace(step.at) != Some(step.at) {
                read(index, 2 * index, &takes);
            }
            read(index + 1, 2 * index + 1, &takes);
        }
    }
    World { spends, ..read(&catalog, &history, &takes, &mut ranks, now, 2 * steps.len()).0 }
}

/// 2.3 (a): a spend takes from the lots that are known when it is made, and stays with them.
fn spend(lots: &[Lot], amount: i64, takes: &mut Takes) -> bool {
    let is_covered = lots.iter().map(|l| l.left).sum::<i64>() >= amount;
    let mut rest = if is_covered { amount } else { 0 };
    for lot in lots {
        let part = rest.min(lot.left);
        *takes.entry(lot.key.clone()).or_insert(0) += part;
        rest -= part;
    }
    is_covered
}

type Lots = BTreeMap<String, Vec<Lot>>;

fn read(
    c: &Catalog,
    history: &[ParsedStep<'_>],
    takes: &Takes,
    ranks: &mut Ranks,
    now: i64,
    rank: usize,
) -> (World, Lots) {
    let facts = Facts::collect(c, history);
    let (mut world, mut all) = (World { outcomes: facts.outcomes(), ..World::default() }, Lots::new());
    for user in &facts.owners.users {
        let account = Account::read(&facts, user, history, takes, now);
        let lots = account.lots(ranks, rank);
        world.users.insert(user.clone(), account.user(&lots));
        all.insert(user.clone(), lots);
    }
    (world, all)
}

/// The law of money, which holds under `plan_change = "on_payment"`: no bucket holds more than what was paid
/// for and not given back, and what the rules give for free. Under `at_once` an unpaid upgrade breaks it.
pub fn law_of_money(world: &World) -> Result<(), String> {
    for (name, user) in &world.users {
        for (bucket, held) in &user.buckets {
            let backed = user.backed.get(bucket).copied().unwrap_or(0);
            if *held > backed {
                return Err(format!(
                    "{name}: bucket {bucket} holds {held}, of which {backed} is paid for or free"
                ));
            }
        }
    }
    Ok(())
}
