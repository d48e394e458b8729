// What the files that make up the C border share.
#pragma once

#include "lease.h"
#include "status.h"
#include "vrambroker/vrambroker.h"

namespace vrb {

class Client;

// Returns the exception being handled as an Error. In a catch block only.
Error current_error();

// Return what the handle stands for; throw Error for a null handle and in a forked child.
Client &client_of(vrb_client *client);
Lease &lease_of(vrb_lease *lease);

// Runs the body of a call of the border.
template <class Body>
vrb_status guarded(vrb_error *error, Body body) noexcept {
  try {
    body();
    return VRB_OK;
  } catch (...) {
    const Error caught = current_error();
    fill(error, caught);
    return caught.status;
  }
}

}  // namespace vrb
