//! `vat demo`: the whole story on this machine, with real processes and a real SIGKILL.
//!
//! The demo types commands as a user would and shows them; it reads their JSON to check that what it says
//! is what happened. It ends with exit 0 only if every promise was seen to hold.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use console::{Failure, Output};
use schemas::{ErrorCode, Exit};
use serde_json::Value;

/// `vat demo`
pub(super) fn demo(output: Output) -> Result<Exit, Failure> {
    let began = Instant::now();
    let stage = Stage::set(output)?;
    let total = play(&stage)?;
    let seconds = began.elapsed().as_secs_f64();
    stage.say(&format!(
        "\nThat was all of it, in {seconds:.1} s: found by its id, called, killed, and still knowing {total}.\n\
         Make your own: `vat new NAME --object counter`, then `vat run NAME`."
    ));
    if output.is_json() {
        output.line(&serde_json::json!({"ok": true, "total": total, "seconds": seconds}).to_string())?;
    }
    Ok(Exit::Ok)
}

fn play(stage: &Stage) -> Result<u64, Failure> {
    stage.say("1. A volunteer starts a location server. It prints the line that others put into their search path.");
    let mut server =
        stage.start(&stage.server, &[super::LOCATION_SERVER, "run", "--listen", "127.0.0.1:0", "--data", "data"])?;
    let entry = server.read_line()?;
    stage.say(&format!("   {entry}"));

    stage.say("\n2. Alice adds it to her search path, makes a vat that holds a counter, and wakes it.");
    stage.run(&stage.alice, &["vls", "add", &entry])?;
    let made = stage.run(&stage.alice, &["new", "tally", "--object", "counter"])?;
    let id = text(&made, "vat")?;
    let mut vat = stage.start(&stage.alice, &["--json", "run", "tally", "--listen", "127.0.0.1:0"])?;
    let live = vat.read_json()?;
    stage.say(&format!("   {id} is awake in epoch {}", number(&live, "epoch")?));

    stage.say("\n3. She grants it to Bob. The reference is a secret: it names the vat, and opens the one object.");
    let shared = stage.run(&stage.alice, &["share", "tally", "--label", "for Bob"])?;
    let reference = text(&shared, "sturdyref")?;

    stage.say("\n4. Bob has another home folder and knows nothing but the reference and a location server.");
    stage.run(&stage.bob, &["vls", "add", &entry])?;
    stage.run_with_input(&stage.bob, &["accept", "tally-of-alice", "-"], &reference)?;
    let found = stage.run(&stage.bob, &["resolve", &id])?;
    stage.say(&format!("   found at {}", found["addresses"][0].as_str().unwrap_or("?")));
    let mut total = 0;
    for by in [1, 2, 39] {
        let by = format!("by={by}");
        total = number(&stage.run(&stage.bob, &["call", "tally-of-alice", "add", &by])?, "total")?;
        stage.say(&format!("   add {by}: the counter stands at {total}"));
    }
    stage.check(total == 42, "three additions make 42")?;

    stage.say("\n5. The vat's process gets SIGKILL: no warning, no time to save anything.");
    vat.kill()?;
    let failure = stage.fail(&stage.bob, &["call", "tally-of-alice", "get", "--timeout", "3"])?;
    stage.say(&format!("   Bob's call now ends with {failure}: he is told so, and nothing pretends"));

    stage.say("\n6. Alice wakes it again. What it had acknowledged, it still knows.");
    let mut vat = stage.start(&stage.alice, &["--json", "run", "tally", "--listen", "127.0.0.1:0"])?;
    let live = vat.read_json()?;
    stage.say(&format!("   awake in epoch {}, at turn {}", number(&live, "epoch")?, number(&live, "turn")?));
    let after = number(&stage.run(&stage.bob, &["call", "tally-of-alice", "get"])?, "total")?;
    stage.say(&format!("   the counter stands at {after}"));
    stage.check(after == total, "nothing that was acknowledged is forgotten")?;

    stage.say("\n7. The location server gets SIGKILL as well. Bob still has the vat's signed record.");
    server.kill()?;
    let total = number(&stage.run(&stage.bob, &["call", "tally-of-alice", "add", "by=1"])?, "total")?;
    stage.say(&format!("   add by=1: the counter stands at {total}"));

    stage.say("\n8. Nothing on the disk says what the vat holds.");
    let secret = reference.rsplit('#').next().unwrap_or(&reference).to_owned();
    for forbidden in [secret.as_str(), "for Bob", "counter"] {
        let found = search(&stage.alice.join("vats"), forbidden.as_bytes())?;
        stage.check(found.is_none(), "the checkpoint is sealed")?;
    }
    stage.say("   neither the secret, nor the grant's label, nor the kind of object is in any file of the vat");

    stage.say("\n9. Ctrl-C puts the vat to sleep.");
    vat.interrupt()?;
    Ok(total)
}

/// The folders and the program that the demo uses.
struct Stage {
    folder: PathBuf,
    server: PathBuf,
    alice: PathBuf,
    bob: PathBuf,
    program: PathBuf,
    output: Output,
}

impl Stage {
    fn set(output: Output) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| io(Path::new("this program"), &error))?;
        let mut random = [0; 6];
        getrandom::fill(&mut random)
            .map_err(|error| Failure::new(ErrorCode::SystemRandom, format!("no random numbers: {error}")))?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("vat-demo-{name}"));
        crate::home::make_folder(&folder)?;
        let [server, alice, bob] = ["server", "alice", "bob"].map(|who| folder.join(who));
        for place in [&server, &alice, &bob] {
            crate::home::make_folder(place)?;
        }
        Ok(Self { folder, server, alice, bob, program, output })
    }

    /// The story goes to standard output for a person, and nowhere for a program.
    fn say(&self, text: &str) {
        if !self.output.is_json() {
            // Who closes the pipe does not want to hear the rest of the story.
            let _ = self.output.line(text);
        }
    }

    fn show(&self, home: &Path, arguments: &[&str]) {
        let who = home.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let shown: Vec<_> = arguments.iter().filter(|argument| **argument != "--json").copied().collect();
        let program = if arguments.first() == Some(&super::LOCATION_SERVER) { "vls-server" } else { "vat" };
        let shown = if program == "vls-server" { &shown[1..] } else { &shown[..] };
        self.say(&format!("   {who} $ {program} {}", shown.join(" ")));
    }

    fn command(&self, home: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(home).env("VAT_HOME", home).stdin(Stdio::null());
        // What the demo reads from standard error is one JSON object.
        command.env_remove("VAT_LOG").env_remove("VLS_LOG");
        command
    }

    fn run(&self, home: &Path, arguments: &[&str]) -> Result<Value, Failure> {
        self.run_with_input(home, arguments, "")
    }

    /// Runs a command to its end; it must succeed. What it prints is returned.
    fn run_with_input(&self, home: &Path, arguments: &[&str], input: &str) -> Result<Value, Failure> {
        self.show(home, arguments);
        let mut command = self.command(home, arguments);
        command.arg("--json").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| io(&self.program, &error))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(|error| io(&self.program, &error))?;
        }
        let done = child.wait_with_output().map_err(|error| io(&self.program, &error))?;
        if !done.status.success() {
            let reason = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            return Err(broken(&format!("`vat {}` ended with {}: {reason}", arguments.join(" "), done.status)));
        }
        parse(&String::from_utf8_lossy(&done.stdout))
    }

    /// Runs a command that must fail, and returns its error code.
    fn fail(&self, home: &Path, arguments: &[&str]) -> Result<String, Failure> {
        self.show(home, arguments);
        let done = self.command(home, arguments).arg("--json").output().map_err(|error| io(&self.program, &error))?;
        self.check(!done.status.success(), "a call to a dead vat fails")?;
        let error = parse(&String::from_utf8_lossy(&done.stderr))?;
        text(&error["error"], "code")
    }

    /// Starts a program that goes on running.
    fn start(&self, home: &Path, arguments: &[&str]) -> Result<Running, Failure> {
        self.show(home, arguments);
        let mut command = self.command(home, arguments);
        // Its log is kept, to be shown if it says nothing on standard output.
        let log = home.join("log");
        let file = std::fs::File::create(&log).map_err(|error| io(&log, &error))?;
        let child = command.stdout(Stdio::piped()).stderr(file).spawn();
        let mut child = child.map_err(|error| io(&self.program, &error))?;
        let stdout = child.stdout.take().ok_or_else(|| broken("a child has no standard output"))?;
        Ok(Running { child, lines: BufReader::new(stdout), log })
    }

    fn check(&self, holds: bool, promise: &str) -> Result<(), Failure> {
        if holds { Ok(()) } else { Err(broken(&format!("not seen to hold: {promise}"))) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What is left of a demo in the folder for temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A child process; killed when dropped.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    log: PathBuf,
}

impl Running {
    fn read_line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            return Err(broken(&format!("a process ended before it was ready: {}", log.trim())));
        }
        Ok(line.trim_end().to_owned())
    }

    fn read_json(&mut self) -> Result<Value, Failure> {
        parse(&self.read_line()?)
    }

    /// SIGKILL, and waits until the process is gone.
    fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(|error| io(&self.log, &error))
    }

    /// SIGINT, and waits until the process has ended by itself.
    fn interrupt(mut self) -> Result<(), Failure> {
        let process = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let process = process.ok_or_else(|| broken("a child has no process id"))?;
        rustix::process::kill_process(process, rustix::process::Signal::INT)
            .map_err(|error| io(&self.log, &error.into()))?;
        let status = self.child.wait().map_err(|error| io(&self.log, &error))?;
        if status.success() { Ok(()) } else { Err(broken(&format!("the vat did not go to sleep properly: {status}"))) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text.trim()).map_err(|error| broken(&format!("a command printed no JSON: {error}")))
}

fn text(value: &Value, key: &str) -> Result<String, Failure> {
    value[key].as_str().map(str::to_owned).ok_or_else(|| broken(&format!("a command printed no {key}")))
}

fn number(value: &Value, key: &str) -> Result<u64, Failure> {
    value[key].as_u64().ok_or_else(|| broken(&format!("a command printed no {key}")))
}

/// The first file below `folder` that contains `needle`.
fn search(folder: &Path, needle: &[u8]) -> Result<Option<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|error| io(folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| io(folder, &error))?.path();
        if path.is_dir() {
            if let Some(found) = search(&path, needle)? {
                return Ok(Some(found));
            }
        } else if let Ok(contents) = std::fs::read(&path)
            && contents.windows(needle.len()).any(|window| window == needle)
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn broken(message: &str) -> Failure {
    Failure::new(ErrorCode::Internal, format!("the demo: {message}"))
}

fn io(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("{}: {error}", path.display()))
}
