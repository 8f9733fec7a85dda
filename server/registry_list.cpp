// Listing in pages. Order: the caller's namespace, the others by uid; within one by name, the
// published array before drafts; at last the caller's arrays without a name by id. The cursor is
// the position after the last array looked at, so a page costs a bounded number of look-ups however
// many arrays the caller may not see, and however many leases of gone sessions are to be left out;
// such a page can be short, or empty, and still not the last.
#include <algorithm>
#include <charconv>
#include <functional>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr std::size_t kLooksMax = 8'192;

/// "n<uid>,<draft_seq or 0>,<name>" or "a<raw id>".
struct Position {
  bool named = true;
  std::uint64_t first = 0;   ///< uid, or raw id.
  std::uint64_t second = 0;  ///< Drafts up to this one have been seen; 0: only the published.
  std::string_view name;
};

bool take_number(std::string_view& text, std::uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take_comma(std::string_view& text) {
  if (text.empty() || text.front() != ',') return false;
  text.remove_prefix(1);
  return true;
}

std::optional<Position> parse(std::string_view text) {
  Position at;
  if (text.empty()) return std::nullopt;
  at.named = text.front() == 'n';
  if (!at.named && text.front() != 'a') return std::nullopt;
  text.remove_prefix(1);
  if (!take_number(text, at.first)) return std::nullopt;
  if (!at.named) return text.empty() ? std::optional(at) : std::nullopt;
  if (at.first > UINT32_MAX || !take_comma(text)) return std::nullopt;
  if (!take_number(text, at.second) || !take_comma(text)) return std::nullopt;
  at.name = text;
  return at;
}

/// Fills one page.
class Lister {
 public:
  /// The view if the caller gets to see it. Adds to `looks` what it costs to find out.
  using View = std::function<std::optional<ArrayView>(const Array&, std::size_t& looks)>;

  Lister(std::string_view prefix, std::size_t limit, View view)
      : prefix_(prefix), limit_(limit), view_(std::move(view)) {}

  /// False: the page is full. `after`: where in this namespace to go on; null: at its start.
  bool add_namespace(std::uint32_t uid, const Namespace& home, const Position* after) {
    const std::string_view from = after != nullptr ? after->name : prefix_;
    for (auto at = home.names.lower_bound(from); at != home.names.end(); ++at) {
      if (!std::string_view(at->first).starts_with(prefix_)) break;
      const bool resumed = after != nullptr && at->first == after->name;
      if (!add_entry(uid, at->second, resumed ? after : nullptr)) return false;
    }
    return true;
  }

  bool add_anonymous(const Array& array) {
    return add(array, [&] { return "a" + std::to_string(array.id.raw); });
  }

  ListPage page;

 private:
  bool add_entry(std::uint32_t uid, const NameEntry& entry, const Position* after) {
    const auto position = [&](std::uint64_t draft) {
      return "n" + std::to_string(uid) + "," + std::to_string(draft) + "," +
             std::string(entry.name);
    };
    if (after == nullptr && entry.published != nullptr) {
      if (!add(*entry.published, [&] { return position(0); })) return false;
    }
    const std::uint64_t seen = after != nullptr ? after->second : 0;
    for (auto draft = entry.drafts.upper_bound(seen); draft != entry.drafts.end(); ++draft) {
      if (!add(*draft->second, [&] { return position(draft->first); })) return false;
    }
    return true;
  }

  // The cursor is set only when there is a next array: the last page has none.
  template <class F>
  bool add(const Array& array, F&& position) {
    if (full()) {
      page.cursor = last_;
      return false;
    }
    ++looks_;
    if (std::optional<ArrayView> seen = view_(array, looks_)) {
      page.arrays.push_back(std::move(*seen));
    }
    if (full()) last_ = position();
    return true;
  }
  [[nodiscard]] bool full() const { return page.arrays.size() >= limit_ || looks_ >= kLooksMax; }

  std::string_view prefix_;
  std::size_t limit_;
  View view_;
  std::size_t looks_ = 0;
  std::string last_;
};

}  // namespace

Result<ListPage> Registry::list(SessionId session, std::string_view prefix,
                                std::optional<std::uint32_t> ns_uid, std::string_view cursor,
                                std::size_t limit, Now now) const {
  const Session* caller = impl_->find_session(session);
  if (caller == nullptr) return make_error(ErrorCode::internal, "no such session");
  std::optional<Position> after;
  if (!cursor.empty()) {
    after = parse(cursor);
    if (!after) return make_error(ErrorCode::invalid_argument, "cursor: not one of this store");
  }
  const Identity& who = caller->identity;
  const std::uint32_t own = who.uid;
  Lister lister(prefix, std::max<std::size_t>(limit, 1),
                [&](const Array& array, std::size_t& looks) -> std::optional<ArrayView> {
                  if (!Impl::may(who, array, Access::read)) return std::nullopt;
                  looks += impl_->gone_looks(array);
                  return impl_->view_without_gone(array, now);
                });

  // Namespaces before the cursor's have been listed; in its own the page goes on after it.
  const bool names_left = !after || after->named;
  const bool resumes = after && after->named;
  const std::uint32_t resume_uid = resumes ? static_cast<std::uint32_t>(after->first) : own;
  const auto add_names = [&](std::uint32_t uid, const Namespace& home) {
    return lister.add_namespace(uid, home, resumes && uid == resume_uid ? &*after : nullptr);
  };
  if (names_left) {
    const auto mine = impl_->namespaces.find(own);
    if (resume_uid == own && mine != impl_->namespaces.end() && ns_uid.value_or(own) == own) {
      if (!add_names(own, mine->second)) return std::move(lister.page);
    }
    auto at =
        resume_uid != own ? impl_->namespaces.lower_bound(resume_uid) : impl_->namespaces.begin();
    for (; at != impl_->namespaces.end(); ++at) {
      if (at->first == own || ns_uid.value_or(at->first) != at->first) continue;
      if (!add_names(at->first, at->second)) return std::move(lister.page);
    }
  }
  const auto unnamed = impl_->anonymous.find(own);
  if (!prefix.empty() || ns_uid.value_or(own) != own || unnamed == impl_->anonymous.end()) {
    return std::move(lister.page);
  }
  auto id = names_left ? unnamed->second.begin() : unnamed->second.upper_bound(after->first);
  for (; id != unnamed->second.end(); ++id) {
    if (!lister.add_anonymous(*impl_->arrays.find(ArrayId{*id}))) break;
  }
  return std::move(lister.page);
}

}  // namespace shmstore::server
