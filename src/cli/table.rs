//! Plain tables of text.

use std::fmt;

/// Rows under a head, in columns that are as wide as their longest text.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    /// Control characters become spaces: what a caller has sent must not command a terminal.
    pub(super) fn add(&mut self, row: [String; N]) {
        self.rows.push(row.map(|text| printable(&text)));
    }
}

/// A text without control characters.
pub(super) fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for (n, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            if n > 0 {
                writeln!(f)?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_text() {
        let mut table = Table::new(["name", "lag"]);
        table.add(["analytics".into(), "0".into()]);
        table.add(["a\u{1b}[2J\n".into(), "12".into()]);
        assert_eq!(table.to_string(), "name       lag\nanalytics  0\na [2J      12");
    }
}
