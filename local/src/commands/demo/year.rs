//! The second life of `demo`: a yearly plan with monthly credits, from its first month to its renewal.
//!
//! A fake Stripe of its own makes the events. Its customer is on a test clock. The events carry the time of
//! the clock, and the running stack lets the account follow that time.

use anyhow::{Context as _, ensure};
use axum::http::Method;
use cli::output::print_line;
use local::fake_stripe::{FakeStripe, FiredEvent, Payment};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tallyhook_core::event::EventType;

use super::{Player, text};

const PRO: &str = "price_pro_yearly_test";
const BUSINESS: &str = "price_business_yearly_test";

/// What happens in a step.
enum Action {
    /// The app registers the user.
    Register,
    /// The customer buys the plan.
    Buy,
    /// The app spends credits.
    Spend(u32),
    /// The app holds credits for a job.
    Hold(u32),
    /// The app commits a part of the hold.
    Commit(u32),
    /// The test clock moves to the next month, or to the end of the paid year.
    Month,
    /// The customer changes to the larger plan.
    Upgrade,
    /// The newest payment is refunded in full.
    Refund,
}

/// Description and action of each step.
const STEPS: [(&str, Action); 23] = [
    ("the app registers the user", Action::Register),
    ("Stripe: pro for a year, with credits every month", Action::Buy),
    ("the app holds 1200 for a job", Action::Hold(1_200)),
    ("the job used 700 of them", Action::Commit(700)),
    ("the app spends 1300", Action::Spend(1_300)),
    ("month 2 begins", Action::Month),
    ("the app spends 700", Action::Spend(700)),
    ("month 3 begins", Action::Month),
    ("the app spends 6500", Action::Spend(6_500)),
    ("month 4 begins", Action::Month),
    ("month 5 begins", Action::Month),
    ("Stripe: from pro to business, the difference is paid", Action::Upgrade),
    ("the app spends 3000", Action::Spend(3_000)),
    ("month 6 begins", Action::Month),
    ("month 7 begins", Action::Month),
    ("Stripe: the payment of the upgrade is refunded", Action::Refund),
    ("month 8 begins", Action::Month),
    ("month 9 begins", Action::Month),
    ("month 10 begins", Action::Month),
    ("month 11 begins", Action::Month),
    ("month 12 begins", Action::Month),
    ("the app spends 1000", Action::Spend(1_000)),
    ("Stripe: the year ends, and the next one is paid", Action::Month),
];

/// What the life has come to.
struct Life<'a> {
    player: &'a Player,
    stripe: FakeStripe,
    hold: String,
    /// The key of the newest ledger entry that was printed.
    printed: String,
}

/// Plays the year, prints it month by month, and returns the account after each step.
pub async fn play(player: &Player) -> anyhow::Result<Vec<Value>> {
    let stripe = FakeStripe::new("sk_test_demo");
    stripe.put_yearly_price(PRO, 20_000);
    stripe.put_yearly_price(BUSINESS, 40_000);
    let mut life = Life { player, stripe, hold: String::new(), printed: String::new() };
    print_line(format_args!("Customer {}, on a test clock of Stripe:\n", player.user))?;
    print_line(format_args!(
        "{:<8} {:<9} {:>7} {:>9}  {:<12} what happened, and each change with its reason",
        "month", "tier", "credits", "available", "next credits"
    ))?;
    let mut accounts = Vec::new();
    let mut month = 0;
    for (description, action) in &STEPS {
        life.perform(action).await.with_context(|| (*description).to_owned())?;
        player.stack.wait_until_idle(false).await?;
        let account = player.account().await?;
        if matches!(action, Action::Buy | Action::Month) {
            month += 1;
            let parked = "the catalog of the stack needs the plans pro_yearly and business_yearly";
            ensure!(account["tier"] != "free", "{parked} of catalog.toml");
        }
        let next = text(&account["next_grant_at"]);
        print_line(format_args!(
            "{:<8} {:<9} {:>7} {:>9}  {:<12} {description}",
            if month == 0 { "-".to_owned() } else { month.to_string() },
            text(&account["tier"]),
            text(&account["credits"]),
            text(&account["available"]),
            next.get(..10).unwrap_or("-"),
        ))?;
        for entry in life.new_entries().await? {
            let (delta, kind) = (entry["delta"].as_i64().unwrap_or_default(), text(&entry["kind"]));
            // A refund has two events, and the second one changes nothing.
            if delta != 0 || kind == "refill" {
                print_line(format_args!("{:>26}  {:23} {}", format!("{delta:+}"), "", reason(&kind)))?;
            }
        }
        accounts.push(account);
    }
    check(player).await?;
    Ok(accounts)
}

impl Life<'_> {
    async fn perform(&mut self, action: &Action) -> anyhow::Result<()> {
        let player = self.player;
        let fired = match action {
            Action::Register => return player.app(Method::PUT, "", None).await.map(drop),
            Action::Spend(amount) => {
                let body = json!({ "amount": amount });
                return player.app(Method::POST, "/credits/consume", Some(body)).await.map(drop);
            }
            Action::Hold(amount) => {
                let body = json!({ "amount": amount, "ttl_seconds": 900 });
                self.hold = text(&player.app(Method::POST, "/credits/holds", Some(body)).await?["hold"]);
                return Ok(());
            }
            Action::Commit(amount) => {
                let (path, body) =
                    (format!("/credits/holds/{}/commit", self.hold), json!({ "amount": amount }));
                return player.app(Method::POST, &path, Some(body)).await.map(drop);
            }
            Action::Buy => {
                let user = &player.user;
                let session = self.stripe.checkout(&format!(
                    "mode=subscription&success_url=/&client_reference_id={user}&metadata[user_id]={user}\
                     &subscription_data[metadata][user_id]={user}\
                     &line_items[0][price]={PRO}&line_items[0][quantity]=1"
                ))?;
                self.stripe.pay(&text(&session["id"]), Payment::AtOnce)?
            }
            Action::Month => self.stripe.pass_a_month(&self.subscription()?)?,
            Action::Upgrade => self.stripe.upgrade(&self.subscription()?, BUSINESS)?,
            Action::Refund => {
                let charge = self.stripe.charge_of(&self.customer()?).context("nothing was paid")?;
                let mut fired = self.stripe.refund(&text(&charge["id"]))?;
                fired.insert(0, self.stripe.payment_of(&charge)?);
                fired
            }
        };
        self.deliver(fired).await
    }

    /// Sends events in a random order, and one of them twice. An endpoint does not subscribe to types that
    /// no family handles.
    async fn deliver(&self, mut fired: Vec<FiredEvent>) -> anyhow::Result<()> {
        fired.retain(|event| EventType::from(event.kind.as_str()).family().is_some());
        fired.extend(fastrand::choice(&fired).cloned());
        fastrand::shuffle(&mut fired);
        for event in fired {
            self.player.stack.post(event.body.as_bytes()).await.with_context(|| event.kind)?;
        }
        Ok(())
    }

    fn customer(&self) -> anyhow::Result<String> {
        self.stripe.customer_of(&self.player.user).context("the user bought nothing")
    }

    fn subscription(&self) -> anyhow::Result<String> {
        let found = self.stripe.subscription_of(&self.customer()?).context("there is no subscription")?;
        Ok(text(&found["id"]))
    }

    /// The ledger entries since the last call, oldest first.
    async fn new_entries(&mut self) -> anyhow::Result<Vec<Value>> {
        let page = self.player.app(Method::GET, "/ledger?limit=20", None).await?;
        let entries = page["entries"].as_array().into_iter().flatten();
        let mut new: Vec<Value> =
            entries.take_while(|entry| text(&entry["key"]) != self.printed).cloned().collect();
        if let Some(newest) = new.first() {
            self.printed = text(&newest["key"]);
        }
        new.reverse();
        Ok(new)
    }
}

/// Why the balance changed.
fn reason(kind: &str) -> &str {
    match kind {
        "signup" => "signup credits",
        "subscription" => "the first month of the paid year; signup credits end with it",
        "renewal" => "the first month of the next paid year, in place of what was left",
        "refill" => "the month's credits, in place of what was left",
        "rollover" => "half of what was left, at most 2000, for one more month",
        "expire" => "what was carried over has ended",
        "spend" => "spent by the app",
        "plan_change" | "adjust" => "the larger plan, for the rest of the month",
        "refund" => "what the refunded payment had added",
        other => other,
    }
}

/// Checks the account against its ledger and its lots.
async fn check(player: &Player) -> anyhow::Result<()> {
    let account = player.account().await?;
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let lots: i64 = account["lots"].as_array().into_iter().flatten().map(|lot| number(&lot["left"])).sum();
    let (mut booked, mut entries, mut next) = (0, 0, String::new());
    loop {
        let page = player.app(Method::GET, &format!("/ledger?limit=50{next}"), None).await?;
        for entry in page["entries"].as_array().into_iter().flatten() {
            booked += number(&entry["delta"]);
            entries += 1;
        }
        let Some(key) = page["next"].as_str() else { break };
        next = format!("&next={}", utf8_percent_encode(key, NON_ALPHANUMERIC));
    }
    let (credits, held) = (number(&account["credits"]), number(&account["held"]));
    ensure!(booked == credits, "the ledger adds up to {booked}, and the account has {credits} credits");
    ensure!(lots == credits, "the lots hold {lots}, and the account has {credits} credits");
    ensure!(number(&account["available"]) == credits - held, "available is not credits minus held");
    print_line(format_args!(
        "\nChecked: {entries} ledger entries and {} lots add up to the {credits} credits of the account.",
        account["lots"].as_array().map_or(0, Vec::len)
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cli::local_stack;
    use local::stack::{Options, Stack};

    use super::*;

    #[tokio::test]
    async fn the_year_ends_with_every_month_granted_and_the_ledger_adding_up() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let player =
            Player::new(&stack.front_url, local_stack::APP_TOKEN.to_owned(), local_stack::WEBHOOK_SECRET)
                .unwrap();
        let accounts = play(&player).await.unwrap();
        let shown = |account: &Value| {
            format!("{} {} {}", text(&account["tier"]), account["credits"], account["available"])
        };
        let shown: Vec<String> = accounts.iter().map(shown).collect();
        assert_eq!(shown, EXPECTED);
        stack.stop().await;
    }

    /// By hand from docs/money.md: `pro` has 5,000 a month and carries over half, at most 2,000.
    const EXPECTED: [&str; STEPS.len()] = [
        "free 500 500",
        "pro 5000 5000",
        "pro 5000 3800",
        "pro 4300 4300",
        "pro 3000 3000",
        "pro 6500 6500",
        "pro 5800 5800",
        "pro 7000 7000",
        "pro 500 500",
        "pro 5000 5000",
        "pro 7000 7000",
        "business 22000 22000",
        "business 19000 19000",
        "business 20000 20000",
        "business 20000 20000",
        "business 5000 5000",
        "business 5000 5000",
        "business 5000 5000",
        "business 5000 5000",
        "business 5000 5000",
        "business 5000 5000",
        "business 4000 4000",
        "business 20000 20000",
    ];
}
