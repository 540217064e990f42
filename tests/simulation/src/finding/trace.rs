//! What an observer of the network, of the servers and of the finders saw.

use std::net::SocketAddr;

use super::plan::{Fault, Machine};

/// What was seen, in the order in which it was seen.
pub type Trace = crate::Trace<Machine, What>;

/// Something that was seen.
pub type Event = crate::Event<Machine, What>;

/// A record that a vat has signed, as far as the laws are concerned. Ordered as records are: by epoch, then by the time of
/// signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Which start of the vat signed it.
    pub epoch: u64,
    /// Its timestamp, in microseconds.
    pub signed: u64,
    /// Where it says that the vat is; none for a vat that sleeps or has departed.
    pub place: Option<SocketAddr>,
}

/// What a server knows of a vat, as whoever asks it at this moment is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Missing,
    /// This, and its lease has ended.
    Lapsed(Version),
    /// This.
    Live(Version),
}

impl Standing {
    /// The record, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self {
            Self::Missing => None,
            Self::Lapsed(version) | Self::Live(version) => Some(*version),
        }
    }
}

/// How a search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// With this record. A search that also dials ends with none if a peer answered before any record was needed.
    Record(Option<Version>),
    /// Without a record that can be used; the error's code.
    Nothing {
        /// The error's code.
        code: String,
    },
}

/// What was seen. A search is one call of `resolve` or `connect`; searches are counted over all finders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The plan struck.
    Struck(Fault),
    /// A program began.
    Woke {
        /// Of a vat: its epoch. Of a server: how often it has begun.
        epoch: u64,
    },
    /// A vat's program has a place from now on, by its start or because it has moved.
    Settled {
        /// Its epoch.
        epoch: u64,
        /// Where it is.
        place: SocketAddr,
    },
    /// A vat's publisher begins to register with a server, and asks what to say.
    Offers,
    /// A vat has signed a record, for whoever it may be.
    Signed {
        /// The record.
        version: Version,
    },
    /// Seen at a server: what it knows of a vat has changed.
    Knows {
        /// The vat.
        vat: u8,
        /// What it knows from now on.
        standing: Standing,
    },
    /// Seen at a server: the lease of a vat's record has begun anew there.
    Renewed {
        /// The vat.
        vat: u8,
    },
    /// Seen at a finder: a search began.
    Began {
        /// Which.
        search: u32,
        /// For whom.
        vat: u8,
        /// How many entries it may ask at once.
        first_wave: usize,
        /// What each server knew at that moment, in the order of their numbers; none for one that is down or lies.
        known: Vec<Option<Standing>>,
    },
    /// Seen on the wire: the first packet of a search to a server.
    Asked {
        /// In which search.
        search: u32,
        /// The server.
        server: u8,
    },
    /// Seen on the wire: a packet of a session passes between a finder and a server. Nobody else can read what is asked or
    /// told in it.
    Unreadable {
        /// The server.
        server: u8,
        /// Of those that go to the server only the ones that begin a session are written down; a session that is being
        /// begun may carry questions as soon as it stands.
        comes: bool,
    },
    /// Seen on the wire: an answer came to the finder.
    Heard {
        /// To a question of which search.
        search: u32,
        /// From where.
        server: u8,
        /// The record in it, if the vat that is searched has signed it and it is not dated ahead of the finder's clock. One
        /// that has ended by that clock names no place: it says only that older ones are out of date.
        version: Option<Version>,
        /// Its lease there has ended.
        lapsed: bool,
    },
    /// Seen on the wire: the first packet of an attempt to connect.
    Dialled {
        /// In which search.
        search: u32,
        /// Where.
        place: SocketAddr,
    },
    /// A search has a connection.
    Reached {
        /// Which search.
        search: u32,
        /// Where.
        place: SocketAddr,
        /// Whose program has that place; none: a stranger's.
        occupant: Option<(u8, u64)>,
    },
    /// A search ended.
    Ended {
        /// Which.
        search: u32,
        /// How.
        found: Found,
        /// The servers that answered, as the finder reports.
        answered: Vec<u8>,
    },
    /// A vat was told that another copy of it runs, and stopped.
    Superseded {
        /// Its epoch.
        epoch: u64,
        /// The proof's epoch.
        by: u64,
    },
    /// At the end of the run: a vat's publisher says that it is registered with a server.
    Believes {
        /// The server.
        server: u8,
        /// What the server knows of the vat; none for a server that lies.
        standing: Option<Standing>,
    },
    /// At the end of the run: something of this program still ran long after it was ended.
    Leaked,
}
