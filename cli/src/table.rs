//! Tables for people: columns as wide as what is in them, nothing drawn around them.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::text;

/// A column: its title, and what is in it. A title that ends with `>` is of numbers.
pub type Column<'a> = (&'a str, &'a dyn Fn(&Value) -> String);

/// Rows of values as a table.
pub fn table(columns: &[Column], rows: &[Value]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(columns.iter().map(|(title, _)| title.trim_end_matches('>')));
    for row in rows {
        table.add_row(columns.iter().map(|(_, of)| of(row)));
    }
    for (place, (title, _)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(place).filter(|_| title.ends_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A field by its name.
pub fn field(name: &'static str) -> impl Fn(&Value) -> String {
    move |row| text(&row[name])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [json!({"id": "evt_1", "n": 5}), json!({"id": "evt_long", "n": 5000})];
        let (id, n) = (field("id"), field("n"));
        assert_eq!(
            table(&[("ID", &id), ("N>", &n)], &rows),
            " ID           N\n evt_1        5\n evt_long  5000"
        );
    }
}
