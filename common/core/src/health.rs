//! The health score, from 0 to 100. Each deduction has a reason and advice.

use serde::{Deserialize, Serialize};

use crate::stripe_account::{Finding, Level};

/// A score below this causes an alert.
pub const LOW_SCORE: u8 = 80;
/// More failed events than this cause an alert.
pub const MANY_FAILED: u64 = 5;
/// A message that is older than this causes an alert.
pub const OLD_SECONDS: u64 = 900;
/// This many refused signatures within an hour are a burst.
pub const BURST: u64 = 5;
/// With fewer events, the success rate is not rated.
const MIN_RATED_EVENTS: u64 = 20;
/// What the last complete reconciliation found counts as unknown after this time: two runs did not complete.
pub const RECONCILED_HOURS: i64 = 12;
/// Points while no catalog is stored: more than for anything else, so that it comes first.
const NO_CATALOG: u64 = 50;
/// What was found in the Stripe account counts as unknown after this time: two runs did not read it.
pub const CHECKED_HOURS: i64 = 3;
/// Points for an error in the Stripe account because of which no event arrives: it alone causes an alert.
const NO_EVENTS: u64 = 21;
/// Points for figures that are not known. They do not count as zero.
const NOT_KNOWN: u64 = 5;

/// The counts that the score is computed from. `None` means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events of the last 24 hours that were processed.
    pub processed: u64,
    /// Events of the last 24 hours that were ignored.
    pub ignored: u64,
    /// Events of the last 24 hours that are parked or failed.
    pub unsuccessful: u64,
    /// Parked events of any age.
    pub parked: u64,
    /// Failed events of any age.
    pub failed: u64,
    /// Records of Stripe that the last reconciliation found missing here.
    pub missing: Option<u64>,
    /// Paying customers without a user, by the last reconciliation.
    pub orphaned: Option<u64>,
    /// Active subscriptions of a plan without any paid invoice known here, by the last reconciliation.
    pub plans_without_invoice: Option<u64>,
    /// Messages in the dead-letter queue.
    pub dead_letters: Option<u64>,
    /// The queues of the event families.
    pub queues: Vec<QueueCount>,
    /// Whether queues hold messages and CloudWatch did not answer how old the oldest are.
    pub ages_unknown: bool,
    /// Requests of the last hour that were refused because of their signature.
    pub refused_signatures: u64,
    /// What is wrong in the Stripe account; `None` without a Stripe key.
    pub stripe_account: Option<StripeAccount>,
    /// Whether no catalog is stored, so that no event can be applied.
    pub no_catalog: bool,
}

/// What the function `health` found in the Stripe account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StripeAccount {
    /// The problems, each with its fix; `None` when they are not known.
    pub findings: Option<Vec<Finding>>,
    /// When the account was read last, in RFC 3339.
    pub checked_at: Option<String>,
}

/// The messages of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueCount {
    /// Name of the event family.
    pub queue: String,
    /// Visible messages.
    pub waiting: Option<u64>,
    /// Messages that a worker holds or that wait for their next attempt.
    pub in_flight: Option<u64>,
    /// Age of the oldest message that was received less than three times; `None` for an empty queue, and
    /// while CloudWatch has no value.
    pub oldest_seconds: Option<u64>,
}

/// Points that are deducted from the score, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deduction {
    /// Number of points.
    pub points: u8,
    /// Its name: `no_catalog`, `failed`, `parked`, `missing`, `orphaned`, `plans_without_invoice`,
    /// `not_reconciled`, `stripe_account`, `stripe_not_checked`, `dead_letters`, `not_counted`,
    /// `ages_unknown`, `old_message`, `backlog`, `signatures`, `success_rate`.
    pub code: String,
    /// The reason in words, with the count.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// The score and its deductions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// 100 minus the deductions, at least 0.
    pub score: u8,
    /// Share of processed among processed, parked and failed events, in thousandths; `None` without events.
    pub success_permille: Option<u64>,
    /// Largest first.
    pub deductions: Vec<Deduction>,
}

/// Computes the score.
pub fn health(counts: &Counts) -> Health {
    let mut deductions = Vec::new();
    let mut deduct = |points: u64, code: &str, reason: String, advice: &str| {
        if points > 0 {
            let points = u8::try_from(points.min(100)).unwrap_or(100);
            deductions.push(Deduction { points, code: code.to_owned(), reason, advice: advice.to_owned() });
        }
    };
    let counted = |count: u64, one: &str, many: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
    };
    let each = |count: u64, points: u64, most: u64| count.saturating_mul(points).min(most);
    deduct(
        if counts.no_catalog { NO_CATALOG } else { 0 },
        "no_catalog",
        "no catalog is stored, so every event of a purchase is parked".to_owned(),
        "store yours: tallyhook catalog push catalog.toml --apply --reason first",
    );
    let failed = if counts.failed > MANY_FAILED { 25 } else { each(counts.failed, 3, 15) };
    deduct(
        failed,
        "failed",
        counted(counts.failed, "event failed on every attempt", "events failed on every attempt"),
        "fix the cause in their log lines, then retry them",
    );
    let parked = each(counts.parked, 2, 15);
    let reason = counted(counts.parked, "event is parked", "events are parked");
    deduct(parked, "parked", reason, "read their reasons: a customer to link, a price to add");
    let missing = counts.missing.unwrap_or(0);
    let reason = counted(missing, "record of Stripe is missing here", "records of Stripe are missing here");
    deduct(each(missing, 10, 40), "missing", reason, "run reconciliation with repair");
    let orphaned = counts.orphaned.unwrap_or(0);
    let reason = counted(orphaned, "customer at Stripe has no user", "customers at Stripe have no user");
    deduct(each(orphaned, 1, 10), "orphaned", reason, "link them to users");
    let unpaid = counts.plans_without_invoice.unwrap_or(0);
    let reason =
        counted(unpaid, "active plan has no paid invoice here", "active plans have no paid invoice here");
    let advice = "look for their invoices at Stripe: is a price missing in the catalog, or do invoice events \
                  not arrive?";
    deduct(each(unpaid, 5, 20), "plans_without_invoice", reason, advice);
    let unknown = [counts.missing, counts.orphaned, counts.plans_without_invoice].contains(&None);
    let reason = format!(
        "no reconciliation was complete within {RECONCILED_HOURS} hours, so what is missing is not known"
    );
    let advice = "set STRIPE_SECRET_KEY and look at the errors of the function reconcile";
    deduct(if unknown { NOT_KNOWN } else { 0 }, "not_reconciled", reason, advice);
    if let Some(account) = &counts.stripe_account {
        let reason = format!("the Stripe account was not checked within {CHECKED_HOURS} hours");
        let advice =
            "the function health checks it every hour: look at its log lines STRIPE_ACCOUNT_NOT_READ";
        let unknown = if account.findings.is_none() { NOT_KNOWN } else { 0 };
        deduct(unknown, "stripe_not_checked", reason, advice);
        for (finding, points) in rated(account.findings.as_deref().unwrap_or_default()) {
            deduct(points, "stripe_account", finding.problem.clone(), &finding.fix);
        }
    }
    let dead_letters = counts.dead_letters.unwrap_or(0);
    let dead = if dead_letters > 0 { 15 } else { 0 };
    let advice = "the function dead-letter did not read them: look at its errors";
    let reason =
        counted(dead_letters, "message is in the dead-letter queue", "messages are in the dead-letter queue");
    deduct(dead, "dead_letters", reason, advice);
    let uncounted = counts.queues.iter().filter(|queue| queue.waiting.is_none()).count();
    let uncounted = u64::try_from(uncounted).unwrap_or(u64::MAX) + u64::from(counts.dead_letters.is_none());
    let reason = counted(uncounted, "queue could not be counted", "queues could not be counted");
    let advice = "look at the log lines QUEUE_NOT_COUNTED";
    deduct(if uncounted > 0 { NOT_KNOWN } else { 0 }, "not_counted", reason, advice);
    let reason = "how long the oldest messages wait is not known".to_owned();
    let unknown_ages = if counts.ages_unknown { NOT_KNOWN } else { 0 };
    deduct(unknown_ages, "ages_unknown", reason, "look at the log lines QUEUE_AGE_NOT_READ");
    for queue in &counts.queues {
        let age = queue.oldest_seconds.filter(|age| *age > OLD_SECONDS);
        if let Some(age) = age {
            let reason = format!("the oldest message of {} is {} minutes old", queue.queue, age / 60);
            deduct(
                21,
                "old_message",
                reason,
                "its function does not keep up or does not run: look at its errors and throttles",
            );
        } else if let Some(waiting) = queue.waiting.filter(|waiting| *waiting > 1000) {
            let reason = format!("{waiting} messages wait in {}", queue.queue);
            deduct(5, "backlog", reason, "if this stays, raise the function's concurrency");
        }
    }
    let refused = if counts.refused_signatures >= BURST { 30 } else { 0 };
    let reason = format!("{} requests had a wrong signature within an hour", counts.refused_signatures);
    deduct(
        refused,
        "signatures",
        reason,
        "compare the webhook secret with the one on the endpoint's page at Stripe",
    );

    let needed = counts.processed.saturating_add(counts.unsuccessful);
    let success_permille = counts.processed.saturating_mul(1000).checked_div(needed);
    if let Some(rate) = success_permille.filter(|_| needed >= MIN_RATED_EVENTS) {
        let points = match rate {
            990.. => 0,
            950.. => 5,
            900.. => 15,
            _ => 25,
        };
        let reason = format!("{}.{} % of the last day's events were processed", rate / 10, rate % 10);
        deduct(points, "success_rate", reason, "group the parked and failed events by reason");
    }
    deductions.sort_by_key(|deduction| std::cmp::Reverse(deduction.points));
    let lost: u64 = deductions.iter().map(|deduction| u64::from(deduction.points)).sum();
    let score = u8::try_from(100_u64.saturating_sub(lost)).unwrap_or(0);
    Health { score, success_permille, deductions }
}

/// The points of each finding. Errors in what is sold cost at most 40 together, warnings at most 10, and
/// notes none.
fn rated(findings: &[Finding]) -> Vec<(&Finding, u64)> {
    let (mut left_for_errors, mut left_for_warnings) = (40, 10);
    let take = |left: &mut u64, points: u64| {
        let points = points.min(*left);
        *left -= points;
        points
    };
    let points = |finding: &Finding| match finding.level {
        Level::Error if matches!(finding.check.as_str(), "key" | "clock" | "endpoint" | "stripe") => {
            NO_EVENTS
        }
        Level::Error => take(&mut left_for_errors, 10),
        Level::Warning => take(&mut left_for_warnings, 2),
        Level::Note => 0,
    };
    findings.iter().zip(findings.iter().map(points)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(counts: Counts, score: u8, codes: &[&str]) {
        let health = health(&counts);
        let found: Vec<&str> = health.deductions.iter().map(|deduction| deduction.code.as_str()).collect();
        assert_eq!((health.score, &found[..]), (score, codes), "{health:#?}");
    }

    fn queue(waiting: u64, oldest_seconds: Option<u64>) -> Vec<QueueCount> {
        let waiting = Some(waiting);
        vec![QueueCount { queue: "invoice-paid".to_owned(), waiting, in_flight: Some(0), oldest_seconds }]
    }

    /// Counts of a deployment without events, of which every figure is known.
    fn known() -> Counts {
        Counts {
            missing: Some(0),
            orphaned: Some(0),
            plans_without_invoice: Some(0),
            dead_letters: Some(0),
            ..Counts::default()
        }
    }

    #[test]
    fn every_count_has_its_deduction() {
        check(known(), 100, &[]);
        check(Counts { processed: 1000, ignored: 5, ..known() }, 100, &[]);
        check(Counts { failed: 5, ..known() }, 85, &["failed"]);
        check(Counts { failed: 6, ..known() }, 75, &["failed"]);
        check(Counts { parked: 3, ..known() }, 94, &["parked"]);
        check(Counts { missing: Some(3), orphaned: Some(2), ..known() }, 68, &["missing", "orphaned"]);
        check(Counts { dead_letters: Some(1), ..known() }, 85, &["dead_letters"]);
        check(Counts { plans_without_invoice: Some(1), ..known() }, 95, &["plans_without_invoice"]);
        check(Counts { plans_without_invoice: Some(9), ..known() }, 80, &["plans_without_invoice"]);
        check(Counts { queues: queue(1, Some(901)), ..known() }, 79, &["old_message"]);
        check(Counts { queues: queue(1000, Some(900)), ..known() }, 100, &[]);
        check(Counts { queues: queue(5000, None), ..known() }, 95, &["backlog"]);
        check(Counts { refused_signatures: 5, ..known() }, 70, &["signatures"]);
        check(Counts { processed: 99, unsuccessful: 1, ..known() }, 100, &[]);
        check(Counts { processed: 96, unsuccessful: 4, ..known() }, 95, &["success_rate"]);
        check(Counts { processed: 80, unsuccessful: 20, ..known() }, 75, &["success_rate"]);
        check(Counts { processed: 90, unsuccessful: 10, ..known() }, 85, &["success_rate"]);
        check(Counts { processed: 1, unsuccessful: 1, ..known() }, 100, &[]);
    }

    #[test]
    fn an_unknown_figure_costs_points_and_never_counts_as_zero() {
        check(Counts::default(), 90, &["not_reconciled", "not_counted"]);
        check(Counts { missing: None, ..known() }, 95, &["not_reconciled"]);
        check(Counts { orphaned: None, ..known() }, 95, &["not_reconciled"]);
        check(Counts { plans_without_invoice: None, ..known() }, 95, &["not_reconciled"]);
        check(Counts { dead_letters: None, ..known() }, 95, &["not_counted"]);
        let unknown = |queue: &str| QueueCount {
            queue: queue.to_owned(),
            waiting: None,
            in_flight: None,
            oldest_seconds: None,
        };
        check(Counts { ages_unknown: true, ..known() }, 95, &["ages_unknown"]);
        let counts = Counts { queues: vec![unknown("a"), unknown("b")], ..known() };
        check(counts.clone(), 95, &["not_counted"]);
        assert_eq!(health(&counts).deductions[0].reason, "2 queues could not be counted");
    }

    #[test]
    fn a_finding_in_the_stripe_account_costs_points_with_its_fix() {
        let with = |findings: Option<Vec<(Level, &str)>>| {
            let finding = |(level, check): (Level, &str)| Finding {
                level,
                check: check.to_owned(),
                problem: "we_1 is disabled".to_owned(),
                fix: "enable it".to_owned(),
                subject: None,
            };
            let findings = findings.map(|all| all.into_iter().map(finding).collect());
            Counts { stripe_account: Some(StripeAccount { findings, checked_at: None }), ..known() }
        };
        check(with(Some(vec![])), 100, &[]);
        check(with(None), 95, &["stripe_not_checked"]);
        check(with(Some(vec![(Level::Error, "endpoint")])), 79, &["stripe_account"]);
        check(with(Some(vec![(Level::Error, "prices")])), 90, &["stripe_account"]);
        check(with(Some(vec![(Level::Warning, "portal"), (Level::Note, "portal")])), 98, &["stripe_account"]);
        assert_eq!(health(&with(Some(vec![(Level::Error, "prices"); 9]))).score, 60);
        assert_eq!(health(&with(Some(vec![(Level::Warning, "prices"); 9]))).score, 90);
        let found = health(&with(Some(vec![(Level::Error, "endpoint")]))).deductions;
        assert_eq!((found[0].reason.as_str(), found[0].advice.as_str()), ("we_1 is disabled", "enable it"));
    }

    #[test]
    fn a_count_of_one_is_singular() {
        let reason = |parked| {
            health(&Counts { parked, ..known() })
                .deductions
                .into_iter()
                .map(|it| it.reason)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (reason(1), reason(2)),
            (vec!["1 event is parked".to_owned()], vec!["2 events are parked".to_owned()])
        );
    }

    #[test]
    fn the_score_ends_at_0_and_a_huge_count_does_not_overflow() {
        let counts = Counts {
            failed: u64::MAX,
            parked: u64::MAX,
            missing: Some(u64::MAX),
            unsuccessful: u64::MAX,
            refused_signatures: u64::MAX,
            ..Counts::default()
        };
        assert_eq!(health(&counts).score, 0);
    }
}
