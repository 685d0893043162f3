#include "src/options/nanogpt_file.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <variant>

#include "src/core/error.h"
#include "src/io/file.h"

namespace qt {

namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 16;  // a configuration is a page of text
constexpr int kMostDepth = 32;                            // of parentheses

struct Word {  // True, False, None
  std::string text;
};
using Value = std::variant<std::int64_t, double, std::string, Word>;

bool is_letter(char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// One line: NAME = sum, and nothing behind it but a comment.
class LineReader {
 public:
  LineReader(std::string_view line, std::string origin) : line_(line), origin_(std::move(origin)) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw ConfigError(
        fmt::format("{}: {}", origin_, what),
        "the file is read, never executed: a line is `name = value` with a number, a quoted text, "
        "True, False, or a sum or product of them; write the value itself");
  }

  void skip_blanks() {
    while (at_ < line_.size() && (line_[at_] == ' ' || line_[at_] == '\t')) ++at_;
  }
  bool ended() {
    skip_blanks();
    return at_ == line_.size() || line_[at_] == '#';
  }
  std::string name() {
    const std::size_t begin = at_;
    while (at_ < line_.size() && (is_letter(line_[at_]) || (at_ > begin && is_digit(line_[at_])))) ++at_;
    return std::string(line_.substr(begin, at_ - begin));
  }
  bool take(char c) {
    skip_blanks();
    if (at_ == line_.size() || line_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool sees(char c) const { return at_ < line_.size() && line_[at_] == c; }

  Value sum() {
    Value value = term();
    for (;;) {
      if (take('+')) {
        value = combine(value, term(), '+');
      } else if (take('-')) {
        value = combine(value, term(), '-');
      } else {
        return value;
      }
    }
  }

 private:
  Value term() {
    Value value = factor();
    while (take('*')) value = combine(value, factor(), '*');
    return value;
  }

  Value factor() {
    skip_blanks();
    if (at_ == line_.size()) fail("the value is missing");
    if (take('-')) return combine(Value(std::int64_t{0}), operand(), '-');
    return operand();
  }

  Value operand() {
    skip_blanks();
    if (at_ == line_.size()) fail("the value is not complete");
    const char c = line_[at_];
    if (take('(')) {
      if (++depth_ > kMostDepth) fail("too many parentheses");
      Value value = sum();
      if (!take(')')) fail("a parenthesis is not closed on this line");
      --depth_;
      return value;
    }
    if (c == '\'' || c == '"') return quoted(c);
    if (is_digit(c) || c == '.') return number();
    const std::string word = name();
    if (word == "True" || word == "False" || word == "None") return Word{word};
    fail(fmt::format("{} is not a literal", in_quotes(line_.substr(at_ - word.size()))));
  }

  Value number() {
    const std::size_t begin = at_;
    std::string digits;
    bool is_whole = true;
    for (; at_ < line_.size(); ++at_) {
      const char c = line_[at_];
      const bool is_sign =
          (c == '+' || c == '-') && at_ > begin && (line_[at_ - 1] == 'e' || line_[at_ - 1] == 'E');
      if (!is_digit(c) && !is_letter(c) && c != '.' && !is_sign) break;
      if (!is_digit(c) && c != '_') is_whole = false;
      if (c != '_') digits += c;
    }
    const char* end = digits.data() + digits.size();
    std::int64_t whole = 0;
    double real = 0;
    const std::from_chars_result result =
        is_whole ? std::from_chars(digits.data(), end, whole) : std::from_chars(digits.data(), end, real);
    if (result.ec != std::errc{} || result.ptr != end)
      fail(fmt::format("{} is not a number", in_quotes(line_.substr(begin, at_ - begin))));
    return is_whole ? Value(whole) : Value(real);
  }

  Value quoted(char quote) {
    if (line_.substr(at_).starts_with(std::string(3, quote))) fail("texts over several lines are not read");
    std::string text;
    for (++at_; at_ < line_.size() && line_[at_] != quote; ++at_) {
      if (line_[at_] == '\\') {
        ++at_;
        if (at_ == line_.size() || std::string_view("\\'\"").find(line_[at_]) == std::string_view::npos)
          fail("a backslash stands only before a quote or another backslash");
      }
      text += line_[at_];
    }
    if (at_ == line_.size()) fail("a quote is not closed");
    ++at_;
    return text;
  }

  Value combine(const Value& a, const Value& b, char sign) const {
    if (sign == '+' && std::holds_alternative<std::string>(a) && std::holds_alternative<std::string>(b))
      return std::get<std::string>(a) + std::get<std::string>(b);
    const auto* x = std::get_if<std::int64_t>(&a);
    const auto* y = std::get_if<std::int64_t>(&b);
    if (x != nullptr && y != nullptr) {
      std::int64_t result = 0;
      const bool overflows = sign == '+'   ? __builtin_add_overflow(*x, *y, &result)
                             : sign == '-' ? __builtin_sub_overflow(*x, *y, &result)
                                           : __builtin_mul_overflow(*x, *y, &result);
      if (overflows) fail("the number is too large");
      return result;
    }
    const double p = real(a, sign), q = real(b, sign);
    return sign == '+' ? p + q : sign == '-' ? p - q : p * q;
  }

  double real(const Value& value, char sign) const {
    if (const auto* whole = std::get_if<std::int64_t>(&value)) return static_cast<double>(*whole);
    if (const auto* number = std::get_if<double>(&value)) return *number;
    fail(fmt::format("'{}' stands between what are not two numbers", sign));
  }

  std::string_view line_;
  std::string origin_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

std::string text_of(const Value& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, Word>) return v.text;
        if constexpr (!std::is_same_v<T, Word>) return fmt::format("{}", v);
        return {};
      },
      value);
}

void read_line(std::string_view line, const std::string& origin, NanogptFile& file) {
  LineReader reader(line, origin);
  if (reader.ended()) return;
  if (line.front() == ' ' || line.front() == '\t') reader.fail("the line is indented: blocks are not read");
  std::string key = reader.name();
  if (key == "from" && line.ends_with("*"))
    reader.fail("settings of another file are not taken along: write them here, or name that file");
  if (key == "import" || key == "from") {
    file.notes.push_back(
        fmt::format("{}: {} is left out: the file is not executed", origin, in_quotes(line)));
    return;
  }
  if (key.empty() || !reader.take('=') || reader.sees('=')) reader.fail(in_quotes(line) + " sets no name");
  std::string text;
  // Names for a service that nothing here uses are often put together from the time of day.
  if (!key.starts_with("wandb_")) {
    if (reader.ended()) reader.fail("the value is missing");
    const Value value = reader.sum();
    if (!reader.ended()) reader.fail(in_quotes(line) + " is not a literal");
    text = text_of(value);
    if (text == "None" && std::holds_alternative<Word>(value))
      reader.fail("None says nothing: leave the line out");
  }
  std::erase_if(file.lines, [&](const NanogptLine& l) { return l.key == key; });
  file.lines.push_back({std::move(key), std::move(text), origin});
}

}  // namespace

bool is_nanogpt_file(std::string_view path) { return path.ends_with(".py"); }

NanogptFile parse_nanogpt_file(std::string_view text, const std::string& path) {
  NanogptFile file;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    read_line(line, fmt::format("{}:{}", path, number), file);
  }
  return file;
}

NanogptFile read_nanogpt_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text;
  // A folder opens like a file and reads like an empty one.
  if (in && !std::filesystem::is_directory(path)) {
    text.resize(kMostBytes + 1);
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(in.gcount()));
  } else {
    throw ConfigError(fmt::format("cannot read the configuration file '{}'", path),
                      "--config names an INI file, as those in configs/, or one of nanoGPT's .py");
  }
  if (text.size() > kMostBytes)
    throw ConfigError(fmt::format("{}: more than 64 KiB is no configuration", path), "check --config");
  return parse_nanogpt_file(text, path);
}

std::span<const NanogptLine> nanogpt_train_defaults() {
  // The dtype is not among them: bf16 where the device has it is what our `auto` means.
  static const std::vector<NanogptLine> lines = [] {
    std::vector<NanogptLine> list;
    for (const auto& [key, value] : std::initializer_list<std::pair<const char*, const char*>>{
             {"model", "gpt2"},        {"n_layer", "12"},
             {"n_head", "12"},         {"n_embd", "768"},
             {"block_size", "1024"},   {"bias", "False"},
             {"dropout", "0.0"},       {"optim", "adamw"},
             {"batch_size", "12"},     {"gradient_accumulation_steps", "40"},
             {"max_iters", "600000"},  {"learning_rate", "6e-4"},
             {"weight_decay", "0.1"},  {"beta1", "0.9"},
             {"beta2", "0.95"},        {"eps", "1e-8"},
             {"grad_clip", "1.0"},     {"decay_lr", "True"},
             {"warmup_iters", "2000"}, {"lr_decay_iters", "600000"},
             {"min_lr", "6e-5"},       {"eval_interval", "2000"},
             {"eval_iters", "200"},    {"log_interval", "1"},
             {"out_dir", "out"},       {"dataset", "openwebtext"},
             {"data_order", "random"}, {"seed", "1337"},
         }) {
      list.push_back({key, value, "nanoGPT's train.py"});
    }
    return list;
  }();
  return lines;
}

}  // namespace qt
