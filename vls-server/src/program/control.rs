//! How a running server is asked by its owner: a socket in its data folder.
//!
//! It is there for as long as the server runs, belongs to its user alone, and both ends ask the kernel who is at the
//! other end ([`transport::LocalListener`]): the server hears its own user and root, who looks after servers that have
//! users of their own; root talks to the user that the folder belongs to, everybody else to himself. One line asks, then come lines of JSON:
//!
//! | line | then |
//! |---|---|
//! | `status` | one object |
//! | `export` | the file ([`archive`]) |
//! | `import` | the asker sends a file; one object tells what came of it |
//! | `invite {…}` | one object ([`invite`]) |
//!
//! A failure is the object that the programs print, `{"error": {…}}`. What can be changed here are records and
//! invites; what the server does is not: its configuration is a file, and signals end it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use console::Failure;
use schemas::ErrorCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use transport::{LocalError, LocalListener, dial_local_of};

use super::{archive, invite};
use crate::{durable::DurableRegistry, limits};

/// What questions about invites begin with.
pub(super) const INVITE: &str = "invite ";

/// What only the server itself can answer.
pub(super) type StatusRequest = oneshot::Sender<Value>;

/// Where a server of this data folder listens for its owner.
pub(super) fn socket(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// Answers the owner, for ever.
pub(super) async fn serve(listener: LocalListener, registry: Rc<DurableRegistry>, status: mpsc::Sender<StatusRequest>) {
    let mut asking = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = asking.join_next() => {}
            accepted = listener.accept_or_root(), if asking.len() < limits::CONTROL_CONNECTIONS => match accepted {
                Ok(stream) => {
                    let answer = answer(stream.into_stream(), Rc::clone(&registry), status.clone());
                    asking.spawn_local(answer);
                }
                Err(error) => {
                    tracing::warn!(%error, "the owner cannot be heard");
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn answer(stream: UnixStream, registry: Rc<DurableRegistry>, status: mpsc::Sender<StatusRequest>) {
    let (reading, writing) = stream.into_split();
    let (mut reading, mut writing) = (BufReader::new(reading), BufWriter::new(writing));
    let mut question = String::new();
    let asked =
        timeout(limits::CONTROL_DEADLINE, (&mut reading).take(limits::CONTROL_QUESTION_BYTES).read_line(&mut question))
            .await;
    if !matches!(asked, Ok(Ok(1..))) {
        return;
    }
    let answered = match question.trim_end() {
        "status" => ask(&status).await.map(Some),
        "export" => archive::export(&registry, &mut writing).await.map(|_| None),
        "import" => match archive::import(&registry, &mut reading).await {
            Ok(tally) => Ok(Some(json!(tally))),
            Err(failure) => Err(failure),
        },
        question if question.starts_with(INVITE) => {
            invite::answer_text(&registry, &question[INVITE.len()..]).await.map(Some)
        }
        _ => Err(Failure::new(ErrorCode::SessionUnsupported, "this server does not know what it is asked")),
    };
    let object = match answered {
        Ok(None) => return,
        Ok(Some(object)) => object,
        Err(failure) => {
            let next = failure.next.as_deref().unwrap_or(failure.code.next());
            json!({"error": {"code": failure.code.as_str(), "message": failure.message, "next": next}})
        }
    };
    // Whoever does not wait for it does not need it.
    let _ = writing.write_all(format!("{object}\n").as_bytes()).await;
    let _ = writing.flush().await;
}

async fn ask(status: &mpsc::Sender<StatusRequest>) -> Result<Value, Failure> {
    let stopping = || Failure::from(crate::Stopping);
    let (sender, answer) = oneshot::channel();
    status.send(sender).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// The server that serves from this folder; `None` if there is none.
pub(super) async fn reach(data: &Path) -> Result<Option<UnixStream>, Failure> {
    let ourselves = rustix::process::geteuid();
    let owner = match fs::metadata(data) {
        Ok(metadata) if ourselves.is_root() => metadata.uid(),
        _ => ourselves.as_raw(),
    };
    match dial_local_of(&socket(data), owner).await {
        Ok(stream) => Ok(Some(stream.into_stream())),
        Err(LocalError::Nobody { .. }) => Ok(None),
        Err(LocalError::System { path, source }) => {
            // The folder is another user's.
            let message = format!("cannot ask at {}: {source}", path.display());
            Err(Failure::new(ErrorCode::ServerNotRunning, message))
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks for one object.
pub(super) async fn question(stream: UnixStream, question: &str) -> Result<Value, Failure> {
    let broken = |error| Failure::new(ErrorCode::SystemIo, format!("the server did not answer: {error}"));
    let (reading, mut writing) = stream.into_split();
    writing.write_all(format!("{question}\n").as_bytes()).await.map_err(broken)?;
    reply(&mut BufReader::new(reading)).await
}

/// One object; what the server reports as a failure is one here.
pub(super) async fn reply(reading: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Value, Failure> {
    let broken = |error: &dyn std::fmt::Display| {
        Failure::new(ErrorCode::SystemIo, format!("the server's answer is cut: {error}"))
    };
    let mut line = String::new();
    reading.read_line(&mut line).await.map_err(|error| broken(&error))?;
    let object: Value = serde_json::from_str(&line).map_err(|error| broken(&error))?;
    failure_in(&object).map_or(Ok(object), Err)
}

/// What an object of the server reports as a failure.
pub(super) fn failure_in(object: &Value) -> Option<Failure> {
    let error = object.get("error")?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = text("code").parse().unwrap_or(ErrorCode::Internal);
    Some(Failure::new(code, text("message")).next(text("next")))
}
