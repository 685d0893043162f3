#include "src/train/stop.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

#include "src/core/error.h"

namespace qt {

namespace {

std::atomic<int> g_stop{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

extern "C" void on_stop_signal(int signal) {
  // A user who asks twice means now.
  if (g_stop.exchange(signal) > 0) _exit(128 + signal);
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in progress go on; the loops poll
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  // A reader that goes away (`qtrain ... | head`) must not kill a run; the write reports it.
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, nullptr);
  // Likewise a limit on file sizes (`ulimit -f`).
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
