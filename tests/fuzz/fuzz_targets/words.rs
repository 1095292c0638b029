#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| serverswap_fuzz::targets::words(data));
