#include "src/train/run_log_writer.h"

#include "src/io/run_folder.h"

namespace qt {

namespace {

struct ScalarField {
  const char* kind;
  const char* field;
  const char* tag;
};
constexpr ScalarField kScalars[] = {
    {"step", "loss", "train/loss"},   {"step", "norm", "train/norm"},
    {"step", "lr", "train/lr"},       {"step", "tokens_per_s", "train/tokens_per_s"},
    {"step", "mfu", "train/mfu"},     {"step", "watts", "power/watts"},
    {"eval", "val_loss", "val/loss"}, {"eval", "val_bpb", "val/bpb"},
};

}  // namespace

std::vector<Scalar> scalars_of(const Json& record) {
  const auto kind = record.find("kind");
  std::vector<Scalar> scalars;
  if (kind == record.end()) return scalars;
  for (const ScalarField& s : kScalars) {
    const auto value = *kind == s.kind ? record.find(s.field) : record.end();
    if (value != record.end() && value->is_number()) scalars.push_back({s.tag, value->get<double>()});
  }
  return scalars;
}

RunLogWriter::RunLogWriter(const std::string& run_dir, bool tensorboard, std::int64_t first_step)
    : lines_(RunFolder(run_dir).log().string()) {
  if (tensorboard) events_.emplace(run_dir + "/tensorboard", first_step);
}

void RunLogWriter::write(const JsonRecord& record) {
  lines_.write(record);
  if (!events_) return;
  // The record as every other reader gets it: what the log says and what TensorBoard shows cannot differ.
  const Json json = parse_json(record.str(), "a record of the log");
  const auto step = json.find("step");
  if (step == json.end() || !step->is_number_integer()) return;
  // A restore is at the state after `step`: what follows it is done again.
  if (json.at("kind") == "restore") events_->go_back_to(step->get<std::int64_t>() + 1);
  const auto then = json.find("unix_s");
  events_->write(then != json.end() && then->is_number() ? then->get<double>() : unix_seconds(),
                 step->get<std::int64_t>(), scalars_of(json));
}

}  // namespace qt
