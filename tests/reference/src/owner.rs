//! 2.4: whose a document is. Owners are the documented exception to "any order": the first one stays. So
//! this is a fold over the steps in their order of arrival; parked documents are tried again after each.

use crate::catalog::{Catalog, Sold};
use crate::event::{Event, Fact, Invoice, Session, contains};
use crate::{Action, Outcome, Step};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A stored owner. A weak one was made from `client_reference_id`.
#[derive(Clone)]
struct Link {
    user: String,
    weak: bool,
}

/// All links, after all steps.
#[derive(Default)]
pub struct Owners {
    subs: BTreeMap<String, Link>,
    customers: BTreeMap<String, Link>,
    shared: BTreeSet<String>,
    moved_subs: BTreeMap<String, String>,
    moved_customers: BTreeMap<String, String>,
    assigned: BTreeMap<String, String>,
    /// Sessions and invoices without a subscription: document → owner.
    documents: BTreeMap<String, (String, Option<String>)>,
    pub users: BTreeSet<String>,
    pub outcomes: BTreeMap<String, Outcome>,
}

/// What a document says about its owner.
struct Claim<'a> {
    document: &'a str,
    named: Option<&'a str>,
    sub: Option<&'a str>,
    reference: Option<&'a str>,
    customer: Option<&'a str>,
}

/// Words of the routes below `/users/{id}/`: a user id must not end in one of them.
const ROUTE_WORDS: [&str; 9] =
    ["check", "ledger", "consume", "holds", "commit", "release", "refund", "orders", "portal"];

impl Owners {
    /// Plays all steps in their order of arrival. An event that was heard before changes nothing.
    pub fn play(catalog: &Catalog, steps: &[(Step, Option<Event>)]) -> Owners {
        let mut owners = Owners::default();
        let mut parked: Vec<&Event> = Vec::new();
        for (step, event) in steps {
            match (&step.action, event) {
                (Action::Put { user }, _) => {
                    owners.users.insert(user.clone());
                }
                (Action::Fix { body, .. }, _) => owners.fix(body),
                (Action::Send(_), Some(e)) if !owners.outcomes.contains_key(&e.id) => {
                    let outcome = owners.take(catalog, e);
                    if outcome.status == "parked" {
                        parked.push(e);
                    }
                    owners.outcomes.insert(e.id.clone(), outcome);
                }
                _ => continue,
            }
            parked.sort_by_key(|e| e.created);
            let mut changed = true;
            while std::mem::take(&mut changed) {
                for e in std::mem::take(&mut parked) {
                    let outcome = owners.take(catalog, e);
                    if outcome.status == "parked" {
                        parked.push(e);
                    } else {
                        changed = true;
                    }
                    owners.outcomes.insert(e.id.clone(), outcome);
                }
            }
        }
        owners
    }

    /// 2.4, moves: a subscription's, a customer's, and a guest's session.
    fn fix(&mut self, body: &Value) {
        let word = |k: &str| body.get(k).and_then(Value::as_str).map(String::from);
        match (word("action").as_deref(), word("to"), word("subscription"), word("customer")) {
            (Some("move"), Some(to), Some(sub), _) => drop(self.moved_subs.insert(sub, to)),
            (Some("move"), Some(to), _, Some(customer)) => {
                drop(self.moved_customers.insert(customer, to));
            }
            (Some("assign_session"), to, ..) => {
                let to = to.or_else(|| word("user"));
                if let (Some(session), Some(to)) = (word("session"), to) {
                    self.assigned.insert(session, to);
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, catalog: &Catalog, e: &Event) -> Outcome {
        if matches!(e.fact, Fact::Unknown) {
            return Outcome::new("ignored", "");
        }
        if foreign(catalog, e) {
            return Outcome::new("ignored", "foreign");
        }
        // 2.5: "A list that was cut is completed with a key, else parked (`lines_missing`)." There is no key.
        let (cut, claim) = match &e.fact {
            Fact::Session(s) => (s.cut, s.claim()),
            Fact::Snapshot(s) => (
                s.cut,
                Claim {
                    document: &s.sub,
                    named: s.user.as_deref(),
                    sub: Some(&s.sub),
                    reference: None,
                    customer: s.customer.as_deref(),
                },
            ),
            Fact::Invoice(i) => (i.cut, i.claim()),
            Fact::Link { .. }
            | Fact::Charge { .. }
            | Fact::Refund { .. }
            | Fact::Dispute { .. }
            | Fact::CustomerDeleted(_)
            | Fact::Unknown => return Outcome::new("processed", ""),
        };
        if cut {
            return Outcome::new("parked", "lines_missing");
        }
        match self.owner(catalog, &claim) {
            Ok(link) => {
                if ROUTE_WORDS.iter().any(|w| link.user.ends_with(&format!("/{w}"))) {
                    return Outcome::new("parked", "reserved_id");
                }
                self.store(&claim, link);
                Outcome::new("processed", "")
            }
            Err(reason) => Outcome::new("parked", reason),
        }
    }

    /// "The owner of a session, a subscription or an invoice is the first of …"
    fn owner(&self, catalog: &Catalog, c: &Claim<'_>) -> Result<Link, &'static str> {
        let strong = |user: &str| Ok(Link { user: user.into(), weak: false });
        if let Some(user) = self.moved(c.document, c.sub, c.customer) {
            return strong(user);
        }
        let stored = c.sub.and_then(|s| self.subs.get(s));
        if let Some(named) = c.named {
            // "A document of it that names another user is parked (`owner_conflict`)"; "A link made by
            // [`client_reference_id`] is replaced by one made from metadata."
            return match stored {
                Some(link) if link.user != named && !link.weak => Err("owner_conflict"),
                _ => strong(named),
            };
        }
        if let Some(link) = stored {
            return Ok(link.clone());
        }
        let policy = catalog.policy.client_reference_id.as_str();
        let allowed = |u: &&str| policy == "user" || policy == "known_user" && self.users.contains(*u);
        if let Some(user) = c.reference.filter(allowed) {
            return Ok(Link { user: user.into(), weak: true });
        }
        // "From then on a document without metadata on it is parked (`shared_customer`)."
        match c.customer.and_then(|k| Some((k, self.customers.get(k)?))) {
            Some((k, _)) if self.shared.contains(k) => Err("shared_customer"),
            Some((_, link)) => Ok(link.clone()),
            None if c.reference.is_some() && policy == "known_user" => Err("unknown_reference"),
            None => Err("no_user"),
        }
    }

    fn moved(&self, document: &str, sub: Option<&str>, customer: Option<&str>) -> Option<&String> {
        let by_sub = sub.and_then(|s| self.moved_subs.get(s));
        let by_customer = || customer.and_then(|c| self.moved_customers.get(c));
        self.assigned.get(document).or(by_sub).or_else(by_customer)
    }

    fn store(&mut self, c: &Claim<'_>, link: Link) {
        self.users.insert(link.user.clone());
        if let Some(sub) = c.sub {
            let stored = self.subs.entry(sub.into()).or_insert_with(|| link.clone());
            if stored.weak && !link.weak {
                *stored = link.clone();
            }
        }
        if let Some(customer) = c.customer {
            // "The customer's item keeps its owner and the flag `shared`."
            let stored = self.customers.entry(customer.into()).or_insert_with(|| link.clone());
            if stored.weak && !link.weak {
                *stored = link.clone();
            } else if stored.user != link.user && stored.weak == link.weak {
                self.shared.insert(customer.into());
            }
        }
        self.documents.insert(c.document.into(), (link.user, c.customer.map(String::from)));
    }

    /// The owner of a subscription, with all its documents.
    pub fn of_sub(&self, sub: &str, customer: Option<&str>) -> Option<&String> {
        self.moved(sub, Some(sub), customer).or_else(|| Some(&self.subs.get(sub)?.user))
    }

    /// The owner of a session, or of an invoice without a subscription.
    pub fn of_document(&self, document: &str) -> Option<&String> {
        let (user, customer) = self.documents.get(document)?;
        Some(self.moved(document, None, customer.as_deref()).unwrap_or(user))
    }
}

impl Session {
    fn claim(&self) -> Claim<'_> {
        Claim {
            document: &self.id,
            named: self.user.as_deref(),
            sub: self.subscription.as_deref(),
            reference: self.reference.as_deref(),
            customer: self.customer.as_deref(),
        }
    }
}

impl Invoice {
    fn claim(&self) -> Claim<'_> {
        Claim {
            document: &self.id,
            named: self.user.as_deref(),
            sub: self.sub.as_deref(),
            reference: None,
            customer: self.customer.as_deref(),
        }
    }
}

/// 3, foreign events: "An event is foreign only if every line and object in it is; a known line always counts."
fn foreign(catalog: &Catalog, e: &Event) -> bool {
    let prices: Vec<_> = match &e.fact {
        Fact::Invoice(i) => i.lines.iter().filter_map(|l| l.price.as_ref()).collect(),
        Fact::Snapshot(s) => s.items.iter().map(|i| &i.price).collect(),
        Fact::Session(s) => s.lines.iter().filter_map(|l| l.price.as_ref()).collect(),
        Fact::Link { .. } | Fact::Charge { .. } | Fact::Refund { .. } => Vec::new(),
        Fact::Dispute { .. } | Fact::CustomerDeleted(_) | Fact::Unknown => Vec::new(),
    };
    let known = |p: &&crate::event::Price| {
        matches!(
            catalog.sold(&p.id, p.lookup.as_deref(), p.product.as_deref()),
            Some(Sold::Plan(_) | Sold::Pack(_))
        )
    };
    let rule = |price: Option<&crate::event::Price>| {
        catalog.ignore.iter().any(|r| {
            r.account.as_ref().is_none_or(|a| e.account.as_ref() == Some(a))
                && r.context.as_ref().is_none_or(|c| e.context.as_ref() == Some(c))
                && r.metadata.as_ref().is_none_or(|m| contains(&e.metadata, m))
                && r.price.as_ref().is_none_or(|id| price.is_some_and(|p| p.id == *id))
                && r.product.as_ref().is_none_or(|id| price.is_some_and(|p| p.product.as_ref() == Some(id)))
        })
    };
    !prices.iter().any(known)
        && if prices.is_empty() { rule(None) } else { prices.iter().all(|p| rule(Some(p))) }
}
