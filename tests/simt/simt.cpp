#include "tests/simt/simt.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 128 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context{};
  std::unique_ptr<std::byte[]> stack = std::make_unique<std::byte[]>(kStackBytes);
  State state = State::kReady;
};

// One launch. Blocks reuse the fibers' stacks.
struct Machine {
  const std::function<void()>& body;
  std::vector<Fiber> fibers;
  std::vector<std::byte> shared;
  std::vector<std::array<uint32_t, kLanes>> exchanged;  // per warp
  Dim3 grid, block, block_index, thread_index;
  ucontext_t scheduler{};
  std::exception_ptr exception;

  Fiber& current() { return fibers[thread_index.x]; }

  void pause(State state) {
    current().state = state;
    swapcontext(&current().context, &scheduler);
  }
};

Machine* machine = nullptr;

void run_thread() {
  try {
    machine->body();
  } catch (...) {
    if (!machine->exception) machine->exception = std::current_exception();
  }
  machine->current().state = State::kDone;  // the context's link returns to the scheduler
}

void start_block(Machine& m) {
  std::fill(m.shared.begin(), m.shared.end(), std::byte{0xFF});
  for (Fiber& fiber : m.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &m.scheduler;
    makecontext(&fiber.context, run_thread, 0);
    fiber.state = State::kReady;
  }
}

void run_ready_threads(Machine& m, Order order) {
  const auto count = static_cast<unsigned>(m.fibers.size());
  for (unsigned i = 0; i < count; ++i) {
    const unsigned thread = order == Order::kAscending ? i : count - 1 - i;
    if (m.fibers[thread].state != State::kReady) continue;
    m.thread_index.x = thread;
    swapcontext(&m.scheduler, &m.fibers[thread].context);
  }
}

// Lets the threads [begin, end) go on if all of them wait at `barrier`.
bool release(Machine& m, std::size_t begin, std::size_t end, State barrier) {
  const auto first = m.fibers.begin() + static_cast<std::ptrdiff_t>(begin);
  const auto last = m.fibers.begin() + static_cast<std::ptrdiff_t>(end);
  if (!std::all_of(first, last, [&](const Fiber& fiber) { return fiber.state == barrier; })) return false;
  std::for_each(first, last, [](Fiber& fiber) { fiber.state = State::kReady; });
  return true;
}

bool release_barriers(Machine& m) {
  if (release(m, 0, m.fibers.size(), State::kAtBlockBarrier)) return true;
  bool released = false;
  for (std::size_t lane = 0; lane < m.fibers.size(); lane += kLanes) {
    released |= release(m, lane, lane + kLanes, State::kAtWarpBarrier);
  }
  return released;
}

void run_block(Machine& m, Order order) {
  start_block(m);
  do {
    run_ready_threads(m, order);
    if (m.exception) std::rethrow_exception(m.exception);
  } while (release_barriers(m));
  const auto waiting = [&](State state) {
    return std::to_string(
        std::count_if(m.fibers.begin(), m.fibers.end(), [&](const Fiber& fiber) { return fiber.state == state; }));
  };
  if (std::any_of(m.fibers.begin(), m.fibers.end(), [](const Fiber& fiber) { return fiber.state != State::kDone; })) {
    throw std::logic_error("threads disagree about a barrier: " + waiting(State::kAtBlockBarrier) +
                           " wait for the block, " + waiting(State::kAtWarpBarrier) + " for their warp, " +
                           waiting(State::kDone) + " have ended");
  }
}

}  // namespace

void run(unsigned grid, unsigned block, std::size_t shared_bytes, Order order, const std::function<void()>& body) {
  if (block == 0 || block % kLanes != 0 || block > 1024) throw std::logic_error("a block must be whole warps");
  if (shared_bytes > 48 * 1024) throw std::logic_error("more shared memory than a launch gets without asking");
  Machine m{.body = body,
            .fibers = std::vector<Fiber>(block),
            .shared = std::vector<std::byte>(shared_bytes),
            .exchanged = std::vector<std::array<uint32_t, kLanes>>(block / kLanes),
            .grid = {.x = grid},
            .block = {.x = block},
            .block_index = {.x = 0, .y = 0, .z = 0},
            .thread_index = {.x = 0, .y = 0, .z = 0},
            .exception = {}};
  machine = &m;
  for (; m.block_index.x < grid; ++m.block_index.x) run_block(m, order);
  machine = nullptr;
}

const Dim3& thread_index() {
  return machine->thread_index;
}
const Dim3& block_index() {
  return machine->block_index;
}
const Dim3& block_dimensions() {
  return machine->block;
}
const Dim3& grid_dimensions() {
  return machine->grid;
}
void* dynamic_shared_memory() {
  return machine->shared.data();
}
unsigned lane_index() {
  return machine->thread_index.x % kLanes;
}

void block_barrier() {
  machine->pause(State::kAtBlockBarrier);
}
void warp_barrier() {
  machine->pause(State::kAtWarpBarrier);
}

uint32_t exchange(uint32_t bits, unsigned lane) {
  auto& exchanged = machine->exchanged[machine->thread_index.x / kLanes];
  exchanged[lane_index()] = bits;
  warp_barrier();
  const uint32_t result = exchanged[lane];
  warp_barrier();  // before the next exchange overwrites
  return result;
}

}  // namespace simt

void __trap() {
  throw std::runtime_error("the kernel called __trap()");
}
