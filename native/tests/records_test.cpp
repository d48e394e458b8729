// The codec against proto/handles.vectors, both ways, and against packets that are no records.

#include <algorithm>
#include <fstream>
#include <map>
#include <random>

#include "check.h"
#include "records.h"

using namespace vrb;

namespace {

struct Vector {
  std::string name;
  std::size_t fds = 0;
  std::map<std::string, std::string> fields;
  Packet packet;
};

Packet from_hex(const std::string &hex) {
  Packet bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<Vector> read_vectors() {
  std::ifstream file(VRB_VECTORS);
  CHECK(file.good());
  std::vector<Vector> all;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    Vector one;
    words >> one.name >> one.fds;
    for (std::string word; words >> word && word != "|";) {
      const std::size_t at = word.find('=');
      one.fields[word.substr(0, at)] = word.substr(at + 1);
    }
    std::string hex;
    words >> hex;
    one.packet = from_hex(hex);
    all.push_back(one);
  }
  return all;
}

std::string plain(const std::string &text) { return text == "-" ? "" : text; }

// Cuts "a;b" or "(1,2);(3,4)" into its entries; parts of an entry are cut at commas.
std::vector<std::string> cut(const std::string &text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

// Fills a record from the fields as the file writes them; also compares, since both walk the same list.
class FromText {
 public:
  explicit FromText(const Vector &from) : from_(from) {}

  template <class T, std::enable_if_t<std::is_unsigned_v<T>, int> = 0>
  void operator()(const char *name, T &value) {
    value = static_cast<T>(std::stoull(take(name)));
  }
  void operator()(const char *name, Token &token) {
    const Packet bytes = from_hex(take(name));
    std::copy(bytes.begin(), bytes.end(), token.begin());
  }
  void operator()(const char *name, std::string &text) {
    text = plain(take(name));
    // The file writes spaces of a free text as '_'. In a failure, which begins with a call, only the one behind the colon is.
    if (std::string(name) == "message") std::replace(text.begin(), text.end(), '_', ' ');
    const std::size_t colon = std::string(name) == "failure" ? text.find(":_") : std::string::npos;
    if (colon != std::string::npos) text[colon + 1] = ' ';
  }
  void operator()(const char *name, Blob &blob) {
    const Packet bytes = from_hex(plain(take(name)));
    blob.data.assign(bytes.begin(), bytes.end());
  }
  template <class T>
  void operator()(const char *name, std::vector<T> &list) {
    const std::string text = take(name);
    for (const std::string &entry : cut(text.substr(1, text.size() - 2), ';')) list.push_back(get<T>(entry));
  }

 private:
  template <class T>
  T get(const std::string &entry) {
    T value{};
    if constexpr (std::is_same_v<T, std::string>) {
      value = entry;
    } else if constexpr (std::is_class_v<T>) {
      parts_ = cut(entry.substr(1, entry.size() - 2), ',');
      next_ = 0;
      T::fields(value, *this);
      parts_.clear();
    } else {
      value = static_cast<T>(std::stoull(entry));
    }
    return value;
  }

  std::string take(const char *name) {
    if (!parts_.empty()) return parts_.at(next_++);
    return from_.fields.at(name);
  }

  const Vector &from_;
  std::vector<std::string> parts_;
  std::size_t next_ = 0;
};

template <class Variant, std::size_t I = 0>
std::optional<Variant> build(const Vector &from) {
  if constexpr (I == std::variant_size_v<Variant>) {
    return std::nullopt;
  } else {
    using Record = std::variant_alternative_t<I, Variant>;
    if (from.name != Record::NAME) return build<Variant, I + 1>(from);
    Record one{};
    FromText reader(from);
    Record::fields(one, reader);
    return Variant(one);
  }
}

}  // namespace

TEST(records, vectors_encode_to_their_bytes) {
  std::size_t count = 0;
  for (const Vector &one : read_vectors()) {
    const auto client = build<FromClient>(one);
    const auto daemon = build<FromDaemon>(one);
    CHECK(client.has_value() != daemon.has_value());
    CHECK((client ? encode(*client, one.fds) : encode(*daemon, one.fds)) == one.packet);
    ++count;
  }
  CHECK_EQ(count, std::variant_size_v<FromClient> + std::variant_size_v<FromDaemon>);
}

TEST(records, vectors_decode_to_their_values) {
  for (const Vector &one : read_vectors()) {
    const auto client = decode_from_client(one.packet.data(), one.packet.size(), one.fds);
    const auto daemon = decode_from_daemon(one.packet.data(), one.packet.size(), one.fds);
    CHECK(client.has_value() != daemon.has_value());
    // Equal values have equal bytes: the encoding has one form for each value.
    CHECK((client ? encode(*client, one.fds) : encode(*daemon, one.fds)) == one.packet);
    const auto expected = build<FromClient>(one);
    CHECK_EQ(expected.has_value(), client.has_value());
    if (client) CHECK_EQ(client->index(), expected->index());
  }
}

TEST(records, a_field_read_wrongly_would_show) {
  const auto decoded = decode_from_daemon(nullptr, 0, 0);
  CHECK(!decoded);
  const record::Grant grant{1, 3, 2, "kv", {{4, 2 << 20, 1, 0, 0}, {5, 32 << 20, 3, 9, 64 << 20}}};
  const Packet packet = encode(FromDaemon(grant), 2);
  const auto back = std::get<record::Grant>(*decode_from_daemon(packet.data(), packet.size(), 2));
  CHECK_EQ(back.tag, "kv");
  CHECK_EQ(back.slots[1].offset_bytes, uint64_t{64 << 20});
  CHECK_EQ(back.slots[1].file, uint64_t{9});
  CHECK_EQ(+back.slots[0].flags, 1);
}

TEST(records, cut_longer_and_mislabelled_packets_are_refused) {
  for (const Vector &one : read_vectors()) {
    for (std::size_t size = 0; size < one.packet.size(); ++size) {
      Packet cut_short(one.packet.begin(), one.packet.begin() + static_cast<std::ptrdiff_t>(size));
      CHECK(!decode_from_client(cut_short.data(), size, one.fds));
      if (size < HEADER_BYTES) continue;
      // The same, with a header that says so: then it is the fields that are too short.
      cut_short[4] = static_cast<uint8_t>(size);
      cut_short[5] = static_cast<uint8_t>(size >> 8);
      CHECK(!decode_from_client(cut_short.data(), size, one.fds));
      CHECK(!decode_from_daemon(cut_short.data(), size, one.fds));
    }
    Packet longer = one.packet;
    longer.push_back(0);
    longer[4] = static_cast<uint8_t>(longer.size());
    longer[5] = static_cast<uint8_t>(longer.size() >> 8);
    CHECK(!decode_from_client(longer.data(), longer.size(), one.fds));
    CHECK(!decode_from_daemon(longer.data(), longer.size(), one.fds));
    CHECK(!decode_from_daemon(one.packet.data(), one.packet.size(), one.fds + 1));
    CHECK(!decode_from_client(one.packet.data(), one.packet.size(), one.fds + 1));
  }
}

TEST(records, strings_must_be_utf8) {
  const char *const bad[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "a\x80", "\xf0\x8f\xbf\xbf"};
  for (const char *text : bad) {
    const Packet packet = encode(FromDaemon(record::Error{7, text, "", {}}));
    CHECK(!decode_from_daemon(packet.data(), packet.size(), 0));
    const Packet blob = encode(FromDaemon(record::Error{7, "", "", {text}}));
    CHECK(decode_from_daemon(blob.data(), blob.size(), 0));
  }
  const char *const good[] = {"", "a", "\xc2\x80", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"};
  for (const char *text : good) {
    const Packet packet = encode(FromDaemon(record::Error{7, text, "", {}}));
    CHECK(decode_from_daemon(packet.data(), packet.size(), 0));
  }
}

TEST(records, no_packet_is_longer_than_a_packet) {
  bool refused = false;
  try {
    encode(FromClient(record::Return{1, 2, std::vector<uint64_t>(4094)}));
  } catch (const std::length_error &) {
    refused = true;
  }
  CHECK(refused);
  encode(FromClient(record::Return{1, 2, std::vector<uint64_t>(4000)}));
}

TEST(records, random_bytes_are_read_without_harm) {
  std::mt19937 random(20);
  for (int i = 0; i < 20000; ++i) {
    Packet packet(8 + random() % 200);
    for (uint8_t &byte : packet) byte = static_cast<uint8_t>(random() % 4 == 0 ? random() : 0);
    packet[0] = static_cast<uint8_t>(random() % 90);
    packet[1] = packet[2] = packet[3] = 0;
    packet[4] = static_cast<uint8_t>(packet.size());
    packet[5] = static_cast<uint8_t>(packet.size() >> 8);
    packet[6] = packet[7] = 0;
    // What is taken for a record must be one: it has exactly these bytes.
    const auto client = decode_from_client(packet.data(), packet.size(), 0);
    if (client) CHECK(encode(*client) == packet);
    const auto daemon = decode_from_daemon(packet.data(), packet.size(), 0);
    if (daemon) CHECK(encode(*daemon) == packet);
  }
}

TEST(records, words) {
  CHECK(is_word("kv_cache") && is_word("a.b:c@d+e-F9") && is_word(std::string(64, 'x')));
  CHECK(!is_word("") && !is_word("a b") && !is_word("a/b") && !is_word(std::string(65, 'x')));
  CHECK(!is_word(std::string("a\0b", 3)) && !is_word("ä"));
}
