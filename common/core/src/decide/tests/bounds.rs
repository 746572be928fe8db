//! What an item keeps although its record is bounded.

use super::Run;
use super::shapes::{T, bill, check_life, end, flagged, item, line, month, shows};

#[test]
fn a_paid_period_stays_open_however_many_periods_pass_without_an_invoice() {
    // Collection is paused: periods pass and nothing is invoiced. The line of a new full period may be a
    // proration, as in the invoice of pay-rails/pay (5b018bc) test_stripe_can_swap_a_subscription.yml. It opens
    // a period because a snapshot shows its start.
    let at = T + 86_400;
    let lines = [
        flagged("si_1", "price_pro", -1900, at, month(T)),
        flagged("si_1", "price_business", 9000, at, month(at)),
    ];
    let life = |periods| {
        let mut steps = vec![
            shows(T, "active", &[item("si_1", "price_pro", T, month(T))]),
            bill(T + 1, "in_1", "subscription_create", &[line("si_1", "price_pro", 2000, T, month(T))]),
            shows(at, "active", &[item("si_1", "price_business", at, month(at))]),
            bill(at + 1, "in_2", "subscription_update", &lines),
        ];
        let mut start = at;
        for _ in 0..periods {
            start = month(start);
            steps.push(shows(start + 1, "active", &[item("si_1", "price_business", start, month(start))]));
        }
        steps
    };
    check_life("a year", &life(12), "business 20000 | si_1=20000");
    assert_eq!(end(&Run::of(&life(40))), "business 20000 | si_1=20000", "as it happened");
}
