//! New vats at servers that do not take everybody at once: a publisher works, or shows its invite, and nobody has to help.

use std::rc::Rc;

use schemas::{Coded, ErrorCode, Invite, SearchPathEntry, Timestamp};
use vls_client::{EntryReport, Expected, Invites, Publisher, PublisherConfig};
use vls_server::{
    Server,
    registry::{InviteTerms, Policy, Price},
};

use crate::support::{
    entries::{DEADLINE, Shows, carriers, https, live, server_with},
    net::{finder, run},
    records::now,
};

/// Every place costs work, and hardly any.
fn at_a_price(bits: u8) -> Policy {
    let price = Price { above: 0, bits, bits_full: bits };
    Policy { work: Some(price), ..Policy::default() }
}

fn closed() -> Policy {
    Policy { closed: true, ..Policy::default() }
}

/// By session, and over HTTPS.
fn entries(server: &Server) -> [SearchPathEntry; 2] {
    [server.entry("127.0.0.1"), https(server.http_address().unwrap())]
}

fn publisher(entry: &SearchPathEntry, epoch: u64, invites: Invites) -> Publisher {
    let mut config = PublisherConfig::default();
    config.carriers = carriers(None);
    config.invites = invites;
    Publisher::new(finder(), vec![entry.clone()], Rc::new(Shows(live(epoch))), config)
}

async fn announced(publisher: &Publisher) -> EntryReport {
    publisher.announce(Expected::Anything, DEADLINE).await.remove(0)
}

#[test]
fn a_publisher_works_for_its_place_over_every_carrier() {
    run(async {
        for which in 0..2 {
            let server = server_with(at_a_price(10)).await;
            let entry = &entries(&server)[which];
            let publisher = publisher(entry, 3, Invites::default());
            assert!(announced(&publisher).await.is_registered(), "{entry}");
            assert_eq!(server.status().records, 1);
            // Known now: nothing is asked for.
            assert!(announced(&publisher).await.is_registered());
            server.stop().await.unwrap();
        }
    });
}

#[test]
fn work_that_is_too_much_is_not_begun_and_the_server_says_what_it_asks_for() {
    run(async {
        for which in 0..2 {
            let server = server_with(at_a_price(60)).await;
            let publisher = publisher(&entries(&server)[which], 3, Invites::default());
            let report = announced(&publisher).await;
            let error = report.error().unwrap();
            assert_eq!(error.code(), ErrorCode::VlsWork);
            assert!(error.to_string().contains("work of 60 bits"), "{error}");
            assert!(error.retry_after().is_some());
            server.stop().await.unwrap();
        }
    });
}

#[test]
fn an_invite_is_shown_to_the_server_that_it_is_for_and_used_once() {
    run(async {
        for which in 0..2 {
            let server = server_with(closed()).await;
            let entry = &entries(&server)[which];
            let refused = announced(&publisher(entry, 3, Invites::default())).await;
            assert_eq!(refused.error().unwrap().code(), ErrorCode::VlsInvite, "{entry}");
            let invite = Invite::generate().unwrap();
            let elsewhere: Invites = [(entries(&server)[1 - which].clone(), invite.clone())].into_iter().collect();
            let refused = announced(&publisher(entry, 3, elsewhere)).await;
            assert_eq!(refused.error().unwrap().code(), ErrorCode::VlsInvite, "it is for another entry");

            let invites: Invites = [(entry.clone(), invite.clone())].into_iter().collect();
            let publisher = publisher(entry, 3, invites);
            assert_eq!(announced(&publisher).await.error().unwrap().code(), ErrorCode::VlsInvite, "not made yet");
            let terms = InviteTerms { uses: 2, made: now(), until: None::<Timestamp>, note: String::new() };
            server.registry().invite(invite.hash(), terms).await.unwrap().unwrap();
            for _ in 0..2 {
                assert!(announced(&publisher).await.is_registered());
                let invites = server.registry().invites().await.unwrap();
                assert_eq!(invites[0].1.uses, 1, "a vat that is known uses none");
            }
            let shown = format!("{publisher:?} {:?}", publisher.reports());
            assert!(!shown.contains(&invite.expose()[10..16]), "{shown}");
            server.stop().await.unwrap();
        }
    });
}

#[test]
fn a_vat_that_goes_on_running_is_let_in_once_its_server_has_room_for_it() {
    run(async {
        let server = server_with(at_a_price(10)).await;
        let publisher = publisher(&server.entry("127.0.0.1"), 3, Invites::default());
        let running = tokio::task::spawn_local({
            let publisher = publisher.clone();
            async move { publisher.run().await }
        });
        while server.status().records == 0 {
            tokio::task::yield_now().await;
        }
        running.abort();
        server.stop().await.unwrap();
    });
}
