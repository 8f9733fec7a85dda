#pragma once
/// Holds back the signals that the daemon handles: one that comes between the first connect and
/// the installation of the handlers must not kill the process.

#include <pthread.h>
#include <signal.h>

namespace shmstore::server {

class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t handled;
    ::sigemptyset(&handled);
    for (int signal : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&handled, signal);
    ::pthread_sigmask(SIG_BLOCK, &handled, &before_);
  }
  ~SignalsHeld() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace shmstore::server
