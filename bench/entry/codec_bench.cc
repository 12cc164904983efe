// Each codec there and back on 4 MiB of float32 activations, beside a copy, zstd alone, and the
// lossless codec's shuffle before a higher level of zstd. Contestants take turns, so a noisy
// machine disturbs all; a ratio is the median over rounds of their time over that of `lossless`
// (above 1: lossless is faster). Answers are compared first. Prints one JSON object.
//
//   codec_bench [rounds]
#include <zstd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/entry_format.h>

namespace {

using namespace tensorkey;  // NOLINT: a program of its own
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kCount = std::size_t{1} << 20;
constexpr std::array<std::int64_t, 1> kShape{std::int64_t{kCount}};

struct Contestant {
  std::string name;
  std::function<void(const Bytes&, Bytes&)> encode;
  std::function<void(const Bytes&, Bytes&)> decode;
  bool lossy = false;
};

Contestant by_codec(Codec codec) {
  return {.name = std::string(to_string(codec)),
          .encode =
              [codec](const Bytes& in, Bytes& out) {
                if (encode(codec, DType::kFloat32, in, out) != codec) std::abort();
              },
          .decode =
              [codec](const Bytes& in, Bytes& out) {
                decode({.dtype = DType::kFloat32, .shape = kShape, .codec = codec, .data = in},
                       out);
              },
          .lossy = is_lossy(codec)};
}

Bytes shuffled(const Bytes& in, bool back) {
  Bytes out(in.size());
  for (std::size_t i = 0; i < kCount; ++i) {
    for (std::size_t b = 0; b < 4; ++b) {
      const std::size_t apart = b * kCount + i;
      if (back) {
        out[4 * i + b] = in[apart];
      } else {
        out[apart] = in[4 * i + b];
      }
    }
  }
  return out;
}

Contestant by_zstd(const std::string& name, int level, bool shuffle) {
  return {.name = name,
          .encode =
              [=](const Bytes& in, Bytes& out) {
                const Bytes& from = shuffle ? shuffled(in, false) : in;
                out.resize(ZSTD_compressBound(in.size()));
                out.resize(ZSTD_compress(out.data(), out.size(), from.data(), from.size(), level));
              },
          .decode =
              [=](const Bytes& in, Bytes& out) {
                ZSTD_decompress(out.data(), out.size(), in.data(), in.size());
                if (shuffle) out = shuffled(out, true);
              }};
}

Bytes seal(const Bytes& in, const Secret& secret) {
  const TensorParts tensor{.dtype = DType::kFloat32, .shape = kShape, .data = in};
  return encode_entry(*make_entry({.key = Key(), .tensors = std::span(&tensor, 1)}), secret);
}

Contestant by_entry(const std::string& name, const Secret& secret) {
  return {.name = name,
          .encode = [=](const Bytes& in, Bytes& out) { out = seal(in, secret); },
          .decode =
              [=](const Bytes& in, Bytes& out) {
                const auto data = decode_entry(in, {.secret = secret})->tensor(0).data;
                out.assign(data.begin(), data.end());
              }};
}

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

double time_of(const auto& call) {
  const auto begin = Clock::now();
  call();
  return std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
}

void print_row(const std::string& name, const std::vector<double>& ns,
               const std::vector<double>& ours, std::size_t bytes, bool first) {
  std::vector<double> ratios(ns.size());
  std::ranges::transform(ns, ours, ratios.begin(), std::divides<>());
  std::ranges::sort(ratios);
  std::printf(
      "%s\n  {\"name\": \"%s\", \"ns\": %.0f, \"ratio\": %.3f, \"quartiles\": [%.3f, %.3f], "
      "\"note\": \"%.2f GB/s, %.1f %% of the bytes\"}",
      first ? "" : ",", name.c_str(), median(ns), ratios[ratios.size() / 2],
      ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4], 4.0 * kCount / median(ns),
      100.0 * static_cast<double>(bytes) / (4.0 * kCount));
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t rounds = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 31;
  std::mt19937 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in every run
  std::normal_distribution<float> normal;
  Bytes plain(4 * kCount);
  Bytes relu(4 * kCount);
  for (std::size_t i = 0; i < kCount; ++i) {
    const float value = normal(random);
    const float rectified = std::max(value, 0.0F);
    std::memcpy(plain.data() + 4 * i, &value, 4);
    std::memcpy(relu.data() + 4 * i, &rectified, 4);
  }
  static constexpr std::array<std::uint8_t, 32> kSecret{1};
  const std::array contestants{by_codec(Codec::kLossless),
                               by_codec(Codec::kRaw),
                               by_codec(Codec::kFloat16),
                               by_codec(Codec::kBFloat16),
                               by_zstd("zstd level 1, no shuffle", 1, false),
                               by_zstd("zstd level 3, shuffled", 3, true),
                               by_entry("raw entry, checksum", std::nullopt),
                               by_entry("raw entry, MAC", Secret(std::span(kSecret)))};
  std::printf(
      "{\"bench\": \"codec\", \"about\": \"What do the codecs of entries cost and save?\\nA ratio "
      "is "
      "their time over that of lossless: above 1 if lossless is faster.\", \"machine\": "
      "{\"compiler\": \"%s\", \"zstd\": \"%s\"}, \"rounds\": %zu, \"threads\": 1, \"tables\": {",
      __VERSION__, ZSTD_versionString(), rounds);
  for (const bool rectified : {false, true}) {
    const Bytes& input = rectified ? relu : plain;
    std::array<std::array<std::vector<double>, contestants.size()>, 2> ns;
    std::array<Bytes, contestants.size()> stored;
    Bytes back(input.size());
    for (std::size_t round = 0; round <= rounds; ++round) {
      for (std::size_t c = 0; c < contestants.size(); ++c) {
        const double there = time_of([&] { contestants[c].encode(input, stored[c]); });
        const double again = time_of([&] { contestants[c].decode(stored[c], back); });
        if (!contestants[c].lossy && back != input) return EXIT_FAILURE;
        if (round == 0) continue;  // memory is warm from here on
        ns[0][c].push_back(there);
        ns[1][c].push_back(again);
      }
    }
    for (const std::size_t way : {0UL, 1UL}) {
      std::printf("%s\n \"%s, %s\": [", rectified || way != 0 ? "," : "",
                  way == 0 ? "encode" : "decode", rectified ? "behind a ReLU" : "normal");
      for (std::size_t c = 0; c < contestants.size(); ++c) {
        print_row(contestants[c].name, ns[way][c], ns[way][0], stored[c].size(), c == 0);
      }
      std::printf("]");
    }
  }
  std::puts("\n}}");
  return EXIT_SUCCESS;
}
