#include "src/train/stop.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "src/core/error.h"

namespace qt {

namespace {

std::atomic<int> g_stop{0};

// Waits for the stop signals for the rest of the process. A user who asks twice means now.
void wait_for_signals(sigset_t signals) {
  for (;;) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    if (g_stop.exchange(signal) > 0) _exit(128 + signal);
  }
}

}  // namespace

void install_stop_handlers() {
  static std::atomic<bool> installed{false};
  if (installed.exchange(true)) return;
  // No handler: the matrix library's generated code runs with the stack pointer inside small buffers of its
  // own, and a signal frame pushed there overwrites the heap. The signals stay blocked in this thread and in
  // all that it starts later; one thread receives them by waiting.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    // nohup and background jobs ignore some; that stays so. A blocked signal would be received all the same.
    struct sigaction now {};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN) continue;
    sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(wait_for_signals, signals).detach();
  // A reader that goes away (`qtrain ... | head`) must not kill a run; the write reports it. Neither must a
  // limit on file sizes: the failed write says so.
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, nullptr);
  sigaction(SIGXFSZ, &ignore, nullptr);
}

bool stop_requested() { return g_stop.load() != 0; }

void request_stop() { g_stop.store(-1); }

void clear_stop_request() { g_stop.store(0); }

void poll_stop() {
  if (stop_requested())
    throw StopRequested("stopped on request", "the same command again continues from here");
}

}  // namespace qt
