//! Prices that the catalog names by their lookup key or their Stripe product.
//!
//! Shapes: an item of a subscription and a line item of a session hold the price object with `lookup_key` and
//! `product` (<https://docs.stripe.com/api/prices/object>). Since 2025-03-31.basil the line of an invoice
//! holds only `pricing.price_details.price` and `.product`
//! (<https://docs.stripe.com/changelog/basil/2025-03-31/invoice-pricing-configurations>). Recorded events
//! agree: each of 25 items has both fields, and each of 12 lines since basil has the product and no lookup
//! key. Stripe moves a lookup key to another price with `transfer_lookup_key`.

use serde_json::{Value, json};

use super::shapes::{DAY, T, bill, bill_with, check_life, end, flagged, item, line, month, once, shows};
use super::{Run, Step, patched, session};

fn by_lookup_key() -> Step {
    Step::Edit(
        "prices = [\"price_pro\", \"price_pro_year\"]",
        "lookup_keys = [\"pro_monthly\", \"pro_yearly\"]",
    )
}

fn by_product() -> Step {
    Step::Edit("prices = [\"price_pro\", \"price_pro_year\"]", "stripe_products = [\"prod_pro\"]")
}

/// An item that shows the lookup key of its price.
fn keyed(key: Option<&str>, item: Value) -> Value {
    let mut item = item;
    item["price"]["lookup_key"] = json!(key);
    item
}

/// A line or an item that shows the Stripe product of its price.
fn of_product(product: &str, of: Value) -> Value {
    let price = if of["object"] == "line_item" {
        json!({"pricing": {"price_details": {"product": product}}})
    } else {
        json!({"price": {"product": product}})
    };
    patched(of, &price)
}

#[test]
fn a_plan_is_found_by_its_lookup_key_in_any_order_of_snapshot_and_invoice() {
    let shown = |start| keyed(Some("pro_monthly"), item("si_1", "price_a", start, month(start)));
    let given = vec![
        by_lookup_key(),
        shows(T, "active", &[shown(T)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_a", 2000, T, month(T))]),
        shows(month(T), "active", &[shown(month(T))]),
        bill(
            month(T) + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_a", 2000, month(T), month(month(T)))],
        ),
    ];
    check_life("two periods", &given, "pro 5000 | si_1=5000");
    let run = Run::of(&given[..3]);
    assert_eq!(end(&run), "pro 5000 | si_1=5000", "{}", run.summary());
}

#[test]
fn a_line_waits_for_the_snapshot_that_shows_its_lookup_key_beside_a_known_line() {
    let end_of = month(T);
    let given = vec![
        by_lookup_key(),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_a", 2000, T, end_of), line("si_2", "price_boost", 500, T, end_of)],
        ),
        shows(
            T,
            "active",
            &[
                keyed(Some("pro_monthly"), item("si_1", "price_a", T, end_of)),
                keyed(None, item("si_2", "price_boost", T, end_of)),
            ],
        ),
    ];
    check_life("both lines", &given, "pro 5300 | si_1=5000 si_2=300");
    let first = Run::of(&given[..2]);
    assert_eq!(end(&first), "pro until day 30 300 | si_2=300", "{}", first.summary());
}

#[test]
fn an_unknown_line_beside_a_known_one_waits_for_no_lookup_key_once_it_is_shown() {
    let end_of = month(T);
    let given = vec![
        by_lookup_key(),
        shows(
            T,
            "active",
            &[
                keyed(Some("pro_monthly"), item("si_1", "price_a", T, end_of)),
                keyed(None, item("si_2", "price_metered", T, end_of)),
            ],
        ),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_a", 2000, T, end_of), line("si_2", "price_metered", 500, T, end_of)],
        ),
    ];
    check_life("a metered line", &given, "pro 5000 | si_1=5000");
    let waiting = |steps: &[Step]| {
        let run = Run::of(steps);
        let one = serde_json::to_value(&run.account.state.subscriptions["sub_1"]).unwrap();
        one["unpriced"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(waiting(&given), 0, "the snapshot shows its price");
    let lines = [line("si_2", "price_boost", 500, T, end_of), once("price_fee", 900)];
    let fee = [by_lookup_key(), bill(T + 1, "in_1", "subscription_create", &lines)];
    assert_eq!(waiting(&fee), 0, "no snapshot shows the price of a fee");
}

#[test]
fn a_line_of_an_earlier_price_counts_once_an_earlier_snapshot_shows_it() {
    let end_of = month(T);
    let both = Step::Edit("prices = [\"price_business\"]", "lookup_keys = [\"business_monthly\"]");
    let given = vec![
        by_lookup_key(),
        both,
        shows(T, "active", &[keyed(Some("pro_monthly"), item("si_1", "price_a", T, end_of))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_a", 2000, T, end_of)]),
        shows(T + DAY, "active", &[keyed(Some("business_monthly"), item("si_1", "price_b", T, end_of))]),
        bill(
            T + DAY + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_a", -1900, T + DAY, end_of),
                flagged("si_1", "price_b", 3800, T + DAY, end_of),
            ],
        ),
    ];
    check_life("an upgrade between two prices with keys", &given, "business 20000 | si_1=20000");
}

#[test]
fn a_price_keeps_its_plan_after_its_lookup_key_has_moved() {
    let second = month(T);
    let given = vec![
        by_lookup_key(),
        shows(T, "active", &[keyed(Some("pro_monthly"), item("si_1", "price_a", T, second))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_a", 2000, T, second)]),
        shows(second, "active", &[keyed(None, item("si_1", "price_a", second, month(second)))]),
        bill(
            second + 1,
            "in_2",
            "subscription_cycle",
            &[line("si_1", "price_a", 2000, second, month(second))],
        ),
    ];
    let run = Run::of(&given);
    assert_eq!(end(&run), "pro 5000 | si_1=5000", "{}", run.summary());
    assert_eq!(run.ledger.len(), 2, "both periods are granted: {}", run.summary());
    // The next period is worth what the catalog says then.
    let edited = [&given[..3], &[Step::Edit("credits = 5000", "credits = 6000")], &given[3..]].concat();
    assert_eq!(end(&Run::of(&edited)), "pro 6000 | si_1=6000");
}

#[test]
fn a_plan_change_to_a_price_with_a_lookup_key_is_charged_by_its_invoice() {
    let end_of = month(T);
    let given = vec![
        Step::Edit("prices = [\"price_business\"]", "lookup_keys = [\"business_monthly\"]"),
        Step::Edit("addons = \"reset\"", "addons = \"reset\"\nplan_change = \"on_payment\""),
        shows(T, "active", &[keyed(None, item("si_1", "price_pro", T, end_of))]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, end_of)]),
        bill(
            T + DAY + 1,
            "in_2",
            "subscription_update",
            &[
                flagged("si_1", "price_pro", -1900, T + DAY, end_of),
                flagged("si_1", "price_b", 3800, T + DAY, end_of),
            ],
        ),
        shows(T + DAY, "active", &[keyed(Some("business_monthly"), item("si_1", "price_b", T, end_of))]),
    ];
    check_life("upgraded", &given, "business 20000 | si_1=20000");
}

#[test]
fn plans_and_packs_are_found_by_their_stripe_product() {
    let end_of = month(T);
    let pack = Step::Edit("prices = [\"price_p1000\"]", "stripe_products = [\"prod_pack\"]");
    let given = vec![
        by_product(),
        pack.clone(),
        shows(T, "active", &[of_product("prod_pro", item("si_1", "price_a", T, end_of))]),
        bill(
            T + 1,
            "in_1",
            "subscription_create",
            &[of_product("prod_pro", line("si_1", "price_a", 2000, T, end_of))],
        ),
        bill_with(
            T + 9,
            "in_2",
            "manual",
            &[of_product("prod_pack", once("price_x", 900))],
            json!({"parent": null}),
        ),
    ];
    let run = Run::of(&given);
    assert_eq!(end(&run), "pro 6000 | pack=1000 si_1=5000", "{}", run.summary());
    let sold = |price: Value| {
        let lines = json!([{"id": "li_1", "price": price, "quantity": 2, "amount_total": 1800}]);
        session("completed", T, "cs_1", json!({}), json!({"line_items": {"data": lines}}))
    };
    let run = Run::of(&[pack, sold(json!({"id": "price_x", "product": "prod_pack"}))]);
    assert_eq!(end(&run), "free 2000 | pack=2000", "{}", run.summary());
    let keyed = Step::Edit("prices = [\"price_p1000\"]", "lookup_keys = [\"pack_key\"]");
    let expanded = json!({"id": "price_x", "lookup_key": "pack_key", "product": {"id": "prod_other"}});
    let run = Run::of(&[keyed, sold(expanded)]);
    assert_eq!(end(&run), "free 2000 | pack=2000", "{}", run.summary());
}

#[test]
fn a_price_that_two_plans_match_is_parked_with_both_names() {
    let end_of = month(T);
    let both = of_product("prod_pro", item("si_1", "price_business", T, end_of));
    let run = Run::of(&[by_product(), shows(T, "active", &[both])]);
    let [(_, parked)] = &run.parked[..] else { panic!("{}", run.summary()) };
    assert_eq!(
        (parked.code(), parked.to_string().as_str()),
        ("ambiguous_price", "price price_business is plan \"business\" and plan \"pro\" in the catalog")
    );
}

/// The operator adds a price after Stripe has billed it. The snapshot that shows it is parked until then.
#[test]
fn a_paid_line_counts_once_the_catalog_has_its_price() {
    let second = month(T);
    let added = || Step::Edit("\"price_pro_year\"]", "\"price_pro_year\", \"price_pro_v2\"]");
    let shown = || shows(second, "active", &[item("si_1", "price_pro_v2", second, month(second))]);
    let billed = || {
        let line = line("si_1", "price_pro_v2", 2500, second, month(second));
        bill(second + 1, "in_2", "subscription_cycle", &[line])
    };
    for heard in [vec![shown(), billed()], vec![billed(), shown()]] {
        let steps = [
            vec![
                shows(T, "active", &[item("si_1", "price_pro", T, second)]),
                bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, second)]),
                Step::Spend(1000),
            ],
            heard,
            vec![added(), shown()],
        ]
        .concat();
        for steps in [Some(steps.clone()), super::shapes::before_basil(&steps)].into_iter().flatten() {
            let run = Run::of(&steps);
            assert_eq!(end(&run), "pro 5000 | si_1=5000", "{}", run.summary());
            assert!(run.parked.is_empty(), "{}", run.summary());
        }
    }
}
