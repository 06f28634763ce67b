//! pyarrow, pandas, Polars and `DuckDB` read the files of an archive without a difference.
//!
//! `scripts/test` installs the readers into `target/python`. Without them, the trials are ignored.

mod rig;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{
    ArrayRef, Decimal128Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow_schema::{DataType, Field};
use libtest_mimic::{Arguments, Completion, Failed, run};
use qi_arrow::{Archive, ExportOptions, ParquetReader, decode, encode, export};
use qi_core::record::{
    self, Column, ColumnType, Dataset, Description, FieldWriter, Level, Owner, RecordVec, Row, SeriesKey,
    SeriesType,
};
use qi_core::{Datasets, Decimal, ErrorKind, Interval, PriceTick, Timestamp};
use qi_testkit::presence;
use serde_json::{Map, Value, json};

/// A change of a column of one row. None keeps the column.
type Edit<'a> = &'a dyn Fn(&Field, &ArrayRef) -> Option<ArrayRef>;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers.py");
const PAGE: &str = include_str!("../../docs/columnar.md");

/// The values of one record in the form of the script: decimals as texts of units, times in microseconds.
struct Values {
    columns: Vec<(&'static str, ColumnType)>,
    at: usize,
    row: Map<String, Value>,
}

impl Values {
    fn put(&mut self, value: Value) {
        self.row.insert(self.columns[self.at].0.to_owned(), value);
        self.at += 1;
    }
}

impl FieldWriter for Values {
    fn presence(&mut self, present: bool) {
        if !present {
            self.put(Value::Null);
        }
    }
    fn decimal(&mut self, value: Decimal) {
        self.put(value.units().to_string().into());
    }
    fn counter(&mut self, value: u64) {
        self.put(value.into());
    }
    fn integer(&mut self, value: i64) {
        self.put(value.into());
    }
    fn boolean(&mut self, value: bool) {
        self.put(value.into());
    }
    fn text(&mut self, value: &str) {
        self.put(value.into());
    }
    fn code(&mut self, value: u8) {
        let name = self.columns[self.at].1.name_of(value);
        self.put(name.into());
    }
    fn time(&mut self, value: Timestamp) {
        self.put(value.as_micros().into());
    }
    fn interval(&mut self, value: Interval) {
        self.put(value.as_str().into());
    }
    fn levels(&mut self, value: &[Level]) {
        let level = |level: &Level| json!({"price": level.price.units().to_string(), "quantity": level.quantity.units().to_string()});
        self.put(value.iter().map(level).collect());
    }
}

fn rows(records: &RecordVec) -> Vec<Map<String, Value>> {
    let records = records.as_records();
    let dataset = records.dataset();
    let row = |at| {
        let columns = dataset.values().iter().map(|column| (column.name, column.ty)).collect();
        let mut values = Values { columns, at: 0, row: Map::new() };
        records.write(at, &mut values);
        let mut row = values.row;
        let (time, seq) = records.sort_key(at);
        row.insert(dataset.time().to_owned(), time.as_micros().into());
        if let Some(name) = dataset.seq() {
            row.insert(name.to_owned(), seq.into());
        }
        let series = records.series(at).to_owned();
        match (dataset.series(), &series.owner.instrument()) {
            (SeriesType::Name { column, .. }, _) => {
                row.insert(column.to_owned(), series.owner.name().into());
            }
            (SeriesType::Instrument, instrument) => {
                row.insert("exchange".to_owned(), instrument.map(|i| i.exchange().to_string()).into());
                row.insert("symbol".to_owned(), instrument.map(|i| i.symbol().to_string()).into());
            }
        }
        if let (Some(name), Some(interval)) = (dataset.interval(), series.interval) {
            row.insert(name.to_owned(), interval.as_str().into());
        }
        row
    };
    (0..records.len()).map(row).collect()
}

/// A decimal with 20 digits before and 18 digits after the point. The sum with the other values fits into 38 digits.
const WIDE: i128 = 90_000_000_000_000_000_000_123_456_789_123_456_789;

/// Replaces the first two records by records without the optional values, and the third by one with extreme values: a
/// wide decimal in each column, an empty text, and a time with microseconds. A value that the record rejects stays.
fn with_edges(records: &RecordVec) -> Result<RecordVec, Failed> {
    let dataset = records.as_records().dataset();
    let batch = encode(records.as_records())?;
    let mut all = decode(dataset, &batch.slice(3, batch.num_rows() - 3))?;
    let unknown =
        |field: &Field, _: &ArrayRef| field.is_nullable().then(|| new_null_array(field.data_type(), 1));
    let extreme = |_: &Field, column: &ArrayRef| -> Option<ArrayRef> {
        match column.data_type() {
            DataType::Decimal128(..) => {
                Some(Arc::new(Decimal128Array::from(vec![WIDE]).with_data_type(column.data_type().clone())))
            }
            DataType::Utf8 => Some(Arc::new(StringArray::from(vec![""]))),
            DataType::Timestamp(..) => {
                let micros = column.as_primitive::<TimestampMicrosecondType>().value(0) + 123_457;
                Some(Arc::new(TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC")))
            }
            _ => None,
        }
    };
    // Of two values, a record may need one: the second record lacks the other one.
    let edits: [(Edit<'_>, bool); 3] = [(&unknown, false), (&unknown, true), (&extreme, false)];
    for (at, (edit, is_reversed)) in edits.into_iter().enumerate() {
        let mut row = batch.slice(at, 1);
        // Together first: the prices of a bar have an order.
        let mut all_columns: Vec<usize> = (0..row.num_columns()).collect();
        if is_reversed {
            all_columns.reverse();
        }
        for columns in std::iter::once(&all_columns[..]).chain(all_columns.chunks(1)) {
            let mut edited = row.columns().to_vec();
            for at in columns {
                if let Some(column) = edit(row.schema().field(*at), row.column(*at)) {
                    edited[*at] = column;
                }
            }
            let edited = RecordBatch::try_new(row.schema(), edited)?;
            if decode(dataset, &edited).is_ok() {
                row = edited;
            }
        }
        decode(dataset, &row)?.as_records().append_to(0..1, &mut all)?;
    }
    Ok(all)
}

/// Returns the rows of a reader, which gives columns.
fn rows_of(columns: &Value) -> Result<Vec<Map<String, Value>>, Failed> {
    let columns = columns.as_object().ok_or("no columns")?;
    let count = columns.values().next().and_then(Value::as_array).map_or(0, Vec::len);
    let row = |at: usize| columns.iter().map(|(name, values)| (name.clone(), values[at].clone())).collect();
    Ok((0..count).map(row).collect())
}

fn sorted(mut rows: Vec<Map<String, Value>>) -> Vec<String> {
    let mut texts: Vec<String> = rows
        .drain(..)
        .map(|row| {
            let mut pairs: Vec<String> =
                row.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            pairs.sort();
            pairs.join(" ")
        })
        .collect();
    texts.sort();
    texts
}

fn exported(records: &[RecordVec], folder: &Path) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut datasets = Datasets::none();
        for records in records {
            datasets = datasets.with_dataset(records.as_records().dataset())?;
        }
        let store = rig::store_of(datasets).await;
        for records in records {
            rig::insert(&store, records.as_records()).await;
        }
        let options = ExportOptions::new(records.iter().map(|records| records.as_records().dataset()));
        export(&store, &Archive::create(&folder.to_string_lossy())?, &options).await?;
        Ok(())
    })
}

fn readers_agree(records: &RecordVec) -> Result<Completion, Failed> {
    let folder = tempfile::tempdir()?;
    exported(std::slice::from_ref(records), folder.path())?;
    let dataset: Dataset = records.as_records().dataset();
    let depth = match (dataset.series(), dataset.interval()) {
        (SeriesType::Instrument, Some(_)) => "*/*/*",
        (SeriesType::Instrument, None) | (SeriesType::Name { .. }, Some(_)) => "*/*",
        (SeriesType::Name { .. }, None) => "*",
    };
    let pattern = format!("{}/{dataset}/{depth}/*.parquet", folder.path().display());
    let output = Command::new(rig::python()).args([SCRIPT, &pattern]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let rows = rows(records);
    let facts = facts(dataset, &rows)?;
    let expected = sorted(rows);
    for reader in ["pyarrow", "pandas", "polars", "duckdb"] {
        let values = sorted(rows_of(&found[reader]["values"])?);
        if values != expected {
            let differs = values.iter().zip(&expected).find(|(found, expected)| found != expected);
            return Err(format!(
                "{reader}: {} rows, expected {}: {differs:#?}",
                values.len(),
                expected.len()
            )
            .into());
        }
        for (key, expected) in &facts {
            let found = &found[reader][key];
            if found != expected {
                return Err(format!("{reader}: {key} are {found}, expected {expected}").into());
            }
        }
    }
    Ok(Completion::Completed)
}

/// Returns the sums of the decimals, the numbers of nulls and the time zones. Each optional column must have both a
/// null and a value, and the decimals must have 20 digits before and 18 after the point.
fn facts(dataset: Dataset, rows: &[Map<String, Value>]) -> Result<[(&'static str, Value); 3], Failed> {
    let values = |name: &str| rows.iter().map(|row| &row[name]).collect::<Vec<_>>();
    let (mut sums, mut nulls, mut zones) = (Map::new(), Map::new(), Map::new());
    for name in rows[0].keys() {
        nulls.insert(name.clone(), values(name).iter().filter(|value| value.is_null()).count().into());
    }
    zones.insert(dataset.time().to_owned(), "UTC".into());
    let mut widest = None;
    for column in dataset.values() {
        let known = values(column.name).into_iter().filter(|value| !value.is_null()).count();
        if known == 0 || (column.optional && known == rows.len()) {
            return Err(
                format!("{} is null in {} of {} rows", column.name, rows.len() - known, rows.len()).into()
            );
        }
        match column.ty {
            ColumnType::Timestamp => {
                zones.insert(column.name.to_owned(), "UTC".into());
            }
            ColumnType::Decimal => {
                let units = values(column.name).into_iter().filter_map(Value::as_str);
                let units = units.map(str::parse::<i128>).collect::<Result<Vec<_>, _>>()?;
                sums.insert(column.name.to_owned(), units.iter().sum::<i128>().to_string().into());
                widest = widest.max(units.into_iter().map(i128::unsigned_abs).max());
            }
            _ => {}
        }
    }
    if widest.is_some_and(|units| units != WIDE.unsigned_abs()) {
        return Err(format!("the largest decimal of {dataset} has {widest:?} units").into());
    }
    Ok([("sums", sums.into()), ("nulls", nulls.into()), ("zones", zones.into())])
}

/// Three ticks on each of two days, with digits at the 18th place and two unknown quantities.
fn ticks_of_the_page() -> Result<RecordVec, Failed> {
    let mut ticks = Vec::new();
    for n in 0..6i64 {
        let at = rig::time(rig::DAY + n / 3 * rig::DAY_MICROS + n % 3 * 28_800_000_000);
        let units = (41 + i128::from(n)) * Decimal::UNITS_PER_ONE + i128::from(n);
        let price = qi_core::Price::from_units(units)?;
        let tick = PriceTick::new("binance:BTC-USDT".parse()?, at, n.unsigned_abs(), price)?;
        let quantity = qi_core::Quantity::from_units(Decimal::UNITS_PER_ONE / 2)?;
        ticks.push(if n % 3 == 1 { tick } else { tick.with_quantity(quantity) });
    }
    Ok(RecordVec::from_vec(ticks))
}

/// Two rates on two days. The second has a column that was declared later.
fn rates_of_the_page() -> Result<[RecordVec; 2], Failed> {
    const OLD: [Column; 1] = [Column { name: "rate", ty: ColumnType::Decimal, optional: false }];
    const NEW: [Column; 2] =
        [OLD[0], Column { name: "note", ty: ColumnType::Text { max: 9 }, optional: true }];
    let rate = |columns: &'static [Column], day: i64| -> Result<RecordVec, Failed> {
        let dataset = Dataset::declare(Description {
            name: "rates",
            version: 1,
            message: "rate",
            topic: "rates",
            series: SeriesType::Name { column: "coin", max: 20 },
            interval: None,
            time: "ts",
            seq: None,
            values: columns,
            new_vec: |dataset| dataset.new_vec(),
        })?;
        let series = SeriesKey { owner: Owner::Name("BTC".into()), interval: None };
        let values = [record::Value::Decimal("0.0001".parse()?), record::Value::Text("late".into())];
        let key = (rig::time(rig::DAY + day * rig::DAY_MICROS), 0);
        let row = Row::new(dataset, series, key, values[..columns.len()].to_vec())?;
        Ok(Row::collect(dataset, vec![row])?)
    };
    Ok([rate(&OLD, 0)?, rate(&NEW, 1)?])
}

/// Compares the manifest of the page with that of the example. The size depends on the version of the compression.
fn manifest_of_the_page(archive: &Path) -> Result<(), Failed> {
    let (_, page) = PAGE.split_once("```json\n").ok_or("no manifest")?;
    let (page, _) = page.split_once("```").ok_or("a block without an end")?;
    let page: Map<String, Value> = serde_json::from_str(page)?;
    let manifest = std::fs::read(archive.join("ticks/binance/BTC-USDT/_2024-01-31.json"))?;
    let manifest: Map<String, Value> = serde_json::from_slice(&manifest)?;
    for (key, found) in &manifest {
        let shown = page.get(key).ok_or_else(|| format!("the page has no {key}"))?;
        let is_same = match key.as_str() {
            "digest" | "sha256" => true,
            "bytes" => found.as_u64().zip(shown.as_u64()).is_some_and(|(a, b)| a.abs_diff(b) < 200),
            _ => found == shown,
        };
        if !is_same {
            return Err(format!("the page has the {key} {shown}, expected {found}").into());
        }
    }
    if page.len() == manifest.len() { Ok(()) } else { Err("the page has another key".into()) }
}

/// Runs every Python block of the page, and compares its output with the text block after it.
fn examples_of_the_page() -> Result<Completion, Failed> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("archive");
    exported(&[ticks_of_the_page()?], &archive)?;
    for records in rates_of_the_page()? {
        exported(&[records], &archive)?;
    }
    manifest_of_the_page(&archive)?;
    let mut blocks = 0;
    let mut rest = PAGE;
    while let Some((_, after)) = rest.split_once("```python\n") {
        let (code, after) = after.split_once("```").ok_or("a block without an end")?;
        let (_, output) = after.split_once("```text\n").ok_or("a Python block without an output")?;
        let (expected, after) = output.split_once("```").ok_or("a block without an end")?;
        let output = Command::new(rig::python()).args(["-c", code]).current_dir(&folder).output()?;
        let found = String::from_utf8_lossy(&output.stdout);
        if found != expected {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{code}printed\n{found}expected\n{expected}{errors}").into());
        }
        blocks += 1;
        rest = after;
    }
    if blocks == 4 { Ok(Completion::Completed) } else { Err(format!("{blocks} examples, expected 4").into()) }
}

/// pyarrow writes ticks with each compression, in its own types for names.
fn files_of_pyarrow_are_read() -> Result<Completion, Failed> {
    const WRITE: &str = "
import datetime, decimal, pyarrow, pyarrow.parquet
utc = datetime.timezone.utc
table = pyarrow.table({
    'exchange': ['binance', 'binance'],
    'symbol': ['BTC-USDT', 'BTC-USDT'],
    'ts': pyarrow.array([datetime.datetime(2024, 1, 31, hour, tzinfo=utc) for hour in (0, 8)]),
    'seq': [1, 2],
    'price': [decimal.Decimal('39432.48'), decimal.Decimal('0.000000000000000001')],
    'quantity': pyarrow.array([decimal.Decimal('1.5'), None]),
})
for compression in ('none', 'snappy', 'gzip', 'lz4', 'zstd', 'brotli'):
    pyarrow.parquet.write_table(table, compression, compression=compression)
";
    let folder = tempfile::tempdir()?;
    let output = Command::new(rig::python()).args(["-c", WRITE]).current_dir(&folder).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let tick = |hour: i64, seq, price: &str| {
        PriceTick::new(
            "binance:BTC-USDT".parse()?,
            rig::time(rig::DAY + hour * 3_600_000_000),
            seq,
            price.parse()?,
        )
    };
    let expected = [
        tick(0, 1, "39432.48")?.with_quantity("1.5".parse::<qi_core::Quantity>()?),
        tick(8, 2, "0.000000000000000001")?,
    ];
    for compression in ["none", "snappy", "gzip", "lz4", "zstd"] {
        let file = std::fs::File::open(folder.path().join(compression))?;
        let records = ParquetReader::new(PriceTick::DATASET, file)?.next().ok_or("no records")??;
        if records.as_slice::<PriceTick>()? != expected {
            return Err(format!("{compression}: {records:?}").into());
        }
    }
    let file = std::fs::File::open(folder.path().join("brotli"))?;
    let rejected =
        ParquetReader::new(PriceTick::DATASET, file).and_then(|mut reader| reader.next().transpose());
    match rejected {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Completion::Completed),
        other => Err(format!("{other:?}").into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let absent = rig::absent("pyarrow, polars, duckdb, pandas");
    let draws: Vec<rig::Draw> =
        (0..90u32).map(|n| (n as usize % 3, n, u64::from(n), n * 331 % 30_000)).collect();
    let mut trials = Vec::new();
    for records in rig::of_every_dataset(&draws) {
        let records = with_edges(&records).expect("valid records");
        let name = format!("readers_agree_on_{}", records.as_records().dataset());
        trials.push(presence::trial(name, "python", absent.clone(), move || readers_agree(&records)));
    }
    let name = "files_of_pyarrow_are_read".to_owned();
    trials.push(presence::trial(name, "python", absent.clone(), files_of_pyarrow_are_read));
    let name = "examples_of_the_page_print_their_outputs".to_owned();
    trials.push(presence::trial(name, "python", absent, examples_of_the_page));
    run(&arguments, trials).exit_code()
}
