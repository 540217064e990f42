// Counts in a vat's counter, wherever that vat is. Reads the reference from standard input.
#include <capnp/ez-rpc.h>

#include <iostream>
#include <string>

#include "bridge.capnp.h"
#include "objects.capnp.h"

int main(int argc, char* argv[]) {
  capnp::EzRpcClient client(argv[1]);
  auto& waitScope = client.getWaitScope();
  auto bridge = client.getMain<Bridge>();

  std::string reference;
  std::getline(std::cin, reference);
  auto connect = bridge.connectRequest();
  connect.setUri(reference);
  // Nothing is waited for until the answer is needed: connecting and adding go out together.
  auto counter = connect.send().getObject().castAs<Counter>();

  auto add = counter.addRequest();
  add.setBy(4);
  std::cout << "total: " << add.send().wait(waitScope).getTotal() << std::endl;
  return 0;
}
