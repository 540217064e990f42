//! By what an entry of the search path is asked, and by what it is registered with: one thin carrier for each form.
//!
//! | entry | lookups | registrations |
//! |---|---|---|
//! | `vls://` | one datagram, or the open session (`cold`, `pool`) | the session |
//! | `https://` | GET (`http`) | PUT |
//! | `dns:` | TXT at `_signed.<id>.<origin>` (`dns`) | — |
//! | `dht:` | — | — |
//!
//! What any of them brings is judged by the same rules; none of them decides anything.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use rustls::RootCertStore;
use schemas::{SearchPathEntry, SignedRecord, Timestamp, VatId};

use crate::{
    admission::Admission,
    cold::Question,
    dns::DnsRecords,
    failure::{Carrier, Failure},
    http::HttpRecords,
    locality::LeftOut,
    pool::{Pool, Server},
    register::{Expected, Reply},
    schedule::{Answer, Goal},
    service::{self, DialledBack},
};

/// Whose certificates are trusted for entries of the form `https://`.
#[derive(Clone, Default)]
pub enum TrustRoots {
    /// Those that this machine trusts: its own list, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Read when the first
    /// of these entries is asked.
    #[default]
    System,
    /// These.
    Given(Arc<RootCertStore>),
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Given(_) => "Given",
        })
    }
}

/// Who is asked for entries of the form `dns:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NameServers {
    /// Those of this machine: `/etc/resolv.conf`, read for every question, as it changes with the network.
    #[default]
    System,
    /// These, in this order: [`limits::MAX_NAME_SERVERS`](crate::limits::MAX_NAME_SERVERS) are a good number.
    Given(Vec<SocketAddr>),
}

/// How the entries of a search path are spoken with. The default is right for usual machines.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CarrierConfig {
    /// Whose certificates are trusted.
    pub trust: TrustRoots,
    /// Who is asked for names.
    pub name_servers: NameServers,
    /// Nothing is asked or dialled that is not on this machine or in its own network.
    pub local_only: bool,
}

/// What an entry says, and whether it is a location server's own word of now ([`Attempt::vouched`](crate::Attempt)).
pub(crate) struct Said {
    pub(crate) answer: Answer,
    pub(crate) vouched: bool,
    /// What it was asked, if it may answer again.
    pub(crate) question: Option<Question>,
}

impl Said {
    /// All that it will say.
    pub(crate) fn once(answer: Answer, vouched: bool) -> Self {
        Self { answer, vouched, question: None }
    }
}

/// The carriers. Clones share sessions and connections.
#[derive(Clone)]
pub(crate) struct Carriers {
    pub(crate) pool: Pool,
    http: HttpRecords,
    dns: DnsRecords,
    pub(crate) local_only: bool,
}

impl Carriers {
    pub(crate) fn new(pool: Pool, config: CarrierConfig) -> Self {
        let CarrierConfig { trust, name_servers, local_only } = config;
        Self { pool, http: HttpRecords::new(trust), dns: DnsRecords::new(name_servers), local_only }
    }

    /// Why an entry is not asked, in local-only mode.
    pub(crate) fn why_not(&self, entry: &SearchPathEntry) -> Option<LeftOut> {
        LeftOut::of(entry).filter(|_| self.local_only)
    }

    /// Looks up the record of `id`. Has no deadline of its own beyond that of the carrier.
    ///
    /// A witness (R7) is asked over a session where there can be one: nobody else can answer on it.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn lookup(
        &self,
        entry: &SearchPathEntry,
        id: VatId,
        goal: Goal,
        patience: Duration,
    ) -> Result<Said, Failure> {
        match (entry, server(entry)) {
            (_, Some(server)) if goal == Goal::Reach => {
                let (answer, question) = self.pool.lookup(&server, id, patience).await?;
                Ok(Said { question, ..Said::once(answer, false) })
            }
            (_, Some(server)) => {
                let answer = self.pool.call(&server, |client| service::lookup(client, id)).await?;
                Ok(Said::once(answer, true))
            }
            (SearchPathEntry::Http { url }, _) => self.http.lookup(url, id, goal).await,
            (SearchPathEntry::Dns { origin }, _) => Ok(Said::once(self.dns.lookup(origin, id).await?, false)),
            (_, None) => Err(Failure::NoCarrier { carrier: Carrier::Dht }),
        }
    }

    /// Offers a record. Has no deadline of its own beyond that of the carrier.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn register(
        &self,
        entry: &SearchPathEntry,
        record: &SignedRecord,
        expected: Expected,
        admission: &Admission,
    ) -> Result<Reply, Failure> {
        match (entry, server(entry)) {
            (_, Some(server)) => {
                let offer = |client| service::register(client, record.clone(), expected, admission.clone());
                self.pool.call(&server, offer).await
            }
            (SearchPathEntry::Http { url }, _) => self.http.register(url, record, expected, admission).await,
            (SearchPathEntry::Dns { .. }, _) => Err(Failure::OnlyLookups),
            (_, None) => Err(Failure::NoCarrier { carrier: Carrier::Dht }),
        }
    }

    /// What time it is there.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::OnlyLookups`] and [`Failure::NoCarrier`] for an entry that has no clock.
    pub(crate) async fn time(&self, entry: &SearchPathEntry) -> Result<Timestamp, Failure> {
        match (entry, server(entry)) {
            (_, Some(server)) => self.pool.call(&server, service::time).await,
            (SearchPathEntry::Http { url }, _) => self.http.time(url).await,
            (SearchPathEntry::Dns { .. }, _) => Err(Failure::OnlyLookups),
            (_, None) => Err(Failure::NoCarrier { carrier: Carrier::Dht }),
        }
    }

    /// Has this endpoint dialled back from there.
    ///
    /// # Errors
    /// [`Failure`]; only sessions have this.
    pub(crate) async fn dial_back(&self, entry: &SearchPathEntry, port: Option<u16>) -> Result<DialledBack, Failure> {
        match server(entry) {
            Some(server) => self.pool.call(&server, |client| service::dial_back(client, port)).await,
            None => Err(Failure::beyond_lookups(entry).unwrap_or(Failure::OnlySessions)),
        }
    }
}

/// The location server behind an entry, if it is of that form.
pub(crate) fn server(entry: &SearchPathEntry) -> Option<Server> {
    match entry {
        SearchPathEntry::Vls { id, host, port } => Some(Server { id: *id, host: host.clone(), port: *port }),
        _ => None,
    }
}
