"""Records of a published file, computed without the library, with csv, json and decimal of Python.

usage: check_files.py FILE KIND DELIMITER HEADER UNIT COLUMNS [SYMBOL]
KIND is trades or candles, HEADER the number of lines before the data, UNIT the number of time units in a second, or
`date`. COLUMNS are indexes: for trades time,price,quantity,side,id (- for none); for candles
time,open,high,low,close,volume,count. A boolean side states whether the buyer was the maker.
With SYMBOL, only rows that have it in the second column are used.
Prints the count, the first and the last record, the sum of the quantities, and the bars (of one minute for trades, of
one hour for candles).
"""

import csv
import io
import json
import sys
from datetime import datetime
from decimal import Decimal, getcontext

getcontext().prec = 80


def plain(number):
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def rows(path, delimiter, header):
    data = open(path, "rb").read()
    if path.endswith(".json"):
        result = json.loads(data, parse_float=Decimal)["result"]
        (pair,) = (value for key, value in result.items() if key != "last")
        return [[str(field) for field in row] for row in pair]
    data = b"\n".join(data.splitlines()[header:]).decode()
    found = csv.reader(io.StringIO(data), delimiter=delimiter, skipinitialspace=True)
    return [[field.strip() for field in row] for row in found if row]


def micros(text, unit):
    if unit == "date":
        return round(datetime.fromisoformat(text).timestamp()) * 1_000_000
    return int(Decimal(text) * 1_000_000 / int(unit))


def side(text):
    words = {"true": "sell", "false": "buy", "b": "buy", "s": "sell"}
    return words.get(text.lower(), text.lower())


def main():
    path, kind, delimiter, header, unit, columns, *symbol = sys.argv[1:]
    places = [None if place == "-" else int(place) for place in columns.split(",")]
    records, ties = [], {}
    for row in rows(path, delimiter, int(header)):
        if symbol and row[1] != symbol[0]:
            continue
        at = lambda n: None if places[n] is None else row[places[n]]
        time = micros(at(0), unit)
        if kind == "trades":
            number = ties.get(time, 0)
            ties[time] = number + 1
            number = number if at(4) is None else int(at(4))
            records.append((time, number, Decimal(at(1)), Decimal(at(2)), "" if at(3) is None else side(at(3))))
        else:
            count = at(6)
            records.append((time, *(Decimal(at(n)) for n in range(1, 6)), "" if count is None else count))

    def show(record):
        return " ".join(plain(field) if isinstance(field, Decimal) else str(field) for field in record)

    print(len(records))
    print(show(records[0]))
    print(show(records[-1]))
    print(plain(sum(record[3 if kind == "trades" else 5] for record in records)))
    width = (60 if kind == "trades" else 3600) * 1_000_000
    bars = {}
    for record in sorted(records, key=lambda record: record[:2]):
        start = record[0] - record[0] % width
        if kind == "trades":
            first = high = low = last = record[2]
            volume, count = record[3], 1
        else:
            first, high, low, last, volume = record[1:6]
            count = None if record[6] == "" else int(record[6])
        bar = bars.setdefault(start, [first, high, low, last, Decimal(0), 0])
        bar[1], bar[2], bar[3], bar[4] = max(bar[1], high), min(bar[2], low), last, bar[4] + volume
        bar[5] = None if count is None else bar[5] + count
    for start, bar in sorted(bars.items()):
        count = "" if bar[5] is None else bar[5]
        print(start, *(plain(figure) for figure in bar[:5]), count)


main()
