//! Parquet files of records.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FooterTail, KeyValue, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::ChunkReader;
use parquet::schema::types::ColumnPath;
use qi_core::record::{Dataset, RecordVec, Records};
use qi_core::{Error, ErrorKind, Result};

use crate::decode::check_metadata;
use crate::error::corrupt;
use crate::schema::Decimals;
use crate::{Content, ContentDigest, Encoder, decode};

/// The program that writes a file.
pub(crate) const CREATED_BY: &str = concat!("qi-arrow ", env!("CARGO_PKG_VERSION"));
/// The key of the [`Content`] in the metadata of a file.
const CONTENT_KEY: &str = "qi.content";
/// The largest number of rows in a row group, which is the unit of compression and of the memory of a writer.
const ROW_GROUP_ROWS: usize = 131_072;
/// The size of the encoded rows after which a row group ends, in bytes.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// The largest number of rows that are converted at a time.
const BATCH_ROWS: usize = 8_192;
/// The largest size of a batch in bytes, if all its records are as large as the dataset allows.
const BATCH_BYTES: usize = 16 << 20;
/// The largest number of nested groups of a schema. A list of levels has three: the schema, the list and its level.
const MAX_GROUPS: usize = 8;
/// The largest number of elements of a schema. A dataset has at most 105 columns, and a list of levels has 5 elements.
const MAX_ELEMENTS: u64 = 1_000;
/// The largest size of the metadata in bytes. A row group has about 100 bytes for each column.
const MAX_METADATA: usize = 16 << 20;
/// The bytes after the metadata of a file: its length and the magic number.
const TAIL: usize = 8;

/// Writes records of one dataset as a Parquet file.
///
/// Columns are compressed with Zstandard. The metadata of the file has the dataset, its version and the [`Content`].
/// The memory is bounded by one row group: 131,072 rows, or about 64 MiB of encoded rows.
///
/// ```
/// use qi_arrow::{Decimals, ParquetReader, ParquetWriter};
/// use qi_core::record::{Record as _, Slice};
/// use qi_core::{PriceTick, Timestamp};
///
/// let ts = Timestamp::from_secs(1_700_000_000)?;
/// let ticks = [PriceTick::new("kraken:XBT/EUR".parse()?, ts, 0, "34000.1".parse()?)?];
/// let mut writer = ParquetWriter::new(PriceTick::DATASET, Decimals::Exact, tempfile::tempfile()?)?;
/// writer.write(&Slice::new(&ticks)?)?;
/// let (file, content) = writer.finish()?;
/// assert_eq!(content.records, 1);
///
/// for records in ParquetReader::new(PriceTick::DATASET, file)? {
///     assert_eq!(records?.as_slice::<PriceTick>()?, ticks);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ParquetWriter<W: Write + Send> {
    encoder: Encoder,
    digest: ContentDigest,
    writer: ArrowWriter<W>,
    batch_rows: usize,
}

/// The error of a writer: the data is valid, so the target failed.
fn write_failed(error: ParquetError) -> Error {
    Error::new(ErrorKind::Unavailable, "parquet.write", "parquet")
        .with_message("the Parquet file cannot be written")
        .with_source(error)
}

/// The error of a reader: of the source, of a codec that is not compiled in, or of the file.
fn read_failed(error: ParquetError) -> Error {
    let is_io = |error: &(dyn std::error::Error + 'static)| error.is::<std::io::Error>();
    let kind = match &error {
        ParquetError::External(source) if is_io(&**source) => ErrorKind::Unavailable,
        ParquetError::NYI(_) => ErrorKind::Unsupported,
        // The crate has no variant for a compression that is not compiled in.
        error if error.to_string().contains("Disabled feature at compile time") => ErrorKind::Unsupported,
        _ => ErrorKind::CorruptData,
    };
    Error::new(kind, "parquet.read", "parquet")
        .with_message("the Parquet file cannot be read")
        .with_source(error)
}

/// Calls the reader of the Parquet crate, which panics for some damaged files.
pub(crate) fn catch<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    // After a panic, the reader is not used again.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::CorruptData, "parquet.read", "parquet")
            .with_message("the Parquet file is damaged: its reader panicked"))
    })
}

/// Decodes the metadata of a file, or of the last bytes of a file.
///
/// The Parquet crate decodes the schema with a recursion for each nested group, and reserves memory for the stated
/// numbers of elements and children. A stack overflow ends the process, and so can a reservation. Both are checked
/// before. The metadata can have a schema again: with the schema that is passed to it, the crate skips all of them.
///
/// # Errors
/// `NeedMoreData` with the number of bytes at the end of the file that have the metadata.
pub(crate) fn metadata(file: &impl ChunkReader) -> std::result::Result<ParquetMetaData, ParquetError> {
    let size = file.len();
    let tail = size
        .checked_sub(TAIL as u64)
        .ok_or_else(|| ParquetError::EOF("the file has no footer".to_owned()))?;
    let tail = FooterTail::try_from(&*file.get_bytes(tail, TAIL)?)?;
    let length = tail.metadata_length();
    if tail.is_encrypted_footer() || length > MAX_METADATA {
        return Err(ParquetError::General("the metadata is encrypted, or larger than 16 MiB".to_owned()));
    }
    let wanted = length + TAIL;
    let start = size.checked_sub(wanted as u64).ok_or(ParquetError::NeedMoreData(wanted))?;
    let footer = file.get_bytes(start, length)?;
    if check_schema(&footer).is_none() {
        let message = format!(
            "the schema must come first, be complete, have at most {MAX_ELEMENTS} elements and nest at most \
             {MAX_GROUPS} groups"
        );
        return Err(ParquetError::General(message));
    }
    let options = ParquetMetaDataOptions::new().with_schema(ParquetMetaDataReader::decode_schema(&footer)?);
    ParquetMetaDataReader::decode_metadata_with_options(&footer, Some(&options))
}

/// Returns None if the schema is not the second field of the metadata, after the version, or nests too many groups.
fn check_schema(footer: &[u8]) -> Option<()> {
    const VERSION: u8 = 0x15;
    const SCHEMA: u8 = 0x19;
    const STRUCT: u8 = 0xc;
    const LONG_LIST: u8 = 0xf;
    let mut bytes = Compact(footer);
    if bytes.byte()? != VERSION {
        return None;
    }
    bytes.number()?;
    if bytes.byte()? != SCHEMA {
        return None;
    }
    let header = bytes.byte()?;
    let count = if header >> 4 == LONG_LIST { bytes.number()? } else { u64::from(header >> 4) };
    if header & 0xf != STRUCT || count > MAX_ELEMENTS {
        return None;
    }
    // The numbers of elements that the open groups still need. The first one is the list of the root.
    let mut open = vec![1_u64];
    for _ in 0..count {
        while open.last() == Some(&0) {
            open.pop();
        }
        *open.last_mut()? -= 1;
        let children = bytes.children(&[])?;
        if children > 0 {
            open.push(children);
        }
        if children > count || open.len() > MAX_GROUPS + 1 {
            return None;
        }
    }
    open.iter().all(|missing| *missing == 0).then_some(())
}

/// Reads the compact protocol of Thrift, in which the metadata of Parquet files is written.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Reads an element of a schema, or a structure in the fields `parents` of it. Returns the number of its children.
    ///
    /// The Parquet crate reads known fields by their number, whatever their type. A field of another type would be read
    /// differently here, so it is rejected.
    fn children(&mut self, parents: &[u64]) -> Option<u64> {
        const NUM_CHILDREN: u64 = 5;
        const BYTE: u8 = 3;
        const NUMBER: u8 = 5;
        const BINARY: u8 = 8;
        const STRUCT: u8 = 12;
        let (mut id, mut children) = (0, 0);
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(children);
            }
            // After zero comes the number of the field. The schemas of datasets have no field that needs it.
            let delta = u64::from(header >> 4);
            if delta == 0 || id > 100 {
                return None;
            }
            id += delta;
            let found = header & 0xf;
            let is_expected = match (parents, id) {
                ([], 4) => found == BINARY,
                ([], 1..=9) | ([10, 5], 1 | 2) => found == NUMBER,
                // A logical type. 5 is a decimal, 7 a time, 8 a timestamp, 10 an integer.
                ([], 10) | ([10] | [10, 7 | 8, 2], _) | ([10, 7 | 8], 2) => found == STRUCT,
                ([10, 7 | 8], 1) | ([10, 10], 2) => found <= 2,
                ([10, 10], 1) => found == BYTE,
                // An unknown field of an element is skipped by its type. The other logical types have no fields.
                _ => parents.is_empty(),
            };
            if !is_expected {
                return None;
            }
            match found {
                // The value of a boolean is its type.
                1 | 2 => {}
                BYTE => {
                    self.byte()?;
                }
                4..=6 => {
                    // Signed numbers are stored as 2n, and negative ones as odd numbers.
                    let number = self.number()?;
                    if parents.is_empty() && id == NUM_CHILDREN {
                        children = if number % 2 == 0 { number / 2 } else { return None };
                    }
                }
                BINARY => {
                    let length = usize::try_from(self.number()?).ok()?;
                    self.0 = self.0.get(length..)?;
                }
                STRUCT => {
                    self.children(&[parents, &[id]].concat())?;
                }
                _ => return None,
            }
        }
    }
}

/// Returns the number of records that have at most `bytes` bytes, and at most `most`.
fn bounded_rows(dataset: Dataset, most: usize, bytes: usize) -> usize {
    (bytes / dataset.record_width()).clamp(1, most)
}

fn properties(encoder: &Encoder) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
    // Times and counters are ascending in a series, so their differences are small. Only these columns have statistics:
    // the minimum of a decimal or a text would keep the buffer of its batch in memory until the end of the file.
    for field in encoder.schema().fields() {
        use arrow_schema::DataType::{Int64, Timestamp, UInt64};
        if matches!(field.data_type(), Timestamp(..) | Int64 | UInt64) {
            let column = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_statistics_enabled(column.clone(), EnabledStatistics::Chunk)
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        }
    }
    properties.build()
}

impl<W: Write + Send> ParquetWriter<W> {
    /// Creates a file of records of a dataset.
    ///
    /// # Errors
    /// `Unavailable` for an error of the writer.
    pub fn new(dataset: Dataset, decimals: Decimals, out: W) -> Result<Self> {
        let encoder = Encoder::new(dataset, decimals);
        let writer = ArrowWriter::try_new(out, encoder.schema().clone(), Some(properties(&encoder)));
        Ok(Self {
            writer: writer.map_err(write_failed)?,
            encoder,
            digest: ContentDigest::default(),
            batch_rows: bounded_rows(dataset, BATCH_ROWS, BATCH_BYTES),
        })
    }

    /// Appends records.
    ///
    /// # Errors
    /// `InvalidInput` for records of another dataset; `Unavailable` for an error of the writer.
    pub fn write(&mut self, records: &dyn Records) -> Result<()> {
        self.write_range(records, 0..records.len())
    }

    /// Appends the records in an index range.
    ///
    /// # Errors
    /// As [`ParquetWriter::write`].
    ///
    /// # Panics
    /// If the range ends after the last record.
    pub fn write_range(&mut self, records: &dyn Records, range: Range<usize>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + self.batch_rows - self.encoder.len());
            self.encoder.append(records, at..end)?;
            self.digest.add(records, at..end);
            if self.encoder.len() == self.batch_rows {
                self.write_batch()?;
            }
            at = end;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        self.writer.write(&self.encoder.finish()?).map_err(write_failed)
    }

    /// Returns the number of records so far.
    pub fn records(&self) -> u64 {
        self.digest.records()
    }

    /// Writes the end of the file, and returns the writer and the content.
    ///
    /// # Errors
    /// `Unavailable` for an error of the writer.
    pub fn finish(mut self) -> Result<(W, Content)> {
        if !self.encoder.is_empty() {
            self.write_batch()?;
        }
        let content = self.digest.finish();
        let json = serde_json::to_string(&content).unwrap_or_default();
        self.writer.append_key_value_metadata(KeyValue::new(CONTENT_KEY.to_owned(), json));
        Ok((self.writer.into_inner().map_err(write_failed)?, content))
    }
}

/// Returns the content and the writer that the metadata of a file states.
#[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "archives need the writer"))]
pub(crate) fn stated(metadata: &ParquetMetaData) -> Option<(Content, String)> {
    let file = metadata.file_metadata();
    let pair = file.key_value_metadata()?.iter().find(|pair| pair.key == CONTENT_KEY)?;
    let content = serde_json::from_str(pair.value.as_deref()?).ok()?;
    Some((content, file.created_by().unwrap_or_default().to_owned()))
}

/// Reads the records of a Parquet file in batches, and validates every record.
///
/// The memory is bounded by one batch and by one page of the file for each column. A batch has 8,192 rows, or 16 MiB of
/// the largest records of the dataset. Iteration ends after its first error. The Parquet crate panics for some damaged
/// files. The reader catches the panic, but the panic hook prints it; with `panic = "abort"`, the process ends.
pub struct ParquetReader {
    dataset: Dataset,
    #[cfg_attr(not(feature = "archive"), allow(dead_code, reason = "archives need the number"))]
    rows: u64,
    content: Option<Content>,
    batches: ParquetRecordBatchReader,
    failed: bool,
}

impl std::fmt::Debug for ParquetReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetReader").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

impl ParquetReader {
    /// Opens a file of records of a dataset. Files of other programs may have the types that [`decode`] accepts.
    ///
    /// # Errors
    /// `SchemaMismatch` for a file whose metadata names another dataset or version, `CorruptData` for a damaged file,
    /// `Unsupported` for a compression other than none, Snappy, gzip, LZ4 and Zstandard, `Unavailable` if the file
    /// cannot be read.
    pub fn new<F: ChunkReader + 'static>(dataset: Dataset, file: F) -> Result<Self> {
        catch(|| {
            let metadata = Arc::new(metadata(&file).map_err(read_failed)?);
            let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::default());
            let metadata = metadata.map_err(read_failed)?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
            // The batches of the reader have no metadata.
            check_metadata(dataset, builder.schema().metadata())?;
            let content = stated(builder.metadata()).map(|(content, _)| content);
            let rows = builder
                .metadata()
                .row_groups()
                .iter()
                .try_fold(0_u64, |rows, group| rows.checked_add(u64::try_from(group.num_rows()).ok()?));
            let rows = rows.ok_or_else(|| corrupt("parquet.read", "the number of rows is out of range"))?;
            let batches = builder
                .with_batch_size(bounded_rows(dataset, BATCH_ROWS, BATCH_BYTES))
                .build()
                .map_err(read_failed)?;
            Ok(Self { dataset, rows, content, batches, failed: false })
        })
    }

    /// Returns the number of rows in the row groups, which the reader returns.
    #[cfg(feature = "archive")]
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the content that the writer of the file stated. None in files of other programs.
    pub fn content(&self) -> Option<&Content> {
        self.content.as_ref()
    }
}

impl Iterator for ParquetReader {
    type Item = Result<RecordVec>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batches = &mut self.batches;
        let next = catch(|| batches.next().transpose().map_err(|e| read_failed(ParquetError::from(e))))
            .transpose()?;
        let records = next.and_then(|batch| catch(|| decode(self.dataset, &batch)));
        self.failed = records.is_err();
        Some(records)
    }
}
