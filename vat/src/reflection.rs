//! Run-time reflection: calling objects whose interfaces were not known when this program was compiled.
//!
//! The Rust implementation of Cap'n Proto knows a schema only as generated code. The command line calls any
//! object that a reference leads to (DESIGN §2, §10), and nothing is compiled in per object. So the schema is
//! read as data, and messages are translated from and to JSON here. The interface's id comes with the restored
//! capability, its description from a `CodeGeneratorRequest`: ours, or one that the vat gives.
//!
//! 1. [`SchemaSet::parse`] reads descriptions, [`SchemaSet::closure`] writes the part that a peer needs;
//! 2. [`Interface::method`] finds a method, inherited ones included;
//! 3. [`Method::arguments`] turns `name=value` pairs or JSON into one checked JSON object;
//! 4. [`Method::encode`] writes it into a request, [`Method::decode`] reads the answer.
//!
//! Schemas and answers come from strangers: nothing here panics on them, and `limits.rs` bounds the work.
//!
//! # JSON
//!
//! The mapping is that of Cap'n Proto's own `JsonCodec` where it has one; the differences are marked (*).
//!
//! | Cap'n Proto | JSON written | also accepted |
//! |---|---|---|
//! | `Void` | `null` | |
//! | `Bool` | `true`, `false` | |
//! | integers | a number up to 2^53 (*), beyond it a string of digits, so that no reader rounds it | a string of digits; `3.0` |
//! | `Float32`, `Float64` | a number; `"NaN"`, `"Infinity"`, `"-Infinity"` | a string |
//! | `Text` | a string; it must be UTF-8 | `null`: absent |
//! | `Data` | base64 with padding (*; JsonCodec's `$base64`) | a list of bytes (JsonCodec's default); `null`: absent |
//! | enum | the enumerant's name; its number if it has none | the number |
//! | `List` | an array | `null`: absent |
//! | struct | an object with every field (*), and of a union only the active member; `null` if absent (*) | missing members keep their defaults |
//! | group, named union | a nested object | |
//! | unnamed union | the active member among the other fields | |
//! | capability | `{"capability": "<interface>"}` (*), `null` | only `null` |
//! | `AnyPointer`, type parameter | `{"opaque": "AnyPointer"}` (*), `null` | only `null` |
//!
//! An absent pointer field is shown as its default. A union member that this schema does not know is left out.

mod arguments;
mod decode;
mod encode;
mod error;
mod interface;
mod limits;
mod parse;
mod scalar;
mod schema;
mod words;

pub use decode::decode;
pub use encode::encode;
pub use error::{ArgumentError, ArgumentProblem, CallError, Echo, Found, SchemaError};
pub use interface::{Interface, Method, Parameter};
pub use schema::SchemaSet;
