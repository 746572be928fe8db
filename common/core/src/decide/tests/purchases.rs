//! What is sold once: packs and lifetime plans by session, by invoice and by both.

use serde_json::{Value, json};

use super::shapes::{
    DAY, T, bill, bill_with, check_life, end, flagged, item, line, month, once, shows, tie, tie_by, times,
};
use super::{Outcome, P1, Run, Step, pack, patched, refund, refunded, session};
use crate::account::products::{BoughtProduct, ProductStatus};
use crate::ledger::LedgerKey;
use crate::timestamp::Timestamp;

/// `invoice.paid` of a manual invoice.
fn manual(created: i64, id: &str, lines: &[Value]) -> Step {
    bill_with(created, id, "manual", lines, json!({"parent": null}))
}

#[test]
fn a_pack_on_a_plans_first_invoice_is_granted_by_the_invoice() {
    let lines = [line("si_1", "price_pro", 2000, T, month(T)), once("price_p1000", 900)];
    let subscription =
        json!({"mode": "subscription", "subscription": "sub_1", "payment_intent": null, "invoice": "in_1"});
    let given = vec![
        session("completed", T + 2, "cs_1", json!({"plan": "pro"}), subscription),
        shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
        bill(T + 1, "in_1", "subscription_create", &lines),
    ];
    check_life("plan and pack", &given, "pro 6000 | pack=1000 si_1=5000");
    let earlier = [vec![pack(T - DAY, "cs_0")], given].concat();
    let run = Run::of(&earlier);
    assert_eq!(end(&run), "pro 6000 | pack=1000 si_1=5000", "an earlier pack ends: {}", run.summary());
}

/// A customer could else go from one unit to two and back for the price of a day each time.
#[test]
fn a_pack_by_subscription_is_granted_by_whole_periods_and_by_the_first_invoice() {
    let end = month(T);
    let plan = || line("si_1", "price_pro", 2000, T, end);
    let first = |pack: Value| vec![bill(T + 1, "in_1", "subscription_create", &[plan(), pack])];
    let whole = |amount, quantity| times(quantity, line("si_2", "price_p1000", amount, T, end));
    check_life("a whole period", &first(whole(1800, 2)), "pro until day 30 7000 | pack=2000 si_1=5000");
    let part = flagged("si_2", "price_p1000", 300, T, end);
    check_life("prorated at the start", &first(part), "pro until day 30 6000 | pack=1000 si_1=5000");
    check_life("within a trial", &first(whole(0, 1)), "pro until day 30 5000 | si_1=5000");
    check_life("none of it", &first(whole(0, 0)), "pro until day 30 5000 | si_1=5000");
    let (one, two) = (times(1, flagged("si_2", "price_p1000", -29, T + DAY, end)), 58);
    let two = times(2, flagged("si_2", "price_p1000", two, T + DAY, end));
    let up = bill(T + DAY, "in_2", "subscription_update", &[one, two]);
    let given = [first(whole(900, 1)), vec![up]].concat();
    check_life("a second unit within it", &given, "pro until day 30 6000 | pack=1000 si_1=5000");
}

#[test]
fn a_paid_manual_invoice_sells_packs() {
    let two = [times(2, once("price_p1000", 1800)), once("price_other", 500)];
    check_life("two, and something unknown", &[manual(T, "in_1", &two)], "free 2000 | pack=2000");
    let unknown = Run::of(&[manual(T, "in_1", &[once("price_other", 500)])]);
    assert_eq!(
        (unknown.balance().get(), unknown.account.state.first_paid_at),
        (0, None),
        "{}",
        unknown.summary()
    );
    let sold =
        vec![manual(T, "in_1", &two[..1]), tie_by(T + 1, "in_1", "pi_9"), refunded(T + 9, "pi_9", 900)];
    check_life("refunded by half", &sold, "free 1000 | pack=1000");
}

#[test]
fn a_session_and_its_invoice_are_one_purchase() {
    let sold = |patch: Value| session("completed", T, "cs_1", json!({"pack": "p1000"}), patch);
    let invoice = |patch: Value| {
        bill_with(
            T + 5,
            "in_1",
            "manual",
            &[once("price_p1000", 2000)],
            patched(json!({"parent": null}), &patch),
        )
    };
    let by_payment = vec![sold(json!({})), invoice(json!({"payment_intent": "pi_cs_1"}))];
    let by_session = vec![sold(json!({"invoice": "in_1"})), invoice(json!({}))];
    let by_tie = vec![sold(json!({})), invoice(json!({})), tie_by(T + 6, "in_1", "pi_cs_1")];
    for (what, steps) in
        [("by payment", by_payment), ("by session.invoice", by_session), ("by invoice_payment", by_tie)]
    {
        check_life(what, &steps, "free 1000 | pack=1000");
        let refunded = |amount| [steps.clone(), vec![refunded(T + DAY, "pi_cs_1", amount)]].concat();
        check_life(&format!("{what}, refunded"), &refunded(2000), "free 0 | pack=0");
        check_life(&format!("{what}, half refunded"), &refunded(1000), "free 500 | pack=500");
        // What was spent of the invoice's credits counts as spent of the session's lot.
        let [session, invoice, tie @ ..] = &steps[..] else { panic!("two documents") };
        let late = [vec![invoice.clone(), Step::Spend(300), session.clone()], tie.to_vec()].concat();
        let run = Run::of(&late);
        assert_eq!(run.balance().get(), 700, "{what}, spent before the tie: {}", run.summary());
    }
}

#[test]
fn a_refund_that_fails_gives_a_purchase_of_two_documents_back() {
    // refund.created and refund.failed of a session with invoice_creation. The refund is booked under the
    // invoice when the session arrives.
    let bought = [
        bill_with(
            T + 4,
            "in_p",
            "manual",
            &[once("price_p1000", 2000)],
            json!({"parent": null, "metadata": {"user_id": "user_1"}}),
        ),
        tie_by(T + 5, "in_p", "pi_cs_p"),
        refund("created", T + DAY, "pi_cs_p", "re_1", 2000, "succeeded"),
        session("completed", T, "cs_p", json!({"pack": "p1000"}), json!({})),
    ];
    check_life("refunded", &bought, "free 0 | pack=0");
    let failed = refund("failed", T + 2 * DAY, "pi_cs_p", "re_1", 2000, "failed");
    check_life("failed", &[&bought[..], &[failed]].concat(), "free 1000 | pack=1000");
}

#[test]
fn two_packs_without_a_common_document_are_two() {
    let given =
        vec![pack(T, "cs_1"), pack(T + 1, "cs_2"), manual(T + 2, "in_3", &[once("price_p1000", 2000)])];
    check_life("two sessions and an invoice", &given, "free 3000 | pack=1000 pack=1000 pack=1000");
}

#[test]
fn a_payment_links_an_invoice_only_to_the_session_that_it_paid() {
    let steps = [
        pack(P1, "cs_1"),
        manual(P1 + 3, "in_2", &[once("price_p1000", 2000)]),
        tie_by(P1 + 4, "in_2", "pi_other"),
    ];
    for steps in [steps.to_vec(), steps.iter().rev().cloned().collect()] {
        assert_eq!(Run::of(&steps).balance().get(), 2000);
    }
}

#[test]
fn a_line_that_the_catalog_does_not_name_parks_no_session_that_sold_a_pack_or_a_plan() {
    let of = |prices: &[&str]| {
        let line = |price: &&str| json!({"price": {"id": price}, "quantity": 1});
        let lines = json!({"line_items": {"data": prices.iter().map(line).collect::<Vec<_>>()}});
        Run::of(&[session("completed", P1, "cs_1", json!({}), lines)])
    };
    let sold = |prices: &[&str]| {
        let run = of(prices);
        (run.balance().get(), run.parked.len())
    };
    assert_eq!(sold(&["price_other", "price_p1000"]), (1000, 0));
    assert_eq!(sold(&["price_other", "price_pro"]), (5000, 0));
    assert_eq!(sold(&["price_other"]), (0, 1));
}

#[test]
fn a_pack_for_nothing_is_no_payment() {
    let of = |amount: i64| {
        let paid = if amount > 0 { "paid" } else { "no_payment_required" };
        let patch = json!({"amount_total": amount, "payment_status": paid});
        Run::of(&[session("completed", P1, "cs_1", json!({"pack": "p1000"}), patch)])
    };
    let seen = |run: Run| (run.balance().get(), run.account.state.first_paid_at.is_some());
    assert_eq!(seen(of(2000)), (1000, true));
    assert_eq!(seen(of(0)), (1000, false));
    let billed = |amount: i64| Run::of(&[manual(P1, "in_1", &[once("price_p1000", amount)])]);
    assert_eq!([2000, 0].map(billed).map(seen), [(1000, true), (1000, false)]);
}

#[test]
fn packs_of_one_invoice_end_each_at_its_own_time() {
    let expiring = Step::Edit(
        "[[order]]",
        "[[pack]]\nname = \"short\"\ncredits = 70\nexpires_days = 10\nprices = [\"price_short\"]\n[[order]]",
    );
    let lines = [once("price_short", 100), once("price_p1000", 2000), once("price_short", 100)];
    let run = Run::of(&[expiring, manual(T, "in_1", &lines)]);
    let balance = |at: i64| run.account.state.balance(&run.catalog.policy, Timestamp::from_unix(at)).get();
    assert_eq!([T + 10 * DAY - 1, T + 10 * DAY].map(balance), [1140, 1000]);
}

#[test]
fn the_entry_of_a_pack_on_an_invoice_names_its_payment() {
    let run = Run::of(&[manual(P1, "in_1", &[once("price_p1000", 2000)])]);
    let entry = &run.ledger[&LedgerKey::from_text("invoice#in_1")];
    assert_eq!(entry.payment.as_ref().map(|paid| (paid.amount, paid.currency.as_str())), Some((2000, "usd")));
}

#[test]
fn a_quantity_of_a_million_counts_and_one_more_parks() {
    let team = |quantity: u64, start: i64| {
        [
            shows(
                start,
                "active",
                &[super::shapes::seats("si_1", "price_team", quantity, start, month(start))],
            ),
            bill(
                start + 1,
                "in_1",
                "subscription_create",
                &[times(quantity, line("si_1", "price_team", 2000, start, month(start)))],
            ),
        ]
    };
    let codes = |quantity: u64| {
        let run = Run::of(&team(quantity, T));
        run.parked.iter().map(|(_, why)| why.code()).collect::<Vec<_>>()
    };
    assert!(codes(1_000_000).is_empty());
    assert_eq!(codes(1_000_001), ["quantity", "quantity"]);
}

#[test]
fn the_account_has_at_most_200_products() {
    let products = "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\n\
        features = { export = true }\nprices = [\"price_course\"]\n[policy]\n";
    let course = |id: &str| session("completed", P1, id, json!({"product": "course"}), json!({}));
    let mut run = Run::of(&[Step::Edit("[policy]\n", products), course("cs_0")]);
    let one = run.account.state.products[0].clone();
    let mut with = |count: usize| {
        let bought = (0..count).map(|number| {
            let session = Some(format!("cs_{number}").parse().unwrap());
            BoughtProduct { session, payment: None, ..one.clone() }
        });
        run.account.state.products = bought.collect();
        let Step::Event(next) = course("cs_next") else { panic!("no event") };
        match run.decided(&crate::event::read(next.to_string().as_bytes()).unwrap()) {
            Outcome::Park(parked) => parked.code(),
            Outcome::Apply(_) => "applied",
            Outcome::Ignore(_) | Outcome::Tie => "ignored",
        }
    };
    assert_eq!([199, 200, 201].map(&mut with), ["applied", "too_many_products", "too_many_products"]);
}

#[test]
fn the_quantity_is_what_was_sold() {
    let sold = |metadata: Value, patch: Value| session("completed", T, "cs_1", metadata, patch);
    let p = |quantity: &str| json!({"pack": "p1000", "quantity": quantity});
    check_life("our checkout's metadata", &[sold(p("3"), json!({}))], "free 3000 | pack=3000");
    let link = sold(p("3"), json!({"payment_link": "plink_1"}));
    check_life("a payment link's metadata does not count", &[link], "free 1000 | pack=1000");
    let with_amount =
        Step::Edit("prices = [\"price_p1000\"]\n", "prices = [\"price_p1000\"]\namount = 1000\n");
    let by_amount = vec![with_amount, sold(json!({"pack": "p1000"}), json!({"amount_subtotal": 2999}))];
    check_life("by the subtotal, rounded down", &by_amount, "free 2000 | pack=2000");
    let of_one = Step::Edit("prices = [\"price_p1000\"]\n", "prices = [\"price_p1000\"]\namount = 1000\n");
    let less = vec![of_one, sold(json!({"pack": "p1000"}), json!({"amount_subtotal": 999}))];
    check_life("a subtotal below the amount counts as one", &less, "free 1000 | pack=1000");
    // The buyer paid in another currency: the price has an amount of its own in it
    // (<https://docs.stripe.com/payments/checkout/present-local-currencies>), or Adaptive Pricing converted it,
    // which a Payment Link always does (<https://docs.stripe.com/payments/checkout/adaptive-pricing>).
    let with_currency = Step::Edit(
        "prices = [\"price_p1000\"]\n",
        "prices = [\"price_p1000\"]\namount = 1000\ncurrency = \"usd\"\n",
    );
    for (what, patch, left) in [
        ("in the price's currency", json!({"amount_subtotal": 3000, "currency": "usd"}), 3000),
        ("in another currency", json!({"amount_subtotal": 150_000, "currency": "jpy"}), 1000),
        (
            "converted",
            json!({
                "amount_subtotal": 300_000, "currency": "jpy",
                "currency_conversion": {
                    "amount_subtotal": 2000, "amount_total": 2000, "fx_rate": "150", "source_currency": "usd",
                },
            }),
            2000,
        ),
        (
            "converted from a third currency",
            json!({
                "amount_subtotal": 300_000, "currency": "jpy",
                "currency_conversion": {
                    "amount_subtotal": 9000, "amount_total": 9000, "fx_rate": "30", "source_currency": "eur",
                },
            }),
            1000,
        ),
    ] {
        let life = vec![with_currency.clone(), sold(json!({"pack": "p1000"}), patch)];
        check_life(what, &life, &format!("free {left} | pack={left}"));
    }
}

#[test]
fn a_plan_sold_once_gives_its_tier_until_it_is_refunded() {
    let sold = || session("completed", T, "cs_1", json!({"plan": "pro"}), json!({}));
    check_life("sold", &[sold()], "pro 5000 | life=5000");
    check_life("a year later", &[sold(), Step::At(T + 400 * DAY)], "pro 5000 | life=5000");
    check_life("half refunded", &[sold(), refunded(T + DAY, "pi_cs_1", 1000)], "pro 2500 | life=2500");
    check_life("refunded", &[sold(), refunded(T + DAY, "pi_cs_1", 2000)], "free 0 | life=0");
    let beside = vec![
        sold(),
        shows(T + DAY, "active", &[item("si_1", "price_business", T + DAY, month(T + DAY))]),
        bill(
            T + DAY,
            "in_1",
            "subscription_create",
            &[line("si_1", "price_business", 9000, T + DAY, month(T + DAY))],
        ),
        shows(T + 2 * DAY, "canceled", &[item("si_1", "price_business", T + DAY, month(T + DAY))]),
    ];
    check_life("beside a subscription that ended", &beside, "pro 25000 | life=5000 si_1=20000");
    let by_invoice = [manual(T, "in_1", &[once("price_pro", 9000)])];
    check_life("by an invoice", &by_invoice, "pro 5000 | life=5000");
}

#[test]
fn what_is_sold_for_nothing_is_not_refunded() {
    let free = json!({"amount_total": 0, "payment_status": "no_payment_required", "payment_intent": null});
    let run = Run::of(&[session("completed", T, "cs_1", json!({"plan": "pro"}), free.clone())]);
    assert_eq!(end(&run), "pro 5000 | life=5000");
    let products = Step::Edit(
        "[policy]\n",
        "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\nfeatures = { export = true }\n\
         prices = [\"price_course\"]\n[policy]\n",
    );
    let run = Run::of(&[products, session("completed", T, "cs_1", json!({"product": "course"}), free)]);
    let state = &run.account.state;
    assert_eq!(state.product_status(&state.products[0]), ProductStatus::Active);
}

#[test]
fn an_unpaid_session_grants_nothing_and_confirms_nothing() {
    let of = |status: &str| {
        session("completed", T, "cs_1", json!({"pack": "p1000"}), json!({"payment_status": status}))
    };
    check_life("unpaid", &[of("unpaid")], "free 0 | ");
    let later = session("async_payment_succeeded", T + 9, "cs_1", json!({"pack": "p1000"}), json!({}));
    check_life("paid later", &[of("unpaid"), later], "free 1000 | pack=1000");
    let paid = |metadata: Value, patch: Value| {
        Run::of(&[session("completed", T, "cs_1", metadata, patch)]).account.state.first_paid_at.is_some()
    };
    let subscription = |patch: Value| {
        patched(json!({"mode": "subscription", "subscription": "sub_1", "payment_intent": null}), &patch)
    };
    assert!(paid(json!({"plan": "pro"}), subscription(json!({}))), "a paid plan");
    assert!(!paid(json!({}), subscription(json!({}))), "nothing of the catalog");
    assert!(!paid(json!({"plan": "pro"}), subscription(json!({"amount_total": 0}))), "nothing to pay");
    let trial = json!({"payment_status": "no_payment_required"});
    assert!(!paid(json!({"plan": "pro"}), subscription(trial)), "a trial");
    assert!(paid(json!({"mode": "dfy", "plan": "starter"}), json!({})), "an order");
}

#[test]
fn credits_given_by_hand_and_packs_survive_what_the_rules_say() {
    let next = month(T);
    let given = vec![
        shows(T, "active", &[item("si_1", "price_pro", T, next)]),
        bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, next)]),
        Step::Grant(700),
        shows(next, "active", &[item("si_1", "price_pro", next, month(next))]),
        bill(next + 1, "in_2", "subscription_cycle", &[line("si_1", "price_pro", 2000, next, month(next))]),
    ];
    check_life("no renewal ends a grant", &given, "pro 5700 | grant=700 si_1=5000");
}

/// A session with `price_data` has a price of its own, which no catalog can name
/// (<https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-line_items-price_data>).
#[test]
fn a_price_made_for_one_session_is_the_pack_of_its_metadata() {
    let sold = |metadata: Value| {
        let lines =
            json!([{"id": "li_1", "price": {"id": "price_adhoc"}, "quantity": 3, "amount_total": 3000}]);
        Run::of(&[session("completed", T, "cs_1", metadata, json!({"line_items": {"data": lines}}))])
    };
    assert_eq!(end(&sold(json!({"pack": "p1000"}))), "free 3000 | pack=3000");
    assert_eq!(end(&sold(json!({"pack": "p1000", "quantity": "2"}))), "free 2000 | pack=2000");
    assert_eq!(sold(json!({})).parked.first().map(|(_, why)| why.code()), Some("unknown_price"));
    // A plan's price is always in the catalog.
    assert_eq!(sold(json!({"plan": "pro"})).parked.first().map(|(_, why)| why.code()), Some("unknown_price"));
}

#[test]
fn two_plans_for_life_in_one_purchase_both_count() {
    let of = |price: &str| json!({"id": price, "price": {"id": price}, "quantity": 1, "amount_total": 1000});
    let lines = json!({"line_items": {"data": [of("price_pro"), of("price_business")]}});
    let by_session = session("completed", T, "cs_1", json!({}), lines);
    let by_invoice = bill_with(
        T,
        "in_1",
        "manual",
        &[once("price_pro", 1000), once("price_business", 1000)],
        json!({"parent": null}),
    );
    for bought in [by_session, by_invoice] {
        let steps = [bought, Step::Spend(21_000), Step::GiveBack(0, 21_000)];
        assert_eq!(end(&Run::of(&steps)), "business 25000 | life=20000 life=5000");
    }
}

#[test]
fn credits_return_to_twelve_packs_that_one_spend_has_emptied() {
    let packs = (0..12).map(|number| super::pack(T + number, &format!("cs_{number}")));
    let steps = [Step::KeepAddons].into_iter().chain(packs);
    let steps =
        steps.chain([Step::Spend(12_000), Step::Grant(1), Step::GiveBack(0, 12_000)]).collect::<Vec<_>>();
    let run = Run::of(&steps);
    assert_eq!(run.balance().get(), 12_001, "{}", run.summary());
}

/// The account joins the oldest of more than 24 packs. Here the second oldest is sold by an invoice, and its
/// session arrives last.
#[test]
fn a_session_keeps_the_older_packs_that_the_lot_of_its_invoice_held() {
    let by_invoice = manual(T + 1, "in_x", &[once("price_p1000", 2000)]);
    let others = (0..24).map(|number| super::pack(T + number * 10, &format!("cs_{number}")));
    let bought = [vec![Step::KeepAddons, by_invoice], others.collect()].concat();
    let session = session("completed", T + 2, "cs_x", json!({"pack": "p1000"}), json!({"invoice": "in_x"}));
    for steps in [bought.clone(), [bought, vec![session]].concat()] {
        let run = Run::of(&steps);
        assert_eq!((run.account.state.packs.len(), run.balance().get()), (24, 25_000), "{}", run.summary());
    }
}

/// Two packs of one session, of which one expires. A spend empties it and thirteen others, and the account
/// keeps twelve empty packs.
#[test]
fn credits_of_a_dropped_pack_do_not_return_to_another_pack_of_its_session() {
    let edit = Step::Edit(
        "credits = 1000\nprices = [\"price_p1000\"]",
        "credits = 1000\nexpires_days = 10\nprices = [\"price_p1000\"]\n[[pack]]\nname = \"p500\"\ncredits = 500\n\
         prices = [\"price_p500\"]",
    );
    let of = |price: &str| json!({"price": {"id": price}, "quantity": 1});
    let lines = json!({"line_items": {"data": [of("price_p1000"), of("price_p500")]}});
    let mut steps = vec![
        Step::Edit("[policy]\n", "[policy]\nspend_order = \"expiring_first\"\n"),
        edit,
        session("completed", T, "cs_0", json!({}), lines),
    ];
    steps.extend((1..14).map(|number| super::pack(T + number, &format!("cs_{number}"))));
    steps.extend([Step::Spend(1000), Step::Spend(13_200), Step::GiveBack(0, 1000)]);
    let run = Run::of(&steps);
    assert_eq!(run.balance().get(), 300, "{}", run.summary());
}

/// `invoice_payment.paid` names the payment of one invoice.
#[test]
fn a_payment_is_linked_to_the_products_of_its_own_invoice() {
    let products = Step::Edit(
        "[policy]\n",
        "[features]\nexport = \"switch\"\n[[product]]\nname = \"course\"\nfeatures = { export = true }\n\
         prices = [\"price_course\"]\n[policy]\n",
    );
    let sold = |at: i64, id: &str| manual(at, id, &[once("price_course", 500)]);
    let run = Run::of(&[products, sold(T, "in_1"), sold(T + 1, "in_2"), tie(T + 2, "in_1")]);
    let payments: Vec<_> = run.account.state.products.iter().map(|one| one.payment.as_deref()).collect();
    assert_eq!(payments, [Some("pi_in_1"), None]);
}

/// One purchase of two packs, of which one expires. What was spent of a pack of the invoice counts for the same
/// pack of the session.
#[test]
fn spends_of_an_invoices_packs_count_for_the_packs_of_the_session_with_the_same_end() {
    let two = Step::Edit(
        "[[pack]]\nname = \"p1000\"\n",
        "[[pack]]\nname = \"p500\"\ncredits = 500\nprices = [\"price_p500\"]\n[[pack]]\nname = \"p1000\"\n\
         expires_days = 40\n",
    );
    let lines = ["price_p500", "price_p1000"];
    let billed = lines.map(|price| once(price, 1000));
    let listed = lines.map(|price| json!({"price": {"id": price}, "quantity": 1}));
    let patch = json!({"parent": null, "payment_intent": "pi_cs_1"});
    let run = Run::of(&[
        two,
        bill_with(T + 5, "in_1", "manual", &billed, patch),
        Step::Spend(300),
        session("completed", T, "cs_1", json!({}), json!({"line_items": {"data": listed}})),
    ]);
    let lots: Vec<_> =
        run.account.state.packs.iter().map(|pack| (pack.expires_days, pack.spent.get())).collect();
    assert_eq!(lots, [(0, 300), (40, 0)], "{}", run.summary());
}
