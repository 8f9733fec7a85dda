#pragma once
/// Where replies go. The dispatcher knows sessions by their number only.

#include "server/registry.hpp"
#include "server/wire.hpp"

namespace shmstore::server {

/// A descriptor to open at the moment in which the frame really leaves: a frame may wait behind a
/// client that does not read, and descriptors are scarce.
struct DescriptorRef {
  SegmentId segment = 0;  ///< 0: none.
  bool writable = false;
};

class Outbox {
 public:
  virtual ~Outbox() = default;
  /// Sends or queues a frame; an unknown session is none of the caller's business. When the
  /// descriptor cannot be opened, Dispatcher::descriptor_failed() makes the frame that goes
  /// instead.
  virtual void send(SessionId session, Bytes frame, DescriptorRef descriptor) = 0;
  /// Like send, but drops the frame when the session does not keep up: false.
  virtual bool offer(SessionId session, Bytes frame) = 0;
};

}  // namespace shmstore::server
