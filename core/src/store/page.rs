//! Pages: bounded results, each with the cursor of the next page.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Cursor;
use crate::record::{Dataset, Record, RecordVec};
use crate::{Error, Result};

/// The largest limit of a [`PageRequest`].
pub const MAX_PAGE: usize = 50_000;

/// The size of the values in a page of [`PageRequest::bulk`], in bytes.
const BULK_BYTES: usize = 16 << 20;

/// A request for a page: the largest number of items, and the cursor after which the page begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPageRequest")]
pub struct PageRequest {
    limit: usize,
    after: Option<Cursor>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPageRequest {
    limit: usize,
    after: Option<Cursor>,
}

impl Default for RawPageRequest {
    fn default() -> Self {
        let PageRequest { limit, after } = PageRequest::default();
        Self { limit, after }
    }
}

impl TryFrom<RawPageRequest> for PageRequest {
    type Error = Error;
    fn try_from(raw: RawPageRequest) -> Result<Self> {
        Ok(Self { after: raw.after, ..Self::first(raw.limit)? })
    }
}

impl Default for PageRequest {
    /// Returns a request for the first 1,000 items.
    fn default() -> Self {
        Self { limit: 1_000, after: None }
    }
}

impl PageRequest {
    /// Creates a request for the first `limit` items.
    ///
    /// # Errors
    /// `InvalidInput` unless `limit` lies in 1 to [`MAX_PAGE`].
    pub fn first(limit: usize) -> Result<Self> {
        if (1..=MAX_PAGE).contains(&limit) {
            Ok(Self { limit, after: None })
        } else {
            Err(Error::invalid("store.page.limit", "limit", limit, "must lie from 1 to 50000"))
        }
    }

    /// Creates a request for the first page of a bulk read: as many records of a dataset as have up to 16 MiB of values,
    /// at most [`MAX_PAGE`].
    ///
    /// A page costs one round trip, and in some stores a search for its end. Large pages are therefore several times as
    /// fast as small ones. A page of ClickHouse costs about 17 ms, and 0.2 ms for each 1,000 ticks.
    #[must_use]
    pub fn bulk(dataset: Dataset) -> Self {
        Self { limit: (BULK_BYTES / dataset.record_width()).clamp(1_000, MAX_PAGE), after: None }
    }

    /// Returns a request for the same number of items, after `cursor`.
    #[must_use]
    pub fn after(self, cursor: Cursor) -> Self {
        Self { after: Some(cursor), ..self }
    }

    /// Returns the largest number of items.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the cursor after which the page begins, if any.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.after.as_ref()
    }
}

/// A bounded part of a result.
///
/// The struct is open on purpose, because store adapters create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in the query's order.
    pub items: Vec<T>,
    /// The cursor of the next page; None on the last page.
    pub next: Option<Cursor>,
    /// The cursor for a later query of new items, in the query's order after the last item. It is present on every
    /// page. It does not pass a derived bar that the end of the range cuts, because such a bar may still change.
    pub resume: Cursor,
}

/// A page of records in the IPC stream format of Apache Arrow; see [`super::PriceStore::range_arrow`].
///
/// The struct is open on purpose, because store adapters create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrowPage {
    /// The IPC stream, or no bytes without records.
    pub ipc: Bytes,
    /// The cursor of the next page; None on the last page.
    pub next: Option<Cursor>,
}

/// A page of records without their Rust type.
///
/// The struct is open on purpose, because store adapters create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordPage {
    /// The records, in the query's order.
    pub records: RecordVec,
    /// The cursor of the next page, see [`Page::next`].
    pub next: Option<Cursor>,
    /// The cursor for later records, see [`Page::resume`].
    pub resume: Cursor,
}

impl RecordPage {
    /// Returns the page with its type.
    ///
    /// # Errors
    /// `InvalidInput` if the records are of another type.
    pub fn typed<R: Record>(self) -> Result<Page<R>> {
        let Self { records, next, resume } = self;
        Ok(Page { items: records.into_vec()?, next, resume })
    }
}
