//! A poll: an object of one's own, as a program with the whole `vat` command line.
//!
//! ```text
//! cargo run -p poll -- new lunch --object poll
//! cargo run -p poll -- run lunch
//! cargo run -p poll -- call lunch vote choice=soup
//! ```

use std::{collections::BTreeMap, process::ExitCode, rc::Rc};

use poll_capnp::poll;
use serde::{Deserialize, Serialize};
use vat::{Handle, Kind, Kinds, Reference, State};

#[rustfmt::skip]
#[path = "generated/poll_capnp.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::unimplemented)]
mod poll_capnp;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Votes(BTreeMap<String, u64>);

impl State for Votes {
    const TYPE: &'static str = "example.poll.votes";
}

/// The poll about a question that came up in another one: an entry of that one, under the question.
#[derive(Clone, Serialize, Deserialize)]
struct FollowUp(Reference);

impl State for FollowUp {
    const TYPE: &'static str = "example.poll.follow_up";
}

struct Poll(Handle<Votes>);

impl poll::Server for Poll {
    async fn vote(self: Rc<Self>, params: poll::VoteParams, mut results: poll::VoteResults) -> capnp::Result<()> {
        let choice = params.get()?.get_choice()?.to_string()?;
        let votes = self.0.turn(|votes, _| {
            let votes = votes.0.entry(choice).or_default();
            *votes += 1;
            Ok(*votes)
        })?;
        results.get().set_votes(votes);
        Ok(())
    }

    async fn standing(
        self: Rc<Self>,
        _: poll::StandingParams,
        mut results: poll::StandingResults,
    ) -> capnp::Result<()> {
        let votes = self.0.read(|votes, _| Ok(votes.clone()))?;
        let mut list = results.get().init_choices(u32::try_from(votes.0.len()).unwrap_or(u32::MAX));
        for (index, (name, votes)) in (0..).zip(&votes.0) {
            list.reborrow().get(index).set_name(name);
            list.reborrow().get(index).set_votes(*votes);
        }
        Ok(())
    }

    async fn follow_up(
        self: Rc<Self>,
        params: poll::FollowUpParams,
        mut results: poll::FollowUpResults,
    ) -> capnp::Result<()> {
        let question = params.get()?.get_question()?.to_string()?;
        let poll = self.0.turn(|_, turn| {
            if let Some(FollowUp(poll)) = turn.get(question.as_bytes())? {
                return Ok(poll);
            }
            let poll = turn.create("poll")?;
            turn.put(question.as_bytes(), &FollowUp(poll.clone()))?;
            Ok(poll)
        })?;
        results.get().set_poll(self.0.open(&poll)?);
        Ok(())
    }

    async fn read_out(
        self: Rc<Self>,
        params: poll::ReadOutParams,
        mut results: poll::ReadOutResults,
    ) -> capnp::Result<()> {
        let listener = params.get()?.get_listener()?;
        let votes = self.0.read(|votes, _| Ok(votes.clone()))?;
        for (name, votes) in &votes.0 {
            let mut request = listener.choice_request();
            let mut choice = request.get().init_choice();
            choice.set_name(name);
            choice.set_votes(*votes);
            request.send().promise.await?;
        }
        results.get().set_choices(u32::try_from(votes.0.len()).unwrap_or(u32::MAX));
        Ok(())
    }
}

fn main() -> ExitCode {
    let poll = Kind::new(
        "poll",
        "one question, and the votes for each answer",
        include_bytes!("generated/poll.cgr"),
        |handle| -> poll::Client { capnp_rpc::new_client(Poll(handle)) },
    )
    .with_entry::<FollowUp>();
    vat::program::main(Kinds::built_in().with(poll))
}
