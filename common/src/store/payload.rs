//! The body of an event as the log keeps it: DEFLATE with a preset dictionary of Stripe's own words, so that a usual event of 4 to
//! 5 KB takes about half a kilobyte and does not set the price of recording it.
//!
//! The first byte says how the rest was made: `1` is zlib with `payload-1.dict` (a frozen concatenation of five of our sample
//! events; it must never change, a better one becomes `2`).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

const DICTIONARY_1: &[u8] = include_bytes!("payload-1.dict");
/// A body that does not compress to this is not kept: an item takes 400 KB.
pub const MOST_KEPT_BYTES: usize = 200_000;
/// A payload never grows beyond this when it is read back: API Gateway takes 6 MB at most.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Compresses a body.
pub fn pack(body: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(6), true);
    let mut packed = vec![1];
    if compress.set_dictionary(DICTIONARY_1).is_err() {
        return vec![];
    }
    loop {
        packed.reserve(body.len() / 4 + 256);
        let read = usize::try_from(compress.total_in()).unwrap_or(usize::MAX);
        match compress.compress_vec(body.get(read..).unwrap_or_default(), &mut packed, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => return packed,
            Ok(Status::Ok | Status::BufError) => {}
            Err(_) => return vec![],
        }
    }
}

/// The body again; `None` for bytes that [`pack`] did not make.
pub fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (1, rest) = packed.split_first()? else { return None };
    let mut decompress = Decompress::new(true);
    let mut body = Vec::new();
    loop {
        body.reserve(packed.len() * 4 + 1024);
        let read = usize::try_from(decompress.total_in()).ok()?;
        match decompress.decompress_vec(rest.get(read..)?, &mut body, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => return Some(body),
            Ok(Status::Ok | Status::BufError) if body.len() == body.capacity() && body.len() < MOST_BYTES => {}
            Ok(Status::Ok | Status::BufError) => return None,
            Err(error) if error.needs_dictionary().is_some() => {
                decompress.set_dictionary(DICTIONARY_1).ok()?;
            }
            Err(_) => return None,
        }
    }
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
        for bytes in [&b""[..], b"\x02abc", b"\x01", b"\x01not zlib", &pack(b"{}")[..5]] {
            assert_eq!(unpack(bytes), None);
        }
    }
}
