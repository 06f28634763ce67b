//! The layout of a picture: boxes, lines and labels in pixels.

use qi_core::{Interval, Result, Timestamp};

use super::{axis, paint::text_width};

/// The bars of an instrument and their range.
#[derive(Debug, Clone)]
pub(super) struct Picture {
    pub(super) title: String,
    /// The last close.
    pub(super) close: String,
    pub(super) interval: Interval,
    /// The start of the first interval.
    pub(super) start: Timestamp,
    /// The number of intervals.
    pub(super) slots: i64,
    /// The candles by their slots.
    pub(super) candles: Vec<Candle>,
}

/// A bar in the slot of its open time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candle {
    pub(super) slot: i64,
    pub(super) open: f64,
    pub(super) high: f64,
    pub(super) low: f64,
    pub(super) close: f64,
    pub(super) volume: Option<f64>,
}

impl Picture {
    /// Returns the first slot and the end of each run of slots without data.
    pub(super) fn gaps(&self) -> Vec<(i64, i64)> {
        let mut next = 0;
        let ends = self.candles.iter().map(|candle| candle.slot).chain([self.slots]);
        let gaps = ends.filter_map(|slot| {
            let from = std::mem::replace(&mut next, slot + 1);
            (from < slot).then_some((from, slot))
        });
        gaps.collect()
    }

    /// Returns the number of slots without data.
    pub(super) fn missing(&self) -> i64 {
        self.gaps().iter().map(|(from, to)| to - from).sum()
    }

    fn micros(&self, slot: i64) -> i64 {
        self.start.as_micros().saturating_add(slot.saturating_mul(self.interval.as_micros()))
    }

    fn time(&self, slot: i64) -> Result<Timestamp> {
        Timestamp::from_micros(self.micros(slot).min(Timestamp::MAX.as_micros()))
    }

    /// Returns the start of the first slot and the end of the last slot.
    pub(super) fn range(&self) -> Result<(Timestamp, Timestamp)> {
        Ok((self.start, self.time(self.slots)?))
    }

    fn moment(&self, slot: i64) -> String {
        self.time(slot).map(axis::moment).unwrap_or_default()
    }
}

type Point = (i32, i32);
type Color = (u8, u8, u8);

/// A visible item. The end of a box is exclusive.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Box {
        from: Point,
        to: Point,
        color: Color,
    },
    Line {
        from: Point,
        to: Point,
        color: Color,
    },
    /// A text in one line, whose vertical middle is at the point.
    Text {
        at: Point,
        text: String,
        size: i32,
        align: Align,
        color: Color,
    },
}

/// The side of a text that its point names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Center,
    Right,
}

const INK: Color = (33, 37, 41);
const GREY: Color = (108, 117, 125);
const GRID: Color = (233, 236, 239);
const UP: Color = (38, 166, 154);
const DOWN: Color = (239, 83, 80);
const UP_VOLUME: Color = (147, 210, 204);
const DOWN_VOLUME: Color = (247, 169, 167);
const GAP: Color = (255, 236, 179);
const GAP_EDGE: Color = (255, 143, 0);

const TITLE: i32 = 20;
const SMALL: i32 = 13;
/// The height of a line of small text.
const LINE: i32 = 20;
const MARGIN: i32 = 16;
const HEADER: i32 = 64;
const FOOTER: i32 = 32;
/// The least width of a candle with its distance to the next one. Bars that have less room are joined.
const MIN_CANDLE: f64 = 4.0;
const MAX_CANDLE: f64 = 40.0;

/// Returns the items of a chart, or of its gaps alone.
pub(super) fn layout(picture: &Picture, (width, height): (u32, u32), gaps_only: bool) -> Vec<Item> {
    let size = (i32::try_from(width).unwrap_or(i32::MAX), i32::try_from(height).unwrap_or(i32::MAX));
    let mut layout = Layout { picture, size, left: MARGIN, right: size.0 - MARGIN, items: Vec::new() };
    if gaps_only {
        layout.gaps();
    } else {
        layout.chart();
    }
    layout.items
}

struct Layout<'a> {
    picture: &'a Picture,
    size: Point,
    /// The horizontal bounds of the plot.
    left: i32,
    right: i32,
    items: Vec<Item>,
}

impl Layout<'_> {
    fn chart(&mut self) {
        let picture = self.picture;
        let candles = &picture.candles;
        let has_volume = candles.iter().any(|candle| candle.volume.is_some());
        let (top, bottom) = (HEADER, self.size.1 - FOOTER);
        let split = if has_volume { top + (bottom - top) * 3 / 4 } else { bottom };
        let low = candles.iter().map(|candle| candle.low).fold(f64::INFINITY, f64::min);
        let high = candles.iter().map(|candle| candle.high).fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = padded(low, high);
        let prices = Scale { low, high, top, bottom: split - 8 };
        let labels = axis::numbers(low, high, usize::try_from((split - top) / 50).unwrap_or(1));
        // No label of a volume is longer than these.
        let volume_labels = ["volume", "1.0e-10"];
        let widths = labels.iter().map(|(_, label)| label.as_str()).chain(volume_labels);
        let widths = widths.map(|label| text_width(label, SMALL));
        self.right = self.size.0 - MARGIN - widths.max().unwrap_or(0) - 8;

        // Bars that have less room than a candle needs are joined.
        let room = f64::from(self.right - self.left) / float(self.picture.slots);
        let joined = if room < MIN_CANDLE { integer((MIN_CANDLE / room).ceil()) } else { 1 };
        let groups = grouped(candles, joined);
        self.header(joined);
        self.times(bottom);
        self.mark_gaps(top, bottom);
        for (value, label) in labels {
            let y = prices.y(value);
            self.line((self.left, y), (self.right, y), GRID);
            self.text((self.right + 8, y), label, SMALL, Align::Left, GREY);
        }
        let peak = groups.iter().filter_map(|candle| candle.volume).fold(0.0, f64::max);
        let volumes = Scale { low: 0.0, high: if peak > 0.0 { peak } else { 1.0 }, top: split + 8, bottom };
        if has_volume {
            self.line((self.left, bottom), (self.right, bottom), GRID);
            self.text((self.right + 8, volumes.y(peak)), axis::volume(peak), SMALL, Align::Left, GREY);
            self.text((self.right + 8, bottom - 8), "volume".to_owned(), SMALL, Align::Left, GREY);
        }
        let half = ((room * float(joined)).min(MAX_CANDLE) * 0.35).max(1.0);
        for candle in groups {
            let middle = self.x(candle.slot * joined)
                + (self.x((candle.slot + 1) * joined) - self.x(candle.slot * joined)) / 2.0;
            let (from, to) = (pixel(middle - half), pixel(middle + half).max(pixel(middle - half) + 1));
            let is_up = candle.close >= candle.open;
            let (color, pale) = if is_up { (UP, UP_VOLUME) } else { (DOWN, DOWN_VOLUME) };
            let center = i32::midpoint(from, to);
            self.line((center, prices.y(candle.high)), (center, prices.y(candle.low)), color);
            let (above, below) =
                (prices.y(candle.open.max(candle.close)), prices.y(candle.open.min(candle.close)));
            self.fill((from, above), (to, below.max(above + 1)), color);
            if let Some(volume) = candle.volume.filter(|volume| *volume > 0.0) {
                let above = volumes.y(volume).min(bottom - 1);
                self.fill((from, above), (to, bottom), pale);
            }
        }
    }

    /// Draws a band with the slots that have data and the gaps, and lists the longest gaps.
    fn gaps(&mut self) {
        self.header(1);
        let (top, bottom) = (HEADER, (HEADER + 72).min(self.size.1 - FOOTER));
        self.fill((self.left, top), (self.right, bottom), UP_VOLUME);
        for (from, to) in self.gap_pixels() {
            self.fill((from, top), (to, bottom), GAP_EDGE);
        }
        self.times(bottom);
        let mut gaps = self.picture.gaps();
        gaps.sort_by_key(|(from, to)| (from - to, *from));
        let lines = (self.size.1 - bottom - FOOTER - MARGIN) / LINE - 1;
        let lines = usize::try_from(lines.max(0)).unwrap_or(0);
        let y = bottom + FOOTER + LINE;
        let heading = if gaps.is_empty() { "no gaps" } else { "longest gaps (UTC)" };
        self.text((self.left, y), heading.to_owned(), SMALL, Align::Left, INK);
        for ((from, to), line) in gaps.into_iter().take(lines).zip(1..) {
            let (start, end) = (self.picture.moment(from), self.picture.moment(to));
            let count = to - from;
            let unit = if count == 1 { "interval" } else { "intervals" };
            let text = format!("{start} – {end}   {count} {unit}");
            self.text((self.left, y + line * LINE), text, SMALL, Align::Left, GREY);
        }
    }

    /// Draws the title, the last close, the range and the numbers of bars and gaps.
    fn header(&mut self, joined: i64) {
        let picture = self.picture;
        let Picture { title, close, interval, candles, slots, .. } = picture;
        let (start, end) = (self.picture.moment(0), self.picture.moment(*slots));
        let (gaps, missing, width) =
            (self.picture.gaps().len(), self.picture.missing(), self.size.0 - 2 * MARGIN);
        let close = fitted(&format!("close {close}"), SMALL, width * 2 / 3);
        let close_width = text_width(&close, SMALL);
        let title = fitted(title, TITLE, width - close_width - MARGIN);
        self.text((MARGIN, 24), title, TITLE, Align::Left, INK);
        self.text((self.size.0 - MARGIN, 24), close, SMALL, Align::Right, INK);
        let (bars, s) = (candles.len(), |count| if count == 1 { "" } else { "s" });
        let mut line = format!("{start} – {end} UTC · {bars} bar{}", s(bars));
        if joined > 1 {
            line = format!("{line} · a candle is {joined} × {interval}");
        }
        if gaps > 0 {
            let intervals = if missing == 1 { "interval" } else { "intervals" };
            line = format!("{line} · {gaps} gap{}: {missing} {intervals} without data", s(gaps));
            self.fill((MARGIN, 41), (MARGIN + 10, 51), GAP_EDGE);
            let line = fitted(&line, SMALL, width - 16);
            self.text((MARGIN + 16, 46), line, SMALL, Align::Left, GREY);
        } else {
            self.text((MARGIN, 46), fitted(&line, SMALL, width), SMALL, Align::Left, GREY);
        }
    }

    /// Draws the labels of the time axis below `y`. A label that would touch its neighbour is left out.
    fn times(&mut self, y: i32) {
        let (start, end) = (self.picture.start.as_micros(), self.picture.micros(self.picture.slots));
        let room = text_width("2024-01-31", SMALL) + 24;
        let count = usize::try_from((self.right - self.left) / room).unwrap_or(1);
        let mut taken = i32::MIN;
        for (at, label) in axis::times(start, end, count) {
            let x = pixel(
                f64::from(self.left)
                    + f64::from(self.right - self.left) * float(at - start) / float(end - start),
            );
            let half = text_width(&label, SMALL) / 2 + 1;
            let middle = x.clamp(4 + half, (self.size.0 - 4 - half).max(4 + half));
            if middle - half < taken {
                continue;
            }
            taken = middle + half + 8;
            self.line((x, HEADER), (x, y + 4), GRID);
            self.text((middle, y + 16), label, SMALL, Align::Center, GREY);
        }
    }

    fn mark_gaps(&mut self, top: i32, bottom: i32) {
        for (from, to) in self.gap_pixels() {
            self.fill((from, top), (to, bottom), GAP);
            self.fill((from, bottom), (to, bottom + 4), GAP_EDGE);
        }
    }

    /// Returns the horizontal ranges of the gaps. Ranges that touch are joined, so the number of ranges is bounded.
    fn gap_pixels(&self) -> Vec<(i32, i32)> {
        let mut ranges: Vec<(i32, i32)> = Vec::new();
        for (from, to) in self.picture.gaps() {
            let from = pixel(self.x(from)).min(self.right - 1);
            let to = pixel(self.x(to)).max(from + 1);
            match ranges.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => ranges.push((from, to)),
            }
        }
        ranges
    }

    /// Returns the left side of a slot.
    fn x(&self, slot: i64) -> f64 {
        let share = float(slot.min(self.picture.slots)) / float(self.picture.slots);
        f64::from(self.left) + f64::from(self.right - self.left) * share
    }

    fn fill(&mut self, from: Point, to: Point, color: Color) {
        self.items.push(Item::Box { from, to, color });
    }

    fn line(&mut self, from: Point, to: Point, color: Color) {
        self.items.push(Item::Line { from, to, color });
    }

    fn text(&mut self, at: Point, text: String, size: i32, align: Align, color: Color) {
        self.items.push(Item::Text { at, text, size, align, color });
    }
}

/// The vertical positions of values.
struct Scale {
    low: f64,
    high: f64,
    top: i32,
    bottom: i32,
}

impl Scale {
    fn y(&self, value: f64) -> i32 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        pixel(f64::from(self.bottom) - f64::from(self.bottom - self.top) * share)
    }
}

/// Returns a range with room at both sides. A flat price is in its middle.
fn padded(low: f64, high: f64) -> (f64, f64) {
    // The least distance that 64-bit floating point numbers can divide into labels.
    let least = (high.abs().max(low.abs()) * 1e-9).max(1e-17);
    let room = if high - low < least { (high.abs() * 0.005).max(least) } else { (high - low) * 0.04 };
    // Prices are not negative.
    (if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room)
}

/// Joins the candles of `count` slots.
fn grouped(candles: &[Candle], count: i64) -> Vec<Candle> {
    let mut groups: Vec<Candle> = Vec::new();
    for candle in candles {
        let slot = candle.slot / count;
        match groups.last_mut() {
            Some(last) if last.slot == slot => {
                last.high = last.high.max(candle.high);
                last.low = last.low.min(candle.low);
                last.close = candle.close;
                last.volume = match (last.volume, candle.volume) {
                    (Some(sum), Some(volume)) => Some(sum + volume),
                    (sum, volume) => sum.or(volume),
                };
            }
            _ => groups.push(Candle { slot, ..*candle }),
        }
    }
    groups
}

/// Cuts a text at the width.
fn fitted(text: &str, size: i32, width: i32) -> String {
    let mut shown = text.to_owned();
    while text_width(&shown, size) > width && shown.chars().count() > 1 {
        let kept = shown.chars().count() - 2;
        shown = shown.chars().take(kept).chain(['…']).collect();
    }
    shown
}

#[expect(clippy::cast_precision_loss, reason = "a position in a picture")]
fn float(number: i64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the number of joined candles is below the number of slots"
)]
fn integer(number: f64) -> i64 {
    number as i64
}

#[expect(clippy::cast_possible_truncation, reason = "a position in a picture")]
fn pixel(position: f64) -> i32 {
    position.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a picture of bars around a price, each with a separate slot, except for the slots in `missing`.
    fn picture(bars: i64, price: f64, move_by: f64, missing: impl Fn(i64) -> bool) -> Picture {
        let candle = |slot: i64| {
            let wave = |at: i64| price * (1.0 + move_by * (float(at) * 0.37).sin());
            let (open, close) = (wave(slot), wave(slot + 1));
            let (high, low) =
                (open.max(close) * (1.0 + move_by / 9.0), open.min(close) * (1.0 - move_by / 9.0));
            Candle { slot, open, high, low, close, volume: Some(1_000.0 + 900.0 * (float(slot) * 0.7).sin()) }
        };
        Picture {
            title: "binance:BTC-USDT  1h".to_owned(),
            close: "42000.5".to_owned(),
            interval: Interval::H1,
            start: "2024-01-29T05:00:00Z".parse().unwrap(),
            slots: bars,
            candles: (0..bars).filter(|slot| !missing(*slot)).map(candle).collect(),
        }
    }

    /// Returns the bounds of a text: left, top, right and bottom.
    fn bounds(item: &Item) -> Option<(i32, i32, i32, i32)> {
        let Item::Text { at: (x, y), text, size, align, .. } = item else { return None };
        let width = text_width(text, *size);
        let left = match align {
            Align::Left => *x,
            Align::Center => x - width / 2,
            Align::Right => x - width,
        };
        Some((left, y - size / 2, left + width, y + size / 2))
    }

    fn check(picture: &Picture, size: (u32, u32), gaps_only: bool) {
        let items = layout(picture, size, gaps_only);
        let (width, height) = (i32::try_from(size.0).unwrap(), i32::try_from(size.1).unwrap());
        let texts: Vec<_> = items.iter().filter_map(|item| Some((item, bounds(item)?))).collect();
        assert!(texts.len() > 3, "{items:?}");
        for (at, (item, (left, top, right, bottom))) in texts.iter().enumerate() {
            assert!(
                *left >= 0 && *top >= 0 && *right <= width && *bottom <= height,
                "{size:?}: {item:?} is outside"
            );
            for (other, (l, t, r, b)) in &texts[at + 1..] {
                let apart = right <= l || r <= left || bottom <= t || b <= top;
                assert!(apart, "{size:?}: {item:?} and {other:?} overlap");
            }
        }
        for item in &items {
            let (Item::Box { from, to, .. } | Item::Line { from, to, .. }) = item else { continue };
            for (x, y) in [from, to] {
                assert!((0..=width).contains(x) && (0..=height).contains(y), "{item:?} is outside");
            }
        }
    }

    #[test]
    fn labels_neither_overlap_nor_leave_the_picture() {
        for bars in [1, 2, 10, 500, 5_000, 200_000] {
            for (price, move_by) in [
                (42_000.0, 0.02),
                (42_000.0, 0.0),
                (0.000_000_01, 0.0),
                (0.000_000_01, 0.3),
                (1e15, 0.0),
                (1e15, 0.001),
                (1e15, 1e-15),
                (1.0, 0.9),
            ] {
                for size in [(400, 300), (1_200, 675), (8_000, 8_000)] {
                    check(&picture(bars, price, move_by, |slot| slot % 7 == 3), size, false);
                    check(&picture(bars, price, move_by, |slot| slot % 7 == 3), size, true);
                }
            }
        }
        let mut long = picture(10, 1.0, 0.1, |_| false);
        long.title = format!("a-long-exchange:{}", "X".repeat(64));
        long.close = "12345678901234567890.123456789012345678".to_owned();
        for size in [(400, 300), (1_200, 675)] {
            check(&long, size, false);
        }
    }

    #[test]
    fn every_interval_of_the_time_axis_has_labels_apart() {
        for interval in Interval::ALL {
            for bars in [1, 30, 3_000] {
                let picture = Picture {
                    interval: *interval,
                    start: interval.floor("2010-01-29T05:00:00Z".parse().unwrap()),
                    ..picture(bars, 5.0, 0.1, |_| false)
                };
                check(&picture, (1_200, 675), false);
                let times = |item: &&Item| matches!(item, Item::Text { align: Align::Center, .. });
                assert!(
                    layout(&picture, (1_200, 675), false).iter().filter(times).count() > 0,
                    "{interval} {bars}"
                );
            }
        }
    }

    #[test]
    fn gaps_are_marked_and_counted() {
        let gap = |slot: i64| slot == 0 || (4..8).contains(&slot) || slot == 19;
        let picture = picture(20, 5.0, 0.1, gap);
        assert_eq!(picture.gaps(), [(0, 1), (4, 8), (19, 20)]);
        assert_eq!(picture.missing(), 6);
        let marks = |gaps_only| {
            let items = layout(&picture, (1_200, 675), gaps_only);
            let marked = |item: &&Item| matches!(item, Item::Box { color, .. } if *color == GAP_EDGE);
            // The legend of the header has the same color.
            items.iter().filter(marked).count() - 1
        };
        assert_eq!((marks(false), marks(true)), (3, 3));
        // A single missing interval among many is still visible, and touching gaps are one mark.
        let wide = super::tests::picture(100_000, 5.0, 0.1, |slot| slot == 50_000);
        let items = layout(&wide, (1_200, 675), true);
        assert!(items.iter().any(|item| matches!(item, Item::Box { from, to, color } if *color == GAP_EDGE && to.0 - from.0 >= 1 && to.1 > 100)));
        let odd = super::tests::picture(100_000, 5.0, 0.1, |slot| slot % 2 == 1);
        assert!(layout(&odd, (1_200, 675), false).len() < 5_000);
    }

    #[test]
    fn candles_that_have_no_room_are_joined() {
        let candle = |slot, open, close, volume| Candle { slot, open, high: 9.0, low: open, close, volume };
        let joined = grouped(
            &[candle(0, 1.0, 2.0, Some(3.0)), candle(1, 2.0, 5.0, None), candle(2, 5.0, 1.0, Some(2.0))],
            2,
        );
        assert_eq!(
            joined,
            [
                Candle { slot: 0, open: 1.0, high: 9.0, low: 1.0, close: 5.0, volume: Some(3.0) },
                candle(1, 5.0, 1.0, Some(2.0))
            ]
        );
        let boxes = |bars| {
            let items = layout(&picture(bars, 5.0, 0.1, |_| false), (1_200, 675), false);
            items
                .iter()
                .filter(|item| matches!(item, Item::Box { color, .. } if [UP, DOWN].contains(color)))
                .count()
        };
        assert_eq!((boxes(1), boxes(10), boxes(200)), (1, 10, 200));
        assert!((150..300).contains(&boxes(5_000)), "{}", boxes(5_000));
    }
}
