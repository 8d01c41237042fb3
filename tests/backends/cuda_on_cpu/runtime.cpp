// The few functions of CUDA's runtime that TVM calls: one device, whose memory is the processor's.
#include <cstdlib>
#include <cstring>

#define SAME(name, ...) int name(__VA_ARGS__) { return 0; }
extern "C" {
int cudaMalloc(void** p, size_t size) { *p = aligned_alloc(512, (size + 511) / 512 * 512 + 512); memset(*p, 0xff, size); return 0; }
int cudaFree(void* p) { free(p); return 0; }
int cudaMallocHost(void** p, size_t size) { return cudaMalloc(p, size); }
int cudaFreeHost(void* p) { free(p); return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void*) { memmove(to, from, size); return 0; }
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void*) { memmove(to, from, size); return 0; }
int cudaMemGetInfo(size_t* unused, size_t* all) { *unused = *all = (size_t)1 << 32; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaDeviceGetAttribute(int* value, int, int) { *value = 1024; return 0; }
int cudaGetDeviceProperties(void* all, int) { memset(all, 0, 1024); return 0; }
const char* cudaGetErrorName(int) { return "emulated"; }
const char* cudaGetErrorString(int) { return "emulated"; }
int cudaEventElapsedTime(float* ms, void*, void*) { *ms = 0; return 0; }
SAME(cudaEventCreate, void**) SAME(cudaEventDestroy, void*) SAME(cudaEventRecord, void*, void*)
SAME(cudaEventSynchronize, void*) SAME(cudaGetLastError) SAME(cudaPeekAtLastError) SAME(cudaSetDevice, int)
SAME(cudaStreamCreate, void**) SAME(cudaStreamCreateWithFlags, void**, unsigned) SAME(cudaStreamDestroy, void*)
SAME(cudaStreamSynchronize, void*) SAME(cudaStreamWaitEvent, void*, void*, unsigned)
SAME(cudaStreamBeginCapture, void*, int) SAME(cudaStreamEndCapture, void*, void**) SAME(cudaGraphDestroy, void*)
SAME(cudaGraphExecDestroy, void*) SAME(cudaGraphInstantiate, void**, void*, unsigned long long) SAME(cudaGraphLaunch, void*, void*)
}
