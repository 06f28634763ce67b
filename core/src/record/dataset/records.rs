//! Records without their Rust type.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use super::Dataset;
use crate::record::{FieldReader, FieldWriter, Record, Series, SeriesKey, SeriesRef, SortKey};
use crate::{Error, ErrorKind, Result};

/// Records of one dataset without their Rust type. A store writes such records.
///
/// [`Slice`] converts typed records. [`RecordVec::as_records`] returns the records of a page, so they can
/// be written to another store.
pub trait Records: Debug + Send + Sync {
    /// Returns the dataset.
    fn dataset(&self) -> Dataset;

    /// Returns the number of records.
    fn len(&self) -> usize;

    /// Returns whether there are no records.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the series of the record at an index.
    fn series(&self, at: usize) -> SeriesRef<'_>;

    /// Returns the sort key of the record at an index.
    fn sort_key(&self, at: usize) -> SortKey;

    /// Writes the value columns of the record at an index.
    fn write(&self, at: usize, out: &mut dyn FieldWriter);

    /// Appends a record as JSON, in the format of messages.
    fn write_json(&self, at: usize, out: &mut Vec<u8>);

    /// Appends the sort keys of all records.
    fn sort_keys(&self, out: &mut Vec<SortKey>) {
        out.extend((0..self.len()).map(|at| self.sort_key(at)));
    }

    /// Returns the number of consecutive records at the beginning of an index range that belong to one series.
    ///
    /// # Panics
    /// If the range ends after the last record.
    fn run(&self, range: Range<usize>) -> usize {
        let Some(first) = range.clone().next().map(|at| self.series(at)) else { return 0 };
        range.take_while(|at| self.series(*at) == first).count()
    }

    /// Appends copies of the records in an index range to a vector of the same dataset.
    ///
    /// # Errors
    /// `InvalidInput` for a vector of another dataset.
    fn append_to(&self, range: Range<usize>, out: &mut RecordVec) -> Result<()> {
        let end = out.len();
        self.copy_to(&mut { range }, out, end..end)
    }

    /// Copies the records at these indices into a vector of the same dataset. The copies replace the vector's records
    /// in `into`.
    ///
    /// # Errors
    /// `InvalidInput` for a vector of another dataset.
    fn copy_to(
        &self,
        at: &mut dyn Iterator<Item = usize>,
        out: &mut RecordVec,
        into: Range<usize>,
    ) -> Result<()>;
}

/// A slice of typed records that implements [`Records`].
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a, R>(&'a [R]);

impl<'a, R: Record> Slice<'a, R> {
    /// Creates the slice if every record is valid, so a store receives no invalid record.
    ///
    /// # Errors
    /// `InvalidInput` with the field, the value and the index of the first invalid record.
    pub fn new(records: &'a [R]) -> Result<Self> {
        for (at, record) in records.iter().enumerate() {
            record.validate().map_err(|error| error.with_context("record", at))?;
        }
        Ok(Self(records))
    }
}

macro_rules! as_records {
    ($($impl:tt)*) => {
        $($impl)* {
            fn dataset(&self) -> Dataset {
                R::DATASET
            }
            fn len(&self) -> usize {
                self.0.len()
            }
            fn series(&self, at: usize) -> SeriesRef<'_> {
                self.0[at].series_ref()
            }
            fn sort_key(&self, at: usize) -> SortKey {
                self.0[at].sort_key()
            }
            fn write(&self, at: usize, out: &mut dyn FieldWriter) {
                self.0[at].write(out);
            }
            fn write_json(&self, at: usize, out: &mut Vec<u8>) {
                // Writing into memory does not fail, and every record has a JSON form.
                let _ = serde_json::to_writer(out, &self.0[at]);
            }
            fn sort_keys(&self, out: &mut Vec<SortKey>) {
                out.extend(self.0.iter().map(Record::sort_key));
            }
            fn copy_to(
                &self,
                at: &mut dyn Iterator<Item = usize>,
                out: &mut RecordVec,
                into: Range<usize>,
            ) -> Result<()> {
                replace(out.typed_mut::<R>()?, into, at.map(|at| self.0[at].clone()));
                Ok(())
            }
            fn run(&self, range: Range<usize>) -> usize {
                let records = &self.0[range];
                let Some(first) = records.first().map(Record::series_ref) else { return 0 };
                1 + records[1..].iter().take_while(|record| record.series_ref() == first).count()
            }
            fn append_to(&self, range: Range<usize>, out: &mut RecordVec) -> Result<()> {
                out.typed_mut::<R>()?.extend_from_slice(&self.0[range]);
                Ok(())
            }
        }
    };
}

as_records!(impl<R: Record> Records for Slice<'_, R>);

/// Replaces the items in a range with copies. Replacing or inserting one item moves no more items than necessary.
pub(super) fn replace<T>(out: &mut Vec<T>, into: Range<usize>, mut copies: impl Iterator<Item = T>) {
    let mut at = into.start;
    while at < into.end {
        let Some(copy) = copies.next() else {
            out.drain(at..into.end);
            return;
        };
        out[at] = copy;
        at += 1;
    }
    if at == out.len() {
        out.extend(copies);
    } else if let Some(copy) = copies.next() {
        out.insert(at, copy);
        if let Some(second) = copies.next() {
            let behind = at + 1;
            out.splice(behind..behind, std::iter::once(second).chain(copies));
        }
    }
}

/// A vector of records of one dataset without their Rust type. Reads of a store return it.
#[derive(Debug)]
pub struct RecordVec(Box<dyn ErasedVec>);

/// The methods of a vector besides [`Records`].
pub(super) trait ErasedVec: Records + Any {
    fn check_series(&self, series: &SeriesKey) -> Result<()>;
    fn push(&mut self, series: &SeriesKey, sort_key: SortKey, fields: &mut dyn FieldReader) -> Result<()>;
    fn push_json(&mut self, json: &[u8]) -> serde_json::Result<()>;
    fn reserve(&mut self, additional: usize);
    fn remove(&mut self, range: Range<usize>);
    fn split_off(&mut self, at: usize) -> Box<dyn ErasedVec>;
    fn same(&self, other: &dyn ErasedVec) -> bool;
}

/// A vector of typed records.
#[derive(Debug)]
struct Typed<R>(Vec<R>);

as_records!(impl<R: Record> Records for Typed<R>);

impl<R: Record> ErasedVec for Typed<R> {
    fn check_series(&self, series: &SeriesKey) -> Result<()> {
        R::Series::from_key(series).map(drop)
    }
    fn push(&mut self, series: &SeriesKey, sort_key: SortKey, fields: &mut dyn FieldReader) -> Result<()> {
        self.0.push(R::read(R::Series::from_key(series)?, sort_key, fields)?);
        Ok(())
    }
    fn push_json(&mut self, json: &[u8]) -> serde_json::Result<()> {
        self.0.push(serde_json::from_slice(json)?);
        Ok(())
    }
    fn reserve(&mut self, additional: usize) {
        self.0.reserve(additional);
    }
    fn remove(&mut self, range: Range<usize>) {
        self.0.drain(range);
    }
    fn split_off(&mut self, at: usize) -> Box<dyn ErasedVec> {
        Box::new(Self(self.0.split_off(at)))
    }
    fn same(&self, other: &dyn ErasedVec) -> bool {
        (other as &dyn Any).downcast_ref::<Self>().is_some_and(|other| self.0 == other.0)
    }
}

impl RecordVec {
    /// Creates an empty vector of typed records. `#[derive(Record)]` uses it for [`Dataset::new_vec`].
    #[doc(hidden)]
    pub fn of<R: Record>(_: Dataset) -> Self {
        Self(Box::new(Typed::<R>(Vec::new())))
    }

    pub(super) fn new(records: Box<dyn ErasedVec>) -> Self {
        Self(records)
    }

    pub(super) fn check_series(&self, series: &SeriesKey) -> Result<()> {
        self.0.check_series(series)
    }

    pub(super) fn erased_mut<T: 'static>(&mut self, dataset: Dataset) -> Result<&mut T> {
        let found = self.0.dataset();
        (&mut *self.0 as &mut dyn Any).downcast_mut().ok_or_else(|| other_dataset(found, dataset))
    }

    fn typed_mut<R: Record>(&mut self) -> Result<&mut Vec<R>> {
        Ok(&mut self.erased_mut::<Typed<R>>(R::DATASET)?.0)
    }

    /// Returns the records as a typed slice.
    ///
    /// # Errors
    /// `InvalidInput` if the records have another type.
    pub fn as_slice<R: Record>(&self) -> Result<&[R]> {
        let typed = (&*self.0 as &dyn Any).downcast_ref::<Typed<R>>();
        typed.map(|typed| &*typed.0).ok_or_else(|| other_dataset(self.0.dataset(), R::DATASET))
    }

    /// Returns the records as a typed vector.
    ///
    /// # Errors
    /// `InvalidInput` if the records have another type.
    pub fn into_vec<R: Record>(self) -> Result<Vec<R>> {
        let found = self.0.dataset();
        match (self.0 as Box<dyn Any>).downcast::<Typed<R>>() {
            Ok(typed) => Ok(typed.0),
            Err(_) => Err(other_dataset(found, R::DATASET)),
        }
    }

    /// Creates a vector of typed records.
    pub fn from_vec<R: Record>(records: Vec<R>) -> Self {
        Self(Box::new(Typed(records)))
    }

    /// Returns the records in the form that stores write.
    pub fn as_records(&self) -> &dyn Records {
        &*self.0
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// Reads a record and appends it.
    ///
    /// # Errors
    /// The reader's error; `InvalidInput` for values that form no valid record, or for a series of another type.
    pub fn push(
        &mut self,
        series: &SeriesKey,
        sort_key: SortKey,
        fields: &mut dyn FieldReader,
    ) -> Result<()> {
        self.0.push(series, sort_key, fields)
    }

    /// Parses a record from JSON, validates it and appends it.
    ///
    /// # Errors
    /// `CorruptData` with the line and the column of the error.
    pub fn push_json(&mut self, json: &[u8]) -> Result<()> {
        self.0.push_json(json).map_err(|error| json_error(&error))
    }

    /// Reserves capacity for `additional` records.
    pub fn reserve(&mut self, additional: usize) {
        self.0.reserve(additional);
    }

    /// Removes the records in an index range.
    ///
    /// # Panics
    /// If the range ends after the last record.
    pub fn remove(&mut self, range: Range<usize>) {
        self.0.remove(range);
    }

    /// Removes all records from index `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.0.remove(len..self.len());
        }
    }

    /// Moves the records from index `at` on into a new vector.
    ///
    /// # Panics
    /// If the index is after the last record.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self(self.0.split_off(at))
    }

    /// Appends a copy of a record of the same dataset.
    ///
    /// # Errors
    /// `InvalidInput` for records of another dataset.
    pub fn push_copy(&mut self, records: &dyn Records, at: usize) -> Result<()> {
        let end = self.len();
        records.copy_to(&mut std::iter::once(at), self, end..end)
    }
}

impl PartialEq for RecordVec {
    fn eq(&self, other: &Self) -> bool {
        self.0.same(&*other.0)
    }
}

impl Clone for RecordVec {
    fn clone(&self) -> Self {
        let mut copy = self.0.dataset().new_vec();
        copy.reserve(self.len());
        // A dataset's vector accepts records of the same dataset, so the copy succeeds.
        let _ = self.as_records().copy_to(&mut (0..self.len()), &mut copy, 0..0);
        copy
    }
}

fn other_dataset(found: Dataset, wanted: Dataset) -> Error {
    Error::new(ErrorKind::InvalidInput, "record.dataset.other", "records")
        .with_message(format_args!("the records must be of the dataset {wanted}"))
        .with_context("field", "dataset")
        .with_context("value", found)
}

/// Returns the error for JSON that is not a valid record.
fn json_error(error: &serde_json::Error) -> Error {
    // The text may contain a value of the input. A message is truncated, but a source would keep the value in memory.
    Error::new(ErrorKind::CorruptData, "bus.codec.json", "decode")
        .with_message(error)
        .with_context("line", error.line())
        .with_context("column", error.column())
}
