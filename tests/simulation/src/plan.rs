//! What will happen in a run, drawn from its seed before it begins.
//!
//! Drawn first and not on the way, so that a plan can be printed beside a failure, and so that what one host
//! does cannot change what befalls another.

use std::{fmt, time::Duration};

use crate::Host;

/// Hosts that call the vat.
pub const CALLERS: u8 = 2;

/// How often a quiet connection sends a packet: the transport's default, which a test compares with this.
pub const KEEP_ALIVE: Duration = Duration::from_secs(12);

/// After how long without the peer a connection is dead: likewise.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(40);

/// When faults end: room for several, one after another and over one another.
const HEALED_AT: Duration = Duration::from_secs(100);

/// How long after the last call everything has come to its end: on a network that is whole, a retransmission or
/// two and the slowest object.
const ENDING: Duration = Duration::from_secs(10);

/// What happens in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What all of this was drawn from.
    pub seed: u64,
    /// How datagrams travel.
    pub weather: Weather,
    /// What befalls whom, in the order of time.
    pub faults: Vec<(Duration, Fault)>,
    /// From here on nothing is cut, nobody is down and nothing is lost.
    pub healed_at: Duration,
    /// When callers make no more calls.
    pub last_call_at: Duration,
    /// When everything must have come to its end.
    pub ends_at: Duration,
}

/// How datagrams travel. Chances are in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// The quickest datagram.
    pub least_latency: Duration,
    /// The slowest. Each draws its own, so they overtake one another.
    pub most_latency: Duration,
    /// Chance to be lost.
    pub loss: u16,
    /// Chance to arrive twice.
    pub duplication: u16,
}

/// Something that befalls a host or its way to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between a caller and the vat, in one direction or both.
    Cut {
        /// The caller.
        caller: u8,
        /// In which direction.
        way: Way,
        /// For how long.
        lasts: Duration,
    },
    /// A host dies without a word and starts anew.
    Crash {
        /// Who.
        host: Host,
        /// How long it is down.
        lasts: Duration,
    },
    /// A router forgets the mapping of a caller, whose datagrams come from another port from now on. The caller
    /// is not told.
    Rebind {
        /// The caller.
        caller: u8,
    },
    /// The monotonic clock of a host jumps ahead, as after a sleep of the machine.
    Jump {
        /// Whose.
        host: Host,
        /// How far.
        by: Duration,
    },
    /// Many datagrams are lost for a while, everywhere.
    Storm {
        /// Chance to be lost, in thousandths.
        loss: u16,
        /// For how long.
        lasts: Duration,
    },
}

/// In which direction a way is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In both.
    Both,
    /// From the caller to the vat.
    Towards,
    /// From the vat to the caller.
    Back,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let weather = weather(&mut random);
        let mut faults = Vec::new();
        for _ in 0..random.usize(1..=8) {
            let at = between(&mut random, millis(500), HEALED_AT - millis(500));
            // Whatever begins ends before the healing.
            faults.push((at, fault(&mut random, HEALED_AT - at)));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self::healed_at(HEALED_AT, seed, weather, faults)
    }

    /// A short run on a quiet network, for a test that brings its own faults.
    #[must_use]
    pub fn quiet(seed: u64, faults: Vec<(Duration, Fault)>) -> Self {
        let weather = Weather { least_latency: millis(10), most_latency: millis(30), loss: 0, duplication: 0 };
        let ends = faults.iter().map(|(at, fault)| *at + fault.lasts());
        let healed_at = ends.max().unwrap_or_default() + millis(2_000);
        Self::healed_at(healed_at, seed, weather, faults)
    }

    fn healed_at(healed_at: Duration, seed: u64, weather: Weather, faults: Vec<(Duration, Fault)>) -> Self {
        let last_call_at = healed_at + KEEP_ALIVE + millis(500);
        Self { seed, weather, faults, healed_at, last_call_at, ends_at: last_call_at + ENDING }
    }
}

impl Fault {
    /// How long it lasts; zero for what happens at once.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match self {
            Self::Cut { lasts, .. } | Self::Crash { lasts, .. } | Self::Storm { lasts, .. } => *lasts,
            Self::Rebind { .. } | Self::Jump { .. } => Duration::ZERO,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.weather)?;
        for (at, fault) in &self.faults {
            writeln!(f, "{:>10.3} s  {fault:?}", at.as_secs_f64())?;
        }
        write!(f, "{:>10.3} s  healed", self.healed_at.as_secs_f64())
    }
}

fn weather(random: &mut fastrand::Rng) -> Weather {
    let least_latency = between(random, millis(1), millis(40));
    Weather {
        least_latency,
        most_latency: least_latency + between(random, millis(1), millis(120)),
        // One network in three loses nothing, and one in three repeats nothing.
        loss: random.u16(0..120).saturating_sub(40),
        duplication: random.u16(0..150).saturating_sub(50),
    }
}

fn fault(random: &mut fastrand::Rng, at_most: Duration) -> Fault {
    // Half of what lasts is too short to be noticed as an end, half is long enough.
    let lasts = between(random, millis(100), IDLE_TIMEOUT * 2).min(at_most);
    let caller = random.u8(0..CALLERS);
    match random.u8(0..10) {
        0..=2 => {
            let way = [Way::Both, Way::Both, Way::Towards, Way::Back][random.usize(0..4)];
            Fault::Cut { caller, way, lasts }
        }
        3 | 4 => Fault::Crash { host: Host::Vat, lasts: lasts / 8 },
        5 => Fault::Crash { host: Host::Caller(caller), lasts: lasts / 8 },
        6 | 7 => Fault::Rebind { caller },
        8 => {
            let host = if random.bool() { Host::Vat } else { Host::Caller(caller) };
            Fault::Jump { host, by: between(random, millis(100), IDLE_TIMEOUT * 2) }
        }
        _ => Fault::Storm { loss: random.u16(200..600), lasts: lasts / 2 },
    }
}

pub(crate) fn between(random: &mut fastrand::Rng, least: Duration, most: Duration) -> Duration {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random.u64(micros(least)..=micros(most)))
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_another_seed_another() {
        assert_eq!(Plan::from_seed(7), Plan::from_seed(7));
        assert_ne!(Plan::from_seed(7).faults, Plan::from_seed(8).faults);
    }

    #[test]
    fn everything_that_begins_ends_before_the_healing_and_every_fault_occurs() {
        let mut kinds = [0; 5];
        for seed in 0..500 {
            let plan = Plan::from_seed(seed);
            for (at, fault) in plan.faults {
                let kind = match fault {
                    Fault::Cut { .. } => 0,
                    Fault::Crash { .. } => 1,
                    Fault::Rebind { .. } => 2,
                    Fault::Jump { .. } => 3,
                    Fault::Storm { .. } => 4,
                };
                kinds[kind] += 1;
                assert!(at + fault.lasts() <= plan.healed_at);
            }
        }
        assert!(kinds.iter().all(|count| *count > 50), "{kinds:?}");
    }
}
