#pragma once
/// Runs a wire transcript: lines of request frames to send and reply frames to expect, byte by
/// byte. tests/golden/README.md describes the language.

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/raw_session.hpp"

namespace shmstore::testing {

class GoldenScript {
 public:
  explicit GoldenScript(std::string socket_path) : socket_path_(std::move(socket_path)) {}

  /// Plays one line. Returns what is wrong; "" when it went as written.
  std::string play(std::string_view line);

 private:
  using Words = std::vector<std::string>;

  std::string send(const Words& words);
  std::string expect(const Words& words);
  std::string match(const Words& words, const RawReply& reply);
  [[nodiscard]] std::string encode(const std::string& word) const;
  [[nodiscard]] std::uint64_t number(std::string_view text) const;

  std::string socket_path_;
  std::map<std::string, std::unique_ptr<RawSession>> sessions_;
  std::map<std::string, std::uint64_t, std::less<>> captured_;
};

}  // namespace shmstore::testing
