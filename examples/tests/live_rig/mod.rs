//! Local servers that speak the protocols of Binance and Kraken, with faults. The frames are constructed after the
//! published documentation of both exchanges; the trades are simulated or recorded.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use qi_core::{Decimal, Instrument, PriceTick, Quantity, Side, Timestamp};
use qi_examples::pipeline::Addresses;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

/// The result of a served connection. A client that ends in the middle is an error, and no failure of the server.
type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// A trade of the exchange, with its exact time.
#[derive(Debug, Clone)]
pub(crate) struct SourceTrade {
    pub(crate) id: u64,
    pub(crate) nanos: i64,
    pub(crate) price: Decimal,
    pub(crate) quantity: Decimal,
    pub(crate) side: Side,
}

impl SourceTrade {
    pub(crate) fn micros(&self) -> i64 {
        self.nanos / 1_000
    }

    /// Returns the time in seconds as a floating-point number, in the form of Kraken's history.
    fn float_seconds(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "Kraken's history has this precision")]
        let seconds = self.nanos as f64 / 1e9;
        let text = format!("{seconds:.7}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }

    fn is_sell(&self) -> bool {
        self.side == Side::Sell
    }
}

/// Returns simulated trades. The exchange skips the ids of `skipped`.
pub(crate) fn simulated(seed: u64, first: u64, count: u64, skipped: &[u64]) -> Vec<SourceTrade> {
    let mut rng = Rng::with_seed(seed);
    let (mut nanos, mut cents) = (1_764_000_000_000_000_000_i64, 9_000_000_i64);
    let trade = |id| {
        // Several trades of one order have the same time.
        nanos += if rng.u8(..3) == 0 { rng.i64(1..40_000_000) } else { 0 };
        cents += rng.i64(-50..=50);
        SourceTrade {
            id,
            nanos,
            price: format!("{}.{:02}", cents / 100, cents % 100).parse().unwrap(),
            quantity: format!("0.{:08}", rng.u64(1..100_000_000)).parse().unwrap(),
            side: if rng.bool() { Side::Buy } else { Side::Sell },
        }
    };
    (first..first + count).filter(|id| !skipped.contains(id)).map(trade).collect()
}

/// Reads a recorded file with ids: of Binance with times in milliseconds, of Kraken with times in seconds.
pub(crate) fn recorded(path: &Path) -> Vec<SourceTrade> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let cells: BTreeMap<_, _> = header.iter().copied().zip(line.split(',')).collect();
            let nanos = match cells.get("time_s") {
                Some(seconds) => {
                    let (seconds, places) = seconds.split_once('.').unwrap_or((seconds, "0"));
                    format!("{seconds}{places:0<9}").parse().unwrap()
                }
                None => cells["time_ms"].parse::<i64>().unwrap() * 1_000_000,
            };
            let is_sell =
                cells.get("side").map_or_else(|| cells["buyer_maker"] == "true", |side| *side == "sell");
            SourceTrade {
                id: cells["trade_id"].parse().unwrap(),
                nanos,
                price: cells["price"].parse().unwrap(),
                quantity: cells["quantity"].parse().unwrap(),
                side: if is_sell { Side::Sell } else { Side::Buy },
            }
        })
        .collect()
}

/// The faults of a server.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The number of connections that are still cut or stalled.
    pub(crate) cuts: AtomicUsize,
    /// True for garbage, repeated, reordered and omitted frames, and for failed requests.
    pub(crate) is_noisy: bool,
    /// The text with which the next subscriptions are rejected.
    pub(crate) rejections: Mutex<Vec<&'static str>>,
    /// The number of subscriptions that are not acknowledged.
    pub(crate) silent: AtomicUsize,
    /// True to reject the symbol in the REST interface.
    pub(crate) unknown_symbol: bool,
    /// The number of connections that report maintenance before `online`.
    pub(crate) maintenance: AtomicUsize,
    /// The number of connections that announce a shutdown and close.
    pub(crate) shutdowns: AtomicUsize,
    /// The number of connections that answer pings and send no trades.
    pub(crate) idle: AtomicUsize,
    /// The ids of invented trades that every connection sends first.
    pub(crate) invented: Vec<u64>,
    /// The number of pages of the history without the trades whose ids end with 5.
    pub(crate) incomplete_pages: AtomicUsize,
    /// The number of connections that are rejected with HTTP status 429 and a pause of [`PAUSE`].
    pub(crate) limited_connections: AtomicUsize,
    /// True to leave the first request after each subscription unanswered.
    pub(crate) is_history_stalled: bool,
}

/// The pause that a rejected connection requires.
pub(crate) const PAUSE: Duration = Duration::from_secs(40);

fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// A server of one exchange with one instrument.
pub(crate) struct Exchange {
    pub(crate) instrument: Instrument,
    pub(crate) trades: Vec<SourceTrade>,
    pub(crate) faults: Faults,
    /// The number of trades that have happened.
    released: watch::Sender<usize>,
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) limited: AtomicU64,
    /// The times of requests and connections. True for a connection that was rejected.
    pub(crate) arrivals: Mutex<Vec<(Instant, bool)>>,
    /// The time of the latest acknowledged subscription.
    pub(crate) subscribed: Mutex<Option<Instant>>,
    /// True if the next request is not answered.
    stalls_next: AtomicBool,
    /// Cuts the present connection.
    pub(crate) cut_now: Notify,
    rng: Mutex<Rng>,
}

impl Exchange {
    pub(crate) fn new(instrument: &str, trades: Vec<SourceTrade>, faults: Faults, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            instrument: instrument.parse().unwrap(),
            trades,
            faults,
            released: watch::Sender::new(0),
            connections: AtomicU64::default(),
            requests: AtomicU64::default(),
            limited: AtomicU64::default(),
            arrivals: Mutex::default(),
            subscribed: Mutex::default(),
            stalls_next: AtomicBool::default(),
            cut_now: Notify::new(),
            rng: Mutex::new(Rng::with_seed(seed)),
        })
    }

    /// Lets trades happen: all up to this number.
    pub(crate) fn release(&self, trades: usize) {
        self.released.send_modify(|released| *released = trades.min(self.trades.len()).max(*released));
    }

    /// Lets all trades happen: `batch` in every 10 ms, and many after the last cut.
    pub(crate) async fn release_all(&self, batch: usize) {
        loop {
            let (released, cuts) = (*self.released.borrow(), self.faults.cuts.load(Ordering::SeqCst));
            if released == self.trades.len() {
                return;
            }
            self.release(released + if cuts > 0 { batch } else { 20 * batch });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns a trade as the tick that a store has.
    pub(crate) fn tick(&self, trade: &SourceTrade) -> PriceTick {
        let ts = Timestamp::from_micros(trade.micros()).unwrap();
        let price = trade.price.to_string().parse().unwrap();
        let quantity: Quantity = trade.quantity.to_string().parse().unwrap();
        let tick = PriceTick::new(self.instrument.clone(), ts, trade.id, price).unwrap();
        tick.with_quantity(quantity).with_side(trade.side)
    }

    fn is_kraken(&self) -> bool {
        self.instrument.exchange().as_str() == "kraken"
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    /// Starts the servers, which run as long as the tokio runtime.
    pub(crate) async fn serve(self: &Arc<Self>) -> Addresses {
        let (stream, rest) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let addresses = Addresses {
            stream: format!("ws://{}/ws", stream.local_addr().unwrap()),
            rest: format!("http://{}", rest.local_addr().unwrap()),
            request_interval: Duration::from_millis(20),
        };
        let exchange = self.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = stream.accept().await {
                let exchange = exchange.clone();
                tokio::spawn(async move {
                    let is_limited = take(&exchange.faults.limited_connections);
                    exchange.arrivals.lock().unwrap().push((Instant::now(), is_limited));
                    if is_limited {
                        drop(reject(socket).await);
                    } else if let Ok(socket) = accept_async(socket).await {
                        exchange.connections.fetch_add(1, Ordering::SeqCst);
                        drop(exchange.stream(socket).await);
                    }
                });
            }
        });
        let exchange = self.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = rest.accept().await {
                let exchange = exchange.clone();
                tokio::spawn(async move {
                    let respond = |request: Request<Incoming>| {
                        let is_stalled = exchange.stalls_next.swap(false, Ordering::SeqCst);
                        let response =
                            exchange.respond(request.uri().path(), request.uri().query().unwrap_or(""));
                        async move {
                            if is_stalled {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, Infallible>(response)
                        }
                    };
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(socket), service_fn(respond)).await);
                });
            }
        });
        addresses
    }

    async fn stream(&self, mut socket: WebSocketStream<TcpStream>) -> Served {
        if self.is_kraken() {
            let status = |system: &str| {
                Message::text(format!(
                    r#"{{"channel":"status","type":"update","data":[{{"api_version":"v2","connection_id":1,"system":"{system}","version":"2.0.10"}}]}}"#
                ))
            };
            if take(&self.faults.maintenance) {
                socket.send(status("maintenance")).await?;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            socket.send(status("online")).await?;
        }
        let subscription = loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => break text,
                Some(Ok(_)) => {}
                _ => return Ok(()),
            }
        };
        assert!(
            subscription.contains(if self.is_kraken() { "BTC/USD" } else { "btcusdt@trade" }),
            "{subscription}"
        );
        let rejection = self.faults.rejections.lock().unwrap().pop();
        if let Some(reason) = rejection {
            let text = if self.is_kraken() {
                format!(
                    r#"{{"error":"{reason}","method":"subscribe","req_id":1,"success":false,"symbol":"BTC/USD"}}"#
                )
            } else {
                format!(r#"{{"error":{reason},"id":1}}"#)
            };
            socket.send(Message::text(text)).await?;
            return self.stall(socket).await;
        }
        if take(&self.faults.silent) {
            return self.stall(socket).await;
        }
        self.send_trades(socket).await
    }

    /// Acknowledges the subscription and sends trades until the connection is cut.
    async fn send_trades(&self, mut socket: WebSocketStream<TcpStream>) -> Served {
        let mut released = self.released.subscribe();
        let mut at = *released.borrow_and_update();
        self.stalls_next.store(self.faults.is_history_stalled, Ordering::SeqCst);
        if self.is_kraken() {
            let ack = r#"{"method":"subscribe","req_id":1,"result":{"channel":"trade","snapshot":true,"symbol":"BTC/USD"},"success":true,"time_in":"2025-11-24T16:00:00.000000Z","time_out":"2025-11-24T16:00:00.000001Z"}"#;
            socket.send(Message::text(ack)).await?;
            let snapshot = &self.trades[at.saturating_sub(5)..at];
            socket.send(Message::text(Self::kraken_frame(snapshot, "snapshot"))).await?;
        } else {
            socket.send(Message::text(r#"{"result":null,"id":1}"#)).await?;
        }
        *self.subscribed.lock().unwrap() = Some(Instant::now());
        for id in &self.faults.invented {
            let trade = SourceTrade { id: *id, ..self.trades[0].clone() };
            let frame =
                if self.is_kraken() { Self::kraken_frame(&[trade], "update") } else { binance_frame(&trade) };
            socket.send(Message::text(frame)).await?;
        }
        if take(&self.faults.idle) {
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
            return Ok(());
        }
        if take(&self.faults.shutdowns) {
            socket.send(Message::text(r#"{"e":"serverShutdown","E":1770123456789}"#)).await?;
            return self.stall(socket).await;
        }
        // The number of frames, or of 20 ms, after which the connection is cut.
        let mut cut_after = take(&self.faults.cuts).then(|| self.draw(|rng| rng.usize(1..60)));
        let mut heartbeats = tokio::time::interval(Duration::from_millis(100));
        let mut held: Option<Message> = None;
        loop {
            tokio::select! {
                changed = released.changed() => changed?,
                () = self.cut_now.notified() => return self.cut(socket).await,
                message = socket.next() => match message {
                    // The library answers pings.
                    Some(Ok(_)) => continue,
                    _ => return Ok(()),
                },
                _ = heartbeats.tick() => {
                    // A connection without trades is cut too.
                    match cut_after.as_mut() {
                        Some(0..5) => return self.cut(socket).await,
                        Some(left) => *left -= 5,
                        None => {}
                    }
                    if let Some(held) = held.take() {
                        socket.send(held).await?;
                    }
                    if self.is_kraken() {
                        socket.send(Message::text(r#"{"channel":"heartbeat"}"#)).await?;
                    }
                    continue;
                }
            }
            let end = *released.borrow_and_update();
            let mut frames = Vec::new();
            while at < end {
                // Kraken sends several trades in one frame.
                let size = if self.is_kraken() { self.draw(|rng| rng.usize(1..4)).min(end - at) } else { 1 };
                let trades = &self.trades[at..at + size];
                at += size;
                frames.push(Message::text(if self.is_kraken() {
                    Self::kraken_frame(trades, "update")
                } else {
                    binance_frame(&trades[0])
                }));
            }
            for frame in frames {
                match cut_after.as_mut() {
                    Some(0) => return self.cut(socket).await,
                    Some(left) => *left -= 1,
                    None => {}
                }
                if !self.faults.is_noisy {
                    socket.feed(frame).await?;
                    continue;
                }
                match self.draw(|rng| rng.u8(..40)) {
                    0 => socket.feed(self.garbage(&frame)).await?,
                    1 => socket.feed(frame.clone()).await?,
                    // Omits the frame.
                    2 => continue,
                    // Sends the frame after the next one.
                    3 if held.is_none() => {
                        held = Some(frame);
                        continue;
                    }
                    _ => {}
                }
                socket.feed(frame).await?;
                if let Some(held) = held.take_if(|_| self.draw(Rng::bool)) {
                    socket.feed(held).await?;
                }
            }
            socket.flush().await?;
        }
    }

    /// Ends a connection: a reset, an orderly close, a message above the limit, or silence.
    async fn cut(&self, mut socket: WebSocketStream<TcpStream>) -> Served {
        match self.draw(|rng| rng.u8(..4)) {
            0 => Ok(socket.get_ref().set_zero_linger()?),
            1 => Ok(socket.close(None).await?),
            2 => {
                socket.send(Message::text("x".repeat(200_000))).await?;
                self.stall(socket).await
            }
            _ => self.stall(socket).await,
        }
    }

    /// Keeps a connection open without reading or sending, until the client has certainly given up.
    async fn stall(&self, socket: WebSocketStream<TcpStream>) -> Served {
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(socket);
        Ok(())
    }

    fn garbage(&self, frame: &Message) -> Message {
        self.draw(|rng| match rng.u8(..5) {
            0 => Message::text("{\"e\":\"trade\""),
            1 => Message::binary((0..rng.usize(..200)).map(|_| rng.u8(..)).collect::<Vec<_>>()),
            2 => Message::text((0..rng.usize(..200)).map(|_| rng.char(..)).collect::<String>()),
            3 => Message::text("[".repeat(10_000)),
            _ => {
                let text = frame.to_text().unwrap();
                Message::text(text[..rng.usize(..text.len())].to_owned())
            }
        })
    }

    fn kraken_frame(trades: &[SourceTrade], kind: &str) -> String {
        let data: Vec<String> = trades
            .iter()
            .map(|trade| {
                let time = Timestamp::from_micros(trade.micros()).unwrap();
                format!(
                    r#"{{"symbol":"BTC/USD","side":"{}","price":{},"qty":{},"ord_type":"market","trade_id":{},"timestamp":"{time}"}}"#,
                    if trade.is_sell() { "sell" } else { "buy" },
                    trade.price,
                    trade.quantity,
                    trade.id,
                )
            })
            .collect();
        format!(r#"{{"channel":"trade","type":"{kind}","data":[{}]}}"#, data.join(","))
    }

    fn respond(&self, path: &str, query: &str) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.arrivals.lock().unwrap().push((Instant::now(), false));
        let response = |status: u16, body: String| {
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        };
        if self.faults.unknown_symbol {
            return if self.is_kraken() {
                response(200, r#"{"error":["EQuery:Unknown asset pair"]}"#.to_owned())
            } else {
                response(400, r#"{"code":-1121,"msg":"Invalid symbol."}"#.to_owned())
            };
        }
        if self.faults.is_noisy {
            match self.draw(|rng| rng.u8(..12)) {
                0 => {
                    self.limited.fetch_add(1, Ordering::SeqCst);
                    let code = if self.draw(Rng::bool) { 429 } else { 418 };
                    let mut limited = response(code, "{}".to_owned());
                    limited.headers_mut().insert("retry-after", "1".parse().unwrap());
                    return limited;
                }
                1 => return response(503, "<html>".to_owned()),
                2 => return response(200, "[{".to_owned()),
                _ => {}
            }
        }
        let parameters: BTreeMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let released = &self.trades[..*self.released.borrow()];
        let mut page: Vec<SourceTrade> = match path {
            "/api/v3/trades" => {
                assert_eq!(parameters["symbol"], "BTCUSDT");
                released[released.len().saturating_sub(1)..].to_vec()
            }
            "/api/v3/historicalTrades" => {
                let from: u64 = parameters["fromId"].parse().unwrap();
                released.iter().filter(|trade| trade.id >= from).take(1_000).cloned().collect()
            }
            "/0/public/Trades" => {
                assert_eq!(parameters["pair"], "XBTUSD");
                match parameters.get("since") {
                    Some(since) => {
                        let since: i64 = since.parse().unwrap();
                        released.iter().filter(|trade| trade.nanos > since).take(1_000).cloned().collect()
                    }
                    None => released[released.len().saturating_sub(1_000)..].to_vec(),
                }
            }
            _ => return response(404, String::new()),
        };
        let is_for_gap = parameters.contains_key("fromId") || parameters.contains_key("since");
        if is_for_gap && take(&self.faults.incomplete_pages) {
            page.retain(|trade| trade.id % 10 != 5);
        }
        response(200, if self.is_kraken() { kraken_page(&page) } else { binance_page(&page) })
    }
}

/// Rejects the request for a WebSocket connection.
async fn reject(mut socket: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(socket.read_u8().await?);
    }
    let pause = PAUSE.as_secs();
    let response =
        format!("HTTP/1.1 429 Too Many Requests\r\nretry-after: {pause}\r\ncontent-length: 0\r\n\r\n");
    socket.write_all(response.as_bytes()).await
}

fn binance_frame(trade: &SourceTrade) -> String {
    let time = trade.micros();
    format!(
        r#"{{"e":"trade","E":{time},"s":"BTCUSDT","t":{},"p":"{}","q":"{}","T":{time},"m":{},"M":true}}"#,
        trade.id,
        trade.price,
        trade.quantity,
        trade.is_sell(),
    )
}

fn binance_page(trades: &[SourceTrade]) -> String {
    let rows = trades.iter().map(|trade| {
        format!(
            r#"{{"id":{},"price":"{}","qty":"{}","quoteQty":"1","time":{},"isBuyerMaker":{},"isBestMatch":true}}"#,
            trade.id,
            trade.price,
            trade.quantity,
            trade.micros(),
            trade.is_sell(),
        )
    });
    format!("[{}]", rows.collect::<Vec<_>>().join(","))
}

fn kraken_page(trades: &[SourceTrade]) -> String {
    let rows = trades.iter().map(|trade| {
        format!(
            r#"["{}","{}",{},"{}","l","",{}]"#,
            trade.price,
            trade.quantity,
            trade.float_seconds(),
            if trade.is_sell() { "s" } else { "b" },
            trade.id,
        )
    });
    let last = trades.last().map_or(0, |trade| trade.nanos);
    format!(
        r#"{{"error":[],"result":{{"XXBTZUSD":[{}],"last":"{last}"}}}}"#,
        rows.collect::<Vec<_>>().join(",")
    )
}
