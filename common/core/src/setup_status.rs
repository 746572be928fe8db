//! How far a customer who came back from checkout is: paid, provisioned, with a password; and what comes
//! next.
//!
//! | payment | when |
//! |---|---|
//! | `paid` | an event says that the session is paid, or that its subscription is active or trialing |
//! | `failed` | a delayed payment failed |
//! | `unpaid` | Stripe says that the session is still open, or ran out |
//! | `confirming` | nothing is known yet, or the session is complete and its (delayed) payment is not |

use serde::{Deserialize, Serialize};

use crate::event::{CheckoutSession, EventType, PaymentStatus, SessionStatus};

/// What is known of a checkout session's payment. Ordered by finality: of two words about one session the
/// greater one stands, whichever is heard first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionPayment {
    /// The customer is at it, or left it.
    Open,
    /// The customer finished; the payment is on its way.
    Confirming,
    /// It ran out.
    Expired,
    /// The delayed payment failed.
    Failed,
    /// The money is there, or nothing is to be paid.
    Paid,
}

impl SessionPayment {
    /// What an event of this type says of a session.
    pub fn told(session: &CheckoutSession, kind: &EventType) -> Self {
        match (kind, &session.payment_status) {
            (EventType::CheckoutSessionAsyncPaymentFailed, _) => Self::Failed,
            (EventType::CheckoutSessionExpired, _) => Self::Expired,
            (_, PaymentStatus::Paid | PaymentStatus::NoPaymentRequired) => Self::Paid,
            (_, PaymentStatus::Unpaid | PaymentStatus::Other(_)) => Self::Confirming,
        }
    }

    /// What a session says of itself, read from Stripe.
    pub fn read(session: &CheckoutSession) -> Self {
        match session.status {
            SessionStatus::Expired => Self::Expired,
            // Nothing to pay is not the same as done.
            SessionStatus::Open => Self::Open,
            SessionStatus::Complete | SessionStatus::Other(_) => {
                Self::told(session, &EventType::CheckoutSessionCompleted)
            }
        }
    }

    /// The word in items.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Confirming => "confirming",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Paid => "paid",
        }
    }

    /// Reads the word back.
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Open, Self::Confirming, Self::Expired, Self::Failed, Self::Paid]
            .into_iter()
            .find(|payment| payment.as_str() == text)
    }
}

/// What is known of a customer's set-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The session's payment, if anything is known of it.
    pub session: Option<SessionPayment>,
    /// Whether the session's subscription is active or trialing.
    pub subscription_gives_access: bool,
    /// Whether any payment of this user was ever confirmed.
    pub has_paid: bool,
    /// Whether first payments are provisioned in this deployment.
    pub provisions: bool,
    /// How far the user's provisioning is, if there is a job for it.
    pub job: Option<ProvisioningState>,
    /// Whether the app said that the user has a password.
    pub password_set: bool,
}

/// `payment_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words are the contract; the table of this file says when")]
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
    /// There is nothing to do yet.
    NotStarted,
    /// The job is written and on its way.
    Queued,
    /// The app is being called.
    Running,
    /// The app has answered, or there is nothing to call.
    Completed,
    /// All attempts failed; an operator can run it again.
    Failed,
}

impl ProvisioningState {
    /// The word in items.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Reads the word back.
    pub fn from_text(text: &str) -> Option<Self> {
        let all = [Self::NotStarted, Self::Queued, Self::Running, Self::Completed, Self::Failed];
        all.into_iter().find(|state| state.as_str() == text)
    }
}

/// `password_state`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words are the contract")]
pub enum PasswordState {
    NotSent,
    Set,
}

/// `next_action`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words are the contract")]
pub enum NextAction {
    Pay,
    WaitPayment,
    WaitProvisioning,
    SetPassword,
    GoToDashboard,
}

/// `{"payment_state":"paid","provisioning_state":"queued","password_state":"not_sent","next_action":"wait_provisioning"}`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SetupStatus {
    /// Whether the money is there.
    pub payment_state: PaymentState,
    /// Whether the app has set the user up.
    pub provisioning_state: ProvisioningState,
    /// Whether the user can log in.
    pub password_state: PasswordState,
    /// What comes next.
    pub next_action: NextAction,
}

impl SetupStatus {
    /// What is shown for what is known.
    pub fn of(known: Known) -> Self {
        let payment_state = match known.session {
            _ if known.subscription_gives_access => PaymentState::Paid,
            Some(SessionPayment::Paid) => PaymentState::Paid,
            Some(SessionPayment::Failed) => PaymentState::Failed,
            Some(SessionPayment::Open | SessionPayment::Expired) => PaymentState::Unpaid,
            Some(SessionPayment::Confirming) | None => PaymentState::Confirming,
        };
        let paid = payment_state == PaymentState::Paid;
        let provisioning_state = match known.job {
            Some(state) => state,
            // No job although there was a payment: nothing was to be provisioned at the time.
            None if paid && (known.has_paid || !known.provisions) => ProvisioningState::Completed,
            None => ProvisioningState::NotStarted,
        };
        let password_state = if known.password_set { PasswordState::Set } else { PasswordState::NotSent };
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
        Self { payment_state, provisioning_state, password_state, next_action }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(known: Known) -> String {
        let status = serde_json::to_value(SetupStatus::of(known)).unwrap();
        let word = |name: &str| status[name].as_str().unwrap().to_owned();
        ["payment_state", "provisioning_state", "password_state", "next_action"].map(word).join(" ")
    }

    #[test]
    fn each_state_follows_from_what_is_known() {
        use ProvisioningState as P;
        use SessionPayment as S;
        let known = |session| Known { session, provisions: true, ..Known::default() };
        let paid = Known { has_paid: true, ..known(Some(S::Paid)) };
        let job = |state| Known { job: Some(state), ..paid };
        for (what, known, expect) in [
            ("nothing was heard yet", known(None), "confirming not_started not_sent wait_payment"),
            ("still at the checkout", known(Some(S::Open)), "unpaid not_started not_sent pay"),
            ("the checkout ran out", known(Some(S::Expired)), "unpaid not_started not_sent pay"),
            (
                "a bank debit is on its way",
                known(Some(S::Confirming)),
                "confirming not_started not_sent wait_payment",
            ),
            ("it failed", known(Some(S::Failed)), "failed not_started not_sent pay"),
            ("paid, the job is written", job(P::Queued), "paid queued not_sent wait_provisioning"),
            ("the app is being called", job(P::Running), "paid running not_sent wait_provisioning"),
            ("the app did not answer", job(P::Failed), "paid failed not_sent wait_provisioning"),
            ("it did", job(P::Completed), "paid completed not_sent set_password"),
            (
                "and the user has a password",
                Known { password_set: true, ..job(P::Completed) },
                "paid completed set go_to_dashboard",
            ),
            (
                "a password does not replace the app",
                Known { password_set: true, ..job(P::Queued) },
                "paid queued set wait_provisioning",
            ),
            (
                "nothing is provisioned here",
                Known { provisions: false, ..known(Some(S::Paid)) },
                "paid completed not_sent set_password",
            ),
            ("a customer from before there were jobs", paid, "paid completed not_sent set_password"),
            (
                "the subscription was heard of first",
                Known { subscription_gives_access: true, ..known(None) },
                "paid not_started not_sent wait_provisioning",
            ),
            (
                "an old customer buys again",
                Known { has_paid: true, ..known(None) },
                "confirming not_started not_sent wait_payment",
            ),
        ] {
            assert_eq!(told(known), expect, "{what}");
        }
    }

    #[test]
    fn a_session_is_paid_when_it_says_so_and_not_because_it_is_complete() {
        let read = |status: &str, payment: &str, kind: Option<&EventType>| {
            let session =
                json!({"id": "cs_1", "mode": "payment", "status": status, "payment_status": payment});
            let session = CheckoutSession::from_json(&session.to_string()).unwrap();
            kind.map_or_else(|| SessionPayment::read(&session), |kind| SessionPayment::told(&session, kind))
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
    fn the_greater_word_stands_whichever_is_heard_first() {
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
