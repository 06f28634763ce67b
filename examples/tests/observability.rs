//! The table of metrics on the page is the table in the code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use qi_core::telemetry::METRICS;

const PAGE: &str = include_str!("../../docs/observability.md");

/// The rows of the page that begin with a metric: the core's own first, then the adapters'.
fn rows() -> Vec<Vec<&'static str>> {
    let metrics = PAGE.lines().filter(|line| line.starts_with("| `qi_"));
    metrics.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_page_shows_every_metric_as_the_code_has_it() {
    let shown = rows();
    let known = METRICS.iter().map(|metric| {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        let name = format!("`{}`", metric.name);
        [name, metric.kind.as_str().into(), metric.unit.as_str().into(), labels, metric.help.into()]
    });
    for (known, shown) in known.zip(&shown) {
        assert_eq!(*shown, known);
    }
    let of_adapters = ["`qi_timescale", "`qi_redpanda"];
    let own = shown.iter().filter(|row| !of_adapters.iter().any(|name| row[0].starts_with(name))).count();
    assert_eq!(own, METRICS.len());
}

#[test]
fn every_label_is_explained_and_has_few_values() {
    for label in METRICS.iter().flat_map(|metric| metric.labels) {
        assert!(PAGE.contains(&format!("\n| `{label}` | ")), "{label}");
    }
}
