#![no_main]

// A panic within a session ends that session, which is what it shall do: only one that comes out here is a finding.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| fuzz::greetings(data));
