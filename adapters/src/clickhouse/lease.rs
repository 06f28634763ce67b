//! The lease of maintenance: at most one call at a time builds bars.
//!
//! ClickHouse has no locks. A call adds its lease, and then looks for other leases. Of two calls that do this at the same
//! time, at least one sees the other, and a call that sees another lease ends its own. A killed call leaves its lease,
//! which expires when no statement of this call can still run on the server: after [`RENEWAL`], the time limit of a
//! statement, and `bars_settle` as a margin.
//!
//! A lease has the generation 0 until a statement sees no other lease. Only the lease with the highest generation is
//! held. If the renewal of an expired lease arrives late, the lease is not held beside its successor.

use std::time::{Duration, Instant};

use super::connect::execute;
use super::error::Cause;
use super::materialized::LEASE_TABLE;
use super::store::ClickHouseStore;

/// The age after which a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(5);

/// The condition of a lease that has not expired.
const IS_LIVE: &str = "expires > now64(6, 'UTC')";

/// The right to build bars.
pub(super) struct Lease {
    id: u64,
    /// Above the generations of all calls that built bars before. Of two builds of a bar, the one with the higher
    /// generation wins.
    pub(super) generation: u64,
    renewed: Instant,
}

impl ClickHouseStore {
    /// Takes the lease. Returns None if `is_over` becomes true before the other calls have ended.
    pub(super) async fn take_lease(&self, is_over: impl Fn() -> bool) -> Result<Option<Lease>, Cause> {
        let mut rng = qi_core::Rng::new();
        let id = rng.u64(..);
        let others = format!(
            "SELECT count() FROM {} FINAL WHERE id != {id} AND {IS_LIVE}",
            self.bars_table(LEASE_TABLE)
        );
        loop {
            let lease = Lease { id, generation: 0, renewed: Instant::now() };
            if self.count(&others).await? == 0 {
                match self.begin_lease(&lease).await {
                    Ok(generation @ 1..) => return Ok(Some(Lease { generation, ..lease })),
                    outcome => {
                        self.end_lease(&lease).await?;
                        outcome?;
                    }
                }
            }
            if is_over() {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(50..500))).await;
        }
    }

    /// Adds a lease, and then its generation if there is no other lease. Returns the generation, or 0.
    async fn begin_lease(&self, lease: &Lease) -> Result<u64, Cause> {
        let (id, table) = (lease.id, self.bars_table(LEASE_TABLE));
        let alone = format!(
            "FROM (SELECT greatest(max(generation) + 1, toUInt64(toUnixTimestamp64Micro(now64(6)))) AS next, \
             countIf({IS_LIVE}) AS live, countIf({IS_LIVE} AND id = {id}) AS own FROM {table} FINAL) \
             WHERE live = 1 AND own = 1"
        );
        self.insert_lease(lease, "0", self.lease_duration(), "").await?;
        self.insert_lease(lease, "next", self.lease_duration(), &alone).await?;
        self.count(&format!("SELECT generation FROM {table} FINAL WHERE id = {id} AND {IS_LIVE}")).await
    }

    /// Renews the lease before a statement. Fails with a conflict if the lease is lost.
    pub(super) async fn renew_lease(&self, lease: &mut Lease) -> Result<(), Cause> {
        if lease.renewed.elapsed() < RENEWAL {
            return Ok(());
        }
        let renewed = Instant::now();
        let held = format!("FROM {}", self.holding(lease));
        self.insert_lease(lease, "generation", self.lease_duration(), &held).await?;
        self.check_lease(lease).await?;
        lease.renewed = renewed;
        Ok(())
    }

    /// Fails with a conflict if the lease is lost, because some statements of the call then had no effect.
    pub(super) async fn check_lease(&self, lease: &Lease) -> Result<(), Cause> {
        match self.count(&format!("SELECT count() FROM {}", self.holding(lease))).await? {
            0 => Err(Cause::ConcurrentChange),
            _ => Ok(()),
        }
    }

    pub(super) async fn end_lease(&self, lease: &Lease) -> Result<(), Cause> {
        let own = format!("FROM {} FINAL WHERE id = {}", self.bars_table(LEASE_TABLE), lease.id);
        self.insert_lease(lease, "generation", Duration::ZERO, &own).await
    }

    /// Returns the text after `FROM` of a query. It selects one row until the lease expires or a later lease is taken, and
    /// then none.
    pub(super) fn holding(&self, lease: &Lease) -> String {
        let table = self.bars_table(LEASE_TABLE);
        format!(
            "{table} FINAL WHERE id = {} AND {IS_LIVE} AND generation = (SELECT max(generation) FROM {table})",
            lease.id
        )
    }

    /// Returns the time after which a lease expires without a renewal.
    fn lease_duration(&self) -> Duration {
        let config = &self.inner.config;
        RENEWAL + config.server_limits.bulk_timeout + config.bars_settle
    }

    /// Adds the next state of a lease. With a source, does nothing if the source selects no row.
    async fn insert_lease(
        &self,
        lease: &Lease,
        generation: &str,
        expires_after: Duration,
        source: &str,
    ) -> Result<(), Cause> {
        let sql = format!(
            "INSERT INTO {} SELECT {}, {generation}, now64(6, 'UTC') + toIntervalMicrosecond({}) {source}",
            self.bars_table(LEASE_TABLE),
            lease.id,
            expires_after.as_micros()
        );
        execute(&self.inner.connections.bulk_client, &sql).await
    }
}
