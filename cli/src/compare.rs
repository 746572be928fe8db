//! `compare`: the accounts here against an export of the system that they are to replace.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use axum::http::{Method, StatusCode};
use clap::Args;
use futures_util::future::join_all;
use local::stack::APP_TOKEN;
use serde::Deserialize;
use serde_json::{Value, json};

use super::table::{field, table};
use super::{Api, Target, encode, progress, progress_done, say};

/// Users that are asked for at the same time.
const AT_ONCE: usize = 8;

/// Compare users of another system with the accounts here: what they would have, were tallyhook in charge
///
/// For running tallyhook beside an existing integration, as a second endpoint of the same Stripe account with
/// tables of its own. FILE is what the existing system says: CSV with a line of titles,
/// `user_id,tier,credits`; other columns are passed over, a cell left empty is not compared. Nothing is
/// changed anywhere.
///
/// Exit code 1 when something differs.
#[derive(Args)]
pub struct Compare {
    /// user_id,tier,credits of the existing system
    file: PathBuf,
    /// Stop after so many differences
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

/// A user as the existing system has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Known {
    user_id: String,
    #[serde(default)]
    tier: Option<String>,
    #[serde(default)]
    credits: Option<i64>,
}

impl Compare {
    pub async fn run(self) -> anyhow::Result<bool> {
        let users = read(&self.file)?;
        let api = self.target.api_with("APP_API_TOKEN", APP_TOKEN)?;
        let (mut compared, mut differences) = (0, Vec::new());
        for some in users.chunks(AT_ONCE) {
            let accounts = join_all(some.iter().map(|known| account(&api, &known.user_id))).await;
            for (known, account) in some.iter().zip(accounts) {
                differences.extend(differs(known, account?.as_ref()));
            }
            compared += some.len();
            progress(&format!("{compared} of {} users; {} differences", users.len(), differences.len()));
            if differences.len() >= self.limit {
                break;
            }
        }
        progress_done();
        let fine = differences.is_empty();
        let left = users.len() - compared;
        if api.printed(&json!({"users": users.len(), "compared": compared, "differences": differences}))? {
            return Ok(fine);
        }
        if !fine {
            let (user, what, there, here) = (field("user_id"), field("field"), field("there"), field("here"));
            say(&table(
                &[("USER", &user), ("DIFFERS", &what), ("THERE", &there), ("HERE", &here)],
                &differences,
            ))?;
        }
        say(&format!("{compared} users compared, {} differences", differences.len()))?;
        if left > 0 {
            say(&format!("stopped there: {left} users were not compared; more with --limit"))?;
        }
        Ok(fine)
    }
}

/// The export; nothing is asked before all of it makes sense.
fn read(file: &Path) -> anyhow::Result<Vec<Known>> {
    let name = file.display();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(file)
        .with_context(|| format!("cannot read {name}"))?;
    let titles = reader.headers().with_context(|| format!("cannot read {name}"))?;
    let has = |title: &str| titles.iter().any(|other| other == title);
    if !has("user_id") || !(has("tier") || has("credits")) {
        bail!("the first line of {name} must name the columns: user_id and tier, credits or both");
    }
    let mut users = Vec::new();
    for (place, user) in reader.deserialize::<Known>().enumerate() {
        let user = user.with_context(|| format!("{name}, user {}", place + 1))?;
        if user.user_id.is_empty() {
            bail!("{name}, user {}: user_id is empty", place + 1);
        }
        users.push(user);
    }
    if users.is_empty() {
        bail!("{name} names no user");
    }
    Ok(users)
}

/// `GET /users/{id}`; `None` is a user that was never seen here.
async fn account(api: &Api, user: &str) -> anyhow::Result<Option<Value>> {
    let (status, answer) = api.send(Method::GET, &format!("/users/{}", encode(user)), None, None).await?;
    if status == StatusCode::NOT_FOUND
        && answer.as_ref().is_some_and(|answer| answer["error"] == "user_not_found")
    {
        return Ok(None);
    }
    api.read(status, answer).map(Some).map_err(|error| anyhow!("user {user}: {error}"))
}

/// What is not the same, a row each: `{"user_id":"u1","field":"credits","there":5000,"here":4000}`.
fn differs(known: &Known, account: Option<&Value>) -> Vec<Value> {
    let row = |field: &str, there: Value, here: Value| json!({"user_id": known.user_id, "field": field, "there": there, "here": here});
    let Some(account) = account else { return vec![row("user", json!("is there"), json!("never seen"))] };
    let tier = known.tier.as_ref().filter(|tier| !tier.is_empty()).map(|tier| ("tier", json!(tier)));
    let credits = known.credits.map(|credits| ("credits", json!(credits)));
    let each = tier.into_iter().chain(credits).filter(|(field, there)| account[*field] != *there);
    each.map(|(field, there)| row(field, there, account[field].clone())).collect()
}

#[cfg(test)]
mod tests {
    use local::stack::{Options, Stack};

    use super::*;

    fn file(name: &str, text: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("tallyhook-compare-{name}-{}.csv", std::process::id()));
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn an_export_is_read_whole_or_refused_with_the_place() {
        let users = read(&file(
            "good",
            "email,user_id,tier,credits\nx@example.com,u1,pro,5000\n,\"u,2\",free,\n, u3 ,,7\n",
        ))
        .unwrap();
        let known = |user: &str, tier: Option<&str>, credits| Known {
            user_id: user.to_owned(),
            tier: tier.map(str::to_owned),
            credits,
        };
        assert_eq!(
            users,
            [
                known("u1", Some("pro"), Some(5000)),
                known("u,2", Some("free"), None),
                known("u3", None, Some(7))
            ]
        );
        for (name, text, says) in [
            ("titles", "id,plan\nu1,pro\n", "must name the columns"),
            ("number", "user_id,credits\nu1,5\nu2,many\n", "user 2"),
            ("short", "user_id,tier,credits\nu1,pro\n", "user 1"),
            ("nobody", "user_id,tier\n,pro\n", "user_id is empty"),
            ("empty", "user_id,tier\n", "names no user"),
        ] {
            let error = format!("{:#}", read(&file(name, text)).unwrap_err());
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn a_deployment_is_asked_and_the_exit_code_says_whether_something_differs() {
        let stack = Stack::start(Options::default()).await.unwrap();
        let target = Target { url: stack.front_url.clone(), json: false };
        let api = target.api_with("APP_API_TOKEN", APP_TOKEN).unwrap();
        let credits =
            api.ask(Method::PUT, "/users/u%401", None, None).await.unwrap()["credits"].as_i64().unwrap();
        let compare = async |text: String| {
            Compare { file: file("stack", &text), limit: 10, target: target.clone() }.run().await
        };
        assert!(compare(format!("user_id,tier,credits\nu@1,free,{credits}\n")).await.unwrap());
        assert!(!compare(format!("user_id,credits\nu@1,{}\n", credits + 1)).await.unwrap());
        assert!(!compare("user_id,tier\nstranger,free\n".to_owned()).await.unwrap());
        let wrong = Target { url: format!("{}/elsewhere", stack.front_url), json: false };
        let error = Compare { file: file("wrong", "user_id,tier\nu@1,free\n"), limit: 10, target: wrong }
            .run()
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with("user u@1: "), "{error}");
        stack.stop().await;
    }

    #[test]
    fn only_what_both_say_is_compared() {
        let account = json!({"tier": "pro", "credits": 5000});
        let known = |tier: Option<&str>, credits| Known {
            user_id: "u1".to_owned(),
            tier: tier.map(str::to_owned),
            credits,
        };
        assert_eq!(differs(&known(Some("pro"), Some(5000)), Some(&account)), [] as [Value; 0]);
        assert_eq!(differs(&known(None, None), Some(&account)), [] as [Value; 0]);
        let rows = differs(&known(Some("free"), Some(1)), Some(&account));
        assert_eq!(rows[0], json!({"user_id": "u1", "field": "tier", "there": "free", "here": "pro"}));
        assert_eq!(rows[1], json!({"user_id": "u1", "field": "credits", "there": 1, "here": 5000}));
        assert_eq!(differs(&known(Some("free"), None), None)[0]["here"], "never seen");
    }
}
