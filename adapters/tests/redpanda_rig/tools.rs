//! Kafka's tools, run with `scripts/backends kafka-tool`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libtest_mimic::Trial;
use qi_testkit::presence;

use crate::servers::{TestServer, no_root, run, script};

use super::Brokers;

/// Runs one of Kafka's tools against brokers. Returns its output.
pub(crate) async fn tool(brokers: &Brokers, class: &str, options: &str, input: &str) -> String {
    let mut arguments = vec!["kafka-tool".to_owned(), class.to_owned()];
    arguments.extend(["--bootstrap-server".to_owned(), brokers.addresses().to_owned()]);
    arguments.extend(options.split_whitespace().map(str::to_owned));
    let input = input.to_owned();
    let printed = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        script(&arguments, &input)
    });
    printed.await.unwrap().unwrap()
}

/// Returns a trial that compares the results with Kafka's tools.
pub(crate) fn tool_trial<R: Future<Output = ()>>(
    brokers: &Brokers,
    name: &str,
    check: impl FnOnce(Brokers) -> R + Send + 'static,
) -> Trial {
    let brokers = brokers.clone();
    let absent = brokers.missing().or_else(no_root);
    presence::trial(format!("redpanda/{name}"), "redpanda", absent, move || match unsupported_reason() {
        Some(reason) => presence::absent("redpanda", reason.clone()),
        None => run(check(brokers)),
    })
}

/// Returns the reason why the tools cannot run on this machine, if any.
fn unsupported_reason() -> Option<&'static String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let reason = || script(&["kafka-tool", "TopicCommand", "--version"], "").err();
    REASON.get_or_init(reason).as_ref()
}

/// Returns the rows of a table with columns separated by spaces. Each row maps the names in the table's head to values.
pub(crate) fn table(printed: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines =
        printed.lines().map(str::trim).filter(|line| line.starts_with("GROUP") || line.contains(' '));
    let lines = lines.by_ref().skip_while(|line| !line.starts_with("GROUP"));
    let mut lines = lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let Some(head) = lines.next() else { return Vec::new() };
    lines.map(|row| head.iter().cloned().zip(row).collect()).collect()
}
