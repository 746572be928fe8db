//! 2.4: which user a document belongs to. The first owner stays, so this is a fold over the steps in their
//! order of arrival.

use crate::catalog::Catalog;
use crate::event::{Event, Family, Line, id, is_valid};
use crate::{Action, Outcome, ParsedStep};
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
    /// Operators' moves: subscription, customer or session → user.
    moved: BTreeMap<String, String>,
    documents: BTreeMap<String, Link>,
    pub users: BTreeSet<String>,
    pub outcomes: BTreeMap<String, Outcome>,
}

/// Words of the routes below `/users/{id}/`: a user id must not end in one of them.
const ROUTES: [&str; 9] =
    ["/check", "/ledger", "/consume", "/holds", "/commit", "/release", "/refund", "/orders", "/portal"];

impl Owners {
    /// An event that arrived before changes nothing. Parked events are tried again after each step.
    pub fn play(catalog: &Catalog, history: &[ParsedStep]) -> Owners {
        let mut owners = Owners::default();
        let mut parked: Vec<&Event> = Vec::new();
        for (step, event) in history {
            match (&step.action, event) {
                (Action::Put { user }, _) => drop(owners.users.insert(user.clone())),
                (Action::Fix { body, user }, _) => owners.fix(body, user),
                (_, Some(e)) if !owners.outcomes.contains_key(&e.id) => parked.push(e),
                _ => continue,
            }
            parked.sort_by_key(|e| e.created);
            let mut before = usize::MAX;
            while parked.len() < before {
                before = parked.len();
                parked.retain(|e| {
                    let outcome = owners.take(catalog, e).unwrap_or_else(|r| Outcome::new("parked", r));
                    let is_parked = outcome.status == "parked";
                    owners.outcomes.insert(e.id.clone(), outcome);
                    is_parked
                });
            }
        }
        owners
    }

    /// 2.4: `move` with `customer` or `subscription`, and `assign_session`; both with `to`.
    fn fix(&mut self, body: &Value, user: &str) {
        if matches!(body["action"].as_str(), Some("move" | "assign_session")) {
            let what = ["subscription", "customer", "session"].into_iter().find_map(|k| id(&body[k]));
            let to = id(&body["to"]).unwrap_or_else(|| user.into());
            what.map(|what| self.moved.insert(what, to));
        }
    }

    fn take(&mut self, catalog: &Catalog, e: &Event) -> Result<Outcome, &'static str> {
        if e.family == Family::Unknown {
            return Ok(Outcome::new("ignored", ""));
        }
        if is_foreign(catalog, e) {
            return Ok(Outcome::new("ignored", "foreign"));
        }
        if matches!(e.family, Family::Session | Family::Subscription | Family::Invoice) {
            let link = self.owner(catalog, e)?;
            // 2.5: "A list that was cut is completed with a key, else parked." There is no key.
            if e.is_cut() {
                return Err("lines_missing");
            }
            if ROUTES.iter().any(|r| link.user.ends_with(r)) {
                return Err("reserved_id");
            }
            self.store(e, link);
        }
        Ok(Outcome::new("processed", ""))
    }

    /// "The owner of a session, a subscription or an invoice is the first of …"
    fn owner(&self, catalog: &Catalog, e: &Event) -> Result<Link, &'static str> {
        let strong = |user: &str| Ok(Link { user: user.into(), weak: false });
        if let Some(user) = self.moved(&e.doc, e.sub.as_deref(), e.customer.as_deref()) {
            return strong(user);
        }
        let stored = e.sub.as_ref().and_then(|s| self.subs.get(s));
        match (&e.user, stored) {
            // "A document of it that names another user is parked"; "A link made by [`client_reference_id`]
            // is replaced by one made from metadata."
            (Some(named), Some(link)) if link.user != *named && !link.weak => return Err("owner_conflict"),
            (Some(named), _) => return strong(named),
            (None, Some(link)) => return Ok(link.clone()),
            (None, None) => {}
        }
        let policy = catalog.policy("client_reference_id", "user");
        let reference = id(&e.object["client_reference_id"]).filter(|r| is_valid(r));
        if let Some(user) =
            reference.clone().filter(|r| policy == "user" || policy == "known_user" && self.users.contains(r))
        {
            return Ok(Link { user, weak: true });
        }
        // "From then on a document without metadata on it is parked (`shared_customer`)."
        match e.customer.as_ref().and_then(|c| self.customers.get(c)) {
            Some(_) if e.customer.as_ref().is_some_and(|c| self.shared.contains(c)) => Err("shared_customer"),
            Some(link) => Ok(link.clone()),
            None if reference.is_some() && policy == "known_user" => Err("unknown_reference"),
            None => Err("no_user"),
        }
    }

    /// "An operator's move of the subscription, else of the customer."
    fn moved(&self, doc: &str, sub: Option<&str>, customer: Option<&str>) -> Option<&String> {
        [Some(doc), sub, customer].into_iter().flatten().find_map(|k| self.moved.get(k))
    }

    /// "The customer's item keeps its owner and the flag `shared`."
    fn store(&mut self, e: &Event, link: Link) {
        self.users.insert(link.user.clone());
        let links = [(&e.sub, &mut self.subs, false), (&e.customer, &mut self.customers, true)];
        for (key, map, is_customer) in links {
            let Some(key) = key else { continue };
            let stored = map.entry(key.clone()).or_insert_with(|| link.clone());
            if stored.weak && !link.weak {
                *stored = link.clone();
            } else if is_customer && stored.user != link.user && stored.weak == link.weak {
                self.shared.insert(key.clone());
            }
        }
        self.documents.insert(e.doc.clone(), link);
    }

    /// The owner of a document: of a subscription's, the subscription's; else the one that it was given.
    pub fn of(&self, e: &Event) -> Option<&String> {
        let stored = || match &e.sub {
            Some(sub) => self.subs.get(sub),
            None => self.documents.get(&e.doc),
        };
        let moved = self.moved(&e.doc, e.sub.as_deref(), e.customer.as_deref());
        moved.or_else(|| stored().map(|l| &l.user))
    }
}

/// 3: "An event is foreign only if every line and object in it is; a known line always counts."
fn is_foreign(catalog: &Catalog, e: &Event) -> bool {
    let rule = |line: Option<&Line>| {
        catalog.ignore.iter().any(|rule| {
            rule.as_object().into_iter().flatten().all(|(k, v)| match k.as_str() {
                "price" => line.is_some_and(|l| *v == l.price),
                "product" => line.is_some_and(|l| *v == l.product),
                "metadata" => v.as_object().into_iter().flatten().all(|(k, v)| e.object["metadata"][k] == *v),
                _ => e.body[k] == *v,
            })
        })
    };
    let each = if e.lines.is_empty() { rule(None) } else { e.lines.iter().all(|l| rule(Some(l))) };
    each && !e.lines.iter().any(|l| catalog.sold(l).is_some())
}
