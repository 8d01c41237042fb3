// CUDA C++ as TVM writes it, compiled for the CPU: every thread of a block is a fiber, barriers switch between them.
// Warp-wide matrix operations are done by the first lane of a warp; the other lanes hold no fragments.
#include <ucontext.h>
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

typedef _Float16 half;
typedef half __half;
struct __half2 { half x, y; };

namespace device {
struct Dim { unsigned x, y, z; };
enum Wait { RUNS, BLOCK, WARP, DONE };
struct Fiber { ucontext_t context; Dim thread; int lane, warp; Wait wait; };

inline ucontext_t home;
inline std::vector<Fiber> fibers;
inline Fiber* now;
inline Dim block, block_size, grid_size;
inline std::function<void()> body;
alignas(1024) inline unsigned char dynamic[256 << 10];
inline unsigned char slots[32][32][16];
const size_t STACK = 512 << 10;

inline void yield(Wait wait) { now->wait = wait; swapcontext(&now->context, &home); }
inline void enter() { body(); now->wait = DONE; swapcontext(&now->context, &home); }

inline void fail(const char* what) { fprintf(stderr, "emulated device: %s\n", what); abort(); }

// Let all fibers of a block run to the end.
inline void run_block() {
  for (;;) {
    bool ran = false, alive = false;
    for (auto& fiber : fibers)
      if (fiber.wait == RUNS) { now = &fiber; swapcontext(&home, &fiber.context); ran = true; }
    bool block_waits = true;
    bool warp_waits[32];
    for (bool& w : warp_waits) w = true;
    for (auto& fiber : fibers) {
      if (fiber.wait == DONE) continue;
      alive = true;
      if (fiber.wait != BLOCK) block_waits = false;
      if (fiber.wait != WARP) warp_waits[fiber.warp] = false;
    }
    if (!alive) return;
    bool freed = false;
    for (auto& fiber : fibers)
      if ((fiber.wait == BLOCK && block_waits) || (fiber.wait == WARP && warp_waits[fiber.warp])) {
        fiber.wait = RUNS; freed = true;
      }
    if (!ran && !freed) fail("threads wait for each other");
  }
}

inline void launch(const unsigned* grid, const unsigned* threads, unsigned shared, std::function<void()> kernel) {
  static std::vector<unsigned char*> stacks;
  if (shared > sizeof(dynamic)) fail("too much shared memory");
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {threads[0], threads[1], threads[2]};
  unsigned count = threads[0] * threads[1] * threads[2];
  if (count > 1024) fail("too many threads");
  while (stacks.size() < count)
    stacks.push_back((unsigned char*)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  body = kernel;
  fibers.resize(count);
  for (block.z = 0; block.z < grid[2]; ++block.z)
    for (block.y = 0; block.y < grid[1]; ++block.y)
      for (block.x = 0; block.x < grid[0]; ++block.x) {
        memset(dynamic, 0xff, sizeof(dynamic));  // nothing may rely on what was there: these bytes are NaN
        for (unsigned i = 0; i < count; ++i) {
          auto& fiber = fibers[i];
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = stacks[i];
          fiber.context.uc_stack.ss_size = STACK;
          fiber.context.uc_link = nullptr;
          fiber.thread = {i % threads[0], i / threads[0] % threads[1], i / (threads[0] * threads[1])};
          fiber.lane = i % 32; fiber.warp = i / 32; fiber.wait = RUNS;
          makecontext(&fiber.context, enter, 0);
        }
        run_block();
      }
}
}  // namespace device

#define threadIdx (device::now->thread)
#define blockIdx device::block
#define blockDim device::block_size
#define gridDim device::grid_size

inline void __syncthreads() { device::yield(device::BLOCK); }
inline void __syncwarp(unsigned = 0) { device::yield(device::WARP); }
inline unsigned __activemask() { return 0xffffffffu; }
template <typename T> inline T exchanged(T value, int from) {
  auto& slot = device::slots[device::now->warp];
  memcpy(slot[device::now->lane], &value, sizeof(T));
  __syncwarp();
  T found = value;
  if (from >= 0 && from < 32) memcpy(&found, slot[from], sizeof(T));
  __syncwarp();
  return found;
}
template <typename T> inline T __shfl_sync(unsigned, T v, int lane, int = 32) { return exchanged(v, lane); }
template <typename T> inline T __shfl_down_sync(unsigned, T v, int by, int = 32) { return exchanged(v, device::now->lane + by); }
template <typename T> inline T __shfl_up_sync(unsigned, T v, int by, int = 32) { return exchanged(v, device::now->lane - by); }

inline half __float2half_rn(float x) { return (half)x; }
inline half __float2half(float x) { return (half)x; }
inline float __half2float(half x) { return (float)x; }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline half hexp(half x) { return (half)expf((float)x); }
template <typename T> inline T max(T a, T b) { return a > b ? a : b; }
template <typename T> inline T min(T a, T b) { return a < b ? a : b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF (double)INFINITY
#define CUDART_NAN (double)NAN
#define VECTORS(T, name) \
  struct name##2 { T x, y; }; struct name##3 { T x, y, z; }; struct name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float) VECTORS(int, int) VECTORS(long long, longlong) VECTORS(signed char, char)
VECTORS(unsigned char, uchar_) VECTORS(unsigned, uint_) VECTORS(short, short) VECTORS(double, double)

namespace nvcuda::wmma {
struct matrix_a {}; struct matrix_b {}; struct accumulator {}; struct row_major {}; struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment { T x[256]; };
inline bool acts() { return device::now->lane == 0; }
inline void check(const void* p, unsigned bytes, unsigned element) {
  // 256 bits by the manual; NVIDIA's own immaGemm loads fragments of bytes at multiples of 16
  if ((uintptr_t)p % (element == 1 ? 16 : 32) || bytes % 16) device::fail("a fragment lies askew");
}
template <typename T, typename U> void fill_fragment(fragment<accumulator, 16, 16, 16, T>& f, U value) {
  for (T& x : f.x) x = (T)value;
}
template <typename Use, typename T, typename S>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major>& f, const S* from, unsigned stride) {
  check(from, stride * sizeof(S), sizeof(S));
  if (acts()) for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j) f.x[i * 16 + j] = from[i * stride + j];
}
template <typename Use, typename T, typename S>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major>& f, const S* from, unsigned stride) {
  check(from, stride * sizeof(S), sizeof(S));
  if (acts()) for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j) f.x[i * 16 + j] = from[j * stride + i];
}
template <typename D, typename A, typename B, typename C> void mma_sync(D& d, const A& a, const B& b, const C& c) {
  using T = std::remove_reference_t<decltype(d.x[0])>;
  if (!acts()) return;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      T sum = c.x[i * 16 + j];
      for (int k = 0; k < 16; ++k) sum += (T)a.x[i * 16 + k] * (T)b.x[k * 16 + j];
      d.x[i * 16 + j] = sum;
    }
}
template <typename T> void store_matrix_sync(T* to, const fragment<accumulator, 16, 16, 16, T>& f, unsigned stride, layout_t) {
  check(to, stride * sizeof(T), sizeof(T));
  if (acts()) for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j) to[i * stride + j] = f.x[i * 16 + j];
}
}  // namespace nvcuda::wmma
