//! `transport`: sessions by themselves. What a call, a connection and an idle session cost.
//!
//! No vat and no location server: an object in memory behind the crate `transport`, both ends of it, a thread for each.
//!
//! | figure | what one operation is | baseline |
//! |---|---|---|
//! | `pipelined_vs_stock` | calls answered in a second, 1,000 on the way at any time | capnp-rpc's `twoparty` on a quinn stream |
//! | `pipelined_vs_tonic` | the same | tonic, gRPC over TLS |
//! | `sequential_vs_quinn` | one call after the other, median time | bare echo |
//! | `allocations_per_call` | allocations of both ends for one call | capnp-rpc's `twoparty` on a quinn stream |
//! | `connect_first_call` | processor time of both ends for a new connection with its first call | bare quinn, one exchange |
//! | `idle_session_bytes` | memory that the accepting end holds for a session that says nothing, of many | a bare connection |

mod adder;
mod calls;
mod connecting;
mod grpc;
mod idle;
mod ours;
mod stock;

use crate::{
    Failure, Report,
    bare::BareServer,
    echo,
    figure::{Figure, Unit},
    note,
    placement::{Side, on_processor_of},
    program::{Program, run as on_this_thread},
    rounds::{Comparison, Effort},
};

/// Who is there to be called.
struct Servers {
    ours: Program<ours::Server>,
    stock: Program<BareServer>,
    grpc: Program<grpc::GrpcServer>,
    echo: Program<BareServer>,
}

impl Servers {
    fn stop(self) -> Result<(), Failure> {
        self.ours.stop()?;
        self.stock.stop()?;
        self.grpc.stop()?;
        self.echo.stop()
    }
}

/// Measures all figures.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    let servers = on_processor_of(Side::Server, || {
        Ok::<_, Failure>(Servers {
            ours: ours::start()?,
            stock: stock::start()?,
            grpc: grpc::start()?,
            echo: echo::start()?,
        })
    })??;
    let measure = async {
        let mut told = |name, unit, comparison| told(name, unit, comparison, report);
        told("pipelined_vs_stock", Unit::CallsPerSecond, calls::pipelined_vs_stock(effort, &servers).await?)?;
        told("pipelined_vs_tonic", Unit::CallsPerSecond, calls::pipelined_vs_tonic(effort, &servers).await?)?;
        told("sequential_vs_quinn", Unit::Microseconds, connecting::sequential(effort, &servers).await?)?;
        told("allocations_per_call", Unit::Allocations, calls::allocations_per_call(effort, &servers).await?)?;
        told("connect_first_call", Unit::Microseconds, connecting::first_call(effort, &servers).await?)
    };
    on_processor_of(Side::Client, || on_this_thread(measure))??;
    servers.stop()?;
    // Nobody else is there to be counted.
    told("idle_session_bytes", Unit::Bytes, on_this_thread(idle::bytes(effort))?, report)
}

fn told(name: &'static str, unit: Unit, comparison: Comparison, report: Report<'_>) -> Result<(), Failure> {
    note(&format!("{name}: {comparison}"));
    report(Figure { name, unit, comparison })
}
