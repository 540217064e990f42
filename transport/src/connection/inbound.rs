//! The way in: bytes of the peer's stream become whole messages, and wait until the RPC layer asks for them.
//!
//! Nothing is judged here but sizes and times: how long a message may take from its first byte to its last.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use capnp::message::{Builder, HeapAllocator};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use super::Explain;
use crate::{
    SessionLimits,
    frames::{Frame, FrameDecoder, FrameLimits},
    limits,
    session::{SessionEnd, Violation},
};

/// What has come of the peer's stream, and what the RPC layer is told without it.
pub(super) struct Inbound {
    input: Box<dyn AsyncRead + Unpin>,
    decoder: FrameDecoder,
    /// Complete messages that the RPC layer has not asked for yet.
    pub(super) frames: VecDeque<Frame>,
    /// Messages of our own making for the RPC layer: answers to calls that were not sent, and what goes with answers
    /// that the peer or we could not give.
    pub(super) local: VecDeque<Builder<HeapAllocator>>,
    /// Calls that were not sent and whose callers do not know it yet.
    pub(super) refused: Vec<u32>,
    /// When the first byte of the message that is not complete came. Not counted while we do not read.
    pub(super) begun: Option<Instant>,
    /// The stream cannot be read further; comes to light behind `frames`.
    pub(super) failure: Option<SessionEnd>,
}

impl Inbound {
    pub(super) fn new(input: Box<dyn AsyncRead + Unpin>, limits: &SessionLimits) -> Self {
        let frames = FrameLimits { message_bytes: limits.message_bytes, segments: limits.segments };
        Self {
            input,
            decoder: FrameDecoder::new(frames),
            frames: VecDeque::new(),
            local: VecDeque::new(),
            refused: Vec::new(),
            begun: None,
            failure: None,
        }
    }

    pub(super) fn next_local(&mut self) -> Option<Builder<HeapAllocator>> {
        let message = self.local.pop_front();
        if self.local.is_empty() {
            // Whoever was refused knows it now, or will before it can say anything more.
            self.refused = Vec::new();
        }
        message
    }

    /// By when the message that was begun has to be complete.
    pub(super) fn message_deadline(&self, limits: &SessionLimits) -> Option<Instant> {
        let for_size = Duration::from_secs((self.decoder.received() / limits::MESSAGE_BYTES_PER_SECOND) as u64);
        self.begun?.checked_add(limits.message_deadline.saturating_add(for_size))
    }

    /// All that has come was read, and a message is not complete: is it late?
    pub(super) fn slowness(&self, limits: &SessionLimits) -> Option<Violation> {
        let deadline = self.message_deadline(limits)?;
        let received = self.decoder.received();
        (Instant::now() >= deadline)
            .then(|| Violation::SlowMessage { received, after: self.begun.map_or(Duration::ZERO, |at| at.elapsed()) })
    }

    /// Reads once, and takes apart what came.
    pub(super) fn read(&mut self, context: &mut Context<'_>, explain: &Explain) -> Poll<()> {
        // On the stack and never cleared, so an idle session holds nothing and a busy one wastes nothing.
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); limits::READ_AHEAD_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        match std::pin::Pin::new(&mut self.input).poll_read(context, &mut buffer) {
            Poll::Pending => {
                // Idle sessions hold no queue.
                self.frames = VecDeque::new();
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) => self.failure = Some(explain(error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                self.failure = Some(if self.decoder.is_between_messages() {
                    SessionEnd::Peer(crate::peer_connection::remote_error(b""))
                } else {
                    SessionEnd::Violation(Violation::Truncated)
                });
            }
            Poll::Ready(Ok(())) => {
                let mut bytes = buffer.filled();
                while !bytes.is_empty() {
                    match self.decoder.push(&mut bytes) {
                        Ok(Some(frame)) => {
                            self.begun = None;
                            self.frames.push_back(frame);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            self.failure = Some(SessionEnd::Violation(error.into()));
                            break;
                        }
                    }
                }
                if self.begun.is_none() && !self.decoder.is_between_messages() {
                    self.begun = Some(Instant::now());
                }
            }
        }
        Poll::Ready(())
    }
}
