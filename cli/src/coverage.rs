//! `qi coverage`: the ranges of trade ids that the store has, that the exchange does not have, and that are unknown.

use qi_core::{Instrument, PriceStore, PriceStoreExt as _, Result};
use qi_files::coverage::{Coverage, Ledger};

use crate::output::{Listing, maybe, text};

/// The coverage of instruments.
#[derive(Debug)]
pub struct CoverageReport {
    /// A row for each range, ascending by instrument and id.
    pub listing: Listing,
    /// The number of unknown ids of each instrument that has coverage.
    pub unknown: Vec<(Instrument, u64)>,
}

impl CoverageReport {
    /// Returns a line for each instrument with more than `max` unknown ids, and for each named instrument without
    /// coverage.
    pub fn above(&self, named: &[Instrument], max: u64) -> Vec<String> {
        let above = self.unknown.iter().filter(|(_, count)| *count > max);
        let above = above.map(|(instrument, count)| format!("{instrument} has {count} unknown ids"));
        let has_coverage =
            |name: &&Instrument| self.unknown.iter().any(|(instrument, _)| instrument == *name);
        let without = named.iter().filter(|name| !has_coverage(name));
        above.chain(without.map(|name| format!("{name} has no coverage"))).collect()
    }
}

/// Reads the ledger of these instruments, or of all instruments if none are named. With `unknown_only`, the listing has
/// only unknown ranges.
///
/// # Errors
/// Errors of the store.
pub async fn read(
    store: &dyn PriceStore,
    instruments: Vec<Instrument>,
    unknown_only: bool,
) -> Result<CoverageReport> {
    let mut listing =
        Listing::new(["instrument", "state", "first id", "last id", "ids", "from", "until", "proof"]);
    let mut unknown = Vec::new();
    let instruments = if instruments.is_empty() {
        let series = store.all_series(Coverage::DATASET).await?;
        series.iter().filter_map(|key| key.owner.instrument().cloned()).collect()
    } else {
        instruments
    };
    for instrument in instruments {
        let mut count = 0_u64;
        let ranges = Ledger::load(store, &instrument).await?.ranges();
        let has_coverage = !ranges.is_empty();
        for range in ranges {
            if range.proven.is_none() {
                count = count.saturating_add(range.len());
            } else if unknown_only {
                continue;
            }
            listing.push([
                text(&instrument),
                range.proven.map_or_else(|| text("unknown"), |(state, _)| text(state)),
                (*range.ids.start()).into(),
                (*range.ids.end()).into(),
                range.len().into(),
                text(range.start),
                text(range.end),
                maybe(range.proven.map(|(_, proof)| proof)),
            ]);
        }
        if has_coverage {
            unknown.push((instrument, count));
        }
    }
    Ok(CoverageReport { listing, unknown })
}
