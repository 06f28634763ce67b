//! The warning about a password that may cross a network unencrypted.

use std::net::IpAddr;
#[cfg(feature = "redpanda")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Warns if a host is not a loopback host. The ClickHouse and TimescaleDB stores call this function at opening, if a
/// password may be sent over an unencrypted connection.
#[cfg(any(feature = "clickhouse", feature = "timescale"))]
pub(crate) fn warn_of_password<'a>(backend: &'static str, hosts: impl Iterator<Item = &'a str>) {
    warn_of(backend, &remote(hosts));
}

fn warn_of(backend: &'static str, remote: &[&str]) {
    if !remote.is_empty() {
        let hosts = remote.join(", ");
        tracing::warn!(backend, hosts, "the password may be sent over an unencrypted connection");
    }
}

fn remote<'a>(hosts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    hosts.filter(|host| !is_loopback(host)).collect()
}

/// The warning of a backend that discovers further hosts after it was opened. Logged at most once.
#[cfg(feature = "redpanda")]
#[derive(Debug)]
pub(crate) struct PasswordWarning {
    backend: &'static str,
    /// True if the warning was already logged, or is not needed.
    done: AtomicBool,
}

#[cfg(feature = "redpanda")]
impl PasswordWarning {
    /// Creates the warning. `exposed` is true if the password is sent without encryption.
    pub(crate) fn new(backend: &'static str, exposed: bool) -> Self {
        Self { backend, done: AtomicBool::new(!exposed) }
    }

    pub(crate) fn check<'a>(&self, hosts: impl Iterator<Item = &'a str>) {
        if self.done.load(Ordering::Relaxed) {
            return;
        }
        let remote = remote(hosts);
        if !remote.is_empty() && !self.done.swap(true, Ordering::Relaxed) {
            warn_of(self.backend, &remote);
        }
    }
}

/// Returns the host of `host:port`, `[host]:port` or `host`, without brackets.
#[cfg(any(feature = "clickhouse", feature = "redpanda"))]
pub(crate) fn host_of(authority: &str) -> &str {
    let authority = authority.trim();
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

/// Returns whether a host is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "redpanda")]
    #[test]
    fn the_warning_is_logged_once_for_a_later_host() {
        let given = |warning: &PasswordWarning| warning.done.load(Ordering::Relaxed);
        let warning = PasswordWarning::new("redpanda", true);
        warning.check(["127.0.0.1", "localhost"].into_iter());
        assert!(!given(&warning), "loopback brokers need no warning");
        warning.check(["127.0.0.1", "192.0.2.1"].into_iter());
        assert!(given(&warning));
        assert!(given(&PasswordWarning::new("redpanda", false)), "an encrypted connection needs no warning");
    }

    #[test]
    fn loopback_hosts_are_recognised() {
        for host in ["localhost", "LocalHost.", "127.0.0.1", "127.9.8.7", "::1", "[::1]", "::ffff:127.0.0.1"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["db", "localhost.example.com", "10.0.0.1", "0.0.0.0", "128.0.0.1", "::2", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[cfg(any(feature = "clickhouse", feature = "redpanda"))]
    #[test]
    fn the_host_of_an_authority_has_no_port() {
        for (authority, host) in [
            ("db:9092", "db"),
            (" db:1 ", "db"),
            ("db", "db"),
            ("[::1]:9092", "::1"),
            ("[fe80::1]", "fe80::1"),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
