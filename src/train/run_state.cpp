#include "src/train/run_state.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "src/core/log.h"
#include "src/io/checkpoint.h"
#include "src/io/hash.h"
#include "src/io/json.h"
#include "src/io/run_folder.h"
#include "src/io/safetensors_writer.h"
#include "src/io/tensor_file.h"

namespace qt {

namespace {

constexpr std::size_t kStagingBytes = 4 * 1024 * 1024;
constexpr std::size_t kHashPieceBytes =
    64 * 1024;  // allocated while the run is on, where nothing larger may be
constexpr std::int64_t kHeaderAllowanceBytes = 1024 * 1024;  // JSON headers and run.json beside the tensors

std::vector<std::int64_t> shape_of(const TensorView& view) {
  return {view.sizes.begin(), view.sizes.begin() + view.rank};
}

std::vector<TensorSpec> specs_of(const std::vector<NamedView>& views) {
  std::vector<TensorSpec> specs;
  specs.reserve(views.size());
  for (const NamedView& v : views) specs.push_back({v.name, to_stored(v.view.dtype), shape_of(v.view)});
  return specs;
}

void write_tensors(OutputFile& out, StoredForm& form, const std::vector<NamedView>& views,
                   const Metadata& metadata, std::vector<std::byte>& staging) {
  SafetensorsWriter writer(out, specs_of(views), metadata);
  for (const NamedView& v : views) {
    const StoredType type = to_stored(v.view.dtype);
    std::int64_t before = 0;
    form.read(v, staging, [&](std::span<const std::byte> piece) {
      // Loading would refuse it: such a checkpoint must not push a good one out.
      const std::int64_t bad = first_non_finite(type, piece);
      QT_CHECK(bad < 0, DivergedError, "tensor '{}', element {}: not a finite number, so it is not saved",
               v.name, before + bad);
      before += static_cast<std::int64_t>(piece.size()) / dtype_bytes(v.view.dtype);
      writer.write(v.name, piece);
    });
  }
  writer.finish();
}

void read_tensors(const std::filesystem::path& path, StoredForm& form, const std::vector<NamedView>& views) {
  const Safetensors file = Safetensors::open(path);
  for (const NamedView& v : views) {
    const StoredTensor& stored = file.get(v.name, v.view.dtype, shape_of(v.view));
    const std::int64_t bad = first_non_finite(stored.type, {stored.data, stored.bytes});
    QT_CHECK(bad < 0, DataError, "{}: tensor '{}', element {}: not a finite number", path.string(), v.name,
             bad);
    form.write(v, std::span<const std::byte>(stored.data, stored.bytes));
  }
}

std::int64_t total_bytes(const std::vector<NamedView>& views) {
  std::int64_t bytes = 0;
  for (const NamedView& v : views) bytes += v.view.bytes();
  return bytes;
}

// Checkpoints from before it was measured have none: then nothing is known of all their time.
Energy parse_energy(const Json& json, double seconds, const std::string& origin) {
  if (!json_has(json, "energy")) return {.joules = 0, .missing_s = seconds, .source = {}};
  const Json& energy = json_object(json, "energy", origin);
  const std::string where = origin + ": energy";
  Energy e{.joules = json_number(energy, "joules", where),
           .missing_s = json_number(energy, "missing_s", where),
           .source = json_string(energy, "source", where)};
  QT_CHECK(e.joules >= 0, DataError, "{}: field 'joules' is negative", where);
  QT_CHECK(e.missing_s >= 0, DataError, "{}: field 'missing_s' is negative", where);
  return e;
}

}  // namespace

std::string run_state_json(const RunState& s) {
  Json json;
  json["format_version"] = kRunFormatVersion;
  json["step"] = s.step;
  json["applied"] = s.applied;
  json["window"] = s.window;
  json["tokens"] = s.tokens;
  json["bad_in_a_row"] = s.bad_in_a_row;
  json["bad_windows"] = s.bad_windows;
  json["restores"] = s.restores;
  json["loss_scale"] = s.loss_scale.scale;
  json["loss_scale_clean_steps"] = s.loss_scale.clean_steps;
  json["seconds"] = s.seconds;
  json["energy"] = {
      {"joules", s.energy.joules}, {"missing_s", s.energy.missing_s}, {"source", s.energy.source}};
  if (s.evaluated_step) json["evaluated_step"] = *s.evaluated_step;
  json["seed"] = s.seed;
  json["vocab_hash"] = s.vocab_hash;
  json["data_hash"] = s.data_hash;
  json["options"] = s.options;
  json["algorithms"] = s.algorithms;
  return json.dump(1) + "\n";
}

RunState parse_run_state(const std::string& text, const std::string& origin) {
  const Json json = parse_json(text, origin);
  QT_CHECK(json.is_object(), DataError, "{}: not a JSON object", origin);
  const std::int64_t version = json_int(json, "format_version", origin, 1);
  QT_CHECK(version == kRunFormatVersion, DataError, "{}: field 'format_version' is {}, this program reads {}",
           origin, version, kRunFormatVersion);
  RunState s;
  s.step = json_int(json, "step", origin, 0);
  s.applied = json_int(json, "applied", origin, 0, s.step);
  s.window = json_int(json, "window", origin, 0);
  s.tokens = json_int(json, "tokens", origin, 0);
  s.bad_in_a_row = json_int(json, "bad_in_a_row", origin, 0);
  s.restores = json_int(json, "restores", origin, 0);
  s.loss_scale.scale = json_number(json, "loss_scale", origin);
  QT_CHECK(s.loss_scale.scale >= 1, DataError, "{}: field 'loss_scale' is below 1", origin);
  s.loss_scale.clean_steps =
      json_int(json, "loss_scale_clean_steps", origin, 0, LossScale::kGrowthInterval - 1);
  s.seconds = json_number(json, "seconds", origin);
  QT_CHECK(s.seconds >= 0, DataError, "{}: field 'seconds' is negative", origin);
  s.seed = json_uint(json, "seed", origin);
  s.vocab_hash = json_string(json, "vocab_hash", origin);
  s.data_hash = json_string(json, "data_hash", origin);
  for (const Json& window : json_array(json, "bad_windows", origin)) {
    QT_CHECK(window.is_number_integer() && window.get<std::int64_t>() >= 0, DataError,
             "{}: field 'bad_windows' must hold integers of zero or more", origin);
    s.bad_windows.push_back(window.get<std::int64_t>());
  }
  for (const auto& [name, value] : json_object(json, "options", origin).items()) {
    QT_CHECK(value.is_string(), DataError, "{}: field 'options.{}' must be text", origin, in_quotes(name));
    s.options[name] = value.get<std::string>();
  }
  s.evaluated_step.reset();  // checkpoints from before it was stored have none
  if (json_has(json, "evaluated_step"))
    s.evaluated_step = json_int(json, "evaluated_step", origin, 0, s.step);
  s.energy = parse_energy(json, s.seconds, origin);
  // Not in checkpoints from before there was a device that chooses.
  if (json_has(json, "algorithms")) s.algorithms = json_string(json, "algorithms", origin);
  return s;
}

std::string state_hash(Engine& engine) {
  Xxh3 hash;
  std::vector<std::byte> staging(kHashPieceBytes);
  for (const auto& list : {engine.weights(), engine.state()}) {
    for (const NamedView& v : list) {
      hash.update(bytes_of(v.name + v.view.shape()));
      engine.stored_form().read(v, staging, [&](std::span<const std::byte> piece) { hash.update(piece); });
    }
  }
  return hash.hex();
}

CheckpointStore::CheckpointStore(std::string run_dir, std::int64_t keep, FileSystem& fs)
    : run_dir_(std::move(run_dir)), keep_(keep), fs_(fs), staging_(kStagingBytes) {
  QT_CHECK(keep_ >= 2, ConfigError,
           "--keep must be at least 2, got {}: one checkpoint can always be the damaged one", keep_);
  try {
    make_folders(fs_, run_dir_);
  } catch (const DiskError& e) {
    throw DiskError(e.what(), "choose another --out");
  }
}

void CheckpointStore::remove_leftovers() {
  for (const std::string& name : remove_stale_folders(fs_, run_dir_))
    log_info("removed '{}', left by an interrupted save", name);
}

void CheckpointStore::save(Engine& engine, const RunState& state) {
  const std::vector<NamedView> weights = engine.weights(), optimizer = engine.state();
  SaveOptions how;
  how.expected_bytes = total_bytes(weights) + total_bytes(optimizer) + kHeaderAllowanceBytes;
  CheckpointWriter writer(fs_, run_dir_, state.step, how);
  const Metadata metadata{{"format", "qtrain"},
                          {"packed", std::string(format_info(engine.options().layout.weights).name)}};
  write_tensors(writer.add_file(kWeightsFile), engine.stored_form(), weights, metadata, staging_);
  write_tensors(writer.add_file(kStateFile), engine.stored_form(), optimizer, metadata, staging_);
  RunState complete = state;
  complete.algorithms = engine.backend().algorithms();
  writer.add_file(kRunStateFile).write(run_state_json(complete));
  writer.finish();
  // A state under suspicion pushes nothing out: what a restore goes back to must stay.
  if (state.bad_in_a_row > 0) return;
  // What this process wrote was hashed on its way; what an earlier one left is read once.
  const VerifyDepth depth = pruned_before_ ? VerifyDepth::sizes : VerifyDepth::hashes;
  for (const std::string& warning : prune_checkpoints(fs_, run_dir_, static_cast<int>(keep_), depth).warnings)
    log_warning("{}", warning);
  pruned_before_ = true;
}

void CheckpointStore::mark_evaluated(std::int64_t step) {
  const std::filesystem::path folder = std::filesystem::path(run_dir_) / checkpoint_name(step);
  if (!std::filesystem::exists(folder)) return;
  const std::filesystem::path mark = folder / kEvaluatedFile;
  const int file = fs_.open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  const int result = file < 0 ? file : fs_.close(file);
  if (result < 0) log_warning("cannot create {}: {}", in_quotes(mark.string()), std::strerror(-result));
}

std::string CheckpointStore::newest(std::string& explanation) const {
  const CheckpointChoice choice = choose_checkpoint(run_dir_);
  explanation = choice.explain();
  if (choice.checkpoint) return choice.checkpoint->path.string();
  if (!choice.rejected.empty()) {
    throw DataError(fmt::format("'{}' holds a run, but none of its checkpoints can be used:\n{}", run_dir_,
                                fmt::join(choice.rejected, "\n")),
                    "restore one of them from a backup, or choose another --out to start over");
  }
  return {};
}

std::string CheckpointStore::newest_trusted() const {
  std::vector<Checkpoint> newest_first = find_checkpoints(run_dir_);
  std::reverse(newest_first.begin(), newest_first.end());
  for (const Checkpoint& checkpoint : newest_first) {
    try {
      verify_checkpoint(checkpoint.path);
      if (read_state(checkpoint.path.string()).bad_in_a_row == 0) return checkpoint.path.string();
    } catch (const DataError& e) {
      log_warning("{}", e.what());
    }
  }
  return {};
}

RunState CheckpointStore::read_state(const std::string& checkpoint) {
  const std::filesystem::path path = std::filesystem::path(checkpoint) / kRunStateFile;
  RunState state = parse_run_state(read_file(path, JsonLimits{}.max_bytes), path.string());
  if (std::filesystem::exists(std::filesystem::path(checkpoint) / kEvaluatedFile))
    state.evaluated_step = state.step;
  return state;
}

RunState CheckpointStore::load(const std::string& checkpoint, Engine& engine) const {
  RunState state = read_state(checkpoint);
  read_tensors(std::filesystem::path(checkpoint) / kWeightsFile, engine.stored_form(), engine.weights());
  read_tensors(std::filesystem::path(checkpoint) / kStateFile, engine.stored_form(), engine.state());
  // Inference runs other shapes anyway, and no run continues from its bits.
  if (engine.options().inference) return state;
  const std::vector<std::string> reasons = engine.backend().use_algorithms(state.algorithms);
  if (!reasons.empty()) {
    log_warning(
        "some matrix products are not computed as they were when '{}' was saved: the run goes on, and its "
        "bits may differ from those of a run that stayed where it was ({}{})",
        checkpoint, reasons.front(),
        reasons.size() == 1 ? "" : fmt::format("; and {} more", reasons.size() - 1));
  }
  return state;
}

std::optional<RunState> newest_readable_state(const std::string& run_dir) {
  std::vector<Checkpoint> newest_first = find_checkpoints(run_dir);
  std::reverse(newest_first.begin(), newest_first.end());
  for (const Checkpoint& checkpoint : newest_first) {
    try {
      return CheckpointStore::read_state(checkpoint.path.string());
    } catch (const DataError&) {
    }
  }
  return std::nullopt;
}

}  // namespace qt
