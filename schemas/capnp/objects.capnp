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

  content @4 (name :Text) -> (content :Content);
  # The text as it is now, for who wants it in parts, or on a stream of its own.
}

interface Content {
  # Bytes that may be too many for a message. They never change: what is other bytes is another content.
  describe @0 () -> (length :UInt64, digest :Data);
  # `digest` is the SHA-256 of all of it. Whoever has a part of something continues it only if this is the same.

  read @1 (offset :UInt64, count :UInt32) -> (bytes :Data);
  # At most `count` bytes from `offset`, and at least one if there are any. Works in every session; where there are
  # streams, `Vat.transfer` is faster and holds up no call.
}

interface Container {
  # An object that holds other objects of its vat under names. A path such as `home/minutes` leads through it.
  open @0 (name :Text) -> (object :Capability, interfaceId :UInt64);
  # The object under a name, and the id of its interface. It ends when the reference ends through which this
  # one was reached. `object.not_found` if there is none.
}

interface Directory extends(Container) {
  # Names for things: for sturdyrefs, so that an address book can itself be shared, and for objects of the same vat.
  bind @0 (name :Text, ref :Text) -> (replaced :Bool);
  # `ref` must be a whole sturdyref; its checksum is verified. `object.exists` if the name stands for an object,
  # which would be gone.

  lookup @1 (name :Text) -> (ref :Text);
  # `object.not_found` if no sturdyref is bound to the name.

  list @2 (prefix :Text, after :Text, limit :UInt32 = 100) -> (names :List(Text), more :Bool, kinds :List(Text));
  # Only names: a listing gives no authority. `kinds` says of each name what it stands for: the kind of the object,
  # or `sturdyref`.

  unbind @3 (name :Text) -> (removed :Bool);
  # An object that nothing else leads to is removed for good once nobody uses it any more.

  make @4 (name :Text, kind :Text) -> (object :Capability, interfaceId :UInt64);
  # A new object of this vat, of one of the kinds that its program knows. `object.exists` if the name is taken.
}
