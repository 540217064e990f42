// What a C++ program does with vats, built against nothing but the system's Cap'n Proto and the schemas of this
// repository. Each line that it prints is one thing that worked; tests/foreign.rs compares them.
//
//   client bridge unix:PATH            through a bridge
//   client tls HOST:PORT FILE          through a vat's TLS port, whose certificate is in FILE
//
// References are read from standard input, one a line: those of a counter, a directory and a poll, and one that was
// revoked; for TLS also one in the form capnp://. They are secrets, so they are no arguments.

#include <capnp/ez-rpc.h>
#include <capnp/message.h>
#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/compat/tls.h>
#include <kj/debug.h>
#include <kj/encoding.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "bridge.capnp.h"
#include "objects.capnp.h"
#include "poll.capnp.h"
#include "vat.capnp.h"

namespace {

struct References {
  std::string counter, directory, poll, revoked;
};

References readReferences() {
  References references;
  for (auto* line: {&references.counter, &references.directory, &references.poll, &references.revoked}) {
    KJ_REQUIRE(bool(std::getline(std::cin, *line)), "a reference is missing");
  }
  return references;
}

void say(const char* what, const std::string& outcome) { std::cout << what << ": " << outcome << std::endl; }

// The stable code in the reason of an exception: the last word before the message that has a dot in it.
std::string codeOf(const kj::Exception& exception) {
  std::istringstream reason(exception.getDescription().cStr());
  std::string part;
  while (std::getline(reason, part, ':')) {
    auto start = part.find_first_not_of(' ');
    if (start == std::string::npos) continue;
    part = part.substr(start);
    if (part.find('.') != std::string::npos && part.find(' ') == std::string::npos) return part;
  }
  return std::string("no code in ") + exception.getDescription().cStr();
}

template <typename Work>
std::string codeOfFailing(Work&& work) {
  KJ_IF_MAYBE(exception, kj::runCatchingExceptions(kj::fwd<Work>(work))) {
    return codeOf(*exception);
  }
  return "no failure";
}

Counter::Client counterOf(Bridge::Client bridge, const std::string& uri) {
  auto request = bridge.connectRequest();
  request.setUri(uri);
  return request.send().getObject().castAs<Counter>();
}

kj::Promise<uint64_t> add(Counter::Client counter, uint64_t by) {
  auto request = counter.addRequest();
  request.setBy(by);
  return request.send().then([](auto&& response) -> uint64_t { return response.getTotal(); });
}

// Hears a poll read out, and fails at the choice that it does not like.
class Listener final: public Poll::Listener::Server {
public:
  Listener(std::string& heard, std::string refused): heard(heard), refused(refused) {}

  kj::Promise<void> choice(ChoiceContext context) override {
    auto choice = context.getParams().getChoice();
    KJ_REQUIRE(refused != choice.getName().cStr(), "not this one");
    heard += std::string(heard.empty() ? "" : ", ") + choice.getName().cStr() + " " + std::to_string(choice.getVotes());
    return kj::READY_NOW;
  }

private:
  std::string& heard;
  std::string refused;
};

void vote(Poll::Client poll, const char* choice, kj::WaitScope& waitScope) {
  auto request = poll.voteRequest();
  request.setChoice(choice);
  request.send().wait(waitScope);
}

void callback(Poll::Client poll, kj::WaitScope& waitScope) {
  for (auto choice: {"soup", "salad", "soup"}) vote(poll, choice, waitScope);
  std::string heard;
  auto request = poll.readOutRequest();
  request.setListener(kj::heap<Listener>(heard, ""));
  auto choices = request.send().wait(waitScope).getChoices();
  say("heard", heard + " (" + std::to_string(choices) + ")");

  std::string partly;
  auto refused = poll.readOutRequest();
  refused.setListener(kj::heap<Listener>(partly, "soup"));
  auto failed = kj::runCatchingExceptions([&]() { refused.send().wait(waitScope); }) != nullptr;
  say("heard until it refused", partly + (failed ? ", then the call failed" : ", and nobody noticed"));
}

// `count` calls without waiting for any: the totals tell whether they were carried out in order.
void order(Counter::Client counter, kj::WaitScope& waitScope) {
  auto before = add(counter, 0).wait(waitScope);
  auto promises = kj::heapArrayBuilder<kj::Promise<uint64_t>>(100);
  for (uint64_t by = 1; by <= 100; by++) promises.add(add(counter, by));
  auto totals = kj::joinPromises(promises.finish()).wait(waitScope);
  bool inOrder = true;
  for (uint64_t index = 0; index < totals.size(); index++) {
    inOrder = inOrder && totals[index] == before + (index + 1) * (index + 2) / 2;
  }
  say("a hundred calls", inOrder ? "in order" : "out of order");
}

void useObjects(Counter::Client counter, Directory::Client directory, Poll::Client poll, kj::WaitScope& waitScope) {
  // Called before any of it has been reached.
  say("pipelined", std::to_string(add(counter, 5).wait(waitScope)));
  order(counter, waitScope);
  // What is called on the answer to a call.
  auto make = directory.makeRequest();
  make.setName("made from C++");
  make.setKind("counter");
  say("made and called", std::to_string(add(make.send().getObject().castAs<Counter>(), 7).wait(waitScope)));
  callback(poll, waitScope);
  say("too much", codeOfFailing([&]() { add(counter, kj::maxValue).wait(waitScope); }));
}

void throughBridge(const char* address) {
  auto references = readReferences();
  capnp::EzRpcClient client(address);
  auto& waitScope = client.getWaitScope();
  auto bridge = client.getMain<Bridge>();
  auto object = [&](const std::string& uri) {
    auto request = bridge.connectRequest();
    request.setUri(uri);
    return request.send().getObject();
  };
  useObjects(counterOf(bridge, references.counter), object(references.directory).castAs<Directory>(),
             object(references.poll).castAs<Poll>(), waitScope);

  say("revoked", codeOfFailing([&]() { add(counterOf(bridge, references.revoked), 1).wait(waitScope); }));
  say("mistyped", codeOfFailing([&]() { add(counterOf(bridge, references.counter + "y"), 1).wait(waitScope); }));
  auto vat = bridge.vatRequest();
  vat.setAddress(references.counter.substr(0, references.counter.find('#')));
  auto restore = vat.send().getVat().restoreRequest();
  auto nothing = std::string(32, 'x');
  restore.setSecret(kj::arrayPtr(reinterpret_cast<const kj::byte*>(nothing.data()), nothing.size()));
  say("guessed", codeOfFailing([&]() { restore.send().wait(waitScope); }));
  // The old way to ask for an object, in the first message, which is that of OCaml too.
  auto imported = client.importCap<Counter>(references.counter.c_str());
  auto before = add(imported, 0).wait(waitScope);
  say("by its id", std::to_string(add(imported, 2).wait(waitScope) - before));
  auto unknown = client.importCap<Counter>(references.revoked.c_str());
  say("by a revoked id", codeOfFailing([&]() { add(unknown, 1).wait(waitScope); }));
}

std::string readFile(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The stream of a vat's TLS port. The certificate is the only one that is trusted, and says `capnp`, whatever the host.
kj::Own<kj::AsyncIoStream> connectTls(kj::AsyncIoContext& io, const char* address, const char* certificateFile,
                                      kj::Own<kj::TlsContext>& tls) {
  auto pem = readFile(certificateFile);
  kj::TlsCertificate certificate(pem);
  kj::TlsContext::Options options;
  options.useSystemTrustStore = false;
  options.trustedCertificates = kj::arrayPtr(&certificate, 1);
  tls = kj::heap<kj::TlsContext>(kj::mv(options));
  auto network = io.provider->getNetwork().parseAddress(address).wait(io.waitScope);
  auto stream = network->connect().wait(io.waitScope);
  return tls->wrapClient(kj::mv(stream), "capnp").wait(io.waitScope);
}

// The object of this name, asked for in the first message.
template <typename Interface>
typename Interface::Client restore(capnp::RpcSystem<capnp::rpc::twoparty::VatId>& system, const std::string& object) {
  capnp::MallocMessageBuilder host, name;
  auto vatId = host.initRoot<capnp::rpc::twoparty::VatId>();
  vatId.setSide(capnp::rpc::twoparty::Side::SERVER);
  name.initRoot<capnp::AnyPointer>().setAs<capnp::Text>(kj::StringPtr(object.data(), object.size()));
  return system.restore(vatId, name.getRoot<capnp::AnyPointer>()).castAs<Interface>();
}

// What stands behind the last slash of a capnp:// reference: the bytes of the object's name, in URL-safe base64.
std::string nameIn(const std::string& uri) {
  auto encoded = uri.substr(uri.rfind('/') + 1);
  for (auto& character: encoded) character = character == '-' ? '+' : character == '_' ? '/' : character;
  auto bytes = kj::decodeBase64(kj::arrayPtr(encoded.data(), encoded.size()));
  return std::string(bytes.asChars().begin(), bytes.size());
}

void throughTls(const char* address, const char* certificateFile) {
  auto references = readReferences();
  std::string capnpUri;
  KJ_REQUIRE(bool(std::getline(std::cin, capnpUri)), "the reference in the form capnp:// is missing");
  auto io = kj::setupAsyncIo();
  kj::Own<kj::TlsContext> tls;
  auto stream = connectTls(io, address, certificateFile, tls);
  capnp::TwoPartyVatNetwork network(*stream, capnp::rpc::twoparty::Side::CLIENT);
  auto system = capnp::makeRpcClient(network);
  auto counter = restore<Counter>(system, references.counter);
  say("pipelined", std::to_string(add(counter, 5).wait(io.waitScope)));
  order(counter, io.waitScope);
  auto revoked = restore<Counter>(system, references.revoked);
  say("revoked", codeOfFailing([&]() { add(revoked, 1).wait(io.waitScope); }));
  auto elsewhere = restore<Counter>(system, references.poll);
  say("of another vat", codeOfFailing([&]() { add(elsewhere, 1).wait(io.waitScope); }));
  // As a client in OCaml does it.
  auto named = restore<Counter>(system, nameIn(capnpUri));
  auto before = add(counter, 0).wait(io.waitScope);
  say("as OCaml names it", std::to_string(add(named, 2).wait(io.waitScope) - before));
}

}  // namespace

int main(int argc, char* argv[]) {
  auto mode = std::string(argc > 1 ? argv[1] : "");
  if (mode == "bridge" && argc == 3) {
    throughBridge(argv[2]);
  } else if (mode == "tls" && argc == 4) {
    throughTls(argv[2], argv[3]);
  } else {
    std::cerr << "usage: client bridge unix:PATH | client tls HOST:PORT FILE" << std::endl;
    return 2;
  }
  return 0;
}
