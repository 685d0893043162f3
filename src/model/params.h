// The parameters of a model: names, shapes, groups, inits. Their order is what checkpoints list and
// what fixes the draws of an init; the roles say who is who.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "quant/param.h"
#include "src/model/config.h"

namespace qt {

// Indices into a ParamList; none where the architecture has no such parameter.
using ParamIndex = std::optional<std::size_t>;

inline const Param* param_at(const ParamList& params, const ParamIndex& index) {
  return index ? &params[*index] : nullptr;
}

struct LinearRoles {
  std::size_t weight = 0;
  ParamIndex bias;
};

struct NormRoles {
  ParamIndex weight, bias;
};

struct BlockRoles {
  NormRoles norm1, norm2;
  LinearRoles q, k, v, proj, fc, mlp_proj;
  std::optional<LinearRoles> gate;  // of a gated MLP
};

struct ModelRoles {
  std::size_t embedding = 0;
  ParamIndex positions;
  std::vector<BlockRoles> blocks;
  NormRoles final_norm;
  std::size_t head = 0;  // the embedding itself where it is tied
};

struct ModelParams {
  ParamList params;
  ModelRoles roles;
};

// Names and inits are the family's. Vectors (norm weights and biases) are params of one row in
// ParamGroup::norm.
ModelParams make_params(const ModelConfig& config);

}  // namespace qt
