//! The difference of two texts, line by line.

use crate::output::text;

/// Unchanged lines that are shown around a change.
const CONTEXT: usize = 3;

/// The lines that differ, with the lines around them. Empty when the texts are equal.
pub(super) fn lines(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let all = compare(&old, &new);
    let changed: Vec<usize> = (0..all.len()).filter(|at| all[*at].0 != ' ').collect();
    let is_shown = |at: usize| {
        let next = changed.partition_point(|change| *change < at);
        let near = |change: Option<&usize>| change.is_some_and(|change| change.abs_diff(at) <= CONTEXT);
        near(changed.get(next)) || near(next.checked_sub(1).and_then(|before| changed.get(before)))
    };
    let (mut shown, mut is_gap) = (Vec::new(), false);
    for (at, (sign, line)) in all.iter().enumerate() {
        if is_shown(at) {
            shown.push(format!("{sign}{}", text(&(*line).into())));
        } else if !is_gap && !shown.is_empty() {
            shown.push("…".to_owned());
        }
        is_gap = !is_shown(at);
    }
    if is_gap && !shown.is_empty() {
        shown.pop();
    }
    shown
}

/// Each line with `-`, `+` or a space, by the longest common subsequence.
fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let same_start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[same_start..], &new[same_start..]);
    let same_end =
        old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (a, b) = (&old_rest[..old_rest.len() - same_end], &new_rest[..new_rest.len() - same_end]);
    // common[i][j]: the number of common lines of a[i..] and b[j..].
    let mut common = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let mut lines: Vec<(char, &str)> = old[..same_start].iter().map(|line| (' ', *line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    lines.extend(old[old.len() - same_end..].iter().map(|line| (' ', *line)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_and_the_lines_around_them_are_shown() {
        let old = (1..=20).map(|line| format!("{line}\n")).collect::<String>();
        assert!(lines(&old, &old).is_empty());
        let new = old.replacen("3\n", "three\n", 1).replace("18\n", "");
        assert_eq!(
            lines(&old, &new),
            [" 1", " 2", "-3", "+three", " 4", " 5", " 6", "…", " 15", " 16", " 17", "-18", " 19", " 20"]
        );
        assert_eq!(lines("", "a\n"), ["+a"]);
        assert_eq!(lines("a\nb\n", ""), ["-a", "-b"]);
    }
}
