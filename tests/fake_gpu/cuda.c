// A CUDA driver and runtime without a device: what torch and Triton ask for, answered on the host.
//
// It is memory, copies, events, streams and graph capture as far as the host sees them, properties
// of the devices that FAKE_GPU_DEVICES names (H200), and the driver's rules on launches and tensor
// maps. It is not a GPU: a launch is checked and does nothing. build.py compiles this file into
// every library that torch wants, exports of it what belongs there, and adds functions that return
// 0 for all the rest.

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

struct Model {
  const char* name;
  int major, minor, multiprocessors, shared;  // bytes of a multiprocessor; a block has 1 KB less
};
static const struct Model kModels[] = {{"NVIDIA Fake H200", 9, 0, 132, 228 << 10},
                                       {"NVIDIA Fake A100", 8, 0, 108, 164 << 10},
                                       {"NVIDIA Fake T4", 7, 5, 40, 64 << 10}};
static const size_t kMemory = 143771ull << 20;
enum { kDevices = 8, kShared = 48 << 10, kMostX = 0x7fffffff, kMostY = 65535 };

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

// --- Devices: a context is its device's number plus 1 ---

static int count_devices(const char** name, int which) {
  const char* list = getenv("FAKE_GPU_DEVICES");
  int count = 0;
  for (const char* at = list && *list ? list : "H200"; at; at = strchr(at, ','), at += !!at)
    if (count++ == which) *name = at;
  return count > kDevices ? kDevices : count;
}
static int device_count(void) { return count_devices(NULL, -1); }
static const struct Model* model_of(int device) {
  const char* name = "";
  count_devices(&name, device);
  for (size_t i = 0; i < sizeof kModels / sizeof *kModels; ++i) {
    const char* ours = strrchr(kModels[i].name, ' ') + 1;
    if (!strncmp(name, ours, strlen(ours))) return &kModels[i];
  }
  return &kModels[0];
}
static int check_device(int device) {
  if (device >= 0 && device < device_count()) return 0;
  return refuse(cudaErrorInvalidDevice, "there is no device %d", device);
}

// The driver knows each thread's context, and the runtime's functions, which are in another
// library, ask it.
static void* of_driver(const char* name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW), name); }
static _Thread_local CUcontext context;
CUresult cuCtxGetCurrent(CUcontext* found) { return *found = context, 0; }
CUresult cuCtxSetCurrent(CUcontext next) { return context = next, 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice device) {
  return *found = (CUcontext)(device + 1ull), check_device(device);
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, 0;
}

// A thread that has no context is on device 0.
static int current(void) {
  static CUresult (*get)(CUcontext*);
  CUcontext found;
  if (!get) get = (CUresult (*)(CUcontext*))of_driver("cuCtxGetCurrent");
  return get(&found), found ? (int)(size_t)found - 1 : 0;
}
cudaError_t cudaGetDevice(int* device) { return *device = current(), 0; }
cudaError_t cudaSetDevice(int device) {
  static CUresult (*set)(CUcontext);
  if (!set) set = (CUresult (*)(CUcontext))of_driver("cuCtxSetCurrent");
  const int error = check_device(device);
  return error ? error : set((CUcontext)(device + 1ull));
}

// --- Memory: the host's, at addresses that tell what it is ---

enum { kPage = 4096 };  // one before every allocation holds its size
static const size_t kDevice = 1ull << 44, kPinned = 2ull << 44, kEnd = 3ull << 44;
static const size_t kEach = (1ull << 44) / kDevices;
static atomic_size_t taken[kDevices], next_pinned = kPinned, used[kDevices];

static int is_device(size_t at) { return at >= kDevice && at < kPinned; }
static int is_pinned(size_t at) { return at >= kPinned && at < kEnd; }
static int device_of(size_t at) { return (at - kDevice) / kEach; }

static size_t with_pages(size_t bytes) { return (bytes + 2 * kPage - 1) / kPage * kPage; }
static int take(void** memory, size_t address, size_t bytes) {
  size_t* at = mmap((void*)address, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) return refuse(cudaErrorMemoryAllocation, "out of memory");
  *at = bytes;
  *memory = (char*)at + kPage;
  return 0;
}
static int give_back(void* memory) {
  if (!memory) return 0;
  size_t* at = (size_t*)((char*)memory - kPage);
  if (is_device((size_t)at)) used[device_of((size_t)at)] -= *at;
  return munmap(at, *at);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const int device = current();
  bytes = with_pages(bytes);
  if (used[device] + bytes > kMemory) return refuse(cudaErrorMemoryAllocation, "out of memory");
  used[device] += bytes;
  return take(memory, kDevice + device * kEach + atomic_fetch_add(&taken[device], bytes), bytes);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  bytes = with_pages(bytes);
  return take(memory, atomic_fetch_add(&next_pinned, bytes), bytes);
}
cudaError_t cudaFree(void* memory) { return give_back(memory); }
cudaError_t cudaFreeHost(void* memory) { return give_back(memory); }
cudaError_t cudaMemGetInfo(size_t* rest, size_t* all) {
  return *all = kMemory, *rest = kMemory - used[current()], 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* found, const void* at) {
  memset(found, 0, sizeof *found);
  if (is_device((size_t)at))
    found->type = cudaMemoryTypeDevice, found->device = device_of((size_t)at);
  if (is_pinned((size_t)at)) found->type = cudaMemoryTypeHost;
  found->devicePointer = found->hostPointer = (void*)at;
  return 0;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr at) {
  *(CUdeviceptr*)value = at;
  if ((is_device(at) && device_of(at) == current()) || is_pinned(at)) return 0;
  return refuse(CUDA_ERROR_INVALID_VALUE, "%#llx is not memory of device %d", at, current());
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
  int* device = malloc(sizeof *device);
  return *device = current(), *stream = (cudaStream_t)device, 0;
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

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                                size_t bytes, cudaStream_t stream) {
  return memmove(to, from, bytes), 0;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) { return *can = 0, 0; }

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

// --- Properties of devices ---

CUresult cuDeviceGetCount(int* count) { return *count = device_count(), 0; }
CUresult cuDeviceGet(CUdevice* device, int which) { return *device = which, check_device(which); }
// The numbers of attributes are the same in the driver and in the runtime.
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  const struct Model* model = model_of(device);
  const int values[CU_DEVICE_ATTRIBUTE_MAX] = {
      [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = model->major,
      [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR] = model->minor,
      [CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = model->multiprocessors,
      [CU_DEVICE_ATTRIBUTE_WARP_SIZE] = 32,
      [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024,
      [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR] = 2048,
      [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK] = kShared,
      [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = model->shared - 1024,
      [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = model->shared,
      [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK] = 65536,
      [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR] = 65536,
  };
  return *value = which < CU_DEVICE_ATTRIBUTE_MAX ? values[which] : 0, check_device(device);
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = device_count(), 0; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_VERSION, 0; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDA_VERSION, 0; }
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr which, int device) {
  return cuDeviceGetAttribute(value, (CUdevice_attribute)which, device);
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* found, int device) {
  const struct Model* model = model_of(device);
  *found = (struct cudaDeviceProp){
      .totalGlobalMem = kMemory,
      .major = model->major,
      .minor = model->minor,
      .multiProcessorCount = model->multiprocessors,
      .warpSize = 32,
      .maxThreadsPerBlock = 1024,
      .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {kMostX, kMostY, kMostY},
      .maxThreadsPerMultiProcessor = 2048,
      .sharedMemPerBlock = kShared,
      .sharedMemPerBlockOptin = model->shared - 1024,
      .sharedMemPerMultiprocessor = model->shared,
      .regsPerMultiprocessor = 65536,
      .l2CacheSize = 50 << 20,
  };
  strcpy(found->name, model->name);
  return check_device(device);
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
  *function = of_driver(name);
  if (!*function) *function = (void*)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return 0;
}

// --- Kernels ---

struct Function {
  char name[200];
  unsigned shared_limit;
  int device;
};

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return *module = (CUmodule)(current() + 1ull), 0;
}
CUresult cuModuleLoad(CUmodule* module, const char* name) { return cuModuleLoadData(module, name); }

CUresult cuModuleGetFunction(CUfunction* found, CUmodule module, const char* name) {
  struct Function* function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  function->shared_limit = kShared;
  function->device = (int)(size_t)module - 1;
  return *found = (CUfunction)function, 0;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction function) {
  return *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, 0;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return 0;
  struct Function* ours = (struct Function*)function;
  const int most = model_of(ours->device)->shared - 1024;
  if (value > most)
    return refuse(CUDA_ERROR_INVALID_VALUE, "%d bytes of shared memory, of %d", value, most);
  return ours->shared_limit = value, 0;
}

CUresult cuLaunchKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned x, unsigned y, unsigned z, unsigned shared, CUstream stream,
                        void** values, void** extra) {
  const struct Function* function = (struct Function*)kernel;
  const char* bad = NULL;
  if (!context) bad = "the thread has no context";
  if (function->device != current()) bad = "the function belongs to another device";
  if (stream > CU_STREAM_PER_THREAD && *(int*)stream != current())
    bad = "the stream belongs to another device";
  if (!grid_x || !grid_y || !grid_z) bad = "a grid without blocks";
  if (grid_x > kMostX || grid_y > kMostY || grid_z > kMostY)
    bad = "more blocks than a grid may have";
  if (!x || !y || !z || z > 64 || (size_t)x * y * z > 1024) bad = "blocks have 1 to 1024 threads";
  if (shared > function->shared_limit) bad = "more shared memory than the function may have";
  if (!bad && !verbose()) return 0;
  char text[300];
  snprintf(text, sizeof text, "%s on %d: grid %u %u %u, block %u %u %u, shared memory %u of %u",
           function->name, current(), grid_x, grid_y, grid_z, x, y, z, shared,
           function->shared_limit);
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
  if (!is_device((size_t)base) || device_of((size_t)base) != current())
    bad = "the tensor is not in the device's memory";
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
