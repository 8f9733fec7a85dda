#pragma once
/// What a daemon knows about itself from its start on, and how closely it checks itself.

#include <string>

#include "server/descriptors.hpp"
#include "server/dispatch.hpp"

namespace shmstore::server {

/// Of the process that calls. The store's id is new each time.
[[nodiscard]] DaemonFacts facts_of(const DescriptorBudget& budget, bool exact_probe,
                                   std::string note);

/// What $SHMSTORE_SELFCHECK says; without it `sometimes` in a debug build, else `off`.
[[nodiscard]] Selfcheck selfcheck_wanted();

}  // namespace shmstore::server
