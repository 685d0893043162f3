// oneDNN matmul primitives, one cache per thread. oneDNN is built with OpenMP: every thread that comes here
// is told to stay alone (worker_init), so that a product is computed by one thread, in one order. Products
// are f32 at their end and rounding is left to the callers, so that there is one rounding and one place for
// it.
#include "kernels/cpu/gemm_tile.h"

#include <array>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include <dnnl.hpp>
#include <omp.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/target.h"
#include "src/core/error.h"

namespace qt::cpu {

namespace {

// Everything that decides which code runs.
struct Key {
  std::array<std::int64_t, 8> sizes;  // M, N, K, strides of a, strides of b, ldc
  bool bf16 = false;
  bool accumulate = false;
  bool operator==(const Key&) const = default;
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t h = (key.bf16 ? 2u : 0u) + (key.accumulate ? 1u : 0u);
    for (const std::int64_t size : key.sizes) {
      h = (h ^ static_cast<std::uint64_t>(size)) * 0x9E3779B97F4A7C15u;
      h ^= h >> 29;
    }
    return static_cast<std::size_t>(h);
  }
};

// A product as the library would do it.
struct Description {
  Description(const dnnl::engine& engine, const dnnl::memory::desc& a, const dnnl::memory::desc& b,
              const dnnl::memory::desc& c, const dnnl::primitive_attr& attr)
#if DNNL_VERSION_MAJOR >= 3  // operation descriptors are gone: Debian 13, Ubuntu 24.04
      : primitive(engine, a, b, c, attr){}
#else
      : operation(a, b, c), primitive(operation, attr, engine) {
  }
  // primitive.next_impl() reads it where it lies, and keeps no copy.
  dnnl::matmul::desc operation;
#endif
        Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  dnnl::matmul::primitive_desc primitive;
};

bool is_brgemm(const dnnl::matmul::primitive_desc& desc) {
  return std::string_view(desc.impl_info_str()).starts_with("brg");
}

std::int64_t scratch_bytes(const dnnl::matmul::primitive_desc& desc) {
  return static_cast<std::int64_t>(desc.scratchpad_desc().get_size());
}

// A primitive with memory objects; their pointers are set before each execution.
struct Product {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, scratch;
  std::unordered_map<int, dnnl::memory> args;
};

// Primitives of one thread: no locks, and one stream per thread. The library itself shares the generated code
// between threads. A model has a few dozen shapes; the bound is for programs that run many models.
class Products {
 public:
  Products() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    worker_init();  // the caller of a pool may be a thread that the pool did not start
  }

  Product& get(const Key& key) {
    const auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    if (products_.size() >= kMaxProducts) products_.clear();
    return products_.emplace(key, create(key)).first->second;
  }

  void execute(Product& product, const void* a, const void* b, float* c, std::byte* scratch) {
    // The library's handles are not const; it only reads the operands.
    product.a.set_data_handle(const_cast<void*>(a));
    product.b.set_data_handle(const_cast<void*>(b));
    product.c.set_data_handle(c);
    if (product.scratch) product.scratch.set_data_handle(scratch);
    product.primitive.execute(stream_, product.args);
  }

 private:
  static constexpr std::size_t kMaxProducts = 4096;

  Product create(const Key& key) const {
    using dnnl::memory;
    const auto [M, N, K, a_row, a_col, b_row, b_col, ldc] = key.sizes;
    const memory::data_type type = key.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc a({M, K}, type, memory::dims{a_row, a_col});
    const memory::desc b({K, N}, type, memory::dims{b_row, b_col});
    const memory::desc c({M, N}, memory::data_type::f32, memory::dims{ldc, 1});
    dnnl::primitive_attr attr;
    if (key.accumulate) {
      dnnl::post_ops add;
      add.append_sum(1.0f);
      attr.set_post_ops(add);
    }
    const bool dense = wants_dense(M);
    if (dense) attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    Description description(engine_, a, b, c, attr);
    dnnl::matmul::primitive_desc& desc = description.primitive;
    // Matrix-vector products are not for brgemm, which would pack a matrix to use it once.
    while ((M == 1 && is_brgemm(desc)) || (dense && scratch_bytes(desc) > kLibraryScratchBytes)) {
      QT_CHECK(desc.next_impl(), DeviceError, "oneDNN has no product of [{}, {}] by [{}, {}]", M, K, K, N);
    }
    Product product{.primitive = dnnl::matmul(desc),
                    .a = memory(a, engine_, nullptr),
                    .b = memory(b, engine_, nullptr),
                    .c = memory(c, engine_, nullptr),
                    .scratch = {},
                    .args = {}};
    product.args = {{DNNL_ARG_SRC, product.a}, {DNNL_ARG_WEIGHTS, product.b}, {DNNL_ARG_DST, product.c}};
    if (dense) {
      product.scratch = memory(desc.scratchpad_desc(), engine_, nullptr);
      product.args.emplace(DNNL_ARG_SCRATCHPAD, product.scratch);
    }
    return product;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<Key, Product, KeyHash> products_;
};

Products& products_of_this_thread() {
  thread_local Products products;
  return products;
}

}  // namespace

void worker_init() { omp_set_num_threads(1); }

bool multiplies_bf16() {
  static const bool answer = [] {
    const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
  }();
  return answer;
}

bool multiplies_dense() {
  static const bool answer = [] {
    using dnnl::memory;
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const memory::desc square({64, 64}, memory::data_type::f32, memory::format_tag::ab);
    return is_brgemm(Description(engine, square, square, square, dnnl::primitive_attr()).primitive);
  }();
  return answer;
}

// Must tiles of the dtype become f32 before they are multiplied?
static bool is_widened(DType dtype) {
  return dtype == DType::f16 || (dtype == DType::bf16 && !multiplies_bf16());
}

std::int64_t tile_gemm_scratch_bytes(DType dtype, std::int64_t M, std::int64_t N, std::int64_t K) {
  std::int64_t bytes = kLibraryScratchBytes;
  if (multiplies_dense() || is_widened(dtype)) bytes += widened_bytes(M, K) + widened_bytes(K, N);
  if (multiplies_dense()) bytes += widened_bytes(M, N);
  return bytes;
}

Operand widen_operand(const Operand& from, std::int64_t rows, std::int64_t cols, bool dense, float* to) {
  if (from.col_stride != 1 && cols > 1) {
    return widen_operand(from.transposed(), cols, rows, dense, to).transposed();
  }
  const std::int64_t pitch = dense ? cols : padded_pitch(cols);
  if (from.dtype == DType::f16) {
    widen_rows(static_cast<const f16*>(from.data), from.row_stride, rows, cols, to, pitch);
  } else {
    widen_rows(static_cast<const bf16*>(from.data), from.row_stride, rows, cols, to, pitch);
  }
  return Operand::rows(to, DType::f32, pitch);
}

// Copies `rows` rows of `row_bytes`.
static void copy_rows(const void* from, std::int64_t from_pitch_bytes, std::int64_t rows,
                      std::int64_t row_bytes, void* to, std::int64_t to_pitch_bytes) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  for (std::int64_t i = 0; i < rows; ++i, source += from_pitch_bytes, target += to_pitch_bytes) {
    std::memcpy(target, source, static_cast<std::size_t>(row_bytes));
  }
}

Operand dense_operand(const Operand& from, std::int64_t rows, std::int64_t cols, std::byte* to) {
  if (from.col_stride != 1) return dense_operand(from.transposed(), cols, rows, to).transposed();
  if (from.row_stride == cols || rows == 1) return Operand::rows(from.data, from.dtype, cols);
  const std::int64_t element = dtype_bytes(from.dtype);
  copy_rows(from.data, from.row_stride * element, rows, cols * element, to, cols * element);
  return Operand::rows(to, from.dtype, cols);
}

void tile_gemm(std::int64_t M, std::int64_t N, std::int64_t K, const Operand& a, const Operand& b, float* c,
               std::int64_t ldc, bool accumulate, std::byte* scratch) {
  const bool dense = wants_dense(M);
  Operand a_used = a, b_used = b;
  std::byte* buffers = scratch + kLibraryScratchBytes;
  if (is_widened(a.dtype)) {
    a_used = widen_operand(a, M, K, dense, reinterpret_cast<float*>(buffers));
    buffers += widened_bytes(M, K);
    b_used = widen_operand(b, K, N, dense, reinterpret_cast<float*>(buffers));
    buffers += widened_bytes(K, N);
  }
  float* c_used = c;
  std::int64_t c_pitch = ldc;
  if (dense) {
    a_used = dense_operand(a_used, M, K, buffers);
    if (a_used.data == buffers) buffers += widened_bytes(M, K);
    b_used = dense_operand(b_used, K, N, buffers);
    if (b_used.data == buffers) buffers += widened_bytes(K, N);
    if (ldc != N) {
      c_used = reinterpret_cast<float*>(buffers);
      c_pitch = N;
      if (accumulate) copy_rows(c, ldc * 4, M, N * 4, c_used, N * 4);
    }
  }
  Products& products = products_of_this_thread();
  const Key key{
      .sizes = {M, N, K, a_used.row_stride, a_used.col_stride, b_used.row_stride, b_used.col_stride, c_pitch},
      .bf16 = a_used.dtype == DType::bf16,
      .accumulate = accumulate};
  try {
    products.execute(products.get(key), a_used.data, b_used.data, c_used, scratch);
  } catch (const dnnl::error& e) {
    throw DeviceError(fmt::format("oneDNN could not multiply [{}, {}] by [{}, {}] {}: {}", M, K, K, N,
                                  dtype_name(a_used.dtype), e.what()));
  }
  if (c_used != c) copy_rows(c_used, N * 4, M, N * 4, c, ldc * 4);
}

}  // namespace qt::cpu
