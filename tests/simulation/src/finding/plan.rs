//! What will happen in a run of servers, vats and finders, drawn from its seed before it begins.

use std::{fmt, time::Duration};

use crate::plan::{Way, Weather, between, millis};

/// Location servers, all of which are on everybody's search path.
pub const SERVERS: u8 = 3;

/// Vats.
pub const VATS: u8 = 20;

/// Finders.
pub const FINDERS: u8 = 50;

/// For how long servers promise to keep a record: as short as a run can have some of, and long enough for the tries of one
/// renewal that a network with one datagram in five lost may need.
pub const LEASE: Duration = Duration::from_secs(30);

/// For how long a vat's record says that it is valid: what the program `vat` takes.
pub const VALIDITY: Duration = Duration::from_secs(2 * 60 * 60);

/// What every wall clock shows that is right when a run begins, since 1970.
pub const BEGINNING: Duration = Duration::from_secs(1_800_000_000);

/// How far most wall clocks jump: far enough that a server refuses what is dated by one that is ahead, and near enough
/// that the clocks of a long run pass the dates of what was signed while one of them was ahead.
const SMALL_JUMP: (Duration, Duration) = (Duration::from_secs(6 * 60), Duration::from_secs(25 * 60));

/// How far others do: a time zone; and past the end of what was just signed.
const JUMPS: (Duration, Duration) = (Duration::from_secs(60 * 60), Duration::from_secs(3 * 60 * 60));

/// The longest wait of a publisher after failures, and the end of one registration; shorter than usual, like the lease.
pub const RETRY_CAP: Duration = Duration::from_secs(6);
/// See [`RETRY_CAP`]. Longer than what it may wait for, a session that is silent and a dial (1 and 5 s): or the next try
/// would wait for the dial of the one before.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(7);

/// When everybody has registered for the first time, whatever the weather.
pub const SETTLED_AT: Duration = Duration::from_secs(6);

const HEALED_AT: Duration = Duration::from_secs(30);

/// How long after the healing everybody is registered everywhere again, because publishers are told to: an attempt that
/// began just before it and waits for its deadline in vain, and one that begins at once after it and succeeds, of whose
/// handshake packets overtake one another.
pub const RECOVERY: Duration = Duration::from_secs(10);

/// How long the last searches may take, those for vats that are not to be found among them.
pub(super) const LAST_SEARCHES: Duration = Duration::from_secs(6);

/// One of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// A location server.
    Server(u8),
    /// A vat, wherever it is.
    Vat(u8),
    /// A finder.
    Finder(u8),
}

/// What happens in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What all of this was drawn from.
    pub seed: u64,
    /// How finely datagrams arrive.
    pub tick: Duration,
    /// How datagrams travel.
    pub weather: Weather,
    /// How many vats there are.
    pub vats: u8,
    /// How many finders there are.
    pub finders: u8,
    /// What befalls whom, in the order of time.
    pub faults: Vec<(Duration, Fault)>,
    /// What is searched, by whom and when, in the order of time.
    pub searches: Vec<(Duration, Search)>,
    /// From here on nothing is cut, nobody is down and nothing is lost; all publishers and finders come at once. None: it
    /// stays as it is.
    pub healed_at: Option<Duration>,
    /// When programs are ended.
    pub ends_at: Duration,
}

/// One call of a finder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Who searches.
    pub finder: u8,
    /// For whom.
    pub vat: u8,
    /// Whether it dials as well.
    pub connects: bool,
}

/// Something that befalls a machine or its way to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes between a server and a vat or finder, in one direction or both.
    Cut {
        /// The server.
        server: u8,
        /// The other.
        other: Machine,
        /// In which direction, seen from the other: [`Way::Towards`] is to the server.
        way: Way,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing passes between a server and anybody.
    Isolate {
        /// The server.
        server: u8,
        /// In which direction: [`Way::Towards`] is to the server.
        way: Way,
        /// For how long.
        lasts: Duration,
    },
    /// A server dies without a word and starts anew.
    Crash {
        /// The server.
        server: u8,
        /// Whether it comes back without what its disk had.
        empty: bool,
        /// How long it is down.
        lasts: Duration,
    },
    /// A server's place is taken by one that has its key and lies.
    Lies {
        /// The server.
        server: u8,
        /// How.
        lie: Lie,
        /// For how long.
        lasts: Duration,
    },
    /// Somebody sets a wall clock ahead, or back.
    Jump {
        /// Whose.
        machine: Machine,
        /// In which direction.
        ahead: bool,
        /// How far.
        by: Duration,
    },
    /// Somebody sets a wall clock right.
    SetRight {
        /// Whose.
        machine: Machine,
    },
    /// Many datagrams are lost for a while, everywhere.
    Storm {
        /// Chance to be lost, in thousandths.
        loss: u16,
        /// For how long.
        lasts: Duration,
    },
    /// A vat gets another address.
    Moves {
        /// The vat.
        vat: u8,
        /// Whether a stranger takes its old one.
        stranger: bool,
    },
    /// A vat's program dies without a word and starts anew elsewhere, with the next epoch.
    Restarts {
        /// The vat.
        vat: u8,
        /// How long it is down.
        lasts: Duration,
    },
    /// A copy of a vat starts elsewhere with the next epoch while the old one goes on.
    Forks {
        /// The vat.
        vat: u8,
    },
    /// A vat goes to sleep and says so; it wakes with the next epoch.
    Sleeps {
        /// The vat.
        vat: u8,
        /// For how long.
        lasts: Duration,
    },
    /// A vat says that it departs and is not seen again.
    Departs {
        /// The vat.
        vat: u8,
    },
}

/// How a server lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It answers what it knew once, as if it were of now, and takes no registration in.
    Frozen,
    /// It knows nobody, and says that it has stored what it has not.
    Unknown,
    /// Its packets have changed bytes, or are garbage.
    Garbage,
    /// It answers with the records of other vats.
    Others,
    /// Its packets are longer than any may be.
    Huge,
    /// It answers what it knew once, late.
    Late,
}

impl Lie {
    const ALL: [Self; 6] = [Self::Frozen, Self::Unknown, Self::Garbage, Self::Others, Self::Huge, Self::Late];
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let weather = weather(&mut random);
        let mut faults = Vec::new();
        for _ in 0..random.usize(2..=14) {
            let at = between(&mut random, SETTLED_AT, HEALED_AT - millis(500));
            // Whatever begins ends before the healing.
            let fault = fault(&mut random, HEALED_AT - at);
            faults.push((at, fault));
            // Who runs a server has set it right by the healing. Of the other clocks one half stays wrong.
            if let Fault::Jump { machine, .. } = fault
                && (matches!(machine, Machine::Server(_)) || random.bool())
            {
                faults.push((between(&mut random, at, HEALED_AT), Fault::SetRight { machine }));
            }
        }
        let plan = Self { weather, ..Self::quiet(seed, faults) };
        plan.with_searches(&mut random, 3)
    }

    /// A run on a good network, for a test that brings its own faults; searches at the healing and at the end.
    #[must_use]
    pub fn quiet(seed: u64, mut faults: Vec<(Duration, Fault)>) -> Self {
        faults.sort_by_key(|(at, _)| *at);
        // Of a vat's program one such thing is told, and what comes before it: which of two copies is meant, or a program
        // that does not run, would not be clear.
        let mut told = Vec::new();
        faults.retain(|(_, fault)| {
            let Some(vat) = fault.of_the_life_of() else { return true };
            let is_clear = !told.contains(&vat);
            told.extend((!matches!(fault, Fault::Moves { .. })).then_some(vat));
            is_clear
        });
        let plan = Self {
            seed,
            tick: millis(10),
            weather: Weather { least_latency: millis(10), most_latency: millis(30), loss: 0, duplication: 0 },
            vats: VATS,
            finders: FINDERS,
            faults,
            searches: Vec::new(),
            healed_at: Some(HEALED_AT),
            ends_at: HEALED_AT + RECOVERY + LAST_SEARCHES,
        };
        plan.with_searches_from_seed(0)
    }

    /// One of the servers is dead, one datagram in twenty is lost, and every finder searches every vat, once: a second
    /// search could be answered from memory.
    #[must_use]
    pub fn one_dead(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let weather = Weather { loss: 50, duplication: 0, ..weather(&mut random) };
        let crash = Fault::Crash { server: random.u8(0..SERVERS), empty: false, lasts: HEALED_AT };
        let mut plan = Self { weather, healed_at: None, ends_at: HEALED_AT, ..Self::quiet(seed, Vec::new()) };
        plan.faults = vec![(SETTLED_AT, crash)];
        plan.searches.clear();
        for finder in 0..plan.finders {
            let mut vats: Vec<u8> = (0..plan.vats).collect();
            random.shuffle(&mut vats);
            let at_any_time = |_: &u8| between(&mut random, SETTLED_AT + millis(100), HEALED_AT - LAST_SEARCHES);
            let mut times: Vec<Duration> = vats.iter().map(at_any_time).collect();
            times.sort_unstable();
            let search = |(at, vat)| (at, Search { finder, vat, connects: false });
            plan.searches.extend(times.into_iter().zip(vats).map(search));
        }
        plan.searches.sort_by_key(|(at, _)| *at);
        plan
    }

    /// A few vats for many leases, with clocks that jump and are set right again.
    #[must_use]
    pub fn many_leases(seed: u64, leases: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let ends_at = LEASE * leases;
        let mut faults = Vec::new();
        let (vats, finders) = (6, 4);
        for _ in 0..leases / 2 {
            let machine =
                if random.bool() { Machine::Server(random.u8(0..SERVERS)) } else { Machine::Vat(random.u8(0..vats)) };
            let at = between(&mut random, SETTLED_AT, ends_at - millis(500));
            faults.push((at, Fault::Jump { machine, ahead: random.bool(), by: jump(&mut random) }));
            let right = at + between(&mut random, LEASE, LEASE * 8);
            faults.extend((right < ends_at).then_some((right, Fault::SetRight { machine })));
        }
        faults.sort_by_key(|(at, _)| *at);
        let weather = Weather { loss: 20, ..weather(&mut random) };
        let tick = millis(20);
        let quiet = Self::quiet(seed, faults);
        Self { tick, vats, finders, weather, searches: Vec::new(), healed_at: None, ends_at, ..quiet }
    }

    /// The same plan with `count` searches of each finder on the way.
    #[must_use]
    pub fn with_searches_from_seed(self, count: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(!self.seed);
        self.with_searches(&mut random, count)
    }

    /// When each live vat has to be found by everybody.
    #[must_use]
    pub fn last_searches_at(&self) -> Option<Duration> {
        self.healed_at.map(|healed_at| healed_at + RECOVERY)
    }

    /// How long a datagram may take.
    #[must_use]
    pub fn longest_way(&self) -> Duration {
        self.weather.most_latency + self.tick
    }

    /// `count` searches of each finder on the way, one at the healing and one at the end.
    fn with_searches(mut self, random: &mut fastrand::Rng, count: usize) -> Self {
        self.searches.clear();
        for finder in 0..self.finders {
            let mut times: Vec<Duration> =
                (0..count).map(|_| between(random, millis(500), HEALED_AT - millis(1))).collect();
            times.sort_unstable();
            times.extend(self.healed_at);
            times.extend(self.last_searches_at());
            let mut vat = random.u8(0..self.vats);
            for at in times {
                // Never the same vat twice in a row: what a search leaves running is then told from the next.
                vat = another(random, vat, self.vats);
                let connects = random.u8(0..4) == 0;
                self.searches.push((at, Search { finder, vat, connects }));
            }
        }
        self.searches.sort_by_key(|(at, _)| *at);
        self
    }
}

impl Fault {
    /// Whose clock it sets, wrong or right.
    #[must_use]
    pub fn sets_clock_of(&self) -> Option<Machine> {
        match *self {
            Self::Jump { machine, .. } | Self::SetRight { machine } => Some(machine),
            _ => None,
        }
    }

    /// How long it lasts; zero for what happens at once.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match self {
            Self::Cut { lasts, .. }
            | Self::Isolate { lasts, .. }
            | Self::Crash { lasts, .. }
            | Self::Lies { lasts, .. }
            | Self::Storm { lasts, .. }
            | Self::Restarts { lasts, .. }
            | Self::Sleeps { lasts, .. } => *lasts,
            Self::Jump { .. }
            | Self::SetRight { .. }
            | Self::Moves { .. }
            | Self::Forks { .. }
            | Self::Departs { .. } => Duration::ZERO,
        }
    }

    /// The vat whose program it concerns.
    #[must_use]
    pub fn of_the_life_of(&self) -> Option<u8> {
        match self {
            Self::Moves { vat, .. }
            | Self::Restarts { vat, .. }
            | Self::Forks { vat }
            | Self::Sleeps { vat, .. }
            | Self::Departs { vat } => Some(*vat),
            _ => None,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, weather, vats, finders, .. } = self;
        writeln!(f, "seed {seed}: {vats} vats, {finders} finders, {weather:?}")?;
        for (at, fault) in &self.faults {
            writeln!(f, "{:>10.3} s  {fault:?}", at.as_secs_f64())?;
        }
        match self.healed_at {
            Some(healed_at) => write!(f, "{:>10.3} s  healed", healed_at.as_secs_f64()),
            None => write!(f, "{:>10.3} s  ended", self.ends_at.as_secs_f64()),
        }
    }
}

fn another(random: &mut fastrand::Rng, than: u8, of: u8) -> u8 {
    (than + random.u8(1..of)) % of
}

fn weather(random: &mut fastrand::Rng) -> Weather {
    let least_latency = between(random, millis(1), millis(40));
    Weather {
        least_latency,
        most_latency: least_latency + between(random, millis(1), millis(80)),
        // One network in three loses nothing, and one in three repeats nothing.
        loss: random.u16(0..=300).saturating_sub(100),
        duplication: random.u16(0..150).saturating_sub(50),
    }
}

fn jump(random: &mut fastrand::Rng) -> Duration {
    match random.u8(0..10) {
        0..=5 => between(random, SMALL_JUMP.0, SMALL_JUMP.1),
        6..=8 => JUMPS.0,
        _ => JUMPS.1,
    }
}

fn fault(random: &mut fastrand::Rng, at_most: Duration) -> Fault {
    let lasts = between(random, millis(100), HEALED_AT).min(at_most);
    let (server, vat, finder) = (random.u8(0..SERVERS), random.u8(0..VATS), random.u8(0..FINDERS));
    let way = [Way::Both, Way::Both, Way::Towards, Way::Back][random.usize(0..4)];
    let other = if random.bool() { Machine::Vat(vat) } else { Machine::Finder(finder) };
    match random.u8(0..20) {
        0..=2 => Fault::Cut { server, other, way, lasts },
        3 => Fault::Isolate { server, way, lasts },
        4 | 5 => Fault::Crash { server, empty: false, lasts },
        6 | 7 => Fault::Crash { server, empty: true, lasts },
        8..=10 => Fault::Lies { server, lie: Lie::ALL[random.usize(0..Lie::ALL.len())], lasts },
        11 | 12 => {
            let machine = [Machine::Server(server), other][random.usize(0..2)];
            Fault::Jump { machine, ahead: random.bool(), by: jump(random) }
        }
        13 => Fault::Storm { loss: random.u16(100..=200), lasts },
        14 | 15 => Fault::Moves { vat, stranger: random.bool() },
        16 => Fault::Restarts { vat, lasts },
        17 => Fault::Forks { vat },
        18 => Fault::Sleeps { vat, lasts },
        _ => Fault::Departs { vat },
    }
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
        let mut kinds = [0; 12];
        for seed in 0..1_000 {
            let plan = Plan::from_seed(seed);
            for (at, fault) in plan.faults {
                let kind = match fault {
                    Fault::Cut { .. } => 0,
                    Fault::Isolate { .. } => 1,
                    Fault::Crash { .. } => 2,
                    Fault::Lies { .. } => 3,
                    Fault::Jump { .. } => 4,
                    Fault::Storm { .. } => 5,
                    Fault::Moves { .. } => 6,
                    Fault::Restarts { .. } => 7,
                    Fault::Forks { .. } => 8,
                    Fault::Sleeps { .. } => 9,
                    Fault::Departs { .. } => 10,
                    Fault::SetRight { .. } => 11,
                };
                kinds[kind] += 1;
                assert!(at >= SETTLED_AT && at + fault.lasts() <= HEALED_AT);
            }
        }
        assert!(kinds.iter().all(|count| *count > 100), "{kinds:?}");
    }

    #[test]
    fn no_finder_searches_the_same_vat_twice_in_a_row_and_none_twice_where_lookups_are_counted() {
        let vats_of = |plan: &Plan, finder| -> Vec<u8> {
            let own = plan.searches.iter().filter(|(_, search)| search.finder == finder);
            own.map(|(_, search)| search.vat).collect()
        };
        let (plan, counted) = (Plan::from_seed(3), Plan::one_dead(3));
        for finder in 0..plan.finders {
            let vats = vats_of(&plan, finder);
            assert!(vats.windows(2).all(|pair| pair[0] != pair[1]) && !vats.is_empty());
            let mut vats = vats_of(&counted, finder);
            vats.sort_unstable();
            assert!(vats.into_iter().eq(0..counted.vats));
        }
    }
}
