//! What a customer who comes back from checkout is told: the setup status, and the page that shows it.
//!
//! ```json
//! {"session_id":"cs_test_1","payment_state":"paid","provisioning_state":"queued","password_state":"not_sent",
//!  "next_action":"wait_provisioning"}
//! ```
//! The states are told by what the webhooks brought ([`tallyhook_core::setup_status`]). When they have not
//! brought it yet and a Stripe key is configured, Stripe is asked for the session; what it says goes through
//! the same `decide` and `commit` as every event, under the same ledger keys, so that the late webhook finds
//! it done.
//!
//! **Invariant:** one session is asked about at most once in [`FIRST_PAUSE_SECONDS`], then ever more rarely,
//! whoever polls and however often; one instance asks at most [`MOST_ASKED`] times in [`ASKED_SECONDS`],
//! whatever sessions somebody makes up.

use std::sync::{Mutex, PoisonError};

use lambda_http::http::StatusCode;
use lambda_http::{Body, Request, RequestExt, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Api, invalid_user, no_user, read_body};
use crate::http::answer::{Problem, problem};
use crate::http::pages::status::StatusPage;
use crate::process::{FoundAccount, Job, Repair};
use crate::reconcile::Evidence;
use tallyhook_aws::clock;
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, Key, KnownSession, Question};
use tallyhook_aws::stripe::{Cursor, Object, Stripe, StripeError};
use tallyhook_core::account::State;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Outcome, Payments, decide, leaves_out};
use tallyhook_core::drift::{self, Remedy};
use tallyhook_core::event::{self, CheckoutMode, CheckoutSession, SubscriptionStatus};
use tallyhook_core::ids::{InvoiceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::job::JobKind;
use tallyhook_core::setup_status::{Known, ProvisioningState, SessionPayment, SetupStatus};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// Between the first two questions about one session; doubled each time, at most a minute.
const FIRST_PAUSE_SECONDS: i64 = 8;
/// After so many questions about one session Stripe is not asked again: reconciliation looks at what is left.
const MOST_TRIES: u32 = 30;
/// One instance asks so often in [`ASKED_SECONDS`].
const MOST_ASKED: u32 = 20;
/// See [`MOST_ASKED`].
const ASKED_SECONDS: i64 = 10;
/// Who did it, in the log and the ledger.
const BY: &str = "setup-status";

/// How often this instance asked lately.
#[derive(Debug, Default)]
pub(super) struct Asks(Mutex<(i64, u32)>);

impl Asks {
    fn may(&self, now: Timestamp) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.unix() - window.0 >= ASKED_SECONDS {
            *window = (now.unix(), 0);
        }
        window.1 += 1;
        window.1 <= MOST_ASKED
    }
}

/// What Stripe said of a session, or that it was not asked.
enum Heard {
    Said(SessionPayment),
    /// Stripe has no such session.
    Missing,
    Nothing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordSet {
    user_id: String,
}

impl Api {
    pub(super) async fn setup_status(&self, request: &Request) -> Result<Value, Problem> {
        let session = session_id(request).ok_or_else(|| {
            let message = "session_id must be the id of a checkout session, cs_…: Stripe puts it in place of {CHECKOUT_SESSION_ID}";
            problem(StatusCode::BAD_REQUEST, "invalid_session_id", message)
        })?;
        let now = clock::now();
        let (key, note_key) = (Key::Session(session.clone()), items::question_key(&session));
        let items = self.store.load([key.clone(), note_key.clone()]).await?;
        let mut known = items.get(&key).map(|item| items::read_session(&key, item)).transpose()?;
        let mut user = self.known_user(known.as_ref()).await?;
        let note = items.get(&note_key).map(items::read_question).unwrap_or_default();
        let mut told = note.told.as_deref().and_then(SessionPayment::from_text);
        if !is_settled(known.as_ref(), user.as_ref().map(|user| &user.state)) {
            match self.ask(&session, known.as_ref(), &note, now).await? {
                Heard::Missing => return Err(no_session()),
                Heard::Nothing if known.is_none() && note.told.as_deref() == Some("missing") => {
                    return Err(no_session());
                }
                Heard::Nothing => {}
                Heard::Said(said) => {
                    told = Some(said);
                    let items = self.store.load([key.clone()]).await?;
                    known = items.get(&key).map(|item| items::read_session(&key, item)).transpose()?;
                    user = self.known_user(known.as_ref()).await?;
                }
            }
        }
        // Paid is only what an event confirmed: Stripe's word alone means that it is on its way into the
        // account.
        let told =
            told.map(|told| if told == SessionPayment::Paid { SessionPayment::Confirming } else { told });
        let payment = known.as_ref().map(|known| known.payment);
        let status = SetupStatus::of(Known {
            session: payment.max(told),
            subscription_gives_access: known.as_ref().zip(user.as_ref()).is_some_and(|(known, user)| {
                gives_access(known, &user.state, &self.config.catalog, clock::now())
            }),
            has_paid: user.as_ref().is_some_and(|user| user.state.first_paid_at.is_some()),
            provisions: self.config.outbox.queue_url.is_some(),
            job: user.as_ref().and_then(|user| user.job),
            password_set: user.as_ref().is_some_and(|user| user.password_set),
        });
        let mut body = json!(status);
        body["session_id"] = json!(session);
        Ok(body)
    }

    pub(super) async fn password_set(&self, request: &Request) -> Result<Value, Problem> {
        let body: PasswordSet = read_body(request, "{\"user_id\": \"user_123\"}")?;
        let user = UserId::new(body.user_id).map_err(|_| invalid_user())?;
        let key = Key::Account(user.clone());
        if !self.store.load([key.clone()]).await?.contains_key(&key) {
            return Err(no_user());
        }
        self.store.commit(vec![items::password_set(&user, clock::now())]).await?;
        Ok(json!({"user_id": user, "password_state": "set"}))
    }

    /// The page. It asks for the status itself, so it is there at once.
    pub(super) fn status_page(&self, request: &Request) -> Response<Body> {
        let session = session_id(request);
        let (app_url, support_email) =
            (self.config.app_base_url.as_deref(), self.config.support_email.as_deref());
        StatusPage { session: session.as_ref().map(SessionId::as_str), app_url, support_email }.answer()
    }

    async fn known_user(&self, known: Option<&KnownSession>) -> Result<Option<KnownUser>, StoreError> {
        let Some(user) = known.map(|known| &known.user) else { return Ok(None) };
        let (account, portal, job) =
            (Key::Account(user.clone()), Key::Portal(user.clone()), items::job_key(JobKind::Provision, user));
        let items = self.store.load([account.clone(), portal.clone(), job.clone()]).await?;
        let state = items.get(&account).map(|item| items::read_account(user, item)).transpose()?;
        Ok(Some(KnownUser {
            state: state.map(|account| account.state).unwrap_or_default(),
            job: items
                .get(&job)
                .and_then(|item| ProvisioningState::from_text(&items::read_text(item, "outcome")?)),
            password_set: items.contains_key(&portal),
        }))
    }

    /// Asks Stripe for the session, if it is time, and feeds what it finds. No failure of Stripe's is the
    /// customer's.
    async fn ask(
        &self,
        id: &SessionId,
        known: Option<&KnownSession>,
        note: &Question,
        now: Timestamp,
    ) -> Result<Heard, StoreError> {
        let Some(stripe) = &self.stripe else { return Ok(Heard::Nothing) };
        let pause = (FIRST_PAUSE_SECONDS << note.tries.saturating_sub(1).min(3)).min(60);
        if note.tries >= MOST_TRIES
            || (note.tries > 0 && now.unix() < note.asked + pause)
            || !self.asks.may(now)
        {
            return Ok(Heard::Nothing);
        }
        if !self.store.claim_question(id, note, now).await? {
            return Ok(Heard::Nothing);
        }
        let heard = match self.hear(stripe, id, known, now).await {
            Ok(said) => Heard::Said(said),
            Err(Trouble::Stripe(error)) if error.is_missing() => Heard::Missing,
            Err(trouble) => {
                warn!(
                    checkout_session_id = id.as_str(),
                    error = trouble.to_string(),
                    "SETUP_STATUS_NOT_HEARD"
                );
                Heard::Nothing
            }
        };
        let answer = match heard {
            Heard::Said(said) => Some(said),
            Heard::Missing => None,
            Heard::Nothing => return Ok(heard),
        };
        self.store.note_answer(id, answer).await?;
        Ok(heard)
    }

    /// Reads the session and, where it is paid, what came of it.
    async fn hear(
        &self,
        stripe: &Stripe,
        id: &SessionId,
        known: Option<&KnownSession>,
        now: Timestamp,
    ) -> Result<SessionPayment, Trouble> {
        let object = stripe.session(id).await?;
        let session = CheckoutSession::from_json(object.text())?;
        let said = SessionPayment::read(&session);
        info!(checkout_session_id = id.as_str(), payment = said.as_str(), "SETUP_STATUS_HEARD");
        if said != SessionPayment::Paid || session.id != *id {
            return Ok(said);
        }
        let livemode = self.config.livemode.or(stripe.livemode()).unwrap_or(false);
        if known.is_none_or(|known| known.payment != SessionPayment::Paid) {
            let evidence = Evidence::of_session(&object, livemode)?;
            self.feed_session(stripe, &object, evidence, livemode, now).await?;
        }
        if session.mode == CheckoutMode::Subscription {
            if let Some(invoice) = &session.invoice {
                self.feed_invoice(stripe, invoice, livemode, now).await?;
            }
            if let Some(subscription) = &session.subscription {
                self.feed_subscription(stripe, subscription, livemode, now).await?;
            }
        }
        Ok(said)
    }

    async fn feed_session(
        &self,
        stripe: &Stripe,
        object: &Object,
        mut evidence: Evidence,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), Trouble> {
        let Some(account) = self.account(&evidence).await? else { return Ok(()) };
        if leaves_out(&evidence.event)
            && let event::Object::CheckoutSession(session) = &evidence.event.object
        {
            let items = stripe.line_items(&session.id, &Cursor::Newest).await?;
            evidence = Evidence::of_session_with(object, &items.objects, livemode)?;
        }
        let catalog = &self.config.catalog;
        let outcome = decide(&account, &evidence.event, &Payments::new(), catalog, now);
        // What cannot be applied is the webhook's to park and to alert about.
        if matches!(outcome, Outcome::Apply(_)) {
            self.run(&evidence, account.version, "paid session".to_owned(), now).await?;
        }
        Ok(())
    }

    async fn feed_invoice(
        &self,
        stripe: &Stripe,
        id: &InvoiceId,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), Trouble> {
        let object = stripe.complete(stripe.invoice(id).await?).await?;
        let evidence = Evidence::of_invoice(&object, livemode)?;
        let Some(account) = self.account(&evidence).await? else { return Ok(()) };
        let found = drift::document(&account, &evidence.event, &self.config.catalog, now);
        if found.is_some_and(|found| found.remedy == Remedy::Repair) {
            self.run(&evidence, account.version, "paid invoice".to_owned(), now).await?;
        }
        Ok(())
    }

    async fn feed_subscription(
        &self,
        stripe: &Stripe,
        id: &SubscriptionId,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), Trouble> {
        let object = stripe.complete(stripe.subscription(id).await?).await?;
        let evidence = Evidence::of_subscription(&object, livemode, now)?;
        let Some(account) = self.account(&evidence).await? else { return Ok(()) };
        let since = now.plus_days(-1);
        let found = drift::subscription(&account, &evidence.event, id, &self.config.catalog, since, now);
        if found.iter().any(|found| found.remedy == Remedy::Repair) {
            self.run(&evidence, account.version, "subscription".to_owned(), now).await?;
        }
        Ok(())
    }

    /// Whose the evidence is; `None` for nobody's that we know.
    async fn account(
        &self,
        evidence: &Evidence,
    ) -> Result<Option<Box<tallyhook_core::account::Account>>, Trouble> {
        match self.processor.look(&[&evidence.event]).await?.into_iter().next().transpose()? {
            Some(FoundAccount::Account(account, _)) => Ok(Some(account)),
            Some(FoundAccount::NoOwner(_)) | None => Ok(None),
        }
    }

    /// One job, through the straight path, under an id of its own for this version of the account: of several
    /// at once one does it.
    async fn run(
        &self,
        evidence: &Evidence,
        version: u64,
        what: String,
        now: Timestamp,
    ) -> Result<(), Trouble> {
        let evidence = evidence.for_version(version)?;
        let job = Job {
            digest: event::content_digest(&evidence.raw),
            event: evidence.event,
            raw: evidence.raw,
            received_ms: clock::now_ms(),
            mode: SecretMode::Any,
            // Nobody brings it again.
            attempt: 2,
            repair: Some(Repair {
                by: BY.to_owned(),
                note: format!("{what}, read from Stripe before its webhook came"),
                as_itself: false,
            }),
        };
        for done in self.processor.run(&[job], now).await {
            done?;
        }
        Ok(())
    }
}

/// What is known of the user whose session it is.
struct KnownUser {
    state: State,
    job: Option<ProvisioningState>,
    password_set: bool,
}

/// Why Stripe was not heard.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Read(#[from] event::ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn session_id(request: &Request) -> Option<SessionId> {
    let query = request.query_string_parameters();
    SessionId::new(query.first("session_id")?.trim()).ok()
}

fn no_session() -> Problem {
    problem(StatusCode::NOT_FOUND, "session_not_found", "Stripe has no checkout session with this id")
}

/// Whether there is nothing more to hear about a session: it will not be paid, or all that it paid for is in
/// the account.
fn is_settled(known: Option<&KnownSession>, state: Option<&State>) -> bool {
    let Some(known) = known else { return false };
    match (known.payment, &known.subscription) {
        (SessionPayment::Open | SessionPayment::Confirming, _) => false,
        (SessionPayment::Expired | SessionPayment::Failed, _) | (SessionPayment::Paid, None) => true,
        (SessionPayment::Paid, Some(id)) => {
            let subscription = state.and_then(|state| state.subscriptions.get(id));
            subscription.is_some_and(|subscription| {
                subscription.ended_at().is_some()
                    || (subscription.snapshot.is_some()
                        && subscription.items.values().any(|item| item.is_billed()))
            })
        }
    }
}

fn gives_access(known: &KnownSession, state: &State, catalog: &Catalog, now: Timestamp) -> bool {
    let summary = known.subscription.as_ref().and_then(|id| state.summary(id, catalog, now));
    matches!(
        summary.and_then(|summary| summary.status),
        Some(SubscriptionStatus::Active | SubscriptionStatus::Trialing)
    )
}
