//! Benchmarks: each figure with a baseline that is measured in the same run, so that it means the same on
//! every machine.
//!
//! ```sh
//! cargo run --release -p bench -- main-job
//! ```
//!
//! prints one JSON line per figure, `{"name":…,"value":…,"unit":…,"baseline":…,"ratio":…}`, and notes on
//! standard error. `ratio` is `value / baseline`; both are medians over rounds that take turns (see
//! [`rounds`]). Names of figures never change their meaning; `docs/benchmarks.md` says what each one measures.
//!
//! With `--brief` each figure is measured once and with the least effort, to see that it works. `vls` measures one figure
//! alone if its name follows.
//!
//! A benchmark is one module with a `run`, and one line in [`BENCHES`]. What several of them need stands
//! beside them: [`echo`] and [`journal`] are baselines, and [`bare`] is what baselines on a network stand on;
//! [`location_server`] and [`live_vat`] are what is
//! measured, each as [`program`] runs it: on a thread of its own with an event loop of its own; [`placement`]
//! keeps the scheduler from deciding a comparison; [`allocations`] counts memory.

mod allocations;
mod bare;
mod checkpoint_engine;
mod echo;
mod exchange;
mod figure;
mod flood;
mod folder;
mod journal;
mod live_vat;
mod location_server;
mod main_job;
mod placement;
mod program;
mod rounds;
mod sessions;
mod vls;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use figure::Figure;
use rounds::Effort;

/// Why a benchmark gave up. A person reads it; nobody tells one from another.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Takes the figures one by one, as soon as each is known.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Figure) -> Result<(), Failure>;

/// One benchmark: a few figures that are measured together.
struct Bench {
    name: &'static str,
    summary: &'static str,
    /// The name of one of its figures, if it can be measured alone.
    figure: fn(&str) -> Option<&'static str>,
    run: fn(Effort, Report<'_>) -> Result<(), Failure>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "main-job",
        summary: "find a vat by its id, call it, and have it remember",
        figure: none,
        run: main_job::run,
    },
    Bench {
        name: "flood",
        summary: "answer an honest peer beside one that sends without end",
        figure: none,
        run: flood::run,
    },
    Bench {
        name: "checkpoint",
        summary: "make turns durable, sealed, and open again",
        figure: none,
        run: checkpoint_engine::run,
    },
    Bench { name: "vls", summary: "keep the records of a million vats", figure: vls::figure, run: vls::run },
    Bench {
        name: "transport",
        summary: "call over a session, connect, and keep sessions idle",
        figure: none,
        run: sessions::run,
    },
];

/// Of a benchmark whose figures are measured together.
fn none(_: &str) -> Option<&'static str> {
    None
}

/// Measures each figure once and briefly: whether it works, not how fast it is.
const BRIEF: &str = "--brief";

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| BENCHES.iter().find(|bench| bench.name == name);
    let chosen = match arguments.as_slice() {
        [argument, rest @ ..] if argument == checkpoint_engine::VICTIM => {
            return ended(argument, checkpoint_engine::victim(rest));
        }
        [argument, rest @ ..] if argument == vls::SERVE => return ended(argument, vls::serve(rest)),
        [name] => named(name).map(|bench| (bench, Effort::FULL)),
        [name, brief] if brief == BRIEF => named(name).map(|bench| (bench, Effort::LEAST)),
        [name, figure] => named(name).and_then(|bench| {
            let only = (bench.figure)(figure)?;
            Some((bench, Effort { only: Some(only), ..Effort::FULL }))
        }),
        _ => None,
    };
    let Some((bench, effort)) = chosen else {
        note("usage: bench NAME [--brief | FIGURE], where NAME is one of");
        BENCHES.iter().for_each(|bench| note(&format!("  {:12} {}", bench.name, bench.summary)));
        return ExitCode::from(EXIT_USAGE);
    };
    ended(bench.name, (bench.run)(effort, &mut print))
}

fn ended(name: &str, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(&format!("{name}: {failure}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn print(figure: Figure) -> Result<(), Failure> {
    Ok(writeln!(io::stdout().lock(), "{figure}")?)
}

/// Tells the person who watches something that is no figure.
pub(crate) fn note(text: &str) {
    // Nobody may be watching.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
