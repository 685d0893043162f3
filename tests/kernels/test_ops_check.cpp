// check() of every op: a sound call passes, and malformed ones are refused with an error that names the op
// and the field.
#include "quant/q8.h"
#include "tests/support/malformed.h"

namespace qt::test {
namespace {

void check_elementwise() {
  using D = DType;
  Calls(Fill{.x = view({3, 4})})
      .shape_error("x", [](auto& o) { o.x = {}; })
      .shape_error("x", [](auto& o) { o.x = pitched(o.x, 9); })
      .shape_error("x", [](auto& o) { o.x = in_host_memory(o.x); })
      .dtype_error("x", [](auto& o) {
        o.x = view({3, 4}, D::i64);
      });
  Calls(Cast{.x = view({9}), .y = view({9}, D::bf16)})
      .shape_error("y", [](auto& o) { o.y = view({8}, D::bf16); })
      .shape_error("x",
                   [](auto& o) {
                     o.x = view({3, 3});
                   })
      .accept([](auto& o) { o.y = view({9}, D::f16); })
      .dtype_error("y", [](auto& o) { o.y = view({9}, D::f64); })
      .shape_error("y", [](auto& o) { o.y = TensorView(o.x.data, D::bf16, {9}); });
  Calls(Add{.a = view({2, 5}), .b = view({2, 5}), .y = view({2, 5})})
      .accept([](auto& o) { o.y = o.a; })
      .accept([](auto& o) { o.y = o.b; })
      .shape_error("b",
                   [](auto& o) {
                     o.b = view({5, 2});
                   })
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({2, 6});
                   })
      .shape_error("y", [](auto& o) { o.y = behind(o.a, 4); })
      .dtype_error("b", [](auto& o) {
        o.b = view({2, 5}, D::bf16);
      });
  Calls(Multiply{.a = view({2, 5}), .b = view({2, 5}), .y = view({2, 5})})
      .accept([](auto& o) { o.y = o.a; })
      .accept([](auto& o) { o.y = o.b; })
      .shape_error("a", [](auto& o) { o.a = {}; })
      .shape_error("b",
                   [](auto& o) {
                     o.b = view({5, 2});
                   })
      .shape_error("y", [](auto& o) { o.y = behind(o.a, 4); })
      .dtype_error("y", [](auto& o) {
        o.y = view({2, 5}, D::bf16);
      });
  Calls(MultiplyBwd{
            .a = view({2, 5}), .b = view({2, 5}), .dy = view({2, 5}), .da = view({2, 5}), .db = view({2, 5})})
      .accept([](auto& o) { o.da = o.dy, o.db = o.b; })
      .shape_error("da", [](auto& o) { o.da = o.b; })
      .shape_error("db", [](auto& o) { o.db = o.dy; })
      .shape_error("db", [](auto& o) { o.db = o.a; })
      .shape_error("da", [](auto& o) { o.da = o.db; })
      .shape_error("dy",
                   [](auto& o) {
                     o.dy = view({2, 4});
                   })
      .dtype_error("db", [](auto& o) {
        o.db = view({2, 5}, D::bf16);
      });
  Calls(InitNormal{.x = view({9})})
      .accept([](auto& o) { o.x = view({9}, D::bf16); })
      .dtype_error("x", [](auto& o) { o.x = view({9}, D::f16); })
      .shape_error("first_element", [](auto& o) { o.first_element = -1; });
  Calls(Relu2Fwd{.x = view({2, 5}), .y = view({2, 5})})
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({2, 4});
                   })
      .shape_error("y", [](auto& o) { o.y = o.x; })
      .dtype_error("y",
                   [](auto& o) {
                     o.y = view({2, 5}, D::bf16);
                   })
      .shape_error("x", [](auto& o) { o.x = {}; });
  Calls(Relu2Bwd{.x = view({2, 5}), .dy = view({2, 5}), .dx = view({2, 5})})
      .accept([](auto& o) { o.dx = o.dy; })
      .shape_error("dx", [](auto& o) { o.dx = o.x; })
      .shape_error("dy",
                   [](auto& o) {
                     o.dy = view({5, 2});
                   })
      .dtype_error("dx", [](auto& o) {
        o.dx = view({2, 5}, D::bf16);
      });
  Calls(EmbeddingFwd{.ids = view({7}, D::i32), .table = view({5, 3}), .y = view({7, 3})})
      .dtype_error("ids", [](auto& o) { o.ids = view({7}, D::i64); })
      .dtype_error("y",
                   [](auto& o) {
                     o.y = view({7, 3}, D::bf16);
                   })
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({7, 4});
                   })
      .shape_error("table", [](auto& o) { o.table = view({15}); });
  Calls(EmbeddingBwd{.ids = view({7}, D::i32), .dy = view({7, 3}, D::bf16), .dtable = view({5, 3})})
      .shape_error("dy",
                   [](auto& o) {
                     o.dy = view({6, 3}, D::bf16);
                   })
      .shape_error("dtable",
                   [](auto& o) {
                     o.dtable = view({5, 4});
                   })
      .dtype_error("dtable",
                   [](auto& o) {
                     o.dtable = view({5, 3}, D::f64);
                   })
      .shape_error("dtable",
                   [](auto& o) {
                     o.dtable = TensorView(o.dy.data, D::f32, {5, 3});
                   })
      .dtype_error("dtable",
                   [](auto& o) {
                     o.dy = view({7, 3}, D::f16), o.dtable = view({5, 3}, D::bf16);
                   })
      .dtype_error("scratch", [](auto& o) { o.scratch = view({64}, D::f32); });
}

void check_norm_and_rope() {
  using D = DType;
  Calls(RmsNormFwd{.x = view({4, 6}), .y = view({4, 6}), .rstd = view({4})})
      .accept([](auto& o) { o.y = o.x; })
      .shape_error("rstd", [](auto& o) { o.rstd = view({6}); })
      .shape_error("rstd", [](auto& o) { o.rstd = TensorView(o.x.data, D::f32, {4}); })
      .shape_error("y", [](auto& o) { o.y = behind(o.x, 24); })
      .shape_error("x", [](auto& o) { o.x = pitched(o.x, 8); })
      .dtype_error("y",
                   [](auto& o) {
                     o.y = view({4, 6}, D::bf16);
                   })
      .dtype_error("rstd", [](auto& o) { o.rstd = view({4}, D::bf16); });
  Calls(RmsNormBwd{.y = view({4, 6}), .rstd = view({4}), .dy = view({4, 6}), .dx = view({4, 6})})
      .accept([](auto& o) { o.dx = o.dy; })
      .shape_error("dx", [](auto& o) { o.dx = o.dy, o.accumulate = true; })
      .shape_error("dx", [](auto& o) { o.dx = o.y; })
      .shape_error("dy",
                   [](auto& o) {
                     o.dy = view({4, 5});
                   })
      .dtype_error("dx", [](auto& o) {
        o.dx = view({4, 6}, D::bf16);
      });
  Calls(RopeTable{.cos = view({9, 4}), .sin = view({9, 4})})
      .shape_error("sin",
                   [](auto& o) {
                     o.sin = view({9, 5});
                   })
      .shape_error("sin", [](auto& o) { o.sin = o.cos; })
      .dtype_error("sin",
                   [](auto& o) {
                     o.sin = view({9, 4}, D::bf16);
                   })
      .shape_error("base", [](auto& o) { o.base = 0; });
  Calls(RopeNormFwd{.x = view({6, 2, 8}),
                    .y = view({6, 2, 8}),
                    .rstd = view({6, 2}),
                    .cos = view({9, 4}),
                    .sin = view({9, 4}),
                    .T = 3})
      .accept([](auto& o) { o.y = o.x; })
      .accept([](auto& o) { o.rstd = {}; })
      .accept([](auto& o) { o.first_position = 6; })
      .shape_error("positions", [](auto& o) { o.first_position = 7; })
      .shape_error("first_position", [](auto& o) { o.first_position = -1; })
      .shape_error("T", [](auto& o) { o.T = 4; })
      .shape_error("T", [](auto& o) { o.T = 0; })
      .shape_error("cos",
                   [](auto& o) {
                     o.cos = view({9, 8});
                   })
      .shape_error("head width",
                   [](auto& o) {
                     o.x = o.y = view({6, 2, 7});
                   })
      .dtype_error("sin", [](auto& o) {
        o.sin = view({9, 4}, D::bf16);
      });
  Calls(RopeNormBwd{.y = view({6, 2, 8}),
                    .rstd = view({6, 2}),
                    .dy = view({6, 2, 8}),
                    .dx = view({6, 2, 8}),
                    .cos = view({9, 4}),
                    .sin = view({9, 4}),
                    .T = 3})
      .accept([](auto& o) { o.dx = o.dy; })
      .accept([](auto& o) { o.y = o.rstd = {}; })
      .shape_error("dx", [](auto& o) { o.dx = o.y; })
      .shape_error("y", [](auto& o) { o.y = {}; })
      .shape_error("rstd",
                   [](auto& o) {
                     o.rstd = view({2, 6});
                   })
      .shape_error("positions",
                   [](auto& o) {
                     o.cos = view({2, 4}), o.sin = view({2, 4});
                   })
      .dtype_error("dy", [](auto& o) {
        o.dy = view({6, 2, 8}, D::bf16);
      });
}

void check_attention() {
  using D = DType;
  const AttentionFwd forward{.q = view({2, 5, 4, 8}),
                             .k = view({2, 7, 2, 8}),
                             .v = view({2, 7, 2, 8}),
                             .y = view({2, 5, 4, 8}),
                             .lse = view({2, 4, 5})};
  const auto drops = [](auto& o) { o.dropout = 0.1f, o.rng = dropout_stream(); };
  Calls(forward)
      .shape_error("key heads",
                   [](auto& o) {
                     o.k = view({2, 7, 3, 8}), o.v = view({2, 7, 3, 8});
                   })
      .shape_error("k",
                   [](auto& o) {
                     o.k = view({2, 7, 2, 6});
                   })
      .shape_error("v",
                   [](auto& o) {
                     o.v = view({2, 6, 2, 8});
                   })
      .shape_error("keys",
                   [](auto& o) {
                     o.k = view({2, 4, 2, 8}), o.v = view({2, 4, 2, 8});
                   })
      .shape_error("lse",
                   [](auto& o) {
                     o.lse = view({2, 5, 4});
                   })
      .shape_error("y", [](auto& o) { o.y = o.q; })
      .dtype_error("k",
                   [](auto& o) {
                     o.k = view({2, 7, 2, 8}, D::bf16);
                   })
      .dtype_error("lse", [](auto& o) {
        o.lse = view({2, 4, 5}, D::f64);
      });
  Calls(forward)
      .accept([&](auto& o) {
        o.k = view({2, 5, 2, 8}), o.v = view({2, 5, 2, 8}), drops(o);
      })
      .shape_error("as many keys", [&](auto& o) { drops(o); })
      .shape_error("dropout", [](auto& o) { o.dropout = 1; })
      .shape_error("purpose dropout", [](auto& o) { o.dropout = 0.5f; })
      .shape_error("first_row", [](auto& o) { o.first_row = -1; });
  const auto q = [] { return view({2, 5, 4, 8}); };
  const auto k = [] { return view({2, 5, 2, 8}); };
  Calls(AttentionBwd{.q = q(),
                     .k = k(),
                     .v = k(),
                     .y = q(),
                     .lse = view({2, 4, 5}),
                     .dy = q(),
                     .dq = q(),
                     .dk = k(),
                     .dv = k()})
      .accept([&](auto& o) { drops(o); })
      .shape_error("dropout", [](auto& o) { o.dropout = -1; })
      .shape_error("first_row", [](auto& o) { o.first_row = -1; })
      .shape_error("as many keys",
                   [](auto& o) {
                     o.k = o.v = o.dk = o.dv = view({2, 7, 2, 8});
                   })
      .shape_error("dk",
                   [](auto& o) {
                     o.dk = view({2, 5, 4, 8});
                   })
      .shape_error("dv", [](auto& o) { o.dv = o.dk; })
      .shape_error("dq", [](auto& o) { o.dq = o.dy; })
      .shape_error("scratch", [](auto& o) { o.scratch = TensorView(o.q.data, D::u8, {64}); })
      .dtype_error("dv", [](auto& o) {
        o.dv = view({2, 5, 2, 8}, D::bf16);
      });
}

void check_products() {
  using D = DType;
  Calls(Matmul{.a = view({5, 7}), .b = view({3, 7}), .c = view({5, 3})})
      .accept([](auto& o) {
        o.a = pitched(view({5, 7}), 20), o.b = pitched(view({3, 7}), 11), o.c = pitched(view({5, 3}), 4);
      })
      .accept([](auto& o) {
        o.a = view({5, 7}, D::bf16), o.b = view({3, 7}, D::bf16);
      })
      .accept([](auto& o) {
        o.layout = GemmLayout::nn, o.b = view({7, 3});
      })
      .accept([](auto& o) { o.bias = view({3}); })
      .shape_error("bias", [](auto& o) { o.bias = view({5}); })
      .shape_error("bias", [](auto& o) { o.bias = behind(view({3}), 4); })
      .shape_error("bias", [](auto& o) { o.bias = view({3}), o.accumulate = true; })
      .shape_error("bias",
                   [](auto& o) {
                     o.layout = GemmLayout::nn, o.b = view({7, 3}), o.bias = view({3});
                   })
      .dtype_error("bias", [](auto& o) { o.bias = view({3}, D::bf16); })
      .accept([](auto& o) {
        o.layout = GemmLayout::tn, o.a = view({7, 5}), o.b = view({7, 3});
      })
      .shape_error("b",
                   [](auto& o) {
                     o.b = view({3, 6});
                   })
      .shape_error("b", [](auto& o) { o.layout = GemmLayout::nn; })
      .shape_error("c",
                   [](auto& o) {
                     o.c = view({3, 5});
                   })
      .shape_error("a", [](auto& o) { o.a = pitched(o.a, 6); })
      .shape_error("c",
                   [](auto& o) {
                     o.c = TensorView(o.a.data, D::f32, {5, 3});
                   })
      .dtype_error("b",
                   [](auto& o) {
                     o.b = view({3, 7}, D::bf16);
                   })
      .accept([](auto& o) {
        o.a = view({5, 7}, D::f16), o.b = view({3, 7}, D::f16), o.c = view({5, 3}, D::f16);
      })
      .dtype_error("c",
                   [](auto& o) {  // a weight's gradient
                     o.layout = GemmLayout::tn, o.a = view({7, 5}, D::f16), o.b = view({7, 3}, D::f16);
                     o.c = view({5, 3}, D::f16);
                   })
      .dtype_error("c", [](auto& o) {
        o.c = view({5, 3}, D::bf16);
      });  // narrower than its operands
  Calls(PackedMatmul{.x = view({5, 100}), .w = packed(3, 100), .y = view({5, 3})})
      .accept([](auto& o) {
        o.layout = GemmLayout::nn, o.x = view({5, 3}), o.y = view({5, 100});
      })
      .accept([](auto& o) { o.bias = view({3}); })
      .shape_error("bias", [](auto& o) { o.bias = view({100}); })
      .shape_error("bias", [](auto& o) { o.bias = behind(view({3}), 8); })
      .dtype_error("packed weights are multiplied with f32 or bf16 activations only",
                   [](auto& o) {
                     o.x = view({5, 100}, D::f16), o.y = view({5, 3}, D::f16);
                   })
      .shape_error("tn", [](auto& o) { o.layout = GemmLayout::tn; })
      .shape_error("x", [](auto& o) { o.layout = GemmLayout::nn; })
      .shape_error("y",
                   [](auto& o) {
                     o.y = view({5, 4});
                   })
      .shape_error("w", [](auto& o) { o.w.K = 164; })
      .shape_error("w", [](auto& o) { o.w.absmax = view({4}); })
      .shape_error("y",
                   [](auto& o) {
                     o.y = TensorView(o.x.data, D::f32, {5, 3});
                   })
      .dtype_error("y", [](auto& o) {
        o.y = view({5, 3}, D::bf16);
      });
  Calls(Quantize{.src = view({128}), .w = packed(3, 100), .first = 64, .bad_index = view({1}, D::f64)})
      .accept([](auto& o) { o.first = 192, o.src = view({108}); })
      .shape_error("first", [](auto& o) { o.first = 32; })
      .shape_error("first", [](auto& o) { o.first = 256; })
      .shape_error("first", [](auto& o) { o.first = -64; })
      .shape_error("whole blocks", [](auto& o) { o.src = view({100}); })
      .accept([](auto& o) { o.src = view({128}, D::bf16); })
      .dtype_error("src", [](auto& o) { o.src = view({128}, D::f16); })
      .dtype_error("bad_index", [](auto& o) { o.bad_index = view({1}); })
      .shape_error("w", [](auto& o) { o.w.codes = {}; });
  Calls(Dequantize{.w = packed(3, 100), .first = 17, .dst = view({50}, D::bf16)})
      .shape_error("first", [](auto& o) { o.first = 251; })
      .shape_error("first", [](auto& o) { o.first = -1; })
      .shape_error("in tiles", [](auto& o) { o.w.layout = PackedLayout::tiles; })
      .shape_error("dst", [](auto& o) { o.dst = TensorView(o.w.absmax.data, D::bf16, {2}); })
      .dtype_error("dst", [](auto& o) { o.dst = view({50}, D::f16); });
  PackedView tiles = packed(64, 128);
  tiles.layout = PackedLayout::tiles;
  Calls(Dequantize{.w = tiles, .first = 64, .dst = view({128})})
      .shape_error("multiples of 64", [](auto& o) { o.first = 32; })
      .shape_error("multiples of 64", [](auto& o) { o.dst = view({100}); })
      .shape_error("in tiles", [](auto& o) { o.w = packed(32, 256), o.w.layout = PackedLayout::tiles; });
}

void check_loss_and_sums() {
  using D = DType;
  SoftcapCrossEntropy loss{.logits = view({4, 9}), .targets = view({4}, D::i32), .nll = view({4})};
  loss.dlogits = dlogits_view(loss.logits, D::bf16);
  Calls(loss)
      .accept([](auto& o) { o.dlogits = {}; })
      .accept([](auto& o) { o.dlogits = dlogits_view(o.logits, D::f32); })
      .accept([](auto& o) { o.dlogits = dlogits_view(o.logits, D::f16); })
      .accept([](auto& o) { o.softcap = 0; })
      .shape_error("dlogits",
                   [](auto& o) {
                     o.dlogits = view({4, 9});
                   })
      .shape_error("dlogits",
                   [](auto& o) {
                     o.dlogits = TensorView(o.logits.data, D::bf16, {4, 9});
                   })  // its rows are too close
      .shape_error("targets", [](auto& o) { o.targets = view({5}, D::i32); })
      .shape_error("nll", [](auto& o) { o.nll = TensorView(o.logits.data, D::f32, {4}); })
      .shape_error("softcap", [](auto& o) { o.softcap = -1; })
      .dtype_error("targets", [](auto& o) { o.targets = view({4}, D::i64); })
      .dtype_error("logits", [](auto& o) {
        o.logits = view({4, 9}, D::bf16);
      });
  Calls(Softcap{.x = view({9})})
      .shape_error("softcap", [](auto& o) { o.softcap = 0; })
      .dtype_error("x", [](auto& o) { o.x = view({9}, D::bf16); });
  Calls(SumLoss{.nll = view({4}), .targets = view({4}, D::i32), .totals = view({2}, D::f64)})
      .shape_error("totals", [](auto& o) { o.totals = view({1}, D::f64); })
      .shape_error("targets", [](auto& o) { o.targets = view({3}, D::i32); })
      .dtype_error("totals", [](auto& o) { o.totals = view({2}); });
  Calls(SumSquares{.x = view({9}, D::bf16), .out = view({1}, D::f64)})
      .shape_error("x",
                   [](auto& o) {
                     o.x = view({3, 3});
                   })
      .shape_error("out", [](auto& o) { o.out = view({2}, D::f64); })
      .shape_error("scratch", [](auto& o) { o.scratch = TensorView(o.x.data, D::u8, {8}); })
      .dtype_error("out", [](auto& o) { o.out = view({1}); });
}

void check_optimizer() {
  using D = DType;
  const auto params = [] { return view({kStepParamFloats}); };
  Calls(PrepareStep{.grad_sumsq = view({1}, D::f64),
                    .totals = view({2}, D::f64),
                    .params = params(),
                    .stats = view({kStepStatDoubles}, D::f64)})
      .shape_error("params", [](auto& o) { o.params = view({kStepParamFloats - 1}); })
      .shape_error("max_norm", [](auto& o) { o.max_norm = -1; })
      .shape_error("gradient_tokens", [](auto& o) { o.gradient_tokens = 0; })
      .shape_error("stats", [](auto& o) { o.stats = {}; })
      .dtype_error("grad_sumsq", [](auto& o) { o.grad_sumsq = view({1}); });
  Calls(AdamW{.master = view({300}),
              .grad = view({300}, D::bf16),
              .m = view({300}),
              .v = view({300}),
              .params = params()})
      .accept([](auto& o) { o.grad = view({300}); })
      .accept(
          [](auto& o) { o.master = view({300}, D::bf16), o.rng.purpose = RngPurpose::stochastic_rounding; })
      .shape_error("stochastic_rounding", [](auto& o) { o.master = view({300}, D::bf16); })
      .shape_error("first_element",
                   [](auto& o) {
                     o.master = view({300}, D::bf16), o.rng.purpose = RngPurpose::stochastic_rounding;
                     o.first_element = -1;
                   })
      .dtype_error("master", [](auto& o) { o.master = view({300}, D::f16); })
      .shape_error("m", [](auto& o) { o.m = view({299}); })
      .shape_error("v", [](auto& o) { o.v = o.m; })
      .shape_error("grad", [](auto& o) { o.grad = o.master; })
      .shape_error("group", [](auto& o) { o.group = static_cast<ParamGroup>(kParamGroups); })
      .shape_error("master", [](auto& o) { o.master = in_host_memory(o.master); })
      .dtype_error("grad", [](auto& o) { o.grad = view({300}, D::f16); })
      .dtype_error("v", [](auto& o) { o.v = view({300}, D::bf16); });
  const auto codes = [] { return view({300}, D::u8); };
  Calls(AdamW8{.master = view({300}),
               .grad = view({300}),
               .m_codes = codes(),
               .v_codes = codes(),
               .m_absmax = view({2}),
               .v_absmax = view({2}),
               .params = params()})
      .accept(
          [](auto& o) { o.master = view({300}, D::bf16), o.rng.purpose = RngPurpose::stochastic_rounding; })
      .shape_error("stochastic_rounding", [](auto& o) { o.master = view({300}, D::bf16); })
      .shape_error("m_absmax", [](auto& o) { o.m_absmax = view({1}); })
      .shape_error("v_absmax", [](auto& o) { o.v_absmax = view({3}); })
      .shape_error("v_codes", [](auto& o) { o.v_codes = o.m_codes; })
      .shape_error("m_codes", [](auto& o) { o.m_codes = view({299}, D::u8); })
      .dtype_error("m_codes", [](auto& o) { o.m_codes = view({300}); })
      .dtype_error("v_absmax", [](auto& o) { o.v_absmax = view({2}, D::f64); });
}

TEST(OpCheck, RefusesMalformedCallsOfEveryOpNamingOpAndField) {
  checked_ops().clear();
  check_elementwise();
  check_gelu_and_dropout();
  check_positions_and_sums();
  check_layernorm();
  check_norm_and_rope();
  check_attention();
  check_products();
  check_loss_and_sums();
  check_optimizer();
#define QT_LOOK_FOR(OpType) \
  EXPECT_EQ(checked_ops().count(OpType::kName), 1u) << OpType::kName << " has no malformed call";
  QT_FOR_EACH_OP(QT_LOOK_FOR)
#undef QT_LOOK_FOR
}

}  // namespace
}  // namespace qt::test
