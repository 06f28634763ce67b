//! Traces that cross the bus, verified with the spans of an in-memory exporter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{SpanKind, Status, TracerProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use qi_adapters::Config;
use qi_adapters::opentelemetry::OpenTelemetryPropagator;
use qi_core::bus::{
    DeadLetters, HeaderName, Headers, Message, MessageBusExt, PublishOptions, SubscribeRequest, TopicName,
    TopicSpec,
};
use qi_core::layer::{Layered, Propagator, Traced};
use qi_core::{MessageBus, Operation, PriceStore, PriceStoreExt as _, PriceTick, Result};
use qi_testkit::bus::MemoryBus;
use qi_testkit::chaos::{Chaos, ChaosBus, Fault};
use qi_testkit::market::{Market, MarketConfig};
use tracing::Instrument;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

struct Program {
    store: Arc<dyn PriceStore>,
    bus: Arc<dyn MessageBus>,
    topic: TopicName,
}

impl Program {
    async fn open() -> Result<Self> {
        let w3c = OpenTelemetryPropagator::new(TraceContextPropagator::new())?;
        let config =
            Config::builder().toml("[store]\nauto_schema = true").propagator(Arc::new(w3c)).build()?;
        let (store, bus) = (config.open_store().await?, config.open_bus().await?);
        bus.create_catalogue(&config.catalogue()?).await?;
        Ok(Self { store, bus, topic: TopicName::new(PriceTick::DATASET.topic())? })
    }

    /// Performs the work of a producer in a separate span.
    async fn publish(&self, ticks: &[PriceTick]) -> Result<()> {
        let work = async {
            self.bus.send_records(ticks, Some(&self.topic)).await?;
            Ok(())
        };
        work.instrument(tracing::info_span!(parent: None, "ingest")).await
    }

    /// Performs the work of a consumer with one batch.
    async fn consume(&self) -> Result<usize> {
        let request = SubscribeRequest::new("writer".parse()?, [self.topic.clone()])?;
        let mut reader = self.bus.subscribe(request).await?;
        let batch = reader.recv(1_000, Duration::from_secs(1)).await?;
        let work = async {
            for message in &batch {
                assert!(message.headers.get("traceparent").is_none(), "the layer removes it");
            }
            let decoded = batch.decode::<PriceTick>();
            self.store.insert_ticks(&decoded.records).await?;
            self.bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await?;
            reader.commit(batch.offsets()).await?;
            Ok(decoded.records.len())
        };
        work.instrument(batch.span()).await
    }
}

/// Runs `work` under an OpenTelemetry subscriber. Returns the finished spans.
async fn collected(work: impl Future<Output = Result<()>>) -> Vec<SpanData> {
    // If a process has only scoped subscribers, a callsite that is first reached on a thread without a subscriber stays
    // disabled on every thread. A global subscriber prevents that.
    let _set_before = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("qi"));
    work.with_subscriber(tracing_subscriber::registry().with(layer)).await.unwrap();
    provider.force_flush().unwrap();
    exporter.get_finished_spans().unwrap()
}

fn ticks(seed: u64, n: usize) -> Vec<PriceTick> {
    Market::new(MarketConfig::new(seed, 1).unwrap()).unwrap().take(n).collect()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name} among {:?}", names(spans)));
    assert!(found.next().is_none(), "{name} twice");
    span
}

fn names(spans: &[SpanData]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_ref()).collect()
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}

#[tokio::test]
async fn one_trace_goes_from_the_producer_over_the_bus_into_the_store() {
    let spans = collected(async {
        let program = Program::open().await?;
        program.publish(&ticks(1, 5)).await?;
        assert_eq!(program.consume().await?, 5);
        Ok(())
    })
    .await;
    let chain = ["ingest", "publish crypto-prices", "process crypto-prices", "insert"];
    for pair in chain.windows(2) {
        let (parent, child) = (named(&spans, pair[0]), named(&spans, pair[1]));
        assert_eq!(child.parent_span_id, parent.span_context.span_id(), "{pair:?}");
        assert_eq!(child.span_context.trace_id(), parent.span_context.trace_id(), "{pair:?}");
    }
    let commit = named(&spans, "commit");
    let process = named(&spans, "process crypto-prices");
    assert_eq!(commit.parent_span_id, process.span_context.span_id());
    assert!(process.parent_span_is_remote, "the parent is remote");

    let kinds = chain.map(|name| named(&spans, name).span_kind.clone());
    assert_eq!(kinds, [SpanKind::Internal, SpanKind::Producer, SpanKind::Consumer, SpanKind::Client]);
    let publish = named(&spans, "publish crypto-prices");
    for (key, value) in [
        ("messaging.system", "memory"),
        ("messaging.destination.name", "crypto-prices"),
        ("messaging.operation.type", "send"),
        ("messaging.batch.message_count", "5"),
    ] {
        assert_eq!(attribute(publish, key).as_deref(), Some(value), "{key}");
    }
    let insert = named(&spans, "insert");
    assert_eq!(attribute(insert, "db.operation.name").as_deref(), Some("insert"));
    assert_eq!(
        (attribute(insert, "db.system.name").as_deref(), attribute(insert, "error.type")),
        (Some("memory"), None)
    );
}

#[tokio::test]
async fn a_batch_links_to_the_trace_of_each_message() {
    let spans = collected(async {
        let program = Program::open().await?;
        for seed in 1..=3 {
            program.publish(&ticks(seed, 2)).await?;
        }
        assert_eq!(program.consume().await?, 6);
        Ok(())
    })
    .await;
    let process = named(&spans, "process crypto-prices");
    let publishes: Vec<_> = spans.iter().filter(|span| span.name == "publish crypto-prices").collect();
    assert_eq!(publishes.len(), 3);
    for publish in &publishes {
        let linked = process.links.iter().any(|link| {
            link.span_context == publish.span_context
                || link.span_context.span_id() == publish.span_context.span_id()
        });
        assert!(linked, "{:?}", process.links);
        assert_ne!(process.span_context.trace_id(), publish.span_context.trace_id());
    }
}

#[tokio::test]
async fn a_failed_call_has_its_error_code() {
    let spans = collected(async {
        let config = Config::builder().build()?;
        let store = config.open_store().await?;
        assert!(store.insert_ticks(&ticks(1, 1)).await.is_err(), "there is no schema");
        Ok(())
    })
    .await;
    let insert = named(&spans, "insert");
    assert!(matches!(insert.status, Status::Error { .. }), "{:?}", insert.status);
    assert_eq!(attribute(insert, "error.type").as_deref(), Some("store.memory.no_schema"));
}

/// Publishes a message with headers of another program. Returns the span of the consumer and the propagated headers.
async fn published_on(headers: &[(&str, &[u8])]) -> (SpanData, Vec<(String, usize)>) {
    let passed_on = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = passed_on.clone();
    let spans = collected(async {
        let w3c = Arc::new(OpenTelemetryPropagator::new(TraceContextPropagator::new())?);
        let traced = Traced::new("memory").with_propagator(w3c.clone());
        let bus = Layered::new(MemoryBus::default(), traced);
        let topic = TopicName::new("crypto-prices")?;
        for outcome in bus.create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await? {
            outcome.result?;
        }
        let mut message = Message::new(topic.clone(), "x");
        for (name, value) in headers {
            message = message.with_header(HeaderName::new(name)?, value.to_vec());
        }
        bus.inner().send(&[message]).await?;
        let mut reader = bus.subscribe(SubscribeRequest::new("reader".parse()?, [topic])?).await?;
        let batch = reader.recv(1, Duration::from_secs(1)).await?;
        let work = async {
            let mut out = Headers::default();
            w3c.inject(&tracing::Span::current(), &mut out);
            let lengths =
                out.iter().map(|(name, value)| (name.to_string(), value.map_or(0, bytes::Bytes::len)));
            seen.lock().unwrap().extend(lengths);
            Ok::<_, qi_core::Error>(())
        };
        work.instrument(batch.span()).await
    })
    .await;
    let headers = passed_on.lock().unwrap().clone();
    (named(&spans, "process crypto-prices").clone(), headers)
}

const TRACE: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_long_foreign_tracestate_is_not_forwarded() {
    let long = format!("a={}", "x".repeat(500_000));
    let many = (0..10_000).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    for state in [long, many] {
        let (process, passed_on) =
            published_on(&[("traceparent", TRACE), ("tracestate", state.as_bytes())]).await;
        assert_eq!(process.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let bytes: usize = passed_on.iter().map(|(_, len)| len).sum();
        assert!(bytes < 1_000, "{passed_on:?}");
    }
    let (_, passed_on) = published_on(&[("traceparent", TRACE), ("tracestate", b"vendor=kept")]).await;
    assert!(passed_on.contains(&("tracestate".to_owned(), 11)), "{passed_on:?}");
}

#[tokio::test]
async fn an_invalid_traceparent_starts_a_new_trace() {
    let long = [b"00-".as_slice(), &b"a".repeat(100_000)].concat();
    let hostile: [&[u8]; 6] = [
        b"",
        b"\xff\xfe",
        b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01\r\nx: y",
        &long,
    ];
    for value in hostile {
        let (process, _) = published_on(&[("traceparent", value)]).await;
        assert!(!process.parent_span_is_remote && process.links.is_empty(), "{:?}", value.first_chunk::<8>());
    }
}

/// Creates a separate bus that has only this layer, and its topic.
async fn traced(backend: &'static str) -> Result<(Layered<ChaosBus<MemoryBus>, Traced>, Chaos, TopicName)> {
    let (chaos, topic) = (Chaos::seeded(1), TopicName::new("crypto-prices")?);
    let w3c = Arc::new(OpenTelemetryPropagator::new(TraceContextPropagator::new())?);
    let bus = Layered::new(
        ChaosBus::new(MemoryBus::default(), chaos.clone()),
        Traced::new(backend).with_propagator(w3c),
    );
    for outcome in bus.inner().create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await? {
        outcome.result?;
    }
    Ok((bus, chaos, topic))
}

#[tokio::test]
async fn bus_spans_have_a_kind_and_an_error() {
    let spans = collected(async {
        let (bus, chaos, topic) = traced("redpanda").await?;
        let message = || Message::new(topic.clone(), "x");
        let _report = bus.publish(&[message()], PublishOptions::NONE).await?;
        let mut reader = bus.subscribe(SubscribeRequest::new("g".parse()?, [topic.clone()])?).await?;
        chaos.inject_next(Operation::Recv, Fault::Error);
        assert!(reader.recv(1, Duration::from_secs(1)).await.is_err());
        let batch = reader.recv(1, Duration::from_secs(1)).await?;
        reader.commit(batch.offsets()).await?;
        chaos.inject_next(Operation::Seek, Fault::Error);
        assert!(reader.seek(&[]).await.is_err());
        Ok(())
    })
    .await;
    for (name, operation_type, failed) in [
        ("publish crypto-prices", Some("send"), false),
        ("process crypto-prices", Some("process"), false),
        ("recv", Some("receive"), true),
        ("commit", Some("settle"), false),
        ("subscribe", None, false),
        ("seek", None, true),
    ] {
        let span = named(&spans, name);
        assert_eq!(attribute(span, "messaging.system").as_deref(), Some("kafka"), "{name}");
        assert_eq!(attribute(span, "messaging.operation.type").as_deref(), operation_type, "{name}");
        assert!(attribute(span, "messaging.operation.name").is_some(), "{name}");
        assert_eq!(matches!(span.status, Status::Error { .. }), failed, "{name}");
        assert_eq!(attribute(span, "error.type").as_deref(), failed.then_some("chaos.error"), "{name}");
    }
}

#[tokio::test]
async fn a_partially_failed_publish_is_marked() {
    let spans = collected(async {
        let (bus, _, topic) = traced("memory").await?;
        let batch = [Message::new(topic.clone(), "x"), Message::new(topic, "x").with_partition(9)];
        let report = bus.publish(&batch, PublishOptions::NONE).await?.into_outcomes();
        assert!(report[0].is_ok() && report[1].is_err());
        Ok(())
    })
    .await;
    let publish = named(&spans, "publish crypto-prices");
    assert!(matches!(publish.status, Status::Error { .. }), "{:?}", publish.status);
}

#[tokio::test]
async fn timescale_spans_have_the_system_postgresql() {
    let spans = collected(async {
        let store = Layered::new(qi_testkit::store::MemoryStore::default(), Traced::new("timescale"));
        store.ping().await.map(drop)
    })
    .await;
    assert_eq!(attribute(named(&spans, "ping"), "db.system.name").as_deref(), Some("postgresql"));
}

#[tokio::test]
async fn a_batch_links_to_at_most_64_traces_and_has_no_parent() {
    let spans = collected(async {
        let (bus, _, topic) = traced("memory").await?;
        // Some messages have no context.
        bus.inner().send(&vec![Message::new(topic.clone(), "x"); 3]).await?;
        for _ in 0..70 {
            let _report = bus.publish(&[Message::new(topic.clone(), "x")], PublishOptions::NONE).await?;
        }
        let work = async {
            let mut reader = bus.subscribe(SubscribeRequest::new("g".parse()?, [topic])?).await?;
            assert_eq!(reader.recv(100, Duration::from_secs(1)).await?.len(), 73);
            Ok(())
        };
        work.instrument(tracing::info_span!("reader")).await
    })
    .await;
    let process = named(&spans, "process crypto-prices");
    assert_eq!(process.links.len(), 64);
    assert_eq!(process.parent_span_id.to_string(), "0000000000000000", "a root");
}
