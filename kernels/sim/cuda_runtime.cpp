// Twins of the runtime's calls: memory is the host's, streams are queues, and any call can be made to fail.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"

namespace qt::sim {

// What a stream has still to do. A wait for an event that was recorded as number `generation`.
struct Work {
  std::function<void()> run;
  EventState* waits_for = nullptr;
  EventState* records = nullptr;
  std::uint64_t generation = 0;
};

struct StreamState {
  std::deque<Work> queue;
};

struct EventState {
  std::uint64_t recorded = 0;  // generations asked for
  std::uint64_t happened = 0;  // generations reached
  StreamState* stream = nullptr;
  std::chrono::steady_clock::time_point when;
};

namespace {

struct Runtime {
  Streams how = Streams::lazy;
  cudaError_t last = cudaSuccess;
  std::vector<std::string> calls;
  std::int64_t fail_at = -1;
  int fail_with = 0;
  bool fail_sticky = true;
  std::map<void*, std::size_t> device, pinned;
  std::set<StreamState*> streams;
  std::int64_t device_bytes = 0, pinned_bytes = 0;
};

Runtime& runtime() {
  static Runtime runtime;
  return runtime;
}

cudaError_t fail(cudaError_t error) {
  runtime().last = error;
  return error;
}

// Every twin passes here first; what it returns when not cudaSuccess is the twin's result.
cudaError_t enter(const char* name) {
  Runtime& r = runtime();
  const auto call = static_cast<std::int64_t>(r.calls.size());
  r.calls.emplace_back(name);
  if (r.fail_at >= 0 && (call == r.fail_at || (r.fail_sticky && call > r.fail_at)))
    return fail(static_cast<cudaError_t>(r.fail_with));
  return cudaSuccess;
}

#define QT_ENTER(name) \
  if (const cudaError_t entered = enter(name); entered != cudaSuccess) return entered

void drain(StreamState& stream);

void reach(EventState& event, std::uint64_t generation) {
  while (event.happened < generation && event.stream != nullptr && !event.stream->queue.empty()) {
    // Only as far as the event: what stands behind it waits on.
    Work work = std::move(event.stream->queue.front());
    event.stream->queue.pop_front();
    if (work.waits_for != nullptr) reach(*work.waits_for, work.generation);
    if (work.run) work.run();
    if (work.records != nullptr) {
      work.records->happened = std::max(work.records->happened, work.generation);
      work.records->when = std::chrono::steady_clock::now();
    }
  }
}

void drain(StreamState& stream) {
  while (!stream.queue.empty()) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (work.waits_for != nullptr) reach(*work.waits_for, work.generation);
    if (work.run) work.run();
    if (work.records != nullptr) {
      work.records->happened = std::max(work.records->happened, work.generation);
      work.records->when = std::chrono::steady_clock::now();
    }
  }
}

void drain_all() {
  for (StreamState* stream : runtime().streams) drain(*stream);
}

void enqueue(StreamState* stream, Work work) {
  if (stream == nullptr) throw SimError("work on the default stream: every stream must be named");
  stream->queue.push_back(std::move(work));
  if (runtime().how == Streams::eager) drain(*stream);
}

// On a card memory comes as it was left: nobody may count on zeros. Aligned as the runtime promises.
void* take_memory(std::size_t bytes) {
  constexpr std::size_t kAlignment = 4096;
  void* memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (memory != nullptr && bytes <= (1u << 26)) std::memset(memory, 0xFF, bytes);
  return memory;
}

}  // namespace

void set_streams(Streams how) { runtime().how = how; }
std::int64_t runtime_calls() { return static_cast<std::int64_t>(runtime().calls.size()); }
const std::vector<std::string>& runtime_call_names() { return runtime().calls; }
void reset_runtime_calls() {
  runtime().calls.clear();
  runtime().last = cudaSuccess;
}
void fail_runtime_call(std::int64_t call, int error, bool sticky) {
  runtime().fail_at = call;
  runtime().fail_with = error;
  runtime().fail_sticky = sticky;
}

bool runtime_call_fails(const char* name) { return enter(name) != cudaSuccess; }
cudaError_t injected_error() { return static_cast<cudaError_t>(runtime().fail_with); }

void enqueue_launch(cudaStream_t stream, const std::string& kernel, std::function<void()> work) {
  if (enter(kernel.c_str()) != cudaSuccess) return;  // cudaGetLastError tells
  enqueue(stream, {.run = std::move(work)});
}
void enqueue_work(cudaStream_t stream, std::function<void()> work) {
  enqueue(stream, {.run = std::move(work)});
}

void check_full_mask(unsigned mask, const std::source_location& where) {
  if (mask != 0xFFFFFFFFu) throw SimError("a collective of part of a warp at " + place(where));
}

}  // namespace qt::sim

// ---- the twins ---------------------------------------------------------------------------------------

using qt::sim::card;
using qt::sim::enter;
using qt::sim::fail;
using qt::sim::runtime;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorECCUncorrectable: return "cudaErrorECCUncorrectable";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchTimeout: return "cudaErrorLaunchTimeout";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorUnknown: return "cudaErrorUnknown";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaPeekAtLastError() { return runtime().last; }
// Not a call that fails of itself: it tells of others.
cudaError_t cudaGetLastError() { return std::exchange(runtime().last, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) {
  QT_ENTER("cudaDriverGetVersion");
  *version = card().driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  QT_ENTER("cudaRuntimeGetVersion");
  *version = qt::sim::kRuntimeVersion;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  QT_ENTER("cudaGetDeviceCount");
  *count = 0;
  // A missing driver and one that is too old give the same error on a machine.
  if (card().driver_version < qt::sim::kRuntimeVersion) return fail(cudaErrorInsufficientDriver);
  if (card().count == 0) return fail(cudaErrorNoDevice);
  *count = card().count;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  QT_ENTER("cudaSetDevice");
  return device >= 0 && device < card().count ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  QT_ENTER("cudaGetDeviceProperties");
  if (device < 0 || device >= card().count) return fail(cudaErrorInvalidDevice);
  *properties = {};
  card().name.copy(properties->name, sizeof properties->name - 1);
  properties->totalGlobalMem = static_cast<std::size_t>(card().total_bytes);
  properties->major = card().major;
  properties->minor = card().minor;
  properties->multiProcessorCount = card().multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  QT_ENTER("cudaDeviceGetAttribute");
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = card().multiprocessors; return cudaSuccess;
    case cudaDevAttrKernelExecTimeout: *value = card().drives_display ? 1 : 0; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = card().major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = card().minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 99 * 1024; return cudaSuccess;
  }
  return fail(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceSynchronize() {
  QT_ENTER("cudaDeviceSynchronize");
  qt::sim::drain_all();
  return cudaSuccess;
}

namespace {
std::int64_t free_now() {
  constexpr std::int64_t kOthersBytes = 300LL << 20;
  const std::int64_t at_start = card().free_bytes > 0 ? card().free_bytes : card().total_bytes - kOthersBytes;
  return at_start - runtime().device_bytes;
}
}  // namespace

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  QT_ENTER("cudaMemGetInfo");
  *free_bytes = static_cast<std::size_t>(std::max<std::int64_t>(free_now(), 0));
  *total_bytes = static_cast<std::size_t>(card().total_bytes);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  QT_ENTER("cudaMalloc");
  *memory = nullptr;
  if (static_cast<std::int64_t>(bytes) > free_now()) return fail(cudaErrorMemoryAllocation);
  *memory = qt::sim::take_memory(bytes);
  if (*memory == nullptr) return fail(cudaErrorMemoryAllocation);
  runtime().device[*memory] = bytes;
  runtime().device_bytes += static_cast<std::int64_t>(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  QT_ENTER("cudaFree");
  if (memory == nullptr) return cudaSuccess;
  qt::sim::drain_all();
  const auto found = runtime().device.find(memory);
  if (found == runtime().device.end()) return fail(cudaErrorInvalidValue);
  runtime().device_bytes -= static_cast<std::int64_t>(found->second);
  runtime().device.erase(found);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  QT_ENTER("cudaHostAlloc");
  *memory = nullptr;
  const auto wanted = runtime().pinned_bytes + static_cast<std::int64_t>(bytes);
  if (card().pinned_limit_bytes >= 0 && wanted > card().pinned_limit_bytes)
    return fail(cudaErrorMemoryAllocation);
  *memory = qt::sim::take_memory(bytes);
  if (*memory == nullptr) return fail(cudaErrorMemoryAllocation);
  runtime().pinned[*memory] = bytes;
  runtime().pinned_bytes = wanted;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  QT_ENTER("cudaFreeHost");
  if (memory == nullptr) return cudaSuccess;
  qt::sim::drain_all();
  const auto found = runtime().pinned.find(memory);
  if (found == runtime().pinned.end()) return fail(cudaErrorInvalidValue);
  runtime().pinned_bytes -= static_cast<std::int64_t>(found->second);
  runtime().pinned.erase(found);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  QT_ENTER("cudaMemcpy");
  qt::sim::drain_all();
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  QT_ENTER("cudaMemcpyAsync");
  qt::sim::enqueue(stream, {.run = [=] { std::memcpy(to, from, bytes); }});
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  QT_ENTER("cudaMemset");
  qt::sim::drain_all();
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  QT_ENTER("cudaMemsetAsync");
  qt::sim::enqueue(stream, {.run = [=] { std::memset(memory, value, bytes); }});
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  QT_ENTER("cudaStreamCreateWithFlags");
  *stream = new qt::sim::StreamState;
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  QT_ENTER("cudaStreamDestroy");
  if (stream == nullptr) return cudaSuccess;
  qt::sim::drain(*stream);
  runtime().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  QT_ENTER("cudaStreamSynchronize");
  qt::sim::drain(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  QT_ENTER("cudaStreamWaitEvent");
  qt::sim::enqueue(stream, {.run = {}, .waits_for = event, .generation = event->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  QT_ENTER("cudaEventCreateWithFlags");
  *event = new qt::sim::EventState;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  QT_ENTER("cudaEventDestroy");
  if (event == nullptr) return cudaSuccess;
  qt::sim::drain_all();  // queues may still name it
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  QT_ENTER("cudaEventRecord");
  event->stream = stream;
  ++event->recorded;
  qt::sim::enqueue(stream, {.run = {}, .records = event, .generation = event->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  QT_ENTER("cudaEventSynchronize");
  qt::sim::reach(*event, event->recorded);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  QT_ENTER("cudaEventElapsedTime");
  *milliseconds = std::chrono::duration<float, std::milli>(to->when - from->when).count();
  return cudaSuccess;
}
