use serde_json::json;

use super::*;
use crate::account::fix::Fix;
use crate::decide::tests::{CATALOG, P1, P2, Run, Step, invoice, line, pack, paid, patched, refunded, sub};

/// An account with its ledger, after some steps.
struct Book {
    account: Account,
    ledger: Vec<Entry>,
    catalog: Catalog,
    now: Timestamp,
}

impl Book {
    fn of(steps: &[Step], now: i64) -> Self {
        let run = Run::of(steps);
        Self {
            account: run.account,
            ledger: run.ledger.into_values().collect(),
            catalog: Catalog::parse(CATALOG).unwrap(),
            now: Timestamp::from_unix(now),
        }
    }

    fn keep(&mut self, change: &Change) {
        self.ledger.extend(change.entries.iter().cloned());
        self.account = self.account.after(change);
        let sum: i64 = self.ledger.iter().map(|entry| entry.delta).sum();
        assert_eq!(i64::try_from(self.balance()), Ok(sum), "the balance is the sum of the deltas");
    }

    fn hold(&mut self, name: &str, amount: u64, ttl: i64) -> Result<(), HoldError> {
        let hold = Hold { amount: Credits::new(amount), until: self.now.plus_seconds(ttl) };
        let change = self.account.hold(id(name), hold, &self.catalog, self.now)?;
        assert_eq!(change.entries, []);
        self.keep(&change);
        Ok(())
    }

    fn commit(&mut self, name: &str, held: u64, amount: u64, extend: bool) -> Result<Entry, HoldError> {
        let (held, amount) = (Credits::new(held), Credits::new(amount));
        let change = self.account.commit_hold(&id(name), held, amount, extend, &self.catalog, self.now)?;
        self.keep(&change);
        Ok(change.entries.last().unwrap().clone())
    }

    fn consume(&mut self, key: &str, amount: u64) -> Option<Entry> {
        let key = LedgerKey::consume(key);
        let change = self.account.consume(Credits::new(amount), key, &self.catalog, self.now)?;
        self.keep(&change);
        change.entries.last().cloned()
    }

    /// Gives credits back. Returns the credits that returned, the shortfall and the note.
    fn give_back(&mut self, spend: &Entry, amount: u64, key: &str) -> Result<(i64, u64, Option<Note>), u64> {
        let key = LedgerKey::unspend("s", key);
        let known = self.ledger.iter().find(|entry| entry.key == spend.key).unwrap();
        let (change, spend) = self
            .account
            .give_back(known, Credits::new(amount), key, &self.catalog, self.now)
            .map_err(|ExceedsSpend(left)| left.get())?;
        *self.ledger.iter_mut().find(|entry| entry.key == spend.key).unwrap() = spend.clone();
        self.keep(&change);
        let entry = change.entries.last().unwrap();
        assert_eq!((entry.kind, entry.of.as_ref()), (EntryKind::GiveBack, Some(&spend.key)));
        Ok((entry.delta, entry.shortfall.get(), entry.note))
    }

    fn balance(&self) -> u64 {
        self.account.state.balance(&self.catalog.policy, self.now).get()
    }

    fn available(&self) -> u64 {
        self.account.state.available(&self.catalog.policy, self.now).get()
    }

    fn at(&mut self, now: i64) {
        self.now = Timestamp::from_unix(now);
    }
}

fn id(name: &str) -> HoldId {
    hold_id(&UserId::new("user_1").unwrap(), name)
}

fn period(start: i64, invoice: &str, reason: &str) -> Step {
    paid(start, invoice, reason, "price_pro", start)
}

#[test]
fn a_hold_lowers_the_available_credits_and_not_the_balance() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    assert_eq!((book.balance(), book.available()), (500, 200));
    assert!(book.consume("too much", 201).is_none());
    assert_eq!(book.hold("b", 201, 60), Err(HoldError::Insufficient(Credits::new(200))));
    Book::of(&[Step::Signup], 10).hold("all", 500, 60).unwrap();
    assert_eq!(book.consume("enough", 200).unwrap().delta, -200);
    assert_eq!((book.balance(), book.available()), (300, 0));
    let entry = book.commit("a", 300, 120, false).unwrap();
    assert_eq!(
        (entry.key.as_str(), entry.delta, entry.worth.get()),
        (&*format!("hold#{}", id("a")), -120, 120)
    );
    assert_eq!((book.balance(), book.available()), (180, 180));
}

#[test]
fn a_hold_ends_in_its_last_second_without_a_write() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    let seen = |book: &mut Book, now| {
        book.at(now);
        (book.available(), book.account.state.open_hold(&id("a"), book.now).is_some())
    };
    assert_eq!((seen(&mut book, 69), seen(&mut book, 70)), ((200, true), (500, false)));
    assert_eq!(book.consume("all", 500).unwrap().delta, -500);
    assert!(book.account.state.holds.is_empty());
}

#[test]
fn an_account_has_at_most_64_open_holds() {
    let mut book = Book::of(&[Step::Signup], 10);
    for number in 0..64 {
        book.hold(&number.to_string(), 1, 60).unwrap();
    }
    assert_eq!(book.hold("one more", 1, 60), Err(HoldError::TooMany));
    book.commit("7", 1, 0, false).unwrap();
    book.hold("in its place", 1, 60).unwrap();
    book.at(70);
    book.hold("after their end", 1, 60).unwrap();
    assert_eq!((book.account.state.holds.len(), book.available()), (1, 499));
}

#[test]
fn more_than_the_hold_needs_extend_and_available_credits() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    let exceeds = HoldError::Exceeds(Credits::new(300), Credits::new(200));
    assert_eq!(book.commit("a", 300, 301, false), Err(exceeds));
    assert_eq!(book.commit("a", 300, 501, true), Err(exceeds));
    assert_eq!(book.commit("a", 300, 500, true).unwrap().delta, -500);
    assert_eq!(book.balance(), 0);
}

#[test]
fn a_commit_after_the_end_is_a_plain_spend() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    book.at(70);
    book.hold("b", 400, 60).unwrap();
    assert_eq!(book.commit("a", 300, 300, false), Err(HoldError::Insufficient(Credits::new(100))));
    assert_eq!(
        book.commit("a", 300, 301, false),
        Err(HoldError::Exceeds(Credits::new(300), Credits::new(100)))
    );
    // The answer is not final: once the other hold has ended, the spend succeeds.
    book.at(130);
    let entry = book.commit("a", 300, 300, false).unwrap();
    assert_eq!((entry.delta, entry.shortfall, entry.note), (-300, Credits::ZERO, None));
}

#[test]
fn a_release_moves_nothing() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    let change = book.account.release_hold(&id("a"), Credits::new(300), &book.catalog, book.now);
    let [entry] = &change.entries[..] else { panic!("{change:?}") };
    assert_eq!((entry.kind, entry.delta, entry.worth.get()), (EntryKind::Release, 0, 300));
    book.keep(&change);
    assert_eq!((book.balance(), book.available()), (500, 500));
    // Nothing was spent, so nothing can be given back.
    assert_eq!(book.give_back(&change.entries[0], 1, "k"), Err(0));
}

#[test]
fn a_commit_takes_the_credits_left_after_a_refund_and_records_the_rest() {
    let steps = vec![period(P1, "in_1", "subscription_create")];
    let mut book = Book::of(&steps, P1 + 10);
    book.hold("a", 3000, 600).unwrap();
    // Half of the payment goes back while the job runs, then the rest is spent elsewhere: nothing is left.
    let after = Book::of(&[steps, vec![refunded(P1 + 20, "pi_in_1", 2000)]].concat(), P1 + 30);
    let holds = book.account.state.holds.clone();
    book = after;
    book.account.state.holds = holds;
    assert_eq!((book.balance(), book.available()), (0, 0));
    let entry = book.commit("a", 3000, 3000, false).unwrap();
    assert_eq!((entry.delta, entry.shortfall.get(), entry.note), (0, 3000, Some(Note::Shortfall)));
    // What was never taken does not return.
    assert_eq!(book.give_back(&entry, 1000, "k"), Ok((0, 1000, Some(Note::Shortfall))));
    assert_eq!(book.balance(), 0);
}

#[test]
fn credits_return_to_the_lots_they_came_from_the_last_first() {
    let steps = [Step::Signup, Step::Grant(100), pack(50, "cs_1")];
    let mut book = Book::of(&steps, 100);
    let spend = book.consume("job", 1400).unwrap();
    let from: Vec<(&str, u64)> =
        spend.from.iter().map(|taken| (taken.lot.as_str(), taken.credits.get())).collect();
    let [(signup, 500), (grant, 100), ("session#cs_1", 800)] = from[..] else { panic!("{from:?}") };
    assert_eq!((signup, grant.starts_with("fix#")), ("signup", true));
    let lots = |book: &Book| {
        let all = book.account.state.buckets(&book.catalog.policy, book.now);
        (
            all.sum(|lot| *lot == Lot::Signup).get(),
            all.sum(|lot| matches!(lot, Lot::Grant(_))).get(),
            all.sum(|lot| matches!(lot, Lot::Pack(_))).get(),
        )
    };
    assert_eq!(lots(&book), (0, 0, 200));
    assert_eq!(book.give_back(&spend, 700, "1"), Ok((700, 0, None)));
    assert_eq!(lots(&book), (0, 0, 900));
    assert_eq!(book.give_back(&spend, 250, "2"), Ok((250, 0, None)));
    assert_eq!(lots(&book), (50, 100, 1000));
    assert_eq!(book.give_back(&spend, 451, "3"), Err(450));
    assert_eq!(book.give_back(&spend, 450, "3"), Ok((450, 0, None)));
    assert_eq!((lots(&book), book.give_back(&spend, 1, "4")), ((500, 100, 1000), Err(0)));
}

#[test]
fn credits_do_not_return_to_a_period_that_is_over() {
    let first = period(P1, "in_1", "subscription_create");
    let mut book = Book::of(std::slice::from_ref(&first), P1 + 10);
    let spend = book.consume("job", 1000).unwrap();
    assert_eq!(spend.from[0].lot.as_str(), "invoice#in_1");
    assert_eq!(book.give_back(&spend, 400, "1"), Ok((400, 0, None)));
    assert_eq!(book.balance(), 4400);
    // The renewal arrives.
    let renewed = Run::of(&[first, Step::Spend(600), period(P2, "in_2", "subscription_cycle")]);
    book.account = renewed.account;
    book.ledger.extend(renewed.ledger.into_values().filter(|entry| entry.key.as_str() == "invoice#in_2"));
    book.at(P2 + 10);
    assert_eq!((book.balance(), book.ledger.iter().map(|entry| entry.delta).sum::<i64>()), (5000, 5000));
    assert_eq!(book.give_back(&spend, 600, "2"), Ok((0, 600, Some(Note::LotEnded))));
    assert_eq!(book.balance(), 5000);
}

#[test]
fn a_grant_with_an_end_takes_credits_back_until_then() {
    let mut book = Book::of(&[], 10);
    let until = Some(Timestamp::from_unix(200));
    let grant = Fix::Grant(Credits::new(70), until);
    let change = book.account.fix(grant, LedgerKey::fix("g"), "admin:ann", "r", &book.catalog, book.now);
    book.keep(&change);
    let spend = book.consume("job", 70).unwrap();
    assert_eq!(spend.from[0].until, until);
    book.at(199);
    assert_eq!((book.give_back(&spend, 30, "1"), book.balance()), (Ok((30, 0, None)), 30));
    book.at(200);
    assert_eq!(book.balance(), 0);
    let spend = book.ledger.iter().find(|entry| entry.key == spend.key).unwrap().clone();
    let change = book
        .account
        .give_back(&spend, Credits::new(40), LedgerKey::unspend("s", "2"), &book.catalog, book.now)
        .unwrap()
        .0;
    // The rest of the grant ends, and credits that are given back after that end with it.
    let entries: Vec<(i64, Option<Note>)> =
        change.entries.iter().map(|entry| (entry.delta, entry.note)).collect();
    assert_eq!(entries, [(-30, None), (0, Some(Note::LotEnded))]);
}

/// The account joins grants by hand beyond 16.
#[test]
fn joined_grants_end_at_the_later_of_their_ends() {
    let mut book = Book::of(&[], 10);
    for number in 0..17 {
        let until = Timestamp::from_unix(1000 + 60 * number);
        let (grant, key) = (Fix::Grant(Credits::new(100), Some(until)), LedgerKey::fix(&number.to_string()));
        let change = book.account.fix(grant, key, "admin:ann", "r", &book.catalog, book.now);
        book.keep(&change);
    }
    let at = |book: &mut Book, now| {
        book.at(now);
        book.balance()
    };
    assert_eq!(book.account.state.grants.len(), 16);
    assert_eq!([at(&mut book, 1059), at(&mut book, 1060), at(&mut book, 1120)], [1700, 1500, 1400]);
}

#[test]
fn an_empty_grant_that_comes_back_in_parts_was_granted_the_sum_of_them() {
    let mut book = Book::of(&[], 10);
    let grant = |book: &mut Book, key: &str, credits: u64| {
        let (fix, key) = (Fix::Grant(Credits::new(credits), None), LedgerKey::fix(key));
        let change = book.account.fix(fix, key, "admin:ann", "r", &book.catalog, book.now);
        book.keep(&change);
    };
    grant(&mut book, "g", 100);
    let spends = ["a", "b"].map(|key| book.consume(key, 50).unwrap());
    grant(&mut book, "other", 1);
    assert_eq!(book.account.state.grants.len(), 1, "the empty grant is dropped");
    for spend in spends {
        let key = spend.key.as_str().to_owned();
        assert_eq!(book.give_back(&spend, 50, &key), Ok((50, 0, None)));
    }
    let grants = &book.account.state.grants;
    let held: Vec<(u64, u64)> = grants.iter().map(|grant| (grant.granted.get(), grant.left.get())).collect();
    assert_eq!(held, [(1, 1), (100, 100)]);
}

#[test]
fn a_plan_for_life_and_a_pack_of_one_session_are_two_lots() {
    let lines = serde_json::json!({"line_items": {"data": [
        {"price": {"id": "price_pro"}, "quantity": 1}, {"price": {"id": "price_p1000"}, "quantity": 1},
    ]}});
    let sold = crate::decide::tests::session("completed", 50, "cs_1", serde_json::json!({}), lines);
    let mut book = Book::of(&[sold], 60);
    let spend = book.consume("job", 5100).unwrap();
    let from: Vec<(&str, u64)> =
        spend.from.iter().map(|taken| (taken.lot.as_str(), taken.credits.get())).collect();
    assert_eq!(from, [("session#cs_1", 5000), ("session#cs_1", 100)]);
    assert_eq!(book.give_back(&spend, 300, "1"), Ok((300, 0, None)));
    let state = &book.account.state;
    assert_eq!((state.packs[0].spent, state.lifetimes[0].spent), (Credits::ZERO, Credits::new(4800)));
}

#[test]
fn credits_return_to_a_month_of_a_paid_year_and_to_what_it_carried() {
    let catalog = Catalog::parse(&CATALOG.replacen(
        "trial_credits = 2000",
        "trial_credits = 2000\nrefill = \"month\"\nrollover = { percent = 50, max = 100, periods = 1 }",
        1,
    ));
    let monthly = Step::Edit(
        "trial_credits = 2000",
        "trial_credits = 2000\nrefill = \"month\"\nrollover = { percent = 50, max = 100, periods = 1 }",
    );
    let mut year = crate::decide::tests::line("price_pro", 1, P1);
    year["period"]["end"] = serde_json::json!(P1 + 365 * 86_400);
    let bought = crate::decide::tests::invoice(
        "paid",
        P1,
        "in_1",
        "subscription_create",
        &[year],
        serde_json::json!({}),
    );
    // The second month has 5,000 credits of its own and 100 that it took over.
    let second = P1 + 32 * 86_400;
    let mut book = Book::of(&[monthly, bought], second);
    book.catalog = catalog.unwrap();
    assert_eq!(book.balance(), 5100);
    let spend = book.consume("job", 5080).unwrap();
    let lots: Vec<(&str, u64)> =
        spend.from.iter().map(|taken| (taken.lot.as_str(), taken.credits.get())).collect();
    assert_eq!(lots, [("slice#in_1#si_1#1", 5000), ("rollover#in_1#si_1#1", 80)]);
    assert_eq!(book.give_back(&spend, 90, "1"), Ok((90, 0, None)));
    assert_eq!(book.balance(), 110);
    // In the third month both lots have ended.
    book.at(P1 + 63 * 86_400);
    let before = book.balance();
    let known = book.ledger.iter().find(|entry| entry.key == spend.key).unwrap().clone();
    let key = LedgerKey::unspend("s", "2");
    let (change, _) = book.account.give_back(&known, Credits::new(50), key, &book.catalog, book.now).unwrap();
    let last = change.entries.last().unwrap();
    assert_eq!((last.delta, last.note), (0, Some(Note::LotEnded)));
    assert_eq!(change.state.balance(&book.catalog.policy, book.now).get(), before);
}

#[test]
fn a_spend_names_only_the_lots_that_it_took_from() {
    let mut book = Book::of(&[Step::Signup, Step::Grant(100)], 10);
    let lots = |entry: &Entry| entry.from.iter().map(|taken| taken.lot.to_string()).collect::<Vec<_>>();
    assert_eq!(lots(&book.consume("a", 500).unwrap()), ["signup"]);
    assert_eq!(lots(&book.consume("b", 100).unwrap()), ["fix#1"]);
}

#[test]
fn credits_of_a_pack_that_a_reset_ended_do_not_return_to_another_pack() {
    let line = crate::decide::tests::shapes::once("price_p1000", 2000);
    let on_invoice = crate::decide::tests::invoice(
        "paid",
        P1 - 50,
        "in_p",
        "manual",
        &[line],
        serde_json::json!({"parent": null, "metadata": {"user_id": "user_1"}}),
    );
    let mut book = Book::of(std::slice::from_ref(&on_invoice), P1 - 40);
    let spend = book.consume("job", 600).unwrap();
    assert_eq!(spend.from[0].lot.as_str(), "invoice#in_p");
    // A plan begins, which ends the pack. Another pack is bought later, and a part of it is spent.
    let renewed = Run::of(&[
        on_invoice,
        Step::Spend(600),
        period(P1, "in_1", "subscription_create"),
        pack(P1 + 5, "cs_2"),
        Step::Spend(5700),
    ]);
    book.account = renewed.account;
    let known: Vec<LedgerKey> = book.ledger.iter().map(|entry| entry.key.clone()).collect();
    let is_new = |entry: &Entry| !known.contains(&entry.key) && entry.key.as_str() != "consume#1";
    book.ledger.extend(renewed.ledger.into_values().filter(is_new));
    book.at(P1 + 10);
    assert_eq!(book.balance(), 300);
    assert_eq!(book.give_back(&spend, 600, "1"), Ok((0, 600, Some(Note::LotEnded))));
    assert_eq!(book.balance(), 300);
}

#[test]
fn credits_return_to_an_imported_balance() {
    let import = Step::Import { as_of: 5, credits: 300, with_signup: false, invoices: Vec::new() };
    let mut book = Book::of(&[import], 10);
    let spend = book.consume("job", 120).unwrap();
    assert_eq!(spend.from[0].lot.as_str(), "import#b");
    assert_eq!(book.give_back(&spend, 50, "1"), Ok((50, 0, None)));
    assert_eq!(book.balance(), 230);
}

#[test]
fn the_next_change_is_the_end_of_a_hold_while_it_is_open() {
    let mut book = Book::of(&[Step::Signup], 10);
    book.hold("a", 300, 60).unwrap();
    let next = |book: &Book| {
        let access = book.account.state.access(&book.catalog, book.now);
        book.account.state.next_change(&access, book.now).map(Timestamp::unix)
    };
    assert_eq!(next(&book), Some(70));
    book.at(70);
    assert_eq!(next(&book), None);
}

#[test]
fn the_id_of_a_hold_is_made_of_user_and_key() {
    let user = |id: &str| UserId::new(id).unwrap();
    assert_eq!(hold_id(&user("a"), "k"), hold_id(&user("a"), "k"));
    assert_ne!(hold_id(&user("a"), "k"), hold_id(&user("b"), "k"));
    assert_ne!(hold_id(&user("a"), "k"), hold_id(&user("a"), "l"));
    assert_eq!(hold_id(&user("a"), "k").as_str().len(), 37);
}

#[test]
fn credits_return_to_the_item_that_they_were_taken_from_also_under_its_later_name() {
    let two = json!([1, 2].map(|number| {
        json!({"id": format!("si_{number}"), "price": {"id": "price_pro"}, "quantity": 1,
            "current_period_start": P1, "current_period_end": P2})
    }));
    let second = json!({"parent": {"subscription_item_details": {"subscription_item": "si_2"}}});
    let lines = [line("price_pro", 1, P1), patched(line("price_pro", 1, P1), &second)];
    let given = [
        sub("created", P1, json!({"items": {"data": two}})),
        invoice("paid", P1 + 1, "in_1", "subscription_create", &lines, json!({})),
        Step::Spend(6000),
        Step::GiveBack(0, 600),
    ];
    let run = Run::of(&given);
    let buckets = run.account.state.buckets(&run.catalog.policy, Timestamp::from_unix(P1 + 9));
    let left: Vec<_> = buckets.by_item().into_iter().map(|(item, left)| (item, left.get())).collect();
    assert_eq!(left, [("si_1", 0), ("si_2", 4600)], "{}", run.summary());
    // Before 2025-03-31.basil a line may name no item. The snapshot comes after the spend.
    let unnamed = json!({"parent": {"subscription_item_details": {"subscription_item": null}}});
    let unnamed = [patched(line("price_pro", 1, P1), &unnamed)];
    let given = [
        invoice("paid", P1 + 1, "in_1", "subscription_create", &unnamed, json!({})),
        Step::Spend(600),
        sub("created", P1, json!({})),
        Step::GiveBack(0, 600),
    ];
    assert_eq!(Run::of(&given).balance().get(), 5000, "{}", Run::of(&given).summary());
}

#[test]
fn credits_of_a_free_refill_return_to_it_alone() {
    let free = Step::Edit("[policy]\n", "[policy]\nfree_credits = 100\nfree_refill = \"month\"\n");
    let month = 31 * 86_400;
    for months in [2, 9] {
        let mut steps = vec![free.clone(), Step::Signup, Step::At(month), Step::Spend(60)];
        for number in 2..=months {
            steps.extend([Step::At(number * month), Step::Spend(30)]);
        }
        // The account remembers the newest four refills.
        steps.push(Step::GiveBack(0, 60));
        let run = Run::of(&steps);
        assert_eq!(run.balance().get(), 70, "{}", run.summary());
        assert!(run.account.state.grants.is_empty(), "{}", run.summary());
    }
}

/// A yearly item becomes monthly within its period, and half of that is paid. The other item goes on.
#[test]
fn credits_of_a_period_that_was_cut_short_do_not_return_while_another_item_runs() {
    use crate::decide::tests::shapes::{DAY, T, YEAR, bill_with, flagged, item, line, month, shows};
    let (at, boost) = (T + 10 * DAY, item("si_2", "price_boost", T, T + YEAR));
    let patch = |paid: i64| json!({"amount_paid": paid});
    let first =
        [line("si_1", "price_pro_year", 20_000, T, T + YEAR), line("si_2", "price_boost", 100, T, T + YEAR)];
    let second = [
        flagged("si_1", "price_pro_year", -1000, at, T + YEAR),
        line("si_1", "price_pro", 2000, at, month(at)),
    ];
    let given = [
        shows(T, "active", &[item("si_1", "price_pro_year", T, T + YEAR), boost.clone()]),
        bill_with(T + 1, "in_1", "subscription_create", &first, patch(20_100)),
        Step::Spend(4000),
        shows(at, "active", &[item("si_1", "price_pro", at, month(at)), boost]),
        bill_with(at + 1, "in_2", "subscription_update", &second, patch(500)),
    ];
    assert_eq!(Run::of(&given).balance().get(), 3300);
    let back = Run::of(&[&given[..], &[Step::GiveBack(0, 1000)]].concat());
    assert_eq!(back.balance().get(), 3300, "{}", back.summary());
}
