//! The status of a customer after a checkout: payment, provisioning, password and the next action.
//!
//! | payment state | when |
//! |---|---|
//! | `paid` | the session is paid, or its subscription is active or trialing |
//! | `failed` | the delayed payment failed |
//! | `unpaid` | the session is open or expired |
//! | `confirming` | nothing is known yet, or the session is complete and its delayed payment is pending |

use serde::{Deserialize, Serialize};

use crate::event::{CheckoutSession, EventType, PaymentStatus, SessionStatus};

/// The payment of a checkout session. Ordered by finality: of two states of one session the greater one
/// counts, regardless of the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionPayment {
    /// The customer has not completed the checkout.
    Open,
    /// The customer completed the checkout, and the payment is pending.
    Confirming,
    /// The session expired.
    Expired,
    /// The delayed payment failed.
    Failed,
    /// It is paid, or there is nothing to pay.
    Paid,
}

impl SessionPayment {
    /// The payment by an event of this type about the session.
    pub fn of_event(session: &CheckoutSession, kind: &EventType) -> Self {
        match (kind, &session.payment_status) {
            (EventType::CheckoutSessionAsyncPaymentFailed, _) => Self::Failed,
            (EventType::CheckoutSessionExpired, _) => Self::Expired,
            (_, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired) => Self::Paid,
            (_, PaymentStatus::Unpaid | PaymentStatus::Other(_)) => Self::Confirming,
        }
    }

    /// The payment by the session as Stripe's API returned it.
    pub fn read(session: &CheckoutSession) -> Self {
        match session.status {
            SessionStatus::Expired => Self::Expired,
            // An open session can have `no_payment_required`. It is still not completed.
            SessionStatus::Open => Self::Open,
            SessionStatus::Complete | SessionStatus::Other(_) => {
                Self::of_event(session, &EventType::CheckoutSessionCompleted)
            }
        }
    }

    /// The text in items.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Confirming => "confirming",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Paid => "paid",
        }
    }

    /// Reads the text of an item.
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Open, Self::Confirming, Self::Expired, Self::Failed, Self::Paid]
            .into_iter()
            .find(|payment| payment.as_str() == text)
    }
}

/// The facts that the status is computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetupFacts {
    /// The session's payment, if known.
    pub session: Option<SessionPayment>,
    /// Whether the session's subscription is active or trialing.
    pub subscription_gives_access: bool,
    /// Whether the user has ever paid.
    pub has_paid: bool,
    /// Whether this deployment provisions users.
    pub provisions: bool,
    /// The state of the user's provisioning job, if there is one.
    pub job: Option<ProvisioningState>,
    /// What the app reported itself. It counts instead of the job.
    pub reported: Option<ProvisioningState>,
    /// Whether the app reported that it sent the welcome e-mail.
    pub welcome_email_sent: bool,
    /// Whether the app reported that the user has a password.
    pub password_set: bool,
}

/// `payment_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the contract; the table of this file describes them")]
pub enum PaymentState {
    Unpaid,
    Confirming,
    Paid,
    Failed,
}

/// `provisioning_state`; also the state of a provisioning job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvisioningState {
    /// There is no job.
    NotStarted,
    /// The job is written and not yet started.
    Queued,
    /// The app is being called.
    Running,
    /// The app has answered, or this deployment does not provision users.
    Completed,
    /// All attempts failed. An operator can run the job again.
    Failed,
}

impl ProvisioningState {
    /// The text in items.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Reads the text of an item.
    pub fn from_text(text: &str) -> Option<Self> {
        let all = [Self::NotStarted, Self::Queued, Self::Running, Self::Completed, Self::Failed];
        all.into_iter().find(|state| state.as_str() == text)
    }
}

/// What the app reports with `POST /portal/provisioning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProvisioningReport {
    /// It began to set the user up.
    ProvisioningStarted,
    /// It sent the welcome e-mail. The state of provisioning stays.
    WelcomeEmailSent,
    /// It has set the user up.
    ProvisioningCompleted,
    /// It cannot set the user up.
    ProvisioningFailed,
}

impl ProvisioningReport {
    /// The state that it stands for.
    pub fn state(self) -> Option<ProvisioningState> {
        match self {
            Self::ProvisioningStarted => Some(ProvisioningState::Running),
            Self::WelcomeEmailSent => None,
            Self::ProvisioningCompleted => Some(ProvisioningState::Completed),
            Self::ProvisioningFailed => Some(ProvisioningState::Failed),
        }
    }

    /// The word in the request and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProvisioningStarted => "PROVISIONING_STARTED",
            Self::WelcomeEmailSent => "WELCOME_EMAIL_SENT",
            Self::ProvisioningCompleted => "PROVISIONING_COMPLETED",
            Self::ProvisioningFailed => "PROVISIONING_FAILED",
        }
    }
}

/// `password_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the contract")]
pub enum PasswordState {
    NotSent,
    Set,
}

/// `next_action`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the contract")]
pub enum NextAction {
    Pay,
    WaitPayment,
    WaitProvisioning,
    SetPassword,
    GoToDashboard,
}

/// ```json
/// {"payment_state":"paid","provisioning_state":"queued","password_state":"not_sent",
///  "next_action":"wait_provisioning","welcome_email_sent":false}
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SetupStatus {
    /// Whether the customer has paid.
    pub payment_state: PaymentState,
    /// Whether the app has set the user up.
    pub provisioning_state: ProvisioningState,
    /// Whether the user has a password.
    pub password_state: PasswordState,
    /// What the customer does or waits for next.
    pub next_action: NextAction,
    /// Whether the app reported that it sent the welcome e-mail.
    pub welcome_email_sent: bool,
}

impl SetupStatus {
    /// Computes the status.
    pub fn of(facts: SetupFacts) -> Self {
        let payment_state = match facts.session {
            _ if facts.subscription_gives_access => PaymentState::Paid,
            Some(SessionPayment::Paid) => PaymentState::Paid,
            Some(SessionPayment::Failed) => PaymentState::Failed,
            Some(SessionPayment::Open | SessionPayment::Expired) => PaymentState::Unpaid,
            Some(SessionPayment::Confirming) | None => PaymentState::Confirming,
        };
        let paid = payment_state == PaymentState::Paid;
        let provisioning_state = match facts.reported.or(facts.job) {
            Some(state) => state,
            // The user paid and has no job: the deployment did not provision users at that time.
            None if paid && (facts.has_paid || !facts.provisions) => ProvisioningState::Completed,
            None => ProvisioningState::NotStarted,
        };
        let password_state = if facts.password_set { PasswordState::Set } else { PasswordState::NotSent };
        let next_action = match (payment_state, provisioning_state, password_state) {
            (PaymentState::Unpaid | PaymentState::Failed, _, _) => NextAction::Pay,
            (PaymentState::Confirming, _, _) => NextAction::WaitPayment,
            (PaymentState::Paid, ProvisioningState::Completed, PasswordState::NotSent) => {
                NextAction::SetPassword
            }
            (PaymentState::Paid, ProvisioningState::Completed, PasswordState::Set) => {
                NextAction::GoToDashboard
            }
            (
                PaymentState::Paid,
                ProvisioningState::NotStarted
                | ProvisioningState::Queued
                | ProvisioningState::Running
                | ProvisioningState::Failed,
                _,
            ) => NextAction::WaitProvisioning,
        };
        let welcome_email_sent = facts.welcome_email_sent;
        Self { payment_state, provisioning_state, password_state, next_action, welcome_email_sent }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status_of(facts: SetupFacts) -> String {
        let status = serde_json::to_value(SetupStatus::of(facts)).unwrap();
        let word = |name: &str| status[name].as_str().unwrap().to_owned();
        ["payment_state", "provisioning_state", "password_state", "next_action"].map(word).join(" ")
    }

    #[test]
    fn each_report_of_the_app_has_its_word_and_its_state() {
        use ProvisioningReport as R;
        use ProvisioningState as P;
        for (report, word, state) in [
            (R::ProvisioningStarted, "PROVISIONING_STARTED", Some(P::Running)),
            (R::WelcomeEmailSent, "WELCOME_EMAIL_SENT", None),
            (R::ProvisioningCompleted, "PROVISIONING_COMPLETED", Some(P::Completed)),
            (R::ProvisioningFailed, "PROVISIONING_FAILED", Some(P::Failed)),
        ] {
            assert_eq!((report.as_str(), report.state()), (word, state));
            assert_eq!(serde_json::to_value(report).unwrap(), word);
        }
    }

    #[test]
    fn each_state_follows_from_what_is_known() {
        use ProvisioningState as P;
        use SessionPayment as S;
        let facts = |session| SetupFacts { session, provisions: true, ..SetupFacts::default() };
        let paid = SetupFacts { has_paid: true, ..facts(Some(S::Paid)) };
        let job = |state| SetupFacts { job: Some(state), ..paid };
        for (what, facts, expect) in [
            ("nothing is known yet", facts(None), "confirming not_started not_sent wait_payment"),
            ("the checkout is open", facts(Some(S::Open)), "unpaid not_started not_sent pay"),
            ("the checkout expired", facts(Some(S::Expired)), "unpaid not_started not_sent pay"),
            (
                "a bank debit is pending",
                facts(Some(S::Confirming)),
                "confirming not_started not_sent wait_payment",
            ),
            ("the bank debit failed", facts(Some(S::Failed)), "failed not_started not_sent pay"),
            ("paid, the job is written", job(P::Queued), "paid queued not_sent wait_provisioning"),
            ("the app is being called", job(P::Running), "paid running not_sent wait_provisioning"),
            ("the app did not answer", job(P::Failed), "paid failed not_sent wait_provisioning"),
            ("the app answered", job(P::Completed), "paid completed not_sent set_password"),
            (
                "the app answered, and the user has a password",
                SetupFacts { password_set: true, ..job(P::Completed) },
                "paid completed set go_to_dashboard",
            ),
            (
                "a password does not replace the app",
                SetupFacts { password_set: true, ..job(P::Queued) },
                "paid queued set wait_provisioning",
            ),
            (
                "the app answered and reports that it still works",
                SetupFacts { reported: Some(P::Running), ..job(P::Completed) },
                "paid running not_sent wait_provisioning",
            ),
            (
                "the app reports that it is done",
                SetupFacts { reported: Some(P::Completed), ..job(P::Failed) },
                "paid completed not_sent set_password",
            ),
            (
                "nothing is provisioned here",
                SetupFacts { provisions: false, ..facts(Some(S::Paid)) },
                "paid completed not_sent set_password",
            ),
            ("a customer who paid before jobs existed", paid, "paid completed not_sent set_password"),
            (
                "the subscription's event arrived first",
                SetupFacts { subscription_gives_access: true, ..facts(None) },
                "paid not_started not_sent wait_provisioning",
            ),
            (
                "an old customer buys again",
                SetupFacts { has_paid: true, ..facts(None) },
                "confirming not_started not_sent wait_payment",
            ),
        ] {
            assert_eq!(status_of(facts), expect, "{what}");
        }
    }

    #[test]
    fn a_complete_session_is_paid_only_by_its_payment_status() {
        let read = |status: &str, payment: &str, kind: Option<&EventType>| {
            let session =
                json!({"id": "cs_1", "mode": "payment", "status": status, "payment_status": payment});
            let session = CheckoutSession::from_json(&session.to_string()).unwrap();
            kind.map_or_else(
                || SessionPayment::read(&session),
                |kind| SessionPayment::of_event(&session, kind),
            )
            .as_str()
        };
        assert_eq!(read("complete", "paid", None), "paid");
        assert_eq!(read("complete", "no_payment_required", None), "paid");
        assert_eq!(read("complete", "unpaid", None), "confirming");
        assert_eq!(read("open", "unpaid", None), "open");
        assert_eq!(read("open", "no_payment_required", None), "open");
        assert_eq!(read("expired", "unpaid", None), "expired");
        assert_eq!(read("complete", "unpaid", Some(&EventType::CheckoutSessionAsyncPaymentFailed)), "failed");
        assert_eq!(read("complete", "paid", Some(&EventType::CheckoutSessionAsyncPaymentFailed)), "failed");
    }

    #[test]
    fn states_are_ordered_by_finality_and_read_back() {
        assert!(
            SessionPayment::Paid > SessionPayment::Failed
                && SessionPayment::Failed > SessionPayment::Confirming
        );
        assert!(SessionPayment::Expired > SessionPayment::Open);
        for word in ["open", "confirming", "expired", "failed", "paid"] {
            assert_eq!(SessionPayment::from_text(word).unwrap().as_str(), word);
        }
        for word in ["not_started", "queued", "running", "completed", "failed"] {
            let state = ProvisioningState::from_text(word).unwrap();
            assert_eq!((state.as_str(), json!(state)), (word, json!(word)));
        }
        assert_eq!((SessionPayment::from_text("PAID"), ProvisioningState::from_text("")), (None, None));
    }
}
