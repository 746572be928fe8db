//! The setup status of a customer who returns from checkout, and the page that shows it.
//!
//! ```json
//! {"session_id":"cs_test_1","reference":"PO-7","payment_state":"paid","provisioning_state":"queued",
//!  "password_state":"not_sent","next_action":"wait_provisioning","welcome_email_sent":false}
//! ```
//! `reference` is `customer_reference` of the session's metadata, else the session's id.
//!
//! The states are computed from what the webhooks changed ([`tallyhook_core::setup_status`]). If a webhook
//! has not arrived and a Stripe key is configured, the session is read from Stripe. It goes through the same
//! `decide` and `commit` as an event, with the same ledger keys, so the late webhook changes nothing.
//!
//! **Invariant:** Stripe is asked only for a session that this deployment created, that an event of a known
//! customer has named, or that the app asks for with its token. A request about any other id writes nothing.
//! **Invariant:** one session is read from Stripe at most once in [`FIRST_PAUSE_SECONDS`], with growing
//! pauses, no matter how many clients poll. **Invariant:** the deployment reads at most [`MAX_READS`]
//! sessions in [`WINDOW_SECONDS`].

use lambda_http::http::StatusCode;
use lambda_http::{Body, Request, RequestExt, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Api, no_user, read_body, user_id};
use crate::accounts::MAX_ATTEMPTS;
use crate::http::answer::{Problem, problem};
use crate::http::pages::status::StatusPage;
use crate::process::{FoundAccount, Job, Repair, RepairKind};
use crate::schedules::reconcile::Evidence;
use tallyhook_aws::clock;
use tallyhook_aws::store::StoreError;
use tallyhook_aws::store::items::{self, Key, KnownSession, PortalRecord, SessionRequest};
use tallyhook_aws::stripe::{Cursor, Object, Stripe, StripeError};
use tallyhook_core::account::State;
use tallyhook_core::catalog::Catalog;
use tallyhook_core::decide::{Outcome, Payments, decide, leaves_out};
use tallyhook_core::drift::{self, Remedy};
use tallyhook_core::event::{self, CheckoutMode, CheckoutSession, SubscriptionStatus};
use tallyhook_core::ids::{InvoiceId, SessionId, SubscriptionId, UserId};
use tallyhook_core::job::{JobKind, JobMessage};
use tallyhook_core::setup_status::{
    ProvisioningReport, ProvisioningState, SessionPayment, SetupFacts, SetupStatus,
};
use tallyhook_core::signature::SecretMode;
use tallyhook_core::timestamp::Timestamp;

/// The pause after the first read of a session. It doubles with each read, up to a minute.
const FIRST_PAUSE_SECONDS: i64 = 8;
/// Reads of one session. After these, reconciliation finds what is missing.
const MAX_TRIES: u32 = 30;
/// Reads of the deployment within [`WINDOW_SECONDS`].
const MAX_READS: u32 = 20;
/// See [`MAX_READS`].
const WINDOW_SECONDS: i64 = 10;
/// The cause of these changes, in the log and the ledger.
const BY: &str = "setup-status";

/// The result of reading a session from Stripe.
enum SessionRead {
    /// Stripe has the session.
    Found(SessionPayment, Option<String>),
    /// Stripe has no such session.
    Missing,
    /// The session was not read, or Stripe did not answer.
    NotRead,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordSet {
    user_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportBody {
    user_id: String,
    state: String,
}

impl Api {
    pub(super) async fn setup_status(&self, request: &Request) -> Result<Value, Problem> {
        let session = session_id(request).ok_or_else(|| {
            let message = "session_id must be the id of a checkout session, cs_…: Stripe puts it in place of \
                           {CHECKOUT_SESSION_ID}";
            problem(StatusCode::BAD_REQUEST, "invalid_session_id", message)
        })?;
        let is_app = self.config.tokens.check(request.headers(), clock::now_ms()).await.is_ok();
        self.with_fresh_catalog().await.status_of(session, is_app).await
    }

    async fn status_of(&self, session: SessionId, is_app: bool) -> Result<Value, Problem> {
        let now = clock::now();
        let (key, request_key) = (Key::Session(session.clone()), items::session_request_key(&session));
        let items = self.store.load([key.clone(), request_key.clone()]).await?;
        let mut known = items.get(&key).map(|item| items::read_session(&key, item)).transpose()?;
        let mut user = self.known_user(known.as_ref()).await?;
        let request = items.get(&request_key).map(items::read_session_request).unwrap_or_default();
        let mut at_stripe = request.answer.as_deref().and_then(SessionPayment::from_text);
        let mut reference = request.reference.clone();
        let may_ask = request.is_ours || known.is_some() || is_app;
        if may_ask && !is_settled(known.as_ref(), user.as_ref().map(|user| &user.state)) {
            match self.read_from_stripe(&session, known.as_ref(), &request, now).await? {
                SessionRead::Missing => return Err(no_session()),
                SessionRead::NotRead if known.is_none() && request.answer.as_deref() == Some("missing") => {
                    return Err(no_session());
                }
                SessionRead::NotRead => {}
                SessionRead::Found(payment, read) => {
                    at_stripe = Some(payment);
                    reference = read;
                    let items = self.store.load([key.clone()]).await?;
                    known = items.get(&key).map(|item| items::read_session(&key, item)).transpose()?;
                    user = self.known_user(known.as_ref()).await?;
                }
            }
        }
        // A payment counts as paid only after an event changed the account. If only Stripe says that it is
        // paid, it is still being confirmed.
        let at_stripe =
            at_stripe.map(
                |payment| {
                    if payment == SessionPayment::Paid { SessionPayment::Confirming } else { payment }
                },
            );
        let payment = known.as_ref().map(|known| known.payment);
        let status = SetupStatus::of(SetupFacts {
            session: payment.max(at_stripe),
            subscription_gives_access: known.as_ref().zip(user.as_ref()).is_some_and(|(known, user)| {
                gives_access(known, &user.state, &self.config.catalog, clock::now())
            }),
            has_paid: user.as_ref().is_some_and(|user| user.state.first_paid_at.is_some()),
            provisions: self.processor.accounts.outbox.reports(JobKind::Provision),
            job: user.as_ref().and_then(|user| user.job),
            reported: user.as_ref().and_then(|user| user.portal.reported),
            welcome_email_sent: user.as_ref().is_some_and(|user| user.portal.welcome_email_at.is_some()),
            password_set: user.as_ref().is_some_and(|user| user.portal.password_set_at.is_some()),
        });
        let mut body = json!(status);
        let reference = known.and_then(|known| known.reference).or(reference);
        body["reference"] = json!(reference.unwrap_or_else(|| session.to_string()));
        body["session_id"] = json!(session);
        Ok(body)
    }

    pub(super) async fn password_set(&self, request: &Request) -> Result<Value, Problem> {
        let body: PasswordSet = read_body(request, "{\"user_id\": \"user_123\"}")?;
        let user = user_id(&body.user_id)?;
        self.change_portal(&user, |record| record.password_set_at = Some(clock::now())).await?;
        Ok(json!({"user_id": user, "password_state": "set"}))
    }

    /// `POST /portal/provisioning`: the app reports how far it has set a user up.
    pub(super) async fn report_provisioning(&self, request: &Request) -> Result<Value, Problem> {
        let example = r#"{"user_id": "user_123", "state": "WELCOME_EMAIL_SENT"}"#;
        let body: ReportBody = read_body(request, example)?;
        let user = user_id(&body.user_id)?;
        let report = ProvisioningReport::deserialize(json!(body.state)).map_err(|_| {
            let message = "state must be PROVISIONING_STARTED, WELCOME_EMAIL_SENT, PROVISIONING_COMPLETED or \
                           PROVISIONING_FAILED";
            problem(StatusCode::BAD_REQUEST, "invalid_state", message)
        })?;
        let report_to = |record: &mut PortalRecord| match report.state() {
            Some(state) => record.reported = Some(state),
            None => record.welcome_email_at = Some(clock::now()),
        };
        self.change_portal(&user, report_to).await?;
        let (user_id, job) = (user.as_str(), JobMessage::of_user(JobKind::Provision, &user));
        let (client_id, job_id) = (user_id, job.id());
        if report == ProvisioningReport::WelcomeEmailSent {
            info!(user_id, client_id, job_id, "WELCOME_EMAIL_SENT");
        } else {
            info!(user_id, client_id, job_id, state = report.as_str(), "PROVISIONING_REPORTED");
        }
        Ok(json!({"user_id": user, "state": report}))
    }

    /// Changes what the app reported about a user.
    async fn change_portal(&self, user: &UserId, change: impl Fn(&mut PortalRecord)) -> Result<(), Problem> {
        let (account_key, key) = (Key::Account(user.clone()), Key::Portal(user.clone()));
        let mut attempts = 0;
        loop {
            attempts += 1;
            let items = self.store.load([account_key.clone(), key.clone()]).await?;
            if !items.contains_key(&account_key) {
                return Err(no_user());
            }
            let mut record = items.get(&key).map(items::read_portal).unwrap_or_default();
            change(&mut record);
            match self.store.commit(vec![items::portal(user, &record)]).await {
                Ok(()) => return Ok(()),
                Err(error) if attempts < MAX_ATTEMPTS && error.is_transient() => clock::pause(attempts).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The status page. Its script requests the status, so the page itself needs no read.
    pub(super) fn status_page(&self, request: &Request) -> Response<Body> {
        let session = session_id(request);
        let (app_url, support_email) =
            (self.config.app_base_url.as_deref(), self.config.support_email.as_deref());
        StatusPage { session: session.as_ref().map(SessionId::as_str), app_url, support_email }.answer()
    }

    async fn known_user(&self, known: Option<&KnownSession>) -> Result<Option<KnownUser>, StoreError> {
        let Some(user) = known.map(|known| &known.user) else { return Ok(None) };
        let (account, portal, job) = (
            Key::Account(user.clone()),
            Key::Portal(user.clone()),
            items::job_key(&JobMessage::of_user(JobKind::Provision, user)),
        );
        let items = self.store.load([account.clone(), portal.clone(), job.clone()]).await?;
        let state = items.get(&account).map(|item| items::read_account(user, item)).transpose()?;
        Ok(Some(KnownUser {
            state: state.map(|account| account.state).unwrap_or_default(),
            job: items
                .get(&job)
                .and_then(|item| ProvisioningState::from_text(&items::read_text(item, "outcome")?)),
            portal: items.get(&portal).map(items::read_portal).unwrap_or_default(),
        }))
    }

    /// Reads the session from Stripe when the limits allow it, and applies it. A failure of Stripe is only
    /// logged: the customer sees the stored state.
    async fn read_from_stripe(
        &self,
        id: &SessionId,
        known: Option<&KnownSession>,
        request: &SessionRequest,
        now: Timestamp,
    ) -> Result<SessionRead, StoreError> {
        let Some(stripe) = &self.stripe else { return Ok(SessionRead::NotRead) };
        let pause = (FIRST_PAUSE_SECONDS << request.tries.saturating_sub(1).min(3)).min(60);
        if request.tries >= MAX_TRIES || (request.tries > 0 && now.unix() < request.asked + pause) {
            return Ok(SessionRead::NotRead);
        }
        if !self.store.claim_session_request(id, request, now).await?
            || !self.store.take_session_budget(MAX_READS, WINDOW_SECONDS, now).await?
        {
            return Ok(SessionRead::NotRead);
        }
        let read = match self.apply_session(stripe, id, known, now).await {
            Ok((payment, reference)) => SessionRead::Found(payment, reference),
            Err(SetupError::Stripe(error)) if error.is_missing() => SessionRead::Missing,
            Err(error) => {
                warn!(checkout_session_id = id.as_str(), error = error.to_string(), "SETUP_STATUS_NOT_HEARD");
                SessionRead::NotRead
            }
        };
        let (answer, reference) = match &read {
            SessionRead::Found(payment, reference) => (Some(*payment), reference.as_deref()),
            SessionRead::Missing => (None, None),
            SessionRead::NotRead => return Ok(read),
        };
        self.store.note_session_answer(id, answer, reference).await?;
        Ok(read)
    }

    /// Reads the session and applies it. If it is paid, also applies its invoice and its subscription.
    async fn apply_session(
        &self,
        stripe: &Stripe,
        id: &SessionId,
        known: Option<&KnownSession>,
        now: Timestamp,
    ) -> Result<(SessionPayment, Option<String>), SetupError> {
        let object = stripe.session(id).await?;
        let session = CheckoutSession::from_json(object.text())?;
        let payment = SessionPayment::read(&session);
        let reference = session.customer_reference();
        info!(checkout_session_id = id.as_str(), payment = payment.as_str(), "SETUP_STATUS_HEARD");
        if payment != SessionPayment::Paid || session.id != *id {
            return Ok((payment, reference));
        }
        let livemode = self.config.livemode.or(stripe.livemode()).unwrap_or(false);
        if known.is_none_or(|known| known.payment != SessionPayment::Paid) {
            let evidence = Evidence::of_session(&object, livemode, None)?;
            self.apply_paid_session(stripe, &object, evidence, livemode, now).await?;
        }
        if session.mode == CheckoutMode::Subscription {
            if let Some(invoice) = &session.invoice {
                self.apply_invoice(stripe, invoice, livemode, now).await?;
            }
            if let Some(subscription) = &session.subscription {
                self.apply_subscription(stripe, subscription, livemode, now).await?;
            }
        }
        Ok((payment, reference))
    }

    async fn apply_paid_session(
        &self,
        stripe: &Stripe,
        object: &Object,
        mut evidence: Evidence,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), SetupError> {
        let Some((account, payments)) = self.account(&evidence).await? else { return Ok(()) };
        if leaves_out(&evidence.event)
            && let event::Object::CheckoutSession(session) = &evidence.event.object
        {
            let items = stripe.line_items(&session.id, &Cursor::Newest).await?;
            evidence = Evidence::of_session_with(object, &items.objects, livemode)?;
        }
        let catalog = &self.config.catalog;
        let outcome = decide(&account, &evidence.event, &payments, catalog, now);
        // If it cannot be applied, the webhook's event is parked and alerted later.
        if matches!(outcome, Outcome::Apply(_)) {
            self.run(&evidence, account.version, RepairKind::Document, "paid session", now).await?;
        }
        Ok(())
    }

    async fn apply_invoice(
        &self,
        stripe: &Stripe,
        id: &InvoiceId,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), SetupError> {
        let object = stripe.complete(stripe.invoice(id).await?).await?;
        let evidence = Evidence::of_invoice(&object, livemode)?;
        let Some((account, payments)) = self.account(&evidence).await? else { return Ok(()) };
        let found = drift::document(&account, &evidence.event, &payments, &self.config.catalog, now);
        if found.is_some_and(|found| found.remedy == Remedy::Repair) {
            self.run(&evidence, account.version, RepairKind::Document, "paid invoice", now).await?;
        }
        Ok(())
    }

    async fn apply_subscription(
        &self,
        stripe: &Stripe,
        id: &SubscriptionId,
        livemode: bool,
        now: Timestamp,
    ) -> Result<(), SetupError> {
        let object = stripe.complete(stripe.subscription(id).await?).await?;
        let evidence = Evidence::of_subscription(&object, livemode, now, None)?;
        let Some((account, _)) = self.account(&evidence).await? else { return Ok(()) };
        let since = now.plus_days(-1);
        let found = drift::subscription(&account, &evidence.event, id, &self.config.catalog, since, now);
        if found.iter().any(|found| found.remedy == Remedy::Repair) {
            self.run(&evidence, account.version, RepairKind::State, "subscription", now).await?;
        }
        Ok(())
    }

    /// The account that the event belongs to, and the stored payments that it names; `None` when its user is
    /// unknown.
    async fn account(
        &self,
        evidence: &Evidence,
    ) -> Result<Option<(Box<tallyhook_core::account::Account>, Payments)>, SetupError> {
        match self.processor.look(&[&evidence.event]).await?.into_iter().next().transpose()? {
            Some(FoundAccount::Account(account, payments)) => Ok(Some((account, payments))),
            Some(FoundAccount::NoOwner(_)) | None => Ok(None),
        }
    }

    /// Processes the event with an id for this version of the account, so that of several concurrent requests
    /// only one applies it.
    async fn run(
        &self,
        evidence: &Evidence,
        version: u64,
        kind: RepairKind,
        what: &str,
        now: Timestamp,
    ) -> Result<(), SetupError> {
        let evidence = evidence.for_version(version)?;
        let job = Job {
            digest: event::content_digest(&evidence.raw),
            event: evidence.event,
            raw: evidence.raw,
            received_ms: clock::now_ms(),
            mode: SecretMode::Any,
            // SQS does not redeliver this event, so an unknown user parks it at once.
            attempt: 2,
            repair: Some(Repair {
                by: BY.to_owned(),
                note: format!("{what}, read from Stripe before its webhook came"),
                kind,
                reversals: Vec::new(),
            }),
        };
        for outcome in self.processor.run(&[job], now).await {
            outcome?;
        }
        Ok(())
    }
}

/// The stored state of the session's user.
struct KnownUser {
    state: State,
    job: Option<ProvisioningState>,
    portal: PortalRecord,
}

/// Why a session could not be read or applied.
#[derive(Debug, thiserror::Error)]
enum SetupError {
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

/// Whether a session needs no more reads: it will not be paid, or the account has everything that it paid
/// for.
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
    let now = state.time(now);
    let summary = known.subscription.as_ref().and_then(|id| state.summary(id, catalog, now));
    summary.is_some_and(|summary| {
        matches!(summary.status, Some(SubscriptionStatus::Active | SubscriptionStatus::Trialing))
            || summary.runs_by_invoice(now)
    })
}
