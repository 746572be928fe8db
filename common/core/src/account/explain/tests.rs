//! What `check-user` explains about an account, field by field.

use serde_json::{Value, json};

use super::*;
use crate::decide::tests::shapes::{bill, flagged, line};
use crate::decide::tests::{CATALOG, MONTH, P1, P2, Run, Step, changed, items, pack, paid, refunded, sub};

const DAY: i64 = 86_400;

/// `field value rule event ledger-key: why` of each field, after these steps and at this time. All events of
/// the user are known.
fn explained(steps: &[Step], now: i64) -> Vec<String> {
    let run = Run::of(steps);
    let mut account = run.account.clone();
    let catalog = Catalog::parse(CATALOG).unwrap();
    let keys = account.state.explaining_keys(&catalog, Timestamp::from_unix(now));
    account.recorded = run
        .ledger
        .iter()
        .filter(|(key, _)| keys.contains(key))
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect();
    let logged: Vec<LoggedEvent> = steps
        .iter()
        .filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None })
        .map(event)
        .collect();
    let names = |id: &Option<String>| {
        let place = id.as_ref().and_then(|id| logged.iter().position(|event| event.id == *id));
        place.map_or_else(|| "-".to_owned(), |place| format!("#{place}"))
    };
    let line = |explanation: &Explanation| {
        let key = explanation.ledger_key.as_ref().map_or("-", LedgerKey::as_str);
        format!(
            "{} {} {} {} {key}: {}",
            explanation.field,
            explanation.value,
            explanation.rule,
            names(&explanation.event_id),
            explanation.why
        )
    };
    account.explain(&logged, &catalog, Timestamp::from_unix(now)).iter().map(line).collect()
}

fn event(event: &Value) -> LoggedEvent {
    LoggedEvent {
        id: event["id"].as_str().unwrap().to_owned(),
        created: Timestamp::from_unix(event["created"].as_i64().unwrap()),
        kind: event["type"].as_str().unwrap().to_owned(),
        objects: vec![event["data"]["object"]["id"].as_str().unwrap().to_owned()],
    }
}

#[track_caller]
fn check(what: &str, steps: &[Step], now: i64, field: &str, expect: &str) {
    let all = explained(steps, now);
    let found: Vec<&str> =
        all.iter().filter_map(|line| line.strip_prefix(field)?.strip_prefix(' ')).collect();
    assert_eq!(found, [expect], "{what}: {all:#?}");
}

fn subscriber() -> Vec<Step> {
    vec![sub("created", P1, json!({})), paid(P1, "in_1", "subscription_create", "price_pro", P1)]
}

#[test]
fn the_tier_is_explained_by_the_subscriptions_that_do_or_do_not_give_it() {
    let none =
        "free default_tier - -: no subscription is known for this user, so the catalog's default tier holds";
    check("no facts", &[], P1, "tier", none);
    check(
        "a subscriber",
        &subscriber(),
        P1 + 9,
        "tier",
        "pro highest_plan #0 -: sub_1: the subscription is active with plan pro",
    );
    let two = [
        subscriber(),
        vec![sub("created", P1 + 1, json!({"id": "sub_0", "items": items(&[("price_business", 1)], P1)}))],
    ]
    .concat();
    let summary = "business highest_plan #2 -: sub_0: the subscription is active with plan business; nothing \
        else gives a higher tier";
    check("of two", &two, P1 + 9, "tier", summary);
    let lower_first = [
        sub("created", P1, json!({"id": "sub_0"})),
        sub("created", P1 + 1, json!({"items": items(&[("price_business", 1)], P1)})),
    ];
    let summary = "business highest_plan #1 -: sub_1: the subscription is active with plan business; nothing \
        else gives a higher tier";
    check("of two, the lower one first", &lower_first, P1 + 9, "tier", summary);
    let ends = vec![sub("created", P1, json!({"cancel_at": P1 + DAY}))];
    check(
        "one that ends",
        &ends,
        P1 + 9,
        "tier",
        "pro highest_plan #0 -: sub_1: the subscription is active with plan pro",
    );
    let until = "1970-01-02T00:16:40Z ends #0 -: the tier pro ends then unless a new event says otherwise: \
        a planned end, the end of a paid period, or the grace after a failed payment";
    check("and when", &ends, P1 + 9, "access_until", until);
    let nothing = |why: &str| {
        format!(
            "free default_tier #0 -: the catalog's default tier, as no subscription gives access: sub_1 {why}"
        )
    };
    let one = |more: Value| vec![sub("created", P1, more)];
    for (what, more, now, why) in [
        (
            "was cancelled",
            json!({"cancel_at": P1 + DAY}),
            P1 + DAY,
            "(plan pro) was cancelled with the end 1970-01-02T00:16:40Z",
        ),
        (
            "ended",
            json!({"status": "canceled", "ended_at": P1 + 5}),
            P1 + 9,
            "(plan pro) ended at 1970-01-01T00:16:45Z",
        ),
        (
            "is unpaid",
            json!({"status": "unpaid"}),
            P1 + 9,
            "(plan pro) is unpaid, and its paid period is over",
        ),
        (
            "was past due for too long",
            json!({"status": "past_due"}),
            P1 + 5 * DAY,
            "(plan pro) is past_due, and its paid period is over",
        ),
        (
            "has no price that is sold",
            json!({"status": "unpaid", "items": items(&[("price_other", 1)], P1)}),
            P1 + 9,
            "is unpaid with price_other, which is in no plan of the catalog",
        ),
    ] {
        check(what, &one(more), now, "tier", &nothing(why));
    }
    let over = sub("deleted", P1 + DAY, json!({"status": "canceled", "ended_at": P1 + DAY}));
    let renewal = paid(P1 + 9 * DAY, "in_2", "subscription_cycle", "price_pro", P2);
    let paid_late = [subscriber(), vec![over, renewal]].concat();
    let summary = "free default_tier #2 -: the catalog's default tier, as no subscription gives access: \
                   sub_1 ended at 1970-01-02T00:16:40Z and an invoice of it was paid after that: refund the \
                   payment, or give the plan with fix-user complimentary";
    check("was paid after its end", &paid_late, P2 + DAY, "tier", summary);
    let at_end = sub("deleted", P1 + DAY, json!({"status": "canceled", "ended_at": P1 + DAY}));
    let renewal = paid(P1 + DAY, "in_2", "subscription_cycle", "price_pro", P1);
    let summary = nothing("(plan pro) ended at 1970-01-02T00:16:40Z").replace("#0", "#1");
    check(
        "was paid as it ended",
        &[one(json!({})), vec![at_end, renewal]].concat(),
        P2 + DAY,
        "tier",
        &summary,
    );
    let two =
        [sub("created", P1, json!({"cancel_at": P1 + DAY})), sub("created", P1 + 1, json!({"id": "sub_2"}))];
    let summary = "pro highest_plan #1 -: sub_2: the subscription is active with plan pro; nothing else gives \
        a higher tier";
    check("of two, as the first one ends", &two, P1 + DAY, "tier", summary);
    let grace = one(json!({"status": "past_due"}));
    check(
        "in grace",
        &grace,
        P1 + 9,
        "tier",
        "pro highest_plan #0 -: sub_1: the subscription is past_due; plan pro has 5 days of grace",
    );
}

#[test]
fn a_status_is_explained_by_the_event_or_payment_that_is_newest() {
    let field = "subscription sub_1";
    check(
        "an active one",
        &subscriber(),
        P1 + 9,
        field,
        "active newest_event #0 -: the newest event of it says so",
    );
    let paid_only = &subscriber()[1..];
    let why = "unknown payment_only - -: only payments of it are known, no event of the subscription \
        itself: it counts while a paid period runs";
    check("paid", paid_only, P1 + 9, field, why);
    let late =
        [vec![sub("created", P1, json!({"status": "incomplete"}))], subscriber()[1..].to_vec()].concat();
    check(
        "paid since",
        &late,
        P1 + 9,
        field,
        "active payment_is_newer #0 -: its newest event says incomplete, and a payment is newer than that",
    );
    // A payment of an earlier period is no payment of the one that is overdue.
    let overdue = json!({"status": "past_due", "items": items(&[("price_pro", 1)], P2)});
    for (start, expect) in [
        (
            P2,
            "active payment_is_newer #2 -: its newest event says past_due, and a payment is newer than that",
        ),
        (P1, "past_due newest_event #2 -: the newest event of it says so"),
    ] {
        let renewal = paid(P2 + 5, "in_2", "subscription_cycle", "price_pro", start);
        let steps = [subscriber(), vec![sub("updated", P2, overdue.clone()), renewal]].concat();
        check("overdue", &steps, P2 + 9, field, expect);
    }
    let over = [subscriber(), vec![sub("deleted", P1 + 5, json!({"status": "canceled"}))]].concat();
    check("over", &over, P1 + 9, field, "canceled terminal #2 -: canceled is a final status");
}

#[test]
fn credits_are_explained_by_their_buckets_and_each_bucket_by_what_filled_it() {
    check(
        "no facts",
        &[],
        P1,
        "credits",
        "0 sum_of_buckets - -: signup 0 + add-ons 0; the ledger is empty: nothing was ever granted",
    );
    let all = [subscriber(), vec![pack(P1 + 5, "cs_1"), Step::Spend(1200)]].concat();
    let summary = "4800 sum_of_buckets - consume#2: signup 0 + si_1 3800 + add-ons 1000; the last entry is \
        consume#2 (-1200)";
    check("all", &all, P1 + 9, "credits", summary);
    let opened = "invoice in_1 opened the period from 1970-01-01T00:16:40Z to 1970-01-31T00:16:40Z with 5000 \
            credits of plan pro";
    check(
        "spent",
        &all,
        P1 + 9,
        "bucket si_1",
        &format!("3800 period #1 invoice#in_1: {opened}; 1200 were spent"),
    );
    let gift = [Step::At(P1), Step::Complimentary { plan: "pro", until: Some(P1 + 9), credits: 0 }];
    let rule = |at: i64| explained(&gift, at)[0].split(' ').nth(2).map(str::to_owned).unwrap_or_default();
    assert_eq!([P1 + 8, P1 + 9].map(rule), ["highest_plan", "default_tier"], "until the plan ends");
    let given = [subscriber(), vec![Step::Grant(30)]].concat();
    let summary = "5030 sum_of_buckets - fix#1: signup 0 + si_1 5000 + add-ons 0 + given by hand or for life 30; \
        the last entry is fix#1 (+30)";
    check("given by hand", &given, P1 + 9, "credits", summary);
    let gone = [subscriber(), vec![Step::Spend(5000)]].concat();
    check(
        "all spent",
        &gone,
        P1 + 9,
        "bucket si_1",
        &format!("0 period #1 invoice#in_1: {opened}; 5000 were spent"),
    );
    let back = [subscriber(), vec![refunded(P1 + 9, "pi_in_1", 1000)]].concat();
    check(
        "refunded",
        &back,
        P1 + 9,
        "bucket si_1",
        &format!("2500 period #1 invoice#in_1: {opened}; refunds and disputes took 2500"),
    );
    let part = |price: &str, amount: i64, start: i64, end: i64| flagged("si_1", price, amount, start, end);
    let (now, then) = ((P1 + 9, P1 + 9 + MONTH), (P1 + 9, P1 + MONTH));
    let lines =
        [part("price_pro", -1000, then.0, then.1), line("si_1", "price_business", 8000, now.0, now.1)];
    let anchor = bill(P1 + 9, "in_2", "subscription_update", &lines);
    let credited = [subscriber(), vec![anchor, refunded(P1 + 99, "pi_in_1", 2000)]].concat();
    let found = explained(&credited, P1 + 99);
    let told =
        "; refunds and disputes took 2500, also of earlier payments, because the invoice credits unused time";
    assert!(found.iter().any(|one| one.ends_with(told)), "{found:#?}");
    let other = [subscriber(), vec![changed(P1 + 9, ("price_pro", 1), ("price_business", 1), P1)]].concat();
    check(
        "changed",
        &other,
        P1 + 9,
        "bucket si_1",
        &format!("20000 period #1 invoice#in_1: {opened}; changed to business × 1, worth 20000 credits"),
    );
    check(
        "untouched",
        &subscriber(),
        P1 + 9,
        "bucket si_1",
        &format!("5000 period #1 invoice#in_1: {opened}"),
    );
    let unpaid = vec![sub("created", P1, json!({}))];
    let why = "0 not_paid - -: no paid invoice or trial of sub_1 is known, so nothing was granted";
    check("not paid", &unpaid, P1 + 9, "bucket sub_1", why);
    let waits = [unpaid, vec![changed(P1 + 9, ("price_pro", 1), ("price_business", 1), P1)]].concat();
    check("not paid and changed", &waits, P1 + 9, "bucket sub_1", why);
    let in_second = |step: &Step| {
        let Step::Event(event) = step else { panic!("no event") };
        Step::Event(
            serde_json::from_str(&event.to_string().replace("sub_1", "sub_2").replace("si_1", "si_2"))
                .unwrap(),
        )
    };
    let second = in_second(&paid(P1 + 9 * DAY, "in_9", "subscription_create", "price_pro", P1 + 9 * DAY));
    let void = [subscriber(), vec![sub("deleted", P1 + DAY, json!({"status": "canceled"})), second]].concat();
    let why = format!(
        "0 void #1 invoice#in_1: {opened}; the item has ended, and another item's paid period after it \
            ends its credits"
    );
    check("void", &void, P1 + 9 * DAY, "bucket si_1", &why);
}

#[test]
fn a_trial_is_explained_by_what_it_granted() {
    let trial = sub("created", P1, json!({"status": "trialing"}));
    let steps = [trial.clone(), Step::Spend(300)];
    let why = "1700 trial #0 trial#sub_1#si_1: the trial of sub_1 granted 2000 credits; 300 were spent";
    check("spent", &steps, P1 + 9, "bucket si_1", why);
    let over = [trial, sub("deleted", P1 + DAY, json!({"status": "canceled"}))];
    let why = "0 trial #0 trial#sub_1#si_1: the trial of sub_1 grants no credits: it has ended unpaid, or \
        the user had an earlier trial";
    check("ended unpaid", &over, P1 + 2 * DAY, "bucket si_1", why);
}

#[test]
fn a_subscription_ends_with_its_customer() {
    let customer = json!({"id": "cus_1", "object": "customer", "deleted": true});
    let gone = crate::decide::tests::event("customer.deleted", P1 + 5, &customer, None);
    let steps = [subscriber(), vec![gone.into()]].concat();
    let why = "canceled customer_deleted #0 -: its customer was deleted at Stripe, which ends it";
    check("deleted", &steps, P1 + 9, "subscription sub_1", why);
}

#[test]
fn signup_credits_and_packs_are_explained() {
    let not = "0 not_signed_up - -: the app has not created this user (PUT /users/{id}), which grants the \
        signup credits";
    check("not signed up", &[], P1, "bucket signup", not);
    let signed_up = vec![Step::Signup, Step::Spend(20)];
    check(
        "signed up",
        &signed_up,
        P1,
        "bucket signup",
        "480 signup - signup: 500 credits were granted at signup; 20 were spent",
    );
    let ended = [signed_up, subscriber()].concat();
    let why = "0 ended_by_subscription - signup: the paid period from 1970-01-01T00:16:40Z ended the signup \
            credits";
    check("ended", &ended, P1, "bucket signup", why);
    check("no pack", &[], P1, "bucket addon", "0 packs - -: no pack has credits left");
    let packs = vec![pack(P1, "cs_1"), pack(P1 + 5, "cs_2"), Step::Spend(300)];
    let why = "1700 packs #1 session#cs_2: 700 left of session#cs_1, 1000 left of session#cs_2";
    check("packs", &packs, P1, "bucket addon", why);
    let used_up = [pack(P1, "cs_1"), Step::Spend(1000)];
    check("used up", &used_up, P1, "bucket addon", "0 packs #0 session#cs_1: no pack has credits left");
    let last = "1000 packs #0 session#cs_1: 1000 left of session#cs_1";
    check("the last entry is known", &[pack(P1, "cs_1")], P1, "bucket addon", last);
    let renewed =
        [vec![pack(P1, "cs_1")], vec![paid(P2, "in_2", "subscription_cycle", "price_pro", P2)]].concat();
    let why = "0 packs - -: no pack has credits left; packs bought before the period from \
        1970-01-31T00:16:40Z ended with it (addons = \"reset\")";
    check("reset", &renewed, P2 + MONTH / 2, "bucket addon", why);
    let kept = [vec![Step::KeepAddons], renewed].concat();
    let account = Run::of(&kept).account;
    let kept = Catalog::parse(&CATALOG.replace("addons = \"reset\"", "addons = \"keep\"")).unwrap();
    let why = account.explain(&[], &kept, Timestamp::from_unix(P2)).pop().unwrap().why;
    assert_eq!(why, "1000 left of session#cs_1");
}
