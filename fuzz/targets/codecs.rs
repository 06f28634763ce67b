#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qi_adapters::fuzzing::codecs(bytes));
