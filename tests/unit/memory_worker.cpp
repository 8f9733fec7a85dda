#include "server/memory_worker.hpp"

#include <doctest/doctest.h>
#include <poll.h>

#include <atomic>
#include <string>

using namespace shmstore::server;

namespace {

using Kind = MemoryWorker::Kind;

/// Lets the worker go on only when told: jobs queue up behind the first.
class Gate {
 public:
  void open() {
    open_.store(true);
    open_.notify_all();
  }
  void wait() const { open_.wait(false); }

 private:
  std::atomic<bool> open_{false};
};

void run_until(MemoryWorker& worker, const std::function<bool()>& done) {
  while (!done()) {
    pollfd ready{worker.completion_fd(), POLLIN, 0};
    REQUIRE(::poll(&ready, 1, 30'000) == 1);
    worker.run_completions();
  }
}

}  // namespace

TEST_CASE("memory worker: create before zero before free, users in turn") {
  MemoryWorker worker;
  Gate gate;
  std::string order;  // the worker's until every job is done
  int done = 0;
  const auto submit = [&](Kind kind, std::uint32_t uid, char mark, int slices) {
    worker.submit({kind, uid,
                   [&order, mark, slices]() mutable {
                     order += mark;
                     return --slices == 0;
                   },
                   [&done] { ++done; }});
  };
  worker.submit({Kind::create, 9,
                 [&gate] {
                   gate.wait();
                   return true;
                 },
                 [&done] { ++done; }});
  submit(Kind::free, 1, 'f', 2);
  submit(Kind::zero, 1, 'z', 1);
  submit(Kind::create, 1, 'a', 3);
  submit(Kind::create, 1, 'b', 1);
  submit(Kind::create, 2, 'c', 2);
  gate.open();
  run_until(worker, [&] { return done == 6; });
  CHECK(order == "acacabzff");
}

TEST_CASE("memory worker: frees are not starved by creates") {
  MemoryWorker worker;
  Gate gate;
  std::string order;
  int done = 0;
  worker.submit({Kind::create, 1,
                 [&] {
                   gate.wait();
                   order += 'c';
                   return order.size() >= 30;
                 },
                 [&done] { ++done; }});
  worker.submit({Kind::free, 1,
                 [&order] {
                   order += 'f';
                   return true;
                 },
                 [&done] { ++done; }});
  gate.open();
  run_until(worker, [&] { return done == 2; });
  CHECK(order.find('f') < 12);
}

TEST_CASE("memory worker: stops with work left, drops it, stops twice") {
  std::atomic<int> slices{0};
  bool done = false;
  {
    MemoryWorker worker;
    worker.submit({Kind::create, 1,
                   [&slices] {
                     ++slices;
                     slices.notify_all();
                     return false;
                   },
                   [&done] { done = true; }});
    slices.wait(0);
    worker.stop();
    worker.stop();
  }
  CHECK(slices > 0);
  CHECK_FALSE(done);
}

TEST_CASE("memory worker: what the kernel does in one go keeps nobody but its like waiting") {
  MemoryWorker worker;
  Gate gate;
  int created = 0, others = 0;
  for (Kind kind : {Kind::seal, Kind::slow_seal, Kind::close}) {
    worker.submit({kind, 1,
                   [&gate] {
                     gate.wait();
                     return true;
                   },
                   [&others] { ++others; }});
  }
  for (Kind kind : {Kind::create, Kind::free}) {
    worker.submit({kind, 2, [] { return true; }, [&created] { ++created; }});
  }
  run_until(worker, [&] { return created == 2; });
  CHECK(others == 0);
  gate.open();
  run_until(worker, [&] { return others == 3; });
}

TEST_CASE("memory worker: of many finished jobs the event loop takes some at a time") {
  MemoryWorker worker;
  constexpr int kJobs = 100;
  std::atomic<int> finished{0};
  int done = 0;
  for (int i = 0; i < kJobs; ++i) {
    worker.submit({Kind::create, 1, [&finished] { return ++finished > 0; }, [&done] { ++done; }});
  }
  while (finished < kJobs) {
  }
  worker.run_completions();
  CHECK(done > 0);
  CHECK(done < kJobs);
  run_until(worker, [&] { return done == kJobs; });
}
