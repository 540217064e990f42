//! `help [CODE]`: what an error code means and what to do next.

use schemas::ErrorCode;
use serde_json::{Value, json};

use crate::output::{Failure, Output, table};

/// Explains one code, or lists them all. `program` is how the user called the program.
///
/// # Errors
/// `cli.unknown_code`, or when standard output cannot be written.
pub fn help(program: &str, code: Option<&str>, output: Output) -> Result<(), Failure> {
    let Some(code) = code else {
        let row = |code: &ErrorCode| vec![code.to_string(), (code.exit() as u8).to_string(), code.meaning().to_owned()];
        let rows: Vec<_> = ErrorCode::ALL.iter().map(row).collect();
        let data: Vec<_> = ErrorCode::ALL.iter().copied().map(explanation).collect();
        return output.result(&table(&rows), &data.into());
    };
    let code: ErrorCode = code.parse().map_err(|_| {
        let failure = Failure::new(ErrorCode::CliUnknownCode, format!("there is no error code {code:?}"));
        match ErrorCode::ALL.iter().find(|known| known.as_str().contains(code)) {
            Some(similar) => failure.next(format!("Did you mean {similar}? `{program} help` lists all codes.")),
            None => failure.next(format!("`{program} help` without a code lists them all.")),
        }
    })?;
    let human = format!("{code} (exit {})\n\n{}\n\nNext: {}", code.exit() as u8, code.meaning(), code.next());
    output.result(&human, &explanation(code))
}

fn explanation(code: ErrorCode) -> Value {
    json!({"code": code.as_str(), "exit": code.exit() as u8, "meaning": code.meaning(), "next": code.next()})
}
