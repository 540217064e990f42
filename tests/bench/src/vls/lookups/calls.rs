//! Who asks over a session: for 64 ids in one call, or for one id after the other.

use futures::future::try_join_all;
use schemas::location_capnp::location_service::Client;

use super::{
    Process,
    server::{Served, session},
};
use crate::{
    Failure,
    bare::ANY_PORT,
    note,
    program::run,
    rounds::{Comparison, Effort, compare, microseconds},
    vls::records::PACKET_BYTES,
};

/// Ids in one call.
const TOGETHER: usize = 64;

/// What an id costs in a call for 64, against a call of its own.
pub(super) fn measure(effort: Effort, served: &Served, ids: &[[u8; 32]]) -> Result<Comparison, Failure> {
    run(async {
        let (endpoint, _session, service) = session(served, ANY_PORT).await?;
        let many = async |ids: &[[u8; 32]]| look_up_many(&service, ids).await;
        let at_once = async |ids: &[[u8; 32]]| try_join_all(ids.iter().map(|id| look_up(&service, id))).await.map(drop);
        let one_by_one = async |ids: &[[u8; 32]]| {
            for id in ids {
                look_up(&service, id).await?;
            }
            Ok(())
        };
        let process = &served.process;
        let comparison = compare(
            effort,
            async || per_id(effort, process, ids, many).await,
            async || per_id(effort, process, ids, one_by_one).await,
        );
        let comparison = comparison.await?;
        let at_once = per_id(effort, process, ids, at_once).await?;
        note(&format!("lookup_many_64: with {TOGETHER} calls for one id under way at once, {at_once:.1} for each"));
        endpoint.close().await;
        Ok(comparison)
    })
}

/// Microseconds of the server's processor for each id, over a while.
async fn per_id(
    effort: Effort,
    server: &Process,
    ids: &[[u8; 32]],
    ask: impl AsyncFn(&[[u8; 32]]) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let (before, begun, mut answers) = (server.processor_time()?, std::time::Instant::now(), 0);
    for ids in ids.chunks_exact(TOGETHER).cycle() {
        ask(ids).await?;
        answers += TOGETHER;
        if begun.elapsed() >= effort.window {
            break;
        }
    }
    Ok(microseconds(server.processor_time()? - before) / answers as f64)
}

async fn look_up_many(service: &Client, ids: &[[u8; 32]]) -> Result<(), Failure> {
    let mut request = service.lookup_many_request();
    let mut list = request.get().init_ids(u32::try_from(ids.len())?);
    for (index, id) in (0..).zip(ids) {
        list.set(index, id);
    }
    let response = request.send().promise.await?;
    let answers = response.get()?.get_answers()?;
    for answer in answers {
        check(answer.get_packet()?)?;
    }
    if answers.len() as usize == ids.len() { Ok(()) } else { Err("not all are answered".into()) }
}

async fn look_up(service: &Client, id: &[u8; 32]) -> Result<(), Failure> {
    let mut request = service.lookup_request();
    request.get().set_id(id);
    let response = request.send().promise.await?;
    check(response.get()?.get_answer()?.get_packet()?)
}

fn check(packet: &[u8]) -> Result<(), Failure> {
    if packet.len() == PACKET_BYTES { Ok(()) } else { Err("a record was not found".into()) }
}
