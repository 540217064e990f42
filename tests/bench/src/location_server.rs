//! A real location server, on a thread of its own as in the program `vls-server run`.

use std::{net::Ipv4Addr, path::PathBuf, rc::Rc};

use schemas::SearchPathEntry;
use vls_server::{Server, ServerConfig, SystemClock};

use crate::{Failure, program::Program};

/// Starts one that keeps its records in `data`. Its greeting is its search path entry.
pub(crate) fn start(data: PathBuf) -> Result<Program<SearchPathEntry>, Failure> {
    Program::start("vls-server", async |ready, stop| {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::start(ServerConfig::new(listen, data), Rc::new(SystemClock)).await?;
        ready.serving(server.entry(&Ipv4Addr::LOCALHOST.to_string()));
        // Dropped or sent: both mean the end.
        let _ = stop.await;
        Ok(server.stop().await?)
    })
}
