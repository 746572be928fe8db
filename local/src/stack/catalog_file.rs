//! The catalog of the stack. The file in `CATALOG_FILE` is stored when the stack starts and whenever the file
//! changes. A pushed catalog stays in use until then.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use cli::output::print_line;
use tallyhook_aws::env::Env;
use tallyhook_aws::sdk::{self, sdk_config};
use tallyhook_aws::store::Store;
use tallyhook_aws::store::items::{self, Key, StoredCatalog};
use tallyhook_core::catalog::Catalog;
use tallyhook_service::config::{AdminToken, Role};
use tallyhook_service::http::admin::Admin;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::shutdown::stopped;
use crate::fake_stripe::FakeStripe;

/// How often the file and the stored catalog are read.
const PERIOD: Duration = Duration::from_secs(1);
/// The actor of the versions that come from the file.
const ACTOR: &str = "local stack";

/// Stores the catalog of the file, and publishes the catalog that is stored.
pub(super) struct CatalogFile {
    path: Option<PathBuf>,
    modified: Option<SystemTime>,
    digest: Option<String>,
    admin: Admin,
    store: Store,
    stripe: Option<FakeStripe>,
    current: watch::Sender<Catalog>,
}

impl CatalogFile {
    /// Stores the file, unless the last version that came from it has the same text.
    ///
    /// # Errors
    /// When the file cannot be read, is not a catalog, or cannot be stored.
    pub(super) async fn open(
        env: &Env,
        without_stored: Catalog,
        stripe: Option<FakeStripe>,
    ) -> anyhow::Result<Self> {
        let client = sdk::dynamodb(&sdk_config(env, "DYNAMODB")?);
        let store = Store::new(client, env.require("ACCOUNTS_TABLE")?, env.require("EVENTS_TABLE")?);
        let path = env.get("CATALOG_FILE").map(PathBuf::from);
        let (current, _) = watch::channel(without_stored);
        let admin = Admin::from_env(env)?;
        let mut file = Self { path, modified: None, digest: None, admin, store, stripe, current };
        if let Some(path) = file.path.clone() {
            file.modified = modified(&path);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read the catalog {}", path.display()))?;
            if file.last_of_file().await?.as_deref() != Some(items::catalog_digest(&text).as_str()) {
                file.store(&path, &text).await.map_err(|error| anyhow!(error))?;
            }
        }
        file.publish().await?;
        Ok(file)
    }

    /// The catalog that is stored.
    pub(super) fn current(&self) -> watch::Receiver<Catalog> {
        self.current.subscribe()
    }

    /// Follows the file and the stored catalog until `stop` becomes true.
    pub(super) fn follow(mut self, stop: &watch::Receiver<bool>) -> JoinHandle<()> {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = stopped(&stop) => return,
                    _ = ticks.tick() => {}
                }
                if let Some(line) = self.look().await {
                    // A closed standard output does not stop the stack.
                    let _ = print_line(line);
                }
            }
        })
    }

    /// Stores the file if it changed. Returns what to print.
    async fn look(&mut self) -> Option<String> {
        let mut line = None;
        if let Some(path) = self.path.clone() {
            let modified = modified(&path);
            // An editor may replace the file: between two looks it may be absent.
            if modified.is_some() && modified != self.modified {
                self.modified = modified;
                line = match fs::read_to_string(&path) {
                    Ok(text) => self.store(&path, &text).await,
                    Err(error) => Err(format!("{}: {error}", path.display())),
                }
                .unwrap_or_else(|error| {
                    Some(format!("catalog: {error}. The catalog before it stays in use."))
                });
            }
        }
        if let Err(error) = self.publish().await {
            tracing::error!(%error, "the catalog cannot be read");
        }
        line
    }

    /// Returns what to print, or `None` if the stored catalog has the same text.
    async fn store(&self, path: &Path, text: &str) -> Result<Option<String>, String> {
        let name = path.display().to_string();
        let catalog = Catalog::parse(text).map_err(|error| error.of_file(&name))?;
        let operator =
            AdminToken { name: ACTOR.to_owned(), role: Role::Operator, max_grant: Some(0), sha256: [0; 32] };
        let version = self.admin.store_catalog(text, &format!("the file {name}"), &operator).await?;
        Ok(version.map(|version| {
            let warnings = catalog.warnings().into_iter().map(|warning| format!("\ncatalog: {warning}"));
            format!("catalog: {name} is version {version}.{}", warnings.collect::<String>())
        }))
    }

    /// The digest of the newest version that came from the file.
    async fn last_of_file(&self) -> anyhow::Result<Option<String>> {
        let mut stored = self.stored(Key::Catalog).await?;
        while let Some(version) = stored {
            if version.actor == ACTOR {
                return Ok(Some(version.digest));
            }
            stored = self.stored(Key::CatalogVersion(version.version.saturating_sub(1))).await?;
        }
        Ok(None)
    }

    /// Publishes the stored catalog, if it is another one. The fake Stripe sells what is new in it.
    async fn publish(&mut self) -> anyhow::Result<()> {
        let Some(stored) = self.stored(Key::Catalog).await? else { return Ok(()) };
        if self.digest.as_deref() == Some(stored.digest.as_str()) {
            return Ok(());
        }
        let catalog = Catalog::parse(&stored.toml)?;
        if let Some(stripe) = &self.stripe {
            stripe.sell(&catalog);
        }
        self.digest = Some(stored.digest);
        self.current.send_replace(catalog);
        Ok(())
    }

    async fn stored(&self, key: Key) -> anyhow::Result<Option<StoredCatalog>> {
        let found = self.store.load([key.clone()]).await?;
        Ok(found.get(&key).map(|item| items::read_catalog(&key, item)).transpose()?)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Stack};
    use super::*;

    const CATALOG: &str = include_str!("../../../catalog.toml");

    /// A file that is removed at the end. Each write has another time.
    struct File(PathBuf, SystemTime);

    impl File {
        fn write(&mut self, text: &str) {
            fs::write(&self.0, text).unwrap();
            self.1 += Duration::from_secs(10);
            fs::File::options().write(true).open(&self.0).unwrap().set_modified(self.1).unwrap();
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    async fn signup_credits(file: &CatalogFile) -> (u64, String, u64) {
        let stored = file.stored(Key::Catalog).await.unwrap().unwrap();
        (stored.version, stored.actor, file.current().borrow().policy.signup_credits)
    }

    #[tokio::test]
    async fn the_file_is_stored_and_followed_and_a_push_stands_until_it_changes() {
        let env = Env::from([("CATALOG_FILE", "")]);
        let stack = Stack::start(Options { env, ..Options::default() }).await.unwrap();
        let path = std::env::temp_dir().join(format!("tallyhook-follow-{}.toml", std::process::id()));
        let mut file = File(path.clone(), SystemTime::now());
        let text =
            |credits: u64| CATALOG.replace("signup_credits = 500", &format!("signup_credits = {credits}"));
        let mut env = stack.env().clone();
        env.set("CATALOG_FILE", path.to_string_lossy());
        let open = async || CatalogFile::open(&env, Catalog::parse(CATALOG).unwrap(), None).await;
        file.write("[tiers]\nfree = \"x\"\n");
        let refused = open().await.err().unwrap().to_string();
        assert!(refused.contains(&format!("{} line 2: ", path.display())), "{refused}");

        file.write(&text(501));
        let mut followed = open().await.unwrap();
        assert_eq!(signup_credits(&followed).await, (1, "local stack".to_owned(), 501));
        assert_eq!(followed.look().await, None);
        file.write(&text(502));
        let line = followed.look().await.unwrap();
        let first = format!("catalog: {} is version 2.", path.display());
        assert_eq!(line.lines().next(), Some(first.as_str()), "warnings follow");
        assert_eq!(signup_credits(&followed).await, (2, "local stack".to_owned(), 502));

        file.write("[tiers]\nfree = \"x\"\n");
        let line = followed.look().await.unwrap();
        let starts = format!("catalog: {} line 2: ", path.display());
        assert!(
            line.starts_with(&starts) && line.ends_with(". The catalog before it stays in use."),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
        assert_eq!((followed.look().await, signup_credits(&followed).await.2), (None, 502));

        file.write(&text(502));
        assert_eq!(followed.look().await, None);
        let ann =
            AdminToken { name: "ann".to_owned(), role: Role::Operator, max_grant: None, sha256: [0; 32] };
        assert_eq!(followed.admin.store_catalog(&text(600), "a push", &ann).await, Ok(Some(3)));
        assert_eq!(followed.look().await, None);
        assert_eq!(signup_credits(&followed).await, (3, "ann".to_owned(), 600));
        let mut followed = open().await.unwrap();
        assert_eq!(signup_credits(&followed).await, (3, "ann".to_owned(), 600));
        file.write(&text(503));
        assert!(followed.look().await.is_some());
        assert_eq!(signup_credits(&followed).await, (4, "local stack".to_owned(), 503));
        stack.stop().await;
    }
}
