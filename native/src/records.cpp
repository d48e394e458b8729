#include "records.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace vrb {
namespace {

constexpr std::size_t COUNT_MAX = 0xFFFF;
constexpr std::size_t WORD_LENGTH_MAX = 64;

// Puts fields behind one another.
class Writer {
 public:
  explicit Writer(Packet &out) : out_(out) {}

  template <class T, std::enable_if_t<std::is_unsigned_v<T>, int> = 0>
  void operator()(const char *, T value) {
    number(value, sizeof(T));
  }
  void operator()(const char *, const Token &token) { out_.insert(out_.end(), token.begin(), token.end()); }
  void operator()(const char *, const std::string &text) { bytes(text); }
  void operator()(const char *, const Blob &blob) { bytes(blob.data); }

  template <class T>
  void operator()(const char *, const std::vector<T> &list) {
    count(list.size());
    for (const T &entry : list) put(entry);
  }

 private:
  template <class T>
  void put(const T &entry) {
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
      T::fields(entry, *this);
    } else {
      (*this)("", entry);
    }
  }

  void number(uint64_t value, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) out_.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }

  void count(std::size_t value) {
    if (value > COUNT_MAX) throw std::length_error("more than a count of the handle plane can tell");
    number(value, 2);
  }

  void bytes(const std::string &data) {
    count(data.size());
    out_.insert(out_.end(), data.begin(), data.end());
  }

  Packet &out_;
};

// Whether these bytes are UTF-8 as Unicode defines it: shortest forms, no surrogates, nothing beyond U+10FFFF.
bool is_utf8(const uint8_t *text, std::size_t size) {
  std::size_t i = 0;
  while (i < size) {
    const uint8_t lead = text[i++];
    if (lead < 0x80) continue;
    const std::size_t more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || size - i < more) return false;
    uint8_t low = 0x80, high = 0xBF;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    for (std::size_t k = 0; k < more; ++k, ++i) {
      if (text[i] < low || text[i] > high) return false;
      low = 0x80, high = 0xBF;
    }
  }
  return true;
}

// Cuts fields off the front. After the first one that does not fit, nothing more is read.
class Reader {
 public:
  Reader(const uint8_t *data, std::size_t size) : at_(data), left_(size) {}

  bool finished() const { return good_ && left_ == 0; }

  template <class T, std::enable_if_t<std::is_unsigned_v<T>, int> = 0>
  void operator()(const char *, T &value) {
    value = static_cast<T>(number(sizeof(T)));
  }
  void operator()(const char *, Token &token) {
    const uint8_t *from = take(token.size());
    if (from != nullptr) std::memcpy(token.data(), from, token.size());
  }
  void operator()(const char *, std::string &text) {
    const std::size_t size = number(2);
    const uint8_t *from = take(size);
    if (from == nullptr) return;
    if (!is_utf8(from, size)) {
      good_ = false;
      return;
    }
    text.assign(reinterpret_cast<const char *>(from), size);
  }
  void operator()(const char *, Blob &blob) {
    const std::size_t size = number(2);
    const uint8_t *from = take(size);
    if (from != nullptr) blob.data.assign(reinterpret_cast<const char *>(from), size);
  }

  template <class T>
  void operator()(const char *, std::vector<T> &list) {
    const std::size_t count = number(2);
    for (std::size_t i = 0; i < count && good_; ++i) list.push_back(get<T>());
  }

 private:
  template <class T>
  T get() {
    T entry{};
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
      T::fields(entry, *this);
    } else {
      (*this)("", entry);
    }
    return entry;
  }

  const uint8_t *take(std::size_t size) {
    if (!good_ || size > left_) {
      good_ = false;
      return nullptr;
    }
    const uint8_t *from = at_;
    at_ += size;
    left_ -= size;
    return from;
  }

  uint64_t number(std::size_t size) {
    const uint8_t *from = take(size);
    uint64_t value = 0;
    if (from != nullptr) {
      for (std::size_t i = 0; i < size; ++i) value |= static_cast<uint64_t>(from[i]) << (8 * i);
    }
    return value;
  }

  const uint8_t *at_;
  std::size_t left_;
  bool good_ = true;
};

struct Header {
  uint16_t type, fds;
  uint32_t size;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("type", s.type), v("fds", s.fds), v("size", s.size);
  }
};

template <class Variant>
Packet encode_variant(const Variant &what, std::size_t fds) {
  Packet body, packet;
  uint16_t type = 0;
  Writer body_writer(body);
  std::visit(
      [&](const auto &one) {
        using Record = std::decay_t<decltype(one)>;
        type = Record::TYPE;
        Record::fields(one, body_writer);
      },
      what);
  const std::size_t size = HEADER_BYTES + body.size();
  if (size > PACKET_BYTES_MAX) throw std::length_error("longer than a packet of the handle plane may be");
  const Header header{type, static_cast<uint16_t>(fds), static_cast<uint32_t>(size)};
  packet.reserve(size);
  Writer writer(packet);
  Header::fields(header, writer);
  packet.insert(packet.end(), body.begin(), body.end());
  return packet;
}

template <class Variant, std::size_t I = 0>
std::optional<Variant> decode_body(uint16_t type, Reader &reader) {
  if constexpr (I == std::variant_size_v<Variant>) {
    return std::nullopt;
  } else {
    using Record = std::variant_alternative_t<I, Variant>;
    if (Record::TYPE != type) return decode_body<Variant, I + 1>(type, reader);
    Record one{};
    Record::fields(one, reader);
    if (!reader.finished()) return std::nullopt;
    return Variant(std::move(one));
  }
}

template <class Variant>
std::optional<Variant> decode_variant(const uint8_t *packet, std::size_t size, std::size_t fds) {
  if (size < HEADER_BYTES || size > PACKET_BYTES_MAX || fds > FDS_PER_PACKET_MAX) return std::nullopt;
  Header header{};
  Reader front(packet, HEADER_BYTES);
  Header::fields(header, front);
  if (header.size != size || header.fds != fds) return std::nullopt;
  Reader reader(packet + HEADER_BYTES, size - HEADER_BYTES);
  return decode_body<Variant>(header.type, reader);
}

}  // namespace

Packet encode(const FromClient &what, std::size_t fds) { return encode_variant(what, fds); }
Packet encode(const FromDaemon &what, std::size_t fds) { return encode_variant(what, fds); }

std::optional<FromClient> decode_from_client(const uint8_t *packet, std::size_t size, std::size_t fds) {
  return decode_variant<FromClient>(packet, size, fds);
}

std::optional<FromDaemon> decode_from_daemon(const uint8_t *packet, std::size_t size, std::size_t fds) {
  return decode_variant<FromDaemon>(packet, size, fds);
}

bool is_text(const std::string &text, std::size_t most) {
  return !text.empty() && text.size() <= most && is_utf8(reinterpret_cast<const uint8_t *>(text.data()), text.size());
}

bool is_word(const std::string &text) {
  if (text.empty() || text.size() > WORD_LENGTH_MAX) return false;
  for (const char c : text) {
    const bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (!plain && (c == '\0' || std::strchr("_.:@+-", c) == nullptr)) return false;
  }
  return true;
}

}  // namespace vrb
