//! Which files a server keeps: Landlock.

use std::{
    fs,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use super::Held;
use crate::program::config::{Configuration, DEFAULT_FILE};

/// The newest rules that are used; an older kernel holds those of them that it knows. Newer ones would also ask for
/// the sockets of other services, which the service manager and name lookups need.
const RULES: ABI = ABI::V7;

/// What looking up a host's name reads, beside the network: the C library's settings and the modules that these name.
/// They are replaced by renaming whenever the network changes, so whole folders are open. What in them is secret is
/// kept from the server by owner and mode, as before.
const NAME_LOOKUPS: [&str; 8] = [
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];

/// The folders of a server.
#[derive(Debug)]
pub(in crate::program) struct Places {
    /// Where it reads and writes.
    data: PathBuf,
    /// Where it reads what it is told: all that its configuration names, in case that is replaced.
    read: Vec<PathBuf>,
}

impl Places {
    pub(in crate::program) fn of(configuration: &Configuration) -> Self {
        let file = configuration.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let mut read = folders(file);
        read.extend(certificates(configuration).iter().flat_map(|file| folders(file)));
        Self { data: configuration.data.value.clone(), read }
    }

    /// A file of that configuration which lies elsewhere.
    pub(super) fn lacks(&self, configuration: &Configuration) -> Option<PathBuf> {
        let open =
            self.read.iter().map(PathBuf::as_path).chain([self.data.as_path()]).chain(NAME_LOOKUPS.map(Path::new));
        // What is there counts, not by which links it is reached.
        let open: Vec<PathBuf> = open.filter_map(|folder| fs::canonicalize(folder).ok()).collect();
        // One that is not there is reported by who would read it.
        let is_outside = |file: &PathBuf| {
            fs::canonicalize(file).is_ok_and(|file| !open.iter().any(|folder| file.starts_with(folder)))
        };
        certificates(configuration).into_iter().find(is_outside)
    }
}

fn certificates(configuration: &Configuration) -> Vec<PathBuf> {
    configuration.certificate_files().map(|files| vec![files.certificate, files.key]).unwrap_or_default()
}

/// The folder that a file is in, and the one in which it really is: certificates are often links into an archive.
fn folders(file: &Path) -> Vec<PathBuf> {
    let real = fs::canonicalize(file).ok();
    let named = [Some(file), real.as_deref()].into_iter().flatten();
    let folders = named.filter_map(Path::parent).map(|folder| match folder.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => folder.to_owned(),
    });
    folders.collect()
}

/// Confines the calling thread and those that it starts.
pub(super) fn confine(places: &Places) -> Held {
    match restrict(places) {
        Ok(RulesetStatus::FullyEnforced) => Held::Wholly,
        Ok(RulesetStatus::PartiallyEnforced) => Held::Partly,
        Ok(RulesetStatus::NotEnforced) => Held::Not("this kernel has no Landlock, or it is switched off".to_owned()),
        Err(error) => Held::Not(error.to_string()),
    }
}

fn restrict(places: &Places) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(RULES);
    // A store makes files, folders and a socket, and runs nothing.
    let unneeded = AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::IoctlDev;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        // No signal reaches a process that is not the server's own.
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules([&places.data], all & !unneeded))?
        // What is read is known by name: nothing there is listed. Folders that are not there are passed over.
        .add_rules(path_beneath_rules(&places.read, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(NAME_LOOKUPS, AccessFs::ReadFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}
