//! Threads that behave like the programs they stand for: one event loop each (DESIGN §2).
//!
//! Client and servers of a benchmark share a process, so that one command runs it, and nothing else: each has
//! its own thread, its own current-thread runtime and its own `LocalSet`, as `vat run`, `vls-server run` and
//! `vat call` have. What goes between them goes through sockets.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
};

use tokio::{runtime, sync::oneshot, task::LocalSet};

use crate::Failure;

/// A server on a thread of its own. Ends when it is dropped; [`stop`](Self::stop) also tells how it ended.
pub(crate) struct Program<T> {
    greeting: T,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

/// Resolves when the program shall end.
pub(crate) type Stop = oneshot::Receiver<()>;

/// With it a program says, once, that it serves.
pub(crate) struct Ready<T>(mpsc::Sender<T>);

impl<T> Ready<T> {
    /// Says so. `greeting` is what others must know to reach it.
    pub(crate) fn serving(&self, greeting: T) {
        // Nobody waits any more only if the benchmark has failed already.
        let _ = self.0.send(greeting);
    }
}

impl<T: Send + 'static> Program<T> {
    /// Starts a program and waits until it serves. The name is that of its thread, for profilers.
    ///
    /// # Errors
    /// Its own, if it ends before.
    pub(crate) fn start<F>(name: &str, work: impl FnOnce(Ready<T>, Stop) -> F + Send + 'static) -> Result<Self, Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let (sender, greeting) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || run(work(Ready(sender), stopped)))?;
        match greeting.recv() {
            Ok(greeting) => Ok(Self { greeting, stop: Some(stop), thread: Some(thread) }),
            Err(_) => Err(ended(thread).err().unwrap_or_else(|| "a server ended before it served".into())),
        }
    }

    /// What others must know to reach it.
    pub(crate) fn greeting(&self) -> &T {
        &self.greeting
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// Its own.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        self.end()
    }
}

impl<T> Program<T> {
    fn end(&mut self) -> Result<(), Failure> {
        drop(self.stop.take());
        self.thread.take().map_or(Ok(()), ended)
    }
}

impl<T> Drop for Program<T> {
    fn drop(&mut self) {
        // Dropped without `stop` after a failure that says more.
        let _ = self.end();
    }
}

fn ended(thread: JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    thread.join().unwrap_or_else(|_| Err("a server panicked".into()))
}

/// Runs one program's event loop on this thread.
pub(crate) fn run<R>(work: impl Future<Output = Result<R, Failure>>) -> Result<R, Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_serves_until_it_is_stopped_and_tells_how_it_ended() {
        let program = Program::start("seven", async |ready, stop| {
            ready.serving(7);
            let _ = stop.await;
            Err("the end".into())
        })
        .unwrap();
        assert_eq!(*program.greeting(), 7);
        assert_eq!(program.stop().unwrap_err().to_string(), "the end");
    }

    #[test]
    fn a_program_that_cannot_start_says_why() {
        let failed = Program::<()>::start("broken", async |_, _| Err("no port".into()));
        assert_eq!(failed.err().unwrap().to_string(), "no port");
    }
}
