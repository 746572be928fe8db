//! Explains an account: for each field the rule that set it, in a sentence, and the event or ledger entry
//! behind it.
//!
//! ```json
//! {"field":"bucket si_1","value":"3800","rule":"period",
//!  "why":"invoice in_1 opened the period from … to … with 5000 credits of plan pro; 1200 were spent",
//!  "event_id":"evt_2","ledger_key":"invoice#in_1","at":"2026-01-05T10:00:05Z"}
//! ```

use serde::{Serialize, Serializer};

use super::item::{Bucket, Item};
use super::lots::Lot;
use super::lots::Purchase;
use super::state::Buckets;
use super::{Account, State};
use crate::catalog::{Addons, Catalog};
use crate::credits::Credits;
use crate::event::SubscriptionStatus;
use crate::ids::{ItemId, SubscriptionId};
use crate::ledger::{Entry, LedgerKey};
use crate::timestamp::Timestamp;

/// Why one field has its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `tier`, `access_until`, `credits`, `subscription sub_…`, `bucket signup`, `bucket si_…`, `bucket
    /// addon`, `bucket grant`, `bucket import`, `bucket lifetime`.
    pub field: String,
    /// The value as a text.
    pub value: String,
    /// The rule's name.
    pub rule: &'static str,
    /// The rule as it applied, in a sentence.
    pub why: String,
    /// The event behind it, if the log still has it.
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
pub struct LoggedEvent {
    /// `evt_…`
    pub id: String,
    /// `created`
    pub created: Timestamp,
    /// Stripe's type.
    pub kind: String,
    /// Ids of the Stripe objects that it names.
    pub objects: Vec<String>,
}

impl State {
    /// The ledger entries that an explanation refers to.
    pub fn explaining_keys(&self, catalog: &Catalog, now: Timestamp) -> Vec<LedgerKey> {
        let buckets = self.buckets(&catalog.policy, now);
        let periods = buckets.items.values().filter_map(|bucket| bucket.period.as_ref());
        let trials = buckets.items.iter().filter(|(_, bucket)| bucket.trial);
        periods
            .map(|period| LedgerKey::invoice(&period.invoice))
            .chain(trials.map(|((subscription, item), _)| LedgerKey::trial(subscription, item)))
            .chain(self.packs.iter().chain(&self.lifetimes).filter_map(Purchase::key))
            .chain([LedgerKey::signup()])
            .chain(self.import.as_ref().map(|import| import.key.clone()))
            .chain(self.last_entry.clone())
            .collect()
    }
}

impl Account {
    /// Explains every field. The account's `recorded` should hold the entries of [`State::explaining_keys`].
    /// `events` are the user's events.
    pub fn explain(&self, events: &[LoggedEvent], catalog: &Catalog, now: Timestamp) -> Vec<Explanation> {
        let now = self.state.time(now);
        let buckets = self.state.buckets(&catalog.policy, now);
        let mut all = self.explain_tier(events, catalog, now);
        all.push(self.explain_credits(&buckets));
        all.push(self.explain_signup(&buckets));
        for id in self.state.subscriptions.keys() {
            all.push(self.explain_status(id, events, catalog, now));
            let of_it = buckets.items.iter().filter(|((of, _), _)| of == id);
            let explained: Vec<Explanation> =
                of_it.map(|((_, item), bucket)| self.explain_bucket(id, item, bucket)).collect();
            if explained.is_empty() {
                let why = format!("no paid invoice or trial of {id} is known, so nothing was granted");
                all.push(explanation(&format!("bucket {id}"), Credits::ZERO, "not_paid", why, None));
            }
            all.extend(explained);
        }
        all.push(self.explain_purchases(&buckets, catalog));
        if let Some(import) = &self.state.import {
            let entry = self.recorded.get(&import.key);
            let left = buckets.sum(|lot| *lot == Lot::Opening);
            all.push(explanation("bucket import", left, "imported", import.explain(), entry));
        }
        if !self.state.grants.is_empty() {
            let grants =
                self.state.grants.iter().map(|grant| format!("{} left of {}", grant.left, grant.key));
            let why =
                format!("{}; no renewal ends credits given by hand", grants.collect::<Vec<_>>().join(", "));
            let left = buckets.sum(|lot| matches!(lot, Lot::Grant(_)));
            all.push(explanation("bucket grant", left, "by_hand", why, None));
        }
        if !self.state.lifetimes.is_empty() {
            let left = buckets.sum(|lot| matches!(lot, Lot::Lifetime(_)));
            let entry = self.state.lifetimes.last().and_then(Purchase::key);
            let entry = entry.and_then(|key| self.recorded.get(&key));
            let why = "a plan was bought for life; its credits are granted once".to_owned();
            all.push(explanation("bucket lifetime", left, "lifetime", why, entry));
        }
        all
    }

    fn explain_tier(&self, events: &[LoggedEvent], catalog: &Catalog, now: Timestamp) -> Vec<Explanation> {
        let access = self.state.access(catalog, now);
        let given = self.state.given(catalog, now);
        let lives = |until: Option<Timestamp>| until.is_none_or(|until| until > now);
        let giving = given.iter().find(|one| {
            lives(one.until) && catalog.tier_of_plan(&one.plan).is_some_and(|(tier, _)| tier == access.tier)
        });
        let (rule, why) = match giving {
            Some(one) => {
                let of = one.by.as_ref().map_or_else(String::new, |(id, _)| format!("{id}: "));
                let others = if given.len() > 1 { "; nothing else gives a higher tier" } else { "" };
                ("highest_plan", format!("{of}{}{others}", one.why))
            }
            None if self.state.subscriptions.is_empty() => (
                "default_tier",
                "no subscription is known for this user, so the catalog's default tier holds".to_owned(),
            ),
            None => {
                let whys: Vec<String> =
                    self.state.subscriptions.keys().map(|id| self.no_access(id, catalog, now)).collect();
                let whys = whys.join("; ");
                (
                    "default_tier",
                    format!("the catalog's default tier, as no subscription gives access: {whys}"),
                )
            }
        };
        let newest = || {
            let created = |id: &&SubscriptionId| {
                self.state.subscriptions.get(*id).and_then(|one| one.snapshot.as_ref()).map(|one| one.created)
            };
            self.state.subscriptions.keys().max_by_key(created)
        };
        let behind = giving.and_then(|one| one.by.as_ref()).map(|(id, _)| id).or_else(newest);
        let snapshot = behind.and_then(|id| self.state.subscriptions.get(id)?.snapshot.as_ref());
        let tier = Explanation {
            field: "tier".to_owned(),
            value: access.tier.clone(),
            rule,
            why,
            event_id: behind.and_then(|id| self.shown_by(id, events)),
            ledger_key: None,
            at: snapshot.map(|snapshot| snapshot.created),
        };
        let until = access.until.map(|until| Explanation {
            field: "access_until".to_owned(),
            value: until.to_string(),
            rule: "ends",
            why: format!(
                "the tier {} ends then unless a new event says otherwise: a planned end, the end of a paid \
                 period, or the grace after a failed payment",
                access.tier
            ),
            ..tier.clone()
        });
        std::iter::once(tier).chain(until).collect()
    }

    /// Why a subscription gives no access.
    fn no_access(&self, id: &SubscriptionId, catalog: &Catalog, now: Timestamp) -> String {
        let Some(one) = self.state.summary(id, catalog, now) else { return format!("{id} is unknown") };
        let status = one.status.as_ref().map_or_else(|| "of unknown status".to_owned(), ToString::to_string);
        let subscription = self.state.subscriptions.get(id);
        let ended = subscription.and_then(|one| self.state.ended_at(one));
        let paid_later = ended.is_some_and(|ended| {
            let items = subscription.into_iter().flat_map(|one| one.items.values());
            items.filter_map(Item::paid_at).any(|paid| paid > ended)
        });
        match (&one.plan, ended) {
            (_, Some(ended)) if paid_later => format!(
                "{id} ended at {ended} and an invoice of it was paid after that: refund the payment, or give \
                 the plan with fix-user complimentary"
            ),
            (Some(plan), Some(ended)) => format!("{id} (plan {plan}) ended at {ended}"),
            (None, Some(ended)) => format!("{id} ended at {ended}"),
            (Some(plan), None) if one.ends.is_some_and(|ends| ends <= now) => {
                let ends = one.ends.map_or_else(String::new, |ends| ends.to_string());
                format!("{id} (plan {plan}) was cancelled with the end {ends}")
            }
            (Some(plan), None) => format!("{id} (plan {plan}) is {status}, and its paid period is over"),
            (None, None) => {
                let price = one.price.as_ref().map_or("no price", |price| price.as_str());
                format!("{id} is {status} with {price}, which is in no plan of the catalog")
            }
        }
    }

    fn explain_credits(&self, buckets: &Buckets) -> Explanation {
        let mut parts = vec![format!("signup {}", buckets.sum(|lot| *lot == Lot::Signup))];
        for one in &buckets.lots {
            match &one.lot {
                Lot::Item(_, item) => parts.push(format!("{item} {}", one.left)),
                Lot::Carry(_, item, _) => parts.push(format!("carried over by {item} {}", one.left)),
                Lot::Lifetime(_) | Lot::Signup | Lot::Opening | Lot::Grant(_) | Lot::Pack(_) => {}
            }
        }
        parts.push(format!("add-ons {}", buckets.sum(|lot| matches!(lot, Lot::Pack(_)))));
        let other = buckets.sum(|lot| matches!(lot, Lot::Opening | Lot::Grant(_) | Lot::Lifetime(_)));
        if other > Credits::ZERO {
            parts.push(format!("given by hand or for life {other}"));
        }
        let last = self.state.last_entry.as_ref().and_then(|key| self.recorded.get(key));
        let last_words = last.map_or_else(
            || "; the ledger is empty: nothing was ever granted".to_owned(),
            |entry| format!("; the last entry is {} ({:+})", entry.key, entry.delta),
        );
        let why = format!("{}{last_words}", parts.join(" + "));
        explanation("credits", buckets.balance(), "sum_of_buckets", why, last)
    }

    fn explain_signup(&self, buckets: &Buckets) -> Explanation {
        let entry = self.recorded.get(&LedgerKey::signup());
        let left = buckets.sum(|lot| *lot == Lot::Signup);
        let (rule, why) = match (&self.state.signup, buckets.paid_since) {
            (None, _) => (
                "not_signed_up",
                "the app has not created this user (PUT /users/{id}), which grants the signup credits"
                    .to_owned(),
            ),
            (Some(_), Some(since)) => {
                ("ended_by_subscription", format!("the paid period from {since} ended the signup credits"))
            }
            (Some(signup), None) => (
                "signup",
                format!("{} credits were granted at signup; {} were spent", signup.granted, signup.spent),
            ),
        };
        explanation("bucket signup", left, rule, why, entry)
    }

    fn explain_bucket(&self, id: &SubscriptionId, item: &ItemId, bucket: &Bucket) -> Explanation {
        let field = format!("bucket {item}");
        let Some(period) = &bucket.period else {
            let entry = self.recorded.get(&LedgerKey::trial(id, item));
            let why = if bucket.granted > Credits::ZERO {
                format!("the trial of {id} granted {} credits; {} were spent", bucket.granted, bucket.spent)
            } else {
                format!(
                    "the trial of {id} grants no credits: it has ended unpaid, or the user had an earlier \
                     trial"
                )
            };
            return explanation(&field, bucket.left, "trial", why, entry);
        };
        let until = period.end.map_or_else(String::new, |end| format!(" to {end}"));
        let mut why = format!(
            "invoice {} opened the period from {}{until} with {} credits of plan {}",
            period.invoice,
            period.start,
            period.worth(),
            period.terms.plan
        );
        if let Some(terms) = &bucket.changed_to {
            why.push_str(&format!(
                "; changed to {} × {}, worth {} credits",
                terms.plan, bucket.quantity, bucket.granted
            ));
        }
        if bucket.slice.index > 0 {
            why.push_str(&format!(
                "; its month {} began at {} with {} credits",
                bucket.slice.index + 1,
                bucket.slice.since,
                bucket.opened_with
            ));
        }
        for carry in &bucket.carries {
            why.push_str(&format!("; {} were carried over at {}", carry.granted, carry.since));
            if let Some(until) = carry.until {
                why.push_str(&format!(" until {until}"));
            }
        }
        if bucket.spent > Credits::ZERO {
            why.push_str(&format!("; {} were spent", bucket.spent));
        }
        if bucket.lost > Credits::ZERO {
            why.push_str(&format!("; refunds and disputes took {}", bucket.lost));
            if period.is_paid_by_credits() {
                why.push_str(", also of earlier payments, because the invoice credits unused time");
            }
        }
        let rule = if bucket.left == Credits::ZERO && self.state.item_ended_at(id, item).is_some() {
            why.push_str("; the item has ended, and another item's paid period after it ends its credits");
            "void"
        } else {
            "period"
        };
        explanation(&field, bucket.left, rule, why, self.recorded.get(&LedgerKey::invoice(&period.invoice)))
    }

    fn explain_purchases(&self, buckets: &Buckets, catalog: &Catalog) -> Explanation {
        let left_of = |place: usize| buckets.sum(|lot| *lot == Lot::Pack(place));
        let packs: Vec<String> = self
            .state
            .packs
            .iter()
            .enumerate()
            .filter(|(place, _)| left_of(*place) > Credits::ZERO)
            .map(|(place, pack)| {
                let name =
                    pack.key().map_or_else(|| format!("a purchase of {}", pack.at), |key| key.to_string());
                let older = if pack.joined { " and older ones" } else { "" };
                let until = pack.until.map_or_else(String::new, |until| format!(", until {until}"));
                format!("{} left of {name}{older}{until}", left_of(place))
            })
            .collect();
        let reset = match (self.state.reset_at, catalog.policy.addons) {
            (Some(at), Addons::Reset) => {
                format!("; packs bought before the period from {at} ended with it (addons = \"reset\")")
            }
            (_, Addons::Reset | Addons::Keep) => String::new(),
        };
        let why = if packs.is_empty() {
            format!("no pack has credits left{reset}")
        } else {
            format!("{}{reset}", packs.join(", "))
        };
        let entry = self.state.packs.last().and_then(Purchase::key);
        let total = buckets.sum(|lot| matches!(lot, Lot::Pack(_)));
        explanation("bucket addon", total, "packs", why, entry.and_then(|key| self.recorded.get(&key)))
    }

    fn explain_status(
        &self,
        id: &SubscriptionId,
        events: &[LoggedEvent],
        catalog: &Catalog,
        now: Timestamp,
    ) -> Explanation {
        let status = self.state.summary(id, catalog, now).and_then(|one| one.status);
        let snapshot = self.state.subscriptions.get(id).and_then(|one| one.snapshot.as_ref());
        let (rule, why) = match snapshot {
            None => (
                "payment_only",
                "only payments of it are known, no event of the subscription itself: it counts while a paid \
                 period runs"
                    .to_owned(),
            ),
            Some(snapshot) if status == Some(SubscriptionStatus::Canceled) && !snapshot.is_terminal() => {
                ("customer_deleted", "its customer was deleted at Stripe, which ends it".to_owned())
            }
            Some(snapshot) if status.as_ref() != Some(&snapshot.status) => (
                "payment_is_newer",
                format!("its newest event says {}, and a payment is newer than that", snapshot.status),
            ),
            Some(snapshot) if snapshot.is_terminal() => {
                ("terminal", format!("{} is a final status", snapshot.status))
            }
            Some(_) => ("newest_event", "the newest event of it says so".to_owned()),
        };
        Explanation {
            field: format!("subscription {id}"),
            value: status.map_or_else(|| "unknown".to_owned(), |status| status.to_string()),
            rule,
            why,
            event_id: self.shown_by(id, events),
            ledger_key: None,
            at: snapshot.map(|snapshot| snapshot.created),
        }
    }

    /// The event that shows the state in which a subscription is known.
    fn shown_by(&self, id: &SubscriptionId, events: &[LoggedEvent]) -> Option<String> {
        let created = self.state.subscriptions.get(id)?.snapshot.as_ref()?.created;
        let shows = |event: &&LoggedEvent| {
            event.created == created
                && event.kind.starts_with("customer.subscription.")
                && event.objects.iter().any(|object| object == id.as_str())
        };
        events.iter().find(shows).map(|event| event.id.clone())
    }
}

fn explanation(
    field: &str,
    value: Credits,
    rule: &'static str,
    why: String,
    entry: Option<&Entry>,
) -> Explanation {
    Explanation {
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
