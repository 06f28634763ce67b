//! The datasets of version 0.1.0. Databases of that version have the tables, but no record of their columns.

use std::collections::HashMap;

/// Returns the lines of each dataset, in the form of `qi_core::store::kit::evolution` and with the length limits of version
/// 0.1.0.
pub(crate) fn lines() -> HashMap<String, Vec<String>> {
    let mut lines: HashMap<String, Vec<String>> = HashMap::new();
    for (name, line) in include_str!("legacy_datasets.txt").lines().filter_map(|line| line.split_once(": ")) {
        lines.entry(name.to_owned()).or_default().push(line.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use qi_core::Datasets;
    use qi_core::store::kit::evolution;

    /// If an extension of a built-in dataset breaks this test, change the test and keep the fixture.
    #[test]
    fn recorded_lines_match_the_built_in_datasets() {
        let lines = super::lines();
        let datasets = Datasets::standard();
        assert_eq!(lines.len(), 4);
        for dataset in datasets.iter().take(4) {
            let stored = &lines[dataset.name()];
            // Only the maximum lengths of symbols and scopes grew, and that needs no migration step.
            assert!(evolution::compare(dataset, stored).unwrap().is_empty());
            assert_eq!(evolution::lines(dataset).len(), stored.len());
        }
    }
}
