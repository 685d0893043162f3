#include "src/convert/export.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/convert/export_check.h"
#include "src/convert/hf_config.h"
#include "src/core/error.h"
#include "src/core/half.h"
#include "src/core/log.h"
#include "src/io/json.h"
#include "src/io/safetensors_writer.h"
#include "src/model/family.h"
#include "src/plan/planner.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kStripElems = 256 * 1024;
constexpr std::int64_t kSmallFilesBytes = std::int64_t{32} << 20;  // config and vocabulary, generously
constexpr std::int64_t kCheckedTokens = 4;  // of the forward pass: positions that differ, and little time
constexpr float kMostLogitError = 1e-5f;

// The names an export may have. What holds any other is not taken for one.
bool is_export_file(const std::string& name) {
  static const char* const kNames[] = {"config.json",       "generation_config.json",
                                       "tokenizer.json",    "tokenizer_config.json",
                                       "model.safetensors", "model.safetensors.index.json"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

// A tensor of theirs, front to back in f32, for as long as `use` takes pieces.
template <class Use>
void stream(const HfTensor& t, const ModelParams& model, ParamSource& source, Use&& use) {
  std::vector<float> strip;
  const auto fill_from = [&](std::size_t index, auto&& take) {
    const std::int64_t elems = model.params[index].elems();
    for (std::int64_t first = 0; first < elems; first += kStripElems) {
      strip.resize(static_cast<std::size_t>(std::min(kStripElems, elems - first)));
      source.read(index, first, strip);
      take();
    }
  };
  if (t.is_zero()) {
    strip.assign(static_cast<std::size_t>(t.elems()), 0.0f);
    return use(strip);
  }
  if (!t.transposed) {
    for (const std::size_t index : t.params) fill_from(index, [&] { use(strip); });
    return;
  }
  std::vector<float> whole;
  whole.reserve(static_cast<std::size_t>(t.elems()));
  for (const std::size_t index : t.params)
    fill_from(index, [&] { whole.insert(whole.end(), strip.begin(), strip.end()); });
  const std::int64_t rows = t.shape[0], columns = t.shape[1];
  const std::int64_t strip_rows = std::max<std::int64_t>(1, kStripElems / columns);
  for (std::int64_t first = 0; first < rows; first += strip_rows) {
    const std::int64_t count = std::min(strip_rows, rows - first);
    strip.resize(static_cast<std::size_t>(count * columns));
    for (std::int64_t c = 0; c < columns; ++c) {
      for (std::int64_t r = 0; r < count; ++r)
        strip[static_cast<std::size_t>(r * columns + c)] =
            whole[static_cast<std::size_t>(c * rows + first + r)];
    }
    use(strip);
  }
}

// Floats as bytes of a type, rounded to nearest; counts what was not exact.
class Narrower {
 public:
  explicit Narrower(DType type) : type_(type) {}

  std::span<const std::byte> operator()(const HfTensor& t, std::span<const float> values) {
    if (type_ == DType::f32) return std::as_bytes(values);
    halves_.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float back = rounded_to(type_, values[i]);
      if (!std::isfinite(back)) {
        throw DataError(
            fmt::format("tensor '{}' holds {}, more than {} can hold", t.name, values[i], dtype_name(type_)),
            "use --format bf16 or f32");
      }
      rounded_ += back != values[i] ? 1 : 0;
      halves_[i] = type_ == DType::bf16 ? to_bf16(values[i]).bits : to_f16(values[i]).bits;
    }
    return std::as_bytes(std::span(halves_));
  }
  std::int64_t rounded() const { return rounded_; }

 private:
  DType type_;
  std::vector<std::uint16_t> halves_;
  std::int64_t rounded_ = 0;
};

// Which tensors go into which file: in order, each file as full as shard_bytes allows.
std::vector<std::vector<const HfTensor*>> cut_shards(const std::vector<HfTensor>& tensors, DType type,
                                                     std::int64_t shard_bytes) {
  std::vector<std::vector<const HfTensor*>> shards;
  std::int64_t room = 0;
  for (const HfTensor& t : tensors) {
    const std::int64_t bytes = t.elems() * dtype_bytes(type);
    if (shards.empty() || bytes > room) {
      shards.emplace_back();
      room = shard_bytes;
    }
    shards.back().push_back(&t);
    room -= bytes;
  }
  return shards;
}

class Exporter {
 public:
  Exporter(const ModelConfig& config, ParamSource& source, const Tokenizer& tokenizer,
           const ExportOptions& options, FileSystem& fs)
      : config_(config),
        source_(source),
        tokenizer_(tokenizer),
        options_(options),
        fs_(fs),
        model_(make_params(config)),
        tensors_(hf_tensors(config, model_)) {
    const fs::path whole = (options.folder / "").lexically_normal();  // a '/' at its end, always
    final_ = whole.parent_path();
    parent_ = final_.has_parent_path() ? final_.parent_path() : fs::path(".");
    temporary_ = parent_ / fmt::format(".{}.partial", final_.filename().string());
  }

  ExportReport run() {
    require_place();
    make_folders(fs_, parent_);
    remove_tree(fs_, temporary_);  // of an export that was killed
    try {
      make_folders(fs_, temporary_);
      require_free(fs_, temporary_, weight_bytes() + kSmallFilesBytes, "the export");
      write_weights();
      write_text_files();
      fsync_directory(fs_, temporary_);
      verify();
      publish();
    } catch (...) {
      try {
        remove_tree(fs_, temporary_);
      } catch (const Error& e) {
        log_warning("'{}' could not be removed: {}", temporary_.string(), e.what());
      }
      throw;
    }
    return report_;
  }

 private:
  void require_place() const {
    if (!fs::exists(fs::symlink_status(final_))) return;
    if (!options_.overwrite) {
      throw ConfigError(fmt::format("--to '{}' is already there", final_.string()),
                        "name another folder, or add --overwrite to replace an earlier export");
    }
    bool is_export = fs::is_directory(final_) && !fs::is_symlink(final_);
    if (is_export) {
      for (const std::string& name : list_dir(final_)) is_export = is_export && is_export_file(name);
    }
    if (!is_export) {
      throw ConfigError(
          fmt::format("--overwrite: '{}' holds something else than an export, so it is left alone",
                      final_.string()),
          "name another folder");
    }
  }

  std::int64_t weight_bytes() const {
    std::int64_t bytes = 0;
    for (const HfTensor& t : tensors_) bytes += t.elems() * dtype_bytes(options_.type);
    return bytes;
  }

  void write_weights() {
    const auto shards = cut_shards(tensors_, options_.type, options_.shard_bytes);
    Narrower narrow(options_.type);
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shards.size() == 1
                                   ? std::string("model.safetensors")
                                   : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      std::vector<TensorSpec> specs;
      for (const HfTensor* t : shards[i]) {
        specs.push_back({t->name, to_stored(options_.type), t->shape});
        map[t->name] = name;
      }
      OutputFile out(fs_, temporary_ / name);
      SafetensorsWriter writer(out, specs, {{"format", "pt"}});
      for (const HfTensor* t : shards[i]) {
        stream(*t, model_, source_,
               [&](std::span<const float> values) { writer.write(t->name, narrow(*t, values)); });
      }
      writer.finish();
      out.finish();
    }
    report_.files = static_cast<std::int64_t>(shards.size());
    report_.bytes = weight_bytes();
    report_.tensors = static_cast<std::int64_t>(tensors_.size());
    report_.rounded = narrow.rounded();
    for (const Param& p : model_.params) report_.elems += p.elems();
    if (shards.size() == 1) return;
    nlohmann::ordered_json index;
    index["metadata"] = {{"total_size", report_.bytes}};
    index["weight_map"] = std::move(map);
    write_text("model.safetensors.index.json", index.dump(1) + "\n");
  }

  void write_text_files() {
    const HfSpecialIds ids = tokenizer_.has_text() ? hf_special_ids(tokenizer_) : HfSpecialIds{};
    write_text("config.json", hf_config_json(config_, ids, options_.type));
    write_text("generation_config.json", hf_generation_config_json(ids));
    if (!tokenizer_.has_text()) {
      log_warning("the tokens of this run are numbers without a vocabulary: no tokenizer.json is written");
      return;
    }
    write_text("tokenizer.json", hf_tokenizer_json(tokenizer_));
    write_text("tokenizer_config.json", hf_tokenizer_config_json(tokenizer_, config_.seq_len));
  }

  void write_text(const std::string& name, const std::string& text) {
    OutputFile out(fs_, temporary_ / name);
    out.write(text);
    out.finish();
  }

  [[noreturn]] void fail_verify(const std::string& what) const {
    throw DiskError(fmt::format("the export does not read back as it was written: {}", what),
                    "nothing was put in its place; check the disk, then repeat the command");
  }

  void verify() {
    Options shape;
    shape.model = config_.family->name;
    set_hf_shape(temporary_, shape);
    const ModelConfig read = model_from_options(shape, 0);
    if (hf_config_json(read, {}, options_.type) != hf_config_json(config_, {}, options_.type))
      fail_verify("config.json names another model");
    const ModelParams read_params = make_params(read);
    HfParams written(temporary_, read, read_params);
    RoundedParams expected(source_, options_.type);
    compare_tensors(written, expected);
    compare_forward(read, read_params, written, expected);
    if (tokenizer_.has_text() && Tokenizer::load(temporary_ / "tokenizer.json").hash() != tokenizer_.hash())
      fail_verify("tokenizer.json holds another vocabulary");
  }

  void compare_tensors(HfParams& written, ParamSource& expected) {
    std::vector<float> got, want;
    for (std::size_t i = 0; i < model_.params.size(); ++i) {
      const std::int64_t elems = model_.params[i].elems();
      for (std::int64_t first = 0; first < elems; first += kStripElems) {
        got.resize(static_cast<std::size_t>(std::min(kStripElems, elems - first)));
        want.resize(got.size());
        written.read(i, first, got);
        expected.read(i, first, want);
        if (std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) != 0)
          fail_verify(fmt::format("tensor '{}' differs", model_.params[i].name));
      }
    }
  }

  void compare_forward(const ModelConfig& read, const ModelParams& read_params, HfParams& written,
                       ParamSource& expected) {
    std::vector<std::int32_t> ids;
    const std::int64_t tokens = std::min(kCheckedTokens, config_.seq_len);
    // From everywhere in the vocabulary: 40503 shares no factor with a power of two.
    for (std::int64_t t = 0; t < tokens; ++t)
      ids.push_back(static_cast<std::int32_t>((t + 1) * 40503 % config_.vocab_size));
    const std::vector<float> want = streamed_logits(config_, model_, expected, ids);
    const std::vector<float> got = streamed_logits(read, read_params, written, ids);
    report_.checked_logits = static_cast<std::int64_t>(want.size());
    const float off = worst(got, want);
    // Written so that a NaN fails, too.
    if (!(off <= kMostLogitError)) fail_verify(fmt::format("its logits differ by {:.3g}", off));
    if (report_.rounded > 0)
      report_.worst_rounding = worst(got, streamed_logits(config_, model_, source_, ids));
  }

  static float worst(const std::vector<float>& a, const std::vector<float>& b) {
    float most = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const float off = std::abs(a[i] - b[i]);
      if (!(off <= most)) most = off;
    }
    return most;
  }

  void publish() {
    if (!fs::exists(final_)) {
      const int error = fs_.rename(temporary_, final_);
      if (error != 0) throw_disk_error(final_, "rename the export to", -error);
    } else {
      const int error = fs_.exchange(temporary_, final_);
      if (error != 0) {
        // Not every filesystem can: for a moment there is no export.
        const fs::path old = parent_ / fmt::format(".{}.replaced", final_.filename().string());
        remove_tree(fs_, old);
        for (const auto& [from, to] : {std::pair{final_, old}, std::pair{temporary_, final_}}) {
          const int failed = fs_.rename(from, to);
          if (failed != 0) throw_disk_error(to, "rename the export to", -failed);
        }
        remove_tree(fs_, old);
      }
      remove_tree(fs_, temporary_);
    }
    fsync_directory(fs_, parent_);
  }

  const ModelConfig& config_;
  ParamSource& source_;
  const Tokenizer& tokenizer_;
  const ExportOptions& options_;
  FileSystem& fs_;
  ModelParams model_;
  std::vector<HfTensor> tensors_;
  fs::path final_, parent_, temporary_;
  ExportReport report_;
};

}  // namespace

ExportReport export_model(const ModelConfig& config, ParamSource& source, const Tokenizer& tokenizer,
                          const ExportOptions& options, FileSystem& fs) {
  return Exporter(config, source, tokenizer, options, fs).run();
}

}  // namespace qt
