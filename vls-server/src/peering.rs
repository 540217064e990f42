//! What is asked of other servers and told to them, as a pure state machine (DESIGN §5: peers).
//!
//! A server may follow others. Records verify themselves, so whoever passes one on needs no trust for what it says;
//! only for how long ago the vat was seen, which no signature covers, and for answering at all.
//!
//! * **Asking** ([`Asking`]): a question for what is not held goes to the peers. It carries over how many servers it has
//!   come; one that has come over [`MOST_HOPS`](limits::MOST_HOPS) is answered from what is held, so every question
//!   ends, in whatever circle servers follow each other. Who asks while the same question is under way waits for its
//!   answer, but only one that has come over as many servers does: a question waits for none but such as have come
//!   further, and two servers can never wait for each other. What was asked a moment ago is not asked again.
//! * **Telling** ([`Outbox`]): what a vat registers here is told to the peers, and what they learn that way they tell
//!   nobody. What has no room is forgotten: whoever asks for it finds it all the same.
//!
//! Peers that failed or lied are asked last. Nothing here reads a clock or sends anything.
//!
//! The Mainline DHT is asked when no peer has led to anything, for what is not held at all, and only on behalf of who
//! asks this server himself: one question there is a hundred packets. It may take longer than anybody waits; what comes
//! late is there for who asks again. What is registered here is put there, too ([`Publishing`]).

mod asking;
mod newest;
mod outbox;
mod publishing;
mod recent;

pub(crate) use self::{
    asking::{Asking, Begun, Heard},
    outbox::Outbox,
    publishing::Publishing,
};
use crate::{limits, registry::Id};

/// A question, by what makes it the same as another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) id: Id,
    /// Over how many servers it has come.
    pub(crate) hops: u8,
}

/// The number of a peer, in the order of the configuration.
pub(crate) type PeerNumber = usize;

/// How much of the places for questions somebody may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// He waits, and is really there.
    Whole,
    /// Nobody waits, or he may be invented.
    Part,
}

impl Share {
    /// Questions that may be under way for another one to be begun.
    fn questions(self) -> usize {
        match self {
            Self::Whole => limits::PEER_QUESTIONS,
            Self::Part => limits::PEER_QUESTIONS_BESIDE,
        }
    }

    /// The same for lookups in the DHT.
    fn lookups(self) -> usize {
        match self {
            Self::Whole => limits::DHT_LOOKUPS,
            Self::Part => limits::DHT_LOOKUPS_BESIDE,
        }
    }
}
