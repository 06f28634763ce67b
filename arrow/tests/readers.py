"""Reads the Parquet files of an archive with pyarrow, pandas, Polars and DuckDB, and prints what each reader found.

The argument is the glob pattern of the files. The output is one JSON object for each reader, with the values of all
columns, and with what the reader itself computes: the sums of the decimals, the numbers of nulls, and the time zones.
Decimals are in units of 10^-18 and times in microseconds.
"""

import decimal
import glob
import json
import sys

import duckdb
import pandas
import polars
import pyarrow
import pyarrow.compute
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


def describe(values, sums, nulls, zones):
    return {
        "values": {name: [text(value) for value in column] for name, column in values.items()},
        "sums": {name: text(value) for name, value in sums.items()},
        "nulls": {name: int(count) for name, count in nulls.items()},
        "zones": zones,
    }


def with_pyarrow():
    table = pyarrow.concat_tables([pyarrow.parquet.ParquetFile(file).read() for file in FILES])
    table.validate(full=True)
    fields = list(table.schema)
    return describe(
        {name: table[name].to_pylist() for name in table.column_names},
        {
            field.name: pyarrow.compute.sum(table[field.name]).as_py()
            for field in fields
            if field.type == pyarrow.decimal128(38, 18)
        },
        {name: table[name].null_count for name in table.column_names},
        {field.name: field.type.tz for field in fields if pyarrow.types.is_timestamp(field.type)},
    )


def with_pandas():
    frame = pandas.concat([pandas.read_parquet(file, dtype_backend="pyarrow") for file in FILES])
    types = {name: kind.pyarrow_dtype for name, kind in frame.dtypes.items()}
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    return describe(
        {name: table[name].to_pylist() for name in frame.columns},
        {name: frame[name].sum() for name, kind in types.items() if kind == pyarrow.decimal128(38, 18)},
        {name: frame[name].isna().sum() for name in frame.columns},
        {name: str(frame[name].dt.tz) for name, kind in types.items() if pyarrow.types.is_timestamp(kind)},
    )


def with_polars():
    frame = polars.read_parquet(FILES)
    types = frame.schema.items()
    return describe(
        {name: frame[name].to_list() for name in frame.columns},
        {name: frame[name].sum() for name, kind in types if kind == polars.Decimal(38, 18)},
        {name: frame[name].null_count() for name in frame.columns},
        {name: kind.time_zone for name, kind in types if kind == polars.Datetime},
    )


def with_duckdb():
    connection = duckdb.connect()
    connection.sql("SET TimeZone = 'UTC'")
    found = connection.sql(f"SELECT * FROM read_parquet({FILES!r})")
    types = {name: str(kind) for name, kind in zip(found.columns, found.types)}

    def compute(function, names):
        if not names:
            return {}
        calls = ", ".join(f'{function}("{name}")' for name in names)
        return dict(zip(names, found.aggregate(calls).fetchall()[0]))

    rows = found.fetchall()
    known = compute("count", found.columns)
    zoned = "TIMESTAMP WITH TIME ZONE"
    return describe(
        {name: [row[at] for row in rows] for at, name in enumerate(found.columns)},
        compute("sum", [name for name, kind in types.items() if kind == "DECIMAL(38,18)"]),
        {name: len(rows) - count for name, count in known.items()},
        {name: "UTC" if kind == zoned else kind for name, kind in types.items() if kind.startswith("TIMESTAMP")},
    )


print(json.dumps({
    "pyarrow": with_pyarrow(),
    "pandas": with_pandas(),
    "polars": with_polars(),
    "duckdb": with_duckdb(),
}))
