// What a lease is lent to spare: how much it asks for, and when that goes back.

#include <array>
#include <vector>

#include "background.h"
#include "check.h"
#include "peer.h"

using namespace peer;
using namespace vrb;

namespace {

// Lends the lease a frame for each of so many allocations, as slots 4, 5 and so on.
std::vector<void *> fill(Peer &peer, vrb_lease *lease, std::size_t count) {
  std::vector<void *> pointers(count);
  Background filling([&] {
    for (void *&pointer : pointers) pointer = allocate(lease, FRAME);
  });
  for (uint64_t slot = 4; slot < 4 + count; ++slot) peer.serve_lease(3, {{slot}});
  filling.join();
  return pointers;
}

// Refuses the LEASE that comes next, once what the pointer names has gone back.
void refuse_after_a_return(Peer &peer, vrb_client *client, void *pointer) {
  const auto refused = peer.expect<record::Lease>();
  release(client, pointer);
  CHECK_EQ(peer.expect<record::Return>().slots.size(), std::size_t{1});
  peer.error(refused.request, "OutOfDeviceMemory", "full");
}

}  // namespace

TEST(spare, a_lease_asks_for_more_to_spare_than_it_needs_or_has) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  std::array<void *, 4> pointers{};
  Background first([&] { pointers[0] = allocate(lease, FRAME); });
  CHECK_EQ(peer.serve_lease(3, {{4}}).spare_bytes, 8 * FRAME);
  first.join();
  Background second([&] { pointers[1] = allocate(lease, FRAME); });
  const auto asked = peer.serve_lease(3, {{5}, {6}});
  CHECK_EQ(asked.size_bytes, FRAME);
  CHECK_EQ(asked.spare_bytes, 8 * FRAME);
  second.join();
  pointers[2] = allocate(lease, FRAME);  // without a word to the daemon
  CHECK_EQ(stats(client).mapped_bytes, 3 * FRAME);
  Background third([&] { pointers[3] = allocate(lease, FRAME); });
  CHECK_EQ(peer.serve_lease(3, {{7}}).spare_bytes, 9 * FRAME);
  third.join();
  for (void *pointer : pointers) release(client, pointer);
}

TEST(spare, no_lease_asks_for_more_to_spare_than_a_share_of_the_device) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] { allocate(lease, CAPACITY / 32); });
  CHECK_EQ(peer.serve_lease(3, {{4, CAPACITY / 32}}).spare_bytes, CAPACITY / 8);
  growing.join();
}

TEST(spare, what_is_spare_goes_back_by_itself) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background first([&] { allocate(lease, FRAME); });
  peer.serve_lease(3, {{4}});
  first.join();
  Background second([&] { allocate(lease, FRAME); });
  peer.serve_lease(3, {{5}, {6}});
  second.join();
  const auto returned = peer.expect<record::Return>();
  CHECK_EQ(returned.lease, uint64_t{3});
  CHECK(returned.slots == std::vector<uint64_t>{6});
  CHECK_EQ(stats(client).mapped_bytes, 2 * FRAME);
}

TEST(spare, what_is_spare_goes_back_before_another_lease_is_refused) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights"), *other = open_lease(client, "cache");
  Background growing([&] {
    allocate(lease, FRAME);
    allocate(lease, FRAME);
    allocate(other, FRAME);
  });
  peer.serve_lease(3, {{4}});
  peer.serve_lease(3, {{5}, {6}});
  const auto refused = peer.expect<record::Lease>();
  CHECK_EQ(refused.tag, "cache");
  peer.error(refused.request, "OutOfDeviceMemory", "full");
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{6});
  CHECK_EQ(peer.serve_lease(7, {{8}}).tag, "cache");
  growing.join();
}

TEST(spare, what_goes_back_while_another_lease_asks_is_no_reason_to_refuse_it) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights"), *other = open_lease(client, "cache");
  Background growing([&] {
    allocate(lease, FRAME);
    allocate(lease, FRAME);
    allocate(other, FRAME);
  });
  peer.serve_lease(3, {{4}});
  peer.serve_lease(3, {{5}, {6}});
  const auto refused = peer.expect<record::Lease>();
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{6});
  peer.error(refused.request, "OutOfDeviceMemory", "full");
  CHECK_EQ(peer.serve_lease(7, {{8}}).tag, "cache");
  growing.join();
}

TEST(spare, a_full_device_is_told_as_that_however_much_goes_back_meanwhile) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights"), *other = open_lease(client, "cache");
  const auto pointers = fill(peer, lease, 4);
  Background asking([&] {
    const Outcome outcome = try_allocate(other, FRAME);
    CHECK(outcome.status == VRB_REFUSED);
    CHECK_EQ(std::string(outcome.error.name), "OutOfDeviceMemory");
  });
  for (void *pointer : pointers) refuse_after_a_return(peer, client, pointer);
  asking.join();
}

TEST(spare, the_last_growth_of_many_tries_is_used) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights"), *other = open_lease(client, "cache");
  const auto pointers = fill(peer, lease, 3);
  Background asking([&] { allocate(other, FRAME); });
  for (void *pointer : pointers) refuse_after_a_return(peer, client, pointer);
  peer.serve_lease(7, {{8}});
  asking.join();
}

TEST(spare, what_is_spare_goes_back_before_a_resume) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights"), *other = open_lease(client, "cache");
  Background resuming([&] {
    allocate(lease, FRAME);
    allocate(other, FRAME);
    allocate(other, FRAME);
    CHECK_OK(peer::resume(client, {"weights"}));
  });
  peer.serve_lease(3, {{4}});
  peer.serve_lease(7, {{5}});
  peer.serve_lease(7, {{6}, {8}});
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{8});
  peer.done(peer.expect<record::Resume>().request);
  resuming.join();
}
