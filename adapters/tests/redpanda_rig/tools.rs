//! Kafka's tools, run with `scripts/backends kafka-tool`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libtest_mimic::Trial;
use qi_testkit::presence;

use crate::servers::{Tested, no_root, run, script};

use super::Brokers;

/// Runs one of Kafka's tools against brokers. Returns its output.
pub(crate) async fn tool(brokers: &Brokers, class: &str, options: &str, input: &str) -> String {
    let mut words = vec!["kafka-tool".to_owned(), class.to_owned()];
    words.extend(["--bootstrap-server".to_owned(), brokers.addresses().to_owned()]);
    words.extend(options.split_whitespace().map(str::to_owned));
    let input = input.to_owned();
    let printed = tokio::task::spawn_blocking(move || {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        script(&words, &input)
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
    presence::trial(format!("redpanda/{name}"), "redpanda", absent, move || match cannot() {
        Some(reason) => presence::absent("redpanda", reason.clone()),
        None => run(check(brokers)),
    })
}

/// Returns the reason why the tools cannot run on this machine, if any.
fn cannot() -> Option<&'static String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let ask = || script(&["kafka-tool", "TopicCommand", "--version"], "").err();
    ANSWER.get_or_init(ask).as_ref()
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
