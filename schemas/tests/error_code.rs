//! The registry of errors: stable texts, one per code, readable behind whatever a peer puts in front.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;

use proptest::prelude::*;
use schemas::{Coded, ErrorCode, Exit, RemoteError, UnknownErrorCode};

fn code() -> impl Strategy<Value = ErrorCode> {
    proptest::sample::select(ErrorCode::ALL)
}

#[test]
fn every_code_is_area_dot_reason() {
    let word = |text: &str, symbols: &str| {
        !text.is_empty() && text.chars().all(|symbol| symbol.is_ascii_lowercase() || symbols.contains(symbol))
    };
    for code in ErrorCode::ALL {
        let formed = match code.as_str().split_once('.') {
            Some((area, reason)) => word(area, "") && word(reason, "_"),
            None => *code == ErrorCode::Internal && code.as_str() == "internal",
        };
        assert!(formed, "{code}");
    }
}

#[test]
fn codes_are_unique_and_come_back_from_their_text() {
    let texts: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(texts.len(), ErrorCode::ALL.len());
    for code in ErrorCode::ALL {
        assert_eq!(code.to_string().parse(), Ok(*code));
    }
}

#[test]
fn every_code_says_what_it_means_what_to_do_and_fails() {
    for code in ErrorCode::ALL {
        for text in [code.meaning(), code.next()] {
            assert!(text.len() > 10 && text.ends_with(['.', ':', '`']), "{code}: {text}");
            assert_eq!(text.trim(), text, "{code}");
        }
        assert_ne!(code.exit(), Exit::Ok, "{code}");
    }
}

#[test]
fn exit_statuses_are_those_of_the_manual() {
    let statuses = [
        (Exit::Ok, 0),
        (Exit::Failed, 1),
        (Exit::Usage, 2),
        (Exit::NotFound, 3),
        (Exit::Denied, 4),
        (Exit::Unreachable, 5),
        (Exit::Timeout, 6),
        (Exit::Conflict, 7),
        (Exit::Limit, 8),
        (Exit::Integrity, 9),
        (Exit::Degraded, 10),
        (Exit::Version, 11),
    ];
    for (exit, status) in statuses {
        assert_eq!(exit as u8, status);
    }
}

#[test]
fn unknown_texts_are_no_codes() {
    for text in ["", "vls", "vls.", "VLS.NO_ANSWER", "vls.no_answer ", "internal.x"] {
        assert_eq!(text.parse::<ErrorCode>(), Err(UnknownErrorCode), "{text}");
    }
    assert_eq!(UnknownErrorCode.code(), ErrorCode::CliUnknownCode);
}

proptest! {
    #[test]
    fn a_code_and_its_message_come_back_from_the_wire(code in code(), message in "\\PC{0,60}") {
        let expected = RemoteError { code, message: message.clone() };
        for prefix in ["", "remote exception: ", "Failed: remote exception: ", "Failed: remote exception: Failed: "] {
            let read = RemoteError::parse(&format!("{prefix}{}", code.to_wire(&message))).unwrap();
            prop_assert_eq!(&read, &expected);
            prop_assert_eq!(read.code(), code);
        }
    }

    #[test]
    fn texts_without_a_code_are_not_taken_for_one(text in "[a-z :]{0,40}") {
        prop_assume!(!text.contains("internal: "));
        prop_assert_eq!(RemoteError::parse(&text), None);
    }
}
