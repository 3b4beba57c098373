#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gossip::fuzz::dialogue(bytes));
