#pragma once
/// The terminal as a full-screen display: alternate screen, keys one by one, signals as events.
/// Whatever ends the program in an orderly way leaves the terminal as it was found.

#include <termios.h>

#include <chrono>
#include <string>
#include <vector>

#include "output.hpp"
#include "unique_fd.hpp"

namespace shmctl {

class Screen {
 public:
  enum class Wake {
    tick,    ///< The time is up.
    resize,  ///< The terminal has another size, or is ours again after Ctrl-Z.
    quit,    ///< q, Ctrl-C, or a signal that ends programs.
  };

  /// Takes the terminal of stdin and stdout. Error: what the system call says.
  static Result<Screen> open();
  Screen(Screen&& other) noexcept;
  Screen& operator=(Screen&&) = delete;
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;
  ~Screen();

  /// Shows the lines that fit, in one write.
  void show(const std::vector<std::string>& lines) const;
  [[nodiscard]] int rows() const;
  /// Waits for `time`, a key or a signal.
  Wake wait(std::chrono::milliseconds time);
  /// True when q or Ctrl-C is waiting to be read. For calls that block meanwhile.
  [[nodiscard]] bool quit_pending();

 private:
  Screen() = default;
  void enter() const;
  void leave() const;
  void pause();
  /// Reads one signal or key that poll(2) has announced.
  Wake take_signal();
  bool take_key();

  UniqueFd signals_;
  termios found_{};
  bool active_ = false;
  bool quit_ = false;
};

}  // namespace shmctl
