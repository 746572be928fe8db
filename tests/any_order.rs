//! Any order, any number of times: the events of whole lives are folded as they happened and as they might
//! arrive, and must end alike.
//!
//! A case is one life of `local::life` and one order of arrival: shuffled, reversed, swapped here and there
//! or with one event delayed to the end, some events twice. The life is cut into phases at a few acts; events
//! move within their phase, credits are spent between phases, and the account is compared at each cut.
//! Invariants are checked after every event; in a part of the cases credits are also spent between any two
//! events, and only the invariants are checked.
//!
//! `TALLYHOOK_CASES` is the number of cases (10,000), `TALLYHOOK_SEED` the first seed (0). A failing case is
//! shrunk by leaving events out, printed, and written to `tests/regressions`; the files there are run first.

mod model;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

use local::life::{Life, Options, Truth};
use serde_json::{Value, json};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::event::{Event, Object, SubscriptionStatus};

use self::model::Model;
use self::world::{Seen, World};

/// Trials are worth less than paid periods, so that the two cannot be mistaken for each other.
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
prices = ["price_pro"]
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

/// Cases made of each life.
const ORDERS: u64 = 10;

/// One thing that reaches the system.
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

/// Events and the two orders that must end alike.
#[derive(Clone)]
struct Case {
    keep_addons: bool,
    /// What the documents of the life are worth, by ledger key; `None` where the life is not known.
    worths: Option<BTreeMap<String, u64>>,
    bodies: Vec<String>,
    events: Vec<Event>,
    in_order: Vec<Step>,
    arrived: Vec<Step>,
    /// Whether add-ons may arrive after the reset that ended them: then only the bounds of what is left of
    /// them are checked.
    late_addons: bool,
}

fn catalog(keep_addons: bool) -> &'static Catalog {
    static KEEP: LazyLock<Catalog> = LazyLock::new(|| Catalog::parse(CATALOG).unwrap());
    static RESET: LazyLock<Catalog> =
        LazyLock::new(|| Catalog::parse(&CATALOG.replace("\"keep\"", "\"reset\"")).unwrap());
    if keep_addons { &KEEP } else { &RESET }
}

impl Case {
    /// Runs both orders; the error says what is wrong.
    fn run(&self) -> Result<(), String> {
        let catalog = catalog(self.keep_addons);
        let expected = self.fold(&self.in_order, catalog, true)?;
        let seen = self.fold(&self.arrived, catalog, false)?;
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
            } else if expected == seen {
                continue;
            }
            return Err(format!("diverged at cut {number}\n in order: {expected:#?}\n arrived:  {seen:#?}"));
        }
        Ok(())
    }

    fn fold(&self, steps: &[Step], catalog: &Catalog, is_in_order: bool) -> Result<Vec<Seen>, String> {
        let mut world = World::new(catalog, &self.events, self.worths.as_ref());
        let mut seen = Vec::new();
        for step in steps {
            let done = match step {
                Step::Event(index) => world.deliver(*index),
                Step::Signup => world.sign_up(),
                Step::Spend(part) => world.spend(*part),
                Step::Cut(part) => {
                    seen.push(world.seen());
                    world.spend(*part)
                }
            };
            let order = if is_in_order { "in order" } else { "arrived" };
            done.map_err(|error| format!("{error}\n after {step:?} ({order})"))?;
        }
        seen.push(world.seen());
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
    fn tell(&self, life: Option<&Life>) -> String {
        let mut text = String::new();
        for (name, steps) in [("in order", &self.in_order), ("arrived", &self.arrived)] {
            writeln!(text, "{name} (add-ons are {}):", if self.keep_addons { "kept" } else { "reset" })
                .unwrap();
            for step in steps {
                let line = match (step, life) {
                    (Step::Event(index), Some(life)) => life.describe(&life.events[*index]),
                    (Step::Event(index), None) => {
                        format!("{} {}", self.events[*index].kind, self.events[*index].id)
                    }
                    (other, _) => format!("{other:?}"),
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
        let bodies: Vec<Value> =
            used.iter().map(|&index| serde_json::from_str(&self.bodies[index]).unwrap()).collect();
        json!({
            "keep_addons": self.keep_addons, "late_addons": self.late_addons, "worths": self.worths,
            "in_order": steps(&self.in_order), "arrived": steps(&self.arrived), "events": bodies,
        })
    }

    fn from_json(value: &Value) -> Self {
        let bodies: Vec<String> = value["events"].as_array().unwrap().iter().map(Value::to_string).collect();
        let steps = |name: &str| -> Vec<Step> {
            let step = |step: &Value| match (step.as_u64(), step["spend"].as_u64(), step["cut"].as_u64()) {
                (Some(index), _, _) => Step::Event(usize::try_from(index).unwrap()),
                (_, Some(part), _) => Step::Spend(part),
                (_, _, Some(part)) => Step::Cut(part),
                _ => Step::Signup,
            };
            value[name].as_array().unwrap().iter().map(step).collect()
        };
        let events =
            bodies.iter().map(|body| tallyhook_core::event::read(body.as_bytes()).unwrap()).collect();
        let flag = |name: &str| value[name] == json!(true);
        Self {
            keep_addons: flag("keep_addons"),
            worths: serde_json::from_value(value["worths"].clone()).unwrap(),
            bodies,
            events,
            in_order: steps("in_order"),
            arrived: steps("arrived"),
            late_addons: flag("late_addons"),
        }
    }
}

/// What each ledger key of a life is worth at most.
fn worths(life: &Life) -> BTreeMap<String, u64> {
    let mut worths = BTreeMap::from([("signup".to_owned(), 500)]);
    for (_, truth) in &life.truths {
        let (key, credits) = match truth {
            Truth::Opened { key, credits, .. } | Truth::Bought { key, credits, .. } => {
                (key.clone(), *credits)
            }
            Truth::Took { subscription, price, start, credits, .. }
            | Truth::InForce { subscription, price, start, credits } => {
                (format!("plan#{subscription}#{price}#{start}"), *credits)
            }
            Truth::Recorded { key } => (key.clone(), 0),
            Truth::Ended { .. } | Truth::Reversed { .. } => continue,
        };
        let worth = worths.entry(key).or_default();
        *worth = credits.max(*worth);
    }
    // A trial told first by a later state of it is booked as that: its changes of plan count for its own key
    // too.
    for (_, truth) in &life.truths {
        let Truth::Took { subscription, start, credits, .. } = truth else { continue };
        for (_, opened) in &life.truths {
            if let Truth::Opened { subscription: of, start: then, key, paid: 0, .. } = opened
                && (of, then) == (subscription, start)
                && let Some(worth) = worths.get_mut(key)
            {
                *worth = (*worth).max(*credits);
            }
        }
    }
    worths
}

/// When an event may end add-ons: the start of the period that it opens.
fn resets(event: &Event) -> Option<i64> {
    match &event.object {
        Object::Invoice(invoice) => {
            invoice.lines.iter().filter(|line| !line.proration).filter_map(|line| line.period_start).max()
        }
        Object::Subscription(it) if it.status == SubscriptionStatus::Trialing => it.period_start(),
        Object::Subscription(_)
        | Object::CheckoutSession(_)
        | Object::Charge(_)
        | Object::Refund(_)
        | Object::Dispute(_)
        | Object::Customer(_)
        | Object::Other => None,
    }
    .map(|start| start.unix())
}

/// The steps of one life in order, cut into phases, and one order in which they may arrive.
fn case(life: &Life, events: &[Event], rng: &mut fastrand::Rng) -> Case {
    let keep_addons = rng.bool();
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
    for (phase, cut) in phases {
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
    let bodies = life.events.iter().map(|sent| sent.body.clone()).collect();
    Case {
        keep_addons,
        worths: Some(worths(life)),
        bodies,
        events: events.to_vec(),
        in_order,
        arrived,
        late_addons,
    }
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

/// Folds a life in order and compares it with the model, act by act.
fn agrees_with_the_model(life: &Life, events: &[Event], rng: &mut fastrand::Rng) -> Result<(), String> {
    let keep_addons = rng.bool();
    let catalog = catalog(keep_addons);
    let worths = worths(life);
    let mut world = World::new(catalog, events, Some(&worths));
    let mut model = Model::new(keep_addons);
    world.sign_up()?;
    for act in 0..life.acts.len() {
        for (index, _) in life.events.iter().enumerate().filter(|(_, sent)| sent.act == act) {
            world.deliver(index)?;
        }
        life.truths.iter().filter(|(of, _)| *of == act).for_each(|(_, truth)| model.fold(truth));
        if world.is_waiting_for_a_user() {
            return Ok(());
        }
        let (seen, expected) = (world.buckets(), model.buckets());
        if seen != expected {
            let what = &life.acts[act].what;
            return Err(format!(
                "the model disagrees after act {act} ({what})\n account: {seen:?}\n model:   {expected:?}"
            ));
        }
        if rng.u8(..3) == 0 {
            let spent = world.spend_some(rng.u64(..101))?;
            model.spend(spent);
        }
    }
    if world.grant_keys() != model.keys {
        return Err(format!(
            "the model has other keys\n account: {:?}\n model:   {:?}",
            world.grant_keys(),
            model.keys
        ));
    }
    for standing in &life.standings {
        world.agrees_with(standing)?;
    }
    Ok(())
}

fn read(life: &Life) -> Vec<Event> {
    life.events.iter().map(|sent| tallyhook_core::event::read(sent.body.as_bytes()).unwrap()).collect()
}

fn options(rng: &mut fastrand::Rng) -> Options {
    Options { acts: rng.usize(2..26), noise: rng.u8(..8) == 0 }
}

/// One life and its cases; the text of the first failure.
fn try_life(seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7a11_7a11);
    let catalog = catalog(true);
    let options = options(&mut rng);
    let life = Life::new(seed, catalog, options);
    if life.events.is_empty() {
        return Ok(());
    }
    let events = read(&life);
    let state = rng.get_seed();
    if agrees_with_the_model(&life, &events, &mut rng).is_err() {
        // The acts of a life do not depend on how many follow: the shortest beginning that fails.
        for acts in 1..=options.acts {
            let life = Life::new(seed, catalog, Options { acts, ..options });
            let mut rng = fastrand::Rng::with_seed(state);
            if let Err(error) = agrees_with_the_model(&life, &read(&life), &mut rng) {
                return Err(format!("life {seed} in order: {error}\n{life}"));
            }
        }
    }
    for _ in 0..ORDERS {
        let case = case(&life, &events, &mut rng);
        if case.run().is_err() {
            let shrunk = case.shrink();
            let error = shrunk.run().err().unwrap_or_default();
            let file = regressions().join(format!("life-{seed}.json"));
            std::fs::write(&file, serde_json::to_string_pretty(&shrunk.to_json()).unwrap()).unwrap();
            return Err(format!(
                "life {seed}: {error}\n{}written to {}",
                shrunk.tell(Some(&life)),
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
fn cases_that_once_failed_end_alike() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(regressions()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "json")) {
        let case = Case::from_json(&serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap());
        case.run().unwrap_or_else(|error| panic!("{}: {error}\n{}", file.display(), case.tell(None)));
    }
}

#[test]
fn a_life_ends_alike_in_any_order_and_any_number_of_deliveries() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let lives = number("TALLYHOOK_CASES", 10_000).div_ceil(ORDERS);
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
    let catalog = catalog(true);
    for seed in 0..50 {
        let options = Options { acts: 20, noise: true };
        assert_eq!(Life::new(seed, catalog, options).events, Life::new(seed, catalog, options).events);
    }
}
