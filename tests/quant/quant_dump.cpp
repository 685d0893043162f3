// Packs a file of f32 values and writes what came out, for tools/check_bnb.py to compare with bitsandbytes.
//
//   quant_dump <input.f32> <folder>     writes <folder>/{codes,absmax,weights,q8_codes,...}
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <span>
#include <vector>

#include "quant/format.h"
#include "quant/q8.h"

namespace {

template <class Range>
void write(const std::filesystem::path& path, const Range& range) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(std::data(range)),
             static_cast<std::streamsize>(std::size(range) * sizeof(*std::data(range))));
  if (!file) throw qt::DiskError("cannot write " + path.string());
}

void dump(const std::filesystem::path& input, const std::filesystem::path& folder) {
  std::vector<float> x(std::filesystem::file_size(input) / sizeof(float));
  std::ifstream file(input, std::ios::binary);
  file.read(reinterpret_cast<char*>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(float)));
  if (!file) throw qt::DataError("cannot read " + input.string());
  qt::require_finite(std::span<const float>(x), input.string());

  const auto n = static_cast<std::int64_t>(x.size());
  const auto blocks = qt::scale_count(qt::FormatId::nf4, n);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(qt::code_bytes(qt::FormatId::nf4, n)));
  std::vector<float> absmax(static_cast<std::size_t>(blocks)), weights(x.size());
  qt::Nf4::quantize(std::span<const float>(x), codes.data(), absmax.data());
  qt::Nf4::dequantize_unrounded(codes.data(), absmax.data(), 0, weights);

  std::vector<std::uint8_t> q8_codes(x.size());
  std::vector<float> q8_absmax(static_cast<std::size_t>(qt::q8_scale_count(n)));
  qt::q8_quantize<qt::Q8Signed>(x, q8_codes.data(), q8_absmax.data());

  std::filesystem::create_directories(folder);
  write(folder / "codes", codes);
  write(folder / "absmax", absmax);
  write(folder / "weights", weights);
  write(folder / "q8_codes", q8_codes);
  write(folder / "q8_absmax", q8_absmax);
  write(folder / "map_signed", qt::kQ8Signed);
  write(folder / "map_unsigned", qt::kQ8Unsigned);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: quant_dump <input.f32> <folder>\n";
    return 2;
  }
  try {
    dump(argv[1], argv[2]);
  } catch (const qt::Error& e) {
    std::cerr << e.what() << '\n';
    return static_cast<int>(e.code());
  }
}
