// Ctrl-C, SIGTERM and Slurm's time limit: long work asks here at its safe points whether to end.
#pragma once

#include "core/error.h"

namespace distill::core {

// From now on SIGINT and SIGTERM only set a flag. A SIGINT after that, somebody's second Ctrl-C, ends the process at
// once; a further SIGTERM does not, since launchers and schedulers send it more than once.
void install_interrupt_handlers();

// Whether a signal has asked the work to end. Cheap; any thread.
bool interrupt_requested();

// The number of the signal that asked, SIGINT or SIGTERM; 0 if none did.
int interrupt_signal();

// What a command throws whose work ended early because a signal asked it to, with a message that says what is kept and
// how to go on. The command line exits with 128 + the signal's number, as a shell reports a program that a signal
// ended: whoever started it sees that the work is not complete.
class Interrupted : public Error {
 public:
  using Error::Error;
};

// Takes the request back, where an interrupt ends one step (an answer in a chat) rather than the program.
void clear_interrupt();

}  // namespace distill::core
