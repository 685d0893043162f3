// check() of the ops that GPT-2 needs beside nanochat's; tests/kernels/test_ops_check.cpp has the others and runs
// all.
#include <cmath>

#include "tests/support/malformed.h"

namespace qt::test {

void check_gelu_and_dropout() {
  using D = DType;
  const auto x = [] { return view({2, 5}); };
  Calls(GeluFwd{.x = x(), .y = x()})
      .shape_error("y", [](auto& o) { o.y = o.x; })
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({2, 4});
                   })
      .dtype_error("y",
                   [](auto& o) {
                     o.y = view({2, 5}, D::bf16);
                   })
      .dtype_error("x", [](auto& o) {
        o.x = view({2, 5}, D::f64);
      });
  Calls(GeluBwd{.x = x(), .dy = x(), .dx = x()})
      .accept([](auto& o) { o.dx = o.dy; })
      .shape_error("dx", [](auto& o) { o.dx = o.x; })
      .shape_error("dy",
                   [](auto& o) {
                     o.dy = view({5, 2});
                   })
      .dtype_error("dx", [](auto& o) {
        o.dx = view({2, 5}, D::bf16);
      });
  Calls(Dropout{.x = x(), .y = x(), .rate = 0.1f, .rng = dropout_stream()})
      .accept([](auto& o) { o.y = o.x; })
      .accept([](auto& o) { o.rate = 0, o.rng = {}; })
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({5, 2});
                   })
      .shape_error("y", [](auto& o) { o.y = behind(o.x, 4); })
      .shape_error("rate", [](auto& o) { o.rate = 1; })
      .shape_error("rate", [](auto& o) { o.rate = -0.1f; })
      .shape_error("rate", [](auto& o) { o.rate = std::nanf(""); })
      .shape_error("purpose dropout", [](auto& o) { o.rng.purpose = RngPurpose::init; })
      .shape_error("first_element", [](auto& o) { o.first_element = -1; })
      .dtype_error("y", [](auto& o) {
        o.y = view({2, 5}, D::bf16);
      });
}

void check_positions_and_sums() {
  using D = DType;
  Calls(EmbeddingFwd{.ids = view({6}, D::i32),
                     .table = view({5, 3}),
                     .y = view({6, 3}),
                     .positions = view({7, 3}),
                     .T = 3,
                     .first_position = 4})
      .accept([](auto& o) { o.positions = {}, o.T = 0; })
      .shape_error("T", [](auto& o) { o.T = 0; })
      .shape_error("whole rows", [](auto& o) { o.T = 4, o.first_position = 0; })
      .shape_error("first_position", [](auto& o) { o.first_position = -1; })
      .shape_error("number of positions", [](auto& o) { o.first_position = 5; })
      .shape_error("positions",
                   [](auto& o) {
                     o.positions = view({7, 4});
                   })
      .shape_error("positions",
                   [](auto& o) {
                     o.positions = TensorView(o.y.data, D::f32, {7, 3});
                   })
      .dtype_error("positions", [](auto& o) {
        o.positions = view({7, 3}, D::bf16);
      });
  Calls(PositionBwd{.dy = view({6, 4}, D::bf16), .dpositions = view({5, 4}), .T = 3})
      .shape_error("T", [](auto& o) { o.T = 0; })
      .shape_error("whole rows", [](auto& o) { o.T = 4; })
      .shape_error("number of positions",
                   [](auto& o) {
                     o.dpositions = view({2, 4});
                   })
      .shape_error("dpositions",
                   [](auto& o) {
                     o.dpositions = view({5, 3});
                   })
      .dtype_error("dpositions", [](auto& o) {
        o.dpositions = view({5, 4}, D::f16);
      });
  Calls(ColumnSum{.x = view({6, 4}, D::bf16), .out = view({4})})
      .accept([](auto& o) { o.x = pitched(o.x, 9); })
      .shape_error("out", [](auto& o) { o.out = view({6}); })
      .shape_error("out", [](auto& o) { o.out = TensorView(o.x.data, D::f32, {4}); })
      .dtype_error("out", [](auto& o) { o.out = view({4}, D::bf16); })
      .dtype_error("scratch", [](auto& o) { o.scratch = view({4}); });
}

void check_layernorm() {
  using D = DType;
  Calls(LayerNormFwd{.x = view({4, 6}),
                     .weight = view({6}),
                     .bias = view({6}),
                     .y = view({4, 6}),
                     .mean = view({4}),
                     .rstd = view({4})})
      .accept([](auto& o) { o.y = o.x; })
      .accept([](auto& o) { o.bias = {}; })
      .accept([](auto& o) { o.mean = {}; })
      .shape_error("weight", [](auto& o) { o.weight = view({4}); })
      .shape_error("bias", [](auto& o) { o.bias = view({5}); })
      .shape_error("mean", [](auto& o) { o.mean = view({6}); })
      .shape_error("rstd", [](auto& o) { o.rstd = o.mean; })
      .shape_error("y", [](auto& o) { o.y = behind(o.x, 24); })
      .dtype_error("weight", [](auto& o) { o.weight = view({6}, D::bf16); })
      .dtype_error("y", [](auto& o) {
        o.y = view({4, 6}, D::bf16);
      });
  Calls(LayerNormBwd{.x = view({4, 6}),
                     .mean = view({4}),
                     .rstd = view({4}),
                     .weight = view({6}),
                     .dy = view({4, 6}),
                     .dx = view({4, 6}),
                     .dweight = view({6}),
                     .dbias = view({6})})
      .accept([](auto& o) { o.dx = o.dy; })
      .accept([](auto& o) { o.dbias = {}; })
      .accept([](auto& o) { o.mean = {}; })
      .shape_error("dx", [](auto& o) { o.dx = o.dy, o.accumulate = true; })
      .shape_error("dx", [](auto& o) { o.dx = o.x; })
      .shape_error("dweight", [](auto& o) { o.dweight = {}; })
      .shape_error("dweight", [](auto& o) { o.dweight = o.weight; })
      .shape_error("dbias", [](auto& o) { o.dbias = o.dweight; })
      .dtype_error("dbias", [](auto& o) { o.dbias = view({6}, D::bf16); })
      .dtype_error("mean", [](auto& o) { o.mean = view({4}, D::f64); });
}

}  // namespace qt::test
