// Enough of CUDA to run one block of threads on a CPU: each thread is a fiber with a stack of its own, which hands over
// to the next one wherever a barrier or a shuffle would make it wait.  Compiled in front of the kernel's own source.
//
// Shared memory starts as NaN, so that what nobody wrote shows.  Fibers run in the order of their numbers or, with
// ``backwards``, against it: a kernel that lacks a barrier gives other numbers in one of the two.

#include <ucontext.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 { unsigned x, y, z, w; };
struct Index { unsigned x; };

namespace cpu {
constexpr int LIMIT = 256;
struct Thread { ucontext_t context; bool done; int shuffles; };
Thread threads[LIMIT];
char stacks[LIMIT][1 << 16];
ucontext_t home;
void (*body)(void*);
void* kernel_and_arguments;
int count = 0, running = 0;
long arrived = 0;             // at barriers, by all threads together
long shuffled[LIMIT / 32];    // shuffles entered, by a warp's lanes together
float passed[2][LIMIT];       // what lanes hand over; two turns, so that a fast lane overwrites nothing
}  // namespace cpu

Index threadIdx, blockIdx;
uint4 memory[(SHARED_BYTES) / sizeof(uint4)];

namespace cpu {
inline void hand_over() {
    swapcontext(&threads[running].context, &home);
    threadIdx.x = running;
}
inline void enter() { threadIdx.x = running; body(kernel_and_arguments); threads[running].done = true; hand_over(); }

template <class Kernel>
void run_block(int size, bool backwards, Kernel kernel) {
    count = size, arrived = 0, kernel_and_arguments = &kernel;
    body = [](void* pointer) { (*static_cast<Kernel*>(pointer))(); };
    memset(memory, 0xFF, sizeof memory);
    memset(shuffled, 0, sizeof shuffled);
    for (int i = 0; i < size; ++i) {
        Thread& t = threads[i];
        t.done = false, t.shuffles = 0;
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = stacks[i], t.context.uc_stack.ss_size = sizeof stacks[i];
        t.context.uc_link = &home;
        makecontext(&t.context, enter, 0);
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (int i = 0; i < size; ++i) {
            running = backwards ? size - 1 - i : i;
            if (threads[running].done) continue;
            alive = true;
            swapcontext(&home, &threads[running].context);
        }
    }
}
}  // namespace cpu

inline void __syncthreads() {
    const long target = (cpu::arrived++ / cpu::count + 1) * cpu::count;
    while (cpu::arrived < target) cpu::hand_over();
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    const int me = cpu::running, warp = me / 32, turn = cpu::threads[me].shuffles++;
    cpu::passed[turn % 2][me] = value;
    ++cpu::shuffled[warp];
    while (cpu::shuffled[warp] < 32L * (turn + 1)) cpu::hand_over();
    return cpu::passed[turn % 2][me ^ mask];
}

inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int k = 0; k < 4; ++k) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * k & 7u) & 255u) << 8 * k;
    return out;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31u));
}
inline int min(int a, int b) { return a < b ? a : b; }
// expf, logf and fmaxf are the C library's own
