"""Bars of a recorded file, computed without the library, with exact decimals of Python.

usage: check_bars.py FILE binance|kraken|kraken-rest|candles INTERVAL
Prints the number of records, and then the CSV that the pipeline must export.
"""

import csv
import gzip
import sys
from datetime import datetime, timezone
from decimal import Decimal, getcontext

getcontext().prec = 80
SECONDS = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "4h": 14400, "1d": 86400}


def micros(text):
    return int(Decimal(text) * 1_000_000)


def records(path, kind):
    """Yields (time in us, order among ties, open, high, low, close, volume, count) of each line."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", newline="") as file:
        rows = csv.reader(file)
        if kind != "kraken":
            next(rows)
        for place, row in enumerate(rows):
            if kind == "binance":
                trade, price, quantity, millis, _ = row
                yield int(millis) * 1000, int(trade), *[Decimal(price)] * 4, Decimal(quantity), 1
            elif kind == "kraken":
                seconds, price, quantity = row
                yield micros(seconds), place, *[Decimal(price)] * 4, Decimal(quantity), 1
            elif kind == "kraken-rest":
                price, quantity, seconds, _, _, trade = row
                yield micros(seconds), int(trade), *[Decimal(price)] * 4, Decimal(quantity), 1
            else:
                time = datetime.strptime(row[0], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc)
                yield round(time.timestamp()) * 1_000_000, place, *map(Decimal, row[1:6]), None


def plain(number):
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def main():
    path, kind, interval = sys.argv[1:]
    width = SECONDS[interval] * 1_000_000
    rows = sorted(records(path, kind), key=lambda row: (row[0], row[1]))
    bars = {}
    for time, _, first, high, low, last, volume, count in rows:
        start = time - time % width
        bar = bars.get(start)
        if bar is None:
            bars[start] = [first, high, low, last, volume, count]
        else:
            bar[1], bar[2], bar[3], bar[4] = max(bar[1], high), min(bar[2], low), last, bar[4] + volume
            bar[5] = None if count is None else bar[5] + count
    print(len(rows))
    print("open_time_us,open,high,low,close,volume,count")
    for start, (first, high, low, last, volume, count) in sorted(bars.items()):
        figures = ",".join(plain(number) for number in (first, high, low, last, volume))
        print(f"{start},{figures},{'' if count is None else count}")


main()
