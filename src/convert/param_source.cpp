#include "src/convert/param_source.h"

#include <algorithm>
#include <array>
#include <set>

#include "quant/format.h"
#include "quant/tensor_names.h"
#include "src/core/error.h"
#include "src/core/half.h"
#include "src/io/json.h"
#include "src/io/manifest.h"
#include "src/io/run_folder.h"
#include "src/model/family.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::int64_t kPieceElems = 256 * 1024;
constexpr std::size_t kNoTensor = static_cast<std::size_t>(-1);

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

[[noreturn]] void fail_shape(const Safetensors& file, const StoredTensor& t,
                             std::span<const std::int64_t> wanted) {
  throw DataError(fmt::format("{}: tensor {} has shape {}, this model's is {}", file.file(),
                              in_quotes(t.name), shape_text(t.shape), shape_text(wanted)),
                  "config.json and the weights beside it must belong together");
}

// A tensor's name as hf_tensors() has it.
std::string full_name(const ModelConfig& config, const std::string& name) {
  const HfForm& hf = config.family->hf;
  const bool whole = name.starts_with(hf.optional_prefix) || name == fmt::format("{}.weight", hf.names.head);
  return whole ? name : fmt::format("{}{}", hf.optional_prefix, name);
}

// What is none of the three is refused when it is read.
DType float_type(const StoredTensor& t) {
  return t.type == StoredType::bf16 ? DType::bf16 : t.type == StoredType::f16 ? DType::f16 : DType::f32;
}

template <class Half, Half (*kNarrow)(float)>
void upload_as(Backend& backend, std::span<const float> values, const TensorView& to) {
  std::vector<Half> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), kNarrow);
  backend.upload(std::as_bytes(std::span(halves)), to);
}

// What all of them are stored in, or f32. tensor_of: of an element of `list`.
template <class List, class TensorOf>
DType common_type(const List& list, TensorOf&& tensor_of) {
  const DType first = float_type(*tensor_of(list.front()));
  const bool same = std::all_of(list.begin(), list.end(),
                                [&](const auto& entry) { return float_type(*tensor_of(entry)) == first; });
  return same ? first : DType::f32;
}

// DataError when the shape of a stored tensor is not the param's.
void check_named_shape(const Safetensors& file, const StoredTensor& t, const Param& p) {
  // A checkpoint's masters are flat.
  if (is_master(t.name) && t.shape == std::vector<std::int64_t>{p.elems()}) return;
  const std::vector<std::int64_t> wanted =
      p.group == ParamGroup::norm ? std::vector<std::int64_t>{p.K} : std::vector<std::int64_t>{p.N, p.K};
  const bool longer_positions =
      p.name.ends_with("wpe.weight") && t.shape.size() == 2 && t.shape[1] == p.K && t.shape[0] > p.N;
  if (t.shape == wanted || longer_positions) return;
  throw DataError(fmt::format("{}: tensor '{}' has shape {}, this model's is {}", file.file(), t.name,
                              shape_text(t.shape), shape_text(wanted)),
                  "name the shape that the weights have with --model, --n-layer, --n-head, --n-embd, "
                  "--vocab-size and --bias");
}

}  // namespace

// --- checkpoints -----------------------------------------------------------------------------------------

CheckpointParams::CheckpointParams(const fs::path& checkpoint, const ModelParams& model, WeightsOf which,
                                   const ModelOptions& formats)
    : file_(checkpoint / (which == WeightsOf::master ? kStateFile : kWeightsFile)), model_(model) {
  const bool masters = which == WeightsOf::master;
  for (const Param& p : model.params) {
    const FormatId format = masters ? FormatId::none : formats.format_of(p);
    Place place{.format = format};
    if (format != FormatId::none) {
      const std::int64_t codes[] = {code_bytes(format, p.elems())},
                         scales[] = {scale_count(format, p.elems())};
      place.values = &file_.header().get(p.name, DType::u8, codes);
      place.scales = &file_.header().get(scales_of(p.name), format_info(format).scale_dtype, scales);
    } else {
      place.values = &file_.header().get(masters ? master_of(p.name) : p.name);
      if (place.values->elems() != p.elems()) fail_shape(file_.header(), *place.values, std::array{p.N, p.K});
    }
    places_.push_back(place);
  }
}

void CheckpointParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  const Place& place = places_[index];
  if (place.format == FormatId::none) return file_.read(*place.values, first, out);
  const std::int64_t elems = model_.params[index].elems();
  for (std::size_t done = 0; done < out.size();) {
    const std::size_t count = std::min<std::size_t>(out.size() - done, kPieceElems);
    read_packed(place, elems, first + static_cast<std::int64_t>(done), out.subspan(done, count));
    done += count;
  }
}

// From the beginning of the block that holds `first` to the end of the one that holds the last element:
// scales and codes then begin where the format says that a range may.
void CheckpointParams::read_packed(const Place& place, std::int64_t elems, std::int64_t first,
                                   std::span<float> out) {
  dispatch_format(place.format, [&]<class F>() {
    const std::int64_t begin = first / F::kBlockElems * F::kBlockElems;
    const std::int64_t end =
        std::min<std::int64_t>(elems, (first + static_cast<std::int64_t>(out.size()) + F::kBlockElems - 1) /
                                          F::kBlockElems * F::kBlockElems);
    codes_.resize(static_cast<std::size_t>(code_bytes(F::kId, end - begin)));
    std::vector<typename F::Scale> scales(static_cast<std::size_t>(scale_count(F::kId, end - begin)));
    block_.resize(static_cast<std::size_t>(end - begin));
    file_.read(*place.values, static_cast<std::uint64_t>(code_bytes(F::kId, begin)),
               std::as_writable_bytes(std::span(codes_)));
    file_.read_elems(*place.scales, begin / F::kBlockElems, std::as_writable_bytes(std::span(scales)));
    F::dequantize(codes_.data(), scales.data(), 0, std::span(block_));
    std::copy_n(block_.begin() + (first - begin), out.size(), out.begin());
  });
}

// Canonical weights of packed matrices are bf16, so that what is not packed decides.
DType CheckpointParams::type() const { return float_type(*places_[model_.roles.embedding].values); }

// --- files with names of ours -----------------------------------------------------------------------------

NamedParams::NamedParams(const fs::path& file, const ModelConfig& config, const ModelParams& model)
    : file_(file) {
  std::map<std::string_view, const StoredTensor*> unused;
  const bool is_checkpoint = file.filename() == kStateFile;
  for (const StoredTensor& t : file_.header().tensors()) {
    if (!is_checkpoint || is_master(t.name)) unused[t.name] = &t;  // moments stay behind
  }
  for (const Param& p : model.params) {
    const auto found = unused.find(is_checkpoint ? master_of(p.name) : p.name);
    if (found == unused.end()) {
      throw DataError(fmt::format("{}: tensor '{}' is missing", file.string(), p.name),
                      "names are this program's: tools/convert_nanogpt.py translates those of nanoGPT and "
                      "Hugging Face; biases are there only with --bias");
    }
    check_named_shape(file_.header(), *found->second, p);
    stored_.push_back(found->second);
    unused.erase(found);
  }
  // The head of a tied model may be stored once more.
  if (config.tied_head) unused.erase(fmt::format("{}.weight", config.family->names.head));
  if (!unused.empty()) {
    const std::string_view name = unused.begin()->first;
    throw DataError(fmt::format("{}: tensor '{}' belongs to no part of this model", file.string(), name),
                    name.ends_with(".bias")
                        ? "these weights have biases: add --bias"
                        : "name the shape that the weights have with --model and --n-layer");
  }
}

void NamedParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  file_.read(*stored_[index], first, out);
}

DType NamedParams::type() const {
  return common_type(stored_, [](const StoredTensor* t) { return t; });
}

// --- Hugging Face folders --------------------------------------------------------------------------------

bool HfParams::is_there(const fs::path& folder) {
  return fs::exists(folder / kModelFile) || fs::exists(folder / kIndexFile);
}

HfParams::HfParams(const fs::path& folder, const ModelConfig& config, const ModelParams& model)
    : model_(model), tensors_(hf_tensors(config, model)), held_tensor_(kNoTensor) {
  std::map<std::string, Stored> found;
  const auto open = [&](const std::string& name) -> const TensorFile& {
    files_.push_back(std::make_unique<TensorFile>(folder / name));
    for (const StoredTensor& t : files_.back()->header().tensors()) {
      const std::string full = full_name(config, t.name);
      QT_CHECK(found.emplace(full, Stored{files_.back().get(), &t}).second, DataError,
               "{}: tensor {} is there twice", files_.back()->header().file(), in_quotes(t.name));
    }
    return *files_.back();
  };
  if (fs::exists(folder / kModelFile)) {
    open(kModelFile);
  } else {
    const std::string origin = (folder / kIndexFile).string();
    const Json index = read_json_file(folder / kIndexFile);
    QT_CHECK(index.is_object(), DataError, "{}: not a JSON object", origin);
    const Json& map = json_object(index, "weight_map", origin);
    std::set<std::string> names;
    for (const auto& [tensor, file] : map.items()) {
      const bool plain = file.is_string() && plain_file_name(file.get<std::string>());
      QT_CHECK(plain, DataError, "{}: field 'weight_map' gives tensor {} no file name", origin,
               in_quotes(tensor));
      names.insert(file.get<std::string>());
    }
    for (const std::string& name : names) open(name);
    for (auto it = map.begin(); it != map.end(); ++it) {
      QT_CHECK(std::any_of(files_.begin(), files_.end(),
                           [&](const auto& f) { return f->header().find(it.key()) != nullptr; }),
               DataError, "{}: tensor {} is in no file of the index", origin, in_quotes(it.key()));
    }
  }
  places_.resize(model.params.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const HfTensor& wanted = tensors_[i];
    const auto it = found.find(wanted.name);
    if (it == found.end()) {
      throw DataError(fmt::format("{}: tensor '{}' is missing", folder.string(), wanted.name),
                      "the folder must hold all weights of the model in its config.json, as safetensors");
    }
    const Stored stored = it->second;
    const std::vector<std::int64_t>& shape = stored.tensor->shape;
    const bool longer = wanted.params.size() == 1 && model.roles.positions == wanted.params.front() &&
                        shape.size() == 2 && shape[1] == wanted.shape[1] && shape[0] > wanted.shape[0];
    if (shape != wanted.shape && !longer) fail_shape(stored.file->header(), *stored.tensor, wanted.shape);
    stored_.push_back(stored);
    found.erase(it);
    std::int64_t row = 0;
    for (const std::size_t index : wanted.params) {
      places_[index] = {i, row};
      row += wanted.transposed || wanted.shape.size() == 2 ? model.params[index].N : model.params[index].K;
    }
    if (wanted.is_zero()) check_zero(i);
  }
  std::erase_if(found, [&](const auto& entry) { return hf_ignored(config, entry.first); });
  if (!found.empty()) {
    throw DataError(fmt::format("{}: tensor {} belongs to no part of this model", folder.string(),
                                in_quotes(found.begin()->first)),
                    "config.json and the weights beside it must belong together");
  }
}

void HfParams::check_zero(std::size_t tensor) {
  const Stored& s = stored_[tensor];
  std::vector<float> values(static_cast<std::size_t>(s.tensor->elems()));
  s.file->read(*s.tensor, 0, std::span(values));
  QT_CHECK(std::all_of(values.begin(), values.end(), [](float x) { return x == 0; }), DataError,
           "{}: tensor {} is not zero, but config.json says that there are no biases",
           s.file->header().file(), in_quotes(s.tensor->name));
}

void HfParams::hold(std::size_t tensor) {
  if (held_tensor_ == tensor) return;
  const Stored& s = stored_[tensor];
  held_tensor_ = kNoTensor;
  held_.resize(static_cast<std::size_t>(s.tensor->elems()));
  for (std::size_t done = 0; done < held_.size();) {
    const std::span<float> piece =
        std::span(held_).subspan(done, std::min<std::size_t>(held_.size() - done, kPieceElems));
    s.file->read(*s.tensor, static_cast<std::int64_t>(done), piece);
    done += piece.size();
  }
  held_tensor_ = tensor;
}

void HfParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  const Place& place = places_[index];
  const HfTensor& t = tensors_[place.tensor];
  const Stored& s = stored_[place.tensor];
  const std::int64_t K = model_.params[index].K;
  if (!t.transposed) {
    const std::int64_t before = t.shape.size() == 2 ? place.row * K : place.row;
    return s.file->read(*s.tensor, before + first, out);
  }
  hold(place.tensor);
  // Rows of ours are columns there: whole rows are read side by side, which is kinder to caches than one by
  // one.
  const std::int64_t width = t.shape[1], end = first + static_cast<std::int64_t>(out.size());
  const auto at = [&](std::int64_t n, std::int64_t k) {
    return held_[static_cast<std::size_t>(k * width + place.row + n)];
  };
  const std::int64_t whole_begin = std::min(end, (first + K - 1) / K * K),
                     whole_end = std::max(whole_begin, end / K * K);
  for (std::int64_t e = first; e < whole_begin; ++e)
    out[static_cast<std::size_t>(e - first)] = at(e / K, e % K);
  for (std::int64_t k = 0; k < K; ++k) {
    for (std::int64_t n = whole_begin / K; n < whole_end / K; ++n)
      out[static_cast<std::size_t>(n * K + k - first)] = at(n, k);
  }
  for (std::int64_t e = whole_end; e < end; ++e) out[static_cast<std::size_t>(e - first)] = at(e / K, e % K);
}

DType HfParams::type() const {
  return common_type(stored_, [](const Stored& s) { return s.tensor; });
}

// --- rounding --------------------------------------------------------------------------------------------

float rounded_to(DType type, float x) {
  if (type == DType::bf16) return to_float(to_bf16(x));
  if (type == DType::f16) return to_float(to_f16(x));
  return x;
}

void upload_floats(Backend& backend, std::span<const float> values, const TensorView& to) {
  if (to.dtype == DType::bf16) return upload_as<bf16, to_bf16>(backend, values, to);
  if (to.dtype == DType::f16) return upload_as<f16, to_f16>(backend, values, to);
  backend.upload(std::as_bytes(values), to);
}

void RoundedParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  source_.read(index, first, out);
  if (type_ == DType::f32) return;
  for (float& x : out) x = rounded_to(type_, x);
}

}  // namespace qt
