// A CUDA driver and runtime without a device: what torch and Triton ask for, answered on the host.
//
// It is memory, copies, events, streams and graph capture as far as the host sees them, an H200's
// properties, and the driver's rules on launches and tensor maps. It is not a GPU: a launch is
// checked and does nothing. build.py compiles this file into every library that torch wants,
// exports of it what belongs there, and adds functions that return 0 for all the rest.

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static const char kName[] = "NVIDIA Fake H200";
static const size_t kMemory = 143771ull << 20;
enum { kShared = 48 << 10, kMostShared = 227 << 10, kMostX = 0x7fffffff, kMostY = 65535 };

// The numbers are the same in the driver and in the runtime.
static const int kAttributes[CU_DEVICE_ATTRIBUTE_MAX] = {
    [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = 9,
    [CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = 132,
    [CU_DEVICE_ATTRIBUTE_WARP_SIZE] = 32,
    [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024,
    [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR] = 2048,
    [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK] = kShared,
    [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = kMostShared,
    [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = 228 << 10,
    [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK] = 65536,
    [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR] = 65536,
};

// --- What is refused, and told ---

static _Thread_local char refusal[400];
static _Thread_local int refused;

static int refuse(int code, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(refusal, sizeof refusal, format, values);
  va_end(values);
  return refused = code;
}

const char* cudaGetErrorName(cudaError_t code) { return "refused"; }
const char* cudaGetErrorString(cudaError_t code) {
  return (int)code == refused ? refusal : "not an error of the fake GPU";
}
CUresult cuGetErrorString(CUresult code, const char** text) {
  return *text = cudaGetErrorString((cudaError_t)code), 0;
}

static int verbose(void) {
  const char* wish = getenv("FAKE_GPU_VERBOSE");
  return wish && *wish == '1';
}

// --- Memory: the host's, at addresses that tell what it is ---

enum { kPage = 4096 };  // one before every allocation holds its size
static const size_t kDevice = 1ull << 44, kPinned = 2ull << 44, kEnd = 3ull << 44;
static atomic_size_t next_device = kDevice, next_pinned = kPinned, used;

static int is_device(size_t at) { return at >= kDevice && at < kPinned; }
static int is_pinned(size_t at) { return at >= kPinned && at < kEnd; }

static int take(void** memory, atomic_size_t* next, size_t bytes) {
  bytes = (bytes + 2 * kPage - 1) / kPage * kPage;
  size_t* at = mmap((void*)atomic_fetch_add(next, bytes), bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) return refuse(cudaErrorMemoryAllocation, "out of memory");
  used += * at = bytes;
  *memory = (char*)at + kPage;
  return 0;
}
static int give_back(void* memory) {
  if (!memory) return 0;
  size_t* at = (size_t*)((char*)memory - kPage);
  if (is_device((size_t)at)) used -= *at;
  return munmap(at, *at);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (used + bytes > kMemory) return refuse(cudaErrorMemoryAllocation, "out of memory");
  return take(memory, &next_device, bytes);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  return take(memory, &next_pinned, bytes);
}
cudaError_t cudaFree(void* memory) { return give_back(memory); }
cudaError_t cudaFreeHost(void* memory) { return give_back(memory); }
cudaError_t cudaMemGetInfo(size_t* rest, size_t* all) {
  return *all = kMemory, *rest = kMemory - used, 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* found, const void* at) {
  memset(found, 0, sizeof *found);
  if (is_device((size_t)at)) found->type = cudaMemoryTypeDevice;
  if (is_pinned((size_t)at)) found->type = cudaMemoryTypeHost;
  found->devicePointer = found->hostPointer = (void*)at;
  return 0;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr at) {
  *(CUdeviceptr*)value = at;
  if (is_device(at) || is_pinned(at)) return 0;
  return refuse(CUDA_ERROR_INVALID_VALUE, "%#llx is not the device's memory", at);
}

// --- Streams, which do everything at once, and graphs, which hold nothing ---

static _Atomic(cudaStream_t) capturing;

static int synchronize(const char* what) {
  if (!capturing) return 0;
  return refuse(cudaErrorStreamCaptureUnsupported, "%s while a graph is captured", what);
}
cudaError_t cudaDeviceSynchronize(void) { return synchronize(__func__); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return synchronize(__func__); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return synchronize(__func__); }

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) {
  return *least = 0, *most = -5, 0;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return *stream = malloc(1), 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  return capturing = stream, 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return *graph = malloc(1), capturing = NULL, 0;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  return *status = capturing && stream == capturing, 0;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  if (id) *id = 1;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return *count = 1, 0;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return function(data), 0;
}

// An event is the time at which it was recorded, in milliseconds.
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return *event = calloc(1, sizeof(double)), 0;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), 0; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return *(double*)event = 1e3 * now.tv_sec + 1e-6 * now.tv_nsec, 0;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  return *milliseconds = *(double*)stop - *(double*)start, 0;
}

// --- Copies ---

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return memmove(to, from, bytes), 0;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind) {
  return memmove(to, from, bytes), synchronize(__func__);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t rows, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
  for (size_t i = 0; i < rows; ++i)
    memmove((char*)to + i * to_pitch, (const char*)from + i * from_pitch, width);
  return 0;
}
cudaError_t cudaMemset(void* to, int byte, size_t bytes) { return memset(to, byte, bytes), 0; }
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  return cudaMemset(to, byte, bytes);
}

// --- The device ---

CUresult cuDeviceGetCount(int* count) { return *count = 1, 0; }
CUresult cuDeviceGet(CUdevice* device, int which) { return *device = 0, 0; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  return *value = which < CU_DEVICE_ATTRIBUTE_MAX ? kAttributes[which] : 0, 0;
}
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)kName, 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return cuCtxGetCurrent(context);
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, 0;
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, 0; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, 0; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_VERSION, 0; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDA_VERSION, 0; }
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr which, int device) {
  return cuDeviceGetAttribute(value, (CUdevice_attribute)which, device);
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* found, int device) {
  *found = (struct cudaDeviceProp){
      .totalGlobalMem = kMemory,
      .major = 9,
      .multiProcessorCount = 132,
      .warpSize = 32,
      .maxThreadsPerBlock = 1024,
      .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {kMostX, kMostY, kMostY},
      .maxThreadsPerMultiProcessor = 2048,
      .sharedMemPerBlock = kShared,
      .sharedMemPerBlockOptin = kMostShared,
      .sharedMemPerMultiprocessor = 228 << 10,
      .regsPerMultiprocessor = 65536,
      .l2CacheSize = 50 << 20,
  };
  strcpy(found->name, kName);
  return 0;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* found, const void* function) {
  *found = (struct cudaFuncAttributes){
      .maxThreadsPerBlock = 1024, .ptxVersion = 90, .binaryVersion = 90};
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* f,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  return *blocks = 8, 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int threads, size_t shared) {
  return *blocks = 8, 0;
}

static const int kCudnn[] = {9, 19, 0};  // what this torch was built with
size_t cudnnGetVersion(void) { return 10000 * kCudnn[0] + 100 * kCudnn[1] + kCudnn[2]; }
int cudnnGetProperty(int which, int* value) { return *value = kCudnn[which], 0; }
int cudnnCreate(void** handle) { return 1; }
const char* cudnnGetErrorString(int code) { return "the fake GPU has no cuDNN"; }

static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
  if (!*function) *function = (void*)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return 0;
}

// --- Kernels ---

struct Function {
  char name[200];
  unsigned shared_limit;
};

CUresult cuModuleGetFunction(CUfunction* found, CUmodule module, const char* name) {
  struct Function* function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  function->shared_limit = kShared;
  return *found = (CUfunction)function, 0;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction function) {
  return *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, 0;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return 0;
  if (value > kMostShared)
    return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory, of %d", value, kMostShared);
  return ((struct Function*)function)->shared_limit = value, 0;
}

CUresult cuLaunchKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned x, unsigned y, unsigned z, unsigned shared, CUstream stream,
                        void** values, void** extra) {
  const struct Function* function = (struct Function*)kernel;
  const char* bad = NULL;
  if (!grid_x || !grid_y || !grid_z) bad = "a grid without blocks";
  if (grid_x > kMostX || grid_y > kMostY || grid_z > kMostY)
    bad = "more blocks than a grid may have";
  if (!x || !y || !z || z > 64 || (size_t)x * y * z > 1024) bad = "blocks have 1 to 1024 threads";
  if (shared > function->shared_limit) bad = "more shared memory than the function may have";
  if (!bad && !verbose()) return 0;
  char text[300];
  snprintf(text, sizeof text, "%s: grid %u %u %u, block %u %u %u, shared memory %u of %u",
           function->name, grid_x, grid_y, grid_z, x, y, z, shared, function->shared_limit);
  if (verbose()) fprintf(stderr, "launch %s\n", text);
  return bad ? refuse(CUDA_ERROR_INVALID_VALUE, "%s (%s)", bad, text) : 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction kernel, void** values, void** extra) {
  return cuLaunchKernel(kernel, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                        c->blockDimZ, c->sharedMemBytes, c->hStream, values, extra);
}

// The documented rules of maps without interleaving, the only ones that Triton makes.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* base, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const unsigned kBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};  // by type
  if (type >= sizeof kBytes / sizeof *kBytes || interleave || rank < 1 || rank > 5)
    return refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: unknown type, interleaved or of rank > 5");
  const char* bad = NULL;
  if ((size_t)map % 64) bad = "the map is not at a multiple of 64 bytes";
  if ((size_t)base % 16) bad = "the tensor is not at a multiple of 16 bytes";
  if (!is_device((size_t)base)) bad = "the tensor is not in the device's memory";
  const unsigned row = box[0] * kBytes[type];
  if (row % 16) bad = "the box's rows are not a multiple of 16 bytes";
  if (swizzle && row > 16u << swizzle) bad = "the box's rows are wider than the swizzle";
  if (fill && type < CU_TENSOR_MAP_DATA_TYPE_FLOAT16) bad = "integers cannot be filled with NaN";
  char text[200] = "";
  for (unsigned i = 0; i < rank; ++i) {
    const unsigned long long stride = i ? strides[i - 1] : kBytes[type];
    if (sizes[i] < 1 || sizes[i] > 1ull << 32) bad = "a size is not in 1 to 2^32";
    if (box[i] < 1 || box[i] > 256) bad = "a box is not in 1 to 256";
    if (element_strides[i] < 1 || element_strides[i] > 8)
      bad = "an element stride is not in 1 to 8";
    if (i && stride % 16) bad = "a stride is not a multiple of 16 bytes";
    if (stride >= 1ull << 40) bad = "a stride is 2^40 bytes or more";
    if (bad || verbose())
      snprintf(text + strlen(text), 40, " %u of %llu by %llu", box[i], (long long)sizes[i], stride);
  }
  if (verbose()) fprintf(stderr, "tensor map:%s, swizzle %d\n", text, swizzle);
  memset(map, 0, sizeof *map);
  return bad ? refuse(CUDA_ERROR_INVALID_VALUE, "tensor map: %s (%s )", bad, text) : 0;
}
