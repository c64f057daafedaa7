#include "core/interrupt.h"

#include <signal.h>

#include <initializer_list>

namespace distill::core {
namespace {

volatile sig_atomic_t requested = 0;  // the signal's number

void on_signal(int signal_number) {
  if (requested && signal_number == SIGINT) {
    ::signal(signal_number, SIG_DFL);
    ::raise(signal_number);
  }
  requested = signal_number;
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  for (const int signal_number : {SIGINT, SIGTERM}) ::sigaction(signal_number, &action, nullptr);
}

bool interrupt_requested() {
  return requested != 0;
}

int interrupt_signal() {
  return requested;
}

void clear_interrupt() {
  requested = 0;
}

}  // namespace distill::core
