#pragma once
/// Memory put by for the moment in which the daemon gets no more: an allocation that fails in the
/// midst of a request takes it and succeeds, so that nothing is left half done. Until the reserve
/// is there again, what would need more memory is refused at the door.

#include <cstddef>

namespace shmstore::server {

/// More than one request allocates: one event may answer all waits of a user, some hundred bytes
/// each.
inline constexpr std::size_t kMemoryReserveBytes = std::size_t{8} << 20U;

/// Takes the reserve and becomes the new-handler of the process. Once, before other threads.
void hold_memory_reserve() noexcept;

/// True while the reserve is used up, wholly or in part, and cannot be had again. Always false
/// where nobody holds one.
[[nodiscard]] bool memory_is_short() noexcept;

}  // namespace shmstore::server
