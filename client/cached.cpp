// The role of loader goes with the draft once there is one: dropping the draft gives both up. Only
// a loader that never made its draft gives the role up by name. (After the draft is dropped, the
// role may already be another thread's of this very session.)
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "client/guarded.hpp"
#include "client/names.hpp"
#include "client/operations.hpp"

namespace shmstore {

using client_internal::Call;
using client_internal::Connection;
using client_internal::guarded;
using client_internal::Lease;

namespace {

using Loader = std::function<Result<void>(const Client::MakeDraft&)>;

/// Keys whose loaders run on this thread. Waiting for one of them would be waiting for oneself.
thread_local std::vector<std::string> t_loading;

class LoadingMark {
 public:
  explicit LoadingMark(std::string key) { t_loading.push_back(std::move(key)); }
  ~LoadingMark() { t_loading.pop_back(); }
  LoadingMark(const LoadingMark&) = delete;
  LoadingMark& operator=(const LoadingMark&) = delete;
};

Result<std::shared_ptr<Connection>> call_cached(client_internal::State& state, Call& call,
                                                const QualifiedName& key, Timeout timeout) {
  Result<std::int64_t> timeout_ms = client_internal::wire_timeout(timeout, "timeout");
  if (!timeout_ms) return timeout_ms.error();
  protocol::CachedRequest request;
  request.timeout_ms = *timeout_ms;
  request.ns_uid = key.uid;
  request.name_bytes = static_cast<std::uint16_t>(key.name.size());
  call.add(request).add_text(key.name);
  call.server_wait = timeout;
  const std::string subject = "array '" + key.name + "'";
  call.waits_for = subject;
  call.loads = &key;
  return state.call(call);
}

bool is_loader(const Call& call) {
  protocol::ArrayBody body;
  if (call.body().size() < sizeof body) return false;
  std::memcpy(&body, call.body().data(), sizeof body);
  return body.role == static_cast<std::uint8_t>(protocol::Role::loader);
}

/// This caller's turn to make the array.
class Loading {
 public:
  Loading(std::shared_ptr<client_internal::State> state, std::shared_ptr<Connection> connection,
          const QualifiedName& key, const CachedOptions& options)
      : state_(std::move(state)),
        connection_(std::move(connection)),
        key_(key),
        epoch_(client_internal::process_epoch()),
        options_(options) {}
  Loading(const Loading&) = delete;
  Loading& operator=(const Loading&) = delete;

  /// Without a draft the role is given up by name; in a forked child it is not ours to give up.
  ~Loading() {
    if (!made_ && is_own()) connection_->give_up_loading(key_);
  }

  /// False in a child that the loader forked: the loader is its parent.
  [[nodiscard]] bool is_own() const noexcept {
    return epoch_ == client_internal::process_epoch() && connection_->alive();
  }

  Result<std::unique_ptr<Lease>> make(std::string_view dtype,
                                      std::span<const std::uint64_t> shape) {
    if (made_) return make_error(ErrorCode::invalid_argument, "make: was called before");
    if (!is_own()) return make_error(ErrorCode::disconnected, "make: the loader is gone");
    CreateOptions create;
    create.order = options_.order;
    create.keep = true;
    create.ttl = options_.ttl;
    create.perms = options_.perms;
    create.attrs = options_.attrs;
    Result<client_internal::CreateCall> what =
        client_internal::check_create(client_internal::wire_name(key_), dtype, shape, create);
    if (!what) return what.error();
    what->flags |= protocol::kCreateCached;
    Result<std::unique_ptr<Lease>> lease = client_internal::create(state_, *what, create);
    made_ = what->granted;
    return lease;
  }

 private:
  std::shared_ptr<client_internal::State> state_;
  std::shared_ptr<Connection> connection_;
  const QualifiedName& key_;
  const std::uint64_t epoch_;
  const CachedOptions& options_;
  bool made_ = false;
};

/// Runs the loader; what it throws is its failure, not ours.
Result<void> run_loader(const Loader& loader, const Client::MakeDraft& make) {
  try {
    return loader(make);
  } catch (const std::exception& thrown) {
    return make_error(ErrorCode::internal, "loader: " + std::string(thrown.what()));
  }
}

}  // namespace

Result<AnyArray> Client::cached_any(std::string_view key, const Loader& loader,
                                    const CachedOptions& options) {
  return guarded([&]() -> Result<AnyArray> {
    Result<QualifiedName> name = client_internal::parse_name(key);
    if (!name) return name.error();
    // A child that the loader forks is not the loader: it may wait for its parent.
    std::string mark = std::to_string(client_internal::process_epoch()) + "/" +
                       std::to_string(state_->store_id()) + "/" + client_internal::wire_name(*name);
    if (std::ranges::find(t_loading, mark) != t_loading.end()) {
      return make_error(ErrorCode::invalid_argument,
                        "name: this thread is loading " + std::string(key) + " already");
    }
    auto lease = std::make_unique<Lease>(state_);
    Call call(protocol::Op::cached);
    Result<std::shared_ptr<Connection>> connection =
        call_cached(*state_, call, *name, options.timeout);
    if (!connection) return connection.error();
    if (!is_loader(call)) {
      if (Result<void> adopted = lease->adopt(std::move(*connection), call); !adopted) {
        return adopted.error();
      }
      return AnyArray(std::move(lease));
    }

    Loading loading(state_, std::move(*connection), *name, options);
    const LoadingMark loading_mark(std::move(mark));
    AnyArray draft;
    const MakeDraft make = [&](std::string_view dtype, std::span<const std::uint64_t> shape) {
      Result<std::unique_ptr<Lease>> made = loading.make(dtype, shape);
      if (!made) return Result<AnyArray*>(made.error());
      draft = AnyArray(std::move(*made));
      return Result<AnyArray*>(&draft);
    };
    if (Result<void> loaded = run_loader(loader, make); !loaded) return loaded.error();
    if (!loading.is_own()) {
      return make_error(ErrorCode::aborted, "loader: returned in a process that is not the loader");
    }
    if (!draft.valid()) {
      return make_error(ErrorCode::invalid_argument, "loader: returned without a draft");
    }
    if (Result<void> sealed = draft.seal(); !sealed) return sealed.error();
    return draft;
  });
}

}  // namespace shmstore
