//! Simulated time for QUIC, with a clock that can jump.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};
use schemas::Timestamp;
use simulation::finding::plan::BEGINNING;
use vls_client::Moment;

/// The monotonic clock of one process, for QUIC: tokio's simulated one and how far it has jumped ahead of it.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    ahead_micros: AtomicU64,
    /// Timers of this clock, to look again after a jump.
    timers: Mutex<Vec<Weak<Mutex<Option<Waker>>>>>,
}

impl Clock {
    pub(crate) fn jump(&self, by: Duration) {
        self.ahead_micros.fetch_add(u64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
        let mut timers = self.timers.lock().unwrap();
        timers.retain(|timer| timer.strong_count() > 0);
        for timer in timers.iter().filter_map(Weak::upgrade) {
            if let Some(waker) = timer.lock().unwrap().take() {
                waker.wake();
            }
        }
    }

    fn ahead(&self) -> Duration {
        Duration::from_micros(self.ahead_micros.load(Ordering::SeqCst))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std() + self.ahead()
    }
}

/// The two clocks of one process, for what finds vats. The wall clock jumps with the other, and can be set.
#[derive(Debug)]
pub(crate) struct WallClock {
    clock: Arc<Clock>,
    /// How far the wall clock was set ahead, in microseconds; less than zero: back. Of the machine, so it outlives
    /// processes.
    set_ahead: Arc<AtomicI64>,
    origin: tokio::time::Instant,
}

impl WallClock {
    pub(crate) fn new(clock: Arc<Clock>) -> Self {
        Self::of_machine(clock, Arc::default())
    }

    pub(crate) fn of_machine(clock: Arc<Clock>, set_ahead: Arc<AtomicI64>) -> Self {
        Self { clock, set_ahead, origin: tokio::time::Instant::now() }
    }

    fn wall(&self) -> Timestamp {
        // A process that is being taken down is on no host any more, and nothing comes of what it still does.
        let since = turmoil::sim_elapsed().unwrap_or_default() + self.clock.ahead();
        wall(since, self.set_ahead.load(Ordering::SeqCst))
    }
}

/// What a wall clock shows so long after the beginning.
pub(crate) fn wall(since: Duration, set_ahead_micros: i64) -> Timestamp {
    let now = Timestamp::from_micros(0).saturating_add(BEGINNING + since);
    Timestamp::from_micros(now.as_micros().saturating_add_signed(set_ahead_micros))
}

impl vls_server::Clock for WallClock {
    fn now(&self) -> vls_server::registry::Now {
        vls_server::registry::Now { wall: self.wall(), monotonic: turmoil::sim_elapsed().unwrap_or_default() }
    }
}

impl vls_client::Clock for WallClock {
    fn now(&self) -> Moment {
        Moment { wall: self.wall(), elapsed: self.origin.elapsed() }
    }
}

/// What quinn asks of its runtime, on a [`Clock`].
#[derive(Debug)]
pub(crate) struct SimulatedRuntime(pub(crate) Arc<Clock>);

impl Runtime for SimulatedRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let waker = Arc::new(Mutex::new(None));
        self.0.timers.lock().unwrap().push(Arc::downgrade(&waker));
        let sleep = Box::pin(tokio::time::sleep_until(tokio::time::Instant::now()));
        let mut timer = Timer { clock: self.0.clone(), sleep, at, armed_ahead: Duration::ZERO, waker };
        timer.arm();
        Box::pin(timer)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, _socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        self.0.now()
    }
}

#[derive(Debug)]
struct Timer {
    clock: Arc<Clock>,
    sleep: Pin<Box<tokio::time::Sleep>>,
    at: Instant,
    /// How far the clock was ahead when `sleep` was set.
    armed_ahead: Duration,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Timer {
    fn arm(&mut self) {
        // A time that the clock has passed is now: tokio's clock cannot say how long ago it was.
        self.armed_ahead = self.clock.ahead();
        let left = self.at.saturating_duration_since(self.clock.now());
        self.sleep.as_mut().reset(tokio::time::Instant::now() + left);
    }
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.at = at;
        self.arm();
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.now() >= self.at {
            return Poll::Ready(());
        }
        if self.armed_ahead != self.clock.ahead() {
            self.arm();
        }
        *self.waker.lock().unwrap() = Some(context.waker().clone());
        Future::poll(self.sleep.as_mut(), context)
    }
}
