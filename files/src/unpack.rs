//! Compressed files as byte streams: gzip, Zstandard and the entries of zip archives, recognised by their content.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Crc;
use flate2::bufread::{DeflateDecoder, GzDecoder};
use qi_core::{Error, ErrorKind, Result};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};

/// A reader of lines.
pub(crate) type Bytes = Box<dyn BufRead + Send>;

/// The maximum number of compression layers in one file. A gzip file in a zip archive has two.
const MAX_LAYERS: usize = 3;
/// The maximum number of entries of an archive.
const MAX_ENTRIES: usize = 65_536;
/// The maximum window of a Zstandard file: 128 MiB, as for `zstd -d`.
const MAX_WINDOW: u64 = 128 << 20;

/// The extension of checksum files.
pub(crate) const CHECKSUM: &str = "CHECKSUM";

/// The progress of reading files, in bytes on disk. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    read: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
}

impl Progress {
    /// Returns the number of bytes read, in bytes on disk.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Returns the size of the files in bytes.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A stream of lines: a file, or an entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) path: PathBuf,
    entry: Option<Entry>,
    /// The size on disk in bytes.
    pub(crate) size: u64,
    /// True if the file matches its checksum file.
    pub(crate) verified: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    header: u64,
    packed: u64,
    size: u64,
    crc: u32,
    deflated: bool,
}

impl Stream {
    /// Returns the origin of the lines, for example `file.zip!entry.csv`.
    pub(crate) fn label(&self) -> String {
        match &self.entry {
            Some(entry) => format!("{}!{}", self.path.display(), entry.name),
            None => self.path.display().to_string(),
        }
    }

    /// Returns the name of the file without folders, or of the entry.
    pub(crate) fn name(&self) -> &str {
        let path = self.entry.as_ref().map_or(self.path.as_path(), |entry| Path::new(&entry.name));
        path.file_name().and_then(|name| name.to_str()).unwrap_or("")
    }

    /// Opens the stream. Bytes that are read count as progress.
    pub(crate) fn open(&self, progress: &Progress) -> io::Result<Bytes> {
        let mut file = File::open(&self.path)?;
        let bytes: Bytes = match &self.entry {
            None => Box::new(BufReader::with_capacity(
                BUFFER,
                CountingReader { inner: file, progress: progress.clone() },
            )),
            Some(entry) => {
                let start = data_of(&mut file, entry.header)?;
                file.seek(SeekFrom::Start(start))?;
                let packed = CountingReader { inner: file.take(entry.packed), progress: progress.clone() };
                let packed = BufReader::with_capacity(BUFFER, packed);
                let content: Box<dyn Read + Send> =
                    if entry.deflated { Box::new(DeflateDecoder::new(packed)) } else { Box::new(packed) };
                let checked =
                    VerifyingReader { inner: content, sum: Crc::new(), left: entry.size, wanted: entry.crc };
                Box::new(BufReader::with_capacity(BUFFER, checked))
            }
        };
        unpack(bytes)
    }
}

const BUFFER: usize = 64 << 10;

/// Returns the offset of an entry's data, after its local header. The name and the extra fields there have their own
/// lengths.
fn data_of(file: &mut File, header: u64) -> io::Result<u64> {
    let mut local = [0; 30];
    file.seek(SeekFrom::Start(header))?;
    file.read_exact(&mut local)?;
    if !local.starts_with(b"PK\x03\x04") {
        return Err(io::Error::other("the archive has no entry where its directory says"));
    }
    let length = |at: usize| u64::from(u16::from_le_bytes([local[at], local[at + 1]]));
    header.checked_add(30 + length(26) + length(28)).ok_or_else(|| io::Error::other("the archive is damaged"))
}

/// Removes every layer of compression.
fn unpack(mut bytes: Bytes) -> io::Result<Bytes> {
    for _ in 0..MAX_LAYERS {
        let start = bytes.fill_buf()?;
        bytes = match start {
            [0x1f, 0x8b, ..] => {
                Box::new(BufReader::with_capacity(BUFFER, Members::<Gzip>::Between(Some(bytes))))
            }
            // The second pattern is a skippable frame, which pzstd writes first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Box::new(BufReader::with_capacity(BUFFER, Members::<Zstd>::Between(Some(bytes))))
            }
            [b'P', b'K', 3, 4, ..] => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "a zip archive inside of another file",
                ));
            }
            _ => return Ok(bytes),
        };
    }
    Ok(bytes)
}

/// A reader that counts its bytes as progress.
struct CountingReader<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The decoders cannot continue after an interrupted read, so it is repeated here.
        let read = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        self.progress.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// An entry of an archive, which is verified with the size and the checksum in the archive's directory.
struct VerifyingReader {
    inner: Box<dyn Read + Send>,
    sum: Crc,
    left: u64,
    wanted: u32,
}

impl Read for VerifyingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.update(&buffer[..read]);
        let damaged =
            || Err(io::Error::new(io::ErrorKind::InvalidData, "the entry of the archive is damaged"));
        match self.left.checked_sub(read as u64) {
            None => return damaged(),
            Some(left) => self.left = left,
        }
        if read == 0 && !buffer.is_empty() && (self.left > 0 || self.sum.sum() != self.wanted) {
            return damaged();
        }
        Ok(read)
    }
}

/// A compressed part of a file, which other parts may follow.
trait Member: Read + Sized {
    /// Begins a part. A skippable part is skipped, and the bytes after it are returned as the error.
    fn begin(bytes: Bytes) -> io::Result<std::result::Result<Self, Bytes>>;

    /// Verifies the part at its end and returns the bytes after it.
    fn end(self) -> io::Result<Bytes>;
}

type Gzip = GzDecoder<Bytes>;

impl Member for Gzip {
    fn begin(mut bytes: Bytes) -> io::Result<std::result::Result<Self, Bytes>> {
        if bytes.fill_buf()?.first() == Some(&0x1f) {
            Ok(Ok(GzDecoder::new(bytes)))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "no gzip member after the last one"))
        }
    }

    fn end(self) -> io::Result<Bytes> {
        Ok(self.into_inner())
    }
}

/// A Zstandard frame. The decoder is boxed, because it is large.
struct Zstd {
    decoder: Box<FrameDecoder>,
    bytes: Bytes,
    /// The number of bytes of the content that were read.
    length: u64,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
            let blocks = self.decoder.decode_blocks(&mut self.bytes, BlockDecodingStrategy::UptoBlocks(1));
            blocks.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        let read = self.decoder.read(buffer)?;
        self.length += read as u64;
        Ok(read)
    }
}

impl Member for Zstd {
    fn begin(mut bytes: Bytes) -> io::Result<std::result::Result<Self, Bytes>> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        match decoder.init(&mut bytes) {
            Ok(()) => Ok(Ok(Self { decoder: Box::new(decoder), bytes, length: 0 })),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let skipped = io::copy(&mut (&mut bytes).take(length.into()), &mut io::sink())?;
                if skipped < length.into() {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(Err(bytes))
                }
            }
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    fn end(self) -> io::Result<Bytes> {
        let Self { decoder, bytes, length } = self;
        // The decoder returns 0 if the frame does not declare its size.
        if ![0, length].contains(&decoder.content_size()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the size of a Zstandard frame differs"));
        }
        match decoder.get_checksum_from_data() {
            Some(wanted) if decoder.get_calculated_checksum() != Some(wanted) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a Zstandard frame differs"))
            }
            _ => Ok(bytes),
        }
    }
}

/// The parts of a file in sequence. Zeros after a part are padding.
enum Members<M> {
    Inside(M),
    Between(Option<Bytes>),
}

impl<M: Member> Read for Members<M> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            *self = match std::mem::replace(self, Self::Between(None)) {
                Self::Inside(mut member) => match member.read(buffer)? {
                    0 => Self::Between(Some(member.end()?)),
                    read => {
                        *self = Self::Inside(member);
                        return Ok(read);
                    }
                },
                Self::Between(None) => return Ok(0),
                Self::Between(Some(mut bytes)) => {
                    let start = bytes.fill_buf()?;
                    let zeros = start.iter().take_while(|byte| **byte == 0).count();
                    if start.is_empty() {
                        Self::Between(None)
                    } else if zeros > 0 {
                        bytes.consume(zeros);
                        Self::Between(Some(bytes))
                    } else {
                        M::begin(bytes)?.map_or_else(|bytes| Self::Between(Some(bytes)), Self::Inside)
                    }
                }
            }
        }
    }
}

/// Lists the streams of a file: one, or the entries of an archive.
///
/// # Errors
/// `InvalidInput` if the file cannot be read; `CorruptData` if its checksum differs or the archive is damaged.
pub(crate) fn streams(path: &Path) -> Result<Vec<Stream>> {
    let reject = |e: io::Error| {
        Error::invalid("files.open", "input", path.display(), "must be a file that can be read")
            .with_source(e)
    };
    // Opening a pipe waits for its writer, and this wait could not be cancelled.
    let metadata = path.metadata().map_err(reject)?;
    if !metadata.is_file() {
        return Err(reject(io::Error::other("it is no ordinary file")));
    }
    let mut file = File::open(path).map_err(reject)?;
    let verified = verify(path, &mut file)?;
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start).map_err(reject)?;
    if start != b"PK\x03\x04" && start != b"PK\x05\x06" {
        return Ok(vec![Stream { path: path.to_owned(), entry: None, size: metadata.len(), verified }]);
    }
    let damaged = |error: String| {
        Error::new(ErrorKind::CorruptData, "files.archive", "open")
            .with_message(error)
            .with_context("file", path.display())
    };
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let archive = rawzip::ZipArchive::from_file(file, &mut buffer).map_err(|e| damaged(e.to_string()))?;
    let mut entries = archive.entries(&mut buffer);
    let (mut found, mut count) = (Vec::new(), 0);
    while let Some(entry) = entries.next_entry().map_err(|e| damaged(e.to_string()))? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(damaged(format!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let path_of = entry.file_path();
        let name = String::from_utf8_lossy(path_of.as_bytes()).into_owned();
        // Files that macOS adds contain no data.
        if entry.is_dir() || name.starts_with("__MACOSX/") || name.ends_with(".DS_Store") {
            continue;
        }
        let method = entry.compression_method();
        let deflated = method == rawzip::CompressionMethod::DEFLATE;
        if entry.flags().is_encrypted() || !(deflated || method == rawzip::CompressionMethod::STORE) {
            return Err(damaged(format!(
                "the entry {name} is encrypted, or compressed by another method than deflate"
            )));
        }
        let (packed, size, crc) =
            (entry.compressed_size_hint(), entry.uncompressed_size_hint(), entry.crc32());
        let entry = Entry { name, header: entry.local_header_offset(), packed, size, crc, deflated };
        found.push(Stream { path: path.to_owned(), entry: Some(entry), size: packed, verified });
    }
    if count as u64 != archive.entries_hint() {
        return Err(damaged("the directory of the archive is not complete".to_owned()));
    }
    Ok(found)
}

/// Verifies a file with `FILE.CHECKSUM`, if that exists. Afterwards the file is at its start again.
fn verify(path: &Path, file: &mut File) -> Result<bool> {
    let mut checksum_path = path.as_os_str().to_owned();
    checksum_path.push(".");
    checksum_path.push(CHECKSUM);
    let checksum_path = PathBuf::from(checksum_path);
    let fail = |message: &str| {
        Error::new(ErrorKind::CorruptData, "files.checksum", "open")
            .with_message(message)
            .with_context("file", path.display())
    };
    let mut text = String::new();
    match File::open(&checksum_path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(fail("the checksum file cannot be read").with_source(e)),
        Ok(sum) => sum
            .take(4_096)
            .read_to_string(&mut text)
            .map_err(|e| fail("the checksum file is no text").with_source(e))?,
    };
    let wanted = text.split_whitespace().next().unwrap_or("").to_ascii_lowercase();
    if wanted.len() != 64 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(fail("the checksum file has no SHA-256"));
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut hash = || -> io::Result<()> {
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return file.rewind(),
                Ok(read) => digest.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    hash().map_err(|e| fail("the file cannot be read").with_source(e))?;
    let found = digest.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    if found == wanted {
        Ok(true)
    } else {
        Err(fail("the file differs from its checksum file").with_context("sha256", found))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    /// A reader that is interrupted after every read, and returns a few bytes.
    struct Interrupted(io::Cursor<Vec<u8>>, bool);

    impl Read for Interrupted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = buffer.len().min(100);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn an_interrupted_read_loses_no_bytes() {
        let content: Vec<u8> = (0..20_000u32).flat_map(|n| (n * 7_919).to_le_bytes()).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        io::Write::write_all(&mut gzip, &content).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let zstd = ruzstd::encoding::compress_to_vec(&content[..], level);
        for packed in [content.clone(), gzip.finish().unwrap(), zstd] {
            let inner = Interrupted(io::Cursor::new(packed), true);
            let counted = CountingReader { inner, progress: Progress::default() };
            let mut found = Vec::new();
            unpack(Box::new(BufReader::new(counted))).unwrap().read_to_end(&mut found).unwrap();
            assert!(found == content, "{} of {} bytes", found.len(), content.len());
        }
    }

    #[test]
    fn the_declared_size_of_a_zstandard_frame_is_verified() {
        let content = b"1700000000,5,1\n";
        let read = |declared: u8| {
            // A frame with its size in one byte, no checksum, and one last block of raw bytes.
            let block = u8::try_from(content.len()).unwrap() << 3 | 1;
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, declared, block, 0, 0];
            frame.extend(content);
            let mut found = Vec::new();
            unpack(Box::new(io::Cursor::new(frame)))?.read_to_end(&mut found)
        };
        assert_eq!(read(15).unwrap(), 15);
        for declared in [14, 16, 200] {
            assert_eq!(read(declared).unwrap_err().kind(), io::ErrorKind::InvalidData, "{declared}");
        }
    }
}
