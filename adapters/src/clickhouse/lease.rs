//! The lease of maintenance: at most one call at a time builds bars.
//!
//! ClickHouse has no locks. A call adds its lease, and then looks for other leases. Of two calls that do this at the same
//! time, at least one sees the other, and a call that sees another lease ends its own. A killed call leaves its lease,
//! which expires when no statement of this call can still run on the server: after [`RENEWAL`], the time limit of a
//! statement, and `bars_settle` as a margin.

use std::time::{Duration, Instant};

use super::connect::{execute, rows};
use super::error::Cause;
use super::materialized::LEASE_TABLE;
use super::store::ClickHouseStore;

/// The age after which a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(5);

/// The right to build bars.
pub(super) struct Lease {
    id: u64,
    /// Above the generations of all earlier leases. Of two builds of a bar, the one with the higher generation wins.
    pub(super) generation: u64,
    renewed: Instant,
}

impl ClickHouseStore {
    /// Takes the lease. Returns None if `is_over` becomes true before the other calls have ended.
    pub(super) async fn take_lease(&self, is_over: impl Fn() -> bool) -> Result<Option<Lease>, Cause> {
        let mut rng = qi_core::Rng::new();
        let id = rng.u64(..);
        loop {
            let renewed = Instant::now();
            let (others, generation) = self.other_leases(id).await?;
            if others == 0 {
                let lease = Lease { id, generation, renewed };
                self.extend(&lease).await?;
                match self.other_leases(id).await {
                    Ok((0, _)) => return Ok(Some(lease)),
                    others => {
                        self.end_lease(&lease).await?;
                        others?;
                    }
                }
            }
            if is_over() {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(50..500))).await;
        }
    }

    /// Renews the lease before a statement. Fails with a conflict after the lease has expired, because another call may
    /// have built bars since.
    pub(super) async fn renew_lease(&self, lease: &mut Lease) -> Result<(), Cause> {
        if lease.renewed.elapsed() < RENEWAL {
            return Ok(());
        }
        let renewed = Instant::now();
        if self.count(&format!("SELECT count() FROM {}", self.holding(lease))).await? != 1 {
            return Err(Cause::ConcurrentChange);
        }
        self.extend(lease).await?;
        lease.renewed = renewed;
        Ok(())
    }

    pub(super) async fn end_lease(&self, lease: &Lease) -> Result<(), Cause> {
        self.set_expiry(lease, Duration::ZERO).await
    }

    /// Returns the text after `FROM` of a query. It selects one row until the lease expires, and then none.
    pub(super) fn holding(&self, lease: &Lease) -> String {
        format!(
            "{} FINAL WHERE id = {} AND expires > now64(6, 'UTC')",
            self.bars_table(LEASE_TABLE),
            lease.id
        )
    }

    /// Returns the number of other leases that have not expired, and the next generation.
    async fn other_leases(&self, id: u64) -> Result<(u64, u64), Cause> {
        let sql = format!(
            "SELECT countIf(id != {id} AND expires > now64(6, 'UTC')), \
             greatest(max(generation) + 1, toUInt64(toUnixTimestamp64Micro(now64(6)))) FROM {} FINAL",
            self.bars_table(LEASE_TABLE)
        );
        let found =
            rows(&self.inner.connections.read_client, &sql, |row| Ok((row.u64()?, row.u64()?))).await?;
        found.into_iter().next().ok_or(Cause::ConcurrentChange)
    }

    async fn extend(&self, lease: &Lease) -> Result<(), Cause> {
        let config = &self.inner.config;
        self.set_expiry(lease, RENEWAL + config.server_limits.bulk_timeout + config.bars_settle).await
    }

    async fn set_expiry(&self, lease: &Lease, after: Duration) -> Result<(), Cause> {
        let sql = format!(
            "INSERT INTO {} SELECT {}, {}, now64(6, 'UTC') + toIntervalMicrosecond({})",
            self.bars_table(LEASE_TABLE),
            lease.id,
            lease.generation,
            after.as_micros()
        );
        execute(&self.inner.connections.bulk_client, &sql).await
    }
}
