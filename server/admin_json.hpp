#pragma once
/// The documents of the admin plane: a struct for each request with its from_json, and what replies
/// are made of.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/json_fields.hpp"
#include "server/registry.hpp"

namespace shmstore::server {

/// {"name"} or {"id", "store_id"?}
struct TargetRequest {
  Target target;
};
/// TARGET + {"ttl_s"?}
struct KeepRequest {
  Target target;
  std::optional<std::uint64_t> ttl_ms;
};
/// TARGET + {"perms"}
struct ChmodRequest {
  Target target;
  std::uint16_t perms = 0;
};
/// {"prefix"?, "uid"?}; a prefix may begin with "~uid/".
struct PrefixRequest {
  std::string prefix;
  std::optional<std::uint32_t> ns_uid;
};
/// PREFIX + {"cursor"?, "limit"?}
struct ListRequest {
  PrefixRequest of;
  std::string cursor;
  std::size_t limit = protocol::kListLimitMax;
};
/// {"uid"?, "bytes_max"?, "arrays_max"?}
struct QuotasRequest {
  std::optional<std::uint32_t> uid;
  std::optional<std::uint64_t> bytes_max;
  std::optional<std::uint64_t> arrays_max;
};
/// {}
struct EmptyRequest {};

// Errors: invalid_argument, the text begins with the key; not_found for an id of another store.
Result<TargetRequest> target_request(const Json& json, std::uint64_t store_id);
Result<KeepRequest> keep_request(const Json& json, std::uint64_t store_id);
Result<ChmodRequest> chmod_request(const Json& json, std::uint64_t store_id);
Result<PrefixRequest> prefix_request(const Json& json);
Result<ListRequest> list_request(const Json& json);
Result<QuotasRequest> quotas_request(const Json& json);
Result<EmptyRequest> empty_request(const Json& json);

/// `name` as `uid` says it: bare in its own namespace, "~uid/name" elsewhere.
[[nodiscard]] std::string name_for(std::uint32_t uid, std::uint32_t ns_uid, std::string_view name);

[[nodiscard]] Json to_json(const BrokenBy& by);
/// INFO, as `uid` sees it. The text: what it has of attrs is copied, and need not be parsed.
[[nodiscard]] std::string array_text(const ArrayView& array, std::uint32_t uid);
[[nodiscard]] Json to_json(const HolderView& holder);
[[nodiscard]] Json to_json(const EventRecord& record, std::uint32_t uid);
/// A row of `status`' uids and the answer of `quotas`.
[[nodiscard]] Json to_json(std::uint32_t uid, const Usage& usage);

}  // namespace shmstore::server
