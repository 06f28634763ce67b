//! The filling of gaps from the history of an exchange.

use std::ops::RangeInclusive;

use qi_core::agent::AgentContext;
use qi_core::{Result, Timestamp};
use tokio::time::Instant;

use super::feed::{Channel, DegradedCause, LiveFeed};
use super::protocol::{HistoryPage, Position, Trade};
use super::published::Gap;

/// The number of pages that are read for one gap before the next search for gaps.
const PAGES: usize = 10;

impl LiveFeed {
    /// Fills gaps until the agent must stop, the newest first. Also requests the latest trade at the start, after each
    /// reconnect and when the stream is quiet, so that a gap before a rare trade is found.
    ///
    /// # Errors
    /// A permanent rejection of the symbol.
    pub(super) async fn fill_gaps(&self, cx: &AgentContext, channel: &Channel<'_>) -> Result<()> {
        let mut backoff = self.config.backoff;
        (backoff.min, backoff.max) =
            (self.config.repair_interval, backoff.max.max(self.config.repair_interval));
        let (mut failures, mut asked) = (0, Instant::now());
        loop {
            let outcome = cx.until_cancelled(async {
                let heard = channel.published().heard;
                let is_wanted = std::mem::take(&mut channel.published().is_latest_wanted);
                if is_wanted || asked.max(heard).elapsed() >= self.config.quiet_after {
                    let latest = self.publish_latest(channel, !is_wanted).await;
                    channel.published().is_latest_wanted |= is_wanted && latest.is_err();
                    latest?;
                    asked = Instant::now();
                }
                self.fill_once(channel).await
            });
            let Some(outcome) = outcome.await else { return Ok(()) };
            let reason = outcome.as_ref().err().map(|error| error.code().to_owned());
            channel.set_degraded(cx, DegradedCause::History, reason);
            match outcome {
                Ok(true) => failures = 0,
                Ok(false) => failures += 1,
                Err(error) if error.retry().is_retryable() => {
                    failures += 1;
                    let instrument = &self.instrument;
                    tracing::warn!(%instrument, error = %error.report(), "the history is not available");
                }
                Err(error) => return Err(error),
            }
            let pause = backoff.delay(failures.max(1), if failures > 0 { fastrand::f64() } else { 0.0 });
            let pause = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = channel.reconnected.notified() => failures = 0,
                }
            };
            if cx.until_cancelled(pause).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Publishes the latest trades of the history, and the streamed trades whose ids they confirm.
    async fn publish_latest(&self, channel: &Channel<'_>, is_stream_quiet: bool) -> Result<()> {
        let mut trades = self.rest.history(channel.symbol, None).await?.trades;
        {
            let mut published = channel.published();
            let latest = trades.last().map_or(0, |trade| trade.id);
            published.is_stream_behind |= is_stream_quiet && latest > published.last();
            let (confirmed, discarded) = published.confirm(latest);
            trades.extend(confirmed);
            for _ in 0..discarded {
                self.live.bad_frame();
            }
        }
        // The first trade is the start of the ledger.
        trades.sort_by_key(|trade| trade.id);
        self.publish(channel, trades).await?;
        channel.published().begin();
        Ok(())
    }

    /// Fills the present gaps. Returns false if the history does not have all of them yet.
    async fn fill_once(&self, channel: &Channel<'_>) -> Result<bool> {
        // The latest trades of the history may have filled the gap already.
        let since = channel.published().gap_since;
        let gaps = channel.published().gaps(self.config.max_backfill);
        let mut is_done = true;
        for gap in gaps.iter().rev() {
            tracing::info!(instrument = %self.instrument, ids = ?gap.ids, "fills a gap");
            is_done &= self.fill(channel, gap).await?;
            if channel.published().is_latest_wanted {
                return Ok(is_done);
            }
        }
        let mut published = channel.published();
        if let Some(since) = published.gap_since.or(since)
            && !published.is_latest_wanted
            && published.gaps(self.config.max_backfill).is_empty()
        {
            self.live.fill_took(since.elapsed());
            published.filled_before = published.last();
        }
        Ok(is_done)
    }

    /// Fills a gap, or the first pages of a long one. Ends early if the latest trade is wanted. Returns false without
    /// progress: the history does not answer for all ids yet, and has no new trade.
    async fn fill(&self, channel: &Channel<'_>, gap: &Gap) -> Result<bool> {
        let mut at = Position { id: *gap.ids.start(), after: gap.after };
        let is_known = |last| channel.published().ids().gaps(&(*gap.ids.start()..=last)).next().is_none();
        let mut has_progress = false;
        for _ in 0..PAGES {
            let page = self.rest.history(channel.symbol, Some(at)).await?;
            let Some(Answer { mut trades, absent, next }) = answer(page, at, *gap.ids.end()) else {
                return Ok(has_progress);
            };
            trades.retain(|trade| !channel.published().ids().contains(&trade.id));
            let filled = self.publish(channel, trades).await?;
            let mut missing = 0;
            for (ids, after) in absent {
                tracing::info!(instrument = %self.instrument, ?ids, "the history does not have these ids");
                missing += channel.published().insert_absent(&ids, after, self.config.absent_after);
            }
            self.live.add_filled(filled, missing);
            has_progress |= filled > 0;
            let Some(next) = next else { return Ok(has_progress || is_known(*gap.ids.end())) };
            at = next;
            if channel.published().is_latest_wanted {
                break;
            }
        }
        Ok(has_progress || is_known(at.id - 1))
    }
}

/// The part of a page of the history that answers for a gap.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) trades: Vec<Trade>,
    /// Ids that the page does not have, each range with the time of the trade before.
    pub(super) absent: Vec<(RangeInclusive<u64>, Timestamp)>,
    /// The position of the next page, if the page ends before the gap does.
    pub(super) next: Option<Position>,
}

/// Returns the answer of a page that was requested at a position, for the ids up to `last`. None if the page ends before
/// the position.
pub(super) fn answer(page: HistoryPage, at: Position, last: u64) -> Option<Answer> {
    let covers = page.covers.clone().filter(|covers| *covers.end() >= at.id)?;
    let after = page.trades.last()?.time;
    let proven = at.id.max(*covers.start())..=(*covers.end()).min(last);
    let absent = absent(&page, &proven, at.after);
    let next = covers.end().checked_add(1).filter(|next| *next <= last).map(|id| Position { id, after });
    let trades = page.trades.into_iter().filter(|trade| proven.contains(&trade.id)).collect();
    Some(Answer { trades, absent, next })
}

/// Returns the ids that a page proves to be absent, each range with the time of the trade before.
fn absent(
    page: &HistoryPage,
    proven: &RangeInclusive<u64>,
    mut after: Timestamp,
) -> Vec<(RangeInclusive<u64>, Timestamp)> {
    let (mut found, mut next) = (Vec::new(), *proven.start());
    for trade in &page.trades {
        if trade.id > next && next <= *proven.end() {
            found.push((next..=(trade.id - 1).min(*proven.end()), after));
        }
        next = next.max(trade.id.saturating_add(1));
        after = trade.time;
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use qi_core::Side;

    use super::*;
    use crate::exchanges::Trade;

    fn at(id: u64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + i64::try_from(id).unwrap()).unwrap()
    }

    #[test]
    fn a_page_proves_the_ids_between_its_trades_absent() {
        let trade = |id| {
            let (price, quantity) = ("1".parse().unwrap(), "1".parse().unwrap());
            Trade { id, time: at(id), price, quantity, side: Side::Buy }
        };
        let page = |ids: &[u64]| {
            let trades: Vec<_> = ids.iter().copied().map(trade).collect();
            HistoryPage { covers: Some(ids[0]..=ids[ids.len() - 1]), trades }
        };
        let found = |ids, proven| absent(&page(ids), &proven, at(9));
        assert_eq!(found(&[10, 11, 12], 10..=12), []);
        assert_eq!(found(&[10, 13, 15], 10..=15), [(11..=12, at(10)), (14..=14, at(13))]);
        assert_eq!(found(&[13], 10..=13), [(10..=12, at(9))]);
        // A page of Kraken begins before the gap and ends after it.
        assert_eq!(found(&[9, 20], 10..=12), [(10..=12, at(9))]);
        assert_eq!(found(&[5, 9, 10, 12, 20], 10..=15), [(11..=11, at(10)), (13..=15, at(12))]);
    }
}
