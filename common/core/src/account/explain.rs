//! Why an account is as it is: for each field the rule that set it, in a sentence, and the event or ledger
//! entry behind it.
//!
//! ```json
//! {"field":"bucket sub_1","value":"3800","rule":"period","why":"invoice#in_1 opened the period from … with 5000 credits; 1200 were spent",
//!  "event_id":"evt_2","ledger_key":"invoice#in_1","at":"2026-01-05T10:00:05Z"}
//! ```

use serde::{Serialize, Serializer};

use super::subscription::{Subscription, digest};
use super::{Account, State};
use crate::catalog::{Addons, Catalog};
use crate::credits::Credits;
use crate::event::SubscriptionStatus as Status;
use crate::ids::SubscriptionId;
use crate::ledger::{Entry, EntryKind, LedgerKey};
use crate::timestamp::Timestamp;

/// Why one field has its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Because {
    /// `tier`, `access_until`, `credits`, `subscription sub_…`, `bucket signup`, `bucket sub_…`, `bucket
    /// addon`.
    pub field: String,
    /// As a text.
    pub value: String,
    /// The rule's name.
    pub rule: &'static str,
    /// The rule as it applied, in a sentence.
    pub why: String,
    /// The event that told it, where the log still has it.
    pub event_id: Option<String>,
    /// The ledger entry that set it.
    pub ledger_key: Option<LedgerKey>,
    /// When it happened at Stripe.
    #[serde(serialize_with = "rfc3339")]
    pub at: Option<Timestamp>,
}

#[allow(clippy::ref_option, reason = "serde passes a reference")]
fn rfc3339<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.to_string()).serialize(serializer)
}

/// An event of the log, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `evt_…`
    pub id: String,
    /// `created`
    pub created: Timestamp,
    /// Stripe's type.
    pub kind: String,
    /// Stripe's ids of what it names.
    pub objects: Vec<String>,
}

impl State {
    /// The ledger entries that an explanation refers to.
    pub fn explaining_keys(&self) -> Vec<LedgerKey> {
        let periods = self.subscriptions.values().filter_map(|subscription| subscription.period.as_ref());
        periods
            .map(|period| period.key.clone())
            .chain([LedgerKey::signup()])
            .chain(self.last_entry.clone())
            .collect()
    }
}

impl Account {
    /// Explains every field. `recorded` of the account should hold what [`State::explaining_keys`] names;
    /// `told` the user's events.
    pub fn explain(&self, told: &[Told], catalog: &Catalog, now: Timestamp) -> Vec<Because> {
        let mut all = self.explain_tier(told, catalog, now);
        all.push(self.explain_credits());
        all.push(self.explain_signup());
        for (id, subscription) in &self.state.subscriptions {
            all.push(explain_status(id, subscription, told));
            all.push(self.explain_bucket(id, subscription));
        }
        all.push(self.explain_addon(catalog));
        all
    }

    fn explain_tier(&self, told: &[Told], catalog: &Catalog, now: Timestamp) -> Vec<Because> {
        let access = self.state.access(catalog, now);
        let all: Vec<_> = self
            .state
            .subscriptions
            .iter()
            .map(|(id, one)| (id, one, self.state.explain_access(id, one, catalog, now)))
            .collect();
        let giving = all.iter().find(|(_, one, verdict)| {
            verdict.is_ok()
                && one
                    .price()
                    .and_then(|price| catalog.plan_of_price(price.as_str()))
                    .is_some_and(|plan| plan.tier == access.tier)
        });
        let (rule, why) = match (&giving, all.is_empty()) {
            (Some((_, _, Ok(why))), _) => {
                let others = if all.len() > 1 { "; no other subscription gives a higher tier" } else { "" };
                ("highest_plan", format!("{why}{others}"))
            }
            (_, true) => (
                "default_tier",
                "no subscription is known for this user, so the catalog's default tier holds".to_owned(),
            ),
            (_, false) => {
                let whys: Vec<&str> = all
                    .iter()
                    .filter_map(|(_, _, verdict)| verdict.as_ref().err().map(String::as_str))
                    .collect();
                (
                    "default_tier",
                    format!(
                        "the catalog's default tier, as no subscription gives access: {}",
                        whys.join("; ")
                    ),
                )
            }
        };
        // Where nothing gives access, the newest word about a subscription is what took it.
        let newest = || {
            self.state
                .subscriptions
                .iter()
                .max_by_key(|(_, one)| one.snapshot.as_ref().map(|snapshot| snapshot.created))
        };
        let behind = giving.map(|(id, one, _)| (*id, *one)).or_else(newest);
        let at = behind.and_then(|(_, one)| one.snapshot.as_ref()).map(|snapshot| snapshot.created);
        let tier = Because {
            field: "tier".to_owned(),
            value: access.tier.clone(),
            rule,
            why,
            event_id: behind.and_then(|(id, one)| teller(id, one, told)),
            ledger_key: None,
            at,
        };
        let until = access.until.map(|until| Because {
            field: "access_until".to_owned(),
            value: until.to_string(),
            rule: "ends",
            why: format!("unless news comes, the tier {} ends then: a cancellation, or the grace after a failed payment", access.tier),
            ..tier.clone()
        });
        std::iter::once(tier).chain(until).collect()
    }

    fn explain_credits(&self) -> Because {
        let state = &self.state;
        let mut parts = vec![format!("signup {}", state.signup.unwrap_or_default())];
        parts.extend(state.subscriptions.keys().map(|id| format!("{id} {}", state.bucket(id))));
        parts.push(format!("add-ons {}", state.addon()));
        let last = state.last_entry.as_ref().and_then(|key| self.recorded.get(key));
        let last_words = last.map_or_else(
            || "; the ledger is empty: nothing was ever granted".to_owned(),
            |entry| format!("; the last entry is {} ({:+})", entry.key, entry.delta),
        );
        because(
            "credits",
            state.balance(),
            "sum_of_buckets",
            format!("{}{last_words}", parts.join(" + ")),
            last,
        )
    }

    fn explain_signup(&self) -> Because {
        let entry = self.recorded.get(&LedgerKey::signup());
        let opening = self.first_opening();
        let (rule, why) = match (self.state.signup, self.state.subscribed) {
            (None, _) => (
                "not_signed_up",
                "the app has not created this user (PUT /users/{id}), which grants the signup credits"
                    .to_owned(),
            ),
            (Some(_), true) => (
                "ended_by_subscription",
                "the first subscription's payment ended the signup credits".to_owned(),
            ),
            (Some(left), false) => {
                let granted = entry.map_or(left, |entry| entry.worth);
                (
                    "signup",
                    format!("{granted} credits were granted at signup; {} were spent", granted.minus(left)),
                )
            }
        };
        let behind = if rule == "ended_by_subscription" { opening.or(entry) } else { entry };
        because("bucket signup", self.state.signup.unwrap_or_default(), rule, why, behind)
    }

    fn first_opening(&self) -> Option<&Entry> {
        let opens = |entry: &&Entry| {
            matches!(entry.kind, EntryKind::Subscription | EntryKind::Trial | EntryKind::Renewal)
        };
        self.recorded.values().filter(opens).min_by_key(|entry| entry.created)
    }

    fn explain_bucket(&self, id: &SubscriptionId, subscription: &Subscription) -> Because {
        let field = format!("bucket {id}");
        let credits = self.state.bucket(id);
        let Some(period) = &subscription.period else {
            let waits = if subscription.is_waiting() { "; a change of plan waits for it, too" } else { "" };
            let why = format!(
                "no paid invoice (or trial) of {id} was heard of, so no billing period is open and nothing was granted{waits}"
            );
            return because(&field, credits, "not_paid", why, None);
        };
        let until = period.end.map_or_else(String::new, |end| format!(" to {end}"));
        let opened = format!(
            "{} opened the period from {}{until} with {} credits",
            period.key, period.start, period.credits
        );
        let entry = self.recorded.get(&period.key);
        if subscription.credits() > Credits::ZERO && credits == Credits::ZERO {
            let why = format!(
                "{opened}; the subscription has ended and another one was granted after it, which voids what was left"
            );
            return because(&field, credits, "void", why, entry);
        }
        let (spent, reversed) = (period.spent(), period.reversed);
        let mut why = opened;
        if let Some(price) = period.changed_to() {
            why.push_str(&format!("; the plan was changed to {price}"));
        }
        if spent > Credits::ZERO {
            why.push_str(&format!("; {spent} were spent"));
        }
        if reversed > Credits::ZERO {
            why.push_str(&format!("; {reversed} were taken back by refunds or disputes"));
        }
        because(&field, credits, "period", why, entry)
    }

    fn explain_addon(&self, catalog: &Catalog) -> Because {
        let entry_of = |of: u32| self.recorded.values().find(|entry| digest(entry.key.as_str()) == of);
        let lots: Vec<String> = self
            .state
            .lots
            .iter()
            .map(|lot| {
                let name = entry_of(lot.of)
                    .map_or_else(|| format!("a purchase of {}", lot.at), |entry| entry.key.to_string());
                format!("{} left of {name}", lot.credits)
            })
            .collect();
        let reset = match (self.state.reset_at, catalog.policy.addons) {
            (Some(at), Addons::Reset) => {
                format!("; what was bought before the renewal of {at} ended with it (addons = \"reset\")")
            }
            (_, Addons::Reset | Addons::Keep) => String::new(),
        };
        let why = if lots.is_empty() {
            format!("no pack has credits left{reset}")
        } else {
            format!("{}{reset}", lots.join(", "))
        };
        because(
            "bucket addon",
            self.state.addon(),
            "packs",
            why,
            self.state.lots.last().and_then(|lot| entry_of(lot.of)),
        )
    }
}

impl State {
    /// Whether a subscription gives access at `now`, and why or why not.
    fn explain_access(
        &self,
        id: &SubscriptionId,
        one: &Subscription,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<String, String> {
        let status = one.status().map_or_else(|| "of unknown status".to_owned(), |status| status.to_string());
        let Some(price) = one.price() else {
            return Err(format!("{id} is {status} and its price is not known"));
        };
        let Some(plan) = catalog.plan_of_price(price.as_str()) else {
            return Err(format!("{id} is {status} with price {price}, which is in no plan of the catalog"));
        };
        if let Some(ended) = self.ended_at(one) {
            return Err(format!("{id} (plan {}) ended at {ended}", plan.name));
        }
        match (self.access_of(one, catalog), one.status()) {
            (None, _) => Err(format!("{id} (plan {}) is {status}, which gives no access", plan.name)),
            (Some(Some(until)), Some(Status::PastDue)) if until <= now => {
                let days = catalog.policy.past_due_grace_days;
                Err(format!(
                    "{id} (plan {}) is past_due and its {days} days of grace ended at {until}",
                    plan.name
                ))
            }
            (Some(Some(until)), _) if until <= now => {
                Err(format!("{id} (plan {}) was cancelled for {until}", plan.name))
            }
            (Some(Some(until)), _) => Ok(format!("{id} is {status} on plan {} until {until}", plan.name)),
            (Some(None), _) => Ok(format!("{id} is {status} on plan {}", plan.name)),
        }
    }
}

fn explain_status(id: &SubscriptionId, one: &Subscription, told: &[Told]) -> Because {
    let value = one.status().map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    let snapshot = one.snapshot.as_ref();
    let (rule, why) = match snapshot {
        None => (
            "payment_only",
            "only payments of it were heard of, no event about the subscription itself: it counts as active"
                .to_owned(),
        ),
        Some(snapshot) if one.status().as_ref() != Some(&snapshot.status) => (
            "payment_is_newer",
            format!("it was last told to be {}, but a payment is newer than that", snapshot.status),
        ),
        Some(snapshot) if snapshot.is_terminal() => {
            ("terminal", format!("{} is never left", snapshot.status))
        }
        Some(_) => ("newest_event", "the newest event about it says so".to_owned()),
    };
    Because {
        field: format!("subscription {id}"),
        value,
        rule,
        why,
        event_id: teller(id, one, told),
        ledger_key: None,
        at: snapshot.map(|snapshot| snapshot.created),
    }
}

/// The event that told the state in which a subscription is known.
fn teller(id: &SubscriptionId, one: &Subscription, told: &[Told]) -> Option<String> {
    let created = one.snapshot.as_ref()?.created;
    let tells = |event: &&Told| {
        event.created == created
            && event.kind.starts_with("customer.subscription.")
            && event.objects.iter().any(|object| object == id.as_str())
    };
    told.iter().find(tells).map(|event| event.id.clone())
}

fn because(field: &str, value: Credits, rule: &'static str, why: String, entry: Option<&Entry>) -> Because {
    Because {
        field: field.to_owned(),
        value: value.to_string(),
        rule,
        why,
        event_id: entry.map(|entry| entry.cause.clone()).filter(|cause| cause.starts_with("evt_")),
        ledger_key: entry.map(|entry| entry.key.clone()),
        at: entry.map(|entry| entry.created),
    }
}

#[cfg(test)]
mod tests;
