// The agent's hands for what it maps of others' leases. A reader is let go of when the daemon wants it back, or when the
// client is closed, and then once nothing there is in use; until then it stays mapped, so that receiving again costs nothing.
#pragma once

#include <vector>

#include "book.h"
#include "channel.h"
#include "device.h"
#include "fd.h"
#include "records.h"

namespace vrb {

class Reading {
 public:
  Reading(Book &book, Device &device, Channel &channel) : book_(book), device_(device), channel_(channel) {}

  // Returns false if the record contradicts itself, and the connection must be closed.
  bool grant(const record::ReadGrant &grant, std::vector<Fd> fds);
  void close(const record::CloseReader &order);
  void settle(const record::ExportSettled &settled);
  // Unmaps what is to go and can go by now.
  void let_go();

 private:
  Reader *reader_for(const record::ReadGrant &grant);
  void map(Reader &reader, const SharedSlot &slot, Fd frame);
  Reader *find_idle();
  bool unmap(Reader &reader);
  void forget(Reader &reader);
  void tell_closed(uint64_t reader) { channel_.send(encode(record::ReaderClosed{reader})); }

  Book &book_;
  Device &device_;
  Channel &channel_;
  Gone gone_;
};

}  // namespace vrb
