// Malformed calls of ops: a sound call, and ways to spoil it which check() must refuse with an error that
// names the op and the field. Views here point at made-up addresses: check() never looks behind them.
#pragma once

#include <functional>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "kernels/ops.h"

namespace qt::test {

using Shape = std::initializer_list<std::int64_t>;

// Each view in memory of its own.
inline TensorView view(Shape shape, DType dtype = DType::f32) {
  static std::uintptr_t next = 1 << 20;
  const TensorView v(reinterpret_cast<void*>(next), dtype, shape);
  next += static_cast<std::uintptr_t>((v.bytes() + 4095) / 4096 * 4096 + 4096);
  return v;
}

inline TensorView pitched(TensorView v, std::int64_t pitch) {
  v.pitch = pitch;
  return v;
}
inline TensorView in_host_memory(TensorView v) {
  v.space = Space::host;
  return v;
}
inline TensorView behind(TensorView v, std::int64_t bytes) {
  v.data += bytes;
  return v;
}

inline PackedView packed(std::int64_t N, std::int64_t K) {
  PackedView w;
  w.format = FormatId::nf4;
  w.N = N;
  w.K = K;
  w.codes = view({code_bytes(FormatId::nf4, N * K)}, DType::u8);
  w.absmax = view({scale_count(FormatId::nf4, N * K)});
  return w;
}

inline std::set<std::string>& checked_ops() {
  static std::set<std::string> names;
  return names;
}

// Ways to spoil one sound call.
template <class Op>
class Calls {
 public:
  explicit Calls(Op sound) : sound_(std::move(sound)) {
    EXPECT_NO_THROW(sound_.check()) << Op::kName;
    checked_ops().insert(Op::kName);
  }

  // Sound in another way.
  Calls& accept(const std::function<void(Op&)>& change) {
    Op op = sound_;
    change(op);
    EXPECT_NO_THROW(op.check()) << Op::kName;
    return *this;
  }
  Calls& shape_error(const std::string& names, const std::function<void(Op&)>& spoil) {
    return refuse<ShapeError>(names, spoil);
  }
  Calls& dtype_error(const std::string& names, const std::function<void(Op&)>& spoil) {
    return refuse<DTypeError>(names, spoil);
  }

 private:
  template <class Kind>
  Calls& refuse(const std::string& names, const std::function<void(Op&)>& spoil) {
    Op op = sound_;
    spoil(op);
    try {
      op.check();
      ADD_FAILURE() << Op::kName << " accepts a malformed " << names;
    } catch (const Kind& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(Op::kName), std::string::npos) << what;
      EXPECT_NE(what.find(names), std::string::npos) << what << " does not name " << names;
    } catch (const Error& error) {
      ADD_FAILURE() << Op::kName << ": another kind of error: " << error.what();
    }
    return *this;
  }

  Op sound_;
};

inline RngStream dropout_stream() { return {.seed = 1, .purpose = RngPurpose::dropout}; }

// Of the ops in tests/kernels/test_ops_check_gpt2.cpp.
void check_gelu_and_dropout();
void check_positions_and_sums();
void check_layernorm();

}  // namespace qt::test
