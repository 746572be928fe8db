//! The catalog: the products that are sold and what they grant. The user of this project edits it in one
//! file, `catalog.toml`.
//!
//! ```toml
//! [tiers]                       # name = rank; a higher rank wins
//! free = 0
//! pro = 1
//!
//! [policy]
//! default_tier = "free"
//! signup_credits = 500
//! addons = "reset"              # at renewal: "reset" ends unspent add-on credits, "keep" keeps them
//! plan_change = "at_once"       # or "on_payment": more credits only when an invoice is paid
//! trials = "once"               # a user's first trial grants credits; "each": every trial
//! past_due_grace_days = 7
//! spend_order = "plan_first"    # or "expiring_first"
//!
//! [[plan]]
//! name = "pro"
//! tier = "pro"
//! credits = 5000
//! per = "subscription"          # or "seat": credits × quantity
//! trial_credits = 5000          # default: credits
//! trial_days = 0                # of a trial that our checkout starts
//! refill = "period"             # or "month": a yearly plan grants its credits every month
//! rollover = { percent = 50, max = 2000, periods = 1 }   # default: nothing is carried over
//! prices = ["price_pro_test", "price_pro_live"]
//! lookup_keys = ["pro_monthly"]
//!
//! [[pack]]
//! name = "credits_1000"
//! credits = 1000
//! expires_days = 0              # 0: never
//! prices = ["price_pack_1000_test"]
//!
//! [[order]]
//! mode = "dfy"                  # a session's metadata.mode
//! plans = { starter = { revisions = 1 } }
//! ```
//!
//! A build script checks the catalog and stores it as JSON, so that a function's start parses no TOML. Errors
//! name the line.

#[path = "catalog/learnt.rs"]
mod learnt;
#[path = "catalog/low.rs"]
mod low;
#[path = "catalog/products.rs"]
mod products;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use self::learnt::{LearntPrice, MAX_LEARNT_PRICES, learn};
pub use self::low::Threshold;
pub use self::products::{FeatureKind, FeatureValue, Features, Product, Unlimited};

/// The maximum credits of a plan, a pack or the signup grant. Multiplied by [`MAX_QUANTITY`], a grant still
/// fits into an `i64`.
pub const MAX_CREDITS: u64 = 1_000_000_000;
/// The maximum quantity of a subscription item or a pack. An event with a larger quantity is parked.
pub const MAX_QUANTITY: u64 = 1_000_000;

/// The kind of a former name in [`Checker::seen`].
const FORMER_NAME: &str = "former name";

/// The maximum of `quiet_hours`: 30 days.
const MAX_QUIET_HOURS: u64 = 720;
/// The maximum of `trial_days`, which is Stripe's:
/// <https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-subscription_data-trial_period_days>
const MAX_TRIAL_DAYS: u64 = 730;
/// The maximum number of days after which credits expire.
const MAX_EXPIRES_DAYS: u64 = 36_500;
/// The maximum number of openings for which carried credits stay.
const MAX_ROLLOVER_PERIODS: u64 = 12;

/// What happens to unspent add-on credits when a subscription is granted or renews.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addons {
    /// They end with the period, like the plan's own credits.
    #[default]
    Reset,
    /// They are kept.
    Keep,
}

/// When a change to a plan with more credits takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanChange {
    /// When an event shows the new plan. The credits of the period are reset to the new plan.
    #[default]
    AtOnce,
    /// When an invoice for it is paid, or with the next period.
    OnPayment,
}

/// How often a plan grants its credits in a paid period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Refill {
    /// Once, when the period is paid.
    #[default]
    Period,
    /// Every calendar month of the period.
    Month,
}

/// What part of a plan's unspent credits the next period takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rollover {
    /// Percent of what is left, rounded down; 0 to 100.
    pub percent: u64,
    /// The maximum number of credits carried over.
    pub max: u64,
    /// The number of openings for which the carried credits stay.
    #[serde(default = "one_period")]
    pub periods: u64,
}

fn one_period() -> u64 {
    1
}

fn a_day() -> u64 {
    24
}

/// How often a user without a plan gets free credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FreeRefill {
    /// Every calendar month, counted from the signup.
    #[default]
    Month,
}

/// The order in which credits are spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpendOrder {
    /// Plans by the end of their period, then signup credits, grants and packs.
    #[default]
    PlanFirst,
    /// The credits that end first.
    ExpiringFirst,
}

/// Which trials grant credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trials {
    /// Only the user's first trial.
    #[default]
    Once,
    /// The first trial of every subscription.
    Each,
}

/// What `pause_collection` at Stripe means for access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseCollection {
    /// The customer keeps access, as in Stripe's documentation.
    #[default]
    Keep,
    /// Access ends with the paid period.
    UntilPeriodEnd,
}

/// Whether a plan gives access when all payments of its running period are refunded or disputed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefundedAccess {
    /// It gives access. Access ends when the subscription is cancelled.
    #[default]
    Keep,
    /// It gives no access.
    End,
}

/// Whether a session's `client_reference_id` counts as the user's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientReference {
    /// It counts, also for a user without an account.
    #[default]
    User,
    /// It counts only for a user with an account.
    KnownUser,
    /// It is ignored.
    Ignore,
}

/// A rule that ignores events of other products on the same Stripe account. All fields of a rule must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoreRule {
    /// A price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<String>,
    /// A Stripe product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Metadata keys with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// A connected account (`acct_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// An organisation's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
}

/// Whether a plan's credits are granted once or for each seat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// `credits`, for any quantity.
    #[default]
    Subscription,
    /// `credits` × the item's quantity.
    Seat,
}

/// What `POST /checkout-sessions` asks of Stripe unless the request says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkout {
    /// Whether the customer can type a promotion code.
    pub promotion_codes: bool,
    /// Whether Stripe Tax computes the tax.
    pub automatic_tax: bool,
    /// Whether the customer can type a tax id.
    pub tax_id: bool,
    /// The language of the page: `auto`, or a locale of Stripe's such as `de`.
    pub locale: String,
    /// Whether a subscription that costs nothing now needs a payment method.
    pub payment_method_collection: Collection,
}

impl Default for Checkout {
    fn default() -> Self {
        Self {
            promotion_codes: false,
            automatic_tax: false,
            tax_id: false,
            locale: "auto".to_owned(),
            payment_method_collection: Collection::Always,
        }
    }
}

/// When Stripe Checkout asks for a payment method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Collection {
    /// Always.
    #[default]
    Always,
    /// Only if something is to be paid now.
    IfRequired,
}

/// How often a plan's price is billed. The functions do not read it.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Interval {
    Day,
    Week,
    Month,
    Year,
}

/// The rules that apply to all products.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Policy {
    /// The tier of a user without a subscription that gives access.
    pub default_tier: String,
    /// Credits granted once, when the app creates the user.
    pub signup_credits: u64,
    /// What happens to add-on credits at renewal.
    pub addons: Addons,
    /// Days of access after the start of an unpaid period.
    pub past_due_grace_days: i64,
    /// When a change to a plan with more credits takes effect.
    #[serde(default)]
    pub plan_change: PlanChange,
    /// Which trials grant credits.
    #[serde(default)]
    pub trials: Trials,
    /// What `pause_collection` means for access.
    #[serde(default)]
    pub pause_collection: PauseCollection,
    /// Whether a refunded period gives access.
    #[serde(default)]
    pub refunded_access: RefundedAccess,
    /// Whether `client_reference_id` counts as the user's id.
    #[serde(default)]
    pub client_reference_id: ClientReference,
    /// The balances at which the app is notified, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub low: Vec<Threshold>,
    /// Days after which signup credits expire; 0: never.
    #[serde(default)]
    pub signup_expires_days: i64,
    /// Credits that a user without a plan gets regularly; 0: none.
    #[serde(default)]
    pub free_credits: u64,
    /// How often.
    #[serde(default)]
    pub free_refill: FreeRefill,
    /// The order in which credits are spent.
    #[serde(default)]
    pub spend_order: SpendOrder,
    /// Hours without any event after which the operator is alerted, in live mode; 0: never.
    #[serde(default = "a_day")]
    pub quiet_hours: u64,
    /// The maximum of `periods` over all plans with a rollover: the number of earlier periods that an account
    /// keeps.
    #[serde(default)]
    pub carried_periods: u64,
}

/// By what a plan, a pack or a product is found at Stripe. One of the three suffices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SoldAs {
    /// Stripe price ids of both modes.
    #[serde(default)]
    pub prices: Vec<String>,
    /// Lookup keys of Stripe prices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lookup_keys: Vec<String>,
    /// Ids of Stripe products, with all their prices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stripe_products: Vec<String>,
}

/// What the catalog sells for a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer<'a> {
    /// A plan.
    Plan(&'a Plan),
    /// A pack of credits.
    Pack(&'a Pack),
    /// A product.
    Product(&'a Product),
}

impl Offer<'_> {
    /// Its kind and name, as [`LearntPrice::sold`] stores them: `plan pro`.
    pub fn key(&self) -> String {
        match self {
            Self::Plan(plan) => format!("plan {}", plan.name),
            Self::Pack(pack) => format!("pack {}", pack.name),
            Self::Product(product) => format!("product {}", product.name),
        }
    }
}

impl fmt::Display for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(plan) => write!(f, "plan \"{}\"", plan.name),
            Self::Pack(pack) => write!(f, "pack \"{}\"", pack.name),
            Self::Product(product) => write!(f, "product \"{}\"", product.name),
        }
    }
}

/// The place of an offer in the catalog's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Plan(usize),
    Pack(usize),
    Product(usize),
}

/// Where a price is found: by its id, its lookup key or its Stripe product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Index {
    #[serde(default)]
    prices: BTreeMap<String, Place>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lookup_keys: BTreeMap<String, Place>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    products: BTreeMap<String, Place>,
}

impl Index {
    fn add(&mut self, sold_as: &SoldAs, place: Place) {
        let entries =
            |names: &[String]| names.iter().map(move |name| (name.clone(), place)).collect::<Vec<_>>();
        self.prices.extend(entries(&sold_as.prices));
        self.lookup_keys.extend(entries(&sold_as.lookup_keys));
        self.products.extend(entries(&sold_as.stripe_products));
    }
}

/// A subscription plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Plan {
    /// Its name in metadata, in the API and in the account.
    pub name: String,
    /// The names that it had before. What is kept by one of them belongs to this plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<String>,
    /// The tier it gives.
    pub tier: String,
    /// The rank of this tier.
    pub rank: u32,
    /// Credits per billing period, per subscription or per seat.
    pub credits: u64,
    /// Whether `credits` are per subscription or per seat.
    pub per: Per,
    /// Credits of a trial, per subscription or per seat.
    pub trial_credits: u64,
    /// How often the plan grants its credits in a paid period.
    #[serde(default)]
    pub refill: Refill,
    /// What the next period takes over; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<Rollover>,
    /// Its prices at Stripe.
    pub sold_as: SoldAs,
    /// The price's amount in minor units, if the catalog has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<u64>,
    /// The currency of `amount`, if the catalog has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Days of the trial that our checkout can start; 0: none.
    #[serde(default)]
    pub trial_days: u64,
    /// What it gives of features.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub features: Features,
    /// The limits that count for each seat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_seat: Vec<String>,
    /// The balances at which the app is notified, in place of the policy's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub low: Vec<Threshold>,
}

/// A pack of credits bought once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pack {
    /// Its name in a session's metadata (`pack`).
    pub name: String,
    /// Credits of one pack.
    pub credits: u64,
    /// Days after which its credits expire; 0: never.
    #[serde(default)]
    pub expires_days: i64,
    /// Its prices at Stripe.
    pub sold_as: SoldAs,
    /// The price's amount in minor units, if the catalog has it. A sale without a quantity is divided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<u64>,
    /// The currency of `amount`, if the catalog has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

/// A kind of one-time order. A session names it in `metadata.mode`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OrderKind {
    /// The value of `metadata.mode`.
    pub mode: String,
    /// The plans of this kind, by the value of `metadata.plan`.
    pub plans: BTreeMap<String, OrderPlan>,
}

/// One plan of an order kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OrderPlan {
    /// How many revisions the customer has.
    pub revisions: u32,
    /// Days from the payment to the deadline. 0 means no deadline.
    pub deadline_days: i64,
    /// Stripe price ids of both modes. Without one, `POST /checkout-sessions` does not sell the plan.
    pub prices: Vec<String>,
}

/// The checked catalog, with an index of prices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Catalog {
    /// Tier name to rank.
    pub tiers: BTreeMap<String, u32>,
    /// The general rules.
    pub policy: Policy,
    /// All plans, in the file's order.
    pub plans: Vec<Plan>,
    /// All packs, in the file's order.
    pub packs: Vec<Pack>,
    /// All order kinds, in the file's order.
    pub orders: Vec<OrderKind>,
    /// All features.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, FeatureKind>,
    /// What every user has of them.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub default_features: Features,
    /// All products, in the file's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<Product>,
    /// What our checkout asks of Stripe.
    #[serde(default)]
    pub checkout: Checkout,
    /// Rules for events of other products, which are ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<IgnoreRule>,
    index: Index,
    /// The learnt prices, which are no part of the file.
    #[serde(skip)]
    learnt: BTreeMap<String, LearntPrice>,
}

/// An error in the catalog file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogError {
    /// Line in the file, from 1; 0 when the error has no position.
    pub line: usize,
    /// The error, and what is allowed.
    pub message: String,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of_file("catalog.toml"))
    }
}

impl CatalogError {
    /// The message with the name of the file.
    pub fn of_file(&self, name: &str) -> String {
        if self.line == 0 {
            format!("{name}: {}", self.message)
        } else {
            format!("{name} line {}: {}", self.line, self.message)
        }
    }
}

impl std::error::Error for CatalogError {}

impl Catalog {
    /// Stands for the catalog while none is stored. It has no tier, no plan and no rule.
    pub fn absent() -> Self {
        let mut catalog = Self::parse("[tiers]\nfree = 0\n[policy]\ndefault_tier = \"free\"\n")
            .expect("a tier and a default tier are a catalog");
        catalog.tiers.clear();
        catalog
    }

    /// Whether it is [`Self::absent`]: a catalog has at least the default tier.
    pub fn is_absent(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Reads and checks the text of a catalog file.
    ///
    /// # Errors
    /// [`CatalogError`] for invalid TOML, an unknown field, a negative or too large number, a duplicate name
    /// or price, or a tier that is missing under `[tiers]`.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let file: File = toml::from_str(text).map_err(|error| CatalogError {
            line: error.span().map_or(0, |span| line_of(text, span.start)),
            message: error.message().to_string(),
        })?;
        Checker { text, seen: BTreeMap::new(), index: Index::default() }.check(file)
    }

    /// What is sold for a price, by its id, its lookup key and its Stripe product, as far as they are shown or
    /// learnt.
    ///
    /// # Errors
    /// Two offers match the price by different means.
    pub fn offer(
        &self,
        price: &str,
        lookup_key: Option<&str>,
        product: Option<&str>,
    ) -> Result<Option<Offer<'_>>, (Offer<'_>, Offer<'_>)> {
        let shown = [
            self.index.prices.get(price),
            lookup_key.and_then(|key| self.index.lookup_keys.get(key)),
            product.and_then(|product| self.index.products.get(product)),
        ];
        let learnt = self.learnt_places(price, lookup_key, product);
        let places = shown.into_iter().map(|place| place.copied()).chain(learnt);
        let mut offers = places.flatten().filter_map(|place| self.at(place));
        let Some(first) = offers.next() else { return Ok(None) };
        match offers.find(|other| *other != first) {
            Some(other) => Err((first, other)),
            None => Ok(Some(first)),
        }
    }

    fn at(&self, place: Place) -> Option<Offer<'_>> {
        match place {
            Place::Plan(index) => self.plans.get(index).map(Offer::Plan),
            Place::Pack(index) => self.packs.get(index).map(Offer::Pack),
            Place::Product(index) => self.products.get(index).map(Offer::Product),
        }
    }

    /// Whether something is found by a lookup key, which lines of invoices do not have.
    pub fn has_lookup_keys(&self) -> bool {
        !self.index.lookup_keys.is_empty()
    }

    /// What is valid and may surprise.
    pub fn warnings(&self) -> Vec<String> {
        let renews = self.plans.iter().any(|plan| plan.per == Per::Subscription);
        let ends_packs = self.policy.addons == Addons::Reset && renews && !self.packs.is_empty();
        let packs = "addons = \"reset\": what is left of a pack ends when a subscription begins or renews; \
                     with addons = \"keep\" it stays";
        ends_packs.then(|| packs.to_owned()).into_iter().collect()
    }

    /// The plan with this Stripe price id.
    pub fn plan_of_price(&self, price: &str) -> Option<&Plan> {
        match self.index.prices.get(price) {
            Some(Place::Plan(index)) => self.plans.get(*index),
            Some(Place::Pack(_) | Place::Product(_)) | None => None,
        }
    }

    /// A plan by its name, else by a name that it had before.
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        let formerly = || self.plans.iter().find(|plan| plan.formerly.iter().any(|one| one == name));
        self.plans.iter().find(|plan| plan.name == name).or_else(formerly)
    }

    /// The present name of a plan or product; the same name if the catalog has neither.
    pub fn present_name<'a>(&'a self, name: &'a str) -> &'a str {
        let plan = self.plan(name).map(|plan| plan.name.as_str());
        plan.or_else(|| self.product(name).map(|product| product.name.as_str())).unwrap_or(name)
    }

    /// A pack by its name.
    pub fn pack(&self, name: &str) -> Option<&Pack> {
        self.packs.iter().find(|pack| pack.name == name)
    }

    /// An order kind by a session's `metadata.mode`.
    pub fn order(&self, mode: &str) -> Option<&OrderKind> {
        self.orders.iter().find(|order| order.mode == mode)
    }

    /// The tier of a plan and the tier's rank; `None` for a plan that is not in the catalog.
    pub fn tier_of_plan(&self, plan: &str) -> Option<(&str, u32)> {
        self.plan(plan).map(|plan| (plan.tier.as_str(), plan.rank))
    }

    /// The rank of the default tier.
    pub fn default_rank(&self) -> u32 {
        self.tiers.get(&self.policy.default_tier).copied().unwrap_or(0)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

/// The content of the file. Numbers are signed, so that a negative number gets our error message and not the
/// parser's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tiers: BTreeMap<Spanned<String>, Spanned<i64>>,
    policy: FilePolicy,
    #[serde(default)]
    features: products::FileKinds,
    #[serde(default)]
    default_features: products::FileFeatures,
    #[serde(default)]
    product: Vec<products::FileProduct>,
    #[serde(default)]
    plan: Vec<FilePlan>,
    #[serde(default)]
    pack: Vec<FilePack>,
    #[serde(default)]
    order: Vec<FileOrder>,
    #[serde(default)]
    checkout: Checkout,
    #[serde(default)]
    ignore: Vec<IgnoreRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePolicy {
    default_tier: Spanned<String>,
    signup_credits: Option<Spanned<i64>>,
    #[serde(default)]
    addons: Addons,
    past_due_grace_days: Option<Spanned<i64>>,
    #[serde(default)]
    plan_change: PlanChange,
    #[serde(default)]
    trials: Trials,
    #[serde(default)]
    pause_collection: PauseCollection,
    #[serde(default)]
    refunded_access: RefundedAccess,
    #[serde(default)]
    client_reference_id: ClientReference,
    #[serde(default)]
    low: Vec<Spanned<toml::Value>>,
    signup_expires_days: Option<Spanned<i64>>,
    free_credits: Option<Spanned<i64>>,
    #[serde(default)]
    free_refill: FreeRefill,
    #[serde(default)]
    spend_order: SpendOrder,
    quiet_hours: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePlan {
    name: Spanned<String>,
    #[serde(default)]
    formerly: Vec<Spanned<String>>,
    tier: Spanned<String>,
    credits: Spanned<i64>,
    #[serde(default)]
    per: Per,
    trial_credits: Option<Spanned<i64>>,
    trial_days: Option<Spanned<i64>>,
    #[serde(default)]
    refill: Refill,
    rollover: Option<Spanned<Rollover>>,
    prices: Option<Names>,
    lookup_keys: Option<Names>,
    stripe_products: Option<Names>,
    amount: Option<Spanned<i64>>,
    currency: Option<Spanned<String>>,
    #[serde(default, rename = "interval")]
    _interval: Option<Interval>,
    #[serde(default)]
    features: products::FileFeatures,
    #[serde(default)]
    per_seat: Vec<Spanned<String>>,
    #[serde(default)]
    low: Vec<Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePack {
    name: Spanned<String>,
    credits: Spanned<i64>,
    expires_days: Option<Spanned<i64>>,
    prices: Option<Names>,
    lookup_keys: Option<Names>,
    stripe_products: Option<Names>,
    amount: Option<Spanned<i64>>,
    currency: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOrder {
    mode: Spanned<String>,
    plans: BTreeMap<String, FileOrderPlan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOrderPlan {
    revisions: Option<Spanned<i64>>,
    deadline_days: Option<Spanned<i64>>,
    prices: Option<Names>,
}

/// Names of Stripe, each with its place in the file.
type Names = Spanned<Vec<Spanned<String>>>;

struct Checker<'a> {
    text: &'a str,
    /// Price ids, lookup keys, Stripe products and former names, each with its line.
    seen: BTreeMap<(&'static str, String), usize>,
    index: Index,
}

impl Checker<'_> {
    fn check(mut self, file: File) -> Result<Catalog, CatalogError> {
        let mut tiers = BTreeMap::new();
        for (name, rank) in file.tiers {
            self.name("tier", &name)?;
            let rank = u32::try_from(self.number("a tier's rank", &rank, 1_000_000)?).unwrap_or(u32::MAX);
            tiers.insert(name.into_inner(), rank);
        }
        let rank_of = |checker: &Self, tier: &Spanned<String>| {
            tiers.get(tier.get_ref()).copied().ok_or_else(|| {
                let known = tiers.keys().cloned().collect::<Vec<_>>().join(", ");
                checker.error(
                    tier,
                    format!("tier \"{}\" is not under [tiers] (known tiers: {known})", tier.get_ref()),
                )
            })
        };
        rank_of(&self, &file.policy.default_tier)?;
        let mut policy = Policy {
            signup_credits: self.number_or(
                "signup_credits",
                file.policy.signup_credits.as_ref(),
                MAX_CREDITS,
                500,
            )?,
            past_due_grace_days: i64::try_from(self.number_or(
                "past_due_grace_days",
                file.policy.past_due_grace_days.as_ref(),
                365,
                7,
            )?)
            .unwrap_or(7),
            addons: file.policy.addons,
            plan_change: file.policy.plan_change,
            trials: file.policy.trials,
            pause_collection: file.policy.pause_collection,
            refunded_access: file.policy.refunded_access,
            client_reference_id: file.policy.client_reference_id,
            low: self.low(&file.policy.low)?,
            signup_expires_days: self
                .days("signup_expires_days", file.policy.signup_expires_days.as_ref())?,
            free_credits: self.number_or(
                "free_credits",
                file.policy.free_credits.as_ref(),
                MAX_CREDITS,
                0,
            )?,
            free_refill: file.policy.free_refill,
            spend_order: file.policy.spend_order,
            quiet_hours: self.number_or(
                "quiet_hours",
                file.policy.quiet_hours.as_ref(),
                MAX_QUIET_HOURS,
                24,
            )?,
            carried_periods: 0,
            default_tier: file.policy.default_tier.into_inner(),
        };

        let kinds = self.kinds(file.features)?;
        let default_features = self.features(file.default_features, &kinds)?;
        let mut plans: Vec<Plan> = Vec::new();
        for plan in file.plan {
            self.name("plan", &plan.name)?;
            if plans.iter().any(|other| other.name == *plan.name.get_ref()) {
                return Err(self.error(&plan.name, format!("plan \"{}\" occurs twice", plan.name.get_ref())));
            }
            let credits = self.number("credits", &plan.credits, MAX_CREDITS)?;
            let features = self.features(plan.features, &kinds)?;
            let checked = Plan {
                formerly: self.formerly(plan.formerly)?,
                per_seat: self.per_seat(plan.per_seat, &features, &kinds)?,
                low: self.low(&plan.low)?,
                features,
                rank: rank_of(&self, &plan.tier)?,
                tier: plan.tier.into_inner(),
                credits,
                per: plan.per,
                trial_credits: self.number_or(
                    "trial_credits",
                    plan.trial_credits.as_ref(),
                    MAX_CREDITS,
                    credits,
                )?,
                refill: plan.refill,
                rollover: self.rollover(plan.rollover)?,
                sold_as: self.sold_as(&plan.name, plan.prices, plan.lookup_keys, plan.stripe_products)?,
                amount: self.amount(plan.amount.as_ref())?,
                currency: self.currency(plan.currency)?,
                trial_days: self.number_or("trial_days", plan.trial_days.as_ref(), MAX_TRIAL_DAYS, 0)?,
                name: plan.name.into_inner(),
            };
            self.index.add(&checked.sold_as, Place::Plan(plans.len()));
            plans.push(checked);
        }

        let carried = plans.iter().filter_map(|plan| plan.rollover).map(|rollover| rollover.periods);
        policy.carried_periods = carried.max().unwrap_or(0);

        let products = self.products(file.product, &kinds, &plans)?;
        let names = plans.iter().map(|plan| &plan.name).chain(products.iter().map(|product| &product.name));
        self.no_former_name_is_present(names)?;
        let mut packs: Vec<Pack> = Vec::new();
        for pack in file.pack {
            self.name("pack", &pack.name)?;
            if packs.iter().any(|other| other.name == *pack.name.get_ref()) {
                return Err(self.error(&pack.name, format!("pack \"{}\" occurs twice", pack.name.get_ref())));
            }
            let checked = Pack {
                credits: self.number("credits", &pack.credits, MAX_CREDITS)?,
                expires_days: self.days("expires_days", pack.expires_days.as_ref())?,
                sold_as: self.sold_as(&pack.name, pack.prices, pack.lookup_keys, pack.stripe_products)?,
                amount: self.amount(pack.amount.as_ref())?,
                currency: self.currency(pack.currency)?,
                name: pack.name.into_inner(),
            };
            self.index.add(&checked.sold_as, Place::Pack(packs.len()));
            packs.push(checked);
        }

        let mut orders: Vec<OrderKind> = Vec::new();
        for order in file.order {
            self.name("order mode", &order.mode)?;
            if orders.iter().any(|other| other.mode == *order.mode.get_ref()) {
                return Err(
                    self.error(&order.mode, format!("order mode \"{}\" occurs twice", order.mode.get_ref()))
                );
            }
            let mut plans = BTreeMap::new();
            for (name, plan) in order.plans {
                let revisions = self.number_or("revisions", plan.revisions.as_ref(), 1_000, 1)?;
                let deadline_days = self.number_or("deadline_days", plan.deadline_days.as_ref(), 3_650, 0)?;
                let plan = OrderPlan {
                    revisions: u32::try_from(revisions).unwrap_or(1),
                    deadline_days: i64::try_from(deadline_days).unwrap_or(0),
                    prices: self.names("price", plan.prices.as_ref())?,
                };
                plans.insert(name, plan);
            }
            if plans.is_empty() {
                return Err(
                    self.error(&order.mode, format!("order mode \"{}\" has no plans", order.mode.get_ref()))
                );
            }
            orders.push(OrderKind { mode: order.mode.into_inner(), plans });
        }
        let ignore = file.ignore;
        if ignore.contains(&IgnoreRule::default()) {
            let message =
                "an [[ignore]] rule is empty: it needs price, product, metadata, account or context";
            return Err(CatalogError { line: 0, message: message.to_owned() });
        }
        Ok(Catalog {
            tiers,
            policy,
            plans,
            packs,
            orders,
            features: kinds,
            default_features,
            products,
            checkout: file.checkout,
            ignore,
            index: self.index,
            learnt: BTreeMap::new(),
        })
    }

    /// Names that a plan or product had before. Each occurs once in a catalog.
    fn formerly(&mut self, names: Vec<Spanned<String>>) -> Result<Vec<String>, CatalogError> {
        let mut checked = Vec::new();
        for name in names {
            self.name("former name", &name)?;
            let line = line_of(self.text, name.span().start);
            if let Some(first) = self.seen.insert((FORMER_NAME, name.get_ref().clone()), line) {
                let message = format!("former name \"{}\" is already used on line {first}", name.get_ref());
                return Err(self.error(&name, message));
            }
            checked.push(name.into_inner());
        }
        Ok(checked)
    }

    /// A plan or product with the name would hide the one that had it before.
    fn no_former_name_is_present<'a>(
        &self,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<(), CatalogError> {
        for name in names {
            if let Some(line) = self.seen.get(&(FORMER_NAME, name.clone())) {
                let message = format!("former name \"{name}\" is the name of a plan or product");
                return Err(CatalogError { line: *line, message });
            }
        }
        Ok(())
    }

    fn days(&self, what: &str, days: Option<&Spanned<i64>>) -> Result<i64, CatalogError> {
        Ok(i64::try_from(self.number_or(what, days, MAX_EXPIRES_DAYS, 0)?).unwrap_or(0))
    }

    /// A rollover that carries nothing counts as no rollover.
    fn rollover(&self, rollover: Option<Spanned<Rollover>>) -> Result<Option<Rollover>, CatalogError> {
        let Some(rollover) = rollover else { return Ok(None) };
        let Rollover { percent, max, periods } = *rollover.get_ref();
        for (what, value, from, to) in [
            ("percent", percent, 0, 100),
            ("max", max, 0, MAX_CREDITS),
            ("periods", periods, 1, MAX_ROLLOVER_PERIODS),
        ] {
            if !(from..=to).contains(&value) {
                let message = format!("rollover's {what} is {value}; it must be between {from} and {to}");
                return Err(self.error(&rollover, message));
            }
        }
        Ok(Some(*rollover.get_ref()).filter(|_| percent > 0 && max > 0))
    }

    fn amount(&self, amount: Option<&Spanned<i64>>) -> Result<Option<u64>, CatalogError> {
        amount.map(|amount| self.number("amount", amount, MAX_CREDITS)).transpose()
    }

    /// Stripe's currencies are ISO codes in lower case.
    fn currency(&self, currency: Option<Spanned<String>>) -> Result<Option<String>, CatalogError> {
        match currency {
            Some(code)
                if code.get_ref().len() != 3 || !code.get_ref().bytes().all(|b| b.is_ascii_lowercase()) =>
            {
                Err(self.error(&code, format!("currency \"{}\" is no code such as usd", code.get_ref())))
            }
            currency => Ok(currency.map(Spanned::into_inner)),
        }
    }

    fn error<T>(&self, place: &Spanned<T>, message: impl Into<String>) -> CatalogError {
        CatalogError { line: line_of(self.text, place.span().start), message: message.into() }
    }

    fn name(&self, what: &str, name: &Spanned<String>) -> Result<(), CatalogError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let value = name.get_ref();
        if value.is_empty() || value.len() > 64 || !value.chars().all(plain) {
            return Err(self.error(
                name,
                format!("{what} \"{value}\" must be 1 to 64 letters, digits, '_', '-' or '.'"),
            ));
        }
        Ok(())
    }

    fn number(&self, what: &str, value: &Spanned<i64>, max: u64) -> Result<u64, CatalogError> {
        match u64::try_from(*value.get_ref()) {
            Ok(number) if number <= max => Ok(number),
            _ => {
                Err(self
                    .error(value, format!("{what} is {}; it must be between 0 and {max}", value.get_ref())))
            }
        }
    }

    fn number_or(
        &self,
        what: &str,
        value: Option<&Spanned<i64>>,
        max: u64,
        default: u64,
    ) -> Result<u64, CatalogError> {
        value.map_or(Ok(default), |value| self.number(what, value, max))
    }

    /// By what an offer is found at Stripe.
    fn sold_as(
        &mut self,
        name: &Spanned<String>,
        prices: Option<Names>,
        lookup_keys: Option<Names>,
        stripe_products: Option<Names>,
    ) -> Result<SoldAs, CatalogError> {
        let sold_as = SoldAs {
            lookup_keys: self.names("lookup key", lookup_keys.as_ref())?,
            stripe_products: self.names("Stripe product", stripe_products.as_ref())?,
            prices: self.names("price", prices.as_ref())?,
        };
        if sold_as == SoldAs::default() {
            let message = format!(
                "\"{}\" is sold by nothing: give it prices, lookup_keys or stripe_products of Stripe",
                name.get_ref()
            );
            return Err(match prices {
                Some(prices) => self.error(&prices, message),
                None => self.error(name, message),
            });
        }
        Ok(sold_as)
    }

    /// Names of Stripe's things. Each occurs once in a catalog.
    fn names(&mut self, what: &'static str, names: Option<&Names>) -> Result<Vec<String>, CatalogError> {
        let mut checked = Vec::new();
        for name in names.into_iter().flat_map(|names| names.get_ref()) {
            let value = name.get_ref();
            if value.is_empty()
                || value.len() > 255
                || value.contains('#')
                || value.chars().any(char::is_control)
            {
                return Err(self.error(name, format!("{what} \"{value}\" is no id of Stripe's")));
            }
            let line = line_of(self.text, name.span().start);
            if let Some(first) = self.seen.insert((what, value.clone()), line) {
                return Err(self.error(name, format!("{what} \"{value}\" is already used on line {first}")));
            }
            checked.push(value.clone());
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[tiers]\nfree = 0\npro = 1\n[policy]\ndefault_tier = \"free\"\n\
        [[plan]]\nname = \"pro\"\ntier = \"pro\"\ncredits = 5000\nprices = [\"price_a\"]\n\
        [[pack]]\nname = \"p\"\ncredits = 10\nprices = [\"price_b\"]\n\
        [[order]]\nmode = \"dfy\"\nplans = { starter = { revisions = 2 } }\n";

    #[test]
    fn a_valid_catalog_is_indexed_and_has_the_documented_defaults() {
        let catalog = Catalog::parse(GOOD).unwrap();
        let plan = catalog.plan_of_price("price_a").unwrap();
        assert_eq!(
            (plan.name.as_str(), plan.rank, plan.credits, plan.trial_credits, plan.per),
            ("pro", 1, 5000, 5000, Per::Subscription)
        );
        assert!(
            matches!(catalog.offer("price_b", None, None), Ok(Some(Offer::Pack(pack))) if pack.credits == 10)
        );
        assert!(catalog.plan_of_price("price_b").is_none());
        assert_eq!(
            catalog.order("dfy").unwrap().plans["starter"],
            OrderPlan { revisions: 2, deadline_days: 0, prices: Vec::new() }
        );
        assert_eq!(
            (catalog.policy.signup_credits, catalog.policy.addons, catalog.policy.past_due_grace_days),
            (500, Addons::Reset, 7)
        );
        assert_eq!((catalog.plan("pro"), catalog.plan("p"), catalog.default_rank()), (Some(plan), None, 0));
        let other = Catalog::parse(&GOOD.replace("free = 0\n", "free = 3\n")).unwrap();
        assert_eq!(other.default_rank(), 3);
    }

    #[test]
    fn a_plan_is_found_by_a_name_that_it_had_before() {
        let renamed = GOOD.replacen("name = \"pro\"\n", "name = \"plus\"\nformerly = [\"pro\"]\n", 1);
        let catalog = Catalog::parse(&renamed).unwrap();
        let name = |name: &str| catalog.plan(name).map(|plan| plan.name.as_str());
        assert_eq!([name("plus"), name("pro"), name("other")], [Some("plus"), Some("plus"), None]);
    }

    #[test]
    fn a_rollover_of_nothing_is_none() {
        let rollover = |fields: &str| {
            let text =
                GOOD.replacen("credits = 5000\n", &format!("credits = 5000\nrollover = {{ {fields} }}\n"), 1);
            Catalog::parse(&text).unwrap().plan("pro").unwrap().rollover.is_some()
        };
        assert!(rollover("percent = 1, max = 1"));
        assert!(!rollover("percent = 0, max = 1"));
        assert!(!rollover("percent = 1, max = 0"));
    }

    /// A catalog that an older version stored has no `quiet_hours`.
    #[test]
    fn a_stored_catalog_without_quiet_hours_is_read_with_a_day() {
        let mut stored = serde_json::to_value(Catalog::parse(GOOD).unwrap()).unwrap();
        stored["policy"].as_object_mut().unwrap().remove("quiet_hours");
        let catalog: Catalog = serde_json::from_value(stored).unwrap();
        assert_eq!(catalog.policy.quiet_hours, 24);
    }

    #[test]
    fn the_whole_form_of_a_catalog_is_read() {
        let whole = GOOD.replacen(
            "credits = 5000\n",
            "credits = 5000\ntrial_days = 14\namount = 2000\ncurrency = \"usd\"\ninterval = \"month\"\n",
            1,
        ) + "[checkout]\npromotion_codes = true\nlocale = \"de\"\npayment_method_collection = \"if_required\"\n";
        let catalog = Catalog::parse(&whole).unwrap();
        assert_eq!((catalog.plans[0].trial_days, catalog.policy.quiet_hours), (14, 24));
        let checkout = Checkout {
            promotion_codes: true,
            locale: "de".to_owned(),
            payment_method_collection: Collection::IfRequired,
            ..Checkout::default()
        };
        assert_eq!(catalog.checkout, checkout);
        assert_eq!(Catalog::parse(GOOD).unwrap().checkout, Checkout::default());
        for (from, to) in [
            ("\"usd\"", "\"USD\""),
            ("\"month\"", "\"monthly\""),
            ("trial_days = 14", "trial_days = 731"),
            ("locale", "language"),
        ] {
            assert!(Catalog::parse(&whole.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_price_is_found_by_its_id_its_lookup_key_or_its_product() {
        let catalog = Catalog::parse(
            &(GOOD.replacen("prices = [\"price_a\"]", "lookup_keys = [\"pro_monthly\"]", 1)
                + "[[product]]\nname = \"course\"\nstripe_products = [\"prod_1\"]\n"),
        )
        .unwrap();
        let found = |price: &str, key: Option<&str>, product: Option<&str>| match catalog
            .offer(price, key, product)
        {
            Ok(offer) => offer.map_or("nothing".to_owned(), |offer| offer.to_string()),
            Err((one, other)) => format!("{one} and {other}"),
        };
        for (price, key, product, expected) in [
            ("price_b", None, None, "pack \"p\""),
            ("price_x", Some("pro_monthly"), None, "plan \"pro\""),
            ("price_x", None, Some("prod_1"), "product \"course\""),
            ("price_x", Some("other"), Some("prod_2"), "nothing"),
            ("price_b", Some("other"), Some("prod_2"), "pack \"p\""),
            ("price_b", Some("pro_monthly"), None, "pack \"p\" and plan \"pro\""),
            ("price_x", Some("pro_monthly"), Some("prod_1"), "plan \"pro\" and product \"course\""),
        ] {
            assert_eq!(found(price, key, product), expected, "{price} {key:?} {product:?}");
        }
        assert!(catalog.has_lookup_keys() && !Catalog::parse(GOOD).unwrap().has_lookup_keys());
    }

    #[test]
    fn texts_up_to_the_maximum_length_are_accepted() {
        let takes = |from: &str, to: &str| Catalog::parse(&GOOD.replacen(from, to, 1)).is_ok();
        let quoted = |text: String| format!("\"{text}\"");
        for (from, longest, longer) in [
            ("\"p\"", quoted("p".repeat(64)), quoted("p".repeat(65))),
            ("\"price_a\"", quoted("p".repeat(255)), quoted("p".repeat(256))),
        ] {
            assert!(takes(from, &longest) && !takes(from, &longer), "{from}");
        }
        for wrong in ["\"\"", "\"a#b\"", "\"a\\u0007b\""] {
            assert!(!takes("\"price_a\"", wrong), "{wrong}");
        }
        assert!(!takes("\"p\"", "\"a b\"") && !takes("credits = 10", "credits = 1000000000001"));
        assert!(
            Catalog::parse(&GOOD.replacen("credits = 10", "credits = 77", 1))
                .unwrap()
                .pack("p")
                .unwrap()
                .credits
                == 77
        );
    }

    #[test]
    fn a_name_is_unique_within_its_kind() {
        let pack = |name: &str, price: &str| {
            format!("[[pack]]\nname = \"{name}\"\ncredits = 10\nprices = [\"{price}\"]\n")
        };
        let order = |mode: &str| {
            format!("[[order]]\nmode = \"{mode}\"\nplans = {{ starter = {{ revisions = 2 }} }}\n")
        };
        let with = |more: &str| Catalog::parse(&format!("{GOOD}{more}")).map_err(|error| error.message);
        let plan = |name: &str| {
            format!("[[plan]]\nname = \"{name}\"\ntier = \"pro\"\ncredits = 1\nprices = [\"price_p\"]\n")
        };
        assert!(with(&(pack("q", "price_q") + &order("other") + &plan("team"))).is_ok());
        assert!(with(&plan("pro")).unwrap_err().contains("plan \"pro\" occurs twice"));
        assert!(with(&pack("p", "price_q")).unwrap_err().contains("pack \"p\" occurs twice"));
        assert!(with(&order("dfy")).unwrap_err().contains("order mode \"dfy\" occurs twice"));
    }

    #[test]
    fn packs_that_a_renewal_ends_are_a_warning_and_no_error() {
        let warnings = |from: &str, to: &str| Catalog::parse(&GOOD.replacen(from, to, 1)).unwrap().warnings();
        let [warning] = &warnings("", "")[..] else { panic!("one warning") };
        assert!(warning.contains("addons = \"reset\"") && warning.contains("renews"), "{warning}");
        let keep = "[policy]\naddons = \"keep\"\n";
        assert!(warnings("[policy]\n", keep).is_empty());
        let seats = "credits = 5000\nper = \"seat\"\n";
        assert!(warnings("credits = 5000\n", seats).is_empty(), "seats end no packs");
    }

    #[test]
    fn an_error_names_its_file_and_line() {
        let error = |line| CatalogError { line, message: "no".to_owned() };
        assert_eq!(
            (error(7).of_file("a.toml"), error(0).of_file("a.toml")),
            ("a.toml line 7: no".to_owned(), "a.toml: no".to_owned())
        );
        assert_eq!(error(7).to_string(), "catalog.toml line 7: no");
    }

    #[test]
    fn each_mistake_is_an_error_with_its_line() {
        for (from, to, line, says) in [
            ("price_b", "price_a", 14, "already used on line 10"),
            ("tier = \"pro\"", "tier = \"gold\"", 8, "tier \"gold\" is not under [tiers]"),
            ("credits = 5000", "credits = -1", 9, "must be between 0 and"),
            ("credits = 5000", "credits = 1.5", 9, "expected i64"),
            ("credits = 5000", "credit = 5000", 9, "unknown field"),
            ("default_tier = \"free\"", "default_tier = \"none\"", 5, "tier \"none\""),
            ("prices = [\"price_a\"]", "prices = []", 10, "\"pro\" is sold by nothing"),
            ("prices = [\"price_a\"]\n", "", 7, "\"pro\" is sold by nothing"),
            ("credits = 5000\n", "credits = 5000\nformerly = [\"a\", \"a\"]\n", 10, "\"a\" is already used"),
            (
                "credits = 5000\n",
                "credits = 5000\nformerly = [\"pro\"]\n",
                10,
                "\"pro\" is the name of a plan",
            ),
            ("credits = 5000\n", "credits = 5000\nformerly = [\"a b\"]\n", 10, "must be 1 to 64"),
            (
                "credits = 10\n",
                "credits = 10\nlookup_keys = [\"a\", \"a\"]\n",
                14,
                "lookup key \"a\" is already",
            ),
            ("credits = 10\n", "credits = 10\nstripe_products = [\"\"]\n", 14, "Stripe product \"\""),
            ("name = \"p\"", "name = \"\"", 12, "must be 1 to 64"),
            ("credits = 10\n", "credits = 10\nexpires_days = -1\n", 14, "expires_days is -1"),
            ("credits = 5000\n", "credits = 5000\nrefill = \"week\"\n", 10, "unknown variant"),
            (
                "credits = 5000\n",
                "credits = 5000\nrollover = { percent = 101, max = 1 }\n",
                10,
                "rollover's percent is 101; it must be between 0 and 100",
            ),
            (
                "credits = 5000\n",
                "credits = 5000\nrollover = { percent = 1, max = 1, periods = 0 }\n",
                10,
                "rollover's periods is 0",
            ),
        ] {
            let error = Catalog::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.line, line, "{from} -> {to}: {error}");
            assert!(error.message.contains(says), "{from} -> {to}: {error}");
        }
    }
}
