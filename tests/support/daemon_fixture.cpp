#include "tests/support/daemon_fixture.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <doctest/doctest.h>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "tests/support/proc.hpp"

namespace shmstore::testing {
namespace {

bool accepts(const std::string& path) {
  const UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

}  // namespace

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  path_ = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/shmtest-XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_);
  ::chmod(path_.c_str(), 0755);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string>& finished_logs() {
  static std::vector<std::string> logs;
  return logs;
}

DaemonFixture::DaemonFixture(DaemonOptions options)
    : options_(std::move(options)), socket_(folder_.file("socket")) {
  start();
}

DaemonFixture::~DaemonFixture() {
  if (!stopped_) {
    const int code = stop();
    CHECK_MESSAGE(code == 0, "the daemon ended with " << code);
  }
  finished_logs().push_back(log());
}

void DaemonFixture::start() {
  std::vector<std::string> command = {find_program("SHMSTORED", "shmstored"), "--socket", socket_};
  if (!options_.capacity.empty()) {
    command.insert(command.end(), {"--capacity", options_.capacity});
  }
  command.insert(command.end(), options_.arguments.begin(), options_.arguments.end());
  std::vector<std::string> environment = options_.environment;
  environment.emplace_back(options_.invariants ? "SHMSTORE_SELFCHECK=1" : "SHMSTORE_SELFCHECK=0");
  process_.reset();
  stopped_ = false;
  process_.emplace(Child::run(command, environment, [this] {
    const int log_fd = ::open(folder_.file("log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    ::dup2(log_fd, STDERR_FILENO);
    if (options_.before_exec) options_.before_exec();
  }));
  if (!options_.wait_ready) return;
  const bool ready = wait_until([this] { return process_->ended() || accepts(socket_); });
  if (!ready || process_->ended()) {
    throw std::runtime_error("the daemon did not start: " + log());
  }
  if (options_.open_to_all) ::chmod(socket_.c_str(), 0666);
}

int DaemonFixture::stop() {
  stopped_ = true;
  process_->kill(SIGTERM);
  return process_->wait();
}

void DaemonFixture::kill() {
  stopped_ = true;
  process_->kill(SIGKILL);
  process_->wait();
}

std::string DaemonFixture::log() const {
  std::ifstream file(folder_.file("log"));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Client DaemonFixture::connect(ConnectOptions options) const {
  return try_connect(std::move(options)).value();
}

Result<Client> DaemonFixture::try_connect(ConnectOptions options) const {
  options.socket = socket_;
  return Client::connect(options);
}

std::string DaemonFixture::selfcheck() const {
  Client client = connect();
  Result<std::string> answer = client.admin("selfcheck");
  if (!answer) return answer.error().text;
  return answer->find("\"clean\":true") != std::string::npos ? "" : *answer;
}

bool DaemonFixture::settles_empty(std::uint64_t sessions) const {
  Client client = connect();
  const bool settled = wait_until([&] {
    const Result<StoreStatus> status = client.status();
    return status && status->arrays == 0 && status->used == 0 && status->sessions == sessions + 1;
  });
  if (!settled) {
    MESSAGE("still there: " << client.admin("status").value() << client.admin("list").value());
  }
  const std::string problems = selfcheck();
  if (!problems.empty()) MESSAGE("selfcheck: " << problems);
  return settled && problems.empty();
}

std::size_t DaemonFixture::settled_fds(std::uint64_t sessions) const {
  Client client = connect();
  const bool settled = wait_until([&] {
    const Result<StoreStatus> status = client.status();
    return status && status->sessions == sessions + 1;
  });
  CHECK_MESSAGE(settled, "sessions stay");
  return fd_count(pid());
}

bool DaemonFixture::settles_fds(std::size_t count) const {
  Client client = connect();  // counted then, counted now
  const bool settled = wait_until([&] { return fd_count(pid()) == count; });
  if (!settled) MESSAGE("descriptors: " << fd_count(pid()) << ", expected " << count);
  return settled;
}

}  // namespace shmstore::testing
