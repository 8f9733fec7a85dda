#include "completion.hpp"

#include <cstdio>

#include "commands.hpp"

namespace shmctl {

int run_completion(const CompletionOptions& options) {
  const std::string_view script = options.shell == "bash"  ? kBashCompletion
                                  : options.shell == "zsh" ? kZshCompletion
                                                           : kFishCompletion;
  std::fwrite(script.data(), 1, script.size(), stdout);
  return kDone;
}

}  // namespace shmctl
