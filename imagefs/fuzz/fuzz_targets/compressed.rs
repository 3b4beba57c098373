#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imagefs::fuzz::compressed(bytes));
