//! Checks of typed records on the bus.

use bytes::Bytes;
use qi_core::bus::{
    Batch, Codec as _, DeadLetters, Encoding, HeaderName, Message, MessageBus, MessageBusExt, TopicName,
    decode_message, encode_message, encode_records, header,
};
use qi_core::record::{Dataset, Description, Row, Slice};
use qi_core::{
    Bar, BookSnapshot, ErrorKind, FundingRate, Instrument, Liquidation, MarkPrice, MarketSnapshot,
    OpenInterest, Price, PriceTick, Quote, Timestamp,
};

use super::chapter;
use crate::bus::contract::{CheckResult, TestContext, ensure, ensure_eq};
use crate::store::contract::{Everything, NamedSignal, SYMBOLS, Sample};

chapter! { "codec":
    every_record_survives_a_round_trip [],
    symbols_of_exchanges_survive_a_round_trip [],
    undecodable_message_is_rejected_with_its_offset [],
    dead_letters_have_origin_and_error [],
}

struct Records {
    instrument: Instrument,
    price: Price,
    time: Timestamp,
}

fn records() -> CheckResult<Records> {
    Ok(Records {
        instrument: "binance:BTC-USDT".parse()?,
        price: "65000.000000000000000001".parse()?,
        time: Timestamp::from_secs(1_704_067_200)?,
    })
}

impl Records {
    fn tick(&self, id: u64) -> CheckResult<PriceTick> {
        Ok(PriceTick::new(self.instrument.clone(), self.time, id, self.price)?)
    }
}

async fn batch(
    context: &TestContext,
    bus: &dyn MessageBus,
    topic: &TopicName,
    count: usize,
) -> CheckResult<Batch> {
    let all = context.read_all(bus, topic, 1, count).await?;
    Ok(Batch::new(all, qi_core::bus::Offsets::new(), Vec::new()))
}

/// Publishes samples of a record and reads them back.
async fn round_trip<D: Sample>(context: &TestContext, bus: &dyn MessageBus) -> CheckResult {
    let topic = context.create_topic(bus, 1).await?;
    let time = records()?.time;
    let sent: Vec<D> = (0..12u32).map(|n| D::make(&D::series_no(n as usize), time, n.into(), n)).collect();
    // A topic may hold several formats, for example during an update of the producers.
    for encoding in Encoding::ALL {
        bus.send(&encode_records(&encoding, &Slice::new(&sent)?, Some(&topic))?).await?;
    }
    let encodings = Encoding::ALL.into_iter().flat_map(|encoding| vec![encoding; sent.len()]);
    let sent: Vec<D> = Encoding::ALL.into_iter().flat_map(|_| sent.clone()).collect();
    let received = batch(context, bus, &topic, sent.len()).await?;
    for ((message, record), encoding) in received.messages().iter().zip(&sent).zip(encodings) {
        let key = Bytes::from(record.series_ref().owner.to_string());
        ensure_eq!(message.key.as_ref(), Some(&key), "the message key");
        let word = |name: &str| message.headers.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
        ensure_eq!(word(header::TYPE).as_deref(), Some(D::DATASET.message()), "the type header");
        ensure_eq!(word(header::VERSION), Some(D::DATASET.version().to_string()), "the version header");
        ensure_eq!(word(header::CONTENT_TYPE).as_deref(), Some(encoding.content_type()), "the content type");
        ensure_eq!(decode_message::<D>(message)?, *record, "the decoded record");
        let again = encode_message(&encoding, record, Some(&topic))?;
        ensure_eq!(again.payload, message.payload, "the payload of a second encoding");
        // The same without the type: as records, and as rows of a dataset that is declared at run time.
        let payload = message.payload.as_deref().unwrap_or_default();
        for dataset in [D::DATASET, declared_at_run_time(D::DATASET)?] {
            let (mut erased, mut bytes) = (dataset.new_vec(), Vec::new());
            encoding.decode(payload, &mut erased)?;
            ensure_eq!(
                Row::copy_of(erased.as_records())?,
                Row::copy_of(&Slice::new(std::slice::from_ref(record))?)?,
                "the decoded row"
            );
            encoding.encode(erased.as_records(), 0, &mut bytes)?;
            ensure_eq!(Bytes::from(bytes), payload, "the payload of the encoded row");
        }
    }
    let back = received.decode::<D>();
    ensure!(back.rejected.is_empty(), "records were rejected");
    ensure_eq!(back.records, sent, "the decoded records");
    Ok(())
}

/// Declares the same dataset at run time.
fn declared_at_run_time(dataset: Dataset) -> qi_core::Result<Dataset> {
    Dataset::declare(Description {
        name: dataset.name(),
        version: dataset.version(),
        message: dataset.message(),
        topic: dataset.topic(),
        series: dataset.series(),
        interval: dataset.interval(),
        time: dataset.time(),
        seq: dataset.seq(),
        values: dataset.values(),
        new_vec: |dataset| dataset.new_vec(),
    })
}

async fn every_record_survives_a_round_trip(context: &TestContext) -> CheckResult {
    let bus = &*context.bus().await?;
    round_trip::<PriceTick>(context, bus).await?;
    round_trip::<Quote>(context, bus).await?;
    round_trip::<Bar>(context, bus).await?;
    round_trip::<MarketSnapshot>(context, bus).await?;
    round_trip::<FundingRate>(context, bus).await?;
    round_trip::<OpenInterest>(context, bus).await?;
    round_trip::<Liquidation>(context, bus).await?;
    round_trip::<MarkPrice>(context, bus).await?;
    round_trip::<BookSnapshot>(context, bus).await?;
    round_trip::<Everything>(context, bus).await?;
    round_trip::<NamedSignal>(context, bus).await
}

async fn symbols_of_exchanges_survive_a_round_trip(context: &TestContext) -> CheckResult {
    let bus = &*context.bus().await?;
    let topic = context.create_topic(bus, 1).await?;
    let Records { price, time, .. } = records()?;
    let longest = "\u{1f600}".repeat(64);
    let mut sent = Vec::new();
    for (n, symbol) in (0..).zip(SYMBOLS.iter().copied().chain([longest.as_str()])) {
        sent.push(PriceTick::new(format!("alpha:{symbol}").parse()?, time, n, price)?);
    }
    bus.send_records(&sent, Some(&topic)).await?;
    let received = batch(context, bus, &topic, sent.len()).await?;
    for (message, tick) in received.messages().iter().zip(&sent) {
        let key = tick.instrument().to_string();
        ensure_eq!(message.key.as_deref(), Some(key.as_bytes()), "the message key");
    }
    let back = received.decode::<PriceTick>();
    ensure!(back.rejected.is_empty(), "records were rejected");
    ensure_eq!(back.records, sent, "the decoded records");
    Ok(())
}

/// Returns a message with one header replaced.
fn with(message: &Message, name: &str, value: &'static str) -> CheckResult<Message> {
    let mut other = message.clone();
    other.headers.remove(name);
    other.headers.push(HeaderName::new(name)?, Bytes::from_static(value.as_bytes()));
    Ok(other)
}

async fn undecodable_message_is_rejected_with_its_offset(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let good = encode_message(&Encoding::Json, &records()?.tick(1)?, Some(&topic))?;
    let mut broken = good.clone();
    broken.payload = Some(Bytes::from_static(b"{\"instrument\":"));
    let mut tombstone = good.clone();
    tombstone.payload = None;
    let bad = [
        with(&good, header::VERSION, "99")?,
        with(&good, header::TYPE, "quote")?,
        with(&good, header::CONTENT_TYPE, "application/octet-stream")?,
        broken,
        tombstone,
    ];
    bus.send(&bad).await?;
    for (n, message) in batch(context, &*bus, &topic, bad.len()).await?.iter().enumerate() {
        let error = decode_message::<PriceTick>(message).err();
        ensure_eq!(
            error.as_ref().map(qi_core::Error::kind),
            Some(ErrorKind::CorruptData),
            "the error kind of message {n}"
        );
        let place = error.and_then(|e| {
            Some((e.context_value("topic")?.to_owned(), e.context_value("offset")?.to_owned()))
        });
        ensure_eq!(
            place,
            Some((topic.to_string(), message.offset.to_string())),
            "topic and offset in the error of message {n}"
        );
    }
    Ok(())
}

async fn dead_letters_have_origin_and_error(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (topic, dead) = (context.create_topic(&*bus, 1).await?, context.create_topic(&*bus, 1).await?);
    let records = records()?;
    let good = |id| -> CheckResult<Message> {
        Ok(encode_message(&Encoding::Json, &records.tick(id)?, Some(&topic))?)
    };
    let bad = with(&good(2)?, header::VERSION, "2")?;
    bus.send(&[good(1)?, bad.clone(), good(3)?]).await?;
    let received = batch(context, &*bus, &topic, 3).await?;
    let decoded = received.decode::<PriceTick>();
    ensure_eq!(decoded.records, [records.tick(1)?, records.tick(3)?], "the decoded records");
    bus.send_dead_letters(&decoded.rejected, &DeadLetters::to(dead.clone())).await?;
    let letters = context.read_all(&*bus, &dead, 1, 1).await?;
    let letter = &letters[0];
    ensure_eq!(
        (&letter.key, &letter.payload),
        (&bad.key, &bad.payload),
        "key and payload of the dead letter"
    );
    let word = |name: &str| letter.headers.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
    ensure_eq!(word(header::ORIGIN_TOPIC), Some(topic.to_string()), "the origin topic");
    ensure_eq!(word(header::ORIGIN_PARTITION).as_deref(), Some("0"), "the origin partition");
    ensure_eq!(
        word(header::ORIGIN_OFFSET),
        Some(received.messages()[1].offset.to_string()),
        "the origin offset"
    );
    ensure_eq!(word(header::ERROR_CODE).as_deref(), Some("bus.codec.header"), "the error code");
    ensure!(
        word(header::ERROR).is_some_and(|text| text.contains(header::VERSION)),
        "the error text does not name the header"
    );
    ensure_eq!(word(header::VERSION).as_deref(), Some("2"), "the original headers");
    // If the dead letter topic does not exist, the rejected messages must not be skipped silently.
    let nowhere = DeadLetters::to(context.unused_topic_name()?);
    let rejected = bus.send_dead_letters(&decoded.rejected, &nowhere).await.err();
    ensure_eq!(
        rejected.map(|e| e.kind()),
        Some(ErrorKind::NotFound),
        "the error of an unknown dead letter topic"
    );
    Ok(())
}
