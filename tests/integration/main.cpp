// Entry of integration_tests: doctest, plus what all tests need around them: a watchdog per test,
// the daemons' logs when one fails, a count of skipped tests. With --scripted-client or
// --exclusive-client the program is the victim of a kill-point test instead.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/integration/scripted_client.hpp"
#include "tests/support/testing.hpp"

namespace {

using namespace shmstore::testing;

// A test that hangs is ended; no test is judged by how long it takes.
constexpr unsigned kTestSecondsMax = 600;

[[noreturn]] void on_watchdog(int) {
  constexpr std::string_view kText = "watchdog: this test hangs\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText.data(), kText.size());
  ::_exit(124);
}

doctest::TestRunStats last_run;

/// Shows the logs of a failed test's daemons, and keeps the counts of the run.
class LogListener : public doctest::IReporter {
 public:
  explicit LogListener(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override { last_run = stats; }
  void test_case_start(const doctest::TestCaseData& data) override {
    finished_logs().clear();
    if (std::getenv("SHMSTORE_TEST_VERBOSE") != nullptr) std::printf("test: %s\n", data.m_name);
    std::fflush(stdout);  // a forked child must not print it again
    ::alarm(kTestSecondsMax);
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    ::alarm(0);
    if (stats.testCaseSuccess) return;
    for (const std::string& log : finished_logs()) {
      std::printf("---- log of the daemon\n%s----\n", log.c_str());
    }
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("daemon-logs", 1, LogListener);

/// doctest knows no test that says at run time that it cannot run here; its summary line once
/// more, with those counted.
void print_summary() {
  const auto skipped = static_cast<unsigned>(skipped_tests());
  const unsigned failed = last_run.numTestCasesFailed;
  const unsigned run = last_run.numTestCasesPassingFilters;
  std::printf("[doctest] test cases: %u | %u passed | %u failed | %u skipped\n", run,
              run - failed - skipped, failed,
              skipped + last_run.numTestCases - last_run.numTestCasesPassingFilters);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--scripted-client") {
    return run_scripted_client(argv[2]);
  }
  if (argc == 4 && std::string_view(argv[1]) == "--exclusive-client") {
    return run_exclusive_client(argv[2], argv[3]);
  }
  struct sigaction watchdog {};
  watchdog.sa_handler = on_watchdog;
  ::sigaction(SIGALRM, &watchdog, nullptr);
  ::unsetenv("SHMSTORE_SOCKET");
  doctest::Context context(argc, argv);
  const int code = context.run();
  if (skipped_tests() > 0) print_summary();
  return code;
}
