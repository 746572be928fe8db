//! The catalog. The input is the file's text.
//!
//! No text makes the parser panic. An accepted catalog answers every query; a refusal names a line or a word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyhook_core::catalog::Catalog;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Catalog::parse(text) {
        Ok(catalog) => {
            let _ = catalog.default_rank();
            for word in text.split('"') {
                if let Some(plan) = catalog.plan_of_price(word) {
                    assert!(!plan.tier.is_empty());
                }
                let _ = (catalog.pack(word), catalog.order(word));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
