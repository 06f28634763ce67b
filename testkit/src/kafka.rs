//! A producer with its own encoder of the Kafka protocol, for messages that client libraries reject.

use std::io::{Error, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The longest waits for a connection and for a response.
const LIMITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];

/// A message without a key. Its content is not validated.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// The payload. None is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// The names and values of the headers.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The timestamp in milliseconds since the Unix epoch. None means the time of encoding.
    pub timestamp: Option<i64>,
    /// True to compress the message with gzip.
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

    /// Encodes a record batch of format version 2 that holds the message.
    ///
    /// # Errors
    /// If the system clock is before 1970 or the batch has 2 GiB or more. Neither occurs in practice.
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
            None => number(SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?.as_millis())?,
        };
        let mut summed = i16::from(self.gzip).to_be_bytes().to_vec();
        summed.extend(0_i32.to_be_bytes());
        summed.extend([timestamp.to_be_bytes(); 2].concat());
        // No producer id, epoch and sequence.
        summed.extend([0xff; 8 + 2 + 4]);
        summed.extend(1_i32.to_be_bytes());
        summed.extend(records);
        let mut batch = vec![0; 8];
        batch.extend(number::<i32, _>(summed.len() + 9)?.to_be_bytes());
        batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
        batch.extend(crc32c(&summed).to_be_bytes());
        batch.extend(summed);
        Ok(batch)
    }
}

/// Sends an encoded message to the leader of a partition, with `acks=all`, and returns the offset of the message.
///
/// # Errors
/// Fails on connection errors and on an error code from the broker.
pub fn produce(broker: &str, topic: &str, partition: u32, batch: &[u8]) -> Result<u64> {
    // Produce, version 7; correlation id 1; no client id and no transactional id.
    let mut request = vec![0, 0, 0, 7, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    request.extend(10_000_i32.to_be_bytes());
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
    // Correlation id, number of topics, name, number of partitions, partition; then the error code and the offset.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    match answer.get(at..at + 10).and_then(<[u8]>::split_first_chunk::<2>) {
        Some(([0, 0], offset)) => Ok(offset.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
        Some((code, _)) => Err(Error::other(format!("error code {}", i16::from_be_bytes(*code)))),
        None => Err(Error::other("the answer is too short")),
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
    fn checksums_and_integers_are_those_of_the_protocol() {
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
