"""Reads the Parquet files of an archive with pyarrow, Polars and DuckDB, and prints what each reader found.

The argument is the glob pattern of the files. The output is one JSON object for each reader: for each column its
number of nulls, and the sum of decimals, the first and last time in microseconds with the time zone, or all values.
"""

import decimal
import glob
import json
import sys

import duckdb
import polars
import pyarrow
import pyarrow.parquet

decimal.getcontext().prec = 80
PATTERN = sys.argv[1]
FILES = sorted(glob.glob(PATTERN))


def micros(time):
    epoch = time.__class__(1970, 1, 1, tzinfo=time.tzinfo)
    delta = time - epoch
    assert time.utcoffset().total_seconds() == 0, time
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def text(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, decimal.Decimal):
        return format(value.scaleb(18).to_integral_exact(), "f")
    if isinstance(value, dict):
        return {key: text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [text(item) for item in value]
    return micros(value)


def describe(columns):
    """Returns the values of all columns in an exact form, sorted by row."""
    return {name: [text(value) for value in values] for name, values in columns.items()}


def with_pyarrow():
    table = pyarrow.concat_tables([pyarrow.parquet.ParquetFile(file).read() for file in FILES])
    table.validate(full=True)
    return {name: table[name].to_pylist() for name in table.column_names}


def with_polars():
    frame = polars.read_parquet(FILES)
    return {name: frame[name].to_list() for name in frame.columns}


def with_duckdb():
    connection = duckdb.connect()
    connection.sql("SET TimeZone = 'UTC'")
    found = connection.sql(f"SELECT * FROM read_parquet({FILES!r})")
    rows = found.fetchall()
    return {name: [row[at] for row in rows] for at, name in enumerate(found.columns)}


def sums_in_duckdb():
    """The sums that the reader itself computes."""
    connection = duckdb.connect()
    found = connection.sql(f"SELECT * FROM read_parquet({FILES!r})")
    decimals = [name for name, kind in zip(found.columns, found.types) if str(kind) == "DECIMAL(38,18)"]
    if not decimals:
        return {}
    sums = ", ".join('sum("' + name + '")' for name in decimals)
    row = connection.sql(f"SELECT {sums} FROM found").fetchall()[0]
    return dict(zip(decimals, [text(value) for value in row]))


print(json.dumps({
    "pyarrow": describe(with_pyarrow()),
    "polars": describe(with_polars()),
    "duckdb": describe(with_duckdb()),
    "sums": sums_in_duckdb(),
}))
