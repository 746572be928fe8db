//! Compression of event bodies for the event log, and of the state of accounts: zstd with a dictionary of
//! Stripe events. A typical event of 4 to 5 KB takes about half a kilobyte, so the body adds little to the
//! cost of a log entry. The state of an account with one subscription takes 1 KB, and packed less than half.
//!
//! The first byte is the format. `2` is a zstd frame with `payload-2.dict`: five sample events, and the
//! entropy tables that `ZDICT_finalizeDictionary` computed from all samples. The file must never change; a
//! better dictionary becomes format `3`. The dictionary is prepared once per thread, so that compressing one
//! body takes microseconds. Without this code, `tail -c +2 packed | zstd -d -D payload-2.dict` unpacks.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, get_frame_content_size};

const DICTIONARY_2: &[u8] = include_bytes!("payload-2.dict");
/// The default of zstd. A higher level saves a tenth of the bytes and takes three times as long.
const LEVEL: i32 = 3;
/// log2 of the number of entries in the two match tables. They take 48 KB, which fit the processor's cache.
/// The default of zstd takes 640 KB and saves 2 % of the bytes.
const TABLES: [CParameter; 2] = [CParameter::HashLog(13), CParameter::ChainLog(12)];
/// A body that is larger after compression is not stored: DynamoDB limits an item to 400 KB.
const MAX_STORED_BYTES: usize = 200_000;
/// The largest body that decompression may produce. It is above API Gateway's limit for a request.
const MAX_BYTES: usize = 16 * 1024 * 1024;

thread_local! {
    /// Reused for every body of this thread.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = RefCell::new(compressor().ok());
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> =
        RefCell::new(Decompressor::with_dictionary(DICTIONARY_2).ok());
}

fn compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::with_dictionary(LEVEL, DICTIONARY_2)?;
    TABLES.into_iter().try_for_each(|table| compressor.set_parameter(table))?;
    // The first byte of our format already identifies the dictionary.
    compressor.include_dictid(false)?;
    Ok(compressor)
}

/// Prepares the dictionary and allocates memory for a body of typical size. Called in a function's init, so
/// that the first event does not wait for it.
pub fn prepare() {
    unpack(&pack(&[0; 8192]));
}

/// Compresses a body. Returns an empty vector when zstd fails to allocate memory.
pub fn pack(body: &[u8]) -> Vec<u8> {
    let frame = COMPRESSOR.with_borrow_mut(|compressor| compressor.as_mut()?.compress(body).ok());
    frame.map_or_else(Vec::new, |frame| [&[2], &frame[..]].concat())
}

/// Compresses a body for the event log; `None` when the result is too large for an item.
pub fn keep(body: &[u8]) -> Option<Vec<u8>> {
    Some(pack(body)).filter(|packed| packed.len() <= MAX_STORED_BYTES)
}

/// Decompresses a body; `None` when [`pack`] did not write these bytes.
pub fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (2, frame) = packed.split_first()? else { return None };
    let bytes = usize::try_from(get_frame_content_size(frame).ok()??).ok()?;
    DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.as_mut()?.decompress(frame, bytes.min(MAX_BYTES)).ok())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_body_is_unpacked_unchanged_and_a_typical_one_is_small() {
        let renewal = include_bytes!("../../../events/invoice.paid.json");
        let packed = pack(renewal);
        assert!(packed.len() < 700, "{} bytes", packed.len());
        let large: Vec<u8> = renewal.iter().copied().cycle().take(3_000_000).collect();
        for body in [&renewal[..], b"", b"{}", &large] {
            assert_eq!(unpack(&pack(body)).unwrap(), body);
        }
    }

    #[test]
    fn the_dictionary_never_changes() {
        let digest = Sha256::digest(DICTIONARY_2);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "58b81d152a9cdfddb0d6735d0ad0c01d92bf8a10a05d5657120f8066b3ca5c98");
    }

    #[test]
    fn bytes_in_another_format_are_refused() {
        for bytes in [&b""[..], b"\x01abc", b"\x02", b"\x02not zstd", &pack(b"{}")[..5]] {
            assert_eq!(unpack(bytes), None);
        }
    }
}
