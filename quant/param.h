// Param: where model, optimizer and checkpoint meet. A model lists its Params; an optimizer updates them;
// a checkpoint stores them. None of the three knows the others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quant/weight.h"
#include "src/core/tensor.h"

namespace qt {

// Decides learning-rate rule, moment precision and whether a weight may be packed.
enum class ParamGroup : std::uint8_t { matrix, embedding, head, norm };
inline constexpr int kParamGroups = 4;

// How a parameter starts, as the init op understands it.
struct ParamInit {
  float stddev = 0.0f;  // 0: all zero
  float constant = 0.0f;
};

// The memory behind one Param. Views are placed by src/model and optim at construction and never move.
struct Param {
  std::string name;  // upstream's own name: "transformer.h.0.attn.c_q.weight"
  ParamGroup group = ParamGroup::matrix;
  std::int64_t N = 0;  // rows (output features)
  std::int64_t K = 0;  // columns (input features)
  ParamInit init;
  std::uint64_t rng_stream = 0;  // position in the model's list: fixes the draws of its init

  Weight weight;    // what forward and backward read; its format is its own
  TensorView grad;  // [N, K] f32 | bf16, inside the one contiguous gradient region

  std::int64_t elems() const { return N * K; }
};

using ParamList = std::vector<Param>;

}  // namespace qt
