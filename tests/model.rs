//! A model of the whole pipeline: random commands run against the real handlers, and the result must equal a
//! fold of the rules over the events in order. A failing case is reduced by leaving out commands, and
//! printed. `MODEL_SEED=7 MODEL_CASES=5000 cargo test -p tests model` runs other and more cases.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};
use tallyhook_core::account::{Account, Cause, Fact};
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Outcome, Payments, decide};
use tallyhook_core::event::{self, Event, Family};
use tallyhook_core::ids::UserId;
use tallyhook_core::ledger::LedgerKey;
use tallyhook_core::timestamp::Timestamp;

use crate::crash_points::{CALL_FAILURES, CallFailure};
use crate::invariants::{Tables, check_quiet};
use crate::support::{World, pack, sample, with_id};

/// A command. Events are named by their position in the story.
#[derive(Clone, Debug)]
enum Command {
    /// Stripe sends an event, for the first time or again.
    Deliver(usize),
    /// The same, with a fault at the webhook's call.
    DeliverInto(usize, CallFailure),
    /// A sender without the secret sends it.
    Forge(usize),
    /// A worker takes a batch.
    Poll(Family),
    /// The same, with a fault at a call.
    PollInto(Family, CallFailure, usize),
    /// A worker takes a batch, and its instance dies before it is deleted.
    PollAndDie(Family),
    /// Two workers take batches at once, the first of them twice.
    Race(Family),
    /// Time passes, in seconds.
    Pass(i64),
    /// The app spends, under a key of its own or one used before.
    Spend(u64, u8),
}

/// A subscriber, a user who buys packs and gets refunds, and a user who buys packs and spends.
fn story() -> Vec<(&'static str, Value)> {
    let mut events = Vec::new();
    for name in [
        "checkout.session.completed",
        "customer.subscription.created",
        "invoice.paid",
        "customer.subscription.updated",
        "invoice.paid.renewal",
        "customer.subscription.updated.upgrade.mid_period",
        "invoice.paid.proration.mid_period",
        "customer.subscription.updated.cancel",
    ] {
        events.push(("subscriber", sample(name, "subscriber")));
    }
    let of = |name: &str| -> Value {
        serde_json::from_str(
            &sample(name, "refunded").to_string().replace("cus_TallyHook0001", "cus_Refunded"),
        )
        .unwrap()
    };
    for name in
        ["checkout.session.completed.pack", "charge.refunded", "refund.created", "charge.refunded.full"]
    {
        events.push(("refunded", of(name)));
    }
    events.extend((1..=4).map(|number| ("spender", pack(&format!("spender{number}"), "spender", number))));
    events.push(("spender", with_id(pack("spender1", "spender", 1), "evt_spender1again")));
    events.push(("no-user", sample("product.updated", "no-user")));
    events
}

fn command(random: &mut fastrand::Rng, events: usize) -> Command {
    let place = random.usize(0..events);
    let family = [
        Family::CheckoutSession,
        Family::CustomerSubscription,
        Family::InvoicePaid,
        Family::Refund,
        Family::Customer,
    ];
    let family = family[random.usize(0..family.len())];
    let failure = CALL_FAILURES[random.usize(0..CALL_FAILURES.len())];
    match random.u8(0..20) {
        0..=6 => Command::Deliver(place),
        7 => Command::DeliverInto(place, failure),
        8 => Command::Forge(place),
        9..=11 => Command::Poll(family),
        12..=14 => Command::PollInto(family, failure, random.usize(0..5)),
        15 => Command::PollAndDie(family),
        16 => Command::Race(family),
        17 => Command::Pass([6, 181, 301, 1000][random.usize(0..4)]),
        _ => Command::Spend(random.u64(1..700), random.u8(0..6)),
    }
}

/// The result of the rules for the events of one user, each once, in the order in which they happened.
fn fold(user: &str, events: &[Event], catalog: &Catalog, now: Timestamp) -> Account {
    let mut account = Account::new(UserId::new(user).unwrap());
    let cause = Cause { by: "app".to_owned(), adjust_key: LedgerKey::signup(), created: now };
    account = account.after(&account.evolve(vec![Fact::Signup], &cause, catalog, now).unwrap());
    let mut payments = Payments::new();
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event.created);
    for event in events {
        if let Outcome::Apply(applied) = decide(&account, event, &payments, catalog, now) {
            payments.extend(applied.payments);
            account = account.after(&applied.change);
        }
    }
    account
}

struct Run {
    world: World,
    story: Vec<(&'static str, Value)>,
    sent: Vec<bool>,
    spends: BTreeMap<u8, (u64, u64)>,
}

impl Run {
    async fn command(&mut self, command: &Command) {
        let world = &self.world;
        let body = |place: usize| self.story[place].1.to_string().into_bytes();
        match command {
            Command::Deliver(place) => {
                self.sent[*place] = true;
                assert_eq!(
                    world.deliver(&body(*place)).await.0,
                    200,
                    "an event is refused while all is well"
                );
            }
            Command::DeliverInto(place, failure) => {
                self.sent[*place] = true;
                world.fail_at(*failure, 0);
                world.until_hung(world.deliver(&body(*place))).await;
                world.heal();
            }
            Command::Forge(place) => {
                let before = world.everything().await;
                assert_eq!(world.post(&body(*place), Some("t=1795219200,v1=00")).await.0, 400);
                assert_eq!(world.everything().await, before, "I13");
            }
            Command::Poll(family) => {
                world.poll(*family).await;
            }
            Command::PollInto(family, failure, at) => {
                let batch = world.receive(*family).await;
                world.fail_at(*failure, *at);
                let worker = world.worker(*family);
                let answer = world.until_hung(worker.handle(batch.clone())).await;
                world.heal();
                if let Some(answer) = answer {
                    world.delete(*family, &batch, &answer.unwrap()).await;
                }
            }
            Command::PollAndDie(family) => {
                let batch = world.receive(*family).await;
                world.worker(*family).handle(batch).await.unwrap();
            }
            Command::Race(family) => {
                let (one, two) = (world.receive(*family).await, world.receive(*family).await);
                let worker = world.worker(*family);
                let (first, second, _) = tokio::join!(
                    worker.handle(one.clone()),
                    worker.handle(two.clone()),
                    worker.handle(one.clone())
                );
                world.delete(*family, &one, &first.unwrap()).await;
                world.delete(*family, &two, &second.unwrap()).await;
            }
            Command::Pass(seconds) => world.pass_seconds(*seconds),
            Command::Spend(amount, key) => {
                let before = Tables::read(world).await.credits("spender");
                let wanted = self.spends.get(key).map_or(*amount, |(amount, _)| *amount);
                let path = "/users/spender/credits/consume";
                let (status, answer) =
                    world.app("POST", path, json!({"amount": wanted}), Some(&format!("k{key}"))).await;
                let after = Tables::read(world).await.credits("spender");
                let wanted_i64 = i64::try_from(wanted).unwrap();
                match (status, self.spends.get(key)) {
                    (200, Some((_, credits))) => {
                        assert_eq!(
                            (answer["credits"].as_u64(), after),
                            (Some(*credits), before),
                            "spent twice"
                        )
                    }
                    (200, None) => {
                        assert_eq!(after, before - wanted_i64);
                        self.spends.insert(*key, (wanted, answer["credits"].as_u64().unwrap()));
                    }
                    (402, None) => assert!(before < wanted_i64 && after == before, "I12: {before} {wanted}"),
                    _ => panic!("{status} {answer}"),
                }
            }
        }
        Tables::read(&self.world).await.check(&format!("after {command:?}"));
    }

    /// All faults end, and Stripe sends all events again. This also retries parked and failed events.
    async fn end(self, catalog: &Catalog) {
        let world = self.world;
        world.settle().await;
        let sent: Vec<(&str, Value)> = self
            .story
            .into_iter()
            .zip(&self.sent)
            .filter(|(_, sent)| **sent)
            .map(|(event, _)| event)
            .collect();
        for _ in 0..2 {
            for (_, event) in &sent {
                assert_eq!(world.deliver(event.to_string().as_bytes()).await.0, 200);
            }
            world.settle().await;
        }
        let dead = "http://sqs.test/000000000000/dead-letter";
        world.sqs.purge_queue().queue_url(dead).send().await.unwrap();
        let tables = check_quiet(
            &world,
            &sent.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(),
            "at the end",
        )
        .await;
        let spent: u64 = self.spends.values().map(|(amount, _)| amount).sum();
        let now = i64::try_from(
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
        )
        .unwrap();
        let now = Timestamp::from_unix(now);
        for (user, spent) in [("subscriber", 0), ("refunded", 0), ("spender", spent)] {
            let of_user = sent.iter().filter(|(owner, _)| *owner == user);
            let events: Vec<Event> =
                of_user.map(|(_, event)| event::read(event.to_string().as_bytes()).unwrap()).collect();
            let expected = fold(user, &events, catalog, now);
            let account = world.account(user).await;
            let balance: u64 = expected.state.balance(&catalog.policy, now).to_string().parse().unwrap();
            assert_eq!(
                account["credits"].as_u64(),
                Some(balance - spent),
                "I6, credits of {user}: {account:#}"
            );
            assert_eq!(
                account["tier"].as_str(),
                Some(expected.state.access(catalog, now).tier.as_str()),
                "I6, tier of {user}"
            );
            // Which of several refunds of one payment a share is booked under depends on which came first;
            // the sum does not.
            let grants =
                |key: &str| !["adjust#", "consume#", "refund#"].iter().any(|kind| key.starts_with(kind));
            let pk = format!("user#{user}");
            // The entry of an invoice is an item of the invoice.
            let entries = tables.accounts.iter().filter_map(|((partition, sk), item)| {
                let of_invoice = sk == "entry" && item["user_id"].as_str() == Some(user);
                let key = sk.strip_prefix("ledger#").filter(|_| *partition == pk);
                key.or_else(|| of_invoice.then_some(partition.as_str()))
            });
            let mut keys: Vec<String> = entries.filter(|key| grants(key)).map(str::to_owned).collect();
            keys.sort();
            let expected: Vec<String> = expected
                .recorded
                .keys()
                .map(|key| key.as_str().to_owned())
                .filter(|key| grants(key))
                .collect();
            assert_eq!(keys, expected, "I6, keys of {user}");
        }
    }
}

/// Runs a case. Returns whether it passes.
fn holds(commands: &[Command]) -> bool {
    let case = async {
        let world = World::new().await;
        for user in ["subscriber", "refunded", "spender"] {
            world.sign_up(user).await;
        }
        let story = story();
        let mut run = Run { world, sent: vec![false; story.len()], story, spends: BTreeMap::new() };
        for command in commands {
            run.command(command).await;
        }
        run.end(&Catalog::parse(include_str!("../catalog.toml")).unwrap()).await;
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(case))).is_ok()
}

/// Leaves out commands as long as the case still fails: halves first, single ones last.
fn shrink(mut commands: Vec<Command>) -> Vec<Command> {
    let mut size = commands.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < commands.len() {
            let mut fewer = commands.clone();
            fewer.drain(start..(start + size).min(commands.len()));
            if holds(&fewer) {
                start += size;
            } else {
                commands = fewer;
            }
        }
        size /= 2;
    }
    commands
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_commands_give_the_result_of_the_rules_in_order() {
    let seed = number("MODEL_SEED", 1);
    let events = story().len();
    for case in 0..number("MODEL_CASES", 25) {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(case));
        let commands: Vec<Command> = (0..random.usize(5..60)).map(|_| command(&mut random, events)).collect();
        if !holds(&commands) {
            let fewest = shrink(commands);
            panic!("case {case} of seed {seed} fails, and so do these commands alone: {fewest:#?}");
        }
    }
}
