//! Texts that people paste, records that servers pass on, and images that are received.

use std::{fmt::Display, path::Path, str::FromStr};

use checkpoint::{FileDisk, ImageReader, Protection, RecipientKey};
use schemas::{
    Address, IdentityKey, Recipient, SearchPathEntry, SignedRecord, SturdyRef, UnverifiedPacket, VatAddress, VatId,
};

use crate::seeds;

/// Text that is read as each thing that has a text. What is read and written again is the same, and is read as the
/// same.
pub fn references(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::<VatId>(text, true);
    round_trip::<VatAddress>(text, false);
    round_trip::<SearchPathEntry>(text, false);
    round_trip::<Address>(text, false);
    round_trip::<Recipient>(text, true);
    if let Ok(reference) = text.parse::<SturdyRef>() {
        let written = reference.expose();
        let again: SturdyRef = written.parse().expect("what is written is read");
        assert!(again == reference && again.expose() == written);
    }
}

/// `exact`: there is only one spelling.
fn round_trip<T: FromStr + Display + PartialEq>(text: &str, exact: bool) {
    let Ok(read) = text.parse::<T>() else { return };
    let written = read.to_string();
    assert!(!exact || written == text, "two spellings: {text} and {written}");
    let again = written.parse::<T>().ok().expect("what is written is read");
    assert!(again == read && again.to_string() == written);
}

/// A pkarr packet without its signature, of the vat of the seeds. What is well-formed can be signed again, if it is
/// short enough, and then says the same.
pub fn records(data: &[u8]) {
    let key = IdentityKey::from_seed(&seeds::VAT_SEED);
    let packet = [&[0; 64][..], data].concat();
    let Ok(parsed) = UnverifiedPacket::parse(key.id(), &packet) else { return };
    let (record, timestamp, epoch) = (parsed.location().cloned(), parsed.timestamp(), parsed.epoch());
    assert!(parsed.verify().is_err(), "nobody has signed it");
    let Some(record) = record else {
        assert_eq!(epoch, 0, "what says nothing of a vat is below every vat that was started");
        return;
    };
    // Ours has only what this version knows, so it may be longer or shorter, but not different.
    let Ok(signed) = SignedRecord::sign(&key, &record, timestamp) else { return };
    assert_eq!(*signed.record(), record);
    let verified = SignedRecord::verify(key.id(), signed.packet()).expect("what we sign, we accept");
    assert_eq!(verified.timestamp(), timestamp);
}

/// An image, sealed for the recipient of the seeds. Whatever is read before its end belongs to something that ends
/// in an error, unless it is whole.
pub fn images(data: &[u8]) {
    let protection = Protection::Recipient(RecipientKey::from_bytes(&seeds::RECIPIENT_KEY));
    let opened = ImageReader::open(&FileDisk, (Box::new(data), Path::new("image")), &protection);
    let Ok(mut image) = opened else { return };
    while let Ok(Some(_)) = image.next_row() {}
    let (read, _) = image.progress();
    assert!(read <= data.len() as u64);
}
