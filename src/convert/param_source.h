// ParamSource: the params of a model as f32, in pieces of any size, from a checkpoint or from a Hugging Face
// folder. Files are read at offsets and not mapped, so that the process never holds more of a tensor than was
// asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quant/format_id.h"
#include "quant/param.h"
#include "src/convert/hf_names.h"
#include "src/core/tensor.h"
#include "src/io/file.h"
#include "src/io/safetensors.h"
#include "src/model/params.h"

namespace qt {

class ParamSource {
 public:
  virtual ~ParamSource() = default;
  // Elements [first, first + out.size()) of param `index`, row-major over its [N, K]. DataError naming file
  // and tensor for what is no finite number.
  virtual void read(std::size_t index, std::int64_t first, std::span<float> out) = 0;
  // f32, bf16 or f16: what its matrices are stored in, and so the narrowest type that holds them exactly.
  virtual DType type() const = 0;
};

// A safetensors file whose header is checked and whose data is read piece by piece.
class TensorFile {
 public:
  explicit TensorFile(const std::filesystem::path& path);  // DataError
  const Safetensors& header() const { return header_; }
  // Bytes [offset, offset + out.size()) of a tensor.
  void read(const StoredTensor& t, std::uint64_t offset, std::span<std::byte> out) const;
  // Elements [first, first + out.size()) of an f32, bf16 or f16 tensor; DataError for another type and for
  // what is not finite.
  void read(const StoredTensor& t, std::int64_t first, std::span<float> out) const;

 private:
  Safetensors header_;
  InputFile file_;
  mutable std::vector<std::byte> staging_;
};

// Which of a checkpoint's two copies: what the forward pass read, or the masters.
enum class WeightsOf : std::uint8_t { packed, master };
WeightsOf weights_of_name(std::string_view name);  // "packed", "master"; ConfigError

// A checkpoint folder of ours. Packed matrices are expanded to the canonical weight.
class CheckpointParams : public ParamSource {
 public:
  // `model` must outlive it. DataError when a tensor is missing or has another shape.
  CheckpointParams(const std::filesystem::path& checkpoint, const ModelParams& model, WeightsOf which,
                   FormatId format);
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override;

 private:
  struct Place {
    const StoredTensor* values = nullptr;  // floats, or codes
    const StoredTensor* scales = nullptr;  // packed matrices alone
  };
  void read_packed(const Place& place, std::int64_t elems, std::int64_t first, std::span<float> out);

  TensorFile file_;
  FormatId format_;
  const ModelParams& model_;
  std::vector<Place> places_;
  std::vector<std::uint8_t> codes_;
  std::vector<float> scales_, block_;
};

// A folder as transformers writes it: model.safetensors, or shards with an index. Conv1D's matrices are
// turned round: one tensor at a time is then held whole.
class HfParams : public ParamSource {
 public:
  // DataError naming file and tensor when one is missing, unknown or has another shape, or when one that this
  // model does not have is not zero. A position table may be longer than the model's.
  HfParams(const std::filesystem::path& folder, const ModelConfig& config, const ModelParams& model);
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override;

  // Whether a folder holds weights in one of the two forms.
  static bool is_there(const std::filesystem::path& folder);

 private:
  struct Place {
    std::size_t tensor = 0;  // of tensors_
    std::int64_t row = 0;    // where the param's rows begin in it
  };
  struct Stored {
    const TensorFile* file = nullptr;
    const StoredTensor* tensor = nullptr;
  };
  void check_zero(std::size_t tensor);
  void hold(std::size_t tensor);

  const ModelParams& model_;
  std::vector<HfTensor> tensors_;
  std::vector<Place> places_;  // by param
  std::vector<std::unique_ptr<TensorFile>> files_;
  std::vector<Stored> stored_;  // by tensor
  std::vector<float> held_;     // a transposed tensor as it is stored
  std::size_t held_tensor_;
};

// A source whose values are rounded to f32, bf16 or f16 on their way: what a file of that type gives back.
class RoundedParams : public ParamSource {
 public:
  RoundedParams(ParamSource& source, DType type) : source_(source), type_(type) {}
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override { return type_; }

 private:
  ParamSource& source_;
  DType type_;
};

// x rounded to nearest of `type` (f32, bf16, f16) and widened again.
float rounded_to(DType type, float x);

}  // namespace qt
