//! Reads `{"catalog": …, "steps": […], "now": …}` from standard input and writes the judged world as JSON.

use std::io::{Read, Write};

#[derive(serde::Deserialize)]
struct Life {
    catalog: String,
    steps: Vec<reference::Step>,
    now: i64,
}

fn main() -> std::io::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let life: Life = serde_json::from_str(&text)?;
    let world = reference::judge(&life.catalog, &life.steps, life.now);
    let json = serde_json::to_string_pretty(&world)?;
    writeln!(std::io::stdout(), "{json}")
}
