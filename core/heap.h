// How this process's heap deals with large blocks.
#pragma once

namespace distill::core {

// Keeps the memory of freed blocks for the next ones instead of handing it back to the system. Every step of training
// or generation makes tensors of the same sizes; by default glibc maps each anew, and the page faults cost a fifth of
// the time. No effect with another C library. Call it before anything large is allocated.
void keep_freed_memory();

// Hands back what is free now all the same: after work at start-up that took more than what follows will.
void return_freed_memory();

}  // namespace distill::core
