// Who pays for what, and until when: records, memory that outlives its array, what others keep.
#include <malloc.h>

#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

Limits few(std::uint64_t arrays) {
  Limits limits = test_limits();
  limits.user_arrays_max = arrays;
  return limits;
}

CreateSpec readable(std::string name) {
  CreateSpec spec = Store::spec(std::move(name));
  spec.perms = 0644;
  return spec;
}

Usage usage(const Store& store, std::uint32_t uid) {
  return store.registry.quota().usage(uid);
}

/// Alice's array that everybody may read.
ArrayId publish(Store& store, SessionId alice, const std::string& name) {
  const ArrayId id = store.granted(store.create(alice, readable(name)));
  store.as<Sealed>(store.seal(alice, id));
  return id;
}

CreateSpec wordy(int number) {
  CreateSpec spec = Store::spec(std::string(240, 'n') + std::to_string(number), 0);
  std::string fields = "[";
  while (fields.size() < 8'000) fields += "('f" + std::to_string(fields.size()) + "', '<f8'), ";
  spec.dtype = Dtype::parse(fields + "('z', '<f8')]").value();
  spec.attrs = "{\"k\":\"" + std::string(4'000, 'x') + "\"}";
  return spec;
}

}  // namespace

TEST_CASE("charge: arrays without bytes are paid for by what their records take") {
  Limits limits = test_limits();
  limits.user_bytes_max = 100'000;
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  std::uint64_t made = 0;
  ErrorCode code = ErrorCode::internal;
  std::string text;
  for (; made < 1'000; ++made) {
    const RequestId request = store.create(alice, wordy(static_cast<int>(made)));
    code = store.code(request);
    text = store.error(request).text;
    if (code == ErrorCode::quota_exceeded) break;
  }
  CHECK(code == ErrorCode::quota_exceeded);
  CHECK_MESSAGE(text.find("for the record") != std::string::npos, text);
  CHECK(made == 100'000 / record_bytes(wordy(0)));
  CHECK(usage(store, kAlice).bytes == made * record_bytes(wordy(0)));
  CHECK(store.registry.counts().record_bytes == usage(store, kAlice).bytes);
  store.leave(alice);
  CHECK(usage(store, kAlice).bytes == 0);
}

TEST_CASE("charge: a record takes no more than what is charged for it") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
  MESSAGE("mallinfo2 is of glibc's own allocator");
#else
  constexpr std::uint64_t kArrays = 500;
  for (const bool long_words : {false, true}) {
    Store store;
    const SessionId alice = store.join(kAlice);
    const auto spec = [&](std::uint64_t n) {
      return long_words ? wordy(static_cast<int>(n)) : Store::spec("a" + std::to_string(n), 0);
    };
    Effects effects;
    effects.reserve(10 * kArrays);
    const std::size_t before = ::mallinfo2().uordblks;
    for (std::uint64_t n = 0; n < kArrays; ++n) {
      store.registry.create(alice, 1'000'000 + n, spec(n), store.now, effects);
    }
    effects.clear();
    const std::size_t taken = ::mallinfo2().uordblks - before;
    const std::uint64_t charged = usage(store, kAlice).bytes;
    MESSAGE("taken " << taken / kArrays << ", charged " << charged / kArrays << " bytes an array");
    CHECK(charged <= kArrays * record_bytes(spec(100)));
    CHECK(taken <= charged);
  }
#endif
}

TEST_CASE("charge: memory that outlives its array counts as its maker's until the kernel has it") {
  Store store(few(3));
  store.hold_freed = true;
  const SessionId alice = store.join(kAlice);
  for (int n = 0; n < 3; ++n) store.release(alice, store.put(alice, ""), Access::read);
  CHECK(usage(store, kAlice).arrays == 0);
  CHECK(usage(store, kAlice).segments == 3);
  const Error error = store.error(store.create(alice, Store::spec("")));
  CHECK(error.code == ErrorCode::quota_exceeded);
  CHECK_MESSAGE(error.text.starts_with("segments: uid 1000 uses 3 of 3"), error.text);
  CHECK(error.text.find("still maps") != std::string::npos);
  store.granted(store.create(alice, Store::spec("empty", 0)));
  store.reclaim();
  store.granted(store.create(alice, Store::spec("")));
}

TEST_CASE("charge: whoever keeps another's memory after its release pays for it") {
  Store store;
  store.hold_freed = true;
  const SessionId alice = store.join(kAlice);
  const SessionId bob = store.join(kBob);
  const ArrayId id = publish(store, alice, "x");
  store.granted(store.attach(bob, by_id(id)));
  store.release(bob, id, Access::read);
  REQUIRE(store.remove(alice, with_id(id)).has_value());
  store.release(alice, id, Access::read);
  CHECK(usage(store, kAlice).bytes == kPageBytes);  // Nobody has asked the kernel yet.
  store.still_held();
  CHECK(usage(store, kAlice).bytes == 0);
  CHECK(usage(store, kAlice).segments == 0);
  CHECK(usage(store, kBob).bytes == kPageBytes);
  CHECK(usage(store, kBob).segments == 1);
  store.still_held();  // It may be asked again and again.
  CHECK(usage(store, kBob).bytes == kPageBytes);
  store.reclaim();
  CHECK(usage(store, kBob).bytes == 0);
  CHECK(store.registry.quota().bytes_used() == 0);
}

TEST_CASE("charge: what nobody else has mapped stays its owner's") {
  Store store;
  store.hold_freed = true;
  const SessionId alice = store.join(kAlice);
  const SessionId bob = store.join(kBob);
  const ArrayId id = publish(store, alice, "x");
  store.granted(store.attach(bob, by_id(id, Access::hold)));
  store.release(bob, id, Access::hold);
  store.release(alice, id, Access::read);
  store.still_held();
  CHECK(usage(store, kAlice).bytes == kPageBytes);
  CHECK(usage(store, kBob).bytes == 0);
}

TEST_CASE("charge: a deleted array that another holds is none of its owner's") {
  Store store(few(2));
  const SessionId alice = store.join(kAlice);
  const SessionId bob = store.join(kBob);
  for (const char* name : {"a", "b"}) {
    const ArrayId id = publish(store, alice, name);
    store.granted(store.attach(bob, by_id(id)));
    REQUIRE(store.remove(alice, with_id(id)).has_value());
    store.release(alice, id, Access::read);
  }
  CHECK(usage(store, kAlice).arrays == 0);
  CHECK(usage(store, kAlice).segments == 0);
  CHECK(usage(store, kAlice).bytes == 0);
  CHECK(usage(store, kBob).arrays == 2);
  CHECK(usage(store, kBob).segments == 2);
  CHECK(usage(store, kBob).bytes == 2 * (kPageBytes + record_bytes(readable("a"))));
  store.put(alice, "c");
  CHECK(store.code(store.create(bob, Store::spec("d"))) == ErrorCode::quota_exceeded);
  store.leave(bob);
  CHECK(usage(store, kBob).arrays == 0);
}

TEST_CASE("charge: a create that waits counts for what is kept of it, a loader's role as a wait") {
  Limits limits = test_limits();
  limits.capacity = 120'000;
  limits.user_waits_max = 32;
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  store.draft(alice, "all", 0);
  CreateSpec big = wordy(0);
  big.bytes = 100'000;
  big.shape = {11};
  big.timeout_ms = -1;
  const RequestId waiting = store.create(alice, big);
  CHECK(store.open(waiting));
  const std::uint64_t charge = 1 + record_bytes(big) / 1024;
  CHECK(usage(store, kAlice).waits == charge);
  store.as<LoaderRole>(store.cached(alice, own("k")));
  CHECK(usage(store, kAlice).waits == charge + 1);
  big.name.name += "2";
  big.name.name.erase(0, 5);
  store.create(alice, big);
  big.name.name += "3";
  const RequestId refused = store.create(alice, big);
  CHECK(store.code(refused) == ErrorCode::quota_exceeded);
  CHECK(store.error(refused).text.starts_with("waits:"));
  store.leave(alice);
  CHECK(usage(store, kAlice).waits == 0);
}
