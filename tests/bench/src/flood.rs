//! `flood`: whether a peer that sends as fast as it can keeps an honest one waiting.
//!
//! One server thread has both peers, each on a session of its own. The honest one calls, waits for the answer, and
//! calls again. The other has [`BATCHES`] batches of [`CALLS`] calls under way at any time, sends them as prepared
//! bytes, and reads the answers only to count them, so that it sends faster than any program could that means them.
//!
//! | figure | what | baseline |
//! |---|---|---|
//! | `flood_p99` | the time within which 99 of 100 calls of the honest peer are answered, during the flood | the same without it |
//!
//! With the flood and without it take turns; see [`crate::rounds`].

use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use capnp_rpc::rpc_capnp::message;
use schemas::{IdentityKey, VatId, objects_capnp::counter, session_capnp::hello};
use tokio::sync::watch;
use transport::{
    Endpoint, EndpointConfig, Greeting, OutputGate, Session, SessionLimits, SessionOptions,
    frames::{FrameDecoder, FrameLimits},
};

use crate::{
    Failure, Report,
    figure::{Figure, Unit},
    note,
    placement::{Side, on_processor_of},
    program::{Program, run as on_this_thread},
    rounds::{Comparison, Effort},
};

/// Calls that are sent in one piece.
const CALLS: u32 = 500;

/// Pieces under way.
const BATCHES: u32 = 4;

/// How long a peer may take to connect.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Where the server is.
type Address = (VatId, SocketAddr);

/// Measures the figure.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    let server = on_processor_of(Side::Server, || Program::start("server", serve))??;
    let (flooding, flood) = watch::channel(false);
    let answered = Arc::<AtomicU64>::default();
    let flooder = {
        let (address, answered) = (*server.greeting(), answered.clone());
        on_processor_of(Side::Client, || {
            Program::start("flooder", async move |ready, stop| {
                // It takes what the honest peer leaves of their processor: what is measured is the server.
                let _ = rustix::process::nice(19);
                let flooding = async {
                    let flooder = Flooder::connect(address).await?;
                    ready.serving(());
                    flooder.flood(flood, &answered).await
                };
                tokio::select! { outcome = flooding => outcome, _ = stop => Ok(()) }
            })
        })??
    };
    let measure = async {
        let honest = Honest::connect(*server.greeting()).await?;
        let mut pairs = Vec::new();
        for round in 0..=effort.rounds {
            let alone = honest.p99(effort.samples).await?;
            flooding.send(true)?;
            let begun = answered.load(Ordering::Relaxed);
            while answered.load(Ordering::Relaxed) < begun + u64::from(CALLS) {
                honest.call().await?;
            }
            let (from, at) = (answered.load(Ordering::Relaxed), Instant::now());
            let flooded = honest.p99(effort.samples).await?;
            let rate = (answered.load(Ordering::Relaxed) - from) as f64 / at.elapsed().as_secs_f64();
            flooding.send(false)?;
            // The first round warms both up.
            if round > 0 {
                pairs.push((flooded, alone));
                note(&format!("{alone:.0} µs alone, {flooded:.0} µs beside {rate:.0} calls/s"));
            }
        }
        Ok(Comparison::of(pairs))
    };
    let comparison = on_processor_of(Side::Client, || on_this_thread(measure))??;
    note(&format!("flood_p99: {comparison}"));
    report(Figure { name: "flood_p99", unit: Unit::Microseconds, comparison })?;
    flooder.stop()?;
    server.stop()
}

/// A counter that remembers nothing: what is measured is the sessions.
struct Zero;
impl counter::Server for Zero {
    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        mut results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_total(0);
        Ok(())
    }
}

fn options() -> SessionOptions {
    SessionOptions {
        greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "bench".to_owned() },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

async fn serve(ready: crate::program::Ready<Address>, mut stop: crate::program::Stop) -> Result<(), Failure> {
    let endpoint =
        Endpoint::bind(&IdentityKey::generate()?, (Ipv4Addr::LOCALHOST, 0).into(), EndpointConfig::default())?;
    ready.serving((endpoint.id(), endpoint.local_address()));
    let object: counter::Client = capnp_rpc::new_client(Zero);
    let mut sessions = Vec::new();
    loop {
        let incoming = tokio::select! {
            _ = &mut stop => return Ok(()),
            incoming = endpoint.accept() => incoming.ok_or("the endpoint is closed")?,
        };
        let connection = incoming.accept().await?;
        let options = SessionOptions { bootstrap: Some(object.clone().client), ..options() };
        sessions.push(Session::accept(connection, options).await?);
    }
}

struct Honest {
    counter: counter::Client,
    _session: Session,
    _endpoint: Endpoint,
}

impl Honest {
    async fn connect((id, address): Address) -> Result<Self, Failure> {
        let endpoint = Endpoint::client(&IdentityKey::generate()?)?;
        let session = Session::open(endpoint.dial(id, address, DIAL_DEADLINE).await?, options()).await?;
        Ok(Self { counter: session.bootstrap(), _session: session, _endpoint: endpoint })
    }

    async fn call(&self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        self.counter.get_request().send().promise.await?;
        Ok(begun.elapsed())
    }

    /// In microseconds.
    async fn p99(&self, samples: usize) -> Result<f64, Failure> {
        let mut times = Vec::with_capacity(samples);
        for _ in 0..samples {
            times.push(self.call().await?);
        }
        times.sort_unstable();
        let time = times.get(samples * 99 / 100).ok_or("no samples")?;
        Ok(time.as_secs_f64() * 1e6)
    }
}

/// A peer that speaks to the transport byte by byte.
struct Flooder {
    output: quinn::SendStream,
    input: quinn::RecvStream,
    _connection: transport::PeerConnection,
    _endpoint: Endpoint,
}

impl Flooder {
    async fn connect((id, address): Address) -> Result<Self, Failure> {
        let endpoint = Endpoint::client(&IdentityKey::generate()?)?;
        let connection = endpoint.dial(id, address, DIAL_DEADLINE).await?;
        let (mut output, input) = connection.quinn().open_bi().await?;
        output.write_all(&greeting()).await?;
        Ok(Self { output, input, _connection: connection, _endpoint: endpoint })
    }

    async fn flood(mut self, mut flood: watch::Receiver<bool>, answered: &AtomicU64) -> Result<(), Failure> {
        let batches: Vec<Vec<u8>> = (0..BATCHES).map(batch).collect();
        // The preface of the other side, then its greeting, then the answer to the question for its bootstrap.
        self.input.read_exact(&mut [0; 8]).await?;
        let mut decoder = FrameDecoder::new(FrameLimits { message_bytes: 1 << 20, segments: 16 });
        let mut space = vec![0; 1 << 16];
        let mut waited_for = 2;
        loop {
            // Every answer has come: the flood is over, or begins.
            while waited_for > 0 {
                let length = self.input.read(&mut space).await?.ok_or("the server has had enough of it")?;
                waited_for -= count(&mut decoder, &space[..length])?;
            }
            flood.wait_for(|wanted| *wanted).await?;
            for bytes in &batches {
                self.output.write_all(bytes).await?;
            }
            let mut came = 0;
            let mut next = 0;
            waited_for = u64::from(CALLS * BATCHES);
            while *flood.borrow() {
                let length = self.input.read(&mut space).await?.ok_or("the server has had enough of it")?;
                let frames = count(&mut decoder, &space[..length])?;
                answered.fetch_add(frames, Ordering::Relaxed);
                (came, waited_for) = (came + frames, waited_for - frames);
                // Answers come in order, so these are the numbers of one batch.
                while came >= u64::from(CALLS) {
                    self.output.write_all(&batches[next]).await?;
                    next = (next + 1) % batches.len();
                    (came, waited_for) = (came - u64::from(CALLS), waited_for + u64::from(CALLS));
                }
            }
        }
    }
}

fn count(decoder: &mut FrameDecoder, mut bytes: &[u8]) -> Result<u64, Failure> {
    let mut frames = 0;
    while !bytes.is_empty() {
        frames += u64::from(decoder.push(&mut bytes)?.is_some());
    }
    Ok(frames)
}

/// What a session begins with: its preface, the greeting, and the question for the bootstrap capability.
fn greeting() -> Vec<u8> {
    let mut greeting = capnp::message::Builder::new_default();
    let mut hello: hello::Builder<'_> = greeting.init_root();
    hello.set_version(transport::hello::SESSION_VERSION);
    hello.set_incarnation(&[0; 16]);
    let mut bootstrap = capnp::message::Builder::new_default();
    bootstrap.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(0);
    let version = transport::hello::SESSION_VERSION.to_le_bytes();
    let parts =
        [capnp::serialize::write_message_to_words(&greeting), capnp::serialize::write_message_to_words(&bootstrap)];
    [b"vat\0\x01\x00", &version[..], &parts.concat()].concat()
}

/// The calls of one batch, on the bootstrap capability.
fn batch(number: u32) -> Vec<u8> {
    let first = 1 + number * CALLS;
    (first..first + CALLS)
        .flat_map(|question| {
            let mut message = capnp::message::Builder::new_default();
            let mut call = message.init_root::<message::Builder<'_>>().init_call();
            call.set_question_id(question);
            call.set_interface_id(<counter::Client as capnp::traits::HasTypeId>::TYPE_ID);
            call.set_method_id(1);
            call.reborrow().init_target().init_promised_answer().set_question_id(0);
            call.init_params().init_content().init_as::<counter::get_params::Builder<'_>>();
            capnp::serialize::write_message_to_words(&message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_comes_once_under_its_stable_name() {
        let mut figures = Vec::new();
        run(Effort::LEAST, &mut |figure| {
            figures.push(figure);
            Ok(())
        })
        .unwrap();
        let [Figure { name: "flood_p99", comparison, .. }] = figures.as_slice() else { panic!("{figures:?}") };
        assert!(comparison.value > 0.0 && comparison.baseline > 0.0, "{comparison:?}");
    }
}
