#include "tests/unit/model_pair.hpp"

#include <algorithm>
#include <set>
#include <vector>

namespace shmstore::model {

server::Limits tight_limits() {
  server::Limits limits;
  limits.capacity = 21 * server::kPageBytes;
  limits.user_bytes_max = 14 * server::kPageBytes;
  limits.user_arrays_max = 10;
  limits.segments_max = 12;
  limits.user_segments_max = 9;
  return limits;
}

void Pair::compare(const Fx& fx) {
  learn_ids(fx);
  compare_effects(fx);
  for (const auto& [key, array] : model_.arrays) compare_array(key, array);
  compare_sums();
  for (const std::string& problem : registry_.selfcheck()) expect(false, problem);
  expect(!model_.somebody_waits_in_vain(), "a create waits although there is room");
  model_.answers.clear();
  model_.events.clear();
  model_.allocations.clear();
  model_.frees.clear();
  model_.hard_seals.clear();
}

// New arrays become known by the effects, in the order of their creation.
void Pair::learn_ids(const Fx& fx) {
  std::size_t allocation = 0;
  for (const server::Effect& effect : fx) {
    if (const auto* wanted = std::get_if<server::AllocateSegment>(&effect)) {
      if (allocation >= model_.allocations.size()) return expect(false, "an allocation too many");
      const Key key = model_.allocations[allocation++];
      ids_[key] = wanted->id;
      allocations_.push_back(key);
    } else if (const auto* done = std::get_if<server::Completion>(&effect)) {
      const auto* grant = std::get_if<server::Grant>(&done->result);
      const auto answer = model_.answers.find(done->request);
      if (grant == nullptr || answer == model_.answers.end()) continue;
      if (answer->second.kind == Kind::grant) {
        ids_.emplace(answer->second.array, grant->id);
      }
    }
  }
  expect(allocation == model_.allocations.size(), "an allocation is missing");
}

void Pair::compare_effects(const Fx& fx) {
  std::multiset<Event> events;
  std::multiset<Key> freed, hard;
  std::map<Request, int> answered;
  for (const server::Effect& effect : fx) {
    if (const auto* done = std::get_if<server::Completion>(&effect)) {
      expect(++answered[done->request] == 1, "answered twice");
      compare_answer(*done);
    } else if (const auto* free = std::get_if<server::FreeSegment>(&effect)) {
      freed.insert(segments_.at(free->segment));
      freed_.push_back(free->segment);
    } else if (const auto* seal = std::get_if<server::HardSealSegment>(&effect)) {
      hard.insert(key_of(seal->id));
      hard_seals_.push_back(key_of(seal->id));
    } else if (const auto* event = std::get_if<server::EventRecord>(&effect)) {
      events.emplace(std::string(event->event), event->ns_uid, event->name, key_of(event->id),
                     event->version, event->state);
    }
  }
  for (const auto& [request, answer] : model_.answers) {
    expect(answered.contains(request), "no answer to request " + std::to_string(request));
  }
  expect(freed == std::multiset<Key>(model_.frees.begin(), model_.frees.end()), "freed memory");
  expect(hard == std::multiset<Key>(model_.hard_seals.begin(), model_.hard_seals.end()),
         "hard seals");
  expect(events == std::multiset<Event>(model_.events.begin(), model_.events.end()), "events");
}

Key Pair::key_of(ArrayId id) const {
  for (const auto& [key, known] : ids_) {
    if (known == id) return key;
  }
  return -1;
}

void Pair::compare_answer(const server::Completion& done) {
  const auto found = model_.answers.find(done.request);
  const std::string who = "request " + std::to_string(done.request) + ": ";
  if (found == model_.answers.end()) return expect(false, who + "should not be answered");
  const Answer& should = found->second;
  if (const auto* error = std::get_if<Error>(&done.result)) {
    expect(should.kind == Kind::error && should.code == error->code,
           who + "error " + std::string(to_string(error->code)) + " (" + error->text + ")");
  } else if (const auto* grant = std::get_if<server::Grant>(&done.result)) {
    expect(should.kind == Kind::grant && ids_.at(should.array) == grant->id &&
               should.access == grant->access && should.descriptor == grant->send_descriptor,
           who + "grant of " + std::to_string(key_of(grant->id)));
  } else if (const auto* sealed = std::get_if<server::Sealed>(&done.result)) {
    expect(should.kind == Kind::sealed && ids_.at(should.array) == sealed->id &&
               should.version == sealed->version && should.seal == sealed->seal &&
               should.state == sealed->state,
           who + "sealed");
  } else if (const auto* waited = std::get_if<server::Waited>(&done.result)) {
    expect(should.kind == Kind::waited && ids_.at(should.array) == waited->id &&
               should.version == waited->version && should.state == waited->state,
           who + "waited");
  } else if (const auto* handle = std::get_if<server::HandedOver>(&done.result)) {
    expect(should.kind == Kind::handed_over && should.handle == handle->number, who + "handle");
  } else if (std::holds_alternative<server::LoaderRole>(done.result)) {
    expect(should.kind == Kind::loader, who + "loader");
  } else {
    expect(should.kind == Kind::done, who + "done");
  }
}

void Pair::compare_array(Key key, const Array& array) {
  const std::string who = "array " + std::to_string(key) + ": ";
  if (!ids_.contains(key)) return expect(false, who + "never seen");
  const std::optional<server::ArrayView> view = registry_.find(ids_.at(key));
  if (!view) return expect(false, who + "is gone");
  expect(view->state == array.state, who + "state " + std::string(to_string(view->state)));
  expect(view->seal == array.seal, who + "seal");
  expect(view->version == array.version, who + "version " + std::to_string(view->version));
  expect(view->name == (array.named ? array.spec.name.name : ""), who + "name");
  expect(view->ns_uid == array.spec.name.uid && view->uid == array.owner, who + "owner");
  expect(view->perms == array.spec.perms, who + "perms");
  expect(view->leases == array.leases.size(), who + "leases");
  std::uint64_t in_flight = 0;
  for (const Lease& lease : array.leases) in_flight += lease.session == 0 ? lease.on_the_way : 0;
  expect(view->in_flight == in_flight, who + "handles in flight");
  expect(view->kept == array.kept, who + "kept");
  expect((view->segment != 0) == array.memory, who + "memory");
  const bool mortal = array.ttl_at != kNever;
  expect(view->ttl_left_ms.has_value() == mortal, who + "has a ttl");
  const std::int64_t left = std::max<std::int64_t>(0, array.ttl_at - now_.boot_ms);
  if (mortal) expect(view->ttl_left_ms.value_or(-1) == left, who + "ttl");
}

void Pair::compare_sums() {
  const server::RegistryCounts counts = registry_.counts();
  expect(counts.arrays == model_.arrays.size(), "arrays in all");
  expect(counts.sessions == model_.sessions.size(), "sessions");
  expect(counts.segments == model_.segments(), "segments");
  expect(counts.pinned_segments == model_.pinned.size(), "pinned segments");
  expect(counts.record_bytes == model_.records(), "bytes of records");
  expect(counts.waits == model_.requests_open(), "open requests");
  for (const std::uint32_t uid : {0U, 1000U, 1001U, 1002U}) {
    const server::Usage usage = registry_.quota().usage(uid);
    const std::string who = "uid " + std::to_string(uid) + ": ";
    expect(usage.bytes == model_.bytes(uid), who + "bytes");
    expect(usage.arrays == model_.count(uid), who + "arrays");
    expect(usage.segments == model_.segments(uid), who + "segments");
    expect(usage.leases == model_.leases(uid), who + "leases");
    expect(usage.waits == model_.waiting(uid), who + "waits");
  }
  // Retries of seals have timers too, which the model does not follow beyond their arrays.
  const std::optional<std::int64_t> due = registry_.next_deadline_ms();
  const std::optional<std::int64_t> should = model_.next_deadline();
  expect(due == should ||
             (due && *due <= now_.boot_ms + kSealRetryMs && *due <= should.value_or(*due)),
         "next deadline");
}

}  // namespace shmstore::model
