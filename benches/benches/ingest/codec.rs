//! Encoding and decoding of ticks in both message formats.

use std::hint::black_box;
use std::time::Duration;

use qi_benches::timed;
use qi_core::PriceTick;
use qi_core::bus::{Encoding, Message, ReceivedMessage, decode_record, encode_records};
use qi_core::record::Slice;

use crate::Setup;

const COUNT: usize = 100_000;

fn received(message: Message, offset: u64) -> ReceivedMessage {
    let mut received = ReceivedMessage::new(message.topic, 0, offset);
    (received.key, received.payload, received.headers) = (message.key, message.payload, message.headers);
    received
}

pub(crate) fn run(setup: &Setup) {
    let ticks = &setup.ticks[..COUNT];
    for encoding in Encoding::ALL {
        let encode = |chunk: &[PriceTick]| {
            encode_records(&encoding, &Slice::new(chunk).expect("valid ticks"), None).expect("messages")
        };
        let messages: Vec<_> =
            ticks.chunks(1_000).flat_map(encode).zip(0..).map(|(m, at)| received(m, at)).collect();
        let bytes: usize = messages.iter().map(|m| m.payload.as_ref().map_or(0, bytes::Bytes::len)).sum();
        let decode = || {
            for chunk in messages.chunks(1_000) {
                let mut records = PriceTick::DATASET.new_vec();
                records.reserve(chunk.len());
                for message in chunk {
                    decode_record(message, &mut records).expect("a tick");
                }
                black_box(records);
            }
        };
        let (mut encoding_times, mut decoding_times) = (Vec::new(), Vec::new());
        for _ in 0..setup.rounds * 5 {
            encoding_times
                .push(timed(|| ticks.chunks(1_000).for_each(|chunk| drop(black_box(encode(chunk))))));
            decoding_times.push(timed(decode));
        }
        let nanos = |times: Vec<Duration>| qi_benches::median(times).as_secs_f64() * 1e9 / COUNT as f64;
        let (encoded, decoded) = (nanos(encoding_times), nanos(decoding_times));
        println!(
            "{encoding}: encode {encoded:.0} ns, decode {decoded:.0} ns, together {:.0} ns a tick; payload {:.1} bytes",
            encoded + decoded,
            bytes as f64 / COUNT as f64
        );
    }
}
