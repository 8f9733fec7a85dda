#include "shmstore/client.hpp"

#include <utility>

#include "client/guarded.hpp"
#include "client/names.hpp"
#include "client/state.hpp"

namespace shmstore {

using client_internal::Call;
using client_internal::guarded;

Client::Client(std::shared_ptr<client_internal::State> state) noexcept : state_(std::move(state)) {}

Result<Client> Client::connect(const ConnectOptions& options) {
  return guarded([&]() -> Result<Client> {
    Result<std::shared_ptr<client_internal::State>> state = client_internal::State::open(options);
    if (!state) return state.error();
    return Client(std::move(*state));
  });
}

Result<void> Client::ping() {
  return guarded([&]() -> Result<void> {
    Call call(protocol::Op::ping);
    Result<std::shared_ptr<client_internal::Connection>> done = state_->call(call);
    if (!done) return done.error();
    return {};
  });
}

std::uint64_t Client::store_id() const noexcept {
  return state_->store_id();
}

const std::string& Client::socket_path() const noexcept {
  return state_->socket_path();
}

Result<std::string> Client::resolve_name(std::string_view name) {
  return guarded([&]() -> Result<std::string> {
    Result<QualifiedName> parsed = client_internal::parse_name(name);
    if (!parsed) return parsed.error();
    return client_internal::wire_name(*parsed);
  });
}

Result<void> Client::check_dtype(const AnyArray& any, const Dtype& wanted) {
  return guarded([&]() -> Result<void> {
    if (any.dtype() == wanted) return {};
    return make_error(ErrorCode::invalid_argument, "dtype: the array has " + any.dtype().text() +
                                                       ", asked for was " + wanted.text());
  });
}

}  // namespace shmstore
