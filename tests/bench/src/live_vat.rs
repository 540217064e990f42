//! A real vat with a counter: made, granted, woken and put to sleep as the program `vat` does it.

use std::{fs, net::Ipv4Addr, path::Path, sync::Arc};

use checkpoint::{FileDisk, Position, Protection, Store, StoreOptions};
use schemas::{Address, IdentityKey, SearchPathEntry, Secret, VatId, objects_capnp::counter, vat_capnp};
use transport::{Endpoint, Greeting, OutputGate, Session, SessionLimits, SessionOptions};
use vat::{
    Kinds,
    config::Config,
    core::Vat,
    home::{Home, Name, Places},
    process::{self, Live, Report, RunOptions, system_clock},
};

use crate::{Failure, journal::Commits, note, program::Program};

/// How long a client may take to connect.
const DIAL_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// A vat with a counter, asleep unless somebody has woken it.
pub(crate) struct CounterVat {
    home: Home,
    name: Name,
    places: Places,
    id: VatId,
    secret: Secret,
}

impl CounterVat {
    /// Makes one in a home folder of its own, with `entry` as its search path, and grants its counter.
    pub(crate) fn create(folder: &Path, entry: &SearchPathEntry) -> Result<Self, Failure> {
        let home = Home::open(&folder.join("home"))?;
        Config::add_entry(&home, entry)?;
        let name: Name = "counter".parse()?;
        let places = home.places(&name);
        home.make_parent(&places.key_file)?;
        home.make_parent(&places.id_file)?;
        let protection = Protection::KeyFile(places.key_file.clone());
        let id = Vat::create(Arc::new(FileDisk), &places.store, &protection, &Kinds::built_in(), "counter")?;
        fs::write(&places.id_file, format!("{id}\n"))?;
        let secret = grant(&places, id)?;
        Ok(Self { home, name, places, id, secret })
    }

    /// Its id.
    pub(crate) fn id(&self) -> VatId {
        self.id
    }

    /// Wakes it, on a thread of its own, and waits until it has published itself and serves.
    pub(crate) fn wake(&self) -> Result<Program<Live>, Failure> {
        let (home, name, config) = (self.home.clone(), self.name.clone(), Config::load(&self.home)?);
        Program::start("vat", async move |ready, stop| {
            let options = RunOptions {
                listen: (Ipv4Addr::LOCALHOST, 0).into(),
                listen_tls: None,
                take_over: false,
                back_up: false,
            };
            let stopped = async {
                // Dropped or sent: both mean the end.
                let _ = stop.await;
            };
            let mut report = |report| match report {
                Report::Live(live) => ready.serving(live),
                Report::Notice(text) => note(&text),
            };
            Ok(process::run(&home, &name, &config, Kinds::built_in(), options, stopped, &mut report).await?)
        })
    }

    /// What it has committed so far. It must be asleep.
    pub(crate) fn commits(&self) -> Result<Commits, Failure> {
        let store = open(&self.places, self.id)?;
        let Position { turn, sequence, .. } = store.durable();
        store.close()?;
        Ok(Commits { turns: turn, frames: sequence })
    }

    /// Connects to it while it is awake, as somebody who was given its reference.
    pub(crate) async fn connect(&self, live: &Live) -> Result<Caller, Failure> {
        let address = live.addresses.iter().find_map(|address| match address {
            Address::Quic { host, port } => Some((host.parse::<std::net::IpAddr>(), *port)),
            _ => None,
        });
        let (host, port) = address.ok_or("the vat has published no address to dial")?;
        let endpoint = Endpoint::client(&IdentityKey::generate()?)?;
        let connection = endpoint.dial(self.id, (host?, port).into(), DIAL_DEADLINE).await?;
        let options = SessionOptions {
            greeting: Greeting { epoch: 0, incarnation: [0; 16], program: "bench".to_owned() },
            bootstrap: None,
            gate: OutputGate::always_open(),
            limits: SessionLimits::default(),
        };
        let session = Session::open(connection, options).await?;
        let mut request = session.bootstrap::<vat_capnp::vat::Client>().restore_request();
        request.get().set_secret(self.secret.expose());
        let response = request.send().promise.await?;
        let counter = response.get()?.get_capability().get_as_capability()?;
        Ok(Caller { counter, session, endpoint })
    }
}

/// A warm session with a vat, and its counter.
pub(crate) struct Caller {
    pub(crate) counter: counter::Client,
    session: Session,
    endpoint: Endpoint,
}

impl Caller {
    /// The counter's total.
    pub(crate) async fn get(&self) -> Result<u64, Failure> {
        Ok(self.counter.get_request().send().promise.await?.get()?.get_total())
    }

    /// Adds 1; the answer comes when that is durable.
    pub(crate) async fn add(&self) -> Result<u64, Failure> {
        let mut request = self.counter.add_request();
        request.get().set_by(1);
        Ok(request.send().promise.await?.get()?.get_total())
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        self.session.close();
        self.session.closed().await;
        self.endpoint.close().await;
    }
}

fn open(places: &Places, id: VatId) -> Result<Store, Failure> {
    let protection = Protection::KeyFile(places.key_file.clone());
    Ok(Store::open(Arc::new(FileDisk), &places.store, id.as_bytes(), &protection, StoreOptions::default())?)
}

fn grant(places: &Places, id: VatId) -> Result<Secret, Failure> {
    let vat = Vat::open(open(places, id)?, id, Kinds::built_in(), system_clock(), Box::new(vat::engine::NoOutputs))?;
    let secret = vat.grant("bench", None, None)?;
    vat.engine().store().wait_durable(vat.engine().newest_turn())?;
    Ok(secret)
}
