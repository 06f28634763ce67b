//! The filling of gaps from the history of an exchange.

use std::ops::RangeInclusive;

use qi_core::agent::AgentContext;
use qi_core::{Result, Timestamp};
use tokio::time::Instant;

use super::feed::{Channel, DegradedCause, LiveFeed};
use super::protocol::{HistoryPage, Position};
use super::published::Gap;

/// The number of pages that are read for one gap before the next search for gaps.
const PAGES: usize = 10;

impl LiveFeed {
    /// Fills gaps until the agent must stop, the newest first. Also asks for the latest trade at the start and when the
    /// stream is quiet, so that a gap before a rare trade is found.
    ///
    /// # Errors
    /// A permanent rejection of the symbol.
    pub(super) async fn fill_gaps(&self, cx: &AgentContext, channel: &Channel<'_>) -> Result<()> {
        let mut backoff = self.config.backoff;
        (backoff.min, backoff.max) =
            (self.config.repair_interval, backoff.max.max(self.config.repair_interval));
        let (mut failures, mut asked) = (0, None::<Instant>);
        loop {
            let outcome = cx.until_cancelled(async {
                let heard = channel.published().heard;
                let quiet = |since: Instant| since.elapsed() >= self.config.quiet_after;
                if asked.is_none_or(|asked| quiet(asked) && quiet(heard)) {
                    let page = self.rest.history(channel.symbol, None).await?;
                    asked = Some(Instant::now());
                    self.publish(channel, page.trades).await?;
                    channel.published().begin();
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
            if cx.sleep(pause).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Fills the present gaps. Returns false if the history does not have all of them yet.
    async fn fill_once(&self, channel: &Channel<'_>) -> Result<bool> {
        let gaps = channel.published().gaps(self.config.max_backfill);
        let mut is_done = true;
        for gap in gaps.iter().rev() {
            tracing::info!(instrument = %self.instrument, ids = ?gap.ids, "fills a gap");
            is_done &= self.fill(channel, gap).await?;
        }
        let mut published = channel.published();
        if let Some(since) = published.gap_since
            && published.gaps(self.config.max_backfill).is_empty()
        {
            self.live.fill_took(since.elapsed());
            published.filled_before = published.last();
        }
        Ok(is_done)
    }

    /// Fills a gap, or the first pages of a long one. Returns false if the history ends before the gap does.
    async fn fill(&self, channel: &Channel<'_>, gap: &Gap) -> Result<bool> {
        let mut at = Position { id: *gap.ids.start(), after: gap.after };
        for _ in 0..PAGES {
            let page = self.rest.history(channel.symbol, Some(at)).await?;
            let Some(covers) = page.covers.clone().filter(|covers| *covers.end() >= at.id) else {
                return Ok(false);
            };
            let Some(last) = page.trades.last().map(|trade| trade.time) else { return Ok(false) };
            let proven = at.id.max(*covers.start())..=(*covers.end()).min(*gap.ids.end());
            let absent = absent(&page, &proven, at.after);
            let trades = page.trades.into_iter().filter(|trade| proven.contains(&trade.id));
            let filled = self.publish(channel, trades).await?;
            let mut missing = 0;
            for (ids, after) in absent {
                missing += (ids.end() - ids.start()).saturating_add(1);
                tracing::info!(instrument = %self.instrument, ?ids, "the exchange does not have these ids");
                channel.published().insert_absent(ids, after);
            }
            self.live.add_filled(filled, missing);
            if *covers.end() >= *gap.ids.end() {
                return Ok(true);
            }
            at = Position { id: covers.end() + 1, after: last };
        }
        Ok(true)
    }
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
        next = next.max(trade.id + 1);
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
