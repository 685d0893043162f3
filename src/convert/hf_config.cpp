#include "src/convert/hf_config.h"

#include <algorithm>
#include <cmath>
#include <variant>
#include <vector>

#include "src/convert/hf_names.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/model/family.h"
#include "src/plan/planner.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

using Ordered = nlohmann::ordered_json;

constexpr const char* kRopeType = "default";

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};

// The shortest decimal that is the same float, as people write it; a power of two with all its digits, as
// upstream does.
double as_written(float x) {
  int exponent = 0;
  if (std::frexp(x, &exponent) == 0.5f) return static_cast<double>(x);
  return std::stod(fmt::format("{}", x));
}

Ordered id_or_null(std::int32_t id) { return id < 0 ? Ordered(nullptr) : Ordered(id); }

void add_ids(Ordered& json, const HfSpecialIds& ids) {
  json["bos_token_id"] = id_or_null(ids.bos);
  json["eos_token_id"] = id_or_null(ids.eos);
  json["pad_token_id"] = id_or_null(ids.pad);
}

const char* torch_name(DType type) {
  return type == DType::bf16 ? "bfloat16" : type == DType::f16 ? "float16" : "float32";
}

Ordered written(const HfValue& value, const ModelConfig& c) {
  return std::visit(Overloaded{
                        [](bool constant) { return Ordered(constant); },
                        [](double constant) { return Ordered(constant); },
                        [](std::string_view constant) { return Ordered(std::string(constant)); },
                        [&](HfRope) {
                          return Ordered{{"rope_type", kRopeType}, {"rope_theta", as_written(c.rope_base)}};
                        },
                        [&](float ModelConfig::*number) { return Ordered(as_written(c.*number)); },
                        [&](bool ModelConfig::*flag) { return Ordered(c.*flag); },
                        [&](std::int64_t ModelConfig::*count) { return Ordered(c.*count); },
                        [&](std::int64_t (ModelConfig::*count)() const) { return Ordered((c.*count)()); },
                    },
                    value);
}

// Reads fields that may be absent or null, and refuses those that name another architecture.
class Fields {
 public:
  Fields(const Json& json, std::string origin) : json_(json), origin_(std::move(origin)) {}

  bool has(const char* field) const { return json_has(json_, field) && !json_[field].is_null(); }
  std::int64_t count(const char* field) const { return json_int(json_, field, origin_, 1, 1 << 30); }
  std::int64_t count(const char* field, std::int64_t otherwise) const {
    return has(field) ? count(field) : otherwise;
  }
  double number(const char* field, double otherwise) const {
    return has(field) ? json_number(json_, field, origin_) : otherwise;
  }
  bool flag(const char* field, bool otherwise) const {
    return has(field) ? json_bool(json_, field, origin_) : otherwise;
  }
  std::string text(const char* field, const std::string& otherwise) const {
    return has(field) ? json_string(json_, field, origin_) : otherwise;
  }
  template <class T>
  void require(const char* field, const T& value, const T& wanted) const {
    if (value == wanted) return;
    throw DataError(
        fmt::format("{}: field '{}' is {}, this program computes {} only", origin_, field, value, wanted),
        "models that were changed in this place cannot be read");
  }
  const Json& json() const { return json_; }
  const std::string& origin() const { return origin_; }

 private:
  const Json& json_;
  std::string origin_;
};

// Reads a file field by field: dimensions, norm_eps and bias into a config. Any other value that differs from
// the family's is refused.
class ShapeReader {
 public:
  ModelConfig shape;    // dimensions that no field told are 0
  double norm_eps = 0;  // 0: the family's own

  ShapeReader(const Fields& fields, const Family& family, std::int64_t seq_len)
      : shape{family.switches}, f_(fields), family_(family), own_{family.switches} {
    shape.seq_len = seq_len;  // where it is given, the file's does not count
    shape.vocab_size = 0;
  }

  void read(const HfField& field) {
    if (field.use == HfUse::unread) return;
    std::visit([&](const auto& value) { read(field, value); }, field.value);
  }

  // Once all fields are read: checks those that follow from the dimensions. Returns the named shape with
  // these dimensions if names fix them, else nullptr.
  const NamedShape* finish() {
    const auto it = std::find_if(family_.shapes.begin(), family_.shapes.end(), [&](const NamedShape& s) {
      return family_.has_fixed_shapes() && s.n_layer == shape.n_layer && s.n_head == shape.n_head &&
             s.n_embd == shape.n_embd;
    });
    const NamedShape* const named = it == family_.shapes.end() ? nullptr : &*it;
    if (named != nullptr) {
      shape.head_width = named->head_width;
      shape.n_inner = named->n_inner;
    }
    for (const Derived& d : derived_) f_.require(d.key, d.told, (shape.*d.count)());
    return named;
  }

 private:
  struct Derived {
    const char* key;
    std::int64_t told;
    std::int64_t (ModelConfig::*count)() const;
  };
  const Fields& f_;
  const Family& family_;
  const ModelConfig own_;
  std::vector<Derived> derived_;

  template <class T>
  static T absent(const HfField& field, const T& own) {
    const T* value = std::get_if<T>(&field.absent);
    return value != nullptr ? *value : own;
  }

  void read(const HfField& field, bool wanted) {
    f_.require(field.key, f_.flag(field.key, absent(field, wanted)), wanted);
  }
  void read(const HfField& field, double wanted) {
    f_.require(field.key, f_.number(field.key, absent(field, wanted)), wanted);
  }
  void read(const HfField& field, std::string_view wanted) {
    const std::string value = f_.text(field.key, std::string(absent(field, wanted)));
    if (std::find(field.near.begin(), field.near.end(), value) == field.near.end())
      return f_.require(field.key, value, std::string(wanted));
    log_warning("{}: {}", f_.origin(), fmt::format(fmt::runtime(field.near_warning), value));
  }
  void read(const HfField& field, HfRope) {
    const double base = static_cast<double>(own_.rope_base);
    double theta = f_.number("rope_theta", base);
    if (f_.has(field.key)) {
      const Fields rope(json_object(f_.json(), field.key, f_.origin()),
                        fmt::format("{}: {}", f_.origin(), field.key));
      rope.require("rope_type", rope.text("rope_type", kRopeType), std::string(kRopeType));
      theta = rope.number("rope_theta", theta);
    }
    f_.require("rope_theta", theta, base);
  }
  void read(const HfField& field, std::int64_t ModelConfig::*count) {
    const bool told = shape.*count != 0;
    if (!told && (f_.has(field.key) || field.use == HfUse::needed)) shape.*count = f_.count(field.key);
  }
  void read(const HfField& field, std::int64_t (ModelConfig::*count)() const) {
    if (f_.has(field.key) || field.use == HfUse::needed)
      derived_.push_back({field.key, f_.count(field.key), count});
  }
  void read(const HfField& field, float ModelConfig::*number) {
    const double own = static_cast<double>(own_.*number);
    double value = f_.number(field.key, absent(field, own));
    if (number == &ModelConfig::norm_eps) {
      QT_CHECK(value > 0 && value < 1, DataError, "{}: field '{}' is {}, not between 0 and 1", f_.origin(),
               field.key, value);
      if (static_cast<float>(value) != own_.norm_eps) norm_eps = value;
      return;
    }
    const bool is_null = json_has(f_.json(), field.key) && !f_.has(field.key);
    if (is_null && number == &ModelConfig::logit_softcap) value = 0;
    f_.require(field.key, value, own);
  }
  void read(const HfField& field, bool ModelConfig::*flag) {
    const bool value = f_.flag(field.key, absent(field, own_.*flag));
    if (flag == &ModelConfig::bias) {
      shape.bias = value;
    } else {
      f_.require(field.key, value, own_.*flag);
    }
  }
};

// nullptr: none of ours, or none at all.
const Family* family_of_type(const Json& json) {
  if (!json.is_object() || !json_has(json, "model_type")) return nullptr;
  for (const Family* family : all_families()) {
    if (json["model_type"] == family->hf.model_type) return family;
  }
  return nullptr;
}

}  // namespace

std::string hf_config_json(const ModelConfig& config, const HfSpecialIds& ids, DType type) {
  Ordered json;
  json["architectures"] = {hf_class(config)};
  json["model_type"] = config.family->hf.model_type;
  for (const HfField& field : config.family->hf.fields) json[field.key] = written(field.value, config);
  add_ids(json, ids);
  json["use_cache"] = true;
  json["dtype"] = torch_name(type);
  return json.dump(1) + "\n";
}

std::string hf_generation_config_json(const HfSpecialIds& ids) {
  Ordered json;
  add_ids(json, ids);
  json["do_sample"] = true;
  return json.dump(1) + "\n";
}

std::string hf_model_types() {
  std::vector<std::string_view> types;
  for (const Family* family : all_families()) types.push_back(family->hf.model_type);
  return fmt::format("{}", fmt::join(types, " or "));
}

bool is_hf_folder(const fs::path& folder) {
  const fs::path config = folder / "config.json";
  if (!fs::is_regular_file(config)) return false;
  return family_of_type(read_json_file(config)) != nullptr;
}

const Family& set_hf_shape(const fs::path& folder, Options& options) {
  const fs::path config = folder / "config.json";
  const Json json = read_json_file(config);
  const Fields fields(json, config.string());
  const Family* const family = family_of_type(json);
  if (family == nullptr)
    throw DataError(fmt::format("{}: field 'model_type' is not {}", config.string(), hf_model_types()));
  ShapeReader reader(fields, *family, options.seq_len);
  for (const HfField& field : family->hf.fields) reader.read(field);
  const NamedShape* const named = reader.finish();
  const ModelConfig& read = reader.shape;
  options.copy_dimensions(read);
  if (options.n_kv_head == 0 && family->hf.shares_kv_heads) options.n_kv_head = options.n_head;
  options.vocab_size = read.vocab_size;
  options.seq_len = read.seq_len > 0 ? read.seq_len : family->seq_len;
  options.norm_eps = reader.norm_eps;
  options.bias = read.bias;
  if (!family->has_bias_and_dropout) options.dropout = 0;
  if (find_family(options.model) != family || family->has_fixed_shapes()) options.model = family->name;
  // A shape that has a name takes it: its run then is the same as one that was begun here.
  if (named != nullptr) {
    options.model = named->name;
    options.leave_to_name();
  }
  // The bounds of the options hold for a file as well, before anything is made of them.
  Options shape;
  shape.model = options.model;
  static_cast<ModelShape&>(shape) = options;
  shape.dropout = 0;  // not the file's
  try {
    check_options(shape);
  } catch (const ConfigError& e) {
    throw DataError(fmt::format("{}: {}", config.string(), e.what()),
                    "config.json and the weights beside it must belong together");
  }
  return *family;
}

}  // namespace qt
