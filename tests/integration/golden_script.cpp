#include "tests/integration/golden_script.hpp"

#include <algorithm>
#include <stdexcept>

namespace shmstore::testing {
namespace {

using protocol::FrameHeader;
using protocol::Op;

struct NamedOp {
  std::string_view name;
  Op op;
};
constexpr NamedOp kOps[] = {
    {"hello", Op::hello},
    {"ping", Op::ping},
    {"create", Op::create},
    {"seal", Op::seal},
    {"attach", Op::attach},
    {"segment", Op::segment},
    {"release", Op::release},
    {"cached", Op::cached},
    {"wait", Op::wait},
    {"cancel", Op::cancel},
    {"abort", Op::abort},
    {"handover", Op::handover},
    {"received", Op::received},
    {"publish", Op::publish},
    {"fork", Op::fork},
    {"put_batch", Op::put_batch},
    {"attach_batch", Op::attach_batch},
    {"list", Op::list},
    {"info", Op::info},
    {"holders", Op::holders},
    {"status", Op::status},
    {"keep", Op::keep},
    {"unkeep", Op::unkeep},
    {"remove", Op::remove},
    {"chmod", Op::chmod},
    {"metrics", Op::metrics},
    {"watch", Op::watch},
    {"selfcheck", Op::selfcheck},
    {"gc", Op::gc},
    {"quotas", Op::quotas},
    {"event", Op::event},
};

std::uint16_t op_number(const std::string& name) {
  for (const NamedOp& known : kOps) {
    if (known.name == name) return static_cast<std::uint16_t>(known.op);
  }
  return static_cast<std::uint16_t>(std::stoul(name));
}

std::uint32_t status_number(const std::string& name) {
  if (name == "ok") return 0;
  for (ErrorCode code : kErrorCodes) {
    if (to_string(code) == name) return static_cast<std::uint32_t>(code);
  }
  throw std::runtime_error("no such status: " + name);
}

/// Splits at a character, but not inside "…" or '…'.
std::vector<std::string> split(std::string_view line, char separator) {
  std::vector<std::string> words(1);
  char quote = 0;
  for (char c : line) {
    if (quote == 0 && (c == '"' || c == '\'')) {
      quote = c;
    } else if (c == quote) {
      quote = 0;
    }
    if (c == separator && quote == 0) {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  if (separator == ' ') std::erase(words, "");
  return words;
}

std::string unquoted(const std::string& text) {
  const bool quoted = text.size() >= 2 && text.front() == text.back() &&
                      (text.front() == '"' || text.front() == '\'');
  return quoted ? text.substr(1, text.size() - 2) : text;
}

std::string little_endian(std::uint64_t value, std::size_t bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i) & 0xff);
  return text;
}

/// Bytes of "u8", "u16", "u32", "u64"; 0 for another word.
std::size_t integer_bytes(std::string_view kind) {
  if (kind == "u8") return 1;
  if (kind == "u16") return 2;
  if (kind == "u32") return 4;
  return kind == "u64" ? 8 : 0;
}

std::uint64_t integer_at(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (char c : bytes.substr(0, 200)) {
    text += kDigits[static_cast<unsigned char>(c) >> 4];
    text += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return text;
}

}  // namespace

std::uint64_t GoldenScript::number(std::string_view text) const {
  if (text.starts_with('$')) return captured_.at(std::string(text.substr(1)));
  const bool negative = text.starts_with('-');
  const std::uint64_t value = std::stoull(std::string(text.substr(negative ? 1 : 0)), nullptr, 0);
  return negative ? 0 - value : value;
}

std::string GoldenScript::encode(const std::string& word) const {
  const std::vector<std::string> parts = split(word, ':');
  const std::string& kind = parts.at(0);
  if (const std::size_t bytes = integer_bytes(kind)) {
    return little_endian(number(parts.at(1)), bytes);
  }
  if (kind == "head") {  // head:OP:REQUEST
    FrameHeader header;
    header.op = op_number(parts.at(1));
    header.request = number(parts.at(2));
    return bytes_of(header);
  }
  if (kind == "zero") return std::string(number(parts.at(1)), '\0');
  if (kind == "text") return unquoted(parts.at(1));
  if (kind == "repeat") {  // repeat:COUNT:"text"
    std::string text;
    for (std::uint64_t i = number(parts.at(1)); i > 0; --i) text += unquoted(parts.at(2));
    return text;
  }
  throw std::runtime_error("cannot send " + word);
}

std::string GoldenScript::send(const Words& words) {
  std::string bytes;
  for (std::size_t i = 2; i < words.size(); ++i) bytes += encode(words[i]);
  return sessions_.at(words.at(1))->send(bytes) ? "" : "could not be sent";
}

std::string GoldenScript::match(const Words& words, const RawReply& reply) {
  const std::vector<std::string> head = split(words.at(2), ':');  // reply:OP:REQUEST:STATUS
  if (reply.closed || reply.hung) return reply.outcome();
  if (reply.header.op != op_number(head.at(1))) return "op " + std::to_string(reply.header.op);
  if (reply.header.request != number(head.at(2))) {
    return "request " + std::to_string(reply.header.request);
  }
  if (reply.header.status != status_number(head.at(3))) return reply.outcome() + " " + reply.body;
  const bool descriptor = head.at(0) == "reply+fd";
  if (reply.header.flags != (protocol::kFlagReply | (descriptor ? protocol::kFlagDescriptor : 0)) ||
      reply.fds.size() != (descriptor ? 1 : 0)) {
    return "flags " + std::to_string(reply.header.flags) + " with " +
           std::to_string(reply.fds.size()) + " descriptors";
  }
  std::string_view rest = reply.body;
  const auto wrong = [&](const std::string& word) {
    return word + " does not match at byte " + std::to_string(reply.body.size() - rest.size()) +
           " of " + hex(reply.body);
  };
  for (std::size_t i = 3; i < words.size(); ++i) {
    const std::vector<std::string> parts = split(words[i], ':');
    if (parts.at(0) == "rest") return "";
    if (parts.at(0) == "contains") {
      return rest.find(unquoted(parts.at(1))) == std::string_view::npos ? wrong(words[i]) : "";
    }
    const bool any = parts.at(0) == "any";
    const bool capture = parts.size() > 1 && parts[1].starts_with('=');
    const std::size_t size = any       ? number(parts.at(1))
                             : capture ? integer_bytes(parts[0])
                                       : encode(words[i]).size();
    if (rest.size() < size) return wrong(words[i]);
    if (capture) captured_[parts[1].substr(1)] = integer_at(rest.substr(0, size));
    if (!any && !capture && rest.substr(0, size) != encode(words[i])) return wrong(words[i]);
    rest.remove_prefix(size);
  }
  return rest.empty() ? "" : std::to_string(rest.size()) + " bytes too many: " + hex(rest);
}

std::string GoldenScript::expect(const Words& words) {
  const RawReply reply = sessions_.at(words.at(1))->receive();
  return match(words, reply);
}

std::string GoldenScript::play(std::string_view line) {
  const Words words = split(line.substr(0, line.find(" #")), ' ');
  if (words.empty() || words[0].starts_with('#')) return "";
  if (words[0] == "connect") {
    sessions_[words.at(1)] = std::make_unique<RawSession>(socket_path_);
    return "";
  }
  if (words[0] == "hangup") return sessions_.erase(words.at(1)) == 1 ? "" : "not connected";
  if (words[0] == "closed") {
    return sessions_.at(words.at(1))->receive().closed ? "" : "still open";
  }
  if (words[0] == "quiet") {  // by now nothing has come
    return sessions_.at(words.at(1))->readable() ? "a message has come" : "";
  }
  if (words[0] == ">") return send(words);
  if (words[0] == "<") return expect(words);
  return "unknown line";
}

}  // namespace shmstore::testing
