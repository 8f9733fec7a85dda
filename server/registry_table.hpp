#pragma once
/// The small containers of the registry: ids to objects, and lists whose members know their place.

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "shmstore/array.hpp"

namespace shmstore::server {

/// Objects by ArrayId. A slot is used again under the next generation; one that has used up its
/// generations is retired, so that an id never names two arrays.
template <class T>
class SlotTable {
 public:
  explicit SlotTable(std::uint64_t first_generation = 1, std::uint64_t slots_max = kSlots)
      : first_generation_(first_generation), slots_max_(slots_max) {}

  [[nodiscard]] bool full() const { return free_.empty() && slots_.size() >= slots_max_; }

  /// REQUIRES: not full().
  ArrayId insert(std::unique_ptr<T> object) {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = static_cast<std::uint32_t>(slots_.size());
      slots_.push_back({first_generation_, nullptr});
    } else {
      slot = free_.back();
      free_.pop_back();
    }
    slots_[slot].object = std::move(object);
    ++size_;
    return ArrayId::of(slot, slots_[slot].generation);
  }

  /// Nothing for an id that was never given out or whose object is gone.
  [[nodiscard]] T* find(ArrayId id) const {
    if (id.slot() >= slots_.size()) return nullptr;
    const Slot& slot = slots_[id.slot()];
    return slot.generation == id.generation() ? slot.object.get() : nullptr;
  }

  /// REQUIRES: find(id).
  void erase(ArrayId id) {
    Slot& slot = slots_[id.slot()];
    slot.object.reset();
    --size_;
    if (slot.generation == ArrayId::kGenerationMax) return;
    ++slot.generation;
    free_.push_back(id.slot());
  }

  [[nodiscard]] std::size_t size() const { return size_; }

  template <class F>
  void for_each(F&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.object) visit(*slot.object);
    }
  }

 private:
  static constexpr std::uint64_t kSlots = std::uint64_t{1} << ArrayId::kSlotBits;
  struct Slot {
    std::uint64_t generation = 1;
    std::unique_ptr<T> object;
  };
  std::uint64_t first_generation_;
  std::uint64_t slots_max_;
  std::deque<Slot> slots_;  // grows without moving those that are there
  std::vector<std::uint32_t> free_;
  std::size_t size_ = 0;
};

/// Doubly linked through T's `prev`, `next` and `home` (the list it is in, or null). Owns nothing.
template <class T>
class LinkedList {
 public:
  LinkedList() = default;
  LinkedList(const LinkedList&) = delete;
  LinkedList& operator=(const LinkedList&) = delete;

  void push_back(T& item) {
    item.prev = last_;
    item.next = nullptr;
    (last_ != nullptr ? last_->next : first_) = &item;
    last_ = &item;
    item.home = this;
  }
  void push_front(T& item) {
    item.prev = nullptr;
    item.next = first_;
    (first_ != nullptr ? first_->prev : last_) = &item;
    first_ = &item;
    item.home = this;
  }
  /// REQUIRES: the item is in this list.
  void remove(T& item) {
    (item.prev != nullptr ? item.prev->next : first_) = item.next;
    (item.next != nullptr ? item.next->prev : last_) = item.prev;
    item.prev = item.next = nullptr;
    item.home = nullptr;
  }
  [[nodiscard]] T* first() const { return first_; }
  [[nodiscard]] bool empty() const { return first_ == nullptr; }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace shmstore::server
