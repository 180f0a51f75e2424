//! Fuzz target; what it does with an input stands in `tests/common/roundtrip.rs`.
#![no_main]

#[path = "../../tests/common/golden.rs"]
mod golden;
#[path = "../../tests/common/roundtrip.rs"]
mod roundtrip;

libfuzzer_sys::fuzz_target!(|data: &[u8]| roundtrip::arguments(data));
