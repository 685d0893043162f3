// The part of every backend that does not depend on it: checks, counts, and the choice by name.
#include "kernels/backend.h"

#include <map>

namespace qt {

// Defined by the implementations. Declared here and not in their headers: this folder knows that they exist,
// not what they are.
std::unique_ptr<Backend> make_cpu_backend(const Target& target);
std::unique_ptr<Backend> make_null_backend(const Target& target);

namespace {

struct Entry {
  BackendMaker make;
  DeviceProbe probe;
};

std::map<std::string, Entry, std::less<>>& backends() {
  static std::map<std::string, Entry, std::less<>> all{{"cpu", {make_cpu_backend, {}}},
                                                       {"null", {make_null_backend, {}}}};
  return all;
}

const Entry& backend_named(std::string_view name) {
  if (const auto found = backends().find(name); found != backends().end()) return found->second;
  if (name == "cuda") {
    throw ConfigError(
        "this build of qtrain has no CUDA backend",
        "use --device cpu, or build where nvcc is found; `qtrain plan --device cuda` works without a card");
  }
  std::vector<std::string> names;
  for (const auto& [known, entry] : backends()) names.push_back(known);
  throw ConfigError(fmt::format("unknown backend '{}'", name),
                    fmt::format("use one of: {}", fmt::join(names, ", ")));
}

void check_transfer(const TensorView& view, std::int64_t bytes, const char* what, const char* field) {
  QT_CHECK(view.defined(), ShapeError, "{}: {} is undefined", what, field);
  QT_CHECK(view.dense(), ShapeError, "{}: {} {} is pitched by {}; only dense views are transferred", what,
           field, view.shape(), view.pitch);
  QT_CHECK(view.bytes() == bytes, ShapeError, "{}: {} {} has {} bytes, the other side {}", what, field,
           view.shape(), view.bytes(), bytes);
}

bool overlap(const TensorView& a, const TensorView& b) {
  return a.data < b.data + b.bytes() && b.data < a.data + a.bytes();
}

}  // namespace

void Backend::count(const Cost& cost) {
  if (recompute_depth_ == 0) totals_.model_flops += cost.model_flops;
  totals_.executed_flops += cost.executed_flops;
  totals_.read_bytes += cost.read_bytes;
  totals_.written_bytes += cost.written_bytes;
  ++totals_.ops;
}

void Backend::copy(const TensorView& from, const TensorView& to, Stream stream) {
  check_transfer(from, from.bytes(), "copy", "from");
  check_transfer(to, from.bytes(), "copy", "to");
  QT_CHECK(!overlap(from, to), ShapeError, "copy: from {} and to {} overlap", from.shape(), to.shape());
  if (from.space == Space::host && to.space == Space::device) {
    totals_.host_to_device_bytes += static_cast<double>(from.bytes());
  } else if (from.space == Space::device && to.space == Space::host) {
    totals_.device_to_host_bytes += static_cast<double>(from.bytes());
  }
  const auto bytes = static_cast<double>(from.bytes());
  observed("copy", Cost{.read_bytes = bytes, .written_bytes = bytes}, [&] { do_copy(from, to, stream); });
}

void Backend::upload(std::span<const std::byte> from, const TensorView& to) {
  check_transfer(to, static_cast<std::int64_t>(from.size()), "upload", "to");
  if (to.space == Space::device) totals_.host_to_device_bytes += static_cast<double>(from.size());
  do_upload(from, to);
}

void Backend::download(const TensorView& from, std::span<std::byte> to) {
  check_transfer(from, static_cast<std::int64_t>(to.size()), "download", "from");
  if (from.space == Space::device) totals_.device_to_host_bytes += static_cast<double>(to.size());
  do_download(from, to);
}

std::vector<double> Backend::read_scalars(const TensorView& view) {
  check_shape(view, {-1}, "read_scalars", "view");
  check_dtype(view, {DType::f64}, "read_scalars", "view");
  if (view.space == Space::device) totals_.device_to_host_bytes += static_cast<double>(view.bytes());
  return do_read_scalars(view);
}

std::vector<std::string> Backend::use_algorithms(std::string_view text) {
  if (text.empty()) return {};
  return {fmt::format("they were chosen on another device, and this is the {} backend", name())};
}

void add_backend(std::string name, BackendMaker maker, DeviceProbe probe) {
  backends().insert_or_assign(std::move(name), Entry{std::move(maker), std::move(probe)});
}

std::unique_ptr<Backend> make_backend(std::string_view name, const Target& target) {
  return backend_named(name).make(target);
}

DeviceFacts probe_device(std::string_view name) {
  const Entry& entry = backend_named(name);
  return entry.probe ? entry.probe() : DeviceFacts();
}

}  // namespace qt
