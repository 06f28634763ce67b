//! `qi chart`: draws candles, volume and gaps to an SVG or PNG file.

mod axis;
mod layout;
mod paint;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use qi_core::store::{BarQuery, BarSource, MAX_PAGE, PriceStore, PriceStoreExt as _};
use qi_core::{Bar, Error, ErrorKind, Result, ResultExt as _, Timestamp};

use crate::output::{Listing, text};
use layout::{Candle, Picture};

/// The largest number of bars in a chart.
const MAX_BARS: usize = 200_000;

/// The picture to draw.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The bars: instrument, interval and range.
    pub query: BarQuery,
    /// The source of the bars.
    pub source: BarSource,
    /// True to draw only the gaps.
    pub gaps_only: bool,
    /// The file. Its extension, `svg` or `png`, is the format.
    pub out: PathBuf,
    /// The width and the height in pixels.
    pub size: (u32, u32),
}

impl Plan {
    /// Checks the name of the file.
    ///
    /// # Errors
    /// `Config` for a file name without the extension `svg` or `png`.
    pub(crate) fn check(&self) -> Result<()> {
        encoding(&self.out).map(drop)
    }
}

/// The code of the error without bars.
pub(crate) const EMPTY: &str = "chart.empty";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Svg,
    Png,
}

/// Draws a chart and replaces the file atomically. Returns one row: the file, the range, the number of bars and the
/// gaps. A range without a bound begins with the first bar, or ends with the last bar.
///
/// # Errors
/// `Config` for a file name without the extension `svg` or `png`; `NotFound` without bars; `InvalidInput` for more than
/// 200,000 bars; errors of the store and of the file. No error changes the file.
pub async fn draw(store: &dyn PriceStore, plan: &Plan) -> Result<Listing> {
    let encoding = encoding(&plan.out)?;
    let query = plan.query.clone().with_limit(MAX_PAGE)?;
    let bars: Vec<Bar> = store.bar_stream(query, plan.source).take(MAX_BARS + 1).try_collect().await?;
    let mut picture = picture(plan, &bars)?;
    if encoding == Encoding::Png {
        picture.title = paint::in_font(&picture.title);
    }
    let painted = {
        let picture = picture.clone();
        let (size, gaps_only) = (plan.size, plan.gaps_only);
        let paint = move || {
            let items = layout::layout(&picture, size, gaps_only);
            if encoding == Encoding::Svg { paint::svg(&items, size) } else { paint::png(&items, size) }
        };
        tokio::task::spawn_blocking(paint).await.permanent("chart.paint", "draw")??
    };
    replace(&plan.out, &painted)?;
    let mut listing =
        Listing::new(["file", "instrument", "interval", "from", "until", "bars", "gaps", "missing"]);
    let (from, until) = picture.range()?;
    listing.push([
        text(plan.out.display()),
        text(&plan.query.instrument),
        text(plan.query.interval),
        text(from),
        text(until),
        bars.len().into(),
        picture.gaps().len().into(),
        picture.missing().into(),
    ]);
    Ok(listing)
}

fn encoding(path: &Path) -> Result<Encoding> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "svg" => Ok(Encoding::Svg),
        "png" => Ok(Encoding::Png),
        _ => Err(Error::new(ErrorKind::Config, "chart.format", "draw")
            .with_message("the name of the file must end with .svg or .png")
            .with_context("file", path.display())),
    }
}

fn picture(plan: &Plan, bars: &[Bar]) -> Result<Picture> {
    let BarQuery { instrument, interval, range, .. } = &plan.query;
    let error = |kind, code, message: String| {
        Error::new(kind, code, "draw").with_message(message).with_context("instrument", instrument)
    };
    let (Some(first), Some(last)) = (bars.first(), bars.last()) else {
        let message = format!("there are no bars of {interval} in {range}");
        return Err(error(ErrorKind::NotFound, EMPTY, message));
    };
    if bars.len() > MAX_BARS {
        let message = format!("more than {MAX_BARS} bars: choose a longer interval or a shorter range");
        return Err(error(ErrorKind::InvalidInput, "chart.bars", message));
    }
    let start = if range.start() == Timestamp::MIN {
        first.open_time()
    } else {
        interval.ceil(range.start()).unwrap_or(first.open_time()).min(first.open_time())
    };
    let end = if range.end() == Timestamp::MAX {
        last.close_time()
    } else {
        interval.ceil(range.end()).unwrap_or(range.end()).max(last.close_time())
    };
    let slot_of = |time: Timestamp| (time.as_micros() - start.as_micros()) / interval.as_micros();
    let number = |value: &dyn std::fmt::Display| value.to_string().parse().unwrap_or(0.0);
    let candles = bars.iter().map(|bar| {
        let values = bar.values();
        Candle {
            slot: slot_of(bar.open_time()),
            open: number(&values.open),
            high: number(&values.high),
            low: number(&values.low),
            close: number(&values.close),
            volume: values.volume.map(|volume| number(&volume)),
        }
    });
    Ok(Picture {
        title: format!("{instrument}  {interval}"),
        close: last.close().to_string(),
        interval: *interval,
        start,
        slots: slot_of(end).max(1),
        candles: candles.collect(),
    })
}

/// Writes a new file in the folder of the path and renames it.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".chart-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(std::io::Error::from)
    };
    write().permanent("chart.file", "draw").map_err(|error| error.with_context("file", path.display()))
}

#[cfg(test)]
mod tests {
    use qi_core::{BarValues, Interval, TimeRange};
    use qi_testkit::store::MemoryStore;

    use super::*;

    fn bar(slot: i64, price: &str) -> Bar {
        let time = Timestamp::from_secs(1_700_006_400 + slot * 3_600).unwrap();
        Bar::new("x:A<&\"é".parse().unwrap(), Interval::H1, time, BarValues::flat(price.parse().unwrap()))
            .unwrap()
    }

    async fn drawn(prices: &[(i64, &str)], out: &Path, gaps_only: bool, range: TimeRange) -> Result<Listing> {
        let store = MemoryStore::default();
        store.ensure_schema().await.unwrap();
        let bars: Vec<_> = prices.iter().map(|(slot, price)| bar(*slot, price)).collect();
        store.insert_bars(&bars).await.unwrap();
        let query = BarQuery::new("x:A<&\"é".parse().unwrap(), Interval::H1, range);
        let (source, out, size) = (BarSource::Stored, out.to_owned(), (600, 400));
        draw(&store, &Plan { query, source, gaps_only, out, size }).await
    }

    #[tokio::test]
    async fn files_are_replaced_by_complete_pictures() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.svg", "a.png", "b.SVG"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "old").unwrap();
            for prices in [&[(0, "0.00000001")][..], &[(0, "5"), (3, "1000000000000000")]] {
                for gaps_only in [false, true] {
                    drawn(prices, &path, gaps_only, TimeRange::ALL).await.unwrap();
                    let content = std::fs::read(&path).unwrap();
                    if name.ends_with("png") {
                        let reader = png::Decoder::new(std::io::Cursor::new(content)).read_info().unwrap();
                        assert_eq!((reader.info().width, reader.info().height), (600, 400));
                    } else {
                        let text = String::from_utf8(content).unwrap();
                        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
                        assert!(text.contains("x:A&lt;&amp;") && !text.contains("A<&"), "{text}");
                    }
                }
            }
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "no temporary file remains");
    }

    #[tokio::test]
    async fn the_row_has_the_range_and_the_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        let at = |slot: i64| bar(slot, "1").open_time();
        let prices = [(1, "5"), (2, "5"), (5, "6")];
        let row = |listing: Listing| listing.rows()[0][3..].to_vec();
        let open = row(drawn(&prices, &path, false, TimeRange::ALL).await.unwrap());
        assert_eq!(open, [text(at(1)), text(at(6)), 3.into(), 1.into(), 2.into()]);
        // The bounds of the range have gaps too.
        let range = TimeRange::new(at(0), at(10)).unwrap();
        let bounded = row(drawn(&prices, &path, true, range).await.unwrap());
        assert_eq!(bounded, [text(at(0)), text(at(10)), 3.into(), 3.into(), 7.into()]);
    }

    #[tokio::test]
    async fn errors_change_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        std::fs::write(&path, "old").unwrap();
        let empty = drawn(&[], &path, false, TimeRange::ALL).await.unwrap_err();
        assert_eq!((empty.kind(), empty.code()), (ErrorKind::NotFound, "chart.empty"));
        let past = TimeRange::before(Timestamp::from_secs(1_000_000).unwrap());
        assert_eq!(drawn(&[(0, "5")], &path, true, past).await.unwrap_err().code(), "chart.empty");
        let format =
            drawn(&[(0, "5")], &folder.path().join("a.gif"), false, TimeRange::ALL).await.unwrap_err();
        assert_eq!((format.kind(), format.code()), (ErrorKind::Config, "chart.format"));
        let absent = folder.path().join("absent/a.svg");
        let absent = drawn(&[(0, "5")], &absent, false, TimeRange::ALL).await.unwrap_err();
        assert_eq!(absent.code(), "chart.file", "{absent}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}
