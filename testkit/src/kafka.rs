//! A producer with its own encoder of the Kafka protocol, for messages that client libraries reject.

use std::io::{Error, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The timeouts for the connection and for the response.
const LIMITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_mins(1)];

/// A message without a key. Its content is not validated.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// The payload. None makes the message a tombstone.
    pub payload: Option<Vec<u8>>,
    /// The names and values of the headers.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The timestamp in milliseconds since the Unix epoch. None stands for the time of encoding.
    pub timestamp: Option<i64>,
    /// True if the message is compressed with gzip.
    pub gzip: bool,
}

impl RawMessage {
    /// Creates an uncompressed message without headers.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: Some(payload.into()), headers: Vec::new(), timestamp: None, gzip: false }
    }

    /// Adds a header to the message.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Encodes the message as a record batch of format version 2.
    ///
    /// # Errors
    /// Fails if the system clock is before 1970 or the batch has 2 GiB or more. Neither occurs in practice.
    pub fn encode(&self) -> Result<Vec<u8>> {
        // The attributes, the timestamp delta and the offset delta are 0.
        let mut record = vec![0, 0, 0];
        varint(&mut record, -1);
        match &self.payload {
            None => varint(&mut record, -1),
            Some(payload) => bytes(&mut record, payload)?,
        }
        varint(&mut record, number(self.headers.len())?);
        for (name, value) in &self.headers {
            bytes(&mut record, name)?;
            bytes(&mut record, value)?;
        }
        let mut records = Vec::new();
        bytes(&mut records, &record)?;
        if self.gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&records)?;
            records = encoder.finish()?;
        }
        let timestamp = match self.timestamp {
            Some(timestamp) => timestamp,
            None => now()?,
        };
        encode(i16::from(self.gzip), 1, timestamp, &records)
    }
}

/// A codec of a record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// DEFLATE with the header of gzip. Compresses zeros at about 1,000 to 1.
    Gzip = 1,
    /// Snappy in the framing of snappy-java. [`RawBatch::zeros`] writes its data uncompressed.
    Snappy = 2,
    /// An LZ4 frame. [`RawBatch::zeros`] writes its data uncompressed.
    Lz4 = 3,
    /// A Zstandard frame without a content size. Compresses zeros at about 18,000 to 1.
    Zstd = 4,
}

/// A record batch of consecutive offsets. Its content is not validated.
#[derive(Debug, Clone)]
pub struct RawBatch {
    /// The codec of `records`.
    pub codec: Codec,
    /// The number of records.
    pub count: i32,
    /// The records, compressed with `codec`.
    pub records: Vec<u8>,
}

impl RawBatch {
    /// Creates a batch of `count` records without keys, each with a payload of `payload` zeros.
    ///
    /// # Errors
    /// Fails if a record has 2 GiB or more.
    pub fn zeros(codec: Codec, count: i32, payload: usize) -> Result<Self> {
        let mut encoder = Encoder::new(codec);
        for delta in 0..count {
            // The attributes and the timestamp delta are 0.
            let mut head = vec![0, 0];
            varint(&mut head, delta.into());
            varint(&mut head, -1);
            varint(&mut head, number(payload)?);
            let mut record = Vec::new();
            varint(&mut record, number(head.len() + payload + 1)?);
            record.extend(head);
            // The zero after the payload is the number of headers.
            encoder.write(&record, payload + 1)?;
        }
        Ok(Self { codec, count, records: encoder.finish()? })
    }

    /// Encodes the batch in format version 2.
    ///
    /// # Errors
    /// Fails if the system clock is before 1970 or the batch has 2 GiB or more. Neither occurs in practice.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode(self.codec as i16, self.count, now()?, &self.records)
    }
}

/// A compressor that needs little time and memory for long runs of zeros.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Plain(Codec, Vec<u8>),
    Zstd(Vec<u8>),
}

impl Encoder {
    fn new(codec: Codec) -> Self {
        match codec {
            Codec::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::default())),
            // The magic number, no flags, and a window of 128 KiB.
            Codec::Zstd => Self::Zstd(vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3]),
            Codec::Snappy | Codec::Lz4 => Self::Plain(codec, Vec::new()),
        }
    }

    fn write(&mut self, bytes: &[u8], zeros: usize) -> Result<()> {
        match self {
            Self::Gzip(encoder) => {
                encoder.write_all(bytes)?;
                std::io::copy(&mut std::io::repeat(0).take(zeros as u64), encoder)?;
            }
            Self::Plain(_, out) => {
                out.extend(bytes);
                out.resize(out.len() + zeros, 0);
            }
            Self::Zstd(out) => {
                // A raw block, then blocks that repeat one byte. A block holds at most 128 KiB.
                zstd_block(out, 0, bytes.len());
                out.extend(bytes);
                let mut left = zeros;
                while left > 0 {
                    let length = left.min(128 << 10);
                    zstd_block(out, 1 << 1, length);
                    out.push(0);
                    left -= length;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(mut out) => {
                zstd_block(&mut out, 1, 0);
                Ok(out)
            }
            Self::Plain(Codec::Lz4, plain) => {
                // The magic number, two flag bytes (independent blocks of at most 4 MiB), and their checksum. The
                // highest bit of a length marks an uncompressed block, and a length of 0 ends the frame.
                let mut out = vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73];
                for block in plain.chunks(4 << 20) {
                    out.extend((number::<u32, _>(block.len())? | 1 << 31).to_le_bytes());
                    out.extend(block);
                }
                out.extend([0; 4]);
                Ok(out)
            }
            Self::Plain(_, plain) => {
                // The magic number of snappy-java and two version numbers. Each chunk follows its compressed length. It
                // contains its uncompressed length and one literal.
                let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
                for chunk in plain.chunks(1 << 15) {
                    let mut block = Vec::new();
                    // `varint` cannot be used, because Snappy's lengths have no zigzag encoding.
                    let (length, low) = (chunk.len(), chunk.len() & 0x7f);
                    match (length >> 7, length >> 14) {
                        (0, _) => block.extend(low.to_le_bytes().first()),
                        (middle, 0) => block.extend([byte(low | 0x80), byte(middle)]),
                        (middle, high) => block.extend([byte(low | 0x80), byte(middle | 0x80), byte(high)]),
                    }
                    // The tag of a literal with a length of two bytes.
                    block.push(61 << 2);
                    block.extend(number::<u16, _>(length - 1)?.to_le_bytes());
                    block.extend(chunk);
                    out.extend(number::<u32, _>(block.len())?.to_be_bytes());
                    out.extend(block);
                }
                Ok(out)
            }
        }
    }
}

fn byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// Writes the header of a zstd block. Bit 0 of `flags` marks the last block, and the bits above it are the block type.
fn zstd_block(out: &mut Vec<u8>, flags: usize, length: usize) {
    out.extend(&(length << 3 | flags).to_le_bytes()[..3]);
}

fn now() -> Result<i64> {
    number(SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?.as_millis())
}

fn encode(codec: i16, count: i32, timestamp: i64, records: &[u8]) -> Result<Vec<u8>> {
    let mut summed = codec.to_be_bytes().to_vec();
    summed.extend((count - 1).to_be_bytes());
    summed.extend([timestamp.to_be_bytes(); 2].concat());
    // No producer id, producer epoch and sequence number.
    summed.extend([0xff; 8 + 2 + 4]);
    summed.extend(count.to_be_bytes());
    summed.extend(records);
    let mut batch = vec![0; 8];
    batch.extend(number::<i32, _>(summed.len() + 9)?.to_be_bytes());
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(crc32c(&summed).to_be_bytes());
    batch.extend(summed);
    Ok(batch)
}

/// Sends an encoded batch to the leader of a partition with `acks=all`, and returns the offset of its first message.
///
/// # Errors
/// Fails on connection errors, and if the broker returns an error code.
pub fn produce(broker: &str, topic: &str, partition: u32, batch: &[u8]) -> Result<u64> {
    // A Produce request, version 7: correlation id 1, no client id, no transactional id.
    let mut request = vec![0, 0, 0, 7, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    request.extend(60_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(number::<i16, _>(topic.len())?.to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(partition.to_be_bytes());
    request.extend(number::<i32, _>(batch.len())?.to_be_bytes());
    request.extend(batch);
    let [connect, answer] = LIMITS;
    let mut stream = TcpStream::connect_timeout(&broker.parse().map_err(Error::other)?, connect)?;
    stream.set_read_timeout(Some(answer))?;
    stream.write_all(&number::<i32, _>(request.len())?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; number(u32::from_be_bytes(length))?];
    stream.read_exact(&mut answer)?;
    // The response: correlation id, number of topics, topic name, number of partitions, partition, error code, offset.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    match answer.get(at..at + 10).and_then(<[u8]>::split_first_chunk::<2>) {
        Some(([0, 0], offset)) => Ok(offset.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
        Some((code, _)) => Err(Error::other(format!("error code {}", i16::from_be_bytes(*code)))),
        None => Err(Error::other("the response is too short")),
    }
}

fn number<T: TryFrom<N, Error: std::error::Error + Send + Sync + 'static>, N>(from: N) -> Result<T> {
    T::try_from(from).map_err(Error::other)
}

/// Writes a zigzag variable-length integer.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest > 0x7f {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) -> Result<()> {
    varint(out, number(value.len())?);
    out.extend(value);
    Ok(())
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_integers_match_the_protocol() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for (value, wanted) in [(0, &[0][..]), (-1, &[1]), (63, &[126]), (64, &[128, 1]), (-300, &[215, 4])] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, wanted, "{value}");
        }
        let batch = RawMessage { timestamp: Some(1), ..RawMessage::new("x").with_header("h", "v") }.encode();
        let batch = batch.unwrap();
        assert_eq!(batch.len(), 12 + usize::from(batch[11]), "the length of the batch");
        assert_eq!(batch[batch.len() - 12..], [22, 0, 0, 0, 1, 2, b'x', 2, 2, b'h', 2, b'v']);
    }
}
