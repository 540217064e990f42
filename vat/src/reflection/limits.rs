//! The bounds of reflection. Schemas and answers come from strangers, so none of them decides how much work
//! or memory it costs to look at them.

/// Largest `CodeGeneratorRequest` that is looked at, in bytes. All interfaces of this workspace together take
/// 40 kB; the largest public schema collections stay under 2 MB.
pub(super) const MAX_REQUEST_BYTES: usize = 4 << 20;

/// How many times its own size a `CodeGeneratorRequest` may be read. Every part is visited a few times
/// (once to understand it, once to copy it), so an honest one stays below; one whose pointers all lead to
/// the same bytes does not.
pub(super) const REQUEST_READ_FACTOR: usize = 8;

/// Deepest nesting of structs, groups and lists in arguments and answers. Cap'n Proto readers refuse
/// messages deeper than 64, the layers of the call around the arguments included.
pub(super) const MAX_DEPTH: usize = 48;

/// Largest message that arguments may become, in words of 8 bytes: 8 MiB, more than a session carries in one
/// call, and far from the 2^29 words and elements at which the wire format ends.
pub(super) const MAX_ARGUMENT_WORDS: usize = 1 << 20;

/// Most memory that one decoded answer may take, in bytes, as estimated while it is built. A list of a
/// million empty structs takes 16 bytes on the wire.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Most memory that one default may take in a signature, estimated in the same way. Anything near it is too
/// long to be shown there, and a signature may have many.
pub(super) const MAX_DEFAULT_BYTES: usize = 8 << 10;

/// Longest default that a signature shows, in bytes.
pub(super) const MAX_SHOWN_DEFAULT_BYTES: usize = 100;

/// Longest name that an error repeats, in bytes. What stands where a name is expected may be a secret that
/// slipped out of place, and the shortest one of ours is longer than this.
pub(super) const MAX_ECHOED_NAME: usize = 40;

/// Length at which a signature is cut, in bytes: a message on a screen, not a listing.
pub(super) const MAX_SIGNATURE_BYTES: usize = 1000;

/// Most names that an error lists: methods, enumerants.
pub(super) const MAX_LISTED_NAMES: usize = 50;
