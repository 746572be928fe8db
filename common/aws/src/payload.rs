//! The body of an event as the log keeps it: zstd with a dictionary of Stripe's own words, so that a usual
//! event of 4 to 5 KB takes about half a kilobyte and does not set the price of recording it.
//!
//! The first byte says how the rest was made: `2` is a zstd frame with `payload-2.dict` (five of our sample
//! events, and the entropy tables that `ZDICT_finalizeDictionary` made of all of them; it must never change,
//! a better one becomes `3`). The dictionary is digested once, so packing takes microseconds; DEFLATE indexes
//! its dictionary anew for each body and took ten times as long.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, get_frame_content_size};

const DICTIONARY_2: &[u8] = include_bytes!("payload-2.dict");
/// zstd's own default: a higher one saves a tenth of the bytes and takes three times as long.
const LEVEL: i32 = 3;
/// log2 of the entries of its two tables, for long matches and short ones: 48 KB that stay in a processor's
/// cache and are quick to fill. zstd's own choice is 640 KB and saves a fiftieth of the bytes.
const TABLES: [CParameter; 2] = [CParameter::HashLog(13), CParameter::ChainLog(12)];
/// A body that does not compress to this is not kept: an item takes 400 KB.
const MOST_KEPT_BYTES: usize = 200_000;
/// A payload never grows beyond this when it is read back: API Gateway takes 6 MB at most.
const MOST_BYTES: usize = 16 * 1024 * 1024;

thread_local! {
    /// The digested dictionary and the tables are kept from body to body.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = RefCell::new(compressor().ok());
}

fn compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::with_dictionary(LEVEL, DICTIONARY_2)?;
    TABLES.into_iter().try_for_each(|table| compressor.set_parameter(table))?;
    // The first byte names the dictionary.
    compressor.include_dictid(false)?;
    Ok(compressor)
}

/// Digests the dictionary and takes the memory for a body of usual size, so that a function's init pays for
/// them and not its first event.
pub fn prepare() {
    pack(&[0; 8192]);
}

/// Compresses a body; empty if that fails for want of memory.
pub fn pack(body: &[u8]) -> Vec<u8> {
    let frame = COMPRESSOR.with_borrow_mut(|compressor| compressor.as_mut()?.compress(body).ok());
    frame.map_or_else(Vec::new, |frame| [&[2], &frame[..]].concat())
}

/// A body as the log keeps it, unless it is too large for an item.
pub fn keep(body: &[u8]) -> Option<Vec<u8>> {
    Some(pack(body)).filter(|packed| packed.len() <= MOST_KEPT_BYTES)
}

/// The body again; `None` for bytes that [`pack`] did not make.
pub fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (2, frame) = packed.split_first()? else { return None };
    let bytes = usize::try_from(get_frame_content_size(frame).ok()??).ok()?;
    let mut decompressor = Decompressor::with_dictionary(DICTIONARY_2).ok()?;
    decompressor.decompress(frame, bytes.min(MOST_BYTES)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_as_it_was_and_a_usual_one_is_small() {
        let renewal = include_bytes!("../../../events/invoice.paid.json");
        let packed = pack(renewal);
        assert!(packed.len() < 700, "{} bytes", packed.len());
        let large: Vec<u8> = renewal.iter().copied().cycle().take(3_000_000).collect();
        for body in [&renewal[..], b"", b"{}", &large] {
            assert_eq!(unpack(&pack(body)).unwrap(), body);
        }
    }

    #[test]
    fn bytes_of_another_make_are_refused() {
        for bytes in [&b""[..], b"\x01abc", b"\x02", b"\x02not zstd", &pack(b"{}")[..5]] {
            assert_eq!(unpack(bytes), None);
        }
    }
}
