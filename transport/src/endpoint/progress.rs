//! How far the packets of a connection have come: what quinn knows and shows nobody but its congestion controller.
//!
//! Whether a peer is still there cannot be seen from what comes from it: on a path that is cut in one direction it is
//! heard for as long as it repeats what it never learns to have arrived, old acknowledgements among it. What counts is
//! whether anything was acknowledged that was sent *later* than the question. So the controller is wrapped in one
//! that writes down two packet numbers and leaves everything else to it.

use std::{any::Any, sync::Arc, time::Instant};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics},
};

/// Makes controllers that note the progress of packets.
pub(super) struct Noting<F>(pub(super) Arc<F>);

impl<F: ControllerFactory + 'static> ControllerFactory for Noting<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let controller = self.0.clone().build(now, current_mtu);
        Box::new(Noted { controller, progress: Progress::default() })
    }
}

/// Packet numbers (RFC 9000 §12.3), which only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last packet that was sent.
    pub(crate) sent: u64,
    /// The newest of which it is known that the peer has it.
    pub(crate) acknowledged: u64,
}

impl Progress {
    /// That of a connection; `None` if its endpoint was not configured here.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        Some(connection.congestion_state().into_any().downcast::<Noted>().ok()?.progress)
    }
}

struct Noted {
    controller: Box<dyn Controller>,
    progress: Progress,
}

impl Controller for Noted {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.progress.sent = last_packet_number;
        self.controller.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.controller.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        // Called only when something was acknowledged that had not been.
        if let Some(number) = largest_packet_num_acked {
            // Those of the handshake are numbered by themselves.
            self.progress.acknowledged = self.progress.acknowledged.max(number);
        }
        self.controller.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.controller.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.controller.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.controller.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.controller.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { controller: self.controller.clone_box(), progress: self.progress })
    }

    fn initial_window(&self) -> u64 {
        self.controller.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
