/// The reserve is in small pieces: what a program has given back lies about in its heap, and is
/// seldom one large piece. Any thread may need it; only the event loop's asks for it back.

#include "server/memory_reserve.hpp"

#include <array>
#include <cstdlib>
#include <mutex>
#include <new>

namespace shmstore::server {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{32} << 10U;
constexpr std::size_t kPieces = kMemoryReserveBytes / kPieceBytes;

struct Reserve {
  std::mutex mutex;  // guards what follows
  std::array<void*, kPieces> pieces{};
  std::size_t held = 0;
  bool wanted = false;
};

Reserve& reserve() noexcept {
  static Reserve the_one;
  return the_one;
}

/// REQUIRES: the mutex is held.
bool fill(Reserve& mine) noexcept {
  while (mine.held < kPieces) {
    void* piece = std::malloc(kPieceBytes);
    if (piece == nullptr) return false;
    mine.pieces[mine.held++] = piece;
  }
  return true;
}

/// Called by operator new when malloc has failed; it tries again when this returns. One piece at a
/// time: so many allocations may fail before the next request.
void give_piece() {
  Reserve& mine = reserve();
  const std::lock_guard lock(mine.mutex);
  if (mine.held == 0) throw std::bad_alloc();
  std::free(mine.pieces[--mine.held]);
}

}  // namespace

void hold_memory_reserve() noexcept {
  Reserve& mine = reserve();
  const std::lock_guard lock(mine.mutex);
  mine.wanted = true;
  (void)fill(mine);
  std::set_new_handler(&give_piece);
}

bool memory_is_short() noexcept {
  Reserve& mine = reserve();
  const std::lock_guard lock(mine.mutex);
  return mine.wanted && mine.held < kPieces && !fill(mine);
}

}  // namespace shmstore::server
