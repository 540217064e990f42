//! The one task of a session: it polls the RPC layer, writes what the gate has released, and ends what must end.

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures::{channel::oneshot, future::LocalBoxFuture};
use schemas::{Coded, ErrorCode, VatId};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::{SessionEnd, ended::LastWord, steps::StepWaker};
use crate::{
    GateWait,
    bulk::Desk,
    connection::{Wire, far_in},
    limits,
    peer_connection::{PeerConnection, Traffic},
    rpc::{Disconnector, System},
    silence::Silence,
    watchdog::Watched,
};

/// What carries the stream of a session.
pub(super) enum Carrier {
    Quic {
        connection: PeerConnection,
        /// Completes when the peer opens another stream; `None` once the connection is closed.
        next_stream: Option<NextStream>,
    },
    Local,
}

/// Where a session writes.
pub(super) trait Output: AsyncWrite + Unpin {
    /// Completes when the peer has acknowledged everything, once the stream was ended; at once where nobody acknowledges.
    fn delivered(&self) -> LocalBoxFuture<'static, ()>;
}

impl Output for quinn::SendStream {
    fn delivered(&self) -> LocalBoxFuture<'static, ()> {
        let stopped = self.stopped();
        Box::pin(async move {
            // Any outcome is an end: acknowledged, refused by the peer, or the connection gone.
            let _ = stopped.await;
        })
    }
}

impl Output for Box<dyn AsyncWrite + Unpin> {
    fn delivered(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Carrier {
    /// What has gone over the connection, if there is one.
    fn traffic(&self) -> Option<Traffic> {
        match self {
            Self::Quic { connection, .. } => connection.traffic(),
            Self::Local => None,
        }
    }
}

/// A stream that the peer has opened beside the session's.
pub(super) type NextStream =
    LocalBoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>;

/// The RPC layer of a session, and the requests for its bootstrap that came while it was busy.
#[derive(Default)]
pub(super) struct Rpc {
    /// `None` once the session has ended. Borrowed while it is polled.
    pub(super) system: RefCell<Option<System>>,
    pub(super) wanted: RefCell<Vec<oneshot::Sender<capnp::capability::Client>>>,
}

pub(super) struct Driver {
    pub(super) wire: Rc<Wire>,
    pub(super) rpc: Rc<Rpc>,
    pub(super) disconnector: Disconnector,
    pub(super) output: Box<dyn Output>,
    pub(super) carrier: Carrier,
    /// Answers streams beside the session's; `None` where there are none.
    pub(super) desk: Option<Rc<Desk>>,
    pub(super) steps: Arc<StepWaker>,
    pub(super) last_word: LastWord,
    pub(super) progress: Progress,
    /// Who is served: for reports.
    pub(super) peer: Option<VatId>,
}

/// How far writing has come.
#[derive(Default)]
pub(super) struct Progress {
    /// Waits for the gate: with the turn that the next byte waits for, or for poison alone.
    gate: Option<(Option<u64>, GateWait)>,
    /// Something was written and not flushed.
    unflushed: bool,
    /// Runs while released bytes wait and the peer takes none.
    stall: Option<Stall>,
    /// Runs until the next deadline of the session, or an earlier one that has become moot.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The peer takes nothing.
struct Stall {
    /// When that will have lasted too long.
    end: Instant,
    /// Runs until something is to be done about it.
    timer: Pin<Box<Sleep>>,
    /// Since when, and whether the peer is there at all; nothing of that on a local socket.
    begun: Instant,
    silence: Option<Silence>,
}

impl Driver {
    /// Runs the session to its end.
    pub(super) async fn run(mut self) {
        let steps = self.steps.clone();
        let waker = Waker::from(steps.clone());
        let watched = Watched::new(self.peer);
        std::future::poll_fn(|context| {
            steps.begin(context.waker());
            let done = watched.busy(|| self.visit(&mut Context::from_waker(&waker)));
            if steps.end() && done.is_pending() {
                // Woken at once, this session would have its next turn before the event loop looks for what has come
                // for the others: up to sixty turns in a row.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(context);
            }
            done
        })
        .await;
        let end = self.end_rpc();
        // On the heap: a session that goes on has no room for its end.
        Box::pin(self.end_carrier(&end)).await;
        self.last_word.say(end);
    }

    /// Takes steps while there is something to do; ready when the session has ended for the RPC layer too.
    fn visit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_streams(context);
        for _ in 0..limits::STEPS_PER_POLL {
            self.steps.begin_step();
            self.poll_rpc(context);
            if self.has_ended_for_all() {
                return Poll::Ready(());
            }
            if !self.steps.wants_another() {
                // All that was said in this visit is written together. It may make room for more answers.
                self.poll_output(context);
                if self.has_ended_for_all() {
                    return Poll::Ready(());
                }
                if !self.steps.wants_another() {
                    self.poll_deadline(context);
                    return Poll::Pending;
                }
            }
        }
        // Other tasks have their turn; what was said so far need not wait for that.
        self.poll_output(context);
        self.poll_deadline(context);
        if self.has_ended_for_all() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_ended_for_all(&self) -> bool {
        self.wire.has_ended() && (self.wire.is_released_by_rpc() || self.rpc.system.borrow().is_none())
    }

    /// Has the wire see to what is due. Once per visit: every message that sets an earlier deadline wakes the driver.
    fn poll_deadline(&mut self, context: &mut Context<'_>) {
        let next = self.wire.next_deadline();
        let timer = self.progress.deadline.get_or_insert_with(|| Box::pin(sleep_until(next)));
        if next < timer.deadline() {
            timer.as_mut().reset(next);
        }
        if timer.as_mut().poll(context).is_ready() {
            self.progress.deadline = None;
            self.wire.pass_deadlines();
            // To do what is due, and to look at the next deadline.
            self.steps.wake_by_ref();
        }
    }

    /// Polls the RPC layer, and with it the code of every object that this session calls.
    fn poll_rpc(&mut self, context: &mut Context<'_>) {
        let outcome = {
            let mut slot = self.rpc.system.borrow_mut();
            let Some(system) = slot.as_mut() else { return };
            let outcome = catch_unwind(AssertUnwindSafe(|| system.poll(context)));
            if outcome.is_ok() {
                for wanted in self.rpc.wanted.take() {
                    // Whoever asked may have lost interest.
                    let _ = wanted.send(system.bootstrap());
                }
            }
            outcome
        };
        if let Err(panic) = outcome {
            let message = panic_message(panic.as_ref());
            let peer = self.peer.map_or_else(|| "a local socket".to_owned(), |peer| peer.to_string());
            tracing::error!(peer, message, "a panic while this peer was served; its session ends, no other does");
            self.wire.finish(SessionEnd::Panicked { message });
            self.disconnect();
            self.drop_system();
        }
    }

    /// Fails everything that waits for the peer, unless that was done.
    fn disconnect(&self) {
        // Proof of the default: called only when there is a reason.
        let reason = self.wire.end().unwrap_or(SessionEnd::Local).to_exception();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.disconnector.disconnect(reason))) {
            tracing::warn!(message = panic_message(panic.as_ref()), "a panic while a session was taken down");
        }
    }

    /// Drops the RPC layer with everything that ran in it, whatever state it is in.
    fn drop_system(&self) {
        let system = self.rpc.system.borrow_mut().take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(system))) {
            tracing::warn!(message = panic_message(panic.as_ref()), "a panic while a session was taken down");
        }
    }

    /// Hands every stream that the peer opens beside the session's to the desk, which ends the session if it is not
    /// for content that was offered.
    fn poll_streams(&mut self, context: &mut Context<'_>) {
        let (Carrier::Quic { connection, next_stream, .. }, Some(desk)) = (&mut self.carrier, &self.desk) else {
            return;
        };
        while let Some(Poll::Ready(outcome)) = next_stream.as_mut().map(|stream| stream.as_mut().poll(context)) {
            match outcome {
                Ok((output, input)) => {
                    desk.clone().serve(output, input);
                    *next_stream = Some(super::next_stream(connection));
                    continue;
                }
                // The connection is closed. Who reads will find out behind the last byte that came before; but while
                // nothing is read, nobody would.
                Err(error) if self.wire.is_reading_paused() => {
                    let lost = || SessionEnd::Lost(Arc::new(error.into()));
                    self.wire.finish(connection.close_reason().unwrap_or_else(lost));
                }
                Err(_) => {}
            }
            *next_stream = None;
        }
    }

    /// Writes everything that the gate has released, in one piece if the stream takes it.
    fn poll_output(&mut self, context: &mut Context<'_>) {
        if self.wire.has_ended() {
            return;
        }
        match self.write_released(context) {
            Ok(()) => self.wire.end_if_drained(),
            Err(end) => self.wire.finish(end),
        }
    }

    fn write_released(&mut self, context: &mut Context<'_>) -> Result<(), SessionEnd> {
        loop {
            if self.wire.gate.is_poisoned() {
                return Err(SessionEnd::Poisoned);
            }
            let written = {
                let mut outbox = self.wire.outbox.borrow_mut();
                let released = outbox.released();
                if released.is_empty() {
                    self.progress.stall = None;
                    let next = outbox.next_turn();
                    drop(outbox);
                    if self.progress.wait_for_gate(&self.wire, next, context)? {
                        continue;
                    }
                    break;
                }
                let written = Pin::new(&mut self.output).poll_write(context, released);
                if let Poll::Ready(Ok(length)) = written {
                    outbox.written(length);
                }
                written
            };
            match written {
                Poll::Ready(Ok(0)) => return Err(self.wire.explain(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(_)) => {
                    self.progress.unflushed = true;
                    self.progress.stall = None;
                    self.wire.note_written();
                }
                Poll::Ready(Err(error)) => return Err(self.wire.explain(error)),
                Poll::Pending => return self.progress.check_stall(&self.wire, &self.carrier, context),
            }
        }
        if self.progress.unflushed {
            match Pin::new(&mut self.output).poll_flush(context) {
                Poll::Ready(Ok(())) => self.progress.unflushed = false,
                Poll::Ready(Err(error)) => return Err(self.wire.explain(error)),
                Poll::Pending => return self.progress.check_stall(&self.wire, &self.carrier, context),
            }
        }
        Ok(())
    }

    /// Has the RPC layer fail everything that waits, then drops it. Returns why the session ended.
    fn end_rpc(&mut self) -> SessionEnd {
        let waker = Waker::from(self.steps.clone());
        let mut context = Context::from_waker(&waker);
        self.disconnect();
        // Those who waited are told by tasks of the session's, which take their turns first.
        for _ in 0..limits::STEPS_TO_END {
            self.steps.begin_step();
            self.poll_rpc(&mut context);
            if !self.steps.wants_another() {
                break;
            }
        }
        self.drop_system();
        self.rpc.wanted.take();
        // Proof of the default: the loop of `run` ends only when there is a reason.
        self.wire.end().unwrap_or(SessionEnd::Local)
    }

    /// Delivers what was released, if the end leaves a way to, tells the peer why, and closes.
    async fn end_carrier(&mut self, end: &SessionEnd) {
        let orderly = matches!(end, SessionEnd::Local | SessionEnd::Drained { .. } | SessionEnd::Panicked { .. });
        // Where there is but the stream, the reason can only travel on it.
        let has_reason =
            matches!(end, SessionEnd::Violation(_) | SessionEnd::Dismissed { .. } | SessionEnd::Idle { .. });
        let tells_on_stream = has_reason && matches!(self.carrier, Carrier::Local);
        if orderly || tells_on_stream {
            self.wire.outbox.borrow_mut().drop_unreleased();
            let deadline = self.wire.limits.close_deadline;
            match timeout(deadline, self.deliver()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the peer was gone before the session was closed"),
                Err(_) => tracing::debug!(?deadline, "the peer did not take what was sent to it before the close"),
            }
        }
        if let Carrier::Quic { connection, .. } = &self.carrier {
            let (code, text) = end.told().unwrap_or((ErrorCode::SessionClosed, "the session has ended".to_owned()));
            connection.close_because(code, &text);
        }
        tracing::debug!(code = end.code().as_str(), reason = %end, "session ended");
    }

    /// Writes what was released, ends the stream, and waits until the peer has it.
    async fn deliver(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            let mut outbox = self.wire.outbox.borrow_mut();
            loop {
                // Poisoned meanwhile: nothing more leaves.
                let released = outbox.released();
                if released.is_empty() {
                    return Poll::Ready(io::Result::Ok(()));
                }
                let written = ready!(Pin::new(&mut self.output).poll_write(context, released))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                outbox.written(written);
            }
        })
        .await?;
        self.output.flush().await?;
        self.output.shutdown().await?;
        self.output.delivered().await;
        Ok(())
    }
}

impl Progress {
    /// Waits for the turn `next`, or for poison alone. `true` if the way is free now.
    fn wait_for_gate(&mut self, wire: &Wire, next: Option<u64>, context: &mut Context<'_>) -> Result<bool, SessionEnd> {
        if self.gate.as_ref().is_none_or(|(waits_for, _)| *waits_for != next) {
            let wait = next.map_or_else(|| wire.gate.poisoned(), |turn| wire.gate.wait(turn));
            self.gate = Some((next, wait));
        }
        let Some((_, wait)) = &mut self.gate else { return Ok(false) };
        match Pin::new(wait).poll(context) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) => {
                self.gate = None;
                Ok(true)
            }
            Poll::Ready(Err(_)) => Err(SessionEnd::Poisoned),
        }
    }

    /// The peer takes nothing now: for how long already?
    fn check_stall(&mut self, wire: &Wire, carrier: &Carrier, context: &mut Context<'_>) -> Result<(), SessionEnd> {
        let after = wire.limits.write_stall;
        let stall = self.stall.get_or_insert_with(|| Stall {
            end: far_in(after),
            timer: Box::pin(sleep(after.min(wire.limits.mutual_stall))),
            begun: Instant::now(),
            silence: carrier.traffic().map(|traffic| Silence::new(Duration::ZERO, traffic)),
        });
        while stall.timer.as_mut().poll(context).is_ready() {
            if stall.end <= Instant::now() {
                return Err(SessionEnd::Stalled { after });
            }
            // A peer that cannot be reached does not wait for us to read, and its calls are not to be refused for it.
            let silence = stall.silence.as_mut().zip(carrier.traffic());
            let silent_for = silence.map(|(silence, traffic)| silence.after(stall.begun.elapsed(), traffic));
            if silent_for.unwrap_or_default().is_zero() {
                wire.relieve_mutual_stall();
            }
            // That both wait for each other may begin long after one of them does.
            stall.timer.as_mut().reset(stall.end.min(far_in(wire.limits.mutual_stall.max(SHORTEST_LOOK))));
        }
        Ok(())
    }
}

/// A stalled session is not looked at more often, whatever its limits say: what a timer can tell apart.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}
