//! The result as a Markdown table with a column for each arm.

use crate::{Measurement, median};

/// A column: one arm.
pub struct Column {
    pub name: &'static str,
    pub taken: Vec<Measurement>,
    pub size_mb: Option<f64>,
    pub zip_mb: Option<f64>,
}

type Line = (&'static str, fn(&Measurement) -> Option<f64>, usize);

const COMPARED: [Line; 8] = [
    ("cold start, ms", |taken| Some(taken.cold_ms), 1),
    ("init CPU, ms", |taken| Some(taken.init_cpu_ms), 1),
    ("first event CPU, ms", |taken| Some(taken.first_cpu_ms), 2),
    ("first event at 256 MB, ms", |taken| taken.limited_first_ms, 1),
    ("CPU per event, µs", |taken| Some(taken.warm_cpu_us), 0),
    ("p50, µs", |taken| Some(taken.p50_us), 0),
    ("CPU per batch of 10, µs", |taken| taken.batch_cpu_us, 0),
    ("peak memory, MB", |taken| Some(taken.peak_mb), 1),
];

/// Prints medians over the rounds. In parentheses: the ratio to the reference (or else to the first column)
/// within a round, as median, minimum and maximum.
pub fn print(title: &str, columns: &[Column]) {
    let Some(reference) = columns.iter().find(|column| column.name == "reference").or(columns.first()) else {
        return;
    };
    let line = |name: &str, cell: &dyn Fn(&Column) -> Option<String>| {
        let cells: Vec<Option<String>> = columns.iter().map(cell).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> =
                cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned())).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    };
    println!("\n### {title}\n");
    line("", &|column| Some(column.name.to_owned()));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (name, value, digits) in COMPARED {
        line(name, &|column| {
            let values: Vec<f64> = column.taken.iter().filter_map(value).collect();
            let pairs = column.taken.iter().zip(&reference.taken);
            let mut ratios: Vec<f64> =
                pairs.filter_map(|(own, other)| Some(value(own)? / value(other)?)).collect();
            ratios.sort_by(f64::total_cmp);
            let (min, max) = (ratios.first()?, ratios.last()?);
            Some(format!(
                "{:.digits$} ({:.2}× [{min:.2}..{max:.2}])",
                median(values.into_iter()),
                median(ratios.iter().copied())
            ))
        });
    }
    line("batch of 10, answers 5 ms late: times one event", &|column| {
        let ratios: Vec<f64> = column.taken.iter().filter_map(|taken| taken.late_batch).collect();
        (!ratios.is_empty()).then(|| format!("{:.1}", median(ratios.into_iter())))
    });
    line("AWS calls per event", &|column| Some(format!("{:.2}", column.taken.last()?.calls)));
    line("body + header bytes", &|column| {
        column.taken.last().map(|taken| format!("{:.0} + {:.0}", taken.body_bytes, taken.header_bytes))
    });
    line("calls until the first answer", &|column| {
        let calls: Vec<String> =
            column.taken.last()?.init_calls.iter().map(|(name, count)| format!("{count} {name}")).collect();
        (!calls.is_empty()).then(|| calls.join(", "))
    });
    line("size, deflated, MB", &|column| Some(format!("{:.1}, {:.1}", column.size_mb?, column.zip_mb?)));
}
