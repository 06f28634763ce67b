//! The page loop of `latest`.

use crate::record::{Owner, RecordVec};
use crate::store::{Anchor, LatestRequest, Paged, RecordPage};
use crate::{Error, Selection, Timestamp};

/// The queries that an adapter provides for [`latest`].
pub trait LatestSource {
    /// The adapter's error.
    type Error: From<Error>;

    /// Returns at most `count` owners of the dataset after `after`, in order. Fewer than `count` owners
    /// mean that no more follow.
    fn owners(
        &mut self,
        after: Option<&Owner>,
        count: usize,
    ) -> impl Future<Output = Result<Vec<Owner>, Self::Error>> + Send;

    /// Appends the latest record of each owner up to `until`, in the order of the owners. Skips
    /// an owner without a record.
    fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Computes the result of a `latest` request: fetches owners and their latest records until the page is full.
///
/// Any number of the selected owners may have no record. Each round therefore fetches twice as many owners as the round
/// before. `max_owners` limits this growth, and the number of owners in one call of [`LatestSource::newest`].
///
/// # Errors
/// The adapter's error.
pub async fn latest<S: LatestSource + Send>(
    request: &LatestRequest,
    max_owners: usize,
    source: &mut S,
) -> Result<RecordPage, S::Error> {
    let limit = request.page.limit() + 1;
    let mut after = match request.anchor()? {
        Anchor::Owner(owner) => Some(owner),
        _ => None,
    };
    let mut found = request.dataset.new_vec();
    let mut width = 1;
    while found.len() < limit {
        let wanted = limit - found.len();
        let count = (wanted * width).min(max_owners).max(wanted);
        width = (width * 2).min(max_owners);
        let (mut owners, last) = match &request.selection {
            Selection::All => {
                let owners = source.owners(after.as_ref(), count).await?;
                let last = owners.len() < count;
                (owners, last)
            }
            Selection::Only(selected) => {
                let start =
                    after.as_ref().map_or(0, |after| selected.partition_point(|owner| owner <= after));
                let end = selected.len().min(start + count);
                (selected[start..end].to_vec(), end == selected.len())
            }
        };
        if let Some(until) = request.until() {
            for part in owners.chunks(max_owners) {
                source.newest(part, until, &mut found).await?;
            }
        }
        match owners.pop() {
            Some(owner) if !last => after = Some(owner),
            _ => break,
        }
    }
    Ok(request.page_of(found)?)
}
