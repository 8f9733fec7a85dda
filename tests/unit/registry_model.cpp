// The registry against a second, simple one (model_store): random operations of several sessions
// and users, sessions that die, memory that fails or comes late, a kernel that says busy, time that
// passes. After each operation the registry's selfcheck is empty, and answers, events, arrays and
// sums are the model's.
//
// A failure prints its seed; SHMSTORE_SEED=N runs that seed alone, SHMSTORE_MODEL_RUNS=N more
// seeds.

#include <doctest/doctest.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/unit/model_pair.hpp"

using namespace shmstore;
using model::Key;

namespace {

constexpr int kOperations = 1'500;

std::optional<std::uint64_t> number_from_env(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return std::nullopt;
  std::uint64_t value = 0;
  const std::string_view all(text);
  const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), value);
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

class Run : private model::Pair {
 public:
  explicit Run(std::uint64_t seed) : random_(seed) {
    for (int i = 0; i < 4; ++i) join();
  }

  /// What went wrong; empty: nothing.
  std::string play() {
    for (int i = 0; i < kOperations && trouble_.empty(); ++i) {
      last_.clear();
      step();
      if (!trouble_.empty()) trouble_ = "operation " + std::to_string(i) + ": " + last_ + trouble_;
    }
    if (trouble_.empty()) finish();
    return trouble_;
  }

 private:
  // -- dice ---------------------------------------------------------------------------------------
  std::uint64_t roll(std::uint64_t sides) { return random_() % sides; }
  bool chance(std::uint64_t percent) { return roll(100) < percent; }
  template <class T>
  T pick(const std::vector<T>& items) {
    return items[roll(items.size())];
  }

  model::Session any_session() {
    auto at = model_.sessions.begin();
    std::advance(at, static_cast<std::ptrdiff_t>(roll(model_.sessions.size())));
    return at->first;
  }
  QualifiedName any_name() {
    static const std::vector<std::string> kNames = {"a", "b", "dir/c"};
    const std::uint32_t uid =
        chance(70) ? QualifiedName::kOwn : pick(std::vector<std::uint32_t>{0, 1000, 1001});
    return {uid, pick(kNames)};
  }
  model::Name resolved(model::Session session, const QualifiedName& name) const {
    const auto uid = model_.sessions.at(session).uid;
    return {name.uid == QualifiedName::kOwn ? uid : name.uid, name.name};
  }
  std::int64_t any_timeout() {
    const std::uint64_t kind = roll(4);
    if (kind == 0) return 0;
    return kind == 1 ? -1 : static_cast<std::int64_t>(1 + roll(80));
  }
  std::uint16_t any_perms() {
    return pick(std::vector<std::uint16_t>{0600, 0600, 0600, 0644, 0666, 0640, 0660, 0400, 0604});
  }

  /// An array that is there, was there, or never was.
  struct Chosen {
    Key key = model::Store::kNoArray;
    ArrayId id{0xdead00dead};
  };
  Chosen any_array() {
    if (!ids_.empty() && chance(97)) {
      // Mostly the living.
      std::vector<Key> keys;
      for (const auto& [key, array] : model_.arrays) {
        if (ids_.contains(key)) keys.push_back(key);
      }
      if (!keys.empty() && chance(95)) {
        const Key key = pick(keys);
        return {key, ids_.at(key)};
      }
      auto at = ids_.begin();
      std::advance(at, static_cast<std::ptrdiff_t>(roll(ids_.size())));
      return {at->first, at->second};
    }
    return {};
  }
  /// One that the session holds, if there is any.
  Chosen held_array(model::Session session, Access& access) {
    std::vector<std::pair<Key, Access>> held;
    for (const auto& [key, array] : model_.arrays) {
      if (!ids_.contains(key)) continue;
      for (const model::Lease& lease : array.leases) {
        if (lease.session == session) held.emplace_back(key, lease.access);
      }
    }
    access = pick(std::vector<Access>{Access::read, Access::write, Access::copy});
    if (held.empty() || chance(5)) return any_array();
    const auto [key, how] = pick(held);
    access = how;
    return {key, ids_.at(key)};
  }

  // -- one operation ------------------------------------------------------------------------------
  void step() {
    const std::uint64_t dice = roll(100);
    if (dice < 4) return chance(50) || model_.sessions.size() < 2 ? join() : leave();
    if (dice < 20) return create();
    if (dice < 32) return seal();
    if (dice < 46) return attach();
    if (dice < 58) return release();
    if (dice < 62) return cached();
    if (dice < 66) return wait();
    if (dice < 69) return cancel();
    if (dice < 72) return abort();
    if (dice < 74) return handover();
    if (dice < 75) return chance(50) ? received() : publish();
    if (dice < 77) return segment();
    if (dice < 84) return admin();
    if (dice < 86) return list();
    if (dice < 90) return tick();
    answer_effects();
  }

  void join() {
    if (model_.sessions.size() >= 8) return;
    const model::Session session = next_session_++;
    const auto uid = pick(std::vector<std::uint32_t>{1000, 1000, 1001, 1002, 0});
    std::set<std::uint32_t> groups;
    if (uid == 1002) groups = {1000};
    last_ = "join";
    const server::Identity who{
        static_cast<std::int64_t>(session), uid, uid, {groups.begin(), groups.end()}, "m"};
    if (!registry_.open_session(session, who)) trouble_ += "join refused";
    groups.insert(uid);
    model_.join(session, uid, std::move(groups));
  }

  void leave() {
    const model::Session session = any_session();
    last_ = "leave " + std::to_string(session);
    Fx fx;
    registry_.end_session(session, now_, fx);
    model_.leave(session);
    compare(fx);
  }

  void create() {
    const model::Session session = any_session();
    server::CreateSpec spec;
    if (chance(80)) spec.name = any_name();
    spec.dtype = *Dtype::parse("u1");
    spec.bytes = chance(15) ? 0 : 1 + roll(4 * server::kPageBytes);
    spec.shape = {spec.bytes};
    spec.perms = any_perms();
    spec.timeout_ms = any_timeout();
    if (chance(3)) spec.bytes = 30 * server::kPageBytes;
    const bool named = !spec.name.name.empty() || chance(5);
    const auto maybe = [&](std::uint64_t percent, std::uint16_t option) {
      if (chance(percent)) spec.options = static_cast<std::uint16_t>(spec.options | option);
    };
    maybe(50, protocol::kCreateMutable);
    const bool is_mutable = (spec.options & protocol::kCreateMutable) != 0;
    maybe(is_mutable ? 30 : 1, protocol::kCreateUnseen);
    maybe(15, protocol::kCreateHard);
    if (named) maybe(40, protocol::kCreateReplace);
    if (named) maybe(25, protocol::kCreateKeep);
    if (named) maybe(5, protocol::kCreateCached);
    for (const auto& [name, loader] : model_.loaders) {  // A loader mostly loads.
      if (loader.session != session || loader.draft >= 0 || chance(20)) continue;
      spec.name = {name.first, name.second};
      spec.options = protocol::kCreateCached;
    }
    if (chance(50)) spec.ttl_ms = 1 + roll(100);
    const model::Request request = next_request_++;
    last_ = "create " + spec.name.name + " options " + std::to_string(spec.options);
    Fx fx;
    registry_.create(session, request, spec, now_, fx);
    model_.create(session, request, spec);
    compare(fx);
  }

  void publish() {
    model::Session session = any_session();
    Access access{};
    Chosen array = held_array(session, access);
    for (const auto& [key, one] : model_.arrays) {  // Mostly one that waits for it.
      const bool waits = one.state == State::draft && !one.allocating && one.creator != 0 &&
                         model::has(one.spec, protocol::kCreateUnseen);
      if (!waits || !model_.sessions.contains(one.creator) || chance(20)) continue;
      session = one.creator;
      array = {key, ids_.at(key)};
    }
    const model::Request request = next_request_++;
    last_ = "publish " + std::to_string(array.key);
    Fx fx;
    registry_.publish(session, request, array.id, now_, fx);
    model_.publish(session, request, array.key);
    compare(fx);
  }

  void seal() {
    const model::Session session = any_session();
    Access access{};
    const Chosen array = held_array(session, access);
    const bool hard = chance(25);
    const std::int64_t wait_ms = any_timeout();
    const model::Request request = next_request_++;
    last_ = "seal " + std::to_string(array.key);
    Fx fx;
    registry_.seal(session, request, array.id, hard, wait_ms, now_, fx);
    model_.seal(session, request, array.key, hard, wait_ms);
    compare(fx);
  }

  void attach() {
    const model::Session session = any_session();
    server::AttachSpec spec;
    spec.access =
        pick(std::vector<Access>{Access::read, Access::read, Access::copy, Access::write});
    if (chance(35)) spec.access = Access::exclusive;
    if (chance(5)) spec.access = Access::hold;
    spec.repair = chance(spec.access == Access::exclusive ? 40 : 1);
    spec.timeout_ms = chance(30) ? -1 : any_timeout();  // Lines have to grow.
    spec.newer_than = chance(30) ? roll(12) : 0;
    spec.renew_handover = chance(30);
    Key key = -1;
    if (chance(50)) {
      const Chosen array = any_array();
      key = array.key;
      spec.id = array.id;
      if (chance(40)) spec.handle = any_handle(array);
      if (!chance(3)) spec.newer_than = 0;
    } else {
      spec.name = any_name();
    }
    const model::Request request = next_request_++;
    last_ = "attach " + std::to_string(key) + " " + spec.name.name;
    Fx fx;
    registry_.attach(session, request, spec, now_, fx);
    model_.attach(session, request, key, resolved(session, spec.name), spec.access, spec.newer_than,
                  spec.timeout_ms, spec.renew_handover, spec.repair, spec.handle);
    compare(fx);
  }

  void release() {
    const model::Session session = any_session();
    Access access{};
    const Chosen array = held_array(session, access);
    const auto grants = static_cast<std::uint32_t>(chance(5) ? roll(5) : 1);
    const model::Request request = next_request_++;
    last_ = "release " + std::to_string(array.key);
    Fx fx;
    registry_.release(session, request, array.id, access, grants, now_, fx);
    model_.release(session, request, array.key, access, grants);
    compare(fx);
  }

  void segment() {
    const model::Session session = any_session();
    Access access{};
    const Chosen array = held_array(session, access);
    const model::Request request = next_request_++;
    last_ = "segment " + std::to_string(array.key);
    Fx fx;
    registry_.segment(session, request, array.id, access, now_, fx);
    model_.segment(session, request, array.key, access);
    compare(fx);
  }

  void handover() {
    const model::Session session = any_session();
    Access access{};
    const Chosen array = held_array(session, access);
    const std::uint64_t grace = chance(20) ? 0 : 1 + roll(100);
    const model::Request request = next_request_++;
    last_ = "handover " + std::to_string(array.key);
    Fx fx;
    const bool once = chance(50);
    registry_.handover(session, request, array.id, grace, once, now_, fx);
    model_.handover(session, request, array.key, grace, once);
    compare(fx);
  }

  /// Mostly one that is on its way.
  std::uint64_t any_handle(const Chosen& array) {
    std::vector<std::uint64_t> handles{1 + roll(4)};
    const auto found = model_.arrays.find(array.key);
    if (found == model_.arrays.end() || chance(10)) return handles.front();
    for (const model::Lease& lease : found->second.leases) {
      if (lease.handle != 0) handles.push_back(lease.handle);
    }
    return handles.back();
  }

  void received() {
    const model::Session session = any_session();
    Access access{};
    const Chosen array = held_array(session, access);
    const std::uint64_t handle = any_handle(array);
    const model::Request request = next_request_++;
    last_ = "received " + std::to_string(array.key);
    Fx fx;
    registry_.received(session, request, array.id, handle, now_, fx);
    model_.received(session, request, array.key, handle);
    compare(fx);
  }

  void cached() {
    const model::Session session = any_session();
    const QualifiedName name = any_name();
    const std::int64_t timeout_ms = any_timeout();
    const model::Request request = next_request_++;
    last_ = "cached " + name.name;
    Fx fx;
    registry_.cached(session, request, name, timeout_ms, now_, fx);
    model_.cached(session, request, resolved(session, name), timeout_ms);
    compare(fx);
  }

  void wait() {
    const model::Session session = any_session();
    const QualifiedName name = any_name();
    const std::uint64_t newer_than = roll(12);
    const std::int64_t timeout_ms = any_timeout();
    const model::Request request = next_request_++;
    last_ = "wait " + name.name;
    Fx fx;
    registry_.wait(session, request, name, newer_than, timeout_ms, now_, fx);
    model_.wait(session, request, resolved(session, name), newer_than, timeout_ms);
    compare(fx);
  }

  void cancel() {
    const model::Session session = any_session();
    model::Request target = 1 + roll(next_request_);
    std::vector<model::Request> open;
    for (const model::Wait& one : model_.waits) {
      if (one.session == session) open.push_back(one.request);
    }
    for (const auto& [key, array] : model_.arrays) {
      if (array.creation != 0 && array.creator == session) open.push_back(array.creation);
      if (array.asking_kernel && array.sealer == session && array.seal_request != 0) {
        open.push_back(array.seal_request);
      }
    }
    if (!open.empty() && chance(90)) target = pick(open);
    const model::Request request = next_request_++;
    last_ = "cancel " + std::to_string(target);
    Fx fx;
    registry_.cancel(session, request, target, now_, fx);
    model_.cancel(session, request, target);
    compare(fx);
  }

  void abort() {
    const model::Session session = any_session();
    const model::Request request = next_request_++;
    server::Target target;
    Key key = -1;
    if (chance(60)) {
      Access access{};
      const Chosen array = held_array(session, access);
      key = array.key;
      target.id = array.id;
    } else {
      target.name = any_name();
    }
    last_ = "abort " + std::to_string(key) + " " + target.name.name;
    Fx fx;
    registry_.abort(session, request, target, now_, fx);
    model_.abort(session, request, key, resolved(session, target.name));
    compare(fx);
  }

  template <class T>
  static std::optional<ErrorCode> code_of(const Result<T>& result) {
    return result ? std::nullopt : std::optional(result.error().code);
  }

  void admin() {
    const model::Session session = any_session();
    server::Target target;
    Key key = -1;
    if (chance(50)) {
      const Chosen array = any_array();
      key = array.key;
      target.id = array.id;
    } else {
      target.name = any_name();
    }
    const model::Name name = resolved(session, target.name);
    const std::uint64_t ttl = chance(50) ? 0 : 1 + roll(100);
    const std::uint16_t perms = any_perms();
    std::optional<ErrorCode> is, should;
    Fx fx;
    switch (roll(5)) {
      case 0:
        last_ = "keep";
        is = code_of(registry_.keep(session, target, ttl, now_, fx));
        should = model_.keep(session, key, name, ttl);
        break;
      case 1:
        last_ = "unkeep";
        is = code_of(registry_.unkeep(session, target, now_, fx));
        should = model_.unkeep(session, key, name);
        break;
      case 2:
        last_ = "remove";
        is = code_of(registry_.remove(session, target, now_, fx));
        should = model_.remove(session, key, name);
        break;
      case 3:
        last_ = "chmod";
        is = code_of(registry_.chmod(session, target, perms, now_, fx));
        should = model_.chmod(session, key, name, perms);
        break;
      default:
        last_ = "info";
        is = code_of(registry_.info(session, target, now_, fx));
        should = model_.info(session, key, name);
        break;
    }
    last_ += " " + std::to_string(key) + " " + target.name.name;
    expect(is == should, "admin result " + text(is) + " instead of " + text(should));
    compare(fx);
  }

  void list() {
    const model::Session session = any_session();
    const std::string prefix = chance(30) ? "dir/" : "";
    const std::size_t limit = 1 + roll(4);
    std::vector<std::tuple<model::Uid, std::string, std::uint64_t>> found;
    std::string cursor;
    for (bool more = true; more;) {
      const auto page = registry_.list(session, prefix, {}, cursor, limit, now_);
      if (!page) return expect(false, "list: " + page.error().text);
      for (const server::ArrayView& view : page->arrays) {
        found.emplace_back(view.ns_uid, std::string(view.name),
                           view.name.empty() ? 0 : view.version);
        if (view.name.empty()) std::get<0>(found.back()) = model_.sessions.at(session).uid;
      }
      more = page->cursor.has_value();
      cursor = page->cursor.value_or("");
    }
    last_ = "list";
    expect(found == model_.list(session, prefix), "list differs");
  }

  void tick() {
    now_.boot_ms += static_cast<std::int64_t>(chance(10) ? 70'000 : roll(40));
    last_ = "tick to " + std::to_string(now_.boot_ms);
    Fx fx;
    registry_.tick(now_, fx);
    model_.tick(now_.boot_ms);
    compare(fx);
  }

  void answer_effects() {
    const std::uint64_t kind = roll(3);
    if (kind == 0 && !allocations_.empty()) {
      give_memory(chance(80));
    } else if (kind == 1 && !hard_seals_.empty()) {
      answer_seal(chance(60));
    } else if (!freed_.empty()) {
      chance(30) ? still_held() : reclaim();
    }
  }

  void give_memory(bool there) {
    const Key key = allocations_.front();
    allocations_.pop_front();
    last_ = (there ? "memory for " : "no memory for ") + std::to_string(key);
    Fx fx;
    if (there) {
      const server::SegmentId segment = next_segment_++;
      segments_[segment] = key;
      registry_.segment_ready(ids_.at(key), segment, now_, fx);
      model_.memory_came(key);
    } else {
      registry_.segment_ready(ids_.at(key), make_error(ErrorCode::no_capacity, "none"), now_, fx);
      model_.memory_refused(key);
    }
    compare(fx);
  }

  void answer_seal(bool sealed) {
    const Key key = hard_seals_.front();
    hard_seals_.pop_front();
    last_ = (sealed ? "kernel sealed " : "kernel busy ") + std::to_string(key);
    Fx fx;
    if (sealed) {
      registry_.hard_sealed(ids_.at(key), {}, now_, fx);
      model_.kernel_sealed(key);
    } else {
      registry_.hard_sealed(ids_.at(key), make_error(ErrorCode::busy, "mapped"), now_, fx);
      model_.kernel_busy(key);
    }
    compare(fx);
  }

  void reclaim() {
    const server::SegmentId segment = freed_.front();
    freed_.pop_front();
    last_ = "reclaim";
    Fx fx;
    registry_.segment_freed(segment, now_, fx);
    model_.reclaimed(segments_.at(segment));
    compare(fx);
  }

  /// The kernel was asked, and somebody has it still.
  void still_held() {
    const server::SegmentId segment = pick(std::vector(freed_.begin(), freed_.end()));
    last_ = "still held";
    Fx fx;
    registry_.segment_pinned(segment, now_, fx);
    model_.held(segments_.at(segment));
    compare(fx);
  }

  /// Everybody leaves: nothing may stay but what is kept.
  void finish() {
    while (!model_.sessions.empty() && trouble_.empty()) leave();
    while (!allocations_.empty() && trouble_.empty()) give_memory(true);
    now_.boot_ms += 10'000'000;
    Fx fx;
    registry_.tick(now_, fx);
    model_.tick(now_.boot_ms);
    compare(fx);
    while (!freed_.empty() && trouble_.empty()) reclaim();
    const server::RegistryCounts counts = registry_.counts();
    expect(counts.leases == 0 && counts.waits == 0 && counts.sessions == 0, "something stayed");
    expect(counts.pinned_bytes == 0, "pinned bytes stayed");
    for (const auto& [key, array] : model_.arrays) expect(array.kept, "an array stayed");
  }

  std::mt19937_64 random_;
  model::Session next_session_ = 1;
  model::Request next_request_ = 1;
  server::SegmentId next_segment_ = 1;
  std::string last_;
};

}  // namespace

TEST_CASE("registry: random operations against the model") {
  const std::optional<std::uint64_t> only = number_from_env("SHMSTORE_SEED");
  const std::uint64_t runs = only ? 1 : number_from_env("SHMSTORE_MODEL_RUNS").value_or(12);
  std::random_device entropy;
  for (std::uint64_t i = 0; i < runs; ++i) {
    const std::uint64_t seed = only ? *only : (std::uint64_t{entropy()} << 16U) + i;
    const std::string trouble = Run(seed).play();
    INFO("SHMSTORE_SEED=", seed);
    REQUIRE(trouble == "");
  }
}
