// `qtrain export`: writes a trained model as a Hugging Face folder (src/convert/export.h).
#include <filesystem>
#include <ostream>

#include "src/cli/trained_model.h"
#include "src/cli/verb.h"
#include "src/convert/export.h"
#include "src/convert/hf_names.h"
#include "src/core/units.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

void run_export(const VerbCall& call) {
  const Options& o = call.loaded.options;
  check_use_options(call.loaded);
  const TrainedModel trained = find_trained(call.loaded, Target{});  // no device is asked
  if (o.to.empty() && !trained.hf_folder.empty())
    throw ConfigError("export --init-from FOLDER needs a place to write to", "add --to ANOTHER-FOLDER");
  ExportOptions how;
  how.folder = o.to.empty() ? fs::path(o.out) / "hf" : fs::path(o.to);
  how.shard_bytes = o.shard_bytes;
  how.overwrite = o.overwrite;
  const Tokenizer tokenizer = tokenizer_of(trained);
  const ModelParams params = make_params(trained.engine.model);
  const std::unique_ptr<ParamSource> source = open_params(trained, params, o.weights);
  how.type = o.format.value_or(source->type());
  const ExportReport report = export_model(trained.engine.model, *source, tokenizer, how);
  const std::string from = trained.hf_folder.empty() ? trained.checkpoint : trained.hf_folder;
  call.out << fmt::format("exported {} to {}\n", from, how.folder.string());
  const std::string exported_weights =
      trained.hf_folder.empty() ? option_text<&Options::weights>(o) + " weights" : "its weights";
  call.out << fmt::format("  {} with {} in {}: {} in {} {}\n", hf_class(trained.engine.model),
                          exported_weights, dtype_name(how.type), format_bytes(report.bytes), report.files,
                          report.files == 1 ? "file" : "files");
  call.out << fmt::format("  read back: {} tensors and {} logits equal\n", report.tensors,
                          format_thousands(report.checked_logits));
  if (report.rounded > 0) {
    call.out << fmt::format("  {} does not hold {} of {} values exactly: logits move by up to {:.2g}\n",
                            dtype_name(how.type), format_thousands(report.rounded),
                            format_thousands(report.elems), report.worst_rounding);
  }
  call.out.flush();
}

}  // namespace

const Verb verbs::export_{
    .name = "export",
    .help = "that model as a Hugging Face folder: --to FOLDER",
    .words = {},
    .run = run_export,
};

}  // namespace qt
