//! What is found in a Stripe account. The lists have the shapes of <https://docs.stripe.com/api/prices/object>,
//! `/subscriptions/object`, `/webhook_endpoints/object` and `/customer_portal/configurations/object`.

use serde_json::json;

use super::*;

const CATALOG: &str = r#"
[tiers]
free = 0
pro = 1
[policy]
default_tier = "free"
[[plan]]
name = "pro"
tier = "pro"
credits = 10
prices = ["price_live", "price_test"]
lookup_keys = ["pro_monthly"]
[[pack]]
name = "small"
credits = 5
prices = ["price_small"]
[[plan]]
name = "team"
tier = "pro"
credits = 10
stripe_products = ["prod_team"]
[[ignore]]
product = "prod_other"
[[order]]
mode = "dfy"
plans = { starter = { revisions = 1, prices = ["price_order"] } }
"#;

fn catalog() -> Catalog {
    Catalog::parse(CATALOG).unwrap()
}

/// `level check: problem` of each finding.
fn found(check: impl FnOnce(&mut Findings)) -> Vec<String> {
    let mut findings = Findings::default();
    check(&mut findings);
    let line = |one: &Finding| format!("{} {}: {}", one.level.as_str(), one.check, one.problem);
    findings.0.iter().map(line).collect()
}

fn refused(status: impl Into<Option<u16>>) -> ReadFailure {
    ReadFailure { status: status.into(), message: "GET failed".to_owned() }
}

fn list(objects: &[Value]) -> Result<List, ReadFailure> {
    Ok(List { objects: objects.to_vec(), is_complete: true, is_partial: false })
}

#[test]
fn an_outage_is_no_answer_or_one_that_asks_for_patience() {
    let is_outage = |status: Option<u16>| refused(status).is_outage();
    assert!([None, Some(409), Some(429), Some(500), Some(503)].into_iter().all(is_outage));
    assert!(![Some(400), Some(401), Some(403), Some(404), Some(499)].into_iter().any(is_outage));
}

#[test]
fn a_catalog_without_plans_packs_products_and_orders_sells_nothing() {
    assert!(sells(&catalog()));
    assert!(!sells(&Catalog::parse("[tiers]\nfree = 0\n[policy]\ndefault_tier = \"free\"\n").unwrap()));
}

#[test]
fn the_key_is_checked_by_one_answer_for_each_list() {
    let now = Timestamp::from_unix(10_000);
    let key = |failures: &[(usize, Option<u16>)]| {
        let mut answers: Vec<Result<Option<Timestamp>, ReadFailure>> = vec![Ok(Some(now)); READ.len()];
        for (place, status) in failures {
            answers[*place] = Err(refused(*status));
        }
        let mut works = false;
        let problems = found(|findings| works = check_key(&answers, now, findings));
        (works, problems)
    };
    let fails = |problem: &str| (false, vec![format!("error {problem}")]);
    let all = |status: u16| (0..READ.len()).map(|place| (place, Some(status))).collect::<Vec<_>>();
    assert_eq!(key(&[]), (true, vec![]));
    assert_eq!(key(&all(401)), fails("key: Stripe does not accept the key in STRIPE_SECRET_KEY"));
    assert_eq!(key(&all(404)), fails("stripe: STRIPE_API_BASE has none of Stripe's routes"));
    assert_eq!(key(&[(6, Some(404))]), (true, vec![]), "an emulator without invoice payments");
    let forbidden = "error key: the key may not read invoices, prices".to_owned();
    assert_eq!(key(&[(1, Some(403)), (4, Some(403))]), (true, vec![forbidden.clone()]));
    assert_eq!(key(&[(2, None)]), fails("stripe: GET failed"));
    assert_eq!(key(&[(2, Some(500))]), fails("stripe: GET failed"));
    let both = (false, vec![forbidden, "error stripe: GET failed".to_owned()]);
    assert_eq!(key(&[(1, Some(403)), (2, Some(500)), (4, Some(403))]), both);
}

#[test]
fn a_clock_may_differ_by_thirty_seconds() {
    let now = Timestamp::from_unix(10_000);
    let clock = |ahead: i64| {
        let answers = vec![Ok(Some(now.plus_seconds(-ahead))); READ.len()];
        found(|findings| assert!(check_key(&answers, now, findings)))
    };
    let says = |level: &str, seconds: i64, side: &str| {
        vec![format!("{level} clock: the clock of this machine is {seconds} s {side} Stripe's")]
    };
    assert_eq!((clock(30), clock(-30)), (vec![], vec![]));
    assert_eq!(clock(31), says("warning", 31, "ahead of"));
    assert_eq!(clock(-31), says("warning", 31, "behind"));
    assert_eq!(clock(300), says("warning", 300, "ahead of"));
    assert_eq!(clock(301), says("error", 301, "ahead of"));
    let unknown = vec![Ok(None); READ.len()];
    assert_eq!(found(|findings| assert!(check_key(&unknown, now, findings))), Vec::<String>::new());
}

#[test]
fn a_list_that_was_not_read_is_a_finding_by_its_reason() {
    let deployment = Deployment { url: "https://a.test/hook", other_urls: &[], prefix: "p", livemode: None };
    let endpoint =
        |status: Option<u16>| found(|findings| check_endpoint(&Err(refused(status)), &deployment, findings));
    let forbidden = "endpoint: the key may not read webhook endpoints, so they were not checked";
    assert_eq!(endpoint(Some(403)), [format!("warning {forbidden}")]);
    let missing = "endpoint: this Stripe has no webhook endpoints, so they were not checked";
    assert_eq!(endpoint(Some(404)), [format!("note {missing}")]);
    assert_eq!(endpoint(None), ["error endpoint: GET failed"]);
    let portal = found(|findings| check_portal(&Err(refused(None)), None, findings));
    assert_eq!(portal, ["error portal: GET failed"]);
    let prices =
        |status: u16| found(|findings| check_prices(&Err(refused(status)), &catalog(), None, findings));
    assert_eq!((prices(403), prices(500)), (vec![], vec!["error prices: GET failed".to_owned()]));
    let subscriptions =
        |status: u16| found(|findings| check_subscriptions(&[Err(refused(status))], &catalog(), findings));
    let failed = vec!["error subscriptions: GET failed".to_owned()];
    assert_eq!((subscriptions(403), subscriptions(500)), (vec![], failed));
}

fn endpoint(id: &str, created: i64, patch: Value) -> Value {
    let types: Vec<&str> = endpoint::routed_types().collect();
    let base = json!({
        "id": id, "object": "webhook_endpoint", "url": "https://a.test/hook", "status": "enabled",
        "api_version": API_VERSION, "created": created, "enabled_events": types,
        "metadata": {"tallyhook": "p"},
    });
    crate::decide::tests::patched(base, &patch)
}

#[test]
fn the_newest_enabled_endpoint_of_the_deployment_is_checked() {
    let others = ["https://b.test/hook".to_owned()];
    let deployment =
        Deployment { url: "https://a.test/hook", other_urls: &others, prefix: "p", livemode: Some(true) };
    let check =
        |endpoints: &[Value]| found(|findings| check_endpoint(&list(endpoints), &deployment, findings));
    let fine = endpoint("we_1", 1, json!({}));
    assert_eq!(check(std::slice::from_ref(&fine)), Vec::<String>::new());
    let none = "error endpoint: no webhook endpoint at Stripe in live mode posts to https://a.test/hook, so \
        no event arrives";
    assert_eq!(check(&[]), [none]);
    let of_others = json!({"metadata": {"tallyhook": "q"}});
    assert_eq!(check(&[endpoint("we_1", 1, of_others)]), [none]);
    let replaced = json!({"metadata": {"tallyhook_replaced": "we_2"}});
    assert_eq!(check(&[endpoint("we_1", 1, replaced)]), [none]);
    for (what, patch, problem) in [
        ("another address of the webhook", json!({"url": "https://b.test/hook/"}), None),
        (
            "all types",
            json!({"enabled_events": ["*"]}),
            Some("warning endpoint: we_1 sends *, which tallyhook ignores"),
        ),
        (
            "disabled",
            json!({"status": "disabled"}),
            Some("error endpoint: we_1 is disabled, so Stripe sends no event"),
        ),
        (
            "another address",
            json!({"url": "https://c.test/hook"}),
            Some("error endpoint: we_1 posts to https://c.test/hook, not to https://a.test/hook"),
        ),
        (
            "an older version",
            json!({"api_version": "2024-06-20"}),
            Some("warning endpoint: we_1 sends events of API version 2024-06-20"),
        ),
        (
            "the account's version",
            json!({"api_version": null}),
            Some("warning endpoint: we_1 sends events of API version of the account's default"),
        ),
        (
            "no metadata",
            json!({"metadata": null}),
            Some("warning endpoint: we_1 has no metadata tallyhook=p, so a move of the URL would lose it"),
        ),
    ] {
        let problems = check(&[endpoint("we_1", 1, patch)]);
        assert_eq!(problems.len(), usize::from(problem.is_some()), "{what}: {problems:?}");
        if let Some(problem) = problem {
            assert!(problems[0].starts_with(problem), "{what}: {problems:?}");
        }
    }
    let few = check(&[endpoint("we_1", 1, json!({"enabled_events": ["invoice.paid"]}))]);
    assert!(few[0].starts_with("error endpoint: we_1 does not send ") && few.len() == 1, "{few:?}");
    // Stripe lists the newest first.
    let two = [endpoint("we_2", 2, json!({})), fine.clone()];
    assert_eq!(check(&two), ["warning endpoint: we_1 and we_2 both send every event"]);
    let off = [endpoint("we_2", 2, json!({"status": "disabled"})), fine.clone()];
    assert_eq!(check(&off), Vec::<String>::new());
    // An endpoint without the prefix counts only if none has it.
    let bare = [endpoint("we_2", 2, json!({"metadata": null})), fine];
    assert_eq!(check(&bare), Vec::<String>::new());
}

#[test]
fn the_portal_must_bill_a_plan_change_at_once_if_the_catalog_grants_it_at_once() {
    let configuration = |enabled: bool, behaviour: &str| {
        json!({"id": "bpc_1", "features": {"subscription_update": {
            "enabled": enabled, "proration_behavior": behaviour,
        }}})
    };
    let at_once = catalog();
    let on_payment =
        Catalog::parse(&CATALOG.replacen("[policy]", "[policy]\nplan_change = \"on_payment\"", 1));
    let on_payment = on_payment.unwrap();
    let check = |configurations: &[Value], catalog: Option<&Catalog>| {
        found(|findings| check_portal(&list(configurations), catalog, findings)).len()
    };
    let later = configuration(true, "create_prorations");
    assert_eq!(check(std::slice::from_ref(&later), Some(&at_once)), 1);
    assert_eq!(check(std::slice::from_ref(&later), Some(&on_payment)), 0);
    assert_eq!(check(&[later], None), 0);
    assert_eq!(check(&[configuration(true, "always_invoice")], Some(&at_once)), 0);
    assert_eq!(check(&[configuration(false, "create_prorations")], Some(&at_once)), 0);
    assert_eq!(check(&[], Some(&at_once)), 1, "no customer can open the portal");
}

fn price(id: &str, patch: Value) -> Value {
    let base = json!({"id": id, "object": "price", "active": true, "lookup_key": null, "product": "prod_x"});
    crate::decide::tests::patched(base, &patch)
}

fn all_prices() -> Vec<Value> {
    vec![
        price("price_live", json!({"lookup_key": "pro_monthly"})),
        price("price_small", json!({})),
        price("price_of_team", json!({"product": "prod_team"})),
        price("price_order", json!({})),
    ]
}

fn with_prices(prices: &[Value], is_complete: bool) -> Vec<String> {
    let prices = Ok(List { objects: prices.to_vec(), is_complete, is_partial: false });
    found(|findings| check_prices(&prices, &catalog(), Some(false), findings))
}

#[test]
fn each_thing_that_is_sold_has_a_price_at_stripe() {
    assert_eq!(with_prices(&all_prices(), true), Vec::<String>::new());
    let missing = |what: &str, ids: &str| {
        format!("error prices: {what}: Stripe has none of its prices ({ids}) in test mode")
    };
    let all = [
        missing("plan pro", "price_live, price_test, pro_monthly"),
        missing("plan team", "prod_team"),
        missing("pack small", "price_small"),
        missing("order dfy starter", "price_order"),
    ];
    assert_eq!(with_prices(&[], true), all);
    let other = price("price_9", json!({"product": "prod_9"}));
    assert_eq!(with_prices(&[other], true), all, "a price of another product");
    // Of a list that was not read to its end, only prices by id are certain: they were read one by one.
    assert_eq!(with_prices(&[], false), [all[2].clone(), all[3].clone()]);
    let partial = Ok(List { is_partial: true, ..List::default() });
    let problems = found(|findings| check_prices(&partial, &catalog(), None, findings));
    let some = "note prices: the account has too many prices, so those of the catalog were not all compared";
    assert_eq!(problems, [some]);
}

#[test]
fn a_deactivated_price_is_a_finding_unless_another_one_is_sold_in_its_place() {
    let off = json!({"active": false});
    let with = |changed: Vec<Value>| {
        let mut prices = all_prices();
        for one in changed {
            prices.retain(|known| known["id"] != one["id"]);
            prices.push(one);
        }
        with_prices(&prices, true)
    };
    let small = "warning prices: pack small: price_small is deactivated at Stripe, so it cannot be bought";
    assert_eq!(with(vec![price("price_small", off.clone())]), [small]);
    let keyed = json!({"active": false, "lookup_key": "pro_monthly"});
    let pro = "warning prices: plan pro: price_live is deactivated at Stripe, so it cannot be bought";
    assert_eq!(with(vec![price("price_live", keyed)]), [pro]);
    let moved = price("price_new", json!({"lookup_key": "pro_monthly"}));
    assert_eq!(with(vec![price("price_live", off.clone()), moved]), Vec::<String>::new());
    let both = vec![
        price("price_live", json!({"active": false, "lookup_key": "pro_monthly"})),
        price("price_test", json!({})),
    ];
    assert_eq!(with(both), Vec::<String>::new(), "one of two is sold");
    // The catalog also finds the pack's prices by their product.
    let of_product = "prices = [\"price_small\"]\nstripe_products = [\"prod_small\"]";
    let by_product = Catalog::parse(&CATALOG.replace("prices = [\"price_small\"]", of_product)).unwrap();
    let with_new = |product: &str| {
        let off = json!({"active": false, "product": "prod_small"});
        let mut prices = vec![price("price_small", off), price("price_new", json!({"product": product}))];
        prices.extend(all_prices().into_iter().filter(|known| known["id"] != "price_small"));
        let prices = Ok(List { objects: prices, is_complete: true, is_partial: false });
        found(|findings| check_prices(&prices, &by_product, Some(false), findings))
    };
    assert_eq!(with_new("prod_small"), Vec::<String>::new());
    assert_eq!(with_new("prod_y"), [small]);
    let without_key = "warning prices: plan pro: no price at Stripe has the lookup key pro_monthly";
    assert_eq!(with(vec![price("price_live", json!({}))]), [without_key]);
    assert_eq!(
        with_prices(&[all_prices(), vec![price("price_live", off)]].concat(), false),
        Vec::<String>::new()
    );
}

#[test]
fn prices_beyond_the_list_are_read_one_by_one() {
    let unlisted = |prices: &[Value]| unlisted_prices(&catalog(), &list(prices).unwrap());
    assert_eq!(unlisted(&all_prices()), Vec::<String>::new());
    assert_eq!(unlisted(&[]), ["price_live", "price_test", "price_small", "price_order"]);
}

#[test]
fn a_live_subscription_with_a_price_that_the_catalog_lacks_is_a_finding() {
    let subscription = |id: &str, price: Value| json!({"id": id, "object": "subscription", "metadata": {}, "items": {"data": [{"price": price}]}});
    let check = |lists: &[&[Value]], is_complete: bool| {
        let lists: Vec<_> = lists
            .iter()
            .map(|objects| Ok(List { objects: objects.to_vec(), is_complete, is_partial: false }))
            .collect();
        found(|findings| check_subscriptions(&lists, &catalog(), findings))
    };
    let known = [
        subscription("sub_1", price("price_live", json!({}))),
        subscription("sub_2", price("price_k", json!({"lookup_key": "pro_monthly"}))),
        subscription("sub_3", price("price_t", json!({"product": {"id": "prod_team"}}))),
        subscription("sub_4", price("price_o", json!({"product": "prod_other"}))),
    ];
    assert_eq!(check(&[&known], true), Vec::<String>::new());
    let lacks = |id: &str| subscription(id, price("price_new", json!({})));
    let one = "error subscriptions: 1 live subscription is on price_new, which the catalog lacks, for example \
        sub_8; their events are parked";
    assert_eq!(check(&[&known, &[lacks("sub_8")]], true), [one]);
    let two = "error subscriptions: 2 live subscriptions are on price_new, which the catalog lacks, for example \
        sub_8; their events are parked";
    assert_eq!(check(&[&[lacks("sub_8")], &[lacks("sub_9")]], true), [two]);
    let bounded = "note subscriptions: only the newest 4 live subscriptions were compared with the catalog";
    assert_eq!(check(&[&known[..3], &known[3..]], false), [bounded]);
}

#[test]
fn the_findings_of_a_level_are_counted() {
    let mut findings = Findings::default();
    findings.error("a", "x", "y");
    findings.note("b", "x", "y");
    findings.note("c", "x", "y");
    let count = |level: Level| findings.count(level);
    assert_eq!([Level::Error, Level::Warning, Level::Note].map(count), [1, 0, 2]);
}

#[test]
fn a_price_is_ignored_when_all_fields_of_a_rule_match() {
    let rule = |product: &str, account: Option<&str>| IgnoreRule {
        product: Some(product.to_owned()),
        account: account.map(str::to_owned),
        ..IgnoreRule::default()
    };
    let price = json!({"id": "price_1", "product": "prod_1"});
    assert!(is_ignored(&[rule("prod_1", None)], &price, &Value::Null));
    assert!(!is_ignored(&[rule("prod_2", None)], &price, &Value::Null));
    assert!(!is_ignored(&[rule("prod_1", Some("acct_1"))], &price, &Value::Null));
    let of_app = IgnoreRule { metadata: [("app".to_owned(), "b".to_owned())].into(), ..rule("prod_1", None) };
    assert!(is_ignored(std::slice::from_ref(&of_app), &price, &json!({"app": "b"})));
    assert!(!is_ignored(&[of_app], &price, &json!({"app": "c"})));
    let organization = IgnoreRule { context: Some("acct_2".to_owned()), ..IgnoreRule::default() };
    assert!(!is_ignored(&[organization], &price, &Value::Null));
}

#[test]
fn a_long_list_of_names_is_cut() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    assert_eq!(named(&names), "a, b, c, d, e, f and 2 more");
    assert_eq!(named(&names[..6]), "a, b, c, d, e, f");
}
