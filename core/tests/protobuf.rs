//! The wire format of Protocol Buffers: the published `.proto` files, exact round trips, and hostile payloads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use qi_core::bus::{Encoding, ReceivedMessage, TopicName, decode_message, encode_message, protobuf};
use qi_core::record::{Level, Levels};
use qi_core::{
    BookSnapshot, Datasets, Decimal, Instrument, Price, PriceTick, Quantity, Record, Side, Timestamp,
};

fn received(payload: &[u8]) -> ReceivedMessage {
    let mut message = ReceivedMessage::new(TopicName::new("t").unwrap(), 0, 0);
    let content_type = qi_core::bus::Codec::content_type(&Encoding::Protobuf);
    let name = qi_core::bus::HeaderName::new(qi_core::bus::header::CONTENT_TYPE).unwrap();
    message.headers.push(name, bytes::Bytes::from_static(content_type.as_bytes()));
    message.payload = Some(payload.to_vec().into());
    message
}

fn payload<R: Record>(record: &R) -> Vec<u8> {
    encode_message(&Encoding::Protobuf, record, None).unwrap().payload.unwrap().to_vec()
}

fn decode<R: Record>(payload: &[u8]) -> qi_core::Result<R> {
    decode_message(&received(payload))
}

fn tick(price: &str) -> PriceTick {
    let time = Timestamp::from_micros(1_704_067_200_123_456).unwrap();
    PriceTick::new("binance:BTC-USDT".parse().unwrap(), time, 7, price.parse().unwrap()).unwrap()
}

/// With `QI_WRITE_PROTO=1` the test writes the files.
#[test]
fn published_files_are_those_of_the_built_in_datasets() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/qi/v1");
    let mut expected = vec!["types.proto".to_owned()];
    for dataset in Datasets::built_in().iter() {
        let name = format!("{}.proto", dataset.message().replace('-', "_"));
        let (path, schema) = (folder.join(&name), protobuf::schema(dataset));
        if std::env::var_os("QI_WRITE_PROTO").is_some() {
            std::fs::write(&path, &schema).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(published, schema, "{name} differs: run the test with QI_WRITE_PROTO=1");
        expected.push(name);
    }
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    expected.sort();
    assert_eq!(files, expected);
}

/// The expected bytes were derived by hand from the specification of the format.
#[test]
fn a_tick_has_the_documented_bytes() {
    let tick = tick("39432.48").with_side(Side::Sell);
    let expected = [
        &[0x0A, 16][..],
        b"binance:BTC-USDT",
        // Field 3, a varint of 1,704,067,200,123,456.
        &[0x18, 0xC0, 0x84, 0x8C, 0x81, 0xF1, 0xBA, 0x83, 0x03],
        &[0x20, 7],
        // Field 5: 3,943,248 in zigzag is 7,886,496, and 2 places.
        &[0x2A, 7, 0x08, 0xA0, 0xAD, 0xE1, 0x03, 0x10, 2],
        // Field 6 is absent, field 7 is 2.
        &[0x38, 2],
    ];
    let payload = payload(&tick);
    assert_eq!(payload, expected.concat());
    assert!(payload.len() <= 64, "a tick takes at most 64 bytes");
}

#[test]
fn a_reader_accepts_unknown_fields_any_order_and_repeated_fields() {
    let tick = tick("0.000000000000000001");
    let bytes = payload(&tick);
    // An unknown field of each wire type, before and after the record.
    let unknown =
        [0xF8, 0x7F, 1, 0xF9, 0x7F, 1, 2, 3, 4, 5, 6, 7, 8, 0xFA, 0x7F, 2, 9, 9, 0xFD, 0x7F, 1, 2, 3, 4];
    assert_eq!(decode::<PriceTick>(&[&unknown[..], &bytes, &unknown].concat()).unwrap(), tick);
    // The sequence number comes first. A later field overrides its value.
    assert_eq!(decode::<PriceTick>(&[&[0x20, 99][..], &bytes].concat()).unwrap(), tick);
}

#[test]
fn a_message_that_is_no_record_is_rejected_with_the_reason() {
    let good = payload(&tick("1"));
    let parts: [(&[u8], &str); 9] = [
        (&good[..good.len() - 1], "truncated"),
        (&good[18..], "the field instrument is missing"),
        (&[&good[..], &[0x2A, 0]].concat(), "price must be greater than zero"),
        (&[&good[..], &[0x2A, 2, 0x10, 19]].concat(), "more than 18 decimal places"),
        (&[&good[..], &[0x28, 1]].concat(), "the field price has another type"),
        (&[&good[..], &[0x2A, 2, 0x0D, 1]].concat(), "truncated"),
        (&[&good[..], &[0x0A, 1, 0xFF]].concat(), "is not UTF-8 text"),
        (&[&good[..], &[0x38, 3]].concat(), "must be the position of one of buy, sell"),
        (&[&good[..], &[0x0B]].concat(), "unknown wire type"),
    ];
    for (payload, reason) in parts {
        let error = decode::<PriceTick>(payload).unwrap_err();
        assert_eq!((error.kind(), error.code()), (qi_core::ErrorKind::CorruptData, "bus.codec.protobuf"));
        assert!(error.message().is_some_and(|text| text.contains(reason)), "{reason}: {error}");
    }
}

#[test]
fn a_list_of_levels_is_bounded() {
    let level =
        |n: i64| Level { price: Price::new(Decimal::from_int(n + 1)).unwrap(), quantity: Quantity::ZERO };
    let mut reader = Vec::new();
    for n in 0..30 {
        reader.push(level(n));
    }
    let levels = Levels::<25>::new(reader[..25].to_vec()).unwrap();
    assert_eq!(levels.as_slice().len(), 25);
    let datasets = Datasets::built_in();
    let dataset = datasets.iter().find(|dataset| *dataset == BookSnapshot::DATASET).unwrap();
    let column = dataset
        .values()
        .iter()
        .position(|column| matches!(column.ty, qi_core::record::ColumnType::Levels { .. }));
    let number = 5 + u8::try_from(column.unwrap()).unwrap();
    // A million invalid levels of two bytes each.
    let hostile = [number << 3 | 2, 0].repeat(1_000_000);
    let began = [&[0x0A, 3][..], b"a:B", &[0x18, 1], &hostile].concat();
    assert!(decode::<BookSnapshot>(&began).is_err());
}

prop_compose! {
    fn any_decimal()(digits in 1u32..=38, value in any::<i128>()) -> Decimal {
        Decimal::from_units(value % 10i128.pow(digits)).unwrap()
    }
}

proptest! {
    #[test]
    fn ticks_round_trip(price in any_decimal(), quantity in proptest::option::of(any_decimal()), seq in 0..i64::MAX as u64, micros in 0i64..4_000_000_000_000_000) {
        let positive = |value: Decimal| Decimal::from_units(value.units().abs().max(1)).unwrap();
        let time = Timestamp::from_micros(micros).unwrap();
        let instrument: Instrument = "kraken:XBT/EUR".parse().unwrap();
        let tick = PriceTick::new(instrument, time, seq, Price::new(positive(price)).unwrap()).unwrap()
            .with_quantity(quantity.map(|value| Quantity::new(positive(value)).unwrap()));
        prop_assert_eq!(decode::<PriceTick>(&payload(&tick)).unwrap(), tick);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<PriceTick>(&bytes);
        let _ = decode::<BookSnapshot>(&bytes);
    }

    #[test]
    fn changed_messages_do_not_panic(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
        let mut bytes = payload(&tick("12345678901234567890.123456789012345678").with_quantity("1".parse::<Quantity>().unwrap()));
        let last = bytes.len() - 1;
        bytes[at.min(last)] = byte;
        bytes.truncate(cut.max(1));
        let _ = decode::<PriceTick>(&bytes);
    }
}
