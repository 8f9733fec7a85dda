#include "screen.hpp"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

namespace shmctl {

namespace {

// Alternate screen, no cursor, lines that are too long end at the edge; and back.
constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J";
constexpr std::string_view kLeave = "\x1b[?7h\x1b[?25h\x1b[?1049l";

sigset_t handled_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP, SIGCONT}) {
    sigaddset(&set, number);
  }
  return set;
}

void write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(STDOUT_FILENO, text.data(), text.size());
    if (put < 0 && errno != EINTR && errno != EAGAIN) return;
    if (put > 0) text.remove_prefix(static_cast<std::size_t>(put));
  }
}

}  // namespace

Result<Screen> Screen::open() {
  Screen screen;
  if (tcgetattr(STDIN_FILENO, &screen.found_) != 0) return file_error("terminal", errno);
  const sigset_t set = handled_signals();
  screen.signals_ = UniqueFd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!screen.signals_.valid()) return file_error("signalfd", errno);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  screen.active_ = true;
  screen.enter();
  return screen;
}

Screen::Screen(Screen&& other) noexcept
    : signals_(std::move(other.signals_)),
      found_(other.found_),
      active_(std::exchange(other.active_, false)),
      quit_(other.quit_) {}

Screen::~Screen() {
  if (!active_) return;
  leave();
  const sigset_t set = handled_signals();
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

void Screen::enter() const {
  termios raw = found_;
  raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  raw.c_cc[VMIN] = 0;
  raw.c_cc[VTIME] = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  write_all(kEnter);
}

void Screen::leave() const {
  write_all(kLeave);
  tcsetattr(STDIN_FILENO, TCSANOW, &found_);
}

/// Ctrl-Z: gives the terminal back, stops, and takes it again when continued.
void Screen::pause() {
  leave();
  raise(SIGSTOP);
  enter();
}

int Screen::rows() const {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0) return size.ws_row;
  return 24;
}

void Screen::show(const std::vector<std::string>& lines) const {
  const auto fitting = std::min(lines.size(), static_cast<std::size_t>(rows()));
  std::string text = "\x1b[H";
  // Clears what was there before it writes: after a line that fills the terminal's width the cursor
  // is still on the last letter, and clearing from there would take that away.
  for (std::size_t i = 0; i + 1 < fitting; ++i) text += "\x1b[K" + lines[i] + "\r\n";
  text += "\x1b[J";
  if (fitting > 0) text += lines[fitting - 1];
  write_all(text);
}

Screen::Wake Screen::take_signal() {
  signalfd_siginfo info{};
  if (::read(signals_.get(), &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info))) {
    return Wake::tick;
  }
  switch (info.ssi_signo) {
    case SIGTSTP: pause(); return Wake::resize;
    case SIGWINCH:
    case SIGCONT: return Wake::resize;
    default: quit_ = true; return Wake::quit;
  }
}

bool Screen::take_key() {
  std::array<char, 64> keys{};
  const ssize_t got = ::read(STDIN_FILENO, keys.data(), keys.size());
  if (got <= 0) return true;  // The terminal is gone.
  for (std::size_t i = 0; i < static_cast<std::size_t>(got); ++i) {
    if (keys[i] == 'q' || keys[i] == 'Q' || keys[i] == '\x03' || keys[i] == '\x04') return true;
  }
  return false;
}

Screen::Wake Screen::wait(std::chrono::milliseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (!quit_) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return Wake::tick;
    std::array<pollfd, 2> sources = {pollfd{STDIN_FILENO, POLLIN, 0},
                                     pollfd{signals_.get(), POLLIN, 0}};
    const int ready = poll(sources.data(), sources.size(), static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) return Wake::quit;
    if (ready <= 0) continue;
    if (sources[1].revents != 0) {
      if (const Wake wake = take_signal(); wake != Wake::tick) return wake;
    }
    if (sources[0].revents != 0 && take_key()) quit_ = true;
  }
  return Wake::quit;
}

bool Screen::quit_pending() {
  std::array<pollfd, 2> sources = {pollfd{STDIN_FILENO, POLLIN, 0},
                                   pollfd{signals_.get(), POLLIN, 0}};
  if (poll(sources.data(), sources.size(), 0) <= 0) return quit_;
  if (sources[1].revents != 0) take_signal();
  if (sources[0].revents != 0 && take_key()) quit_ = true;
  return quit_;
}

}  // namespace shmctl
