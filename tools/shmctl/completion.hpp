#pragma once
/// The completion scripts, as the build embedded them.

#include <string_view>

namespace shmctl {

extern const std::string_view kBashCompletion;
extern const std::string_view kZshCompletion;
extern const std::string_view kFishCompletion;

}  // namespace shmctl
