#include "tests/support/testing.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace shmstore::testing {
namespace {
int skipped = 0;
}

bool skip_unless(bool condition, const std::string& reason) {
  if (condition) return false;
  ++skipped;
  std::printf("SKIPPED: %s: %s\n", doctest::getContextOptions()->currentTest->m_name,
              reason.c_str());
  return true;
}

int skipped_tests() {
  return skipped;
}

std::size_t scaled(const char* variable, std::size_t usual) {
  const char* text = std::getenv(variable);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : usual;
}

Result<AnyArray> put_bytes(Client& client, std::string_view name, std::size_t size,
                           std::uint8_t value, const CreateOptions& options) {
  const std::uint64_t shape[] = {size};
  const std::vector<std::byte> bytes(size, std::byte{value});
  return client.put_any(name, "|u1", shape, bytes, options);
}

Result<AnyArray> create_bytes(Client& client, std::string_view name, std::size_t size,
                              const CreateOptions& options) {
  const std::uint64_t shape[] = {size};
  return client.create_any(name, "|u1", shape, options);
}

int only_byte(const AnyArray& array) {
  const std::span<const std::byte> bytes(array.data(), array.bytes());
  if (bytes.empty()) return -1;
  // Two comparisons of memory instead of a loop: sanitizer builds read gigabytes this way.
  const bool same = std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
  return same ? std::to_integer<int>(bytes.front()) : -1;
}

void fill(AnyArray& array, std::uint8_t value) {
  std::memset(array.writable_data(), value, array.bytes());
}

void* map_shared(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void unmap_shared(void* memory, std::size_t bytes) {
  ::munmap(memory, bytes);
}

}  // namespace shmstore::testing
