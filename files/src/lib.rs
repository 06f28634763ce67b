//! Readers for market data files in the formats that exchanges publish.
//!
//! [`open`] recognises each file by its content: the compression (gzip, Zstandard, zip or none), the layout of its
//! columns and the unit of its times. The instrument and the interval of candles come from the file name, if the
//! publisher includes them. [The page on files](qi_core::guide::files) lists the formats.
//!
//! # Concepts
//! - [`Files`] are opened files of one kind, with their instruments. Their [`Data`] is a [`Source`] of trades, or a
//!   source of candles with their interval.
//! - A **source** is an iterator over records. In their place, it can return an [`Input`]: the start of a file, a bad
//!   line, or an error that ends the source.
//! - [`FileOptions`] state what the files do not show, such as the instrument, the format or the columns.
//!
//! # A first program
//! The program reads the trades of a file from Kraken.
//!
//! ```
//! use qi_files::{Data, FileOptions, Input};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("XBTEUR.csv");
//! std::fs::write(&path, "1700000000,34000.1,0.25\n1700000000,34000.2,1e-3\n")?;
//!
//! let files = qi_files::open(&[path], &FileOptions::default())?;
//! assert_eq!(files.instruments, ["kraken:XBTEUR".parse()?]);
//! let Data::Trades(trades) = files.data else { return Err("these are trades".into()) };
//! for trade in trades {
//!     match trade {
//!         Ok(trade) => println!("{trade:?}"),
//!         Err(Input::File(file)) => println!("{}", file.name),
//!         Err(Input::BadLine(error)) => println!("{}", error.report()),
//!         Err(Input::Fatal(error)) => return Err(error.into()),
//!         Err(_) => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Memory
//! The memory is bounded. A source holds one line ([`MAX_LINE_BYTES`]), the buffers of the decompression (less than 1
//! MiB for gzip and zip; the window of the file for Zstandard, at most 128 MiB), and for trades without ids the numbers
//! of 65,536 timestamps.

mod batch;
pub mod coverage;
pub mod fields;
mod interval;
mod json;
mod layout;
mod lines;
mod name;
mod number;
mod numbering;
mod ordinals;
mod row;
mod source;
mod time;
mod unpack;

pub use batch::Batch;
pub use layout::{ColumnMap, Format, Kind};
pub use lines::MAX_LINE_BYTES;
pub use numbering::Numbering;
pub use source::{Data, FileOptions, FileStart, Files, Input, Source, TradeIds, is_same_file, open};
pub use time::TimeUnit;
pub use unpack::Progress;
