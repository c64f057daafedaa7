// Ctrl-C, SIGTERM and Slurm's time limit: long work asks here at its safe points whether to end.
#pragma once

namespace distill::core {

// From now on the first SIGINT or SIGTERM only sets a flag; a second one ends the process at once.
void install_interrupt_handlers();

// Whether a signal has asked the work to end. Cheap; any thread.
bool interrupt_requested();

// Takes the request back, where an interrupt ends one step (an answer in a chat) rather than the program.
void clear_interrupt();

}  // namespace distill::core
