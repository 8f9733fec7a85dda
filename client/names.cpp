#include "client/names.hpp"

#include <pwd.h>
#include <sys/types.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <vector>

namespace shmstore::client_internal {

namespace {

constexpr std::size_t kUserBytesMax = 256;

Error bad_name(std::string text) {
  return make_error(ErrorCode::invalid_argument, "name: " + std::move(text));
}

/// The number of a user's name, from the name service.
Result<std::uint32_t> find_user(const std::string& user) {
  std::vector<char> buffer(1024);
  for (;;) {
    passwd entry{};
    passwd* found = nullptr;
    const int error = getpwnam_r(user.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (error == EINTR) continue;
    if (error == ERANGE && buffer.size() < (1U << 20U)) {
      buffer.resize(buffer.size() * 2);
      continue;
    }
    if (found == nullptr) return bad_name("there is no user '" + user + "'");
    return std::uint32_t{entry.pw_uid};
  }
}

Result<std::uint32_t> user_number(std::string_view user) {
  if (user.empty()) return bad_name("a user must follow '~'");
  if (user.size() > kUserBytesMax) return bad_name("the user after '~' is over 256 bytes");
  std::uint32_t uid = 0;
  const char* end = user.data() + user.size();
  if (const auto [rest, error] = std::from_chars(user.data(), end, uid); rest == end) {
    if (error == std::errc{} && uid != QualifiedName::kOwn) return uid;
  }
  if (user.find_first_not_of("0123456789") == std::string_view::npos) {
    return bad_name("user number " + std::string(user) + " is over the limit of 2^32-2");
  }
  return find_user(std::string(user));
}

/// A shell makes a path of an unquoted `~user/name`: what was meant, or nothing.
std::string meant_by(std::string_view path) {
  std::array<char, 4096> buffer{};
  for (std::size_t end = path.find('/', 1); end != path.npos; end = path.find('/', end + 1)) {
    const std::string home(path.substr(0, end));
    const std::string user = home.substr(home.rfind('/') + 1);
    passwd entry{};
    passwd* found = nullptr;
    if (getpwnam_r(user.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0) continue;
    if (found != nullptr && home == entry.pw_dir) return "~" + user + std::string(path.substr(end));
  }
  return {};
}

/// Takes `~user/` off the front of `text`.
Result<std::uint32_t> take_namespace(std::string_view& text) {
  if (!text.starts_with('~')) return QualifiedName::kOwn;
  const std::size_t slash = text.find('/');
  const std::string_view user = text.substr(1, slash == text.npos ? text.npos : slash - 1);
  text = slash == text.npos ? std::string_view{} : text.substr(slash + 1);
  return user_number(user);
}

}  // namespace

Result<QualifiedName> parse_name(std::string_view text) {
  Result<std::uint32_t> uid = take_namespace(text);
  if (!uid) return uid.error();
  if (Result<void> valid = check_name(text); !valid) {
    Error error = valid.error();
    if (const std::string meant = meant_by(text); !meant.empty()) {
      error.text += "; if " + meant + " was meant, quote it: the shell has made a path of it";
    }
    return error;
  }
  return QualifiedName{*uid, std::string(text)};
}

Result<QualifiedName> parse_prefix(std::string_view text) {
  Result<std::uint32_t> uid = take_namespace(text);
  if (!uid) return uid.error();
  if (text.size() > kNameBytesMax) return bad_name("prefix is over 255 bytes");
  return QualifiedName{*uid, std::string(text)};
}

std::string wire_name(const QualifiedName& name) {
  if (name.uid == QualifiedName::kOwn) return name.name;
  return "~" + std::to_string(name.uid) + "/" + name.name;
}

}  // namespace shmstore::client_internal
