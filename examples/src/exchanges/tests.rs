//! Messages and responses of the exchanges, valid and damaged.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use hyper::StatusCode;
use qi_core::domain::MAX_COUNTER;
use qi_core::{Datasets, Instrument, PriceStore as _, RetryAdvice, Side, Timestamp};
use qi_files::coverage::{Coverage, Ledger};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

use super::protocol::{Frame, HistoryPage, Position, Protocol, Trade};
use super::published::Published;
use super::repair::answer;
use super::{Binance, Kraken, RestClient};

const BINANCE: &[&str] = &[
    r#"{"e":"trade","E":1672515782136123,"s":"BTCUSDT","t":12345,"p":"16500.10","q":"0.00100000","b":88,"a":50,"T":1672515782136001,"m":true,"M":true}"#,
    r#"{"result":null,"id":1}"#,
    r#"{"error":{"code":2,"msg":"Invalid request: unknown variant"},"id":1}"#,
    r#"{"error":{"code":-1003,"msg":"Too many requests"}}"#,
    r#"{"e":"serverShutdown","E":1770123456789}"#,
    r#"{"code":2,"msg":"Invalid request: unknown variant","id":1}"#,
    r#"{"code":-1003,"msg":"Too many requests"}"#,
];
const KRAKEN: &[&str] = &[
    r#"{"channel":"status","type":"update","data":[{"api_version":"v2","connection_id":13834774380200032777,"system":"online","version":"2.0.0"}]}"#,
    r#"{"channel":"status","type":"update","data":[{"system":"cancel_only"}]}"#,
    r#"{"method":"subscribe","result":{"channel":"trade","snapshot":true,"symbol":"BTC/USD"},"success":true,"time_in":"2023-09-25T09:04:31.742599Z"}"#,
    r#"{"error":"Currency pair not supported FOO/BAR","method":"subscribe","success":false,"symbol":"FOO/BAR"}"#,
    r#"{"error":"Exceeded msg rate","method":"subscribe","success":false}"#,
    r#"{"channel":"heartbeat"}"#,
    r#"{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"sell","price":26500.10,"qty":1e-05,"ord_type":"limit","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}"#,
];
const BINANCE_PAGE: &str = r#"[{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012","time":1735689600000123,"isBuyerMaker":true,"isBestMatch":true}]"#;
const KRAKEN_PAGE: &str = r#"{"error":[],"result":{"XXBTZUSD":[["30243.40000","0.34507674",1688669597.8277369,"b","m","",61044952],["30243.30000","0.00376960",1688669598.2804112,"s","l","",61044953],["30243.30000","0.01235716",1688669602.698379,"s","m","",61044956]],"last":"1688671969993150842"}}"#;

fn trade(id: u64, micros: i64, price: &str, quantity: &str, side: Side) -> Trade {
    let (price, quantity) = (price.parse().unwrap(), quantity.parse().unwrap());
    Trade { id, time: Timestamp::from_micros(micros).unwrap(), price, quantity, side }
}

#[test]
fn published_messages_of_binance_are_read() {
    let frames: Vec<Frame> = BINANCE.iter().map(|text| Binance.frame("BTCUSDT", text).unwrap()).collect();
    let sold = trade(12_345, 1_672_515_782_136_001, "16500.1", "0.001", Side::Sell);
    assert_eq!(frames[0], Frame::Trades(vec![sold]));
    assert_eq!(frames[1], Frame::Subscribed);
    assert!(matches!(frames[2], Frame::Rejected { is_permanent: true, .. }));
    assert!(matches!(frames[3], Frame::Rejected { is_permanent: false, .. }));
    assert_eq!(frames[4], Frame::Closing);
    assert!(matches!(frames[5], Frame::Rejected { is_permanent: true, .. }));
    assert!(matches!(frames[6], Frame::Rejected { is_permanent: false, .. }));
    for text in [r#"{"id":1}"#, r#"{"result":[],"id":1}"#, r#"{"code":2,"id":1}"#] {
        assert!(Binance.frame("BTCUSDT", text).is_err(), "no acknowledgement: {text}");
    }
    assert!(Binance.frame("ETHUSDT", BINANCE[0]).is_err(), "a trade of another symbol");
    // Milliseconds are recognised by their size.
    let millis = BINANCE[0].replace("1672515782136001", "1672515782136");
    let Frame::Trades(trades) = Binance.frame("BTCUSDT", &millis).unwrap() else { panic!("{millis}") };
    assert_eq!(trades[0].time.as_micros(), 1_672_515_782_136_000);
}

#[test]
fn published_messages_of_kraken_are_read() {
    let frames: Vec<Frame> = KRAKEN.iter().map(|text| Kraken.frame("BTC/USD", text).unwrap()).collect();
    assert_eq!(frames[0], Frame::Status(None));
    assert_eq!(frames[1], Frame::Status(Some("cancel_only".to_owned())));
    assert_eq!(frames[2], Frame::Subscribed);
    assert!(matches!(frames[3], Frame::Rejected { is_permanent: true, .. }));
    assert!(matches!(frames[4], Frame::Rejected { is_permanent: false, .. }));
    assert_eq!(frames[5], Frame::Other);
    let sold = trade(4_665_906, 1_695_628_177_708_706, "26500.1", "0.00001", Side::Sell);
    assert_eq!(frames[6], Frame::Trades(vec![sold]));
}

#[test]
fn pages_of_history_name_the_ids_that_they_cover() {
    let from = Position { id: 28_400, after: Timestamp::from_secs(1_735_689_599).unwrap() };
    let page = Binance.history("BTCUSDT", Some(from), StatusCode::OK, BINANCE_PAGE).unwrap();
    assert_eq!(page.trades, [trade(28_457, 1_735_689_600_000_123, "4.000001", "12", Side::Sell)]);
    assert_eq!(page.covers, Some(28_400..=28_457));
    assert_eq!(Binance.history("BTCUSDT", Some(from), StatusCode::OK, "[]").unwrap().covers, None);
    assert!(Binance.history_path("BTCUSDT", Some(from)).ends_with("symbol=BTCUSDT&fromId=28400&limit=1000"));

    let page = Kraken.history("BTC/USD", Some(from), StatusCode::OK, KRAKEN_PAGE).unwrap();
    assert_eq!(page.trades[0], trade(61_044_952, 1_688_669_597_827_736, "30243.4", "0.34507674", Side::Buy));
    assert_eq!((page.trades.len(), page.covers), (3, Some(61_044_952..=61_044_956)));
    let path = Kraken.history_path("BTC/USD", Some(from));
    assert!(path.contains("pair=XBTUSD&since=1735689598999998000"), "{path}");
}

#[test]
fn only_a_fault_of_the_request_is_permanent() {
    let binance = |status: u16, body| {
        let status = StatusCode::from_u16(status).unwrap();
        Binance.history("FOOBAR", None, status, body).unwrap_err()
    };
    let invalid = binance(400, r#"{"code":-1121,"msg":"Invalid symbol."}"#);
    assert!(!invalid.retry().is_retryable() && invalid.report().contains("FOOBAR"), "{}", invalid.report());
    for status in [500, 502, 503] {
        assert!(binance(status, "<html>").retry().is_retryable());
    }
    let kraken = |error: &str| {
        let body = format!(r#"{{"error":["{error}"]}}"#);
        Kraken.history("FOO/BAR", None, StatusCode::OK, &body).unwrap_err()
    };
    let unknown = kraken("EQuery:Unknown asset pair");
    assert!(!unknown.retry().is_retryable() && unknown.report().contains("FOO/BAR"));
    assert!(matches!(kraken("EAPI:Rate limit exceeded").retry(), RetryAdvice::After(_)));
    assert!(kraken("EService:Unavailable").retry().is_retryable());
}

#[test]
fn symbols_of_instruments_follow_the_exchange() {
    let of = |protocol: &dyn Protocol, text: &str| protocol.symbol(&text.parse::<Instrument>().unwrap()).ok();
    assert_eq!(of(&Binance, "binance:BTC-USDT").as_deref(), Some("BTCUSDT"));
    assert_eq!(of(&Binance, "binance:BTCUSDT").as_deref(), Some("BTCUSDT"));
    assert_eq!(of(&Binance, "binance:A&B"), None);
    assert_eq!(of(&Binance, "binance:币安人生USDT").as_deref(), Some("币安人生USDT"));
    assert_eq!(of(&Binance, "binance:btc-usdt"), None, "symbols of Binance are in upper case");
    assert_eq!(of(&Kraken, "kraken:XBT-USD").as_deref(), Some("BTC/USD"));
    assert_eq!(of(&Kraken, "kraken:ETH/EUR").as_deref(), Some("ETH/EUR"));
    assert_eq!(of(&Kraken, "kraken:ETH-XBT").as_deref(), Some("ETH/BTC"));
    assert_eq!(of(&Kraken, "kraken:XDG-XBT").as_deref(), Some("DOGE/BTC"));
    assert_eq!(of(&Kraken, "kraken:AAPLx-USD").as_deref(), Some("AAPLx/USD"), "the case is kept");
    let path = Binance.history_path("币USDT", None);
    assert!(path.contains("?symbol=%E5%B8%81USDT&"), "{path}");
    let pair = |symbol| Kraken.history_path(symbol, None);
    assert!(pair("ETH/BTC").ends_with("?pair=ETHXBT"), "{}", pair("ETH/BTC"));
    assert!(pair("DOGE/BTC").ends_with("?pair=XDGXBT"), "{}", pair("DOGE/BTC"));
    assert!(pair("BTC/USD").ends_with("?pair=XBTUSD"), "{}", pair("BTC/USD"));
    assert!(
        pair("AAPLx/USD").ends_with("?pair=AAPLxUSD&asset_class=tokenized_asset"),
        "{}",
        pair("AAPLx/USD")
    );
    let from = Position { id: 1, after: Timestamp::from_secs(1_735_689_599).unwrap() };
    let path = Kraken.history_path("AAPLx/USD", Some(from));
    assert!(path.ends_with("&count=1000&asset_class=tokenized_asset"), "{path}");
    assert_eq!(of(&Kraken, "kraken:XBTUSD"), None);
    assert_eq!(of(&Kraken, "kraken:A-B-C"), None);
}

/// Ids at the bounds of their types and of records.
const EXTREMES: [u64; 6] = [0, 1, MAX_COUNTER - 1, MAX_COUNTER, MAX_COUNTER + 1, u64::MAX];

/// Returns a text with an extreme number in place of each of these ids, independently.
fn extreme(rng: &mut Rng, text: &str, ids: &[&str]) -> String {
    ids.iter().fold(text.to_owned(), |text, id| {
        let extreme = EXTREMES[rng.usize(..EXTREMES.len())].to_string();
        if rng.bool() { text.replace(id, &extreme) } else { text }
    })
}

/// Drives the arithmetic of ids like a feed: frames of the stream, then pages of the history for the gaps.
fn follow(published: &mut Published, rng: &mut Rng, frame: Vec<Trade>, page: &HistoryPage, at: Position) {
    let mut trades = published.hold_implausible(frame);
    if rng.u8(..4) == 0 {
        trades.extend(published.confirm(page.trades.last().map_or(0, |trade| trade.id)).0);
        published.begin();
    }
    let mut gaps: Vec<_> = published.gaps(1_000_000).into_iter().map(|gap| gap.ids).collect();
    gaps.push(at.id..=EXTREMES[rng.usize(..EXTREMES.len())].max(at.id));
    for ids in gaps {
        let Some(answer) = answer(page.clone(), at, *ids.end()) else { continue };
        trades.extend(answer.trades);
        assert!(answer.next.is_none_or(|next| next.id > at.id));
        for (ids, after) in answer.absent.into_iter().filter(|(ids, _)| *ids.end() <= MAX_COUNTER) {
            published.insert_absent(&ids, after, Duration::ZERO);
        }
    }
    for trade in trades {
        if trade.tick(&"x:Y".parse().unwrap()).is_ok() {
            published.insert(trade.id, trade.time);
        }
    }
}

/// Returns a text with random bytes in place of some of its own.
fn damaged(rng: &mut Rng, text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..4) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, b"{}[]\",:0e-\\"[rng.usize(..11)]),
            _ => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn damaged_messages_and_responses_never_panic() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let from = Position { id: 1, after: Timestamp::MIN };
    for round in 0..20_000 {
        let (protocol, symbol, frames, page): (&dyn Protocol, _, _, _) = if rng.bool() {
            (&Binance, "BTCUSDT", BINANCE, BINANCE_PAGE)
        } else {
            (&Kraken, "BTC/USD", KRAKEN, KRAKEN_PAGE)
        };
        let frame = match round % 4 {
            0 => (0..rng.usize(..100)).map(|_| rng.char(..)).collect(),
            1 => ["[", "{\"data\":", "{\"e\":", "9"][rng.usize(..4)].repeat(rng.usize(..2_000)),
            _ => {
                let frame = frames[rng.usize(..frames.len())];
                damaged(&mut rng, frame)
            }
        };
        if let Ok(Frame::Trades(trades)) = protocol.frame(symbol, &frame) {
            for trade in trades {
                let _ = trade.tick(&"x:Y".parse().unwrap());
            }
        }
        let page = damaged(&mut rng, page);
        let position = rng.bool().then_some(from);
        let _ = protocol.history(symbol, position, StatusCode::from_u16(rng.u16(100..600)).unwrap(), &page);
    }
}

#[tokio::test]
async fn extreme_ids_never_panic() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let datasets = Datasets::standard().with::<Coverage>().unwrap();
    let store = MemoryStore::new(MemoryStoreConfig::default().with_datasets(datasets)).unwrap();
    store.ensure_schema().await.unwrap();
    let ledger = Ledger::load(&store, &"x:Y".parse().unwrap()).await.unwrap();
    let mut published = Published::new(&ledger);
    for round in 0..20_000 {
        if round % 20 == 0 {
            published = Published::new(&ledger);
        }
        let at = Position {
            id: [1, 28_400, 61_044_953, rng.u64(..)][rng.usize(..4)],
            after: Timestamp::from_secs(1_600_000_000).unwrap(),
        };
        let is_binance = rng.bool();
        let (protocol, symbol, frame, page): (&dyn Protocol, _, _, _) = if is_binance {
            (&Binance, "BTCUSDT", BINANCE[0], BINANCE_PAGE)
        } else {
            (&Kraken, "BTC/USD", KRAKEN[6], KRAKEN_PAGE)
        };
        let frame = extreme(&mut rng, frame, &["12345", "4665906"]);
        let page = extreme(&mut rng, page, &["28457", "61044952", "61044953", "61044956"]);
        let Ok(Frame::Trades(frame)) = protocol.frame(symbol, &frame) else { panic!("{frame}") };
        let page = protocol.history(symbol, Some(at), StatusCode::OK, &page).unwrap();
        follow(&mut published, &mut rng, frame, &page, at);
    }
}

/// Serves one request of the history. The head and the body of the response follow after pauses.
fn serve(before_head: Duration, before_body: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4_096]).unwrap() > 0);
        std::thread::sleep(before_head);
        // The client may have closed the connection.
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BINANCE_PAGE.len());
        std::thread::sleep(before_body);
        let _ = stream.write_all(BINANCE_PAGE.as_bytes());
    });
    address
}

#[tokio::test]
async fn the_body_of_a_response_may_be_slower_than_its_head() {
    let history = async |before_head: Duration, before_body: Duration| {
        let base = serve(before_head, before_body);
        let client = RestClient::new(Arc::new(Binance), &base, Duration::ZERO).unwrap();
        client.history("BTCUSDT", None).await
    };
    let (none, pause) = (Duration::ZERO, Duration::from_secs(5));
    let (slow, late) = tokio::join!(history(none, pause), history(pause, none));
    assert_eq!(slow.unwrap().trades.len(), 1);
    assert_eq!(late.unwrap_err().retry(), RetryAdvice::Backoff);
}
