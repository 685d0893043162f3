// Twins of the runtime's calls: memory is the host's, streams are queues, and any call can be made to fail.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"

namespace qt::sim {

// One recording of an event: where it stands, and whether its stream has come by. An event may be recorded
// again while streams still wait for what it was before.
struct Mark {
  StreamState* stream = nullptr;
  bool happened = false;
};

// What a stream has still to do.
struct Work {
  std::function<void()> run;
  std::shared_ptr<Mark> waits_for;
  std::shared_ptr<Mark> records;
};

struct StreamState {
  std::deque<Work> queue;
  bool has_kernels = false;  // and not copies alone
};

struct EventState {
  std::shared_ptr<Mark> last;  // null: never recorded
};

namespace {

Streams streams_at_start() {
  const char* name = std::getenv("QTRAIN_SIM_STREAMS");
  const std::string_view wanted = name == nullptr ? "lazy" : name;
  if (wanted == "lazy") return Streams::lazy;
  if (wanted == "eager") return Streams::eager;
  if (wanted == "copies_in_first") return Streams::copies_in_first;
  if (wanted == "copies_out_first") return Streams::copies_out_first;
  throw SimError("QTRAIN_SIM_STREAMS is lazy, eager, copies_in_first or copies_out_first, not " +
                 std::string(wanted));
}

struct Runtime {
  Streams how = streams_at_start();
  cudaError_t last = cudaSuccess;
  std::vector<std::string> calls;
  std::int64_t fail_at = -1;
  int fail_with = 0;
  bool fail_sticky = true;
  std::map<void*, std::size_t> device, pinned;
  std::set<StreamState*> streams;
  std::set<EventState*> events;
  std::int64_t device_bytes = 0, pinned_bytes = 0;
  bool open = false;
};

// Never destroyed: backends that live as long as the program give their memory back after its statics are
// gone.
Runtime& runtime() {
  static Runtime& runtime = *new Runtime;
  return runtime;
}

cudaError_t fail(cudaError_t error) {
  runtime().last = error;
  return error;
}

// A card that has failed does no more work.
void drop_work() {
  for (StreamState* stream : runtime().streams) stream->queue.clear();
}

// Every twin passes here first; what it returns when not cudaSuccess is the twin's result.
cudaError_t enter(const char* name) {
  if (inside_kernel()) throw SimError(std::string(name) + " was called inside a kernel");
  Runtime& r = runtime();
  const auto call = static_cast<std::int64_t>(r.calls.size());
  r.calls.emplace_back(name);
  if (r.fail_at < 0 || call < r.fail_at || (call > r.fail_at && !r.fail_sticky)) return cudaSuccess;
  if (r.fail_sticky) drop_work();
  return fail(static_cast<cudaError_t>(r.fail_with));
}

#define QT_ENTER(name) \
  if (const cudaError_t entered = enter(name); entered != cudaSuccess) return entered

// Does the oldest work of the stream, and before it what that waits for.
void step(StreamState& stream) {
  const Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  // Only as far as the event: what stands behind it waits on.
  if (work.waits_for) {
    while (!work.waits_for->happened && !work.waits_for->stream->queue.empty()) step(*work.waits_for->stream);
  }
  if (work.run) {
    try {
      work.run();
    } catch (...) {
      drop_work();
      throw;
    }
  }
  if (work.records) work.records->happened = true;
}

void drain(StreamState& stream) {
  while (!stream.queue.empty()) step(stream);
}

void drain_all() {
  for (StreamState* stream : runtime().streams) drain(*stream);
}

// Of what is given back to the runtime, nothing may be in use: destructors wait first. Where they run because
// of an exception, the work behind it is not done any more.
void drain_before_release() {
  if (std::uncaught_exceptions() > 0) return drop_work();
  drain_all();
}

void enqueue(StreamState* stream, Work work) {
  if (stream == nullptr) throw SimError("work on the default stream: every stream must be named");
  stream->queue.push_back(std::move(work));
  if (runtime().how == Streams::eager) drain(*stream);
}

// A copy to there is of the direction that goes first.
bool comes_first(const void* to) {
  const Runtime& r = runtime();
  if (r.how != Streams::copies_in_first && r.how != Streams::copies_out_first) return false;
  auto region = r.device.upper_bound(const_cast<void*>(to));
  const bool on_card =
      region != r.device.begin() && to < static_cast<const std::byte*>((--region)->first) + region->second;
  return on_card == (r.how == Streams::copies_in_first);
}

// On a card memory comes as it was left: a program must not count on zeros. Aligned to 256 bytes as the runtime
// promises for the card's, and to no more; pinned memory, for which it promises nothing, likewise.
constexpr std::size_t kPageBytes = 4096, kBeyondPage = 256;

void* take_memory(std::size_t bytes) {
  const std::size_t pages = (bytes + kBeyondPage + kPageBytes - 1) / kPageBytes;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(kPageBytes, pages * kPageBytes));
  if (memory == nullptr) return nullptr;
  if (bytes <= (1u << 26)) std::memset(memory + kBeyondPage, 0xFF, bytes);
  return memory + kBeyondPage;
}
void free_memory(void* memory) { std::free(static_cast<std::byte*>(memory) - kBeyondPage); }

}  // namespace

namespace {
std::int64_t free_now() {
  constexpr std::int64_t kOthersBytes = 300LL << 20;
  const std::int64_t at_start =
      card().free_bytes >= 0 ? card().free_bytes : card().total_bytes - kOthersBytes - card().context_bytes;
  return at_start - runtime().device_bytes;
}
}  // namespace

std::int64_t used_bytes_of_card() {
  return card().total_bytes - free_now() - (runtime().open ? 0 : card().context_bytes);
}

std::int64_t allocated_bytes() { return runtime().device_bytes + runtime().pinned_bytes; }

void set_streams(Streams how) { runtime().how = how; }
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

void begin_process() {
  Runtime& r = runtime();
  drop_work();
  for (const auto& [memory, bytes] : r.device) free_memory(memory);
  for (const auto& [memory, bytes] : r.pinned) free_memory(memory);
  for (StreamState* stream : r.streams) delete stream;
  for (EventState* event : r.events) delete event;
  const Streams how = r.how;
  r = Runtime{};
  r.how = how;
}

bool runtime_call_fails(const char* name) { return enter(name) != cudaSuccess; }
cudaError_t injected_error() { return static_cast<cudaError_t>(runtime().fail_with); }

void enqueue_launch(cudaStream_t stream, const std::string& kernel, std::function<void()> work) {
  if (enter(kernel.c_str()) != cudaSuccess) return;  // cudaGetLastError tells
  if (stream != nullptr) stream->has_kernels = true;
  enqueue(stream, {.run = std::move(work), .waits_for = {}, .records = {}});
}
void enqueue_work(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr) stream->has_kernels = true;
  enqueue(stream, {.run = std::move(work), .waits_for = {}, .records = {}});
}

void check_full_mask(unsigned mask, const qt::sim::Where& where) {
  if (mask != 0xFFFFFFFFu) throw SimError("a collective of part of a warp at " + place(where));
}

}  // namespace qt::sim

// ---- the twins ---------------------------------------------------------------------------------------

using qt::sim::card;
using qt::sim::enter;
using qt::sim::fail;
using qt::sim::free_now;
using qt::sim::runtime;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorECCUncorrectable: return "cudaErrorECCUncorrectable";
    case cudaErrorUnsupportedPtxVersion: return "cudaErrorUnsupportedPtxVersion";
    case cudaErrorOperatingSystem: return "cudaErrorOperatingSystem";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchTimeout: return "cudaErrorLaunchTimeout";
    case cudaErrorAssert: return "cudaErrorAssert";
    case cudaErrorHardwareStackError: return "cudaErrorHardwareStackError";
    case cudaErrorIllegalInstruction: return "cudaErrorIllegalInstruction";
    case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
    case cudaErrorInvalidAddressSpace: return "cudaErrorInvalidAddressSpace";
    case cudaErrorInvalidPc: return "cudaErrorInvalidPc";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorUnknown: return "cudaErrorUnknown";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

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
  if (device < 0 || device >= card().count) return fail(cudaErrorInvalidDevice);
  runtime().open = true;
  return cudaSuccess;
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
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = qt::sim::kSharedOptInBytes; return cudaSuccess;
  }
  return fail(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  QT_ENTER("cudaDeviceGetPCIBusId");
  if (device < 0 || device >= card().count) return fail(cudaErrorInvalidDevice);
  if (length < 13) return fail(cudaErrorInvalidValue);
  std::strcpy(id, "0000:01:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  QT_ENTER("cudaDeviceSynchronize");
  qt::sim::drain_before_release();
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  QT_ENTER("cudaFuncGetAttributes");
  if (!card().served_by_build) return fail(cudaErrorNoKernelImageForDevice);
  *attributes = {.binaryVersion = 10 * card().major + card().minor};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  QT_ENTER("cudaFuncSetAttribute");
  return value >= 0 && value <= qt::sim::kSharedOptInBytes ? cudaSuccess : fail(cudaErrorInvalidValue);
}

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
  qt::sim::drain_before_release();
  const auto found = runtime().device.find(memory);
  if (found == runtime().device.end()) return fail(cudaErrorInvalidValue);
  runtime().device_bytes -= static_cast<std::int64_t>(found->second);
  runtime().device.erase(found);
  qt::sim::free_memory(memory);
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
  qt::sim::drain_before_release();
  const auto found = runtime().pinned.find(memory);  // null is not pinned either
  if (found == runtime().pinned.end()) return fail(cudaErrorInvalidValue);
  runtime().pinned_bytes -= static_cast<std::int64_t>(found->second);
  runtime().pinned.erase(found);
  qt::sim::free_memory(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  QT_ENTER("cudaMemcpyAsync");
  // Nothing may come from nowhere: an empty span has no address.
  const auto copy = [=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  };
  qt::sim::enqueue(stream, {.run = copy, .waits_for = {}, .records = {}});
  if (qt::sim::comes_first(to) && !stream->has_kernels) qt::sim::drain(*stream);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  QT_ENTER("cudaMemsetAsync");
  qt::sim::enqueue(stream,
                   {.run = [=] { std::memset(memory, value, bytes); }, .waits_for = {}, .records = {}});
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
  qt::sim::drain_before_release();
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
  if (event->last) qt::sim::enqueue(stream, {.run = {}, .waits_for = event->last, .records = {}});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  QT_ENTER("cudaEventCreateWithFlags");
  *event = new qt::sim::EventState;
  runtime().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  QT_ENTER("cudaEventDestroy");
  if (event == nullptr) return cudaSuccess;
  runtime().events.erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  QT_ENTER("cudaEventRecord");
  event->last = std::make_shared<qt::sim::Mark>(qt::sim::Mark{.stream = stream});
  qt::sim::enqueue(stream, {.run = {}, .waits_for = {}, .records = event->last});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  QT_ENTER("cudaEventSynchronize");
  const auto mark = event->last;
  while (mark && !mark->happened && !mark->stream->queue.empty()) qt::sim::step(*mark->stream);
  return cudaSuccess;
}
