//! Cap'n Proto's stream framing.

use capnp::message::{ReaderOptions, ReaderSegments};
use transport::{
    frames::{FrameDecoder, FrameLimits},
    limits,
};

/// A stream of frames, in pieces of as many bytes as the first byte says. What is accepted is what capnp's own
/// reader sees in the same bytes, and memory follows what has arrived.
pub fn frames(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let limits = FrameLimits { message_bytes: 1 << 16, segments: limits::SEGMENTS };
    let mut decoder = FrameDecoder::new(limits);
    let mut expected = stream;
    let mut since_frame = 0;
    for piece in stream.chunks(usize::from(*piece).max(1)) {
        let mut rest = piece;
        while !rest.is_empty() {
            let before = rest.len();
            let decoded = decoder.push(&mut rest);
            since_frame += before - rest.len();
            // The table's numbers are held once more as the ends of the segments, twice as wide.
            let bound = 4 * since_frame + limits::FIRST_GRANT_BYTES + 16 * limits.segments;
            assert!(decoder.held() <= bound, "{} bytes held for {since_frame}", decoder.held());
            let Ok(decoded) = decoded else { return };
            let Some(frame) = decoded else {
                assert!(rest.is_empty() && !decoder.is_between_messages());
                continue;
            };
            since_frame = 0;
            let theirs = capnp::serialize::read_message_from_flat_slice(&mut expected, ReaderOptions::new());
            let theirs = theirs.expect("what we accept, capnp accepts").into_segments();
            assert_eq!(ReaderSegments::len(&frame), theirs.len());
            for index in 0..=u32::try_from(theirs.len()).unwrap() {
                assert_eq!(frame.get_segment(index), theirs.get_segment(index));
            }
        }
    }
}
