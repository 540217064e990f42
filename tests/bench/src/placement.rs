//! On which processor a thread runs, where that decides the figure.
//!
//! A round trip between two threads takes about three times as long when they run on two processors of a quiet
//! machine, which must be woken each time, as when they share one. The scheduler chooses anew every few
//! milliseconds, and not alike for two programs that differ in nothing else. So where a round trip is timed, the
//! client has one processor and the servers another, as if they were two machines, for what is measured and for
//! its baseline alike.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Failure;

/// A side of a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who asks.
    Client,
    /// Who answers.
    Server,
}

/// Does `work` on the processor of one side, with every thread that it starts; these stay there.
///
/// # Errors
/// The system's; those of `work` are its own.
pub(crate) fn on_processor_of<R>(side: Side, work: impl FnOnce() -> R) -> Result<R, Failure> {
    let all = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&processor| all.is_set(processor));
    // First and last: neighbours in number are often two halves of one processor.
    let chosen = match side {
        Side::Client => allowed.next(),
        Side::Server => allowed.next_back(),
    };
    let mut only = CpuSet::new();
    only.set(chosen.ok_or("this process may use no processor")?);
    sched_setaffinity(None, &only)?;
    let result = work();
    sched_setaffinity(None, &all)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> u32 {
        sched_getaffinity(None).unwrap().count()
    }

    #[test]
    fn a_thread_stays_on_the_processor_on_which_it_was_started_and_its_maker_does_not() {
        let before = allowed();
        let started = on_processor_of(Side::Server, || std::thread::spawn(allowed)).unwrap();
        assert_eq!(started.join().unwrap(), 1);
        assert_eq!(allowed(), before);
    }
}
