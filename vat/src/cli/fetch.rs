//! `vat fetch`: content that may be too large for a message, into a file, and on from where it stopped.
//!
//! A vat elsewhere is reached by a live reference: when the connection breaks, the next transfer begins in a new session
//! at the byte that was reached. That repeats nothing but reading, and content is known by the digest of all of it: a
//! part of one is never continued with another. A vat of this machine is read by calls over its own socket, where there
//! are no streams.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use capnp::{capability::FromClientHook, private::capability::ClientHook};
use console::{Failure, Progress, size};
use schemas::{
    ErrorCode, Exit, Secret,
    objects_capnp::{content, notes},
    vat_capnp,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use transport::Session;

use super::{
    Context, block_on,
    connect::{self, Target, failure, within},
};
use crate::limits::{CONTENT_PART_BYTES, FRUITLESS_FETCHES, MAX_FETCH_BYTES};

/// `vat fetch TARGET NAME -o FILE`
pub(super) fn fetch(
    context: &Context,
    target: &str,
    name: &str,
    file: &Path,
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    let deadline = timeout.unwrap_or(context.config.timeout.value);
    let target = connect::target(context, target)?;
    let mut progress = context.output.progress(&format!("fetching {name}"));
    let mut fetching =
        Fetching { name, file, deadline, resumed_at: None, digest: None, position: 0, shown: &mut progress };
    let (part, sessions) = block_on(fetching.run(context, &target))?;
    let (bytes, digest) = part.finish(file)?;
    let from = fetching.resumed_at.unwrap_or(0);
    drop(progress);
    let human = match from {
        0 => format!("{name} is in {}: {}", file.display(), size(bytes)),
        _ => format!("{name} is in {}: {}, of which {} were there before", file.display(), size(bytes), size(from)),
    };
    let data = json!({
        "name": name, "file": file.display().to_string(), "bytes": bytes, "sha256": hex(&digest), "resumed_at": from, "sessions": sessions,
    });
    context.output.result(&human, &data)?;
    Ok(Exit::Ok)
}

/// What is fetched, and how far it is.
struct Fetching<'a> {
    name: &'a str,
    file: &'a Path,
    deadline: Duration,
    /// How much was there when this command began.
    resumed_at: Option<u64>,
    /// What the vat said that the content is, when it was asked last.
    digest: Option<[u8; 32]>,
    /// How much is there now.
    position: u64,
    shown: &'a mut Progress,
}

/// One session with the vat that has the content.
struct Way<'a> {
    object: Box<dyn ClientHook>,
    vat: vat_capnp::vat::Client,
    session: &'a Session,
}

impl Fetching<'_> {
    /// Fetches all of it; also tells how many sessions that took.
    async fn run(&mut self, context: &Context, target: &Target) -> Result<(Part, u64), Failure> {
        let Some(live) = connect::live(context, target, self.deadline)? else {
            let reached = connect::reach(context, target, self.deadline).await?;
            let way =
                Way { object: reached.capability.add_ref(), vat: reached.vat.clone(), session: reached.session() };
            let outcome = self.transfer(&way).await;
            drop(way);
            reached.close().await;
            return outcome.map(|part| (part, 1));
        };
        let outcome = self.go_on(context, &live).await;
        live.close().await;
        outcome
    }

    /// Goes on in one session after the other, as long as each brings something.
    async fn go_on(&mut self, context: &Context, live: &connect::Live) -> Result<(Part, u64), Failure> {
        let (mut fruitless, mut reached) = (0, 0);
        loop {
            let held = match live.reference.get().await {
                Ok(held) => held,
                // It was there a moment ago, and may be again: the reference paces the attempts.
                Err(_) if reached > 0 && fruitless + 1 < FRUITLESS_FETCHES => {
                    fruitless += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let begin = (held.capability::<capnp::capability::Client>().hook, held.interface_id());
            let walked = connect::walk(begin, &live.path, self.deadline).await;
            let outcome = match walked {
                Ok((object, _)) => self.transfer(&Way { object, vat: held.vat(), session: held.session() }).await,
                Err(failure) => Err(failure),
            };
            let failure = match outcome {
                Ok(part) => return Ok((part, held.generation())),
                Err(failure) => failure,
            };
            fruitless = if self.position > reached { 0 } else { fruitless + 1 };
            reached = self.position;
            let interrupted = [
                ErrorCode::BulkInterrupted,
                ErrorCode::SessionClosed,
                ErrorCode::SessionSuperseded,
                ErrorCode::VatStopping,
            ];
            if !interrupted.contains(&failure.code) || fruitless >= FRUITLESS_FETCHES {
                return Err(failure);
            }
            context.output.notice(&format!("{} [{}]; going on at {}", failure.message, failure.code, size(reached)));
            // Whatever is left of this session is of no use any more; the next attempt is paced by the reference.
            held.session().close();
            held.session().closed().await;
        }
    }

    async fn transfer(&mut self, way: &Way<'_>) -> Result<Part, Failure> {
        let mut request = notes::Client::new(way.object.add_ref()).content_request();
        request.get().set_name(self.name);
        let response = match tokio::time::timeout(self.deadline, request.send().promise).await {
            Ok(Err(error)) if error.kind == capnp::ErrorKind::Unimplemented => return Err(self.no_content()),
            Ok(response) => response.map_err(failure)?,
            Err(_) => return Err(connect::timed_out(self.deadline)),
        };
        let content = response.get().and_then(|results| results.get_content()).map_err(failure)?;
        let described = within(self.deadline, content.describe_request().send().promise).await?;
        let described = described.get().map_err(failure)?;
        let digest = described.get_digest().ok().and_then(|digest| digest.try_into().ok());
        let Some(digest) = digest else {
            return Err(Failure::new(ErrorCode::SessionProtocol, "the vat describes the content without a digest"));
        };
        if let Some(before) = self.digest.replace(digest)
            && before != digest
        {
            // Otherwise a vat that says something else each time could fill the disk.
            let _ = fs::remove_file(Part::path(self.file, &before));
            return Err(Failure::new(ErrorCode::BulkDamaged, "the content has changed while it was fetched"));
        }
        let mut part = Part::open(self.file, described.get_length(), digest)?;
        self.resumed_at.get_or_insert(part.position);
        self.show(&part);
        match self.token(way, &content).await? {
            Some(token) => self.stream(way.session, &token, &mut part).await?,
            None => self.calls(&content, &mut part).await?,
        }
        Ok(part)
    }

    /// The object knows no `content`.
    fn no_content(&self) -> Failure {
        let name = self.name;
        let message = format!("{name:?} cannot be fetched: the object at the other end keeps no content under names");
        Failure::new(ErrorCode::ObjectUnknownMethod, message)
            .next(format!("Fetch from a notes object; `{} call TARGET` shows what an object is.", super::program()))
    }

    fn show(&mut self, part: &Part) {
        self.position = part.position;
        self.shown.show(part.position, Some(part.length));
    }

    /// A token for a stream; `None` where there are none.
    async fn token(&self, way: &Way<'_>, content: &content::Client) -> Result<Option<Secret>, Failure> {
        let mut request = way.vat.transfer_request();
        request.get().init_content().set_as_capability(content.client.hook.add_ref());
        let answer = match tokio::time::timeout(self.deadline, request.send().promise).await {
            // A vat of an earlier version has no streams either.
            Ok(Err(error)) if error.kind == capnp::ErrorKind::Unimplemented => return Ok(None),
            Ok(Err(error)) => match failure(error) {
                failure if failure.code == ErrorCode::BulkUnavailable => return Ok(None),
                failure => return Err(failure),
            },
            Ok(Ok(answer)) => answer,
            Err(_) => return Err(connect::timed_out(self.deadline)),
        };
        let token = answer.get().and_then(|results| results.get_token()).map_err(failure)?;
        Ok(Some(Secret::from_slice(token)?))
    }

    async fn stream(&mut self, session: &Session, token: &Secret, part: &mut Part) -> Result<(), Failure> {
        let mut reader = session.fetch(token, part.position).await?;
        if reader.length() != part.length {
            return Err(Failure::new(ErrorCode::BulkDamaged, "the stream carries another content than was described"));
        }
        while let Some(bytes) = reader.next().await? {
            part.write(&bytes)?;
            self.show(part);
        }
        Ok(())
    }

    async fn calls(&mut self, content: &content::Client, part: &mut Part) -> Result<(), Failure> {
        while part.position < part.length {
            let mut request = content.read_request();
            request.get().set_offset(part.position);
            request.get().set_count(u32::try_from(CONTENT_PART_BYTES).unwrap_or(u32::MAX));
            let answer = within(self.deadline, request.send().promise).await?;
            let bytes = answer.get().and_then(|results| results.get_bytes()).map_err(failure)?;
            if bytes.is_empty() || bytes.len() as u64 > part.length - part.position {
                return Err(Failure::new(ErrorCode::BulkDamaged, "the content is not as long as it was described"));
            }
            part.write(bytes)?;
            self.show(part);
        }
        Ok(())
    }
}

/// A file that is not complete yet: `FILE.<beginning of the digest>.part`.
struct Part {
    path: PathBuf,
    file: File,
    position: u64,
    length: u64,
    digest: [u8; 32],
    /// Of what is in the file.
    so_far: Sha256,
}

impl Part {
    /// Goes on with what there is of this content, or begins.
    fn open(target: &Path, length: u64, digest: [u8; 32]) -> Result<Self, Failure> {
        if length > MAX_FETCH_BYTES {
            let message = format!("the content has {}; at most {} are fetched", size(length), size(MAX_FETCH_BYTES));
            return Err(Failure::new(ErrorCode::BulkSize, message));
        }
        let path = Self::path(target, &digest);
        let failed = |error: io::Error| io_failure(&path, &error);
        // What somebody was granted is for nobody else to read.
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            // Two that append would make something else of it, and each would believe in its own.
            Err(TryLockError::WouldBlock) => {
                let message = format!("{} is being fetched by another process", target.display());
                return Err(Failure::new(ErrorCode::BulkBusy, message));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if file.metadata().map_err(failed)?.len() > length {
            file.set_len(0).map_err(failed)?;
        }
        let (mut so_far, mut position, mut space) = (Sha256::new(), 0, vec![0; CONTENT_PART_BYTES]);
        loop {
            let count = file.read(&mut space).map_err(failed)?;
            if count == 0 {
                return Ok(Self { path, file, position, length, digest, so_far });
            }
            so_far.update(&space[..count]);
            position += count as u64;
        }
    }

    fn path(target: &Path, digest: &[u8; 32]) -> PathBuf {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}{PART}", &hex(digest)[..PART_DIGITS]));
        name.into()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| io_failure(&self.path, &error))?;
        self.so_far.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Makes it the file that was asked for, if it is what was described; tells its length and digest.
    fn finish(self, target: &Path) -> Result<(u64, [u8; 32]), Failure> {
        let Self { path, file, position, digest, so_far, .. } = self;
        let failed = |error: io::Error| io_failure(&path, &error);
        if so_far.finalize()[..] != digest {
            // A damaged part would only be continued.
            fs::remove_file(&path).map_err(failed)?;
            return Err(Failure::new(ErrorCode::BulkDamaged, "what came is not the content that was described"));
        }
        file.sync_all().map_err(failed)?;
        fs::rename(&path, target).map_err(failed)?;
        Ok((position, digest))
    }
}

/// How a file that is not complete ends.
const PART: &str = ".part";

/// Digits of the digest in its name: enough that no two contents meet.
const PART_DIGITS: usize = 16;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn io_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ErrorCode::SystemIo, format!("{}: {error}", path.display()))
}
