// Runs the threads of a block as fibers, each on a stack of its own. A fiber is begun once, by the calls of ucontext, and
// serves block after block; between fibers setjmp and longjmp are enough, and cost no call of the system.
#include "types.cuh"

#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

namespace emulator {

Dim3 grid, block, block_index;

namespace {

constexpr size_t STACK = 96 * 1024;
constexpr u32 LANES = 32;

// Where threads wait for each other.
struct Meeting {
  u32 live = 0;    // threads that have not ended
  u32 arrived = 0; // of them
  u32 round = 0;
  // Slots of two rounds: one is read while the other is filled.
  alignas(16) u8 slots[2][LANES * SLOT];

  void pass_if_full() {
    if (live > 0 && arrived == live) {
      arrived = 0;
      ++round;
    }
  }
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool there;

  void make() const {
    if (there) {
      memcpy(to, from, bytes);
    } else {
      memset(to, 0, bytes);
    }
  }
};

struct Fiber {
  ucontext_t begin;
  jmp_buf place;
  bool begun = false;
  bool ended = false;
  // What it waits for, and the round in which it came there.
  const Meeting* meeting = nullptr;
  u32 round = 0;
  // Copies under way: those of the group that is open, and groups, the oldest first.
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  u8 stack[STACK];
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Meeting> warps;
Meeting everybody;
jmp_buf scheduler;
u32 current;
// Whether copies of this launch are made late; by a generator of numbers, so that it is no matter of a kernel's turn.
bool late;
u32 random_state = 1;
const std::function<void()>* body;

// Back to the scheduler, until it is this fiber's turn again.
void yield() {
  if (!_setjmp(fibers[current]->place)) _longjmp(scheduler, 1);
}

void wait_for(Meeting& meeting) {
  Fiber& fiber = *fibers[current];
  fiber.meeting = &meeting;
  fiber.round = meeting.round;
  ++meeting.arrived;
  meeting.pass_if_full();
  if (meeting.round == fiber.round) yield();
  fiber.meeting = nullptr;
}

void serve() {
  while (true) {
    (*body)();
    fibers[current]->ended = true;
    for (Meeting* meeting : {&everybody, &warps[current / LANES]}) {
      --meeting->live;
      meeting->pass_if_full();
    }
    yield();
  }
}

// Gives the current fiber its turn.
void turn() {
  Fiber& fiber = *fibers[current];
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  getcontext(&fiber.begin);
  fiber.begin.uc_stack.ss_sp = fiber.stack;
  fiber.begin.uc_stack.ss_size = STACK;
  fiber.begin.uc_link = nullptr;
  makecontext(&fiber.begin, serve, 0);
  setcontext(&fiber.begin);
}

} // namespace

u32 thread() { return current; }

void copy(void* to, const void* from, size_t bytes, bool there) {
  // A card faults on copies that do not lie at multiples of their size.
  if ((size_t)to % bytes != 0 || (there && (size_t)from % bytes != 0)) {
    fprintf(stderr, "a copy of %zu bytes from %p to %p\n", bytes, from, to);
    abort();
  }
  const Copy one = {to, from, bytes, there};
  if (late) {
    fibers[current]->open.push_back(one);
  } else {
    one.make();
  }
}

void close_group() {
  Fiber& fiber = *fibers[current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void wait_groups(size_t pending) {
  auto& groups = fibers[current]->groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (const Copy& one : groups.front()) one.make();
  }
}

void block_barrier() { wait_for(everybody); }

const u8* meet(const void* from, size_t bytes) {
  Meeting& warp = warps[current / LANES];
  u8* slots = warp.slots[warp.round % 2];
  memcpy(slots + current % LANES * SLOT, from, bytes);
  wait_for(warp);
  return slots;
}

// Runs `kernel` for every thread of every block.
void run(Dim3 blocks, Dim3 threads, const std::function<void()>& kernel) {
  grid = blocks;
  block = threads;
  body = &kernel;
  random_state = random_state * 1664525 + 1013904223;
  late = random_state >> 31;
  while (fibers.size() < threads.x) fibers.push_back(std::make_unique<Fiber>());
  for (u32 z = 0; z < blocks.z; ++z) {
    for (u32 y = 0; y < blocks.y; ++y) {
      for (u32 x = 0; x < blocks.x; ++x) {
        block_index = Dim3{x, y, z};
        warps.assign((threads.x + LANES - 1) / LANES, Meeting{});
        everybody = Meeting{};
        everybody.live = threads.x;
        for (u32 t = 0; t < threads.x; ++t) {
          ++warps[t / LANES].live;
          fibers[t]->ended = false;
          fibers[t]->open.clear();
          fibers[t]->groups.clear();
        }
        while (everybody.live > 0) {
          bool moved = false;
          for (current = 0; current < threads.x; ++current) {
            const Fiber& fiber = *fibers[current];
            if (fiber.ended || (fiber.meeting && fiber.meeting->round == fiber.round)) continue;
            moved = true;
            turn();
          }
          if (!moved) {
            fprintf(stderr, "emulator: the threads of a block wait for each other for ever\n");
            abort();
          }
        }
      }
    }
  }
}

} // namespace emulator
