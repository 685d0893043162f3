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

std::string json_list(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ",") + json_string(word);
  return "[" + list + "]";
}

// "kwh", or "kwh_at_least" where some of the run's time was not measured, where anything is known.
void add_energy(JsonRecord& record, const RunState& state) {
  if (const std::optional<double> kwh = state.energy.kwh())
    record.add(state.energy.is_whole(state.seconds) ? "kwh" : "kwh_at_least", *kwh);
}

JsonRecord record_of(const char* kind, std::int64_t step) {
  return JsonRecord().add("kind", kind).add("step", step);
}

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

RunLogWriter::RunLogWriter(const std::string& run_dir, bool tensorboard, std::int64_t first_step,
                           const StepWork& work)
    : work_(work), lines_(RunFolder(run_dir).log().string()) {
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

void RunLogWriter::stepped(const StepDone& done) {
  const RunState& state = done.state;
  JsonRecord record = record_of("step", state.step);
  record.add("window", done.window)
      .add("loss", done.stats.loss)
      .add("norm", done.stats.norm)
      .add("lr", done.lr)
      .add("seconds", done.seconds)
      .add("tokens_per_s", static_cast<double>(done.tokens) / done.seconds)
      .add("tokens", state.tokens)
      .add("skipped", !done.stats.applied());
  if (done.is_warmup) record.add("warmup", true);
  record.add("unix_s", unix_seconds());
  if (work_.peak_flops > 0) record.add("mfu", work_.model_flops / done.seconds / work_.peak_flops);
  if (work_.executed_flops > 0) record.add("executed_flops_s", work_.executed_flops / done.seconds);
  const CardReading& card = done.card;
  if (card.watts) record.add("watts", *card.watts);
  if (card.celsius) record.add("celsius", *card.celsius);
  if (card.sm_mhz) record.add("sm_mhz", *card.sm_mhz);
  if (card.throttle && !card.throttle->empty()) record.add_raw("throttle", json_list(*card.throttle));
  if (card.used_bytes) record.add("device_used_bytes", *card.used_bytes);
  add_energy(record, state);
  write(record);
}

void RunLogWriter::slow(std::int64_t step, double times) {
  write(record_of("slow", step).add("times_slower", times));
}

void RunLogWriter::overflowed(const Overflow& o) {
  write(record_of("overflow", o.step)
            .add("window", o.window)
            .add("loss", o.loss)
            .add("loss_scale", o.scale_before));
}

void RunLogWriter::evaluated(std::int64_t step, const EvalResult& result, double seconds) {
  JsonRecord record = record_of("eval", step);
  record.add("val_loss", result.loss);
  if (result.bpb) record.add("val_bpb", *result.bpb);
  write(record.add("val_tokens", result.tokens).add("val_bytes", result.bytes).add("seconds", seconds));
}

void RunLogWriter::sampled(std::int64_t step, const std::string& text) {
  write(record_of("sample", step).add("text", text));
}

void RunLogWriter::saved(std::int64_t step, double seconds) {
  write(record_of("save", step).add("seconds", seconds));
}

void RunLogWriter::restored(const Restored& r) {
  write(record_of("restore", r.step).add("why", r.why).add("left_out_window", r.left_out_window));
}

void RunLogWriter::diverged(std::int64_t step, const std::string& why) {
  write(record_of("diverged", step).add("why", why));
}

void RunLogWriter::stopped(const RunState& state) {
  JsonRecord record = record_of("stop", state.step);
  record.add("seconds", state.seconds);
  add_energy(record, state);
  write(record);
}

void RunLogWriter::finished(const RunState& state, const std::string& state_hash) {
  JsonRecord record = record_of("done", state.step);
  record.add("seconds", state.seconds);
  add_energy(record, state);
  write(record.add("state_hash", state_hash));
}

}  // namespace qt
