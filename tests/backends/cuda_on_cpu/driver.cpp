// The few functions of CUDA's driver that TVM calls; kernels come from a library of the same kernels for the CPU.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

typedef void (*Kernel)(const unsigned* grid, const unsigned* threads, unsigned shared, void** parameters);
struct Config { unsigned grid[3], threads[3], shared; void *stream, *attributes; unsigned count; };

static void* library;
static long launches;
static unsigned most_shared;

extern "C" {
void emulate(const char* path) {
  library = dlopen(path, RTLD_NOW);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); abort(); }
}
long emulated_launches() { return launches; }
unsigned emulated_shared() { return most_shared; }
int cuModuleLoadData(void** module, const void*) { *module = (void*)1; return library ? 0 : 200; }
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void*, const char* name) {
  char launcher[512];
  snprintf(launcher, sizeof launcher, "launch_%s", name);
  *function = dlsym(library, launcher);
  return *function ? 0 : 500;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
  ++launches;
  if (config->shared > most_shared) most_shared = config->shared;
  ((Kernel)function)(config->grid, config->threads, config->shared, parameters);
  return 0;
}
int cuGetErrorName(int, const char** text) { *text = "emulated"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "emulated"; return 0; }
int cuDeviceGetName(char* name, int, int) { snprintf(name, 9, "emulated"); return 0; }
int cuTensorMapEncodeTiled() { return 801; }
}
