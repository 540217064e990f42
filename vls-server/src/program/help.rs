//! `vls-server help [CODE]`: what an error code means and what to do next.

use schemas::ErrorCode;
use serde_json::{Value, json};

use super::output::{Failure, Output};

pub(super) fn help(code: Option<&str>, output: Output) -> Result<(), Failure> {
    let Some(code) = code else {
        let width = ErrorCode::ALL.iter().map(|code| code.as_str().len()).max().unwrap_or(0);
        let line = |code: &ErrorCode| format!("{:<width$}  {}", code.as_str(), code.meaning());
        let human: Vec<String> = ErrorCode::ALL.iter().map(line).collect();
        let data: Vec<Value> = ErrorCode::ALL.iter().copied().map(explanation).collect();
        return output.result(&human.join("\n"), &data.into());
    };
    let code: ErrorCode = code.parse().map_err(|_| {
        let failure = Failure::new(ErrorCode::CliUnknownCode, format!("there is no error code {code:?}"));
        failure.next("`vls-server help` without a code lists them all.")
    })?;
    let human = format!("{code} (exit {})\n\n{}\n\nNext: {}", code.exit() as u8, code.meaning(), code.next());
    output.result(&human, &explanation(code))
}

fn explanation(code: ErrorCode) -> Value {
    json!({"code": code.as_str(), "exit": code.exit() as u8, "meaning": code.meaning(), "next": code.next()})
}
