-- The datasets as people read them: names in place of ids.

CREATE VIEW ticks_view AS
SELECT i.exchange, i.symbol, t.ts, t.seq, t.price, t.quantity,
       CASE t.side WHEN 1 THEN 'buy' WHEN 2 THEN 'sell' END AS side
FROM ticks t
JOIN instruments i ON i.id = t.instrument_id;

CREATE VIEW quotes_view AS
SELECT i.exchange, i.symbol, q.ts, q.seq, q.bid_price, q.bid_size, q.ask_price, q.ask_size
FROM quotes q
JOIN instruments i ON i.id = q.instrument_id;

CREATE VIEW bars_view AS
SELECT i.exchange, i.symbol, b."interval", b.open_time, b.open, b.high, b.low, b.close, b.volume,
       b.quote_volume, b.count
FROM bars b
JOIN instruments i ON i.id = b.instrument_id;

CREATE VIEW snapshots_view AS
SELECT s.scope, s.ts, s.market_cap_usd, s.volume_24h_usd, s.btc_dominance, s.eth_dominance,
       s.active_currencies, s.markets, s.change_24h, s.change_7d, s.source
FROM snapshots s;
