//! What the commands print: lines on the standard output, progress and errors on the error output.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

/// Prints a line on the standard output.
///
/// # Errors
/// When the output cannot be written, for example because the reader closed the pipe.
pub fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

pub(crate) fn print_error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "tallyhook: {error:#}");
}

/// Shows the progress of a long command. Each call overwrites the line before. Only a terminal gets it.
pub fn show_progress(line: &str) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[2K{line}");
        let _ = io::stderr().flush();
    }
}

/// Removes the line of [`show_progress`].
pub fn clear_progress() {
    show_progress("");
}

/// A JSON value as text for people. Control characters are replaced, because the value may come from outside
/// and must not control the terminal.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {}", text(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The elements of a JSON array. Any other value has none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_from_outside_cannot_control_the_terminal() {
        assert_eq!(text(&json!("a\u{1b}[2Jb\n")), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(text(&json!({"tier": "pro", "credits": 5})), "credits 5, tier pro");
    }
}
