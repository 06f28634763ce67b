//! Batches of a source's records, for numbering and writing.

use qi_core::{Error, Record, Result};

use crate::source::{FileStart, Input, Source};

/// The number of records and bad lines at which a batch is full.
const BATCH: usize = 10_000;
/// The maximum number of lines that are read for a batch.
const MAX_BATCH: usize = 65_536;

/// Records of one file, and the input read after them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Batch<T> {
    /// The records.
    pub records: Vec<T>,
    /// The record after the batch, which was read to detect that a timestamp is complete.
    pub ahead: Option<T>,
    /// The start of the next file, which was read after the last record.
    following: Option<FileStart>,
    /// The file whose first record is the first record of the batch.
    pub begins: Option<FileStart>,
    /// True if the sequence numbers are ordinals within a timestamp of the file. [`crate::Numbering`] must replace them
    /// before the trades are written.
    pub has_ordinals: bool,
    /// True if the source has ended.
    pub ended: bool,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        let records = Vec::new();
        Self { records, ahead: None, following: None, begins: None, has_ordinals: false, ended: false }
    }
}

impl<T: Record> Batch<T> {
    fn begin(&mut self, file: FileStart) {
        self.has_ordinals = !file.has_ids;
        self.begins = Some(file);
    }

    /// Reads the batch after this one: up to 10,000 records and bad lines of one file. A batch of a file without ids
    /// extends to the end of its last timestamp, but not beyond 65,536 lines.
    ///
    /// # Errors
    /// Errors of `on_bad_line`, and errors of a source that cannot be read further.
    pub fn read_next(
        mut self,
        source: &mut Source<T>,
        mut on_bad_line: impl FnMut(Error) -> Result<()>,
    ) -> Result<Self> {
        self.records.clear();
        self.begins = None;
        self.records.extend(self.ahead.take());
        if let Some(file) = self.following.take() {
            self.begin(file);
        }
        for read in 0..MAX_BATCH {
            let full = self.records.len().max(read) >= BATCH;
            if full && (!self.has_ordinals || self.records.is_empty()) {
                break;
            }
            match source.next() {
                Some(Ok(record)) => {
                    if full && self.records.last().is_some_and(|last| last.time() != record.time()) {
                        self.ahead = Some(record);
                        break;
                    }
                    self.records.push(record);
                }
                // Bad lines before the start of a file belong to the file before it.
                Some(Err(Input::File(file)))
                    if read == 0 && self.records.is_empty() && self.begins.is_none() =>
                {
                    self.begin(file);
                }
                Some(Err(Input::File(file))) => {
                    self.following = Some(file);
                    break;
                }
                Some(Err(Input::BadLine(error))) => on_bad_line(error)?,
                Some(Err(Input::Fatal(error))) => return Err(error),
                None => {
                    self.ended = true;
                    break;
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use qi_core::{PriceTick, Timestamp};

    use super::*;
    use crate::source::TradeIds;

    #[test]
    fn bad_lines_after_a_full_batch_belong_to_their_file() {
        let start = |name: &str| {
            let (name, has_ids, is_verified) = (name.to_owned(), true, false);
            Err(Input::File(FileStart { name, has_ids, trade_ids: TradeIds::Sparse, is_verified }))
        };
        let trade = |seq| {
            let instrument = "x:Y".parse().unwrap();
            let (time, price) = (Timestamp::from_secs(1_700_000_000).unwrap(), "5".parse().unwrap());
            Ok(PriceTick::new(instrument, time, seq, price).unwrap())
        };
        let bad = || Err(Input::BadLine(Error::invalid("files.line", "line", "x", "must be a number")));
        // The start of a file is one of the reads of the first batch.
        let full = BATCH as u64 - 1;
        let mut source: Source<PriceTick> = Box::new(
            [start("one")]
                .into_iter()
                .chain((0..full).map(trade).collect::<Vec<_>>())
                .chain([bad(), bad(), start("two"), trade(0), bad()])
                .collect::<Vec<_>>()
                .into_iter(),
        );
        let (mut batch, mut found, mut name) = (Batch::default(), Vec::new(), String::new());
        while !batch.ended {
            let mut count = 0;
            batch = batch
                .read_next(&mut source, |_| {
                    count += 1;
                    Ok(())
                })
                .unwrap();
            if let Some(file) = &batch.begins {
                name.clone_from(&file.name);
            }
            found.push((name.clone(), batch.records.len(), count));
        }
        let wanted = [("one", BATCH - 1, 0), ("one", 0, 2), ("two", 1, 1)];
        assert_eq!(found, wanted.map(|(name, records, bad)| (name.to_owned(), records, bad)));
    }
}
