-- The four datasets, and the instruments that three of them belong to. The primary keys are the only indexes.
-- Every name is found through the search_path, which holds the configured schema alone.

CREATE TABLE instruments (
    id       int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange text COLLATE "C" NOT NULL,
    symbol   text COLLATE "C" NOT NULL,
    UNIQUE (exchange, symbol)
);

-- side: 1 is buy, 2 is sell, of the taker.
CREATE TABLE ticks (
    instrument_id int            NOT NULL,
    ts            timestamptz    NOT NULL,
    seq           bigint         NOT NULL,
    price         numeric(38,18) NOT NULL,
    quantity      numeric(38,18),
    side          smallint,
    PRIMARY KEY (instrument_id, ts, seq)
);

CREATE TABLE quotes (
    instrument_id int         NOT NULL,
    ts            timestamptz NOT NULL,
    seq           bigint      NOT NULL,
    bid_price     numeric(38,18),
    bid_size      numeric(38,18),
    ask_price     numeric(38,18),
    ask_size      numeric(38,18),
    PRIMARY KEY (instrument_id, ts, seq)
);

CREATE TABLE bars (
    instrument_id int              NOT NULL,
    "interval"    text COLLATE "C" NOT NULL,
    open_time     timestamptz      NOT NULL,
    open          numeric(38,18)   NOT NULL,
    high          numeric(38,18)   NOT NULL,
    low           numeric(38,18)   NOT NULL,
    close         numeric(38,18)   NOT NULL,
    volume        numeric(38,18),
    quote_volume  numeric(38,18),
    count         bigint,
    PRIMARY KEY (instrument_id, "interval", open_time)
);

-- scope: '' is the whole market, else asset:SYMBOL or exchange:EXCHANGE.
CREATE TABLE snapshots (
    scope             text COLLATE "C" NOT NULL,
    ts                timestamptz      NOT NULL,
    market_cap_usd    numeric(38,18),
    volume_24h_usd    numeric(38,18),
    btc_dominance     numeric(38,18),
    eth_dominance     numeric(38,18),
    active_currencies bigint,
    markets           bigint,
    change_24h        numeric(38,18),
    change_7d         numeric(38,18),
    source            text,
    PRIMARY KEY (scope, ts)
);
