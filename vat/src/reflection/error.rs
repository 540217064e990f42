//! What can go wrong between a method's name on a command line and its answer.
//!
//! No error repeats a value: an argument may be a sturdyref, and errors end up in logs. They name the place,
//! the type that belongs there, and the kind of thing that was found.

use super::limits::{MAX_DEPTH, MAX_ECHOED_NAME, MAX_LISTED_NAMES};
use schemas::{Coded, ErrorCode};
use std::fmt;

/// Why the bytes of a `CodeGeneratorRequest`, or what it describes, cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// More bytes than are looked at.
    #[error("the schema is {bytes} bytes long, and at most {limit} are read")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The most that is read.
        limit: usize,
    },
    /// Not a Cap'n Proto message, or one that breaks the format.
    #[error("the schema is not a readable Cap'n Proto message: {0}")]
    Malformed(#[from] capnp::Error),
    /// It uses a feature of the schema language that this program does not know.
    #[error("the schema uses a part of the schema language that is newer than this program: {0}")]
    TooNew(#[from] capnp::NotInSchema),
    /// A field, method or enumerant without a proper name.
    #[error("the schema gives a member of type @{id:#018x} a name that is none")]
    Name {
        /// The type.
        id: u64,
    },
    /// Two different types with the same id.
    #[error("the schema describes type @{id:#018x} in two different ways")]
    Conflict {
        /// The id.
        id: u64,
    },
    /// A type that is mentioned is not described.
    #[error("the schema mentions type @{id:#018x} but does not describe it")]
    Missing {
        /// The type that is not there.
        id: u64,
    },
    /// A type is something else than what it is used for.
    #[error("the schema uses type @{id:#018x} as {used_as}, which it is not")]
    Kind {
        /// The type.
        id: u64,
        /// Such as `a struct`.
        used_as: &'static str,
    },
    /// A field lies outside the struct that it belongs to.
    #[error("the schema puts a field of type @{id:#018x} outside the struct")]
    OutOfBounds {
        /// The struct.
        id: u64,
    },
}

impl Coded for SchemaError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } => ErrorCode::ObjectUnknownInterface,
            Self::TooNew(_) => ErrorCode::SessionVersion,
            _ => ErrorCode::SessionProtocol,
        }
    }
}

/// Why a call could not be formed, or its answer not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The interface has no such method.
    #[error("{interface} has no such method: {name}{}; it has: {}", Hint(.suggestion), Listed(.known))]
    UnknownMethod {
        /// The interface.
        interface: String,
        /// What was asked for, in backquotes.
        name: Echo,
        /// The methods that it has, inherited ones included.
        known: Vec<String>,
        /// The one among them that was probably meant.
        suggestion: Option<String>,
    },
    /// An argument is missing its name, is unknown, or is not of the type that the method takes.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The schema cannot be used for this call.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The answer is not what the schema promises.
    #[error("the answer{} is not what its schema says: {source}", Place(.path))]
    Answer {
        /// Where in the answer; empty: at its top.
        path: String,
        /// What is wrong there.
        source: capnp::Error,
    },
    /// The answer is nested more deeply than is followed.
    #[error("the answer{} is nested more than {MAX_DEPTH} levels deep", Place(.path))]
    AnswerTooDeep {
        /// Where in the answer.
        path: String,
    },
    /// The answer would take more memory than is given to it.
    #[error("the answer would take more than {limit} bytes to show")]
    AnswerTooLarge {
        /// The most it may take.
        limit: usize,
    },
}

impl Coded for CallError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownMethod { .. } => ErrorCode::ObjectUnknownMethod,
            Self::Argument(_) => ErrorCode::ObjectArgument,
            Self::Schema(error) => error.code(),
            Self::Answer { .. } => ErrorCode::SessionProtocol,
            Self::AnswerTooDeep { .. } | Self::AnswerTooLarge { .. } => ErrorCode::ObjectAnswerTooLarge,
        }
    }
}

impl CallError {
    /// The same error, one level further out: what went wrong lies inside the member `name`.
    pub(super) fn in_member(mut self, name: &str) -> Self {
        if let Some(path) = self.path() {
            let separator = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            *path = format!("{name}{separator}{path}");
        }
        self
    }

    /// The same error, one level further out: what went wrong lies inside the list element `index`.
    pub(super) fn in_element(mut self, index: usize) -> Self {
        if let Some(path) = self.path() {
            let separator = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            *path = format!("[{index}]{separator}{path}");
        }
        self
    }

    fn path(&mut self) -> Option<&mut String> {
        match self {
            Self::Argument(ArgumentError { path, .. }) | Self::Answer { path, .. } | Self::AnswerTooDeep { path } => {
                Some(path)
            }
            Self::UnknownMethod { .. } | Self::Schema(_) | Self::AnswerTooLarge { .. } => None,
        }
    }
}

impl From<capnp::Error> for CallError {
    fn from(source: capnp::Error) -> Self {
        Self::Answer { path: String::new(), source }
    }
}

/// What is wrong with one argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}{}", Whose(.path), Signature(.signature))]
#[non_exhaustive]
pub struct ArgumentError {
    /// Which argument, and where inside it, such as `entries[3].name`; empty: the arguments as a whole.
    pub path: String,
    /// What is wrong.
    pub problem: ArgumentProblem,
    /// How the method is called, where that is known.
    pub signature: Option<String>,
}

/// What can be wrong with an argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentProblem {
    /// It is not of the type that belongs there.
    #[error("expected {expected}, found {found}")]
    Type {
        /// The type, as the schema language writes it.
        expected: String,
        /// What was given.
        found: Found,
    },
    /// There is no argument, or no member of a struct, of this name.
    #[error("there is no such argument or member: {name}{}", Hint(.suggestion))]
    Unknown {
        /// What was given.
        name: Echo,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// It was given twice.
    #[error("given twice")]
    Duplicate,
    /// Two members of a union were given, which can hold only one.
    #[error("holds `{first}` or `{second}`, not both")]
    TwoUnionMembers {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// It is not of the form `name=value`.
    #[error("number {position} is not of the form name=value")]
    NotAPair {
        /// Which of the arguments, counted from 1.
        position: usize,
    },
    /// The text should be JSON and is not.
    #[error("not JSON: {kind} at line {line}, column {column}")]
    NotJson {
        /// What kind of mistake it is.
        kind: &'static str,
        /// Where it stands, counted from 1.
        line: usize,
        /// Where it stands in the line, counted from 1.
        column: usize,
    },
    /// A capability is wanted, and text cannot hold one.
    #[error("takes a capability ({interface}), which cannot be written as text")]
    Capability {
        /// Its interface.
        interface: String,
    },
    /// It is nested more deeply than a peer would read.
    #[error("nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// It does not fit one message.
    #[error("larger than the {limit} bytes of one message")]
    TooLarge {
        /// The size of a message.
        limit: usize,
    },
}

impl ArgumentProblem {
    pub(super) fn here(self) -> CallError {
        CallError::Argument(ArgumentError { path: String::new(), problem: self, signature: None })
    }
}

/// What stood where a value of some type was expected. Never the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// JSON `null`.
    Null,
    /// `true` or `false`.
    Boolean,
    /// A number of the wrong kind: a fraction for an integer, or any number where none belongs.
    Number,
    /// A number that the type cannot hold.
    OutOfRange,
    /// Some text.
    Text,
    /// Text that should be base64.
    NotBase64,
    /// A list.
    List,
    /// An object.
    Object,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Boolean => "true or false",
            Self::Number => "another kind of number",
            Self::OutOfRange => "a number outside its range",
            Self::Text => "other text",
            Self::NotBase64 => "text that is not base64",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

/// A name that somebody gave, fit to be repeated: shown only if it is an identifier, and too short to be
/// a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo(Option<String>);

impl Echo {
    pub(super) fn of(name: &str) -> Self {
        Self((is_identifier(name) && name.len() <= MAX_ECHOED_NAME).then(|| name.to_owned()))
    }
}

impl fmt::Display for Echo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "`{name}`"),
            None => f.write_str("(not repeated, since it is no name)"),
        }
    }
}

/// The schema language's identifiers. Everything that is shown from a stranger's schema is one.
pub(super) fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

struct Place<'a>(&'a str);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " `{}`", self.0) }
    }
}

struct Whose<'a>(&'a str);

impl fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the arguments") } else { write!(f, "argument `{}`", self.0) }
    }
}

struct Signature<'a>(&'a Option<String>);

impl fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |signature| write!(f, "; the method is {signature}"))
    }
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |name| write!(f, " (did you mean `{name}`?)"))
    }
}

/// Names in a row, with a mark where the row was cut.
pub(super) struct Listed<'a>(pub(super) &'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, name) in self.0.iter().take(MAX_LISTED_NAMES).enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        if self.0.len() > MAX_LISTED_NAMES { f.write_str(", …") } else { Ok(()) }
    }
}

/// The candidate that was probably meant: the nearest, if no more than a third of its letters differ.
pub(super) fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if name.len() > MAX_ECHOED_NAME {
        return None;
    }
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_ECHOED_NAME)
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Levenshtein's distance, letters compared without case.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
