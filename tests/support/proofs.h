// The list of proofs: for each op a body that compares it with its oracle, and the mutants that the same
// comparison must catch. A mutant is a mistake that the oracle makes on request (Case::is), which looks the
// same from here as one that the op makes. tests/kernels/test_ops.cpp runs the list on every backend and checks that
// no op is missing from it.
#pragma once

#include <string>
#include <vector>

#include "tests/support/case.h"

namespace qt::test {

struct OpProof {
  std::string op;                    // its kName
  std::vector<DType> dtypes;         // of its inputs
  std::vector<std::string> mutants;  // sentences; all are caught in every dtype
  void (*body)(Case&);
  std::string part = {};  // tells two proofs of one op and dtype apart in the names of tests
};

inline std::vector<OpProof>& op_proofs() {
  static std::vector<OpProof> all;
  return all;
}

// Registers at namespace scope: `const Proves kNorm({...});`
struct Proves {
  explicit Proves(OpProof proof) { op_proofs().push_back(std::move(proof)); }
};

// What ops compute on, "f" in kernels/ops.h; and what gradients are accumulated in.
inline const std::vector<DType> kFloats = {DType::f32, DType::bf16, DType::f16};
inline const std::vector<DType> kGradients = {DType::f32, DType::bf16};

}  // namespace qt::test
