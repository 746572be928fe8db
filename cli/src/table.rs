//! Tables for people: columns as wide as their values, without lines around them.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use crate::output::text;

/// A column: its title, and the text of a row in it.
pub struct Column {
    title: &'static str,
    cell: Box<dyn Fn(&Value) -> String>,
    alignment: CellAlignment,
}

/// A column of one JSON field.
pub fn column(title: &'static str, field: &'static str) -> Column {
    computed(title, move |row| text(&row[field]))
}

/// A column of one JSON field that is a number, aligned to the right.
pub fn number(title: &'static str, field: &'static str) -> Column {
    Column { alignment: CellAlignment::Right, ..column(title, field) }
}

/// A column with the result of a function.
pub fn computed(title: &'static str, cell: impl Fn(&Value) -> String + 'static) -> Column {
    Column { title, cell: Box::new(cell), alignment: CellAlignment::Left }
}

/// The rows as a table, with a line of titles.
pub fn table(columns: &[Column], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns.iter().map(|column| column.title));
    for row in rows {
        table.add_row(columns.iter().map(|column| (column.cell)(row)));
    }
    for (column, Column { alignment, .. }) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(*alignment);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_column_is_as_wide_as_its_longest_value() {
        let rows = [json!({"id": "evt_1", "n": 5}), json!({"id": "evt_long", "n": 5000})];
        assert_eq!(
            table(&[column("ID", "id"), number("N", "n")], &rows),
            " ID           N\n evt_1        5\n evt_long  5000"
        );
    }
}
