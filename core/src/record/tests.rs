use super::*;
use crate::{
    Datasets, Decimal, Error, ErrorKind, Instrument, Interval, Price, PriceTick, Quantity, Scope, Side,
};

/// A record with every type of column.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "everything", version = 3, validate = Self::is_even)]
struct Everything {
    #[series]
    strategy: Text<20>,
    #[interval]
    interval: Interval,
    #[time]
    at: Timestamp,
    #[seq]
    number: u64,
    decimal: Decimal,
    counter: u64,
    integer: i64,
    boolean: bool,
    text: Text<8>,
    state: State,
    later: Timestamp,
    length: Interval,
    levels: Levels<2>,
    #[flatten]
    part: Part,
}

#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize, Columns)]
struct Part {
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Price>,
    #[serde(skip_serializing_if = "Option::is_none")]
    side: Option<Side>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Text<8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize, Enumeration)]
#[serde(rename_all = "snake_case")]
enum State {
    Open,
    PartlyFilled,
}

impl Everything {
    fn is_even(&self) -> Result<()> {
        if self.integer % 2 == 0 {
            return Ok(());
        }
        Err(Error::invalid("test.even", "integer", self.integer, "must be even"))
    }
}

fn everything(number: u64) -> Everything {
    let at = Timestamp::from_secs(1_700_000_000).unwrap();
    let level = |price: &str| Level { price: price.parse().unwrap(), quantity: "0.5".parse().unwrap() };
    Everything {
        strategy: "carry".parse().unwrap(),
        interval: Interval::H1,
        at,
        number,
        decimal: "-1.000000000000000001".parse().unwrap(),
        counter: 7,
        integer: -8,
        boolean: true,
        text: "üb".parse().unwrap(),
        state: State::PartlyFilled,
        later: Timestamp::MAX,
        length: Interval::W1,
        levels: Levels::new(vec![level("2"), level("1")]).unwrap(),
        part: Part { price: None, side: Some(Side::Sell), note: None },
    }
}

fn tick(seq: u64) -> PriceTick {
    PriceTick::new("a:B".parse().unwrap(), Timestamp::MIN, seq, "1.5".parse().unwrap()).unwrap()
}

#[test]
fn derive_generates_the_declared_description() {
    let dataset = Everything::DATASET;
    assert_eq!(
        (dataset.name(), dataset.version(), dataset.message(), dataset.topic()),
        ("everything", 3, "everything", "everything")
    );
    assert_eq!(dataset.series(), SeriesType::Name { column: "strategy", max: 20 });
    assert_eq!((dataset.interval(), dataset.time(), dataset.seq()), (Some("interval"), "at", Some("number")));
    let columns: Vec<_> =
        dataset.values().iter().map(|column| (column.name, column.ty, column.optional)).collect();
    assert_eq!(
        columns,
        [
            ("decimal", ColumnType::Decimal, false),
            ("counter", ColumnType::Counter, false),
            ("integer", ColumnType::Integer, false),
            ("boolean", ColumnType::Boolean, false),
            ("text", ColumnType::Text { max: 8 }, false),
            ("state", ColumnType::Enumeration(&["open", "partly_filled"]), false),
            ("later", ColumnType::Timestamp, false),
            ("length", ColumnType::Interval, false),
            ("levels", ColumnType::Levels { max: 2 }, false),
            ("price", ColumnType::Decimal, true),
            ("side", ColumnType::Enumeration(&["buy", "sell"]), true),
            ("note", ColumnType::Text { max: 8 }, true),
        ]
    );
    assert_eq!(
        everything(1).known_at(),
        Timestamp::from_secs(1_700_003_600).unwrap(),
        "an interval ends later"
    );
}

#[test]
fn the_topic_has_no_underscore() {
    assert_eq!(crate::FundingRate::DATASET.topic(), "funding-rates");
}

#[test]
fn values_round_trip_through_rows_and_json() {
    let records = [everything(1), everything(2)];
    let batch = Slice::new(&records).unwrap();
    let rows = Row::copy_of(&batch).unwrap();
    assert_eq!(rows[1].values()[5], Value::Enumeration(2));
    assert_eq!(rows[1].values()[9], Value::Absent);
    for (at, record) in records.iter().enumerate() {
        let mut typed = Vec::new();
        batch.write_json(at, &mut typed);
        let text = String::from_utf8(typed.clone()).unwrap();
        assert!(text.contains("\"state\":\"partly_filled\"") && !text.contains("note"), "{text}");
        assert_eq!(serde_json::to_vec(&rows[at]).unwrap(), typed, "a row has the same form");
        let mut found = Everything::DATASET.new_vec();
        found.push_json(&typed).unwrap();
        assert_eq!(found.as_slice::<Everything>().unwrap(), std::slice::from_ref(record));
        let odd = text.replace("\"integer\":-8", "\"integer\":-7");
        assert_eq!(found.push_json(odd.as_bytes()).unwrap_err().kind(), ErrorKind::CorruptData);
    }
}

/// Returns the same columns as a declared struct, declared at run time.
fn at_run_time() -> Dataset {
    let dataset = Everything::DATASET;
    Dataset::declare(Description {
        name: "everything",
        version: 3,
        message: "everything",
        topic: "everything",
        series: dataset.series(),
        interval: dataset.interval(),
        time: dataset.time(),
        seq: dataset.seq(),
        values: dataset.values(),
        new_vec: RecordVec::of::<Everything>,
    })
    .unwrap()
}

#[test]
fn a_dataset_of_the_same_columns_is_equal_and_has_rows() {
    let dataset = at_run_time();
    assert_eq!(dataset, Everything::DATASET);
    let records = [everything(1)];
    let rows = Row::copy_of(&Slice::new(&records).unwrap()).unwrap();
    let mut json = Vec::new();
    Row::collect(dataset, rows.clone()).unwrap().as_records().write_json(0, &mut json);
    let mut found = dataset.new_vec();
    found.push_json(&json).unwrap();
    assert_eq!(found, Row::collect(dataset, rows).unwrap());
}

#[test]
fn an_invalid_record_is_named_by_its_index() {
    let mut records = vec![everything(1), everything(2)];
    records[1].integer = 3;
    let error = Slice::new(&records).unwrap_err();
    assert_eq!((error.context_value("record"), error.context_value("field")), (Some("1"), Some("integer")));
    records[1] = Everything { number: u64::MAX, ..everything(2) };
    assert_eq!(Slice::new(&records).unwrap_err().context_value("field"), Some("number"));
    records[1] = Everything { counter: u64::MAX, ..everything(2) };
    assert_eq!(Slice::new(&records).unwrap_err().context_value("field"), Some("counter"));
    records[1] = Everything { at: Timestamp::MAX, ..everything(2) };
    assert_eq!(Slice::new(&records).unwrap_err().context_value("field"), Some("at"));
}

#[test]
fn record_vectors_copy_replace_and_split() {
    let ticks: Vec<_> = (0..6).map(tick).collect();
    let batch = Slice::new(&ticks).unwrap();
    let mut found = PriceTick::DATASET.new_vec();
    batch.copy_to(&mut [0, 2, 4].into_iter(), &mut found, 0..0).unwrap();
    batch.copy_to(&mut std::iter::once(1), &mut found, 1..1).unwrap();
    batch.copy_to(&mut std::iter::once(3), &mut found, 2..3).unwrap();
    let seqs = |found: &RecordVec| {
        found.as_slice::<PriceTick>().unwrap().iter().map(PriceTick::seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&found), [0, 1, 3, 4]);
    found.push_copy(&batch, 5).unwrap();
    let rest = found.split_off(3);
    assert_eq!((seqs(&found), seqs(&rest)), (vec![0, 1, 3], vec![4, 5]));
    found.remove(0..1);
    found.truncate(1);
    assert_eq!(seqs(&found), [1]);
    assert_eq!((found.clone(), found.len()), (found, 1));
    assert!(
        rest.as_records().copy_to(&mut std::iter::once(0), &mut Everything::DATASET.new_vec(), 0..0).is_err()
    );
    assert!(rest.into_vec::<Everything>().is_err());
}

#[test]
fn a_row_fits_its_dataset() {
    let dataset = at_run_time();
    let row = Row::copy_of(&Slice::new(&[everything(1)]).unwrap()).unwrap().remove(0);
    let new = |series: SeriesKey, sort_key, values| Row::new(dataset, series, sort_key, values);
    let (series, sort_key, values) = (row.series().clone(), row.sort_key(), row.values().to_vec());
    assert!(new(series.clone(), sort_key, values.clone()).is_ok());
    let with = |at: usize, value: Value| {
        let mut values = values.clone();
        values[at] = value;
        new(series.clone(), sort_key, values)
    };
    for (at, value) in [
        (0, Value::Absent),
        (0, Value::Counter(1)),
        (1, Value::Counter(u64::MAX)),
        (4, Value::Text("nine bytes".to_owned())),
        (4, Value::Text("\0".to_owned())),
        (5, Value::Enumeration(0)),
        (5, Value::Enumeration(3)),
        (8, Value::Levels(vec![Level { price: "1".parse().unwrap(), quantity: Quantity::ZERO }; 3])),
    ] {
        let error = with(at, value).unwrap_err();
        assert_eq!(error.context_value("field"), Some(dataset.values()[at].name));
    }
    assert!(new(SeriesKey { interval: None, ..series.clone() }, sort_key, values.clone()).is_err());
    let instrument = "a:B".parse::<Instrument>().unwrap().key();
    assert!(new(SeriesKey { interval: Some(Interval::H1), ..instrument }, sort_key, values.clone()).is_err());
    assert!(new(series, (Timestamp::MAX, 0), values).is_err());
}

#[test]
fn invalid_description_is_rejected() {
    const COLUMN: Column = Column { name: "value", ty: ColumnType::Decimal, optional: false };
    fn base() -> Description {
        Description {
            name: "signals",
            version: 1,
            message: "signal",
            topic: "signals",
            series: SeriesType::Instrument,
            interval: None,
            time: "ts",
            seq: None,
            values: &[COLUMN],
            new_vec: RecordVec::of::<PriceTick>,
        }
    }
    let declare = Dataset::declare;
    assert!(declare(base()).is_ok());
    for (what, bad) in [
        ("an upper-case name", Description { name: "Signals", ..base() }),
        ("no name", Description { name: "", ..base() }),
        ("a name that is no identifier", Description { name: "a; DROP TABLE ticks", ..base() }),
        ("a column twice", Description { values: &[COLUMN, COLUMN], ..base() }),
        ("a column like the time", Description { time: "value", ..base() }),
        ("a column like a part of the instrument", Description { seq: Some("exchange"), ..base() }),
        ("a name without room", Description { series: SeriesType::Name { column: "n", max: 0 }, ..base() }),
        (
            "a text without room",
            Description { values: &[Column { ty: ColumnType::Text { max: 0 }, ..COLUMN }], ..base() },
        ),
        (
            "an enumeration without names",
            Description { values: &[Column { ty: ColumnType::Enumeration(&[]), ..COLUMN }], ..base() },
        ),
        (
            "a name of an enumeration twice",
            Description {
                values: &[Column { ty: ColumnType::Enumeration(&["a", "a"]), ..COLUMN }],
                ..base()
            },
        ),
        (
            "too many levels",
            Description { values: &[Column { ty: ColumnType::Levels { max: 1_001 }, ..COLUMN }], ..base() },
        ),
        (
            "optional levels",
            Description {
                values: &[Column { ty: ColumnType::Levels { max: 1 }, optional: true, ..COLUMN }],
                ..base()
            },
        ),
    ] {
        assert_eq!(declare(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{what}");
    }
}

#[test]
fn a_registry_has_each_name_once() {
    let datasets = Datasets::standard().with::<Everything>().unwrap();
    assert_eq!(datasets.clone().with::<Everything>().unwrap(), datasets);
    assert_eq!(datasets.position(Everything::DATASET).unwrap(), 4);
    let other = Dataset::declare(Description { values: &[], ..other_description() }).unwrap();
    assert!(datasets.clone().with_dataset(other).is_err());
    for unknown in
        [other, crate::Dataset::declare(Description { name: "unknown", ..other_description() }).unwrap()]
    {
        assert_eq!(datasets.position(unknown).unwrap_err().kind(), ErrorKind::SchemaMismatch);
    }
    for dataset in Datasets::built_in().iter() {
        assert!(dataset.check().is_ok(), "{dataset}");
    }
}

fn other_description() -> Description {
    Description {
        name: "everything",
        version: 1,
        message: "everything",
        topic: "everything",
        series: SeriesType::Instrument,
        interval: None,
        time: "ts",
        seq: None,
        values: &[],
        new_vec: RecordVec::of::<PriceTick>,
    }
}

#[test]
fn a_dataset_checks_its_series() {
    let instrument = "a:B".parse::<Instrument>().unwrap();
    let bars = (instrument.clone(), Interval::M1).key();
    let name = |name: &str| SeriesKey { owner: Owner::Name(name.into()), interval: None };
    let with_interval =
        |name: &str| SeriesKey { owner: Owner::Name(name.into()), interval: Some(Interval::M1) };
    let named = SeriesType::Name { column: "coin", max: 5 };
    let rows = Dataset::declare(Description { name: "rows", series: named, ..other_description() }).unwrap();
    let snapshots = crate::MarketSnapshot::DATASET;
    for (dataset, series, valid) in [
        (PriceTick::DATASET, instrument.key(), true),
        (PriceTick::DATASET, bars.clone(), false),
        (PriceTick::DATASET, name("a:B"), false),
        (crate::Bar::DATASET, bars, true),
        (crate::Bar::DATASET, instrument.key(), false),
        (snapshots, name(""), true),
        (snapshots, name("asset:BTC"), true),
        (snapshots, name("asset:a\0b"), false),
        (snapshots, name("nonsense"), false),
        (snapshots, instrument.key(), false),
        (Everything::DATASET, with_interval("carry"), true),
        (Everything::DATASET, with_interval(&"x".repeat(21)), false),
        (rows, name("BTC"), true),
        (rows, name("B\0C"), false),
        (rows, name("BTCUSD"), false),
        (rows, with_interval("BTC"), false),
    ] {
        let checked = dataset.check_series(&series);
        assert_eq!(checked.is_ok(), valid, "{dataset} {series:?}");
        assert!(
            checked.map_err(|error| error.kind()).is_err_and(|kind| kind == ErrorKind::InvalidInput) != valid
        );
    }
}

#[test]
fn series_survive_a_round_trip_through_their_keys() {
    let bars = ("a:B".parse::<Instrument>().unwrap(), Interval::M1);
    assert_eq!(<(Instrument, Interval)>::from_key(&bars.key()).unwrap(), bars);
    assert!(Instrument::from_key(&bars.key()).is_err());
    for scope in ["global", "asset:BTC"].map(|text| text.parse::<Scope>().unwrap()) {
        assert_eq!(Scope::from_key(&scope.key()).unwrap(), scope);
        assert_eq!(scope.key().to_string(), scope.to_string());
        assert!(Instrument::from_key(&scope.key()).is_err());
    }
}
