// Runs tests/conformance/behaviours.json through the C++ client.
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include <cstring>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using nlohmann::json;

namespace {

/// `value` as one item of `dtype`.
std::string item_of(const std::string& dtype, const json& value) {
  const auto bytes = [](auto number) {
    return std::string(reinterpret_cast<const char*>(&number), sizeof number);
  };
  if (dtype == "|u1") return bytes(value.get<std::uint8_t>());
  if (dtype == "<i4") return bytes(value.get<std::int32_t>());
  if (dtype == "<i8") return bytes(value.get<std::int64_t>());
  if (dtype == "<f4") return bytes(value.get<float>());
  return bytes(value.get<double>());
}

std::vector<std::byte> filled(const std::string& dtype, const json& shape, const json& value) {
  const std::string item = item_of(dtype, value);
  std::size_t count = 1;
  for (const json& dim : shape) count *= dim.get<std::size_t>();
  std::vector<std::byte> bytes(count * item.size());
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(bytes.data() + i * item.size(), item.data(), item.size());
  }
  return bytes;
}

/// Plays the steps of one scenario. Each operation returns its outcome; what it found is in seen_.
class Player {
 public:
  explicit Player(Client client) : client_(std::move(client)) {}

  void play(const json& step) {
    step_ = step;
    seen_ = json::object();
    const std::string done = kOperations.at(step.at("do").get<std::string>())(*this);
    CHECK(done == step.value("error", "ok"));
    if (done != "ok" || !step.contains("expect")) return;
    for (const auto& [key, wanted] : step.at("expect").items()) {
      CAPTURE(key);
      CHECK(seen_.value(key, json("(missing)")) == wanted);
    }
  }

 private:
  using Operation = std::string (*)(Player&);
  static const std::map<std::string, Operation> kOperations;

  [[nodiscard]] std::string text(const char* key) const { return step_.value(key, ""); }
  [[nodiscard]] std::string name() const { return text("name"); }
  AnyArray& held() { return held_.at(text("of")); }
  [[nodiscard]] std::vector<std::uint64_t> shape() const { return step_.at("shape"); }

  [[nodiscard]] CreateOptions options() const {
    CreateOptions options;
    options.keep = step_.value("keep", false);
    options.replace = step_.value("replace", false);
    options.is_mutable = step_.value("mutable", false);
    options.hard = step_.value("hard", false);
    if (text("order") == "F") options.order = Order::f;
    if (step_.contains("attrs")) options.attrs = step_.at("attrs").dump();
    if (step_.contains("perms")) {
      options.perms = static_cast<std::uint16_t>(std::stoul(text("perms"), nullptr, 8));
    }
    return options;
  }
  [[nodiscard]] Timeout timeout() const {
    return std::chrono::milliseconds(static_cast<int>(1000 * step_.value("timeout", 0.0)));
  }
  [[nodiscard]] std::uint64_t newer_than() const {
    const json wanted = step_.value("newer_than", json(0));
    return wanted.is_string() ? versions_.at(wanted.get<std::string>().substr(1))
                              : wanted.get<std::uint64_t>();
  }

  void see(const AnyArray& array) {
    seen_["dtype"] = array.dtype().text();
    seen_["shape"] = json(std::vector<std::uint64_t>(array.shape().begin(), array.shape().end()));
    if (!step_.contains("expect") || !step_.at("expect").contains("value")) return;
    const json& wanted = step_.at("expect").at("value");
    const std::vector<std::byte> same = filled(array.dtype().text(), seen_["shape"], wanted);
    const bool equal =
        same.size() == array.bytes() && std::memcmp(same.data(), array.data(), same.size()) == 0;
    seen_["value"] = equal ? wanted : json("(another)");
  }

  /// Holds or drops what an operation gave.
  std::string keep_or_drop(Result<AnyArray> array) {
    if (!array) return outcome(array);
    see(*array);
    if (step_.contains("as")) held_[text("as")] = std::move(*array);
    return "ok";
  }

  std::string put() {
    const auto bytes = filled(text("dtype"), step_.at("shape"), step_.at("value"));
    Result<AnyArray> array = client_.put_any(name(), text("dtype"), shape(), bytes, options());
    if (array && options().is_mutable) {
      CHECK(array->state() == State::mutable_);
    }
    return keep_or_drop(std::move(array));
  }
  std::string create() {
    Result<AnyArray> array = client_.create_any(name(), text("dtype"), shape(), options());
    if (array) write(*array);
    return keep_or_drop(std::move(array));
  }
  void write(AnyArray& array) {
    const std::vector<std::uint64_t> dims(array.shape().begin(), array.shape().end());
    const auto bytes = filled(array.dtype().text(), json(dims), step_.at("value"));
    std::memcpy(array.writable_data(), bytes.data(), bytes.size());
  }
  std::string read() {
    AttachOptions attach;
    attach.timeout = timeout();
    attach.newer_than = newer_than();
    if (text("access") == "r+") attach.access = Access::write;
    if (text("access") == "c") attach.access = Access::copy;
    if (text("access") == "x") attach.access = Access::exclusive;
    attach.repair = step_.value("repair", false);
    return keep_or_drop(client_.attach_any(name(), attach));
  }
  std::string info() {
    const auto answer = client_.admin("info", json{{"name", name()}}.dump());
    if (!answer) return outcome(answer);
    seen_ = json::parse(*answer);
    if (step_.contains("save_version")) versions_[text("save_version")] = seen_.at("version");
    return "ok";
  }
  std::string list() {
    const auto arrays = client_.list(text("prefix"));
    if (!arrays) return outcome(arrays);
    seen_["names"] = json::array();
    for (const ArrayInfo& array : *arrays) seen_["names"].push_back(array.name);
    return "ok";
  }
  std::string seal() {
    if (step_.contains("of")) return outcome(held().seal());
    Result<AnyArray> array = client_.attach_any(name(), access(Access::write));
    return array ? outcome(array->seal()) : outcome(array);
  }
  std::string cached() {
    bool loader_failed = false;
    const auto load = [&](const Client::MakeDraft& make) -> Result<void> {
      loader_failed = step_.value("fails", false);
      if (loader_failed) return make_error(ErrorCode::internal, "the loader's own");
      const auto dims = shape();
      Result<AnyArray*> draft = make(text("dtype"), dims);
      if (!draft) return draft.error();
      write(**draft);
      return {};
    };
    Result<AnyArray> array = client_.cached_any(name(), load);
    if (loader_failed) {
      CHECK(describe(array) == "internal: the loader's own");
      return "ok";
    }
    return keep_or_drop(std::move(array));
  }
  std::string keep() {
    std::optional<std::chrono::milliseconds> ttl;
    if (step_.contains("ttl")) ttl = std::chrono::seconds(step_.at("ttl").get<int>());
    return outcome(client_.keep(name(), ttl));
  }
  std::string chmod() { return outcome(client_.chmod(name(), options().perms)); }
  std::string selfcheck() {
    const auto answer = client_.admin("selfcheck");
    return answer && json::parse(*answer).at("clean") == true ? "ok" : "(not clean)";
  }

  Client client_;
  json step_, seen_;
  std::map<std::string, AnyArray> held_;
  std::map<std::string, std::uint64_t> versions_;
};

const std::map<std::string, Player::Operation> Player::kOperations = {
    {"put", [](Player& p) { return p.put(); }},
    {"create", [](Player& p) { return p.create(); }},
    {"read", [](Player& p) { return p.read(); }},
    {"look", [](Player& p) { return p.see(p.held()), std::string("ok"); }},
    {"fill", [](Player& p) { return p.write(p.held()), std::string("ok"); }},
    {"info", [](Player& p) { return p.info(); }},
    {"list", [](Player& p) { return p.list(); }},
    {"wait",
     [](Player& p) { return outcome(p.client_.wait(p.name(), p.newer_than(), p.timeout())); }},
    {"seal", [](Player& p) { return p.seal(); }},
    {"release", [](Player& p) { return outcome(p.held().release()); }},
    {"let_go",
     [](Player& p) { return outcome(p.held().let_go(p.step_.value("half_written", false))); }},
    {"abort", [](Player& p) { return outcome(p.held().release()); }},
    {"delete", [](Player& p) { return outcome(p.client_.remove(p.name())); }},
    {"keep", [](Player& p) { return p.keep(); }},
    {"unkeep", [](Player& p) { return outcome(p.client_.unkeep(p.name())); }},
    {"chmod", [](Player& p) { return p.chmod(); }},
    {"cached", [](Player& p) { return p.cached(); }},
    {"selfcheck", [](Player& p) { return p.selfcheck(); }},
};

bool lists_cpp(const json& drivers) {
  return std::find(drivers.begin(), drivers.end(), "cpp") != drivers.end();
}

}  // namespace

TEST_CASE("conformance: behaviours.json through the C++ client") {
  std::ifstream file(SHMSTORE_TESTS_DIR "/conformance/behaviours.json");
  const json behaviours = json::parse(file);
  for (const json& scenario : behaviours.at("scenarios")) {
    if (!lists_cpp(scenario.at("drivers"))) continue;
    const std::string scenario_name = scenario.at("name");
    CAPTURE(scenario_name);
    DaemonOptions options;
    options.capacity = "64MiB";
    DaemonFixture daemon(options);
    Player player(daemon.connect());
    for (const json& step : scenario.at("steps")) {
      if (step.contains("only") && !lists_cpp(step.at("only"))) continue;
      const std::string text = step.dump();
      CAPTURE(text);
      player.play(step);
    }
  }
}
