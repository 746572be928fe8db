//! The events of whole lives are folded in the order in which they happened and in a random order of arrival,
//! with repetitions. Both must give the same account.
//!
//! A case is one life of `local::life` and one order of arrival: shuffled, reversed, swapped here and there
//! or with one event delayed to the end, some events twice. The life is cut into phases at a few acts; events
//! move within their phase, credits are spent between phases, and the account is compared at each cut.
//! Invariants are checked after every event. At the end of each order the account is compared with
//! `reference::judge`, which reads the same events by the same rules in another way. In a part of the cases
//! credits are also spent between any two events; then the two orders are the same, and the judge alone is
//! compared.
//!
//! Drawn in every life: plan changes (billed at once, with the next invoice, with a new period, declined),
//! seats, trials, unpaid first invoices, renewals that fail, packs, orders, refunds and disputes of any
//! payment. Drawn in a third of the lives: items with intervals of their own, gained, lost and swapped;
//! prorated first invoices and starts without one; backdated starts; quotes; extended trials and trials on a
//! paid item; periods that are billed in advance; coupons of 100 %; invoices that are paid by balance, half by
//! balance or out of band; invoices by e-mail that fall overdue; paused collection. Not drawn: credit notes
//! (they raise a refund or nothing), metered lines, thresholds, packs on invoices, plans for life, several
//! owners.
//!
//! Under `on_payment` the law of money is checked. After every event no item may hold more than its
//! subscription's largest paid line or trial is worth. The judge's buckets hold at most what is paid for or
//! free. In half of these cases every payment of the life is refunded as well, in any order, and what was
//! paid for must be gone.
//!
//! `TALLYHOOK_CASES` is the number of cases (5,000), `TALLYHOOK_SEED` the first seed (0). A failing case is
//! shrunk by leaving events out, printed, and written to `tests/regressions`; the files there are run first.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

use local::life::{Life, Options};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::{Event, Object};
use tallyhook_core::timestamp::Timestamp;

use self::world::{VisibleAccount, World};

/// Trials grant less than paid periods, so that a test tells them apart.
const CATALOG: &str = r#"
[tiers]
free = 0
pro = 1
business = 2
[policy]
default_tier = "free"
signup_credits = 500
addons = "keep"
[[plan]]
name = "pro"
tier = "pro"
credits = 5000
trial_credits = 2000
prices = ["price_pro", "price_pro_year"]
[[plan]]
name = "business"
tier = "business"
credits = 20000
prices = ["price_business"]
[[plan]]
name = "team"
tier = "business"
credits = 1000
trial_credits = 300
per = "seat"
prices = ["price_team"]
[[pack]]
name = "small"
credits = 100
prices = ["price_small"]
[[pack]]
name = "large"
credits = 3000
prices = ["price_large"]
[[order]]
mode = "dfy"
plans = { starter = { revisions = 1 } }
"#;

/// The number of cases made from each life.
const ORDERS: u64 = 10;

/// One input of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The event of this number is delivered.
    Event(usize),
    /// The app registers the user.
    Signup,
    /// The app spends this part of the balance, in hundredths.
    Spend(u64),
    /// The account is compared, then this part of the balance is spent.
    Cut(u64),
}

/// Events, and two orders of them that must give the same account.
#[derive(Clone)]
struct Case {
    policy: Policy,
    bodies: Vec<Value>,
    events: Vec<Event>,
    in_order: Vec<Step>,
    arrived: Vec<Step>,
    /// Whether add-ons may arrive after the reset that ended them. Then only bounds of their rest are
    /// checked.
    late_addons: bool,
}

/// The policies that a case is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Policy {
    keep_addons: bool,
    on_payment: bool,
    each_trial: bool,
}

impl Policy {
    fn random(rng: &mut fastrand::Rng) -> Self {
        Self { keep_addons: rng.bool(), on_payment: rng.bool(), each_trial: rng.u8(..4) == 0 }
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self {
            keep_addons: bits & 1 > 0,
            on_payment: bits & 2 > 0,
            each_trial: bits & 4 > 0,
        })
    }

    fn text(self) -> String {
        let addons = if self.keep_addons { "keep" } else { "reset" };
        let change = if self.on_payment { "on_payment" } else { "at_once" };
        let trials = if self.each_trial { "each" } else { "once" };
        let policy = format!("addons = \"{addons}\"\nplan_change = \"{change}\"\ntrials = \"{trials}\"");
        CATALOG.replace("addons = \"keep\"", &policy)
    }

    /// The catalog and its text.
    fn catalog(self) -> &'static (Catalog, String) {
        static ALL: LazyLock<BTreeMap<Policy, (Catalog, String)>> = LazyLock::new(|| {
            let parsed = |policy: Policy| (Catalog::parse(&policy.text()).unwrap(), policy.text());
            Policy::all().map(|policy| (policy, parsed(policy))).collect()
        });
        &ALL[&self]
    }
}

impl Case {
    /// Runs both orders; the error says what is wrong.
    fn run(&self) -> Result<(), String> {
        let expected = self.fold(&self.in_order, true)?;
        let seen = self.fold(&self.arrived, false)?;
        for (number, (expected, seen)) in expected.iter().zip(&seen).enumerate() {
            if self.late_addons && seen.late_addons > 0 {
                if seen.addon < expected.addon || seen.addon > expected.addon + seen.late_addons {
                    return Err(format!(
                        "late add-ons at cut {number}: {} instead of {}",
                        seen.addon, expected.addon
                    ));
                }
                if expected.without_addons() == seen.without_addons() {
                    continue;
                }
            } else if expected.is_like(seen) {
                continue;
            }
            return Err(format!("diverged at cut {number}\n in order: {expected:#?}\n arrived:  {seen:#?}"));
        }
        Ok(())
    }

    fn fold(&self, steps: &[Step], is_in_order: bool) -> Result<Vec<VisibleAccount>, String> {
        let (catalog, text) = self.policy.catalog();
        let mut world = World::new(catalog, &self.events);
        let order = if is_in_order { "in order" } else { "arrived" };
        let mut seen = Vec::new();
        for step in steps {
            let result = match step {
                Step::Event(index) => world.deliver(*index),
                Step::Signup => world.sign_up(),
                Step::Spend(part) => world.spend(*part),
                Step::Cut(part) => {
                    seen.push(world.visible_account());
                    world.spend(*part)
                }
            };
            result.map_err(|error| format!("{error}\n after {step:?} ({order})"))?;
        }
        if self.policy.on_payment {
            world.refunds_leave_nothing(&self.bodies)?;
        }
        if !is_in_order {
            world.agrees_with_the_judge(text, &self.bodies, self.policy.on_payment)?;
        }
        seen.push(world.visible_account());
        Ok(seen)
    }

    /// Leaves out events, as long as the case still fails in the same way.
    fn shrink(mut self) -> Self {
        let kind = |error: String| error.split([':', '\n']).next().map(str::to_owned);
        let failure = self.run().err().and_then(kind);
        let fails = |case: &Self| case.run().err().and_then(kind) == failure;
        loop {
            let before = self.in_order.len() + self.arrived.len();
            for index in 0..self.events.len() {
                let mut smaller = self.clone();
                smaller.in_order.retain(|step| *step != Step::Event(index));
                smaller.arrived.retain(|step| *step != Step::Event(index));
                if smaller.arrived.len() < self.arrived.len() && fails(&smaller) {
                    self = smaller;
                }
            }
            for place in (0..self.arrived.len()).rev() {
                let mut smaller = self.clone();
                let step = smaller.arrived.remove(place);
                match step {
                    Step::Event(_) if smaller.arrived.contains(&step) => {}
                    Step::Event(_) => continue,
                    Step::Cut(_) => {
                        let cut =
                            self.arrived[..place].iter().filter(|step| matches!(step, Step::Cut(_))).count();
                        let places = smaller
                            .in_order
                            .iter()
                            .enumerate()
                            .filter(|(_, step)| matches!(step, Step::Cut(_)));
                        if let Some(place) = places.map(|(place, _)| place).nth(cut) {
                            smaller.in_order.remove(place);
                        }
                    }
                    Step::Signup | Step::Spend(_) => smaller.in_order.retain(|other| *other != step),
                }
                if fails(&smaller) {
                    self = smaller;
                }
            }
            if self.in_order.len() + self.arrived.len() == before {
                return self;
            }
        }
    }

    /// The steps in words.
    fn describe(&self, life: Option<&Life>) -> String {
        let mut text = String::new();
        for (name, steps) in [("in order", &self.in_order), ("arrived", &self.arrived)] {
            writeln!(text, "{name}, {:?}:", self.policy).unwrap();
            for step in steps {
                let of_life =
                    |index: usize| life.and_then(|life| Some(life.describe(life.events.get(index)?)));
                let line = match step {
                    Step::Event(index) => of_life(*index).unwrap_or_else(|| {
                        format!("{} {}", self.events[*index].kind, self.events[*index].id)
                    }),
                    other @ (Step::Signup | Step::Spend(_) | Step::Cut(_)) => format!("{other:?}"),
                };
                writeln!(text, "  {line}").unwrap();
            }
        }
        text
    }

    fn to_json(&self) -> Value {
        let used: BTreeSet<usize> = self
            .in_order
            .iter()
            .filter_map(|step| if let Step::Event(index) = step { Some(*index) } else { None })
            .collect();
        let place = |index: usize| used.iter().position(|used| *used == index).unwrap_or(0);
        let steps = |steps: &[Step]| -> Vec<Value> {
            let step = |step: &Step| match step {
                Step::Event(index) => json!(place(*index)),
                Step::Signup => json!("signup"),
                Step::Spend(part) => json!({"spend": part}),
                Step::Cut(part) => json!({"cut": part}),
            };
            steps.iter().map(step).collect()
        };
        let bodies: Vec<&Value> = used.iter().map(|&index| &self.bodies[index]).collect();
        json!({
            "keep_addons": self.policy.keep_addons, "on_payment": self.policy.on_payment,
            "each_trial": self.policy.each_trial, "late_addons": self.late_addons,
            "in_order": steps(&self.in_order), "arrived": steps(&self.arrived), "events": bodies,
        })
    }

    fn from_json(value: &Value) -> Self {
        let bodies = value["events"].as_array().unwrap().clone();
        let steps = |name: &str| -> Vec<Step> {
            let step = |step: &Value| match (step.as_u64(), step["spend"].as_u64(), step["cut"].as_u64()) {
                (Some(index), _, _) => Step::Event(usize::try_from(index).unwrap()),
                (_, Some(part), _) => Step::Spend(part),
                (_, _, Some(part)) => Step::Cut(part),
                _ => Step::Signup,
            };
            value[name].as_array().unwrap().iter().map(step).collect()
        };
        let read = |body: &Value| tallyhook_core::event::read(body.to_string().as_bytes()).unwrap();
        let events = bodies.iter().map(read).collect();
        let flag = |name: &str| value[name] == json!(true);
        Self {
            policy: Policy {
                keep_addons: flag("keep_addons"),
                on_payment: flag("on_payment"),
                each_trial: flag("each_trial"),
            },
            bodies,
            events,
            in_order: steps("in_order"),
            arrived: steps("arrived"),
            late_addons: flag("late_addons"),
        }
    }
}

/// When an event may end add-ons: the start of the period that it may open.
fn resets(event: &Event) -> Option<i64> {
    let Object::Invoice(invoice) = &event.object else { return None };
    invoice.lines.iter().filter_map(|line| line.period_start).max().map(Timestamp::unix)
}

/// The steps of one life in order, cut into phases, and one order in which they may arrive.
fn case(life: &Life, events: &[Event], rng: &mut fastrand::Rng) -> Case {
    let policy = Policy::random(rng);
    let keep_addons = policy.keep_addons;
    let late_addons = !keep_addons && rng.bool();
    let spends_anywhere = rng.u8(..6) == 0;
    let cuts: BTreeSet<usize> = (0..rng.usize(..4)).map(|_| rng.usize(..life.acts.len())).collect();
    let mut phases: Vec<(Vec<Step>, Option<Step>)> = Vec::new();
    let mut phase = Vec::new();
    for (index, sent) in life.events.iter().enumerate() {
        if index > 0 && life.events[index - 1].act != sent.act && cuts.contains(&sent.act) {
            let part = if late_addons { 0 } else { rng.u64(..101) };
            phases.push((std::mem::take(&mut phase), Some(Step::Cut(part))));
        }
        phase.push(Step::Event(index));
    }
    phases.push((phase, None));
    let signup = rng.usize(..phases.len() + 1);
    if let Some((phase, _)) = phases.get_mut(signup) {
        phase.insert(rng.usize(..phase.len() + 1), Step::Signup);
    }
    let (mut in_order, mut arrived) = (Vec::new(), Vec::new());
    for (mut phase, cut) in phases {
        if !keep_addons {
            // A period that is billed in advance opens at once here: the clock is at the end of the life.
            addons_first(&mut phase, events);
        }
        let mut mixed = phase.clone();
        match rng.u8(..8) {
            0..3 => rng.shuffle(&mut mixed),
            3 => mixed.reverse(),
            4..6 => {
                for _ in 0..mixed.len() / 3 + 1 {
                    let place = rng.usize(..mixed.len());
                    let other = (place + rng.usize(1..4)).min(mixed.len() - 1);
                    mixed.swap(place, other);
                }
            }
            6 => {
                let late = mixed.remove(rng.usize(..mixed.len()));
                mixed.push(late);
            }
            _ => {
                // The events of one act in any order, act after act.
                let act =
                    |step: &Step| if let Step::Event(index) = step { life.events[*index].act } else { 0 };
                rng.shuffle(&mut mixed);
                mixed.sort_by_key(act);
            }
        }
        for _ in 0..rng.usize(..mixed.len() / 2 + 2) {
            let again = mixed[rng.usize(..mixed.len())];
            let place = rng.usize(..mixed.len() + 1);
            mixed.insert(place, again);
        }
        if !keep_addons && !late_addons {
            addons_first(&mut mixed, events);
        }
        if spends_anywhere {
            for _ in 0..mixed.len() / 3 + 1 {
                mixed.insert(rng.usize(..mixed.len() + 1), Step::Spend(rng.u64(..101)));
            }
        }
        in_order.extend(phase);
        arrived.extend(mixed);
        if let Some(cut) = cut {
            in_order.push(cut);
            arrived.push(cut);
        }
    }
    if spends_anywhere {
        in_order.clear();
        arrived.retain(|step| !matches!(step, Step::Cut(_)));
        in_order.clone_from(&arrived);
    }
    let mut bodies: Vec<Value> =
        life.events.iter().map(|sent| serde_json::from_str(&sent.body).unwrap()).collect();
    let mut events = events.to_vec();
    if policy.on_payment && rng.bool() {
        let last = arrived.iter().rposition(|step| matches!(step, Step::Cut(_))).map_or(0, |cut| cut + 1);
        for body in refunds_of_all(life, &bodies) {
            in_order.push(Step::Event(events.len()));
            arrived.insert(rng.usize(last..arrived.len() + 1), Step::Event(events.len()));
            events.push(tallyhook_core::event::read(body.to_string().as_bytes()).unwrap());
            bodies.push(body);
        }
        if spends_anywhere {
            in_order.clone_from(&arrived);
        }
    }
    Case { policy, bodies, events, in_order, arrived, late_addons }
}

/// A refund of what is left of every payment of a life that was not disputed: more than was paid cannot go back.
fn refunds_of_all(life: &Life, bodies: &[Value]) -> Vec<Value> {
    let mut payments: BTreeMap<&str, i64> = BTreeMap::new();
    for body in bodies {
        let object = &body["data"]["object"];
        let amount = ["amount_paid", "amount_total"].iter().find_map(|name| object[*name].as_i64());
        let paid = object["status"] == "paid" || object["payment_status"] == "paid";
        let intent = [&object["payment_intent"], &object["payment"]["payment_intent"]]
            .into_iter()
            .chain([&object["payments"]["data"][0]["payment"]["payment_intent"]])
            .find_map(Value::as_str);
        if let (Some(intent), Some(amount), true) = (intent, amount, paid) {
            payments.insert(intent, amount);
        }
    }
    for body in bodies.iter().filter(|body| body["data"]["object"]["object"] == "dispute") {
        payments.remove(body["data"]["object"]["payment_intent"].as_str().unwrap_or_default());
    }
    let refunds = || {
        let objects = bodies.iter().map(|body| &body["data"]["object"]);
        objects.filter(|object| object["object"] == "refund")
    };
    let failed: BTreeSet<&str> = refunds()
        .filter(|refund| matches!(refund["status"].as_str(), Some("failed" | "canceled")))
        .filter_map(|refund| refund["id"].as_str())
        .collect();
    let mut known = BTreeSet::new();
    for refund in refunds().filter(|refund| refund["status"] == "succeeded") {
        let id = refund["id"].as_str().unwrap_or_default();
        let left = refund["payment_intent"].as_str().and_then(|intent| payments.get_mut(intent));
        if let (Some(left), false, true) = (left, failed.contains(id), known.insert(id)) {
            *left -= refund["amount"].as_i64().unwrap_or(0);
        }
    }
    payments.retain(|_, left| *left > 0);
    let refund = |(intent, amount): (&str, i64)| {
        json!({
            "id": format!("evt_back_{intent}"), "object": "event", "type": "refund.created",
            "api_version": "2025-09-30.clover", "created": life.end, "livemode": false,
            "data": {"object": {
                "id": format!("re_back_{intent}"), "object": "refund", "payment_intent": intent,
                "charge": null, "amount": amount, "currency": "usd", "status": "succeeded", "metadata": {},
            }},
        })
    };
    payments.into_iter().map(refund).collect()
}

/// Delivers each one-time payment before the resets of later periods.
fn addons_first(steps: &mut Vec<Step>, events: &[Event]) {
    let mut place = 0;
    while place < steps.len() {
        let reset = if let Step::Event(index) = steps[place] { resets(&events[index]) } else { None };
        let Some(reset) = reset else {
            place += 1;
            continue;
        };
        let is_before = |step: &Step| match step {
            Step::Event(index) => {
                matches!(events[*index].object, Object::CheckoutSession(_))
                    && events[*index].created.unix() < reset
            }
            Step::Signup | Step::Spend(_) | Step::Cut(_) => false,
        };
        if let Some(later) = steps[place + 1..].iter().position(is_before) {
            let step = steps.remove(place + 1 + later);
            steps.insert(place, step);
        }
        place += 1;
    }
}

fn read(life: &Life) -> Vec<Event> {
    life.events.iter().map(|sent| tallyhook_core::event::read(sent.body.as_bytes()).unwrap()).collect()
}

fn options(rng: &mut fastrand::Rng) -> Options {
    Options { acts: rng.usize(2..26), noise: rng.u8(..8) == 0, rare_shapes: rng.u8(..3) == 0 }
}

/// One life and its cases; the text of the first failure.
fn try_life(seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7a11_7a11);
    let catalog = &Policy::random(&mut rng).catalog().0;
    let life = Life::new(seed, catalog, options(&mut rng));
    if life.events.is_empty() {
        return Ok(());
    }
    let events = read(&life);
    for _ in 0..ORDERS {
        let case = case(&life, &events, &mut rng);
        if let Err(first) = case.run() {
            let shrunk = case.shrink();
            let error = shrunk.run().err().unwrap_or_default();
            let file = regressions().join(format!("life-{seed}.json"));
            std::fs::write(&file, serde_json::to_string_pretty(&shrunk.to_json()).unwrap()).unwrap();
            return Err(format!(
                "life {seed}: {first}\nwith fewer events: {error}\n{}written to {}",
                shrunk.describe(Some(&life)),
                file.display()
            ));
        }
    }
    Ok(())
}

fn regressions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

#[test]
fn cases_that_once_failed_pass() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(regressions()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "json")) {
        let case = Case::from_json(&serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap());
        case.run().unwrap_or_else(|error| panic!("{}: {error}\n{}", file.display(), case.describe(None)));
    }
}

#[test]
fn a_life_ends_alike_in_any_order_and_any_number_of_deliveries() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let lives = number("TALLYHOOK_CASES", 5_000).div_ceil(ORDERS);
    let first = number("TALLYHOOK_SEED", 0);
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let most = usize::try_from(number("TALLYHOOK_FAILURES", 1)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + lives || failures.lock().unwrap().len() >= most {
                        return;
                    }
                    if let Err(failure) = try_life(seed) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn a_life_is_the_same_each_time_it_is_made() {
    let catalog = Catalog::parse(CATALOG).unwrap();
    for seed in 0..50 {
        let options = Options { acts: 20, noise: true, rare_shapes: seed % 2 == 0 };
        assert_eq!(Life::new(seed, &catalog, options).events, Life::new(seed, &catalog, options).events);
    }
}
