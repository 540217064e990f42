//! How long a store takes to open after its process was killed.
//!
//! The process is a real one: this program with the argument [`VICTIM`], which opens the store, commits a turn,
//! folds it, and is killed with SIGKILL while it has the store open. So there is no frame after the last fold:
//! what replaying them costs depends on how many there are.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use checkpoint::{Change, FileDisk, Protection, RowKey, Store, StoreError, StoreOptions, TurnDelta};

use crate::{
    Failure,
    rounds::{Comparison, Effort, compare, median, microseconds},
};

/// The argument that makes this program the process that is killed.
pub(crate) const VICTIM: &str = "--victim";

const VAT: [u8; 32] = [7; 32];
const SPACE: u64 = 16;
const ROW_BYTES: usize = 4000;

/// `Store::open` against opening the base alone with redb: quick-repair is on in both. Each opens what a new
/// victim has left. Times are medians; both find the file in the page cache.
pub(super) async fn measure(effort: Effort, folder: &Path) -> Result<Comparison, Failure> {
    // Makes the store.
    kill_a_victim(folder, effort.base_bytes)?;
    compare(
        effort,
        async || {
            repeated(effort.opens, || {
                let turn = kill_a_victim(folder, effort.base_bytes)?;
                let begun = Instant::now();
                let store = open(folder)?;
                let time = microseconds(begun.elapsed());
                if store.durable().turn != turn || store.get(&row(turn))? != Some(value(turn)) {
                    return Err(format!("turn {turn} was acknowledged, and {:?} was found", store.durable()).into());
                }
                store.close()?;
                Ok(time)
            })
        },
        async || {
            repeated(effort.opens, || {
                kill_a_victim(folder, effort.base_bytes)?;
                let begun = Instant::now();
                let base = redb::Database::open(folder.join("store/base.redb"))?;
                let time = microseconds(begun.elapsed());
                drop(base);
                Ok(time)
            })
        },
    )
    .await
}

fn repeated(times: usize, mut operation: impl FnMut() -> Result<f64, Failure>) -> Result<f64, Failure> {
    Ok(median((0..times).map(|_| operation()).collect::<Result<Vec<_>, _>>()?))
}

/// Starts a victim, kills it as soon as it has acknowledged its turn, and gives the turn.
fn kill_a_victim(folder: &Path, base_bytes: u64) -> Result<u64, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(VICTIM).arg(folder).arg(base_bytes.to_string());
    let mut victim = Killed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let output = victim.0.stdout.take().ok_or("a process without its standard output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let turn = line.trim_end().parse().map_err(|_| "the process that was to be killed ended before")?;
    let status = victim.kill()?;
    if status.code().is_some() {
        return Err(format!("the process ended by itself: {status}").into());
    }
    Ok(turn)
}

struct Killed(Child);

impl Killed {
    fn kill(&mut self) -> io::Result<std::process::ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Already killed, unless something failed that says more.
        let _ = self.kill();
    }
}

/// The process that is killed. Its arguments are the folder and the least length of the base.
///
/// # Errors
/// When the store fails, or when nobody kills it.
pub(crate) fn victim(arguments: &[String]) -> Result<(), Failure> {
    let [folder, base_bytes] = arguments else { return Err("arguments: FOLDER BYTES".into()) };
    let (folder, base_bytes) = (Path::new(folder), base_bytes.parse()?);
    let store = match open(folder) {
        Err(StoreError::Missing { .. }) => create(folder, base_bytes)?,
        opened => opened?,
    };
    let turn = store.position().turn + 1;
    set(&store, turn)?;
    store.fold()?;
    writeln!(io::stdout(), "{turn}")?;
    // Until the end, which comes from outside.
    io::stdin().read_to_end(&mut Vec::new())?;
    Err("nobody has killed this process".into())
}

fn create(folder: &Path, base_bytes: u64) -> Result<Store, Failure> {
    let store = Store::create(Arc::new(FileDisk), &folder.join("store"), &VAT, &protection(folder), options())?;
    let mut turn = 0;
    while fs::metadata(folder.join("store/base.redb"))?.len() < base_bytes {
        // Not more at once than lets the loop end near the length that was asked for.
        for _ in 0..256 {
            turn += 1;
            set(&store, turn)?;
        }
        store.fold()?;
    }
    Ok(store)
}

fn set(store: &Store, turn: u64) -> Result<(), StoreError> {
    store.submit(TurnDelta { turn, changes: vec![Change { key: row(turn), value: Some(value(turn)) }] })
}

fn row(turn: u64) -> RowKey {
    RowKey { space: SPACE, name: turn.to_be_bytes().to_vec() }
}

fn value(turn: u64) -> Vec<u8> {
    let mut value = vec![0x5a; ROW_BYTES];
    value[..8].copy_from_slice(&turn.to_be_bytes());
    value
}

fn open(folder: &Path) -> Result<Store, StoreError> {
    Store::open(Arc::new(FileDisk), &folder.join("store"), &VAT, &protection(folder), options())
}

fn protection(folder: &Path) -> Protection {
    Protection::KeyFile(folder.join("store.key"))
}

fn options() -> StoreOptions {
    StoreOptions::default()
}
