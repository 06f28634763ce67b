//! The metrics table of docs/observability.md equals the table in the code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use qi_core::telemetry::METRICS;

const PAGE: &str = include_str!("../../docs/observability.md");

/// The rows of the page that begin with a metric: first the metrics of core, then of the adapters.
fn rows() -> Vec<Vec<&'static str>> {
    // The targets of the log, such as `qi_core::agent`, have a table too.
    let metrics = PAGE.lines().filter(|line| line.starts_with("| `qi_") && !line.contains("::"));
    metrics.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn metrics_page_matches_the_code() {
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

const DASHBOARD: &str = include_str!("../../ops/grafana/qi.json");
const ALERTS: &str = include_str!("../../ops/prometheus/alerts.yml");

/// The labels that Prometheus adds.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

/// Returns the expressions of every panel.
fn of_the_dashboard() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    targets.flatten().map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// Returns the expressions of every rule. Each is on one line.
fn of_the_alerts() -> Vec<String> {
    let lines = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("expr: '"));
    lines.map(|line| line.strip_suffix('\'').expect("one line").replace("''", "'")).collect()
}

/// Returns the names of metrics, labels and functions in an expression, without quoted or bracketed text.
fn words(expression: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut depth) = (false, 0_u32);
    for c in expression.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if !quoted && depth == 0 && (c.is_ascii_alphanumeric() || c == '_') => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
                continue;
            }
            _ => {}
        }
        words.push(String::new());
    }
    words.retain(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    words
}

/// Returns the row of a metric, including the series that an exporter derives from a histogram.
fn row_of<'a>(word: &str, rows: &'a [Vec<&'static str>]) -> Option<&'a Vec<&'static str>> {
    let named = |name: &str| rows.iter().find(move |row| row[0].trim_matches('`') == name);
    named(word).or_else(|| {
        let parts = ["_bucket", "_sum", "_count"];
        let histogram = parts.iter().find_map(|part| word.strip_suffix(part)).and_then(named);
        histogram.filter(|row| row[1] == "histogram")
    })
}

#[test]
fn dashboard_and_alerts_query_existing_metrics() {
    let rows = rows();
    let (panels, rules) = (of_the_dashboard(), of_the_alerts());
    assert!(panels.len() > 25 && rules.len() > 12, "{} {}", panels.len(), rules.len());
    let functions =
        ["sum", "max", "rate", "deriv", "increase", "histogram_quantile", "max_over_time", "time"];
    let syntax = [&functions[..], &["by", "and", "or", "unless", "offset"]].concat();
    for expression in panels.iter().chain(&rules) {
        let words = words(expression);
        let found: Vec<_> = words.iter().filter_map(|word| row_of(word, &rows)).collect();
        assert!(!found.is_empty(), "no metric in {expression}");
        for word in &words {
            let known = row_of(word, &rows).is_some()
                || syntax.contains(&word.as_str())
                || OF_PROMETHEUS.contains(&word.as_str())
                || found.iter().all(|row| row[3].contains(&format!("`{word}`")));
            assert!(known, "{word} in {expression}");
        }
    }
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let rows = rows();
    let shown: Vec<String> = of_the_dashboard().iter().flat_map(|expression| words(expression)).collect();
    for row in &rows {
        let found = shown.iter().any(|word| row_of(word, &rows) == Some(row));
        assert!(found, "{} is on no panel", row[0]);
    }
}

#[test]
fn every_alert_has_a_summary_and_a_description() {
    let count = |word: &str| ALERTS.matches(word).count();
    let rules = count("- alert: Qi");
    for part in ["expr: '", "for: ", "severity: ", "summary: '", "description: '"] {
        assert_eq!(count(part), rules, "{part}");
    }
}
