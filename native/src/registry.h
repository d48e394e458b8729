// Which client a leased address belongs to, for the whole process: a free that comes without its client finds it here.
#pragma once

#include <cstdint>
#include <string>

namespace vrb {

class Client;

// Keeps the client until the process ends: whoever holds a handle to it may still ask something of it then.
void keep_client(Client &client);

// Returns the latest client of this process that is attached to the daemon at `path`, or null.
Client *client_of_path(const std::string &path);

// Makes the register, if there is none yet. Not under a ForkGuard, which the others may be called under.
void open_registry();

void register_range(const void *base, uint64_t size_bytes, Client &client);
void forget_range(const void *base);

// The size of all ranges of this process's clients together.
uint64_t registered_bytes();

// Returns the client, or null for an address that was never leased. Also in a forked child.
Client *client_at(const void *address);

}  // namespace vrb
