// One client that uses every operation of the client library, so that every kill point is passed.
// Whatever it publishes is filled with kScriptByte before it is sealed.
#include "tests/integration/scripted_client.hpp"

#include <cstdio>

#include "tests/support/testing.hpp"

namespace shmstore::testing {
namespace {

constexpr std::size_t kBytes = 200'000;

/// Runs steps until one fails; says which.
class Script {
 public:
  explicit Script(const char* socket_path) { options_.socket = socket_path; }

  int run() {
    options_.grace = 100ms;
    options_.interrupted = [this] { return interrupt_; };
    Result<Client> client = Client::connect(options_);
    step("connect", client);
    if (failed_) return 1;
    client_.emplace(*client);
    step("ping", client_->ping());
    create_and_seal();
    mutable_and_copy();
    exclusive();
    hand_over();
    cached();
    waits();
    dropped();
    admin();
    return failed_ ? 1 : 0;
  }

 private:
  template <class T>
  void step(const char* name, const Result<T>& result) {
    if (result) return;
    std::fprintf(stderr, "script: %s: %s\n", name, describe(result).c_str());
    failed_ = true;
  }

  std::optional<AnyArray> filled(const char* step_name, Result<AnyArray> array) {
    step(step_name, array);
    if (!array) return std::nullopt;
    if (array->access() == Access::write) fill(*array, kScriptByte);
    return std::move(*array);
  }

  void create_and_seal() {
    auto soft = filled("create", create_bytes(*client_, "script/soft", kBytes));
    auto same = filled("join own draft", client_->attach_any("script/soft", access(Access::write)));
    if (same) step("release", same->release());
    if (soft) step("seal", soft->seal());
    auto again = filled("attach", client_->attach_any("script/soft", no_wait()));
    if (again) step("release", again->release());
    if (soft) step("release", soft->release());

    CreateOptions keep;
    keep.keep = true;
    auto hard = filled("create hard", create_bytes(*client_, "script/hard", kBytes, keep));
    SealOptions hard_seal;
    hard_seal.hard = true;
    if (hard) step("seal hard", hard->seal(hard_seal));
    auto put = filled("put", put_bytes(*client_, "script/put", kBytes, kScriptByte, keep));
    put.reset();  // its release is pipelined
    auto read = filled("attach put", client_->attach_any("script/put", no_wait()));
    auto anonymous = filled("put anonymous", put_bytes(*client_, "", kBytes, kScriptByte));
    if (anonymous) step("attach by id", client_->attach_id(anonymous->id()));
  }

  void mutable_and_copy() {
    CreateOptions options;
    options.is_mutable = true;
    auto shared = filled("mutable", create_bytes(*client_, "script/mutable", kBytes, options));
    auto writer = filled("r+", client_->attach_any("script/mutable", access(Access::write)));
    auto copy = filled("c", client_->attach_any("script/mutable", access(Access::copy)));
    // A second private map needs the descriptor once more.
    auto second = filled("c", client_->attach_any("script/mutable", access(Access::copy)));
    if (copy) step("release copy", copy->release());
    if (writer) step("release r+", writer->release());
    if (shared) step("release", shared->release());
  }

  void exclusive() {
    CreateOptions options;
    options.is_mutable = options.keep = true;
    auto made = filled("mutable", create_bytes(*client_, "script/alone", kBytes, options));
    if (made) step("release", made->release());
    const auto alone = [this] {
      AttachOptions attach = access(Access::exclusive);
      attach.repair = true;
      auto array = client_->attach_any("script/alone", attach);
      step("exclusive", array);
      if (array) fill(*array, kScriptByte);
      return array;
    };
    auto held = client_->attach_any("script/alone", access(Access::hold));
    step("hold", held);
    if (auto array = alone()) step("let go", array->let_go());
    if (auto array = alone()) step("give up", array->let_go(true));
    if (auto array = alone()) step("release repaired", array->release());
    step("delete", client_->remove("script/alone"));
  }

  void hand_over() {
    auto array = filled("put", put_bytes(*client_, "", kBytes, kScriptByte));
    if (!array) return;
    step("handover", array->handover());
    const Result<std::uint64_t> handle = array->handover_once();
    step("handover once", handle);
    if (handle) step("receive", client_->attach_id(array->id(), 0, no_wait(), true, *handle));
  }

  void cached() {
    const auto load = [](const Client::MakeDraft& make) -> Result<void> {
      const std::uint64_t shape[] = {kBytes};
      Result<AnyArray*> draft = make("|u1", shape);
      if (!draft) return draft.error();
      fill(**draft, kScriptByte);
      return {};
    };
    step("cached load", client_->cached_any("script/cached", load));
    step("cached get", client_->cached_any("script/cached", load));
    const auto fail = [](const Client::MakeDraft&) -> Result<void> {
      return make_error(ErrorCode::aborted, "the loader failed");
    };
    const auto failed = client_->cached_any("script/failing", fail);
    if (failed) step("failing loader", Result<void>(make_error(ErrorCode::internal, "succeeded")));
  }

  void waits() {
    step("wait", client_->wait("script/put", 0, kDoNotWait));
    interrupt_ = true;
    const auto cancelled = client_->wait("script/never", 0, kWaitForever);
    interrupt_ = false;
    if (outcome(cancelled) != "aborted") {
      step("cancel", Result<void>(make_error(ErrorCode::internal, describe(cancelled))));
    }
  }

  void dropped() {
    auto draft = filled("create", create_bytes(*client_, "script/dropped", kBytes));
    if (draft) step("release of a draft", draft->release());
    auto forgotten = filled("create", create_bytes(*client_, "script/forgotten", kBytes));
    forgotten.reset();
  }

  void admin() {
    step("watch", client_->watch("script/"));
    step("info", client_->info("script/put"));
    step("list", client_->list("script/"));
    step("holders", client_->holders("script/put"));
    step("status", client_->status());
    step("keep", client_->keep("script/put", 1h));
    step("chmod", client_->chmod("script/put", 0400));
    step("unkeep", client_->unkeep("script/put"));
    step("selfcheck", client_->admin("selfcheck"));
    step("gc", client_->admin("gc"));
    step("metrics", client_->admin("metrics"));
    step("quotas", client_->admin("quotas"));
    step("delete", client_->remove("script/hard"));
    step("delete", client_->remove("script/cached"));
  }

  ConnectOptions options_;
  std::optional<Client> client_;
  bool interrupt_ = false;
  bool failed_ = false;
};

}  // namespace

int run_scripted_client(const char* socket_path) {
  return Script(socket_path).run();
}

int run_exclusive_client(const char* socket_path, const char* how) {
  ConnectOptions options;
  options.socket = socket_path;
  Result<Client> client = Client::connect(options);
  if (!client) return 1;
  if (std::string_view(how) == "replace") {
    CreateOptions replace;
    replace.is_mutable = replace.keep = replace.replace = true;
    return put_bytes(*client, "alone", kBytes, kScriptByte, replace) ? 0 : 2;
  }
  auto array = client->attach_any("alone", access(Access::exclusive, kWaitForever));
  if (!array) return 2;
  fill(*array, kScriptByte);
  const std::string_view end = how;
  if (end == "release") return array->release() ? 0 : 3;
  if (end == "let_go") return array->let_go() ? 0 : 3;
  if (end == "give_up") return array->let_go(true) ? 0 : 3;
  return 0;  // "drop": by its destructor
}

}  // namespace shmstore::testing
