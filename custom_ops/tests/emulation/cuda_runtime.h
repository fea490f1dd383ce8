// Stands in for CUDA's own headers, so that a C++ compiler takes the CUDA sources as they are: a kernel's threads are fibers of one
// thread of the CPU, which yield where they wait for each other. See ../test_cuda_emulated.py for what that shows and what not.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/rms_norm_cpu_half.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  bool done = false;
  std::vector<std::function<void()>> copies;               // since the last group ended
  std::deque<std::vector<std::function<void()>>> groups;   // ended, not yet waited for
};

// The block that runs now.
struct Block {
  dim3 index, size, grid;
  std::vector<Fiber> fibers;
  std::vector<float> exchanged;      // what each thread gives to a shuffle, twice
  std::vector<int64_t> warp_arrived; // how often threads of a warp have come to a shuffle
  int64_t arrived = 0;               // ... of the block to a barrier
  ucontext_t scheduler;
  size_t current = 0;
  std::vector<char> shared;
  const std::function<void()>* body = nullptr;
};
inline Block block;

inline void yield() { swapcontext(&block.fibers[block.current].context, &block.scheduler); }

// Comes back when `count` has grown to the next multiple of `size`.
inline void meet(int64_t& count, int64_t size) {
  const int64_t target = (count / size + 1) * size;
  ++count;
  while (count < target) yield();
}

inline void enter() {
  (*block.body)();
  block.fibers[block.current].done = true;
  yield();
}

inline void run_block() {
  const size_t threads = block.size.x * block.size.y;
  block.fibers = std::vector<Fiber>(threads);
  block.exchanged.assign(2 * threads, 0.0f);
  block.warp_arrived.assign(threads / 32, 0);
  block.arrived = 0;
  for (size_t t = 0; t < threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.thread = dim3(static_cast<unsigned>(t) % block.size.x, static_cast<unsigned>(t) / block.size.x);
    fiber.stack.reset(new char[32768]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = 32768;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (block.current = 0; block.current < threads; ++block.current) {
      if (block.fibers[block.current].done) continue;
      swapcontext(&block.scheduler, &block.fibers[block.current].context);
      alive = true;
    }
  }
}

// Bytes of dynamic shared memory that each function may have: 48 KiB until it is given more.
inline std::map<const void*, int64_t> shared_limits;
inline int64_t shared_limit(const void* function) {
  const auto found = shared_limits.find(function);
  return found == shared_limits.end() ? 48 << 10 : found->second;
}

// kernel<<<grid, size, shared>>>, block after block; shared memory begins as rubbish.
inline int launch(const void* kernel, dim3 grid, dim3 size, int64_t shared, const std::function<void()>& body) {
  if (shared > shared_limit(kernel)) return 1;  // cudaErrorInvalidValue
  block.grid = grid;
  block.size = size;
  block.body = &body;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block.index = dim3(x, y);
      block.shared.assign(static_cast<size_t>(shared) + 16, '\x7f');
      run_block();
    }
  }
  return 0;
}

inline Fiber& self() { return block.fibers[block.current]; }

// Copies in the background: made only when they are waited for, so that whoever does not wait reads rubbish.
inline void copy_16(void* to, const void* from) {
  self().copies.push_back([to, from] { std::memcpy(to, from, 16); });
}
inline void copies_end() {
  self().groups.push_back(std::move(self().copies));
  self().copies.clear();
}
inline void copies_wait(size_t but) {
  for (auto& groups = self().groups; groups.size() > but; groups.pop_front()) {
    for (auto& copy : groups.front()) copy();
  }
}

}  // namespace emulation

#define threadIdx (emulation::self().thread)
#define blockIdx (emulation::block.index)
#define blockDim (emulation::block.size)
#define gridDim (emulation::block.grid)

inline void __syncthreads() {
  emulation::meet(emulation::block.arrived, static_cast<int64_t>(emulation::block.fibers.size()));
}

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  const size_t me = emulation::block.current;
  int64_t& arrived = emulation::block.warp_arrived[me / 32];
  // Two boards that take turns: nobody can be two shuffles ahead of its warp.
  float* board = emulation::block.exchanged.data() + (arrived / 32 % 2 ? emulation::block.fibers.size() : 0);
  board[me] = value;
  emulation::meet(arrived, 32);
  return board[me ^ static_cast<size_t>(distance)];
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline float __uint_as_float(uint32_t bits) { return pllm::float_of(bits); }
inline uint32_t __float_as_uint(float value) { return pllm::bits_of(value); }

// ---- The runtime, of a device with few multiprocessors, so that few blocks are many.

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess = 0 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared };
inline cudaError_t cudaGetDevice(int* id) {
  const char* error = std::getenv("EMULATED_ERROR");
  *id = 0;
  return error ? std::atoi(error) : cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* shared = std::getenv("EMULATED_SHARED_KIB");  // per block and per multiprocessor
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : (shared ? std::atoi(shared) : 227) << 10;
  return cudaSuccess;
}
// A limit may not fall while the device stays the same: that is what, between another thread's setting and launch, makes the launch
// fail; so it is an error here.
inline cudaError_t cudaFuncSetAttribute(const void* function, int attribute, int value) {
  static int of_device = 0;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  int device = 0;
  cudaDeviceGetAttribute(&device, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  if (device != of_device) emulation::shared_limits.clear();
  of_device = device;
  const auto found = emulation::shared_limits.find(function);
  if (found != emulation::shared_limits.end() && value < found->second) return 1;  // cudaErrorInvalidValue
  emulation::shared_limits[function] = value;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, void*) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  static std::string said;
  return (said = "CUDA error " + std::to_string(error)).c_str();
}
