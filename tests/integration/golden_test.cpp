// Plays every transcript of tests/golden against a daemon of its own.
#include <filesystem>
#include <fstream>

#include "tests/integration/golden_script.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

std::vector<std::filesystem::path> transcripts() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(SHMSTORE_TESTS_DIR "/golden")) {
    if (entry.path().extension() == ".wire") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void play_file(const std::filesystem::path& path) {
  DaemonFixture daemon;
  {
    GoldenScript script(daemon.socket());
    std::ifstream file(path);
    int number = 0;
    for (std::string line; std::getline(file, line);) {
      ++number;
      std::string problem;
      try {
        problem = script.play(line);
      } catch (const std::exception& error) {
        problem = error.what();
      }
      if (problem.empty()) continue;
      FAIL_CHECK(path.filename().string(), ":", number, ": ", line, "\n  ", problem);
      break;  // what follows depends on it
    }
  }
  CHECK(daemon.settles_empty());
}

}  // namespace

TEST_CASE("golden: every transcript of the wire is answered as written") {
  const auto paths = transcripts();
  CHECK(paths.size() >= 8);
  for (const auto& path : paths) {
    CAPTURE(path.filename().string());
    play_file(path);
  }
}
