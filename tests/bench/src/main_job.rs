//! `main-job`: the path that everything else hangs on. A vat is found by its id, called, and remembers.
//!
//! A location server and a vat run as their programs run them; the vat has registered itself. The client is
//! this thread.
//!
//! | figure | what one operation is | baseline |
//! |---|---|---|
//! | `resolve_warm` | one `Resolver::resolve` over the session that the resolver keeps | bare echo |
//! | `resolve_cold` | the same with a new endpoint and a new resolver: handshake, session, lookup, signature check | bare echo, warm |
//! | `call_sequential` | one `Counter.get` over a warm session, engine and output gate in place | bare echo |
//! | `durable_add_1`, `_16`, `_256` | one `Counter.add`, with so many callers who each call again when answered | sealed journal alone, as many waiters |
//!
//! Times are the median of a round's operations; see [`crate::rounds`] for what becomes of the rounds.

mod durable;
mod latency;

use crate::{
    Failure, Report, echo,
    figure::{Figure, Unit},
    folder,
    live_vat::CounterVat,
    location_server, note,
    placement::{Side, on_processor_of},
    program::run as on_this_thread,
    rounds::{Comparison, Effort},
};

/// Callers at once, and the figure that they make.
const DURABLE: [(u64, &str); 3] = [(1, "durable_add_1"), (16, "durable_add_16"), (256, "durable_add_256")];

/// Measures all figures.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    let folder = folder::temporary()?;
    let server = on_processor_of(Side::Server, || location_server::start(folder.path().join("location-server")))??;
    let vat = CounterVat::create(folder.path(), server.greeting())?;
    let echo = on_processor_of(Side::Server, echo::start)??;

    let awake = on_processor_of(Side::Server, || vat.wake())??;
    let setting =
        latency::Setting { effort, vat: &vat, live: awake.greeting(), path: server.greeting(), echo: echo.greeting() };
    let mut time = |name, comparison| told(name, Unit::Microseconds, comparison, report);
    let measure = async {
        time("resolve_warm", latency::resolve_warm(&setting).await?)?;
        time("resolve_cold", latency::resolve_cold(&setting).await?)?;
        time("call_sequential", latency::call_sequential(&setting).await?)
    };
    on_processor_of(Side::Client, || on_this_thread(measure))??;
    awake.stop()?;
    echo.stop()?;

    for (callers, name) in DURABLE {
        let comparison = durable::add(effort, &vat, folder.path(), callers, name)?;
        told(name, Unit::CallsPerSecond, comparison, report)?;
    }
    server.stop()
}

fn told(name: &'static str, unit: Unit, comparison: Comparison, report: Report<'_>) -> Result<(), Failure> {
    note(&format!("{name}: {comparison}"));
    report(Figure { name, unit, comparison })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_six_figures_come_once_under_their_stable_names() {
        let mut figures = Vec::new();
        run(Effort::LEAST, &mut |figure| {
            figures.push(figure);
            Ok(())
        })
        .unwrap();
        let names: Vec<_> = figures.iter().map(|figure| figure.name).collect();
        let expected =
            ["resolve_warm", "resolve_cold", "call_sequential", "durable_add_1", "durable_add_16", "durable_add_256"];
        assert_eq!(names, expected);
        for Figure { name, comparison, .. } in figures {
            assert!(comparison.value > 0.0 && comparison.baseline > 0.0, "{name}: {comparison:?}");
        }
    }
}
