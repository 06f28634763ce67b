-- The series catalog: the instruments that have records in a dataset, with bounds of their times. Bounds may be too
-- wide, but never too narrow.

CREATE TABLE qi_series (
    dataset       text COLLATE "C" NOT NULL,
    exchange      text COLLATE "C" NOT NULL,
    symbol        text COLLATE "C" NOT NULL,
    instrument_id int              NOT NULL,
    first         timestamptz      NOT NULL,
    last          timestamptz      NOT NULL,
    epoch         bigint           NOT NULL,
    PRIMARY KEY (dataset, exchange, symbol)
);

-- complete: no program has written records without the catalog. epoch: the number of corrections.
CREATE TABLE qi_series_state (
    dataset  text COLLATE "C" PRIMARY KEY,
    epoch    bigint  NOT NULL,
    complete boolean NOT NULL
);

-- Runs before a statement of a program that does not maintain the catalog, for example an earlier version of the
-- library. The lock makes the completion of a catalog wait for the transaction.
CREATE FUNCTION qi_mark_incomplete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 7169));
    EXECUTE format('UPDATE %I.qi_series_state SET complete = false WHERE dataset = $1 AND complete', TG_TABLE_SCHEMA)
    USING TG_TABLE_NAME;
    RETURN NULL;
END
$$;

-- The function has the rights of its owner. Only the owner may attach it to a table.
REVOKE ALL ON FUNCTION qi_mark_incomplete() FROM PUBLIC;
