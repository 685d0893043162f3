// A disk that forgets: RecordingFs notes what a program asks of the file system, SimDisk replays the notes
// up to any operation and then writes down what a real disk may hold when the power goes right there.
//
// The model is as unkind as POSIX allows. A file's bytes are certain after fsync of that file, a folder's
// names after fsync of that folder; before that any write may be there, missing, cut short, zeros or old
// blocks, and any names may be there or not, in the order of the calls (a journal) or in none. Only a single
// rename or exchange happens whole or not at all. What lay there before the recording is certain.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "src/io/file_system.h"
#include "tests/support/temp_dir.h"

namespace qt::test {

struct DiskOp {
  enum class Kind { open, write, fsync, close, mkdir, rmdir, unlink, rename, exchange };
  Kind kind;
  std::filesystem::path path, other;  // with a descriptor: what it was opened as
  int fd = -1;
  int flags = 0;     // open
  std::string data;  // write
};

// Does everything on the real disk, and keeps a list of what succeeded.
class RecordingFs final : public FileSystem {
 public:
  using Kind = DiskOp::Kind;

  // `forgets`: operations that are done but not recorded, as if the writer under test had left them out.
  explicit RecordingFs(std::function<bool(const DiskOp&)> forgets = {}) : forgets_(std::move(forgets)) {}

  const std::vector<DiskOp>& log() const { return log_; }
  void set_exchange_supported(bool supported) { exchange_supported_ = supported; }

  int open(const std::filesystem::path& path, int flags, unsigned mode) override {
    const int fd = posix_fs().open(path, flags, mode);
    if (fd < 0) return fd;
    names_[fd] = path;
    return note({.kind = Kind::open, .path = path, .fd = fd, .flags = flags}, fd);
  }
  std::int64_t write(int fd, const std::byte* data, std::size_t bytes) override {
    const std::int64_t n = posix_fs().write(fd, data, bytes);
    if (n < 0) return n;
    const std::string written(reinterpret_cast<const char*>(data), static_cast<std::size_t>(n));
    note({.kind = Kind::write, .path = names_[fd], .fd = fd, .data = written}, 0);
    return n;
  }
  int fsync(int fd) override { return note({.kind = Kind::fsync, .path = names_[fd], .fd = fd}, 0); }
  int close(int fd) override {
    note({.kind = Kind::close, .path = names_[fd], .fd = fd}, 0);
    return posix_fs().close(fd);
  }
  int mkdir(const std::filesystem::path& path) override {
    return note({.kind = Kind::mkdir, .path = path}, posix_fs().mkdir(path));
  }
  int rmdir(const std::filesystem::path& path) override {
    return note({.kind = Kind::rmdir, .path = path}, posix_fs().rmdir(path));
  }
  int unlink(const std::filesystem::path& path) override {
    return note({.kind = Kind::unlink, .path = path}, posix_fs().unlink(path));
  }
  int rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    return note({.kind = Kind::rename, .path = from, .other = to}, posix_fs().rename(from, to));
  }
  int exchange(const std::filesystem::path& a, const std::filesystem::path& b) override {
    if (!exchange_supported_) return -EINVAL;
    return note({.kind = Kind::exchange, .path = a, .other = b}, posix_fs().exchange(a, b));
  }
  std::int64_t free_bytes(const std::filesystem::path& path) override { return posix_fs().free_bytes(path); }

 private:
  int note(DiskOp op, int rc) {
    if (rc >= 0 && !(forgets_ && forgets_(op))) log_.push_back(std::move(op));
    return rc;
  }

  std::function<bool(const DiskOp&)> forgets_;
  std::vector<DiskOp> log_;
  std::map<int, std::filesystem::path> names_;
  bool exchange_supported_ = true;
};

class SimDisk {
 public:
  // `root` with everything in it, as it is now, is certain.
  explicit SimDisk(std::filesystem::path root) : root_(std::move(root)) { load(root_, new_node(true)); }

  // The next operation of a recording below `root`.
  void apply(const DiskOp& op) {
    using Kind = DiskOp::Kind;
    switch (op.kind) {
      case Kind::open: {
        int node = find(op.path);
        if (node < 0) {
          node = new_node(false);
          change(op.path, {.kind = Kind::open, .name = last(op.path), .node = node});
        } else if ((op.flags & O_TRUNC) != 0) {
          nodes_[at(node)].now.clear();
          nodes_[at(node)].unsure.push_back({.offset = 0, .data = {}, .truncates = true});
        }
        open_[op.fd] = {node, 0};
        break;
      }
      case Kind::write: {
        auto& [node, offset] = open_.at(op.fd);
        nodes_[at(node)].now.replace(offset, std::string::npos, op.data);
        nodes_[at(node)].unsure.push_back({.offset = offset, .data = op.data, .truncates = false});
        offset += op.data.size();
        break;
      }
      case Kind::fsync: {
        Node& node = nodes_[at(open_.at(op.fd).first)];
        node.certain = node.now;
        node.unsure.clear();
        node.certain_names = node.names;
        node.changes.clear();
        break;
      }
      case Kind::close: open_.erase(op.fd); break;
      case Kind::mkdir:
        change(op.path, {.kind = Kind::open, .name = last(op.path), .node = new_node(true)});
        break;
      case Kind::rmdir:
      case Kind::unlink: change(op.path, {.kind = Kind::unlink, .name = last(op.path)}); break;
      case Kind::rename:
      case Kind::exchange:
        if (op.path.parent_path() != op.other.parent_path())
          throw std::logic_error("names move within one folder only: " + op.path.string());
        change(op.path, {.kind = op.kind, .name = last(op.path), .other = last(op.other)});
        break;
    }
  }

  // Power off: one of the contents that the disk may have, written below `into` (an empty folder).
  void crash(const std::filesystem::path& into, std::mt19937_64& random) const {
    const auto draw = [&](std::uint64_t n) {
      return std::uniform_int_distribution<std::uint64_t>(0, n - 1)(random);
    };
    std::function<bool(std::uint64_t)> survives;
    const std::uint64_t cut = draw(sequence_ + 1);
    switch (draw(4)) {
      case 0: survives = [](std::uint64_t) { return false; }; break;
      case 1: survives = [](std::uint64_t) { return true; }; break;
      case 2: survives = [cut](std::uint64_t number) { return number < cut; }; break;
      default: survives = [&](std::uint64_t) { return draw(2) == 0; };
    }
    write_out(0, into, survives, random);
  }

 private:
  struct Write {
    std::size_t offset;
    std::string data;
    bool truncates;
  };
  struct Change {
    DiskOp::Kind kind;  // open: a new name
    std::string name, other;
    int node = -1;
    std::uint64_t number = 0;  // over all folders
  };
  using Names = std::map<std::string, int>;
  struct Node {
    bool folder = false;
    std::string certain, now;
    std::vector<Write> unsure;
    Names certain_names, names;
    std::vector<Change> changes;
  };

  static std::size_t at(int node) { return static_cast<std::size_t>(node); }
  static std::string last(const std::filesystem::path& path) { return path.filename().string(); }

  int new_node(bool folder) {
    nodes_.emplace_back().folder = folder;
    return static_cast<int>(nodes_.size()) - 1;
  }

  void load(const std::filesystem::path& path, int node) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      const int child = new_node(entry.is_directory());
      nodes_[at(node)].names[last(entry.path())] = child;
      nodes_[at(node)].certain_names[last(entry.path())] = child;
      if (entry.is_directory()) {
        load(entry.path(), child);
      } else {
        nodes_[at(child)].certain = nodes_[at(child)].now = get(entry.path());
      }
    }
  }

  int find(const std::filesystem::path& path) const {
    int node = 0;
    for (const auto& part : path.lexically_relative(root_)) {
      if (part == ".") continue;
      const auto& names = nodes_[at(node)].names;
      const auto it = names.find(part.string());
      if (it == names.end()) return -1;
      node = it->second;
    }
    return node;
  }

  // What cannot be done, because another change did not survive, is left out.
  static void apply_change(Names& names, const Change& c) {
    using Kind = DiskOp::Kind;
    const auto it = names.find(c.name);
    if (c.kind == Kind::open) {
      names[c.name] = c.node;
    } else if (it == names.end()) {
      return;
    } else if (c.kind == Kind::unlink) {
      names.erase(it);
    } else if (c.kind == Kind::rename) {
      const int node = it->second;
      names.erase(it);
      names[c.other] = node;
    } else if (const auto other = names.find(c.other); other != names.end()) {
      std::swap(it->second, other->second);
    }
  }

  void change(const std::filesystem::path& path, Change c) {
    const int folder = find(path.parent_path());
    if (folder < 0) throw std::logic_error("no folder for " + path.string());
    c.number = sequence_++;
    Node& node = nodes_[at(folder)];
    apply_change(node.names, c);
    node.changes.push_back(std::move(c));
  }

  static std::string torn(const Node& node, std::mt19937_64& random) {
    const auto draw = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n)(random); };
    if (node.unsure.empty() || draw(3) == 0) return node.certain;
    if (draw(3) == 0) return node.now;
    std::string bytes = node.certain;
    for (const Write& w : node.unsure) {
      if (w.truncates) {
        if (draw(1) == 0) bytes.clear();
        continue;
      }
      std::string data = w.data;
      switch (draw(4)) {
        case 0: continue;                                          // never arrived
        case 1: data.resize(draw(data.size())); break;             // the first part of it
        case 2: std::fill(data.begin(), data.end(), '\0'); break;  // the length without the bytes
        case 3:                                                    // what the blocks held before
          for (std::size_t i = draw(data.size()); i < data.size(); ++i) data[i] = static_cast<char>(random());
          break;
        default: break;  // whole
      }
      // A later write that arrived leaves a hole of zeros where an earlier one did not.
      if (bytes.size() < w.offset + data.size()) bytes.resize(w.offset + data.size());
      bytes.replace(w.offset, data.size(), data);
    }
    if (draw(3) == 0) bytes.resize(draw(node.now.size()));
    return bytes;
  }

  void write_out(int number, const std::filesystem::path& path,
                 const std::function<bool(std::uint64_t)>& survives, std::mt19937_64& random) const {
    const Node& node = nodes_[at(number)];
    Names names = node.certain_names;
    for (const Change& c : node.changes) {
      if (survives(c.number)) apply_change(names, c);
    }
    for (const auto& [name, child] : names) {
      if (nodes_[at(child)].folder) {
        std::filesystem::create_directory(path / name);
        write_out(child, path / name, survives, random);
      } else {
        put(path / name, torn(nodes_[at(child)], random));
      }
    }
  }

  std::filesystem::path root_;
  std::vector<Node> nodes_;  // the root is the first
  std::map<int, std::pair<int, std::size_t>> open_;
  std::uint64_t sequence_ = 0;
};

}  // namespace qt::test
