use serde_json::{Value, json};

use super::*;
use crate::account::products::Purchased;
use crate::catalog::Offer;
use crate::decide::tests::shapes::{bill_with, once, tie_by};
use crate::decide::tests::{
    MONTH, P1, Run, Step, dispute, invoice, items, line, pack, paid, refunded, session, sub,
};
use crate::ids::PriceId;
use crate::ledger::{EntryKind, LedgerKey};

const NOW: i64 = P1 + 1000;

/// The catalog of the case tables with features and two products.
fn with_features(steps: Vec<Step>) -> Run {
    let declared = "[features]\nsso = \"switch\"\nexport = \"switch\"\nprojects = \"limit\"\n\
        [default_features]\nprojects = 1\n\
        [[product]]\nname = \"course\"\nfeatures = { export = true }\nprices = [\"price_course\"]\n\
        [[product]]\nname = \"space\"\nfeatures = { projects = 50 }\ncredits = 70\nprices = [\"price_space\"]\n\
        [policy]";
    let edits = vec![
        Step::Edit("[policy]", declared),
        Step::Edit("trial_credits = 2000", "trial_credits = 2000\nfeatures = { sso = true, projects = 10 }"),
        Step::Edit("credits = 20000", "credits = 20000\nfeatures = { projects = \"unlimited\" }"),
        Step::Edit(
            "per = \"seat\"",
            "per = \"seat\"\nfeatures = { projects = 3 }\nper_seat = [\"projects\"]",
        ),
    ];
    Run::of(&[edits, steps, vec![Step::At(NOW)]].concat())
}

/// `sso export projects`, each with what gives it.
fn seen(run: &Run, now: i64) -> String {
    let features = run.account.state.features(&run.catalog, Timestamp::from_unix(now));
    let one = |name: &str| {
        let feature = &features[name];
        format!("{} by {}", json!(feature.value), feature.because)
    };
    format!("{}, {}, {}", one("sso"), one("export"), one("projects"))
}

fn products(run: &Run) -> Vec<Purchased> {
    run.account.state.purchased(&run.catalog, Timestamp::from_unix(NOW))
}

fn statuses(run: &Run) -> Vec<(String, ProductStatus)> {
    products(run).into_iter().map(|product| (product.name, product.status)).collect()
}

fn course(id: &str) -> Step {
    session("completed", P1, id, json!({"product": "course"}), json!({}))
}

#[test]
fn a_renamed_product_is_found_by_its_former_name_or_its_price_also_when_it_is_refunded() {
    let named = || Step::Edit("name = \"course\"", "name = \"class\"\nformerly = [\"course\"]");
    let run = with_features(vec![course("cs_1"), named()]);
    assert_eq!(statuses(&run), [("class".to_owned(), ProductStatus::Active)]);
    assert!(seen(&run, NOW).contains("true by product class"), "{}", seen(&run, NOW));

    for edit in [named(), Step::Edit("name = \"course\"", "name = \"class\"")] {
        let shown = sub("created", P1, json!({"items": items(&[("price_course", 1)], P1)}));
        let bill = paid(P1, "in_1", "subscription_create", "price_course", P1);
        let run = with_features(vec![shown, bill, edit, refunded(P1 + 9, "pi_in_1", 2000)]);
        assert_eq!(statuses(&run), [("class".to_owned(), ProductStatus::Refunded)]);
        assert!(seen(&run, NOW).contains("false by default"), "{}", seen(&run, NOW));
    }
}

/// Every order of some steps.
fn orders(steps: &[Step]) -> Vec<Vec<Step>> {
    if steps.len() < 2 {
        return vec![steps.to_vec()];
    }
    let mut all = Vec::new();
    for place in 0..steps.len() {
        let mut rest = steps.to_vec();
        let first = rest.remove(place);
        all.extend(orders(&rest).into_iter().map(|order| [vec![first.clone()], order].concat()));
    }
    all
}

#[test]
fn the_best_of_all_that_gives_access_counts() {
    let free = "false by default, false by default";
    for (what, steps, expect) in [
        ("nothing", vec![Step::Signup], format!("{free}, 1 by default")),
        (
            "a plan",
            vec![sub("created", P1, json!({}))],
            "true by plan pro, false by default, 10 by plan pro".to_owned(),
        ),
        (
            "four seats",
            vec![sub("created", P1, json!({"items": items(&[("price_team", 4)], P1)}))],
            format!("{free}, 12 by plan team"),
        ),
        (
            "two items: the higher limit counts, not the higher plan",
            vec![sub("created", P1, json!({"items": items(&[("price_pro", 1), ("price_team", 3)], P1)}))],
            "true by plan pro, false by default, 10 by plan pro".to_owned(),
        ),
        (
            "a complimentary plan without a limit",
            vec![Step::Complimentary { plan: "business", until: None, credits: 0 }],
            format!("{free}, \"unlimited\" by plan business"),
        ),
        (
            "a product",
            vec![course("cs_1")],
            "false by default, true by product course, 1 by default".to_owned(),
        ),
        (
            "a plan for life",
            vec![session("completed", P1, "cs_1", json!({"plan": "pro"}), json!({}))],
            "true by plan pro, false by default, 10 by plan pro".to_owned(),
        ),
        (
            "a plan that ended",
            vec![sub("deleted", P1, json!({"status": "canceled"}))],
            format!("{free}, 1 by default"),
        ),
    ] {
        assert_eq!(seen(&with_features(steps), NOW), expect, "{what}");
    }
}

#[test]
fn a_feature_ends_with_what_gives_it() {
    let until = |run: &Run, name: &str| {
        let features = run.account.state.features(&run.catalog, Timestamp::from_unix(NOW));
        features[name].until.map(Timestamp::unix)
    };
    let end = P1 + MONTH;
    let cancels = json!({"cancel_at_period_end": true});
    let run = with_features(vec![sub("created", P1, cancels.clone())]);
    assert_eq!((until(&run, "sso"), until(&run, "export")), (Some(end), None));
    assert_eq!(seen(&run, end - 1), "true by plan pro, false by default, 10 by plan pro");
    assert_eq!(seen(&run, end), "false by default, false by default, 1 by default");
    // Of two that give the same, the later end counts.
    let gift = |until: i64| Step::Complimentary { plan: "pro", until: Some(until), credits: 0 };
    for (gift_ends, ends) in [(end + 5, end + 5), (end - 5, end)] {
        let run = with_features(vec![sub("created", P1, cancels.clone()), gift(gift_ends)]);
        assert_eq!(until(&run, "sso"), Some(ends));
    }
}

#[test]
fn an_overdue_subscription_has_no_more_seats_than_were_paid_for() {
    let bought = invoice("paid", P1, "in_1", "subscription_create", &[line("price_team", 2, P1)], json!({}));
    let overdue = json!({"status": "past_due", "items": items(&[("price_team", 9)], P1)});
    let run = with_features(vec![bought, sub("updated", P1 + 5, overdue)]);
    assert_eq!(seen(&run, NOW), "false by default, false by default, 6 by plan team");
}

#[test]
fn an_active_subscription_has_the_seats_that_it_shows() {
    let bought = invoice("paid", P1, "in_1", "subscription_create", &[line("price_team", 2, P1)], json!({}));
    let more = json!({"items": items(&[("price_team", 9)], P1)});
    let run = with_features(vec![bought, sub("updated", P1 + 5, more)]);
    assert_eq!(seen(&run, NOW), "false by default, false by default, 27 by plan team");
}

#[test]
fn all_available_credits_are_allowed_and_not_one_more() {
    let run = with_features(vec![Step::Signup]);
    let allows = |amount| {
        run.account.state.allows_credits(Credits::new(amount), &run.catalog, Timestamp::from_unix(NOW))
    };
    let available = Credits::new(500);
    assert_eq!([1, 500, 501].map(allows), [(true, available), (true, available), (false, available)]);
}

#[test]
fn a_session_that_sold_a_pack_sells_no_product_after_an_edit_of_the_catalog() {
    let line = |price: &str| json!({"price": {"id": price}, "quantity": 1, "amount_total": 2000});
    let of = |id: &str, price: &str| {
        session("completed", P1, id, json!({}), json!({"line_items": {"data": [line(price)]}}))
    };
    let sold = of("cs_1", "price_p1000");
    let run = with_features(vec![
        sold.clone(),
        of("cs_2", "price_course"),
        Step::Edit("prices = [\"price_p1000\"]", "prices = [\"price_other\"]"),
        Step::Edit("prices = [\"price_course\"]", "prices = [\"price_course\", \"price_p1000\"]"),
        sold,
    ]);
    assert_eq!(statuses(&run), [("course".to_owned(), ProductStatus::Active)]);
}

#[test]
fn a_product_on_an_invoice_is_a_payment_and_no_pack_unless_it_has_credits() {
    let of = |price: &str, amount: i64| {
        with_features(vec![bill_with(P1, "in_9", "manual", &[once(price, amount)], json!({"parent": null}))])
    };
    let seen = |run: Run| {
        let state = &run.account.state;
        let kind = run.ledger[&LedgerKey::from_text("invoice#in_9")].kind;
        (state.products.len(), state.packs.len(), state.first_paid_at.is_some(), kind)
    };
    assert!(with_features(vec![course("cs_1")]).account.state.packs.is_empty(), "nor by a session");
    assert_eq!(seen(of("price_course", 2000)), (1, 0, true, EntryKind::Product));
    assert_eq!(seen(of("price_space", 2000)), (1, 1, true, EntryKind::AddOn));
    assert_eq!(seen(of("price_course", 0)), (1, 0, false, EntryKind::Product));
    assert_eq!(seen(of("price_course", -500)), (0, 0, false, EntryKind::NoGrant), "a credit sells nothing");
}

/// Before 2025-03-31.basil the type of a proration of a subscription item is `invoiceitem`, and the line names
/// the item.
#[test]
fn a_product_in_a_proration_of_a_subscription_is_not_sold_once() {
    let line = json!({
        "type": "invoiceitem", "proration": true, "amount": 500, "quantity": 1,
        "subscription": "sub_1", "subscription_item": "si_1", "price": {"id": "price_space"},
        "period": {"start": P1, "end": P1 + MONTH},
    });
    let given = || invoice("paid", P1, "in_1", "subscription_create", &[line], json!({}));
    let run = with_features(vec![given()]);
    let [bought] = &run.account.state.products[..] else { panic!("{:?}", run.account.state.products) };
    assert_eq!(bought.subscription.as_ref().map(AsRef::as_ref), Some("sub_1"));
    assert_eq!((run.balance().get(), run.account.state.packs.len()), (70, 0), "{}", run.summary());
}

#[test]
fn the_zero_line_of_a_trial_buys_no_product() {
    let free = json!({"amount": 0});
    let line = crate::decide::tests::patched(line("price_space", 1, P1), &free);
    let trial = sub("created", P1, json!({"status": "trialing", "items": items(&[("price_space", 1)], P1)}));
    let bill = invoice("paid", P1, "in_1", "subscription_create", &[line], json!({"total": 0}));
    let run = with_features(vec![trial, bill]);
    assert!(run.account.state.products.is_empty());
    assert_eq!(products(&run)[0].paid, None);
}

/// Stripe resends an event after an operator has given its price to another product.
#[test]
fn a_session_sells_what_it_sold_first_also_after_an_edit_of_the_catalog() {
    let lines = json!({"line_items": {"data": [
        {"price": {"id": "price_course"}, "quantity": 1, "amount_total": 2000},
    ]}});
    let sold = session("completed", P1, "cs_1", json!({}), lines);
    let edits = vec![
        sold.clone(),
        Step::Edit("prices = [\"price_course\"]", "prices = [\"price_other\"]"),
        Step::Edit("prices = [\"price_space\"]", "prices = [\"price_space\", \"price_course\"]"),
    ];
    let bought =
        |run: &Run| run.account.state.products.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    let again = with_features([edits, vec![sold]].concat());
    assert_eq!(bought(&again), ["course"]);
}

#[test]
fn a_limit_allows_less_than_itself() {
    let feature = |value| Feature { value, because: String::new(), until: None };
    let allows = |value, used| {
        let allowance = feature(value).allows(used);
        (allowance.allowed, allowance.remaining)
    };
    let limit = FeatureValue::Limit(10);
    assert_eq!(
        [7, 9, 10, 11].map(|used| allows(limit, used)),
        [(true, Some(3)), (true, Some(1)), (false, Some(0)), (false, Some(0))]
    );
    assert_eq!(allows(FeatureValue::Switch(true), 99), (true, None));
    assert_eq!(allows(FeatureValue::Switch(false), 0), (false, None));
    let unlimited: FeatureValue = serde_json::from_value(json!("unlimited")).unwrap();
    assert_eq!(allows(unlimited, u64::MAX), (true, None));
    assert!(unlimited > FeatureValue::Limit(u64::MAX));
}

#[test]
fn a_product_is_revoked_by_a_full_refund_and_by_a_dispute_in_any_order() {
    let has = |run: &Run| seen(run, NOW).contains("true by product course");
    for (what, news, status) in [
        ("nothing", vec![], ProductStatus::Active),
        ("a part of the money", vec![refunded(P1 + 5, "pi_cs_1", 1999)], ProductStatus::Active),
        ("all of it", vec![refunded(P1 + 5, "pi_cs_1", 2000)], ProductStatus::Refunded),
        (
            "an inquiry",
            vec![dispute("created", P1 + 5, "pi_cs_1", "warning_needs_response")],
            ProductStatus::Active,
        ),
        ("a dispute", vec![dispute("created", P1 + 5, "pi_cs_1", "needs_response")], ProductStatus::Disputed),
        (
            "a lost one",
            vec![
                dispute("created", P1 + 5, "pi_cs_1", "needs_response"),
                dispute("closed", P1 + 6, "pi_cs_1", "lost"),
            ],
            ProductStatus::Disputed,
        ),
        (
            "a won one",
            vec![
                dispute("created", P1 + 5, "pi_cs_1", "needs_response"),
                dispute("closed", P1 + 6, "pi_cs_1", "won"),
            ],
            ProductStatus::Active,
        ),
    ] {
        for order in orders(&[vec![course("cs_1")], news].concat()) {
            let run = with_features(order);
            assert_eq!(statuses(&run), [("course".to_owned(), status)], "{what}");
            assert_eq!(has(&run), status == ProductStatus::Active, "{what}");
        }
    }
}

#[test]
fn three_products_and_one_refund_give_one_result_in_any_order() {
    // The line items are those of `GET /v1/checkout/sessions/{id}/line_items`.
    let lines = json!({"line_items": {"data": [
        {"price": {"id": "price_space"}, "quantity": 2, "amount_total": 1500},
        {"price": {"id": "price_course"}, "quantity": 1, "amount_total": 500},
        {"price": {"id": "price_unknown"}, "quantity": 1, "amount_total": 0},
    ]}});
    let steps = [
        session("completed", P1 + 1, "cs_1", json!({}), lines),
        session("completed", P1 + 2, "cs_2", json!({"product": "course"}), json!({})),
        refunded(P1 + 9, "pi_cs_1", 2000),
    ];
    for order in orders(&steps) {
        let run = with_features(order);
        let bought: Vec<_> = products(&run)
            .into_iter()
            .map(|product| (product.name, product.price, product.paid.unwrap().0, product.status))
            .collect();
        let price = |id: &str| Some(PriceId::new(id).unwrap());
        let expect = [
            ("course".to_owned(), price("price_course"), 500, ProductStatus::Refunded),
            ("space".to_owned(), price("price_space"), 1500, ProductStatus::Refunded),
            ("course".to_owned(), None, 2000, ProductStatus::Active),
        ];
        assert_eq!(bought, expect);
        assert_eq!(seen(&run, NOW), "false by default, true by product course, 1 by default");
        // The credits of a product that is bought once are a pack's: 2 × 70, taken back with the refund.
        assert_eq!(run.balance(), Credits::ZERO);
    }
    let run = with_features(steps[..1].to_vec());
    assert_eq!(run.balance(), Credits::new(140));
}

#[test]
fn a_product_on_an_invoice_and_its_session_are_one_purchase() {
    let item: Value = json!({
        "amount": 2000, "quantity": 1, "period": {"start": P1, "end": P1},
        "parent": {"type": "invoice_item_details", "invoice_item_details": {"invoice_item": "ii_1"}},
        "pricing": {"price_details": {"price": "price_course"}},
    });
    let by_hand = json!({"parent": null, "metadata": {"user_id": "user_1"}});
    let billed = invoice("paid", P1 + 3, "in_9", "manual", &[item], by_hand);
    let run = with_features(vec![billed.clone()]);
    let [bought] = &products(&run)[..] else { panic!("{:?}", products(&run)) };
    assert_eq!((bought.payment.as_deref(), &bought.paid), (Some("pi_in_9"), &Some((2000, "usd".to_owned()))));
    let sold = session(
        "completed",
        P1 + 2,
        "cs_9",
        json!({"product": "course"}),
        json!({"invoice": "in_9", "payment_intent": null}),
    );
    let twice = with_features(vec![billed.clone(), billed.clone()]);
    assert_eq!(twice.account.state.products.len(), 1, "the same event again");
    for order in orders(&[billed, sold]) {
        let run = with_features(order);
        let [bought] = &run.account.state.products[..] else { panic!("{:?}", run.account.state.products) };
        assert_eq!(
            (bought.session.is_some(), bought.invoice.is_some(), bought.at.unix()),
            (true, true, P1 + 2)
        );
    }
}

/// Since 2025-03-31.basil an invoice does not name its payment; `invoice_payment.paid` links them.
#[test]
fn a_product_of_a_session_and_of_its_invoice_are_one_once_the_payment_is_linked() {
    let steps = [
        session("completed", P1 + 2, "cs_9", json!({"product": "course"}), json!({})),
        bill_with(P1 + 4, "in_9", "manual", &[once("price_course", 2000)], json!({"parent": null})),
        tie_by(P1 + 5, "in_9", "pi_cs_9"),
    ];
    for order in orders(&steps) {
        let run = with_features(order);
        let [bought] = &run.account.state.products[..] else { panic!("{:?}", run.account.state.products) };
        assert_eq!((bought.session.is_some(), bought.invoice.is_some()), (true, true));
    }
    let lost = [&steps[..], &[dispute("created", P1 + 9, "pi_cs_9", "needs_response")]].concat();
    for order in orders(&lost) {
        let run = with_features(order);
        assert_eq!(statuses(&run), [("course".to_owned(), ProductStatus::Disputed)]);
    }
}

#[test]
fn credits_of_a_product_beside_a_pack_that_expires_do_not_expire() {
    let lines = [once("price_p1000", 2000), once("price_space", 500), once("price_space", 500)];
    let run = with_features(vec![
        Step::Edit("prices = [\"price_p1000\"]", "expires_days = 10\nprices = [\"price_p1000\"]"),
        bill_with(P1, "in_9", "manual", &lines, json!({"parent": null})),
    ]);
    let balance = |at| run.account.state.balance(&run.catalog.policy, Timestamp::from_unix(at)).get();
    assert_eq!([P1 + 10 * 86_400 - 1, P1 + 10 * 86_400].map(balance), [1140, 140]);
}

#[test]
fn a_product_by_subscription_is_listed_until_its_end() {
    let ends = json!({"items": items(&[("price_space", 1)], P1), "cancel_at_period_end": true});
    let bought = paid(P1, "in_1", "subscription_create", "price_space", P1);
    let run = with_features(vec![bought, sub("created", P1, ends)]);
    let listed = |at| run.account.state.purchased(&run.catalog, Timestamp::from_unix(at)).len();
    assert_eq!([NOW, P1 + MONTH - 1, P1 + MONTH].map(listed), [1, 1, 0]);
}

#[test]
fn a_product_by_subscription_gives_features_and_credits_and_no_tier() {
    let bought = |at: i64, id: &str, reason: &str| paid(at, id, reason, "price_space", at);
    let first = bought(P1, "in_1", "subscription_create");
    let active = sub("created", P1, json!({"items": items(&[("price_space", 1)], P1)}));
    let run = with_features(vec![Step::Signup, pack(P1 - 5, "cs_1"), active.clone(), first.clone()]);
    // Neither the signup credits nor the pack that was bought before end.
    assert!(run.summary().starts_with("free 1570 | sub_1=70 signup=500 addon=1000 |"), "{}", run.summary());
    assert_eq!(seen(&run, NOW), "false by default, false by default, 50 by product space");
    let [space] = &products(&run)[..] else { panic!("{:?}", products(&run)) };
    let paid = (space.status, space.paid.clone(), space.payment.as_deref());
    assert_eq!(paid, (ProductStatus::Active, Some((2000, "usd".to_owned())), Some("pi_in_1")));
    assert_eq!(space.subscription.as_ref().map(AsRef::as_ref), Some("sub_1"));
    // The newest payment counts, and its refund revokes the features.
    let second = bought(P1 + 10, "in_2", "subscription_cycle");
    for order in orders(&[active.clone(), first.clone(), second.clone()]) {
        let run = with_features(order);
        assert_eq!(products(&run)[0].payment.as_deref(), Some("pi_in_2"));
    }
    for order in orders(&[active.clone(), second, refunded(P1 + 20, "pi_in_2", 2000)]) {
        let run = with_features(order);
        assert_eq!(statuses(&run), [("space".to_owned(), ProductStatus::Refunded)]);
        assert_eq!(seen(&run, NOW), "false by default, false by default, 1 by default");
    }
    // In a trial only the subscription is known; after its end there is no product.
    let trial = sub("created", P1, json!({"status": "trialing", "items": items(&[("price_space", 1)], P1)}));
    let run = with_features(vec![trial]);
    assert_eq!((products(&run)[0].paid.clone(), products(&run)[0].status), (None, ProductStatus::Active));
    let ended = json!({"status": "canceled", "items": items(&[("price_space", 1)], P1)});
    let run = with_features(vec![active, first, sub("deleted", P1 + 20, ended)]);
    assert_eq!((products(&run), seen(&run, NOW).contains("product")), (vec![], false));
}

#[test]
fn mistakes_in_features_and_products_are_errors_with_their_line() {
    let text = "[tiers]\nfree = 0\n[policy]\ndefault_tier = \"free\"\n[features]\nsso = \"switch\"\n\
        projects = \"limit\"\n[default_features]\nprojects = 1\n[[plan]]\nname = \"pro\"\ntier = \"free\"\n\
        credits = 1\nfeatures = { sso = true, projects = \"unlimited\" }\nper_seat = [\"projects\"]\n\
        prices = [\"price_a\"]\n[[product]]\nname = \"p\"\nfeatures = { sso = true }\nprices = [\"price_b\"]\n";
    let catalog = Catalog::parse(text).unwrap();
    let Ok(Some(Offer::Product(product))) = catalog.offer("price_b", None, None) else {
        panic!("no product")
    };
    assert_eq!((product.credits, catalog.offer("price_c", None, None)), (0, Ok(None)));
    let stored: Catalog = serde_json::from_str(&serde_json::to_string(&catalog).unwrap()).unwrap();
    assert_eq!(stored, catalog);
    assert_eq!(stored.features_digest(), catalog.features_digest());
    for (from, to, line, says) in [
        ("sso = \"switch\"", "sso = \"flag\"", 6, "must be \"switch\" or \"limit\""),
        (
            "projects = 1\n",
            "project = 1\n",
            9,
            "feature \"project\" is not under [features] (known features: projects, sso)",
        ),
        (
            "projects = 1\n",
            "projects = true\n",
            9,
            "\"projects\" is a limit: 0 to 1000000000, or \"unlimited\"",
        ),
        ("projects = 1\n", "projects = -1\n", 9, "is a limit"),
        ("projects = 1\n", "projects = 1000000001\n", 9, "is a limit"),
        ("projects = 1\n", "projects = \"endless\"\n", 9, "is a limit"),
        ("sso = true, ", "sso = 1, ", 14, "\"sso\" is a switch: true or false"),
        ("per_seat = [\"projects\"]", "per_seat = [\"sso\"]", 15, "must be a limit that the plan gives"),
        ("per_seat = [\"projects\"]", "per_seat = [\"x\"]", 15, "feature \"x\" is not under [features]"),
        ("name = \"p\"", "name = \"pro\"", 18, "has the name of a plan"),
        ("price_b", "price_a", 20, "already used on line 16"),
        ("{ sso = true }\n", "{ sso = true }\ntier = \"free\"\n", 20, "unknown field"),
    ] {
        let error = Catalog::parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.line == line && error.message.contains(says), "{from} -> {to}: {error}");
    }
    // The digest depends only on what decides features.
    let digest =
        |from: &str, to: &str| Catalog::parse(&text.replacen(from, to, 1)).unwrap().features_digest();
    assert_eq!(digest("credits = 1", "credits = 2"), catalog.features_digest());
    assert_ne!(digest("projects = 1\n", "projects = 2\n"), catalog.features_digest());
    // Accounts store it. If a new version computed another one, every account would be written again.
    assert_eq!(catalog.features_digest().as_deref(), Some("b70aa753b9a28b6b"));
    assert_eq!(Catalog::parse(crate::decide::tests::CATALOG).unwrap().features_digest(), None);
}

#[test]
fn one_subscription_sells_several_products_and_its_invoice_names_their_payment_also_when_it_is_read_again() {
    let second = json!({"parent": {"subscription_item_details": {"subscription_item": "si_2"}}});
    let lines =
        [line("price_course", 1, P1), crate::decide::tests::patched(line("price_space", 1, P1), &second)];
    let bill = |payments: Value| {
        invoice("paid", P1, "in_1", "subscription_create", &lines, json!({ "payments": payments }))
    };
    let by = |intent: &str| json!({"data": [{"status": "paid", "payment": {"payment_intent": intent}}]});
    let run = with_features(vec![bill(json!(null)), bill(by("pi_1"))]);
    let bought: Vec<_> = run
        .account
        .state
        .products
        .iter()
        .map(|product| (product.name.as_str(), product.payment.as_deref()))
        .collect();
    assert_eq!(bought, [("course", Some("pi_1")), ("space", Some("pi_1"))], "{}", run.summary());
    // In a trial no invoice is known.
    let two = items(&[("price_course", 1), ("price_space", 1)], P1);
    let trial = with_features(vec![sub("created", P1, json!({"status": "trialing", "items": two}))]);
    let listed: Vec<_> = products(&trial).into_iter().map(|one| (one.name, one.price)).collect();
    let price = |id: &str| Some(PriceId::new(id).unwrap());
    let expect = [("course", price("price_course")), ("space", price("price_space"))];
    assert_eq!(listed, expect.map(|(name, price)| (name.to_owned(), price)));
}
