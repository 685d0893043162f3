// ParamSource: the params of a model as f32, in pieces of any size, from a checkpoint, a file with the names of
// this program, or a Hugging Face folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quant/param.h"
#include "src/convert/hf_names.h"
#include "src/core/tensor.h"
#include "src/io/tensor_file.h"
#include "src/model/model.h"
#include "src/model/params.h"
#include "src/options/options.h"

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

// A checkpoint folder of ours. Packed matrices are expanded to the canonical weight.
class CheckpointParams : public ParamSource {
 public:
  // `model` must outlive it; `formats` says what each of its weights is packed in. DataError when a tensor is
  // missing or has another shape.
  CheckpointParams(const std::filesystem::path& checkpoint, const ModelParams& model, WeightsOf which,
                   const ModelOptions& formats);
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override;

 private:
  struct Place {
    const StoredTensor* values = nullptr;  // floats, or codes
    const StoredTensor* scales = nullptr;  // packed weights alone
    FormatId format = FormatId::none;
  };
  void read_packed(const Place& place, std::int64_t elems, std::int64_t first, std::span<float> out);

  TensorFile file_;
  const ModelParams& model_;
  std::vector<Place> places_;
  std::vector<std::uint8_t> codes_;
  std::vector<float> block_;
};

// A safetensors file with the names and shapes of this program, or the masters in the state of a checkpoint.
class NamedParams : public ParamSource {
 public:
  // DataError naming file and tensor when one is missing, not used or has another shape. A position table may be
  // longer than the model's; the head of a tied model may be stored once more.
  NamedParams(const std::filesystem::path& file, const ModelConfig& config, const ModelParams& model);
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override;

 private:
  TensorFile file_;
  std::vector<const StoredTensor*> stored_;  // by param
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

// A source of values that are rounded to f32, bf16 or f16 on their way: what a file of that type gives back.
class RoundedParams : public ParamSource {
 public:
  RoundedParams(ParamSource& source, DType type) : source_(source), type_(type) {}
  void read(std::size_t index, std::int64_t first, std::span<float> out) override;
  DType type() const override { return type_; }

 private:
  ParamSource& source_;
  DType type_;
};

// To a view of f32, bf16 or f16 with as many elements, rounded to nearest.
void upload_floats(Backend& backend, std::span<const float> values, const TensorView& to);

// x rounded to nearest of `type` (f32, bf16, f16) and widened again.
float rounded_to(DType type, float x);

}  // namespace qt
