//! Compiles the repository's `.capnp` files: used by `examples/generate.rs` and by the test that what is
//! committed is fresh.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// Schemas that are compiled together.
pub(crate) struct Set {
    /// Folder of the schema files, from the root of the repository.
    schemas: &'static str,
    /// The files without their ending, in the order in which they enter the `CodeGeneratorRequest`.
    files: &'static [&'static str],
    /// Where the generated code goes, from the root of the repository. Nothing else is there.
    pub(crate) generated: &'static str,
    /// Name of the file with the `CodeGeneratorRequest`, which is read at run time.
    request: &'static str,
}

/// Everything that is generated in this repository.
pub(crate) const SETS: [Set; 2] = [
    Set {
        schemas: "schemas/capnp",
        files: &["bridge", "location", "objects", "session", "vat"],
        generated: "schemas/src/generated",
        request: "schemas.cgr",
    },
    Set {
        schemas: "examples/poll/schema",
        files: &["poll"],
        generated: "examples/poll/src/generated",
        request: "poll.cgr",
    },
];

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Writes `<file>_capnp.rs` for every schema of a set, and its `CodeGeneratorRequest`, into `out`.
pub(crate) fn compile(set: &Set, out: &Path) -> Result<(), Box<dyn Error>> {
    let prefix = root().join(set.schemas);
    let mut command = capnpc_embedded::CompileCommand::new();
    command.src_prefix(&prefix);
    for name in set.files {
        command.file(prefix.join(format!("{name}.capnp")));
    }
    let request = command.compile()?;
    fs::create_dir_all(out)?;
    capnpc::codegen::CodeGenerationCommand::new().output_directory(out).run(&request[..])?;
    fs::write(out.join(set.request), &request)?;
    Ok(())
}
