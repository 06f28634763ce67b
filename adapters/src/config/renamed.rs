//! The keys that were renamed since version 0.1.0. An old key causes an error that names the new key.

use qi_core::domain::duration;
use qi_core::{Error, ErrorKind, Result};

use super::tree::{Node, Value, join};

/// The old path and the new path of each renamed key. A `*` matches the name of a dataset or a topic.
#[rustfmt::skip]
const RENAMED: &[(&str, &str)] = &[
    ("store.retry.attempts", "store.retry.max_attempts"),
    ("store.retry.min_ms", "store.retry.min_delay"),
    ("store.retry.max_ms", "store.retry.max_delay"),
    ("store.retry.budget_ms", "store.retry.max_elapsed"),
    ("store.timeout.limit_ms", "store.timeout.call"),
    ("store.timeout.heavy_ms", "store.timeout.bulk"),
    ("store.timeout.publish_ms", "store.timeout.publish"),
    ("store.limit.waiting", "store.limit.max_queued"),
    ("store.circuit_breaker.failures", "store.circuit_breaker.failure_threshold"),
    ("store.circuit_breaker.open_ms", "store.circuit_breaker.open_duration"),
    ("bus.retry.attempts", "bus.retry.max_attempts"),
    ("bus.retry.min_ms", "bus.retry.min_delay"),
    ("bus.retry.max_ms", "bus.retry.max_delay"),
    ("bus.retry.budget_ms", "bus.retry.max_elapsed"),
    ("bus.timeout.limit_ms", "bus.timeout.call"),
    ("bus.timeout.heavy_ms", "bus.timeout.bulk"),
    ("bus.timeout.publish_ms", "bus.timeout.publish"),
    ("bus.limit.waiting", "bus.limit.max_queued"),
    ("bus.circuit_breaker.failures", "bus.circuit_breaker.failure_threshold"),
    ("bus.circuit_breaker.open_ms", "bus.circuit_breaker.open_duration"),
    ("bus.topics.*.retention_hours", "bus.topics.*.retention"),
    ("store.memory.retention.*.max_age_secs", "store.memory.retention.*.max_age"),
    ("store.timescale.pool.acquire_timeout_ms", "store.timescale.pool.acquire_timeout"),
    ("store.timescale.pool.idle_timeout_ms", "store.timescale.pool.idle_timeout"),
    ("store.timescale.pool.max_lifetime_ms", "store.timescale.pool.max_lifetime"),
    ("store.timescale.limits.statement_ms", "store.timescale.server_limits.statement_timeout"),
    ("store.timescale.limits.heavy_ms", "store.timescale.server_limits.bulk_timeout"),
    ("store.timescale.limits.lock_ms", "store.timescale.server_limits.lock_timeout"),
    ("store.timescale.limits", "store.timescale.server_limits"),
    ("store.timescale.write.piece", "store.timescale.write.max_statement_records"),
    ("store.timescale.chunks.*_hours", "store.timescale.chunks.*"),
    ("store.timescale.columnstore.*_hours", "store.timescale.columnstore.*"),
    ("store.timescale.retention.*_hours", "store.timescale.retention.*"),
    ("store.clickhouse.pool.acquire_timeout_ms", "store.clickhouse.pool.acquire_timeout"),
    ("store.clickhouse.limits.statement_ms", "store.clickhouse.server_limits.statement_timeout"),
    ("store.clickhouse.limits.heavy_ms", "store.clickhouse.server_limits.bulk_timeout"),
    ("store.clickhouse.limits.memory_bytes", "store.clickhouse.server_limits.memory_bytes"),
    ("store.clickhouse.limits", "store.clickhouse.server_limits"),
    ("store.clickhouse.write.piece", "store.clickhouse.write.max_request_records"),
    ("store.clickhouse.retention.*_hours", "store.clickhouse.retention.*"),
    ("bus.memory.delivery_timeout_ms", "bus.memory.delivery_timeout"),
    ("bus.memory.close_timeout_ms", "bus.memory.close_timeout"),
    ("bus.memory.retention_ms", "bus.memory.retention"),
    ("bus.memory.group_retention_ms", "bus.memory.group_retention"),
    ("bus.memory.sticky_ms", "bus.memory.sticky_linger"),
    ("bus.redpanda.codec", "bus.codec"),
    ("bus.redpanda.delivery_timeout_ms", "bus.redpanda.delivery_timeout"),
    ("bus.redpanda.request_timeout_ms", "bus.redpanda.request_timeout"),
    ("bus.redpanda.commit_timeout_ms", "bus.redpanda.commit_timeout"),
    ("bus.redpanda.close_timeout_ms", "bus.redpanda.close_timeout"),
    ("bus.redpanda.statistics_ms", "bus.redpanda.statistics_interval"),
];

/// Rejects a tree that contains an old key.
///
/// # Errors
/// `Config` with the old key, its origin and the new key.
pub(super) fn check(root: &Node) -> Result<()> {
    check_node(root, "")
}

fn check_node(node: &Node, path: &str) -> Result<()> {
    if let Value::Table(table) = &node.value {
        table.iter().try_for_each(|(key, node)| check_node(node, &join(path, key)))?;
    }
    // A dataset may have a name such as `candles_hours`. The old keys had numbers.
    let is_dataset = |old: &str| old.ends_with("*_hours") && is_duration(node);
    let new_path = RENAMED.iter().find_map(|(old, new)| renamed(path, old, new).filter(|_| !is_dataset(old)));
    let Some(new_path) = new_path else { return Ok(()) };
    let was_number = ["_ms", "_secs", "_hours"].iter().any(|unit| path.ends_with(unit));
    let hint = if was_number { ", a duration as text such as \"30s\" or \"7d\"" } else { "" };
    Err(Error::new(ErrorKind::Config, "config.unknown_key", "load")
        .with_message(format_args!("the key `{path}` was renamed to `{new_path}`{hint}"))
        .with_context("key", path)
        .with_context("origin", node.origin()))
}

/// Returns the new path of a key whose path matches the old pattern.
fn renamed(path: &str, old: &str, new: &str) -> Option<String> {
    let Some((start, end)) = old.split_once('*') else { return (path == old).then(|| new.to_owned()) };
    let name = path.strip_prefix(start)?.strip_suffix(end).filter(|name| !name.is_empty())?;
    Some(new.replace('*', name))
}

/// Returns true for a text that is a valid duration.
fn is_duration(node: &Node) -> bool {
    match &node.value {
        Value::Text(text) | Value::Scalar(toml::Value::String(text)) => duration::parse(text).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn error_of(key: &str, value: &str) -> Option<Error> {
        Config::builder().toml(&format!("{} = {value}", key.replace('*', "ticks"))).build().err()
    }

    #[test]
    fn every_renamed_key_is_rejected_with_its_new_key() {
        for (old, new) in RENAMED {
            for value in ["1", "\"30s\""] {
                // A text as the value of `ticks_hours` belongs to a dataset with this name.
                if old.ends_with("*_hours") && value != "1" {
                    continue;
                }
                let error = error_of(old, value).unwrap_or_else(|| panic!("{old} is accepted"));
                assert_eq!(error.code(), "config.unknown_key", "{old}: {error:?}");
                assert_eq!(error.context_value("key"), Some(&*old.replace('*', "ticks")));
                let named = format!("renamed to `{}`", new.replace('*', "ticks"));
                assert!(error.message().unwrap().contains(&named), "{old} = {value}: {error:?}");
            }
            // The number 1 is not a valid duration, but the key itself is known. `store.timeout.publish` has no effect.
            let unknown = error_of(new, "1").filter(|error| error.code() == "config.unknown_key");
            assert!(unknown.is_none(), "{new}: {unknown:?}");
        }
    }

    #[test]
    fn a_dataset_may_have_the_name_of_an_old_key() {
        let text = "store.clickhouse.retention.candles_hours = \"7d\"";
        let error = Config::builder().toml(text).build().unwrap_err();
        assert!(error.message().unwrap().contains("must name a dataset"), "{error:?}");
    }

    #[test]
    fn a_renamed_key_in_a_variable_is_rejected() {
        let variables = [("QI__STORE__TIMEOUT__LIMIT_MS", "30000")];
        let error = Config::builder().variables(variables).build().unwrap_err();
        assert!(error.message().unwrap().contains("`store.timeout.call`"), "{error:?}");
        assert!(error.context_value("origin").unwrap().contains("QI__STORE__TIMEOUT__LIMIT_MS"), "{error:?}");
    }
}
