//! Lives: what a random customer of a SaaS does over some months, and the events that Stripe sends about it.
//!
//! The same seed and catalog give the same life, byte for byte. Times are whole seconds, as at Stripe, so the
//! events of one act share a second or span two. The events of an act and their `previous_attributes` follow
//! Stripe's documentation. Half of the lives use the shapes before API version 2025-03-31.basil.
//!
//! Within one second a subscription never returns to a state, a plan or a number of seats that it had in that
//! second: from the events alone nothing could decide which state is the last.

mod render;
mod stripe;

use std::collections::BTreeMap;
use std::fmt;

use tallyhook_core::catalog::{Catalog, Refill};

use self::stripe::Stripe;

/// The options of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The maximum number of acts.
    pub acts: usize,
    /// Whether events that no function handles (`invoice.created`, …) are included.
    pub noise: bool,
    /// Whether the life also has subscriptions of the rarer shapes: items with intervals of their own, a
    /// billing anchor, trials that are extended or given later, invoices that are prebilled, discounted, sent
    /// by e-mail, or paid by balance or out of band.
    pub rare_shapes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { acts: 12, noise: true, rare_shapes: false }
    }
}

/// The shapes of one API version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Before 2025-03-31.basil: periods on the subscription, `subscription` and `payment_intent` on the
    /// invoice.
    Old,
    /// Since then: periods on the items, `parent` on the invoice and its lines.
    New,
}

/// One customer's life.
#[derive(Clone, Debug)]
pub struct Life {
    /// The seed that the life was made from.
    pub seed: u64,
    /// The shape of its events.
    pub shape: Shape,
    /// The app's id of the user.
    pub user: String,
    /// Everything that happened, in order.
    pub acts: Vec<Act>,
    /// The events of Stripe, in the order in which they happened.
    pub events: Vec<LifeEvent>,
    /// The invoice of each payment intent, as Stripe's API would answer it. Not every event names it.
    pub invoices: BTreeMap<String, String>,
    /// The time after the last act.
    pub end: i64,
}

/// One event as Stripe would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifeEvent {
    /// `evt_…`
    pub id: String,
    /// `type`
    pub kind: &'static str,
    /// `created`, in seconds since the epoch.
    pub created: i64,
    /// The act that fired the event, as an index into [`Life::acts`].
    pub act: usize,
    /// The JSON text.
    pub body: String,
}

/// Something that happened, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// When, in seconds since the epoch.
    pub at: i64,
    /// What.
    pub what: String,
}

impl Life {
    /// Makes the life of a seed. It buys plans that grant their credits by the period.
    pub fn new(seed: u64, catalog: &Catalog, options: Options) -> Self {
        let mut catalog = catalog.clone();
        catalog.plans.retain(|plan| plan.refill == Refill::Period);
        Stripe::new(seed, &catalog, options).run()
    }

    /// One line about an event: its act, its time since the first act, and its type.
    pub fn describe(&self, event: &LifeEvent) -> String {
        let (start, act) = (self.acts.first().map_or(0, |act| act.at), self.acts.get(event.act));
        let seconds = event.created - start;
        format!(
            "{:>4} +{}d{:05} {} ({}) | {}",
            event.act,
            seconds / 86_400,
            seconds % 86_400,
            event.kind,
            event.id,
            act.map_or("", |act| &act.what)
        )
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "life {} ({:?}) of {}", self.seed, self.shape, self.user)?;
        self.events.iter().try_for_each(|event| writeln!(f, "{}", self.describe(event)))
    }
}
