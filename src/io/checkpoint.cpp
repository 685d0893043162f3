#include "src/io/checkpoint.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <limits>

#include "src/core/error.h"

namespace qt {
namespace {

namespace fs_std = std::filesystem;

constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kTemporaryPrefix = ".tmp-";
constexpr std::string_view kTrashPrefix = ".trash-";

std::optional<std::int64_t> parse_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// The step of exactly the name that checkpoint_name() makes.
std::optional<std::int64_t> parse_checkpoint_name(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const auto step = parse_number(name.substr(kStepPrefix.size()));
  return step && checkpoint_name(*step) == name ? step : std::nullopt;
}

fs_std::path side_folder(const fs_std::path& run_dir, std::string_view prefix, std::int64_t step) {
  return run_dir / fmt::format("{}{}-{}", prefix, checkpoint_name(step), ::getpid());
}

bool is_side_folder(std::string_view name) {
  for (const auto prefix : {kTemporaryPrefix, kTrashPrefix}) {
    if (!name.starts_with(prefix)) continue;
    const auto rest = name.substr(prefix.size());
    const auto dash = rest.rfind('-');
    return dash != std::string_view::npos && parse_checkpoint_name(rest.substr(0, dash)) &&
           parse_number(rest.substr(dash + 1));
  }
  return false;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  std::array<char, 32> text{};
  const std::size_t n = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return {text.data(), n};
}

bool name_exists(const fs_std::path& path) {
  std::error_code ignored;
  return fs_std::symlink_status(path, ignored).type() != fs_std::file_type::not_found;
}

void rename_or_throw(FileSystem& fs, const fs_std::path& from, const fs_std::path& to) {
  if (const int rc = fs.rename(from, to); rc < 0) throw_disk_error(to, "rename a folder to", -rc);
}

InputFile open_part(const fs_std::path& folder, const std::string& name) {
  if (!name_exists(folder / name)) throw DataError(name + ": is missing");
  return InputFile(folder / name, InputFile::Links::refuse);
}

// Messages begin with the file's name; the callers put the folder before it.
Manifest verify(const fs_std::path& folder, VerifyDepth depth) {
  const std::string manifest_name(kManifestName);
  open_part(folder, manifest_name);
  Manifest manifest = parse_manifest(read_file(folder / manifest_name, kMaxManifestBytes), manifest_name);
  const auto step = parse_checkpoint_name(folder.filename().string());
  if (step && *step != manifest.step) {
    throw DataError(fmt::format("{}: is for step {}, not for this folder", manifest_name, manifest.step));
  }
  for (const auto& entry : manifest.files) {
    const InputFile file = open_part(folder, entry.name);
    if (file.bytes() != static_cast<std::uint64_t>(entry.bytes)) {
      throw DataError(
          fmt::format("{}: has {} bytes, the manifest says {}", entry.name, file.bytes(), entry.bytes));
    }
    if (depth == VerifyDepth::hashes && file.hash_hex() != entry.xxh3_128) {
      throw DataError(fmt::format("{}: hash differs from the manifest (file damaged)", entry.name));
    }
  }
  return manifest;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) { return fmt::format("{}{:09}", kStepPrefix, step); }

std::vector<Checkpoint> find_checkpoints(const fs_std::path& run_dir) {
  std::vector<Checkpoint> found;
  if (!name_exists(run_dir)) return found;
  for (const auto& name : list_dir(run_dir)) {
    std::error_code ignored;
    const auto step = parse_checkpoint_name(name);
    if (step && fs_std::is_directory(run_dir / name, ignored)) found.push_back({run_dir / name, *step});
  }
  std::sort(found.begin(), found.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return found;
}

Manifest verify_checkpoint(const fs_std::path& path, VerifyDepth depth) {
  try {
    return verify(path, depth);
  } catch (const DataError& e) {
    throw DataError(fmt::format("checkpoint {}: {}", in_quotes(path.string()), e.what()), e.hint());
  }
}

std::string CheckpointChoice::explain() const {
  if (rejected.empty()) return {};
  std::string text;
  for (const auto& line : rejected) text += line + "\n";
  return text + (checkpoint ? fmt::format("using {}", checkpoint_name(checkpoint->step))
                            : "no checkpoint can be used");
}

CheckpointChoice choose_checkpoint(const fs_std::path& run_dir, VerifyDepth depth) {
  CheckpointChoice choice;
  auto candidates = find_checkpoints(run_dir);
  std::reverse(candidates.begin(), candidates.end());
  for (const auto& candidate : candidates) {
    try {
      choice.manifest = verify(candidate.path, depth);
      choice.checkpoint = candidate;
      return choice;
    } catch (const Error& e) {  // unreadable is as good a reason to take another as damaged
      choice.rejected.push_back(fmt::format("{}: {}", checkpoint_name(candidate.step), e.what()));
    }
  }
  return choice;
}

std::vector<std::string> remove_stale_folders(FileSystem& fs, const fs_std::path& run_dir) {
  std::vector<std::string> removed;
  if (!name_exists(run_dir)) return removed;
  for (const auto& name : list_dir(run_dir)) {
    if (!is_side_folder(name)) continue;
    try {
      remove_tree(fs, run_dir / name, kManifestName);
      removed.push_back(name);
    } catch (const Error&) {
      continue;
    }
  }
  return removed;
}

PruneResult prune_checkpoints(FileSystem& fs, const fs_std::path& run_dir, int keep, VerifyDepth depth) {
  if (keep < 2) {
    throw ConfigError(
        fmt::format("cannot keep {} checkpoints: with fewer than two, one damaged file ends the run", keep),
        "keep 2 or more");
  }
  PruneResult result;
  auto candidates = find_checkpoints(run_dir);
  std::reverse(candidates.begin(), candidates.end());
  int verified = 0;
  for (const auto& candidate : candidates) {
    if (verified < keep) {
      try {
        verify(candidate.path, depth);
        ++verified;
      } catch (const Error& e) {
        result.warnings.push_back(fmt::format("{}: {}", checkpoint_name(candidate.step), e.what()));
      }
      continue;
    }
    const auto trash = side_folder(run_dir, kTrashPrefix, candidate.step);
    try {
      remove_tree(fs, trash, kManifestName);
      rename_or_throw(fs, candidate.path, trash);
      // Before any file goes: after a power loss the old name must not come back with files missing.
      fsync_directory(fs, run_dir);
      remove_tree(fs, trash, kManifestName);
      result.removed_steps.push_back(candidate.step);
    } catch (const Error& e) {
      result.warnings.push_back(
          fmt::format("{} could not be deleted: {}", checkpoint_name(candidate.step), e.what()));
    }
  }
  return result;
}

CheckpointWriter::CheckpointWriter(FileSystem& fs, const fs_std::path& run_dir, std::int64_t step,
                                   const SaveOptions& options)
    : fs_(fs),
      run_dir_(run_dir),
      temporary_(side_folder(run_dir, kTemporaryPrefix, step)),
      final_(run_dir / checkpoint_name(step)) {
  QT_CHECK(step >= 0, ConfigError, "a checkpoint cannot have step {}", step);
  manifest_.program = options.program;
  manifest_.step = step;
  manifest_.created = utc_now();
  if (options.expected_bytes > 0) {
    require_free(fs_, run_dir_, options.expected_bytes + options.expected_bytes / 10, "a checkpoint");
  }
  remove_tree(fs_, temporary_);
  if (const int rc = fs_.mkdir(temporary_); rc < 0) throw_disk_error(temporary_, "create the folder", -rc);
}

CheckpointWriter::~CheckpointWriter() {
  if (!done_) discard();
}

OutputFile& CheckpointWriter::add_file(const std::string& name) {
  QT_CHECK(plain_file_name(name), ConfigError, "{} cannot name a file of a checkpoint", in_quotes(name));
  try {
    close_file();
    return file_.emplace(fs_, temporary_ / name);
  } catch (...) {
    discard();
    throw;
  }
}

void CheckpointWriter::close_file() {
  QT_CHECK(!done_, DiskError, "the save of {} was given up or is finished", final_.filename().string());
  if (!file_) return;
  file_->finish();
  manifest_.files.push_back(
      {file_->path().filename().string(), static_cast<std::int64_t>(file_->bytes()), file_->hash_hex()});
  file_.reset();
}

void CheckpointWriter::publish() {
  fsync_directory(fs_, temporary_);
  if (name_exists(final_)) {
    const int rc = fs_.exchange(temporary_, final_);
    if (rc == 0) {
      displaced_ = temporary_;
      name_ = Name::exchanged;
    } else if (rc == -ENOSYS || rc == -EINVAL) {
      const auto trash = side_folder(run_dir_, kTrashPrefix, manifest_.step);
      remove_tree(fs_, trash, kManifestName);
      rename_or_throw(fs_, final_, trash);
      displaced_ = trash;
      name_ = Name::displaced;
    } else {
      throw_disk_error(final_, "swap a folder with", -rc);
    }
  }
  if (name_ != Name::exchanged) {
    rename_or_throw(fs_, temporary_, final_);
    name_ = Name::renamed;
  }
  fsync_directory(fs_, run_dir_);
}

Checkpoint CheckpointWriter::finish() {
  try {
    close_file();
    QT_CHECK(!manifest_.files.empty(), ShapeError, "a checkpoint without files");
    OutputFile manifest(fs_, temporary_ / kManifestName);
    manifest.write(format_manifest(manifest_));
    manifest.finish();
    publish();
  } catch (...) {
    discard();
    throw;
  }
  done_ = true;
  try {
    if (!displaced_.empty()) remove_tree(fs_, displaced_, kManifestName);
  } catch (const Error&) {
    // The save itself is complete; the next start deletes the rest (remove_stale_folders).
    return {final_, manifest_.step};
  }
  return {final_, manifest_.step};
}

void CheckpointWriter::discard() noexcept {
  if (done_) return;
  done_ = true;
  try {
    file_.reset();
    // Results are not looked at: what cannot be taken back is found and judged at the next start.
    if (name_ == Name::exchanged) fs_.exchange(temporary_, final_);
    if (name_ == Name::renamed) fs_.rename(final_, temporary_);
    if (name_ != Name::exchanged && !displaced_.empty()) fs_.rename(displaced_, final_);
    remove_tree(fs_, temporary_, kManifestName);
  } catch (...) {
    return;
  }
}

RunLock::RunLock(const fs_std::path& run_dir) {
  const auto path = run_dir / "lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) throw_disk_error(path, "open", errno);
  int rc = 0;
  do {
    rc = ::flock(fd_, LOCK_EX | LOCK_NB);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) {
    const int error = errno;
    std::array<char, 32> text{};
    const ssize_t n = ::pread(fd_, text.data(), text.size(), 0);
    ::close(fd_);
    if (error != EWOULDBLOCK) throw_disk_error(path, "lock", error);
    std::string_view holder(text.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
    holder = holder.substr(0, holder.find('\n'));
    const bool known = !holder.empty() && parse_number(holder).has_value();
    throw ConfigError(
        fmt::format("the run folder {} is in use by process {}", in_quotes(run_dir.string()),
                    known ? holder : "(unknown)"),
        known ? fmt::format("wait for it, stop it with 'kill {}', or choose another run folder", holder)
              : "wait for it, or choose another run folder");
  }
  // Written after the lock is held, so that a reader never sees two numbers. A full disk is no reason to stop
  // here: the number only serves the message above.
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, pid.data(), pid.size(), 0) < 0) return;
}

std::optional<pid_t> lock_holder(const fs_std::path& run_dir) {
  const auto path = run_dir / "lock";
  struct stat lock {};
  if (::stat(path.c_str(), &lock) != 0) return std::nullopt;
  std::string text;
  try {
    text = read_file(path, 32);
  } catch (const Error&) {
    return std::nullopt;
  }
  const auto number = parse_number(std::string_view(text).substr(0, text.find('\n')));
  if (!number || *number == 0 || *number > std::numeric_limits<pid_t>::max()) return std::nullopt;
  const auto pid = static_cast<pid_t>(*number);
  if (::kill(pid, 0) != 0 && errno != EPERM) return std::nullopt;
  // Process numbers are reused: the process that holds the lock has the file open.
  std::error_code error;
  fs_std::directory_iterator files(fmt::format("/proc/{}/fd", pid), error);
  if (error) {
    const bool ended = error == std::errc::no_such_file_or_directory && fs_std::exists("/proc/self");
    return ended ? std::nullopt : std::optional(pid);
  }
  error.clear();
  for (; !error && files != fs_std::directory_iterator(); files.increment(error)) {
    struct stat open_file {};
    if (::stat(files->path().c_str(), &open_file) == 0 && open_file.st_dev == lock.st_dev &&
        open_file.st_ino == lock.st_ino) {
      return pid;
    }
  }
  return std::nullopt;
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);  // the file stays: deleting it could let two processes lock two different files
}

}  // namespace qt
