@0xc5a3e07b92d4f618;
# What `vat bridge` offers on its local socket to programs in any language: the way to every vat.
#
# The socket speaks Cap'n Proto's two-party protocol as every implementation knows it, and lets in only
# processes of the user who runs the bridge.

using Vat = import "vat.capnp".Vat;

interface Bridge {
  connect @0 (uri :Text) -> (object :Capability, interfaceId :UInt64);
  # The object that a sturdyref was given for, and the id of its interface. Calls may be made on `object` at
  # once: they follow when it is reached. A failure has a stable code in front of its reason, such as
  # `ref.denied: …` or `vls.no_answer: …`.
  #
  # What was obtained lasts as long as the session with its vat, and ends with an exception of the type
  # `disconnected`; then ask again.

  vat @1 (address :Text) -> (vat :Vat);
  # The vat of a public address, `vat://<id>`, which is reached when this is answered.
}
