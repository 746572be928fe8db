//! Plays the shared cases as sent, reversed, and shuffled with duplicates.

use reference::{Action, Step, World, judge, law_of_money};
use serde_json::Value;
use std::fs;

/// Cases about things that the judge does not model, with the reason.
const LEFT_OUT: [(&str, &str); 3] = [
    ("ids are taken verbatim", "it is about routes"),
    ("the routes of the source systems", "it is about routes"),
    ("a paid order has its fields", "it is about the fields of an order"),
];

/// Every case was written with this moment as now.
const NOW: i64 = 1_795_000_000;

/// A case with its placeholders filled: `"@-86400"` is a time relative to now.
fn fill(v: &Value) -> Value {
    match v {
        Value::String(s) => match s.strip_prefix('@').and_then(|n| n.parse::<i64>().ok()) {
            Some(offset) => Value::from(NOW + offset),
            None => Value::from(s.replace("NONCE", "n1").replace("USER", "user_n1")),
        },
        Value::Array(a) => a.iter().map(fill).collect(),
        Value::Object(o) => {
            let key = |k: &String| k.replace("NONCE", "n1").replace("USER", "user_n1");
            Value::Object(o.iter().map(|(k, v)| (key(k), fill(v))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => v.clone(),
    }
}

fn cases() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../cases");
    let mut paths: Vec<_> = fs::read_dir(folder).expect("the cases").flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    let read = |p| serde_json::from_str(&fs::read_to_string(p).expect("a case")).expect("JSON");
    paths.into_iter().map(|p| fill(&read(p))).collect()
}

fn name(case: &Value) -> &str {
    case["name"].as_str().expect("a name")
}

/// A small generator of numbers, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % n
    }

    fn shuffle(&mut self, events: &mut [Value]) {
        for i in (1..events.len()).rev() {
            events.swap(i, self.below(i + 1));
        }
    }
}

/// The steps of a case. Order 0 is as sent, 1 reversed, any other shuffled with duplicates.
fn steps(case: &Value, order: u64) -> Vec<Step> {
    let mut dice = Dice(order);
    let mut steps = Vec::new();
    for step in case["steps"].as_array().expect("steps") {
        let mut push = |action| steps.push(Step { at: NOW, action });
        let user = String::from("user_n1");
        if let Some(events) = step["send"].as_array() {
            let mut events = events.clone();
            match order {
                _ if step["any_order"] != true => {}
                0 => {}
                1 => events.reverse(),
                _ => {
                    dice.shuffle(&mut events);
                    let again = dice.below(events.len());
                    events.push(events[again].clone());
                }
            }
            events.into_iter().for_each(|e| push(Action::Send(e)));
        } else if let Some(amount) = step["spend"].as_i64() {
            push(Action::Spend { user, amount });
        } else if step["fix"].is_object() {
            push(Action::Fix { user, body: step["fix"].clone() });
        } else {
            panic!("{}: an unknown step: {step}", name(case));
        }
    }
    steps
}

fn play(case: &Value, order: u64) -> World {
    judge(case["catalog"].as_str().expect("a catalog"), &steps(case, order), NOW)
}

/// What differs between the world and what the case expects.
fn differences(case: &Value, world: &World, sent: &[Step]) -> Vec<String> {
    let mut bad = Vec::new();
    let expect = &case["expect"];
    let user = world.users.get("user_n1");
    let mut check = |what: &str, got: Value, want: &Value| {
        if got != *want {
            bad.push(format!("{what}: {got} instead of {want}"));
        }
    };
    if !expect["tier"].is_null() {
        check("tier", user.map(|u| u.tier.clone()).into(), &expect["tier"]);
    }
    if !expect["credits"].is_null() {
        check("credits", user.map(|u| u.credits).into(), &expect["credits"]);
    }
    for (other, want) in expect["others"].as_object().into_iter().flatten() {
        let got = world.users.get(other).map(|u| vec![Value::from(u.tier.clone()), u.credits.into()]);
        check(other, got.into(), want);
    }
    if let Some(want) = expect["order"].get("status") {
        let status = user.and_then(|u| u.orders.values().next());
        check("order", status.cloned().into(), want);
    }
    for (kind, want) in expect["log"].as_object().into_iter().flatten() {
        for step in sent {
            let Action::Send(event) = &step.action else { continue };
            let outcome = &world.outcomes[event["id"].as_str().expect("an id")];
            let want = want.as_array().expect("outcomes");
            if event["type"] == **kind && !want.iter().any(|w| w == outcome.status) {
                bad.push(format!("{kind} ended {} instead of {want:?}", outcome.status));
            }
        }
    }
    bad
}

#[test]
fn every_case_ends_as_expected_in_every_order() {
    let mut bad = Vec::new();
    let mut played = 0;
    for case in cases() {
        if LEFT_OUT.iter().any(|(n, _)| *n == name(&case)) {
            continue;
        }
        for order in 0..20 {
            let world = play(&case, order);
            played += 1;
            for d in differences(&case, &world, &steps(&case, order)) {
                bad.push(format!("{} (order {order}): {d}\n{world:?}", name(&case)));
            }
        }
    }
    assert!(bad.is_empty(), "{} differences:\n{}", bad.len(), bad.join("\n"));
    assert!(played >= 38 * 20, "only {played} were played");
}

#[test]
fn the_cases_left_out_exist() {
    let all = cases();
    for (left_out, reason) in LEFT_OUT {
        assert!(all.iter().any(|c| name(c) == left_out), "{left_out} ({reason}) is no case");
    }
}

#[test]
fn the_law_of_money_holds_under_on_payment() {
    for mut case in cases() {
        if LEFT_OUT.iter().any(|(n, _)| *n == name(&case)) {
            continue;
        }
        let catalog = case["catalog"].as_str().expect("a catalog");
        if !catalog.contains("plan_change") {
            case["catalog"] = catalog.replace("[policy]", "[policy]\nplan_change = \"on_payment\"").into();
        }
        for order in 0..4 {
            let world = play(&case, order);
            assert_eq!(law_of_money(&world), Ok(()), "{}", name(&case));
        }
    }
}
