//! Configuration files: TOML, unknown keys refused, errors with line and column (DESIGN §10).
//!
//! A program describes its file as a type of serde's, with each value in a [`toml::Spanned`]; this reads the text into
//! it, remembers where each value stands, and says where one is wrong. So `config show` can tell of every setting where
//! it came from, in each program alike.

use std::{
    fmt::Display,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use schemas::{Coded, ErrorCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use toml::Spanned;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// This line of the configuration file.
    Line(usize),
    /// The command line.
    CommandLine,
}

/// A setting and where it came from.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// Its value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

impl<T> Setting<T> {
    /// A value that nobody set.
    pub fn default(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    /// The value of the command line, if it has one: that is nearer to whoever asks than any file.
    #[must_use]
    pub fn or_argument(self, argument: Option<T>) -> Self {
        argument.map_or(self, |value| Self { value, source: Source::CommandLine })
    }
}

/// A configuration file does not say anything that is understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}:{column}: {reason}", path.display())]
pub struct InvalidSetting {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub reason: String,
}

impl Coded for InvalidSetting {
    fn code(&self) -> ErrorCode {
        ErrorCode::ConfigInvalid
    }
}

/// The text of a configuration file.
#[derive(Debug, Clone)]
pub struct SettingsFile {
    path: PathBuf,
    text: String,
}

impl SettingsFile {
    /// Reads a file. `None` if there is none.
    ///
    /// # Errors
    /// What the operating system says, and text that is not UTF-8.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(Self::new(path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file with these contents.
    #[must_use]
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the file says, in the form that the program gives it.
    ///
    /// # Errors
    /// [`InvalidSetting`] with the place in the file.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidSetting> {
        toml::from_str(&self.text).map_err(|error| self.invalid(error.span(), error.message().to_owned()))
    }

    /// A text as the value that it stands for.
    ///
    /// # Errors
    /// [`InvalidSetting`] with the place of the text.
    pub fn item<T, E: Display>(
        &self,
        text: &Spanned<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, InvalidSetting> {
        parse(text.get_ref()).map_err(|error| self.invalid(Some(text.span()), error.to_string()))
    }

    /// The same as a setting; the default if it is not there.
    ///
    /// # Errors
    /// [`InvalidSetting`] with the place of the text.
    pub fn setting<T, E: Display>(
        &self,
        text: Option<&Spanned<String>>,
        default: T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Setting<T>, InvalidSetting> {
        let Some(text) = text else { return Ok(Setting::default(default)) };
        Ok(Setting { value: self.item(text, parse)?, source: self.source(text) })
    }

    /// A list of texts; the empty one if it is not there.
    ///
    /// # Errors
    /// [`InvalidSetting`] with the place of the first text that is wrong, or stands there for the second time.
    pub fn list<T: PartialEq, E: Display>(
        &self,
        list: Option<&Spanned<Vec<Spanned<String>>>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Setting<Vec<T>>, InvalidSetting> {
        let Some(list) = list else { return Ok(Setting::default(Vec::new())) };
        let source = self.source(list);
        let mut value = Vec::new();
        for text in list.get_ref() {
            let parsed = self.item(text, &parse)?;
            if value.contains(&parsed) {
                return Err(self.invalid(Some(text.span()), "this stands in the list twice".to_owned()));
            }
            value.push(parsed);
        }
        Ok(Setting { value, source })
    }

    /// The line on which a value stands.
    #[must_use]
    pub fn source<T>(&self, spanned: &Spanned<T>) -> Source {
        Source::Line(self.place(spanned.span().start).0)
    }

    /// Something is wrong there; without a place, with the file.
    #[must_use]
    pub fn invalid(&self, span: Option<Range<usize>>, reason: String) -> InvalidSetting {
        let (line, column) = span.map_or((1, 1), |span| self.place(span.start));
        InvalidSetting { path: self.path.clone(), line, column, reason }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Settings with their values and where each came from: rows for people, a map for programs. `file` is where
/// [`Source::Line`] points to.
#[must_use]
pub fn show_settings(
    settings: Vec<(String, Value, Source)>,
    file: Option<&Path>,
) -> (Vec<Vec<String>>, serde_json::Map<String, Value>) {
    let place = |source| match (source, file) {
        (Source::Line(line), Some(file)) => format!("{}:{line}", file.display()),
        (Source::Line(line), None) => format!("line {line}"),
        (Source::Default, _) => "default".to_owned(),
        (Source::CommandLine, _) => "command line".to_owned(),
    };
    let mut rows = Vec::new();
    let mut data = serde_json::Map::new();
    for (name, value, source) in settings {
        rows.push(vec![name.clone(), value.to_string(), place(source)]);
        data.insert(name, json!({"value": value, "source": place(source)}));
    }
    (rows, data)
}
