//! The civil calendar in UTC, as far as slices and free refills need it.

/// The seconds of a day.
pub const DAY: i64 = 86_400;

fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// credits.md §2: "clamped to the month's end and always counted from S (31 Jan → 28 Feb → 31 Mar), UTC".
pub fn add_months(start: i64, months: i64) -> i64 {
    let (year, month, day) = civil(start.div_euclid(DAY));
    let index = year * 12 + month - 1 + months;
    let (year, month) = (index.div_euclid(12), index.rem_euclid(12) + 1);
    let next = if month == 12 { days(year + 1, 1, 1) } else { days(year, month + 1, 1) };
    let length = next - days(year, month, 1);
    days(year, month, day.min(length)) * DAY + start.rem_euclid(DAY)
}

/// Reads Unix seconds, or RFC 3339 in UTC (`2026-11-26T12:00:00Z`, or a date alone).
pub fn moment(v: &serde_json::Value) -> Option<i64> {
    let text = match v.as_str() {
        Some(text) => text,
        None => return v.as_i64(),
    };
    let mut n = text.split(['-', 'T', ':', 'Z', '.']).map(|p| p.parse::<i64>().unwrap_or(0));
    let date = days(n.next()?, n.next()?, n.next()?);
    let mut clock = || n.next().unwrap_or(0);
    Some(date * DAY + clock() * 3600 + clock() * 60 + clock())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_clamped_and_counted_from_the_start() {
        let start = days(2028, 1, 31) * DAY + 7;
        let day = |k| civil(add_months(start, k).div_euclid(DAY));
        assert_eq!([day(1), day(2), day(13)], [(2028, 2, 29), (2028, 3, 31), (2029, 2, 28)]);
    }
}
