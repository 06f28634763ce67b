//! The coverage ledger of a running agent, derived from the trades in the store.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures::TryStreamExt as _;
use qi_core::agent::AgentContext;
use qi_core::domain::MAX_COUNTER;
use qi_core::store::RangeQuery;
use qi_core::{Backoff, PriceStoreExt as _, PriceTick, Result, TimeRange, Timestamp};
use qi_files::coverage::{Coverage, CoverageRange, CoverageState, Ledger, Proof};
use tokio::time::Instant;

use super::feed::{Channel, DegradedCause, LiveFeed};
use super::protocol::Position;

/// The largest difference between the order of ids and the order of times.
const TIME_TOLERANCE: Duration = Duration::from_secs(1);
/// The number of new trades that one query examines. Bounds the memory of the comparison.
const MAX_TRADES: usize = 100_000;
/// The number of records in a page.
const PAGE: usize = 10_000;
/// The longest delay before lost trades are fetched again. The first one is the grace period of the ledger.
const MAX_REFETCH_DELAY: Duration = Duration::from_mins(10);

/// The comparison of the store with the ledger.
pub(super) struct Audit<'a> {
    feed: &'a LiveFeed,
    ledger: Ledger,
    /// The first id after which stored trades are not consecutive, and the time of its detection.
    hole: Option<(u64, Instant)>,
    /// The time since which published trades are missing between stored trades.
    lost_since: Option<Instant>,
    refetches: u32,
}

impl<'a> Audit<'a> {
    /// Reads the ledger, and records the trades that an earlier run stored after its last comparison.
    pub(super) async fn begin(feed: &'a LiveFeed, symbol: &str) -> Result<Self> {
        let ledger = Ledger::load(&*feed.store, &feed.instrument).await?;
        let mut audit = Self { feed, ledger, hole: None, lost_since: None, refetches: 0 };
        if audit.ledger.ranges().is_empty() {
            audit.begin_at_latest_trade(symbol).await?;
        }
        let ranges = audit.ledger.ranges();
        for range in ranges.iter().filter(|range| range.proven.is_none()) {
            audit.record_stored(range.start, range.end, range.ids.clone()).await?;
        }
        if let Some(last) = ranges.last() {
            audit.record_stored(last.end, Timestamp::MAX, last.ids.end() + 1..=MAX_COUNTER).await?;
        }
        Ok(audit)
    }

    /// Records the stored trades with these ids, with several queries if there are many.
    async fn record_stored(
        &mut self,
        mut from: Timestamp,
        to: Timestamp,
        mut ids: RangeInclusive<u64>,
    ) -> Result<()> {
        while !ids.is_empty() {
            let claims = self.stored(from, to, ids.clone()).await?;
            let Some(last) = claims.last() else { break };
            (from, ids) = (last.last_time, last.last_id + 1..=*ids.end());
            self.ledger.record(&*self.feed.store, claims).await?;
        }
        Ok(())
    }

    /// Begins an empty ledger at the latest stored trade, if the exchange has the same trade with this id. Trades of files
    /// without ids have other numbers.
    async fn begin_at_latest_trade(&mut self, symbol: &str) -> Result<()> {
        let Some(tick) = self.feed.store.latest_tick(&self.feed.instrument).await? else { return Ok(()) };
        let from = Position { id: tick.seq(), after: tick.ts() };
        let page = self.feed.rest.history(symbol, Some(from)).await?;
        let is_same = page.trades.iter().any(|trade| {
            let apart = trade.time.duration_since(tick.ts()).max(tick.ts().duration_since(trade.time));
            (trade.id, trade.price) == (tick.seq(), tick.price()) && apart <= TIME_TOLERANCE
        });
        if is_same {
            let claim = self.complete(tick.seq()..=tick.seq(), (tick.ts(), tick.ts()));
            self.ledger.record(&*self.feed.store, vec![claim]).await?;
        }
        Ok(())
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Compares until the agent must stop.
    ///
    /// # Errors
    /// An error of the store that is not retryable.
    pub(super) async fn run(mut self, cx: &AgentContext, channel: &Channel<'_>) -> Result<()> {
        while cx.sleep(self.feed.config.audit_interval).await.is_some() {
            let Some(outcome) = cx.until_cancelled(self.compare(channel)).await else { break };
            let reason = outcome.as_ref().err().map(|error| error.code().to_owned());
            channel.set_degraded(cx, DegradedCause::Ledger, reason);
            match outcome {
                Ok(()) => {}
                Err(error) if error.retry().is_retryable() => {
                    let instrument = &self.feed.instrument;
                    tracing::warn!(%instrument, error = %error.report(), "the coverage was not recorded");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn compare(&mut self, channel: &Channel<'_>) -> Result<()> {
        let instrument = &self.feed.instrument;
        let absent = channel.published().absent.clone();
        let claim = |(ids, after): &(RangeInclusive<u64>, Timestamp)| {
            let times = (*after, *after);
            Coverage::new(instrument.clone(), ids.clone(), times, CoverageState::Absent, Proof::History)
        };
        self.ledger.record(&*self.feed.store, absent.iter().map(claim).collect()).await?;
        let (ids, first) = {
            let mut published = channel.published();
            published.absent.drain(..absent.len());
            (published.ids().clone(), published.first())
        };
        let ranges = self.ledger.ranges();
        let mut claims = Vec::new();
        // Only gaps whose trades were published can have changed.
        for range in ranges.iter().filter(|range| range.proven.is_none() && ids.overlaps(&range.ids)) {
            claims.extend(self.stored(range.start, range.end, range.ids.clone()).await?);
        }
        let is_hole_filled = !claims.is_empty();
        let tail = ranges.last().map(|last| (last.ids.end() + 1, last.end)).or(first);
        if let Some((mut next, after)) = tail {
            for claim in self.stored(after, Timestamp::MAX, next..=MAX_COUNTER).await? {
                if claim.first_id > next && !self.is_hole_old(next) {
                    break;
                }
                next = claim.last_id + 1;
                claims.push(claim);
            }
        }
        self.ledger.record(&*self.feed.store, claims).await?;
        self.forget_lost(channel, is_hole_filled);
        Ok(())
    }

    /// Returns whether a hole in the stored trades was detected long ago. Most holes are filled soon, and waiting for them
    /// keeps the number of entries small.
    fn is_hole_old(&mut self, at: u64) -> bool {
        match self.hole {
            Some((known, since)) if known == at => since.elapsed() >= self.feed.config.grace,
            _ => {
                self.hole = Some((at, Instant::now()));
                self.feed.config.grace.is_zero()
            }
        }
    }

    /// Returns claims for the stored trades with these ids. The trades of a claim have consecutive ids.
    async fn stored(
        &self,
        from: Timestamp,
        to: Timestamp,
        wanted: RangeInclusive<u64>,
    ) -> Result<Vec<Coverage>> {
        let from = from.checked_sub(TIME_TOLERANCE).unwrap_or(Timestamp::MIN);
        let to = to.checked_add(TIME_TOLERANCE).unwrap_or(Timestamp::MAX);
        let query =
            RangeQuery::new(self.feed.instrument.clone(), TimeRange::new(from, to)?).with_limit(PAGE)?;
        let mut ticks = self.feed.store.range_stream::<PriceTick>(&query);
        let mut found: Vec<(u64, Timestamp)> = Vec::new();
        while let Some(tick) = ticks.try_next().await? {
            if wanted.contains(&tick.seq()) {
                found.push((tick.seq(), tick.ts()));
                if found.len() >= MAX_TRADES {
                    break;
                }
            }
        }
        found.sort_unstable();
        let runs = found.chunk_by(|(one, _), (other, _)| other - one <= 1);
        let claim = |run: &[(u64, Timestamp)]| {
            let times = run.iter().map(|(_, time)| *time);
            let times = (times.clone().min().unwrap_or(from), times.max().unwrap_or(to));
            self.complete(run[0].0..=run[run.len() - 1].0, times)
        };
        Ok(runs.map(claim).collect())
    }

    fn complete(&self, ids: RangeInclusive<u64>, times: (Timestamp, Timestamp)) -> Coverage {
        Coverage::new(self.feed.instrument.clone(), ids, times, CoverageState::Complete, Proof::Ids)
    }

    /// Lets trades be fetched again that were published and did not reach the store, although later trades did. The
    /// trades of an instrument are stored in the order of their publishing.
    fn forget_lost(&mut self, channel: &Channel<'_>, is_hole_filled: bool) {
        let ranges = self.ledger.ranges();
        let mut published = channel.published();
        let lost: Vec<&CoverageRange> = ranges
            .iter()
            .filter(|range| range.proven.is_none() && published.ids().overlaps(&range.ids))
            .collect();
        if lost.is_empty() || is_hole_filled {
            self.lost_since = None;
            self.refetches = if lost.is_empty() { 0 } else { self.refetches };
            return;
        }
        let newest = ranges.last().map_or(0, |last| *last.ids.end());
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        let grace = self.feed.config.grace;
        let delay = Backoff::new(grace, MAX_REFETCH_DELAY.max(grace)).delay(self.refetches + 1, 0.0);
        if newest <= published.filled_before || since.elapsed() < delay {
            return;
        }
        self.refetches += 1;
        self.lost_since = None;
        for range in lost {
            tracing::warn!(
                instrument = %self.feed.instrument, ids = ?range.ids,
                "published trades are not in the store and are fetched again"
            );
            published.forget(range.ids.clone(), range.start);
        }
    }
}
