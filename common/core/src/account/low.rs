//! Notifications of a low balance. They follow the commits of an account and are no part of its state.
//!
//! A threshold is crossed when the balance falls below it, the threshold 0 when the balance falls to 0. It is
//! armed again when the balance is not below it any more. Holds do not count.

use super::State;
use crate::catalog::{Catalog, Threshold};
use crate::credits::Credits;
use crate::timestamp::Timestamp;

/// What the app is notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LowKind {
    /// The balance fell below a threshold above 0.
    Low,
    /// The balance fell to 0.
    Depleted,
    /// The balance is not below a threshold any more.
    Restored,
}

/// A threshold of an account at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowState {
    /// The threshold.
    pub threshold: Threshold,
    /// Whether the balance is below it.
    pub is_low: bool,
}

impl State {
    /// The thresholds of the plan that gives the tier, else of the policy, each with whether the balance is
    /// below it. A percentage counts only while a period runs.
    pub fn low(&self, catalog: &Catalog, now: Timestamp) -> Vec<LowState> {
        let now = self.time(now);
        if catalog.policy.low.is_empty() && catalog.plans.iter().all(|plan| plan.low.is_empty()) {
            return Vec::new();
        }
        let buckets = self.buckets(&catalog.policy, now);
        let balance = buckets.balance();
        let granted: Credits = buckets.items.values().map(|bucket| bucket.granted).sum();
        let given = self.given(catalog, now);
        let plans = given
            .iter()
            .filter(|given| given.until.is_none_or(|until| until > now))
            .filter_map(|given| catalog.plan(&given.plan));
        let best = plans.max_by_key(|plan| plan.rank).filter(|plan| !plan.low.is_empty());
        let thresholds = best.map_or(&catalog.policy.low, |plan| &plan.low);
        let states = thresholds.iter().filter_map(|threshold| {
            let credits = match threshold {
                Threshold::Credits(credits) => Credits::new(*credits),
                Threshold::Percent(percent) => Some(granted.share(i64::from(*percent), 100))
                    .filter(|credits| *credits > Credits::ZERO)?,
            };
            let is_low = balance < credits || balance == Credits::ZERO;
            Some(LowState { threshold: *threshold, is_low })
        });
        states.collect()
    }
}

/// What a commit changed, the highest threshold first.
pub fn crossed(before: &[LowState], after: &[LowState]) -> Vec<(LowKind, Threshold)> {
    let mut all = Vec::new();
    for state in after.iter().rev() {
        let Some(known) = before.iter().find(|known| known.threshold == state.threshold) else { continue };
        let kind = match (known.is_low, state.is_low) {
            (false, true) if state.threshold == Threshold::Credits(0) => LowKind::Depleted,
            (false, true) => LowKind::Low,
            (true, false) => LowKind::Restored,
            (true, true) | (false, false) => continue,
        };
        all.push((kind, state.threshold));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{MONTH, P1, Run, Step, paid};

    /// The notifications of each step after the first ones: `low 500`, `depleted 0`, `restored 20%`.
    fn notified(low: &str, start: &[Step], steps: &[Step]) -> Vec<String> {
        let policy = format!("addons = \"reset\"\nlow = {low}").leak();
        let edit = Step::Edit("addons = \"reset\"", policy);
        let mut all = [vec![edit], start.to_vec()].concat();
        let seen = |steps: &[Step]| {
            let run = Run::of(steps);
            run.account.state.low(&run.catalog, run.account.state.as_of)
        };
        let mut before = seen(&all);
        let mut lines = Vec::new();
        for step in steps {
            all.push(step.clone());
            let after = seen(&all);
            let words: Vec<String> = crossed(&before, &after)
                .into_iter()
                .map(|(kind, threshold)| format!("{kind:?} {}", threshold.name()).to_lowercase())
                .collect();
            lines.push(words.join(", "));
            before = after;
        }
        lines
    }

    #[test]
    fn a_threshold_is_crossed_once_and_armed_again_when_it_is_reached() {
        let steps = [
            Step::Spend(1),
            Step::Spend(100),
            Step::Grant(101),
            Step::Spend(301),
            Step::Spend(1),
            Step::Spend(198),
            Step::Grant(1),
            Step::Grant(1000),
        ];
        let expect = [
            "low 500",
            "",
            "restored 500",
            "low 500, low 200",
            "",
            "depleted 0",
            "restored 0",
            "restored 500, restored 200",
        ];
        assert_eq!(notified("[0, 200, 500]", &[Step::Signup], &steps), expect);
    }

    #[test]
    fn one_commit_crosses_several_thresholds() {
        let expect = ["low 500, low 200, depleted 0"];
        assert_eq!(notified("[500, 0, 200]", &[Step::Signup], &[Step::Spend(500)]), expect);
        assert_eq!(notified("[]", &[Step::Signup], &[Step::Spend(500)]), [""]);
    }

    #[test]
    fn a_percentage_is_of_what_the_running_periods_granted() {
        let first = paid(P1, "in_1", "subscription_create", "price_pro", P1);
        let renewal = paid(P1 + MONTH, "in_2", "subscription_cycle", "price_pro", P1 + MONTH);
        let upgrade = crate::decide::tests::changed(P1 + 9, ("price_pro", 1), ("price_business", 1), P1);
        let spends = [Step::Spend(4000), Step::Spend(1), renewal];
        assert_eq!(
            notified("[\"20%\"]", std::slice::from_ref(&first), &spends),
            ["", "low 20%", "restored 20%"]
        );
        // 3,000 of 5,000 are above 20 %, and so are 20,000 of 20,000.
        assert_eq!(notified("[\"20%\"]", &[first, Step::Spend(2000)], &[upgrade]), [""]);
        // Without a period there is nothing to take a share of.
        assert_eq!(notified("[\"20%\"]", &[Step::Signup], &[Step::Spend(499), Step::Spend(1)]), ["", ""]);
    }

    #[test]
    fn a_plan_has_thresholds_of_its_own_and_mistakes_are_errors() {
        let text = crate::decide::tests::CATALOG;
        let catalog = |from: &str, to: &str| Catalog::parse(&text.replacen(from, to, 1));
        let own = catalog("trial_credits = 2000", "trial_credits = 2000\nlow = [\"50%\", 7]").unwrap();
        assert_eq!(own.plan("pro").unwrap().low, [Threshold::Credits(7), Threshold::Percent(50)]);
        let stored: Catalog = serde_json::from_str(&serde_json::to_string(&own).unwrap()).unwrap();
        assert_eq!(stored, own);
        let run = Run::of(&[paid(P1, "in_1", "subscription_create", "price_pro", P1)]);
        let names: Vec<String> = run
            .account
            .state
            .low(&own, Timestamp::from_unix(P1 + 5))
            .iter()
            .map(|state| state.threshold.name())
            .collect();
        assert_eq!(names, ["7", "50%"]);
        let names_at = |at: i64| run.account.state.low(&own, Timestamp::from_unix(at)).len();
        assert_eq!([P1 + MONTH - 1, P1 + MONTH].map(names_at), [2, 0], "until the plan ends");
        for wrong in ["[-1]", "[\"100%\"]", "[\"0%\"]", "[\"20\"]", "[true]", "[1000000001]"] {
            let error =
                catalog("addons = \"reset\"", &format!("addons = \"reset\"\nlow = {wrong}")).unwrap_err();
            assert!(error.line == 10 && error.message.contains("low has numbers from 0"), "{wrong}: {error}");
        }
    }
}
