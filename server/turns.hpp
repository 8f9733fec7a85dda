#pragma once
/// Whose turn it is at the event loop: users one after the other, and within a user one of its
/// items after the other. A turn ends by time. So a user with a thousand sessions, or whose
/// requests take long, gets no more of the loop than another with one small request.

#include <cstdint>
#include <deque>
#include <map>
#include <utility>

namespace shmstore::server {

template <class Item>
class Turns {
 public:
  /// Behind what this user has in line already.
  void add(std::uint32_t uid, Item item) { lines_[uid].push_back(std::move(item)); }
  [[nodiscard]] bool empty() const noexcept { return lines_.empty(); }

  /// The next user's turn: `serve(item)` of one item after the other until the user has none left
  /// or `over()`; at least one. `serve` may add. REQUIRES: not empty.
  template <class Serve, class Over>
  void give_one(Serve&& serve, Over&& over) {
    auto line = lines_.upper_bound(last_uid_);
    if (line == lines_.end()) line = lines_.begin();
    last_uid_ = line->first;
    do {
      Item item = std::move(line->second.front());
      line->second.pop_front();
      if (line->second.empty()) lines_.erase(line);
      serve(item);
      line = lines_.find(last_uid_);
    } while (line != lines_.end() && !over());
  }

 private:
  std::map<std::uint32_t, std::deque<Item>> lines_;  // by uid; no line is empty
  std::uint32_t last_uid_ = UINT32_MAX;
};

}  // namespace shmstore::server
