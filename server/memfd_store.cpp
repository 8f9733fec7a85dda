/// Life of a segment: made and backed by pages (on the worker when that takes long) → live → given
/// up by the registry (released) → nobody has a description of it, says the kernel (freeing) → its
/// pages are back. It stays in `segments_`, and its owner charged, until the very end.
///
/// The original descriptor never leaves the process, and no page is punched while anybody could
/// have the file mapped: whoever keeps a mapping sees the bytes it had.

#include "server/memfd_store.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <new>
#include <utility>

namespace shmstore::server {
namespace {

/// Work up to here is done at once, in some 0.1 ms: handing it over would cost as much.
constexpr std::uint64_t kInlineBytes = std::uint64_t{256} << 10U;
constexpr std::uint64_t kSliceBytes = std::uint64_t{1} << 20U;
constexpr std::uint64_t kHugeSliceBytes = std::uint64_t{8} << 20U;
/// How much a growth adds before it asks again whether there is room.
constexpr std::uint64_t kRoomCheckBytes = std::uint64_t{16} << 20U;

/// A hard seal that takes longer than this has met pinned pages: the kernel waits for them, up to
/// 150 ms. For so long the user's next ones are expected to, too.
constexpr std::chrono::milliseconds kSlowSeal{20};
constexpr std::chrono::seconds kSlowFor{60};

std::string name_of(SegmentId id) {
  return "segment " + std::to_string(id);
}

}  // namespace

MemfdStore::MemfdStore(MemoryWorker& worker, Admission& admission, const LeaseProbe& probe,
                       std::uint64_t segments_max)
    : worker_(worker),
      admission_(admission),
      probe_(probe),
      segments_max_(segments_max),
      huge_pages_(huge_pages_in_force()) {}

void MemfdStore::allocate(std::uint64_t ticket, std::uint32_t uid, std::uint64_t bytes,
                          Allocated done) {
  const std::uint64_t length = round_up(bytes, kPageBytes);
  if (segments() >= segments_max_) {
    return done(
        make_error(ErrorCode::no_capacity, "segments: all " + std::to_string(segments_max_) +
                                               " that the daemon has descriptors for are in use"));
  }
  if (Result<void> admitted = admission_.admit(length); !admitted) return done(admitted.error());
  Result<UniqueFd> made = make_memfd(length);
  if (!made) {
    admission_.finish(length);
    return done(made.error());
  }
  auto fd = std::make_shared<const UniqueFd>(std::move(*made));
  if (length <= kInlineBytes) {
    const Result<void> populated = populate(fd->get(), 0, length, huge_pages_);
    admission_.finish(length);
    if (!populated) return done(populated.error());
    return done(add(std::move(fd), uid, length));
  }
  auto growth = std::make_shared<Growth>();
  growth->fd = std::move(fd);
  growth->bytes = length;
  growths_.emplace(ticket, growth);
  grow_on_worker(ticket, uid, growth, std::move(done));
}

void MemfdStore::grow_on_worker(std::uint64_t ticket, std::uint32_t uid,
                                const std::shared_ptr<Growth>& growth, Allocated done) {
  MemoryWorker::Job job;
  job.kind = MemoryWorker::Kind::create;
  job.uid = uid;
  job.slice = [this, growth] { return grow_slice(*growth); };
  job.done = [this, ticket, uid, growth, done = std::move(done)] {
    growths_.erase(ticket);
    admission_.finish(growth->bytes);
    if (!growth->outcome) return done(growth->outcome.error());
    done(add(growth->fd, uid, growth->bytes));
  };
  worker_.submit(std::move(job));
}

/// On the worker. True when the growth is complete, or has failed and its pages are gone again.
bool MemfdStore::grow_slice(Growth& growth) const try {
  const std::uint64_t slice = huge_pages_ == HugePages::never ? kSliceBytes : kHugeSliceBytes;
  const std::uint64_t bytes = std::min(slice, growth.bytes - growth.populated);
  if (!growth.outcome) {
    // On the way back.
  } else if (growth.cancelled.load()) {
    growth.outcome = make_error(ErrorCode::no_capacity, "the allocation was given up");
  } else if (growth.populated % kRoomCheckBytes == 0 && admission_.read_room().bytes < bytes) {
    growth.outcome = make_error(ErrorCode::no_capacity,
                                "memory: the " + admission_.read_room().bound +
                                    " has run out of room while the array was pre-faulted");
  } else {
    growth.touched = growth.populated + bytes;
    growth.outcome = populate(growth.fd->get(), growth.populated, bytes, huge_pages_);
    if (growth.outcome) growth.populated += bytes;
  }
  if (growth.outcome) return growth.populated == growth.bytes;
  // Given back here, slice by slice, so that the event loop closes an empty file.
  const std::uint64_t back = std::min(slice, growth.touched);
  growth.touched -= back;
  if (back != 0) (void)punch(growth.fd->get(), growth.touched, back);
  return growth.touched == 0;
} catch (const std::bad_alloc&) {
  growth.outcome = make_error(ErrorCode::no_capacity, "memory");
  return growth.touched == 0;
}

/// Its pages come as the heap grows, not at once: nothing stays pending.
Result<void> MemfdStore::admit_record(std::uint64_t bytes) {
  Result<void> admitted = admission_.admit(bytes);
  if (admitted) admission_.finish(bytes);
  return admitted;
}

void MemfdStore::cancel(std::uint64_t ticket) {
  const auto found = growths_.find(ticket);
  if (found != growths_.end()) found->second->cancelled.store(true);
}

SegmentId MemfdStore::add(std::shared_ptr<const UniqueFd> fd, std::uint32_t uid,
                          std::uint64_t bytes) {
  segments_.emplace(++last_id_, Segment{std::move(fd), uid, bytes, Phase::live, false});
  return last_id_;
}

Result<UniqueFd> MemfdStore::open(SegmentId id, bool writable) {
  const auto found = segments_.find(id);
  if (found == segments_.end() || found->second.phase != Phase::live) {
    return make_error(ErrorCode::not_found, "this segment is gone");
  }
  const int fd = found->second.fd->get();
  if (Result<void> checked = writable ? check_writable(fd) : Result<void>(); !checked) {
    return checked.error();
  }
  Result<UniqueFd> fresh = reopen(fd, writable);
  if (fresh) probe_.prepare(fresh->get());
  return fresh;
}

/// On the worker even for small ones: the kernel waits up to 150 ms for pages that a holder pins.
/// One of a user is under way at a time, and a user who has pinned pages waits among such users
/// only, so that others' seals meet one such wait a minute at most.
void MemfdStore::seal_hard(SegmentId id, HardSealed done) {
  const auto found = segments_.find(id);
  if (found == segments_.end()) {
    return done(make_error(ErrorCode::not_found, "this segment is gone"));
  }
  found->second.sealing = true;
  const std::uint32_t uid = found->second.uid;
  std::deque<Sealing>& line = sealings_[uid];
  line.push_back({id, std::move(done)});
  if (line.size() == 1) seal_next(uid);
}

void MemfdStore::seal_next(std::uint32_t uid) {
  const auto now = std::chrono::steady_clock::now();
  std::erase_if(slow_until_, [now](const auto& slow) { return slow.second <= now; });
  const Sealing& next = sealings_.at(uid).front();
  struct Answer {
    Result<void> outcome;
    bool slow = false;
  };
  auto answer = std::make_shared<Answer>();
  MemoryWorker::Job job;
  job.kind = slow_until_.contains(uid) ? MemoryWorker::Kind::slow_seal : MemoryWorker::Kind::seal;
  job.uid = uid;
  job.slice = [fd = segments_.at(next.id).fd, answer] {
    const auto start = std::chrono::steady_clock::now();
    try {
      answer->outcome = seal_against_writing(fd->get());
    } catch (const std::bad_alloc&) {
      answer->outcome = make_error(ErrorCode::no_capacity, "memory");
    }
    answer->slow = !answer->outcome && std::chrono::steady_clock::now() - start > kSlowSeal;
    return true;
  };
  job.done = [this, uid, answer] {
    const auto line = sealings_.find(uid);
    const Sealing done = std::move(line->second.front());
    line->second.pop_front();
    if (answer->slow) slow_until_[uid] = std::chrono::steady_clock::now() + kSlowFor;
    if (line->second.empty()) {
      sealings_.erase(line);
    } else {
      seal_next(uid);
    }
    Segment& segment = segments_.at(done.id);
    segment.sealing = false;
    segment.hard = segment.hard || answer->outcome.has_value();
    done.done(answer->outcome);
  };
  worker_.submit(std::move(job));
}

void MemfdStore::release(SegmentId id, bool ask_now) {
  const auto found = segments_.find(id);
  if (found == segments_.end() || found->second.phase != Phase::live) return;
  found->second.phase = Phase::released;
  if (!ask_now) {
    unasked_.push_back(id);
    freeing_bytes_ += found->second.bytes;
  } else if (!start_freeing(id, found->second)) {
    released_.push_back(id);
    if (on_pinned_) on_pinned_(id);
  }
}

std::uint64_t MemfdStore::probe_released(std::size_t limit, std::uint64_t bytes_max) {
  std::uint64_t freed = 0;
  const std::uint64_t before = freed_at_once_;
  const auto may_go_on = [&] { return limit > 0 && freed_at_once_ - before < bytes_max; };
  std::size_t old = released_.size();
  for (; may_go_on() && !unasked_.empty(); --limit) {
    const SegmentId first = unasked_.front();
    const std::uint64_t bytes = segments_.at(first).bytes;
    freeing_bytes_ -= bytes;
    const std::uint64_t got = probe_first(unasked_);
    freed += got;
    if (got == 0 && on_pinned_) on_pinned_(first);
  }
  for (; may_go_on() && old > 0; --limit, --old) freed += probe_first(released_);
  return freed;
}

/// Returns the bytes of the first segment in line if it is free; else it goes to the end of
/// `released_`.
std::uint64_t MemfdStore::probe_first(std::deque<SegmentId>& line) {
  const SegmentId id = line.front();
  line.pop_front();
  Segment& segment = segments_.at(id);
  const std::uint64_t bytes = segment.bytes;
  if (start_freeing(id, segment)) return bytes;
  released_.push_back(id);
  return 0;
}

/// True when nobody has the segment: it is gone, or on its way.
bool MemfdStore::start_freeing(SegmentId id, Segment& segment) {
  if (segment.sealing || !probe_.is_free(segment.fd->get())) return false;
  segment.phase = Phase::freeing;
  if (segment.bytes <= kInlineBytes) {
    freed_at_once_ += segment.bytes;
    forget(id);
    return true;
  }
  freeing_bytes_ += segment.bytes;
  struct Shrinking {
    std::shared_ptr<const UniqueFd> fd;
    std::uint64_t left = 0;
  };
  auto shrinking = std::make_shared<Shrinking>(Shrinking{std::move(segment.fd), segment.bytes});
  MemoryWorker::Job job;
  // A file that is sealed against writing cannot be punched: the last close gives everything back
  // in one go. (Nobody has it any more who could seal it now.)
  const bool in_one_go = segment.bytes > kSliceBytes && !can_be_punched(shrinking->fd->get());
  job.kind = in_one_go ? MemoryWorker::Kind::close : MemoryWorker::Kind::free;
  job.uid = segment.uid;
  job.slice = [shrinking] {
    const std::uint64_t bytes = std::min(kSliceBytes, shrinking->left);
    shrinking->left -= bytes;
    if (!punch(shrinking->fd->get(), shrinking->left, bytes)) shrinking->left = 0;
    if (shrinking->left != 0) return false;
    shrinking->fd.reset();
    return true;
  };
  job.done = [this, id] {
    freeing_bytes_ -= segments_.at(id).bytes;
    forget(id);
  };
  worker_.submit(std::move(job));
  return true;
}

void MemfdStore::forget(SegmentId id) {
  segments_.erase(id);
  if (on_freed_) on_freed_(id);
}

std::uint64_t MemfdStore::segment_bytes(SegmentId id) const {
  const auto found = segments_.find(id);
  return found == segments_.end() ? 0 : found->second.bytes;
}

std::uint64_t MemfdStore::segments() const {
  return segments_.size() + growths_.size();
}

std::uint64_t MemfdStore::kernel_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [id, segment] : segments_) {
    if (segment.fd != nullptr) bytes += backed_bytes(segment.fd->get());
  }
  for (const auto& [ticket, growth] : growths_) bytes += backed_bytes(growth->fd->get());
  return bytes;
}

std::uint64_t MemfdStore::slack_bytes() const {
  // With huge pages the kernel may back the end of a file by more than it has bytes.
  return huge_pages_ == HugePages::never ? 0 : segments() * kHugePageBytes;
}

std::vector<std::string> MemfdStore::selfcheck() const {
  std::vector<std::string> problems;
  const std::uint64_t slack = huge_pages_ == HugePages::never ? 0 : kHugePageBytes;
  std::uint64_t released = 0;
  for (const auto& [id, segment] : segments_) {
    if (segment.phase == Phase::released) ++released;
    if (segment.fd == nullptr) continue;  // the worker is giving it back
    struct stat status {};
    if (::fstat(segment.fd->get(), &status) != 0) {
      problems.push_back(name_of(id) + ": its descriptor is not open");
      continue;
    }
    if (static_cast<std::uint64_t>(status.st_size) != segment.bytes) {
      problems.push_back(name_of(id) + ": has " + std::to_string(status.st_size) + " bytes, not " +
                         std::to_string(segment.bytes));
    }
    if ((status.st_mode & 0777U) != 0600U) {
      problems.push_back(name_of(id) + ": its mode is not 0600");
    }
    const auto backed = static_cast<std::uint64_t>(status.st_blocks) * 512;
    if (backed > segment.bytes + slack) {
      problems.push_back(name_of(id) + ": backed by " + std::to_string(backed) + " bytes, has " +
                         std::to_string(segment.bytes));
    }
    const int seals = ::fcntl(segment.fd->get(), F_GET_SEALS);
    const int wanted = F_SEAL_SHRINK | F_SEAL_GROW | (segment.hard ? F_SEAL_WRITE : 0);
    if (seals < 0 || (seals & wanted) != wanted) {
      problems.push_back(name_of(id) + ": seals are missing");
    }
  }
  if (released != pinned_segments()) {
    problems.push_back("released segments: " + std::to_string(released) + " exist, " +
                       std::to_string(pinned_segments()) + " are probed");
  }
  return problems;
}

}  // namespace shmstore::server
