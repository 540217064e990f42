//! Runs the pages of the manual: what a page shows is what happens.
//!
//! In a ```` ```console ```` block, a line that begins with `$ ` is a command, `> ` goes on with it, and the
//! lines below are what it prints, standard output and standard error together. All blocks of a page are run
//! in one shell, in order, with an empty home folder.
//!
//! * `…` in an expected line stands for any text; alone on a line, for any number of lines.
//! * `…` in a command means "what you saw before": the word is replaced by the last printed word that fits,
//!   with anything but `#`, `/`, `@`, `?` and `,` in the place of each `…`.
//! * Behind a command that ends with `&` the page goes on once the expected lines have appeared; such a
//!   program may print more later. All of them are killed at the end of the page.
//! * A command may fail only where the page shows its error or asks for `$?` next.
//! * The port 4433 stands for a free one.

use std::{
    fs,
    io::Write,
    net::UdpSocket,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::Arc,
    thread,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    command::kill_group,
    programs::program,
    running::{Lines, read},
    world::World,
};

const GAP: char = '…';

/// The port that a page names, and that may be taken on the machine of the test.
const PORT: &str = "4433";

/// Reads commands that end with a zero byte, so that the commands themselves have an empty standard input;
/// says after each one how it ended.
const SHELL: &str = r#"
    exec 3<&0 </dev/null 2>&1
    umask 022
    status=0
    while IFS= read -r -d '' -u 3 command; do
        (exit "$status")
        eval "$command"
        status=$?
        printf '\n:status: %s\n' "$status"
    done
"#;

/// One command of a page.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// Its line in the page, from 1.
    line: usize,
    command: String,
    expected: Vec<String>,
}

/// Runs every console block of a page.
///
/// # Panics
/// When anything happens that the page does not show.
pub fn run_page(world: &World, page: &Path) {
    run_page_with(world, page, &[]);
}

/// The same with the programs of more folders at hand.
///
/// # Panics
/// As [`run_page`].
pub fn run_page_with(world: &World, page: &Path, programs: &[PathBuf]) {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    run_steps(world, &page.display().to_string(), &text, programs);
}

/// The same for a page that is not in a file of its own.
///
/// # Panics
/// As [`run_page`].
pub fn run_text(world: &World, page: &str, text: &str) {
    run_steps(world, page, text, &[]);
}

fn run_steps(world: &World, page: &str, text: &str, programs: &[PathBuf]) {
    let steps = steps(text);
    assert!(!steps.is_empty(), "{page} has no console block");
    let mut shell = Shell::start(world, programs);
    for (index, step) in steps.iter().enumerate() {
        let may_fail = steps.get(index + 1).is_some_and(|next| next.command.contains("$?"));
        if let Err(problem) = shell.run(step, may_fail) {
            panic!("{page}:{}: $ {}\n{problem}", step.line, step.command);
        }
    }
}

/// The commands of a page with the lines below them.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_console = false;
    for (index, line) in page.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            in_console = language == "console";
            continue;
        }
        if !in_console {
            continue;
        }
        match (line.strip_prefix("$ "), line.strip_prefix("> "), steps.last_mut()) {
            (Some(command), _, _) => {
                steps.push(Step { line: index + 1, command: command.to_owned(), expected: Vec::new() });
            }
            (None, Some(more), Some(step)) if step.expected.is_empty() => {
                step.command = format!("{}\n{more}", step.command);
            }
            (None, _, Some(step)) => step.expected.push(line.trim_end().to_owned()),
            (None, _, None) => panic!("line {}: output without a command: {line}", index + 1),
        }
    }
    steps
}

struct Shell<'w> {
    world: &'w World,
    child: Child,
    commands: ChildStdin,
    output: Arc<Lines>,
    /// Lines of `output` that belong to commands before.
    read: usize,
    /// All that was printed, for words that commands repeat.
    printed: Vec<String>,
    /// What stands for [`PORT`].
    port: String,
}

impl<'w> Shell<'w> {
    fn start(world: &'w World, more: &[PathBuf]) -> Self {
        let vat = program("vat");
        let programs = vat.parent().expect("a program lies in a folder");
        let path = std::env::var("PATH").unwrap_or_default();
        let folders =
            more.iter().map(PathBuf::as_path).chain([programs]).map(|folder| format!("{}:", folder.display()));
        let mut command = world.command("bash");
        command
            .args(["--noprofile", "--norc", "-c", SHELL])
            .env("PATH", format!("{}{path}", folders.collect::<String>()));
        command.current_dir(world.path("user"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("bash");
        let output = Arc::<Lines>::default();
        // What the shell shows is searched command by command, because some are made to show a secret.
        read(child.stdout.take().expect("piped"), output.clone(), PathBuf::from("/dev/null"));
        Self {
            world,
            commands: child.stdin.take().expect("piped"),
            child,
            output,
            read: 0,
            printed: Vec::new(),
            port: free_port(),
        }
    }

    fn run(&mut self, step: &Step, may_fail: bool) -> Result<(), String> {
        let command = self.fill_in(&step.command)?.replace(PORT, &self.port);
        match command.strip_suffix('&').filter(|command| !command.ends_with('&')) {
            Some(command) => self.run_in_background(command, &step.expected),
            None => self.run_to_end(&command, &step.expected, may_fail),
        }
    }

    fn run_to_end(&mut self, command: &str, expected: &[String], may_fail: bool) -> Result<(), String> {
        let (printed, status) = self.execute(command)?;
        if !agree(expected, &printed, true) {
            return Err(difference(expected, &printed));
        }
        let fails =
            may_fail || expected.iter().any(|line| line.starts_with("error: ") || line.starts_with(r#"{"error":"#));
        if status != "0" && !fails {
            return Err(format!("it ended with {status}, and the page does not show that"));
        }
        self.take_note(command, printed);
        Ok(())
    }

    fn run_in_background(&mut self, command: &str, expected: &[String]) -> Result<(), String> {
        let place = self.world.output_place("background");
        let pipe = place.with_extension("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(|error| error.to_string())?;
        let lines = Arc::<Lines>::default();
        thread::spawn({
            let (pipe, lines) = (pipe.clone(), lines.clone());
            // Opening waits until the program has opened its end.
            move || read(fs::File::open(pipe).expect("a pipe in the world"), lines, place.with_extension("out"))
        });
        let (started, _) = self.execute(&format!("{command} >'{}' 2>&1 &", pipe.display()))?;
        if !started.is_empty() {
            return Err(format!("the shell says: {}", started.join("\n")));
        }
        let port = &self.port;
        let found = lines.wait_until(|lines| {
            let lines: Vec<String> = lines.iter().map(|line| line.replace(port, PORT)).collect();
            agree(expected, &lines, false).then_some(lines)
        });
        match found {
            Some(printed) => self.printed.extend(printed),
            None => {
                let lines = lines.text().replace(port, PORT);
                return Err(difference(expected, &lines.lines().map(str::to_owned).collect::<Vec<_>>()));
            }
        }
        Ok(())
    }

    /// Sends a command to the shell, and returns what was printed and how it ended.
    fn execute(&mut self, command: &str) -> Result<(Vec<String>, String), String> {
        let sent = self.commands.write_all(command.as_bytes()).and_then(|()| self.commands.write_all(b"\0"));
        sent.and_then(|()| self.commands.flush()).map_err(|error| format!("the shell is gone: {error}"))?;
        let read = self.read;
        let ended = self.output.wait_until(|lines| {
            let end = lines.iter().skip(read).position(|line| line.starts_with(":status: "))? + read;
            Some((lines[read..end].to_vec(), lines[end].clone(), end))
        });
        let Some((mut printed, status, end)) = ended else {
            return Err(format!("it did not end; until now it printed:\n{}", self.output.text()));
        };
        self.read = end + 1;
        // The line that the shell itself began, in case the command's last line had no end.
        if printed.last().is_some_and(String::is_empty) {
            printed.pop();
        }
        let printed = printed.iter().map(|line| line.trim_end().replace(&self.port, PORT)).collect();
        Ok((printed, status.trim_start_matches(":status: ").to_owned()))
    }

    /// Remembers what was printed, and keeps it for the search unless it was to be a secret.
    fn take_note(&mut self, command: &str, printed: Vec<String>) {
        if command.contains("share ") || command.contains("lookup ") {
            printed.iter().flat_map(|line| words(line)).filter(|word| is_sturdyref(word)).for_each(|word| {
                self.world.mint(word);
            });
        } else {
            let place = self.world.output_place("shell").with_extension("out");
            fs::write(place, printed.join("\n")).expect("a file in the world");
        }
        self.printed.extend(printed);
    }

    /// Replaces the words with a gap by what was printed before.
    fn fill_in(&self, command: &str) -> Result<String, String> {
        let mut filled = command.to_owned();
        for word in words(command).filter(|word| word.contains(GAP)) {
            let printed = self.printed.iter().rev().flat_map(|line| words(line));
            let is_meant = |candidate: &&str| fits(word, candidate, |text| !text.contains(['#', '/', '@', '?', ',']));
            let meant = printed.into_iter().find(is_meant);
            let meant = meant.ok_or_else(|| format!("nothing like {word} was printed before"))?;
            filled = filled.replacen(word, meant, 1);
        }
        Ok(filled)
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        kill_group(self.child.id());
        // It is dead; the rest is the system's business.
        let _ = self.child.wait();
        keep_private(self.world);
    }
}

/// Homes and server folders that a page made are as private as all others.
fn keep_private(world: &World) {
    let entries = fs::read_dir(world.path("user")).expect("the user's folder");
    for folder in entries.flatten().map(|entry| entry.path()) {
        if ["keys", "vats", "identity.key"].iter().any(|part| folder.join(part).exists()) {
            world.keep_private(&folder);
        }
    }
}

fn free_port() -> String {
    let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0")).expect("a free port");
    socket.local_addr().expect("a bound socket has an address").port().to_string()
}

fn is_sturdyref(word: &str) -> bool {
    word.parse::<schemas::SturdyRef>().is_ok()
}

/// Words as a reader would copy them: without quotes and brackets around them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '(' | ')' | ';')).filter(|word| !word.is_empty())
}

/// Whether the lines are the expected ones, with nothing behind them if `whole`.
fn agree(expected: &[String], lines: &[String], whole: bool) -> bool {
    let Some((first, rest)) = expected.split_first() else { return !whole || lines.is_empty() };
    if first.chars().eq([GAP]) {
        return (0..=lines.len()).any(|skipped| agree(rest, &lines[skipped..], whole));
    }
    let Some((line, others)) = lines.split_first() else { return false };
    fits(first, line.trim_end(), |_| true) && agree(rest, others, whole)
}

/// Whether a text fits a pattern, with something that `fills` in the place of each gap.
fn fits(pattern: &str, text: &str, fills: impl Fn(&str) -> bool + Copy) -> bool {
    let Some((before, after)) = pattern.split_once(GAP) else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|end| fills(&rest[..end]) && fits(after, &rest[end..], fills))
}

fn difference(expected: &[String], printed: &[String]) -> String {
    format!("--- the page shows\n{}\n--- it printed\n{}", expected.join("\n"), printed.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn run(page: &str) -> bool {
        let world = World::new();
        let file = world.path("page.md");
        fs::write(&file, page).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| run_page(&world, &file)));
        world.no_secret_leaked();
        outcome.is_ok()
    }

    fn console(lines: &str) -> String {
        format!("# A page\n\n```console\n{lines}\n```\n")
    }

    #[test]
    fn a_true_page_passes() {
        assert!(run(&console("$ echo one; echo two\none\ntwo\n$ X=3\n$ echo $X >&2\n3\n$ printf half\nhalf")));
        assert!(run(&console("$ for i in 1 2; do\n>   echo $i\n> done\n1\n2")));
        assert!(run(&console("$ seq 9\n1\n…\n9\n$ echo a b c\na … c")));
        assert!(run(&console("$ sh -c 'echo error: no; exit 7'\nerror: no\n$ echo $?\n7")));
        assert!(run(&console("$ cat\n$ pwd\n…/user")));
        assert!(!run("```sh\necho\n```"), "a page without a console block shows nothing");
    }

    #[test]
    fn a_page_that_shows_something_else_fails() {
        for page in ["$ echo one\ntwo", "$ echo one", "$ true\none", "$ false", "$ echo 1; echo 2\n1", "$ echo …x"] {
            assert!(!run(&console(page)), "{page}");
        }
    }

    #[test]
    fn a_word_with_a_gap_is_what_was_printed_last() {
        let page = "$ echo 'at vls://abc@host:4433, ok'; echo vls://def@host:4433\n…\nvls://…@host:4433\n\
                    $ echo now vls://…@host:4433\nnow vls://def@host:4433";
        assert!(run(&console(page)));
    }

    #[test]
    fn a_program_in_the_background_is_waited_for_and_may_go_on() {
        let page = "$ sh -c 'echo ready; echo more; exec sleep 1000' &\nready\n$ kill %1\n$ wait $!\n$ echo $?\n143";
        assert!(run(&console(page)));
        assert!(!run(&console("$ echo never &\nready")), "it ended without the line");
    }
}
