#include "src/plan/screen.h"

#include <fmt/format.h>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/model/family.h"

namespace qt {

namespace {

// One line of a table of memory: to the byte, so that the lines can be added up, and as a share.
std::string row_text(std::string_view name, std::int64_t bytes, std::int64_t total) {
  const double share = total > 0 ? 100.0 * static_cast<double>(bytes) / static_cast<double>(total) : 0.0;
  return fmt::format("    {:<12} {:>18} {:>11} {:>5.1f} %", name, format_thousands(bytes),
                     format_bytes(bytes), share);
}

void append_rows(std::string& text, const std::vector<PlanRow>& rows, std::int64_t total) {
  for (const PlanRow& row : rows) {
    text += row_text(row.name, row.bytes, total);
    text += row.note.empty() ? "\n" : "   (" + row.note + ")\n";
  }
}

const Verdict* find_verdict(const Plan& run, Resource resource) {
  for (const Verdict& v : run.verdicts) {
    if (v.resource == resource) return &v;
  }
  return nullptr;
}

std::string verdict_text(const Verdict* v) {
  if (v == nullptr || !v->available_bytes) return "not judged (limit unknown)";
  const std::int64_t available = *v->available_bytes, margin = available - v->needed_bytes;
  return v->fits
             ? fmt::format("fits {}, {} to spare", format_bytes(available), format_bytes(margin))
             : fmt::format("DOES NOT FIT {}: {} too much", format_bytes(available), format_bytes(-margin));
}

// "fits, 1.2 GiB to spare on the device"; of several resources the one that is shortest.
std::string overall_text(const Plan& run) {
  const auto margin = [](const Verdict& v) { return *v.available_bytes - v.needed_bytes; };
  std::string missing;
  const Verdict* tightest = nullptr;
  for (const Verdict& v : run.verdicts) {
    if (!v.available_bytes) continue;
    if (!v.fits) {
      missing += fmt::format("{} by {} on the {}", missing.empty() ? "does not fit" : ",",
                             format_bytes(-margin(v)), resource_name(v.resource));
    }
    const bool in_memory = v.resource != Resource::disk;
    if (in_memory && (tightest == nullptr || margin(v) < margin(*tightest))) tightest = &v;
  }
  if (!missing.empty()) return missing;
  if (tightest == nullptr) return "fits, as far as limits are known";
  return fmt::format("fits, {} to spare on the {}", format_bytes(margin(*tightest)),
                     resource_name(tightest->resource));
}

void append_changes(std::string& text, const Plan& run) {
  if (run.fits()) return;
  if (run.changes.empty()) {
    text += "  nothing that can be changed here makes it fit\n";
    return;
  }
  text += fmt::format("\n  {} (planned, each; {} rehearsals in all):\n",
                      run.changes.front().other_model ? "no option makes this model fit; another model would"
                                                      : "what makes it fit, the cheapest first",
                      run.rehearsals);
  for (const FitChange& change : run.changes)
    text += fmt::format("    {}\n      costs  {}\n      type   {}\n", change.options, change.cost,
                        change.command);
}

// card: its name, empty where none was asked.
std::string hardware_text(const Plan& run, const std::string& card) {
  if (run.config.target.kind == DeviceKind::cpu) {
    return fmt::format("cpu, {} thread{}{}", run.config.target.threads,
                       run.config.target.threads == 1 ? "" : "s",
                       run.config.target.native_bf16 ? ", bf16 instructions" : "");
  }
  return fmt::format("cuda {}{}", run.config.target.name, card.empty() ? "" : ", " + card);
}

std::string weights_text(const Plan& run) {
  const ModelOptions& m = run.config.engine.layout;
  const FormatInfo& format = format_info(m.weights);
  const std::string blocks = m.weights == FormatId::none
                                 ? std::string(dtype_name(m.compute))
                                 : fmt::format("{} ({:.3g} bits)", format.name, format.bits_per_weight);
  return fmt::format("blocks {}, embedding and head {}, activations {}, gradients {}{}{}", blocks,
                     dtype_name(m.compute), dtype_name(m.compute), dtype_name(m.gradient),
                     run.config.engine.optim.master == DType::bf16 ? ", master weights bf16-sr" : "",
                     m.checkpoint_activations ? ", activation checkpointing" : "");
}

std::string model_text(const ModelConfig& c) {
  return fmt::format(
      "{} {}: {} parameters ({} in blocks), {} layers, width {}, {} heads, vocabulary {}, sequence {}",
      c.family->name, c.name, format_count(c.param_count()), format_count(c.matrix_params()), c.n_layer,
      c.n_embd, c.n_head, c.vocab_size, c.seq_len);
}

std::string batch_text(const Plan& run) {
  const EngineOptions& e = run.config.engine;
  return fmt::format("{} tokens per step = {} micro-batches x {} rows x {}; {} steps, {} tokens",
                     format_thousands(e.step_tokens()), e.accumulation, e.layout.micro_batch_rows,
                     e.model.seq_len, format_thousands(run.config.steps),
                     format_count(run.config.steps * e.step_tokens()));
}

}  // namespace

std::string plan_text(const Plan& run, const Limits& limits) {
  std::string text;
  text += fmt::format("  model      {}\n  precision  {}\n  batch      {}\n",
                      model_text(run.config.engine.model), weights_text(run), batch_text(run));
  for (const std::string& line : run.decisions) text += fmt::format("  chosen     {}\n", line);

  text += fmt::format("\n  device: {}\n", hardware_text(run, limits.device_name));
  append_rows(text, run.device_rows, run.device_bytes);
  text += fmt::format("{}   {}\n", row_text("total", run.device_bytes, run.device_bytes),
                      verdict_text(find_verdict(run, Resource::device)));
  if (run.reserve_bytes > 0 && limits.device_bytes > 0) {
    const char* source = limits.device_assumed  ? "assumed"
                         : limits.device_capped ? "given"
                                                : "of memory there";
    text += fmt::format("    ({} {}, of which {} stay free for display and driver)\n",
                        format_bytes(limits.device_bytes), source, format_bytes(run.reserve_bytes));
  }
  const Verdict* host = find_verdict(run, Resource::host);
  const std::int64_t host_bytes = host != nullptr ? host->needed_bytes : run.host_bytes;
  text +=
      fmt::format("\n  host: {}\n", run.config.engine.optim.paged ? "paged through the device once per step"
                                                                  : "nothing is paged");
  append_rows(text, run.host_rows, host_bytes);
  if (run.config.target.kind == DeviceKind::cpu)
    text += row_text("device above", run.device_bytes, host_bytes) + "\n";
  text += fmt::format("{}   {}\n", row_text("total", host_bytes, host_bytes), verdict_text(host));
  text += "\n  disk\n";
  append_rows(text, run.disk_rows, run.disk_bytes);
  text += fmt::format("{}   {}\n", row_text("total", run.disk_bytes, run.disk_bytes),
                      verdict_text(find_verdict(run, Resource::disk)));
  text += fmt::format(
      "    saves write at most {} a day; text given as --data becomes up to {} of tokens beside it\n",
      format_bytes(run.written_bytes_per_day), format_bytes(run.token_cache_bytes));
  text +=
      "\n  Memory in use says nothing about how busy a device is: it is taken once, before the first step, and\n"
      "  kept, also by a device that waits. How busy it is, MFU and tok/s of the step line tell.\n";
  for (const std::string& line : run.notes) text += fmt::format("\n  note: {}\n", line);
  text += fmt::format("\n  verdict: {}\n", overall_text(run));
  if (run.fits()) text += fmt::format("  command: {}\n", run.command);
  append_changes(text, run);
  return text;
}

std::string plan_json(const Plan& run, const Limits& limits) {
  const Verdict* device = find_verdict(run, Resource::device);
  const std::int64_t margin =
      device != nullptr && device->available_bytes ? *device->available_bytes - device->needed_bytes : 0;
  std::string rows;
  for (const PlanRow& row : run.device_rows)
    rows += fmt::format("{}\"{}\":{}", rows.empty() ? "" : ",", row.name, row.bytes);
  std::string host_rows;
  for (const PlanRow& row : run.host_rows)
    host_rows += fmt::format("{}\"{}\":{}", host_rows.empty() ? "" : ",", row.name, row.bytes);
  std::string changes;
  for (const FitChange& change : run.changes) {
    changes += (changes.empty() ? "" : ",") + JsonRecord()
                                                  .add("options", change.options)
                                                  .add("command", change.command)
                                                  .add("cost", change.cost)
                                                  .str();
  }
  return fmt::format(
      "{{\"fits\":{},\"device_bytes\":{},\"host_bytes\":{},\"disk_bytes\":{},\"micro_batch\":{},"
      "\"accumulation\":{},"
      "\"margin_bytes\":{},\"steps\":{},\"checkpoint_bytes\":{},\"written_bytes_per_day\":{},"
      "\"token_cache_bytes\":{},\"device_limit_bytes\":{},\"reserve_bytes\":{},\"device\":"
      "{{{}}},\"host\":{{{}}},\"changes\":[{}]}}",
      run.fits(), run.device_bytes, run.host_bytes, run.disk_bytes, run.config.engine.layout.micro_batch_rows,
      run.config.engine.accumulation, margin, run.config.steps, run.checkpoint_bytes,
      run.written_bytes_per_day, run.token_cache_bytes, limits.device_bytes, run.reserve_bytes, rows,
      host_rows, changes);
}

std::string start_screen(const Plan& run, const Limits& limits, const StartInfo& info) {
  std::string text = plan_text(run, limits);
  text += fmt::format("\n  data       {}\n  tokenizer  {}\n  run        {}\n  saves      {}\n", info.data,
                      info.tokenizer, info.run_folder, info.saves);
  text += info.outlook;
  if (!info.resumed.empty()) text += fmt::format("  continues  {}\n", info.resumed);
  return text;
}

std::string paging_text(std::int64_t bytes, double seconds) {
  return fmt::format("{} in and out of the device once per step: {} at {:.1f} GB/s each way",
                     format_bytes(bytes), format_duration(seconds),
                     static_cast<double>(bytes) / seconds * 1e-9);
}

}  // namespace qt
