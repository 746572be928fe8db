//! `demo`: one customer from signup to cancellation, and one with a yearly plan, with the account after each
//! step.
//!
//! The events of a step are sent in a random order, and one of them twice. The account is the same each time.

mod year;

use anyhow::Context;
use axum::http::Method;
use clap::Args;
use cli::local_stack;
use cli::output::print_line;
use cli::sample::Sample;
use cli::send::default_secret;
use local::stack::{Options, Stack};
use serde_json::{Value, json};
use uuid::Uuid;

use super::running_stack::{RunningStack, app_token};

/// Play two customers, and show the account after each step
///
/// The first: signup, purchase, duplicates, renewal, upgrade, add-on, spending, refund, cancellation. The
/// second has a plan by the year with credits by the month, and a year passes on a test clock: refills,
/// rollover, a hold, an upgrade in mid year and its refund, the renewal. The demo sends signed events and
/// calls the app's API of the running local stack. If none runs, it starts one in memory. The events of a
/// step are sent in a random order, and one of them twice. Every run has new users.
#[derive(Args)]
pub struct Demo {
    /// The local stack [default: http://127.0.0.1:9000 if one runs there, else one in memory]
    #[arg(long)]
    url: Option<String>,
}

/// What happens in a step.
enum Action {
    /// The app registers the user.
    Register,
    /// Stripe sends these sample events in a random order, one of them twice.
    Events(&'static [&'static str]),
    /// Stripe sends this sample event several times at once.
    Duplicates(&'static str, u32),
    /// The app spends credits.
    Spend(u32),
}

/// Name, description and action of each step.
const STEPS: [(&str, &str, Action); 10] = [
    ("signup", "the app: PUT /users/{id}", Action::Register),
    (
        "buy",
        "Stripe: a subscription to pro, its first invoice, its checkout",
        Action::Events(&["customer.subscription.created", "invoice.paid", "checkout.session.completed"]),
    ),
    (
        "duplicate",
        "Stripe: the same invoice event ten more times, all at once",
        Action::Duplicates("invoice.paid", 10),
    ),
    ("spend", "the app: POST /users/{id}/credits/consume, 1200", Action::Spend(1_200)),
    (
        "renewal",
        "Stripe: the next period and its invoice",
        Action::Events(&["customer.subscription.updated", "invoice.paid.renewal"]),
    ),
    (
        "upgrade",
        "Stripe: to business, and the invoice for the difference",
        Action::Events(&["customer.subscription.updated.upgrade", "invoice.paid.proration"]),
    ),
    ("add-on", "Stripe: a checkout of 1000 credits", Action::Events(&["checkout.session.completed.pack"])),
    ("spend", "the app: POST /users/{id}/credits/consume, 1500", Action::Spend(1_500)),
    ("refund", "Stripe: 40 % of the add-on's price is refunded", Action::Events(&["charge.refunded"])),
    (
        "cancel",
        "Stripe: cancelled, then deleted at the end of the period",
        Action::Events(&["customer.subscription.updated.cancel", "customer.subscription.deleted"]),
    ),
];

impl Demo {
    pub async fn run(self) -> anyhow::Result<bool> {
        let url = self.url.clone().unwrap_or_else(|| local_stack::URL.to_owned());
        let mut player = Player::new(&url, app_token(), &default_secret())?;
        let own_stack = match player.stack.status().await {
            Ok(_) => None,
            Err(error) if self.url.is_some() => return Err(error),
            Err(_) => Some(Stack::start(Options::default()).await?),
        };
        if let Some(stack) = &own_stack {
            print_line(format_args!("No local stack runs at {url}: using one in memory.\n"))?;
            player = Player::new(
                &stack.front_url,
                local_stack::APP_TOKEN.to_owned(),
                local_stack::WEBHOOK_SECRET,
            )?;
        }
        let played = player.play_both().await;
        if played.is_ok() && own_stack.is_none() {
            print_line(format_args!(
                "\nWhat set each field of the account: {0}/admin#/users/{1}, or cargo run -- check-user {1}{2}",
                player.stack.url,
                player.user,
                if player.stack.url == local_stack::URL {
                    String::new()
                } else {
                    format!(" --url {}", player.stack.url)
                }
            ))?;
        }
        if let Some(stack) = own_stack {
            stack.stop().await;
        }
        played.map(|()| true)
    }
}

#[derive(Clone)]
struct Player {
    stack: RunningStack,
    user: String,
}

impl Player {
    fn new(url: &str, token: String, secret: &str) -> anyhow::Result<Self> {
        Ok(Self { stack: RunningStack::new(url, token, secret)?, user: new_user() })
    }

    /// Plays both lives.
    async fn play_both(&self) -> anyhow::Result<()> {
        self.play().await?;
        print_line(format_args!(""))?;
        let second = Self { user: new_user(), ..self.clone() };
        year::play(&second).await.map(drop)
    }

    async fn play(&self) -> anyhow::Result<()> {
        print_line(format_args!("Customer {}:\n", self.user))?;
        print_line(format_args!(
            "{:<10} {:<9} {:>7}  {:>6} {:>6} {:>6}  {:<12} what happened",
            "step", "tier", "credits", "plan", "add-on", "signup", "subscription"
        ))?;
        for (step, description, action) in &STEPS {
            let order = self.perform(action).await.with_context(|| format!("step {step}"))?;
            self.stack.wait_until_idle(false).await?;
            print_line(format_args!("{}  {description}", row(step, &self.account().await?)))?;
            if !order.is_empty() {
                print_line(format_args!("{:11}sent as {}", "", order.join(", ")))?;
            }
        }
        print_line(format_args!("\nThe ledger. The balance is the sum of its changes:\n"))?;
        print_line(format_args!("{:>8} {:>8}  key", "change", "balance"))?;
        let ledger = self.app(Method::GET, "/ledger", None).await?;
        for entry in ledger["entries"].as_array().into_iter().flatten().rev() {
            print_line(format_args!(
                "{:>+8} {:>8}  {}",
                entry["delta"].as_i64().unwrap_or_default(),
                text(&entry["balance"]),
                text(&entry["key"])
            ))?;
        }
        Ok(())
    }

    /// Performs a step. Returns the names of the events in the order in which they were sent.
    async fn perform(&self, action: &Action) -> anyhow::Result<Vec<String>> {
        match action {
            Action::Register => drop(self.app(Method::PUT, "", None).await?),
            Action::Spend(amount) => {
                drop(self.app(Method::POST, "/credits/consume", Some(json!({ "amount": amount }))).await?)
            }
            Action::Events(names) => {
                let mut order: Vec<&str> = names.to_vec();
                order.extend(fastrand::choice(*names));
                fastrand::shuffle(&mut order);
                let mut sent: Vec<String> = Vec::new();
                for name in order {
                    self.send(name).await?;
                    let again = sent.iter().any(|other| other == name);
                    sent.push(if again { format!("{name} (again)") } else { name.to_owned() });
                }
                return Ok(sent);
            }
            Action::Duplicates(name, times) => {
                let mut sending = tokio::task::JoinSet::new();
                for _ in 0..*times {
                    let (stack, event) = (self.stack.clone(), self.event(name)?);
                    sending.spawn(async move { stack.post(event.body()).await });
                }
                for result in sending.join_all().await {
                    result?;
                }
            }
        }
        Ok(Vec::new())
    }

    async fn send(&self, name: &str) -> anyhow::Result<()> {
        self.stack.post(self.event(name)?.body()).await.with_context(|| name.to_owned())
    }

    fn event(&self, name: &str) -> anyhow::Result<Sample> {
        Sample::find(name)?.about(&self.user)
    }

    async fn account(&self) -> anyhow::Result<Value> {
        self.app(Method::GET, "", None).await
    }

    /// Calls the app's API about the user.
    async fn app(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        self.stack.app(method, &format!("{}{path}", self.user), body).await
    }
}

fn new_user() -> String {
    let suffix = Uuid::new_v4().simple().to_string();
    format!("demo_{}", suffix.get(..8).unwrap_or_default())
}

fn row(step: &str, account: &Value) -> String {
    let buckets = &account["buckets"];
    let plans: i64 = buckets["subscriptions"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, credits)| credits.as_i64())
        .sum();
    let subscription = account["subscriptions"]
        .as_array()
        .and_then(|all| all.last())
        .map_or_else(|| "-".to_owned(), |last| text(&last["status"]));
    format!(
        "{step:<10} {:<9} {:>7}  {plans:>6} {:>6} {:>6}  {subscription:<12}",
        text(&account["tier"]),
        text(&account["credits"]),
        text(&buckets["addon"]),
        text(&buckets["signup"]),
    )
}

/// A value without quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
