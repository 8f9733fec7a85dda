#pragma once
/// The registry and the model side by side: after each operation on both, compare() says what they
/// disagree about.

#include <deque>
#include <map>
#include <optional>
#include <string>

#include "server/registry.hpp"
#include "tests/unit/model_store.hpp"

namespace shmstore::model {

/// Little room, so that much is refused.
server::Limits tight_limits();

class Pair {
 protected:
  using Fx = server::Effects;

  Pair() : registry_(tight_limits()), model_(tight_limits()) { model_.now = now_.boot_ms; }

  void expect(bool holds, const std::string& what) {
    if (!holds) trouble_ += "\n  " + what;
  }
  static std::string text(const std::optional<ErrorCode>& code) {
    return code ? std::string(to_string(*code)) : "success";
  }
  /// After both did the same: `fx` is what the registry made of it.
  void compare(const Fx& fx);

  server::Registry registry_;
  Store model_;
  server::Now now_{1'000, 1.7e9};
  std::map<Key, ArrayId> ids_;
  std::map<server::SegmentId, Key> segments_;
  std::deque<Key> allocations_, hard_seals_;  ///< Not answered yet.
  std::deque<server::SegmentId> freed_;
  std::string trouble_;

 private:
  void learn_ids(const Fx& fx);
  void compare_effects(const Fx& fx);
  void compare_answer(const server::Completion& done);
  void compare_array(Key key, const Array& array);
  void compare_sums();
  [[nodiscard]] Key key_of(ArrayId id) const;
};

}  // namespace shmstore::model
