@0x9d62b5f8e1c7043a;
# The objects that are built into every vat.

interface Counter {
  # A number that only grows.
  add @0 (by :UInt64 = 1) -> (total :UInt64);
  # Refused with `object.overflow` when the total would not fit 64 bits.

  get @1 () -> (total :UInt64);
}

interface Guestbook {
  # A list that anyone with a reference may add to, and nobody may change.
  sign @0 (name :Text, text :Text) -> (number :UInt64);
  list @1 (after :UInt64, limit :UInt32 = 50) -> (entries :List(Entry), more :Bool);
  # Entries with a number greater than `after`, oldest first.

  struct Entry {
    number @0 :UInt64;
    # Counts from 1, without gaps.

    time @1 :UInt64;
    # When it was signed, in seconds since 1970, by the vat's clock.

    name @2 :Text;
    text @3 :Text;
  }
}

interface Notes {
  # Texts kept under names.
  put @0 (name :Text, text :Text) -> (replaced :Bool);
  get @1 (name :Text) -> (text :Text);
  # `object.not_found` if there is no such note.

  list @2 (prefix :Text, after :Text, limit :UInt32 = 100) -> (names :List(Text), more :Bool);
  # Names that begin with `prefix` and come after `after`, in byte order.

  remove @3 (name :Text) -> (removed :Bool);
}

interface Directory {
  # Petnames for sturdyrefs: an address book that can itself be shared.
  bind @0 (name :Text, ref :Text) -> (replaced :Bool);
  # `ref` must be a whole sturdyref; its checksum is verified.

  lookup @1 (name :Text) -> (ref :Text);
  # `object.not_found` if the name is not bound.

  list @2 (prefix :Text, after :Text, limit :UInt32 = 100) -> (names :List(Text), more :Bool);
  # Only names: a listing gives no authority.

  unbind @3 (name :Text) -> (removed :Bool);
}
