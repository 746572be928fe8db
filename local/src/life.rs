//! Lives: what one customer of a SaaS does over some months, and the events that Stripe sends about it.
//!
//! A life is made from a seed: the same seed and catalog give the same life, byte for byte. Stamps are whole
//! seconds as Stripe's are, so the events of one act share a second or straddle two. What an act fires, and
//! with which `previous_attributes`, follows Stripe's documentation; half of the lives are told in the shapes
//! before API version 2025-03-31.basil.
//!
//! Two things are left out, because nobody could tell from the events alone what came last: within one second
//! a subscription never comes back to a state (or plan, or number of seats) that it had in that second.

mod render;
mod stripe;

use std::collections::BTreeMap;
use std::fmt;

use tallyhook_core::catalog::Catalog;

use self::stripe::Stripe;

/// How a life is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many things the customer does, at most.
    pub acts: usize,
    /// Whether the events that nobody handles (`invoice.created`, `charge.succeeded`, …) are sent too.
    pub noise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { acts: 12, noise: true }
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
    /// What it was made from.
    pub seed: u64,
    /// How its events look.
    pub shape: Shape,
    /// The app's id of the user.
    pub user: String,
    /// What happened, in order.
    pub acts: Vec<Act>,
    /// What Stripe says about it, in the order in which it happened.
    pub events: Vec<Sent>,
    /// What ought to come of it, in the same order: the index of the act and the truth.
    pub truths: Vec<(usize, Truth)>,
    /// How the subscriptions stand at the end.
    pub standings: Vec<Standing>,
    /// The invoice that each payment intent paid: what Stripe's API would answer when an event does not say
    /// so.
    pub invoices: BTreeMap<String, String>,
    /// The time after the last act.
    pub end: i64,
}

/// One event as Stripe would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// `evt_…`
    pub id: String,
    /// `type`
    pub kind: &'static str,
    /// `created`, in seconds since the epoch.
    pub created: i64,
    /// The act that fired it, as an index into [`Life::acts`].
    pub act: usize,
    /// The request's body.
    pub body: String,
}

/// Something that happened, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// When, in seconds since the epoch.
    pub at: i64,
    /// What.
    pub what: String,
}

/// How a subscription stands at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `sub_…`
    pub subscription: String,
    /// Stripe's status.
    pub status: &'static str,
    /// The price of its plan.
    pub price: String,
    /// Start of its billing period.
    pub start: i64,
    /// When it is planned to end.
    pub ends: Option<i64>,
}

/// What an act means for the user's credits, said without events. A model that takes these in order is slow,
/// obvious and right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    /// A payment or a trial opened a billing period.
    Opened {
        /// `sub_…`
        subscription: String,
        /// Ledger key of the document.
        key: String,
        /// Start of the period.
        start: i64,
        /// The plan's price.
        price: String,
        /// What it is worth.
        credits: u64,
        /// What was paid, in minor units.
        paid: i64,
        /// Whether it is a plan change that began a period; every other opening ends unspent add-ons.
        change: bool,
    },
    /// Another plan, or another number of seats, was taken up within a period.
    Took {
        /// `sub_…`
        subscription: String,
        /// Start of the period.
        start: i64,
        /// The new price.
        price: String,
        /// What it is worth.
        credits: u64,
        /// Whether it is in force: a change of an unpaid subscription is, once that is paid.
        counts: bool,
    },
    /// A subscription in good standing again after it had changed while it was unpaid.
    InForce {
        /// `sub_…`
        subscription: String,
        /// Start of the period.
        start: i64,
        /// The price.
        price: String,
        /// What it is worth.
        credits: u64,
    },
    /// A subscription is over.
    Ended {
        /// `sub_…`
        subscription: String,
        /// Since when.
        at: i64,
    },
    /// A one-time payment for credits.
    Bought {
        /// Ledger key of the session.
        key: String,
        /// What it is worth.
        credits: u64,
        /// When.
        at: i64,
        /// What was paid, in minor units.
        paid: i64,
    },
    /// A document that is in the ledger and moves nothing: an order, a proration.
    Recorded {
        /// Its ledger key.
        key: String,
    },
    /// Money of the payment behind a key went back or came back.
    Reversed {
        /// Ledger key of the grant.
        key: String,
        /// Minor units that are not with the merchant from then on.
        amount: i64,
    },
}

impl Life {
    /// Makes the life of a seed.
    pub fn new(seed: u64, catalog: &Catalog, options: Options) -> Self {
        Stripe::new(seed, catalog, options).live()
    }

    /// One event in words: the act that fired it, its type and its second after the life's first act.
    pub fn tell(&self, sent: &Sent) -> String {
        let (start, act) = (self.acts.first().map_or(0, |act| act.at), self.acts.get(sent.act));
        let seconds = sent.created - start;
        format!(
            "{:>4} +{}d{:05} {} ({}) | {}",
            sent.act,
            seconds / 86_400,
            seconds % 86_400,
            sent.kind,
            sent.id,
            act.map_or("", |act| &act.what)
        )
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "life {} ({:?}) of {}", self.seed, self.shape, self.user)?;
        self.events.iter().try_for_each(|sent| writeln!(f, "{}", self.tell(sent)))
    }
}
