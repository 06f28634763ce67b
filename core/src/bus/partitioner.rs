//! The partition of a key. The result equals that of Kafka's Java client, so programs in other languages agree.

use std::num::NonZeroU32;

/// Returns the partition of `key` in a topic with `partitions` partitions.
pub fn partition_for_key(key: &[u8], partitions: NonZeroU32) -> u32 {
    // Java's `toPositive` clears the sign bit; it does not negate.
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Computes the 32-bit Murmur2 hash with Kafka's seed.
///
/// Source: Austin Appleby's public-domain `MurmurHash2`, as `org.apache.kafka.common.utils.Utils.murmur2` applies it.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Java's length has 32 bits too, and keys are far shorter.
    #[expect(clippy::cast_possible_truncation, reason = "a key is at most a message, which is below 4 GiB")]
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses the values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_equal_those_of_the_java_client() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn partitions_lie_in_range_for_negative_hashes_and_the_empty_key() {
        let twelve = NonZeroU32::new(12).unwrap();
        for key in ["", "21", "foobar", "abc"] {
            assert!(partition_for_key(key.as_bytes(), twelve) < 12);
        }
        assert_eq!(partition_for_key(b"abc", twelve), 479_470_107 % 12);
    }
}
