// An inference server without the network: several clients send texts, some of them again and
// again; each answer is 384 floats from a scripted encoder behind a cache of bounded memory.
//
//   python examples/server/make_encoder.py encoder.pt
//   server encoder.pt [CLIENTS [REQUESTS [MEMORY-KiB]]]      texts made up, asked for unevenly
//   server encoder.pt - < texts                              one line, one text
//
// How it is built: scripts/libtorch.sh.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iomanip>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <tensorkey/torch.h>
#include <torch/script.h>

namespace {

constexpr std::int64_t kLength = 32;     // tokens of a text
constexpr std::int64_t kTokens = 4096;   // 0 is padding
constexpr std::int64_t kBatch = 16;      // texts of a request
constexpr std::int64_t kTexts = 20'000;  // that clients know

// A toy tokenizer: a word is a number.
void tokenize(const std::string& text, std::int64_t* ids) {
  std::fill_n(ids, kLength, 0);
  std::istringstream words(text);
  std::string word;
  for (std::int64_t i = 0; i < kLength && words >> word; ++i) {
    ids[i] = 1 + static_cast<std::int64_t>(std::hash<std::string>()(word) % (kTokens - 1));
  }
}

at::Tensor tokens(const std::vector<std::string>& texts) {
  at::Tensor ids = at::empty({static_cast<std::int64_t>(texts.size()), kLength}, at::kLong);
  auto* row = ids.mutable_data_ptr<std::int64_t>();
  for (const std::string& text : texts) {
    tokenize(text, row);
    row += kLength;
  }
  return ids;
}

std::string made_up_text(std::int64_t number) {
  std::mt19937 random(static_cast<unsigned>(number));
  std::string text;
  for (unsigned words = 4 + random() % 20; words > 0; --words) {
    text += std::to_string(random() % 5000);
    text += ' ';
  }
  return text;
}

// Text number i is asked for about i times less often than the first.
std::int64_t popular(std::mt19937& random) {
  const double u = (random() + 0.5) / 4294967296.0;
  return static_cast<std::int64_t>(std::pow(static_cast<double>(kTexts), u)) - 1;
}

struct Served {
  std::atomic<std::int64_t> texts = 0;
  std::atomic<std::size_t> most_bytes = 0;
  std::atomic<bool> wrong = false;
};

// One request: whoever serves is a thread of the server.
template <class Encoder>
at::Tensor serve(const Encoder& encoder, const std::vector<std::string>& texts, Served& served) {
  const c10::InferenceMode inference;  // no gradients: else nothing would be cached
  at::Tensor answer = encoder(tokens(texts)).toTensor();
  served.texts += static_cast<std::int64_t>(texts.size());
  const std::size_t bytes = encoder.cache().stats().bytes;
  std::size_t most = served.most_bytes;
  while (bytes > most && !served.most_bytes.compare_exchange_weak(most, bytes)) {
  }
  return answer;
}

template <class Encoder>
void client(const Encoder& encoder, unsigned seed, int requests, Served& served) {
  std::mt19937 random(seed);
  for (int i = 0; i < requests; ++i) {
    std::vector<std::string> texts;
    for (std::int64_t k = 0; k < kBatch; ++k) texts.push_back(made_up_text(popular(random)));
    texts.push_back(texts.front());  // asked for twice in one request
    const at::Tensor answer = serve(encoder, texts, served);
    if (!at::equal(answer[0], answer[kBatch])) served.wrong = true;
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tensorkey::literals;
  if (argc < 2) {
    std::cerr << "usage: server ENCODER.pt [CLIENTS [REQUESTS [MEMORY-KiB]]] | ENCODER.pt -\n";
    return EXIT_FAILURE;
  }
  const bool from_stdin = argc > 2 && std::string(argv[2]) == "-";
  const int clients = argc > 2 && !from_stdin ? std::atoi(argv[2]) : 4;
  const int requests = argc > 3 ? std::atoi(argv[3]) : 50;
  const std::size_t memory = (argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 4096) * 1_KiB;
  at::set_num_threads(1);  // clients are what runs in parallel

  torch::jit::Module module = torch::jit::load(argv[1]);
  module.eval();
  const auto encoder = tensorkey::torch::cached(module, {.memory = memory, .chunk = 32});

  Served served;
  const auto start = std::chrono::steady_clock::now();
  if (from_stdin) {
    std::vector<std::string> texts;
    for (std::string line; std::getline(std::cin, line);) texts.push_back(line);
    if (!texts.empty()) serve(encoder, texts, served);
  } else {
    std::vector<std::thread> threads;
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([&, i] { client(encoder, static_cast<unsigned>(i), requests, served); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;

  const tensorkey::torch::Stats stats = encoder.stats();
  std::cout << std::fixed << std::setprecision(1) << "texts:   " << served.texts << " in "
            << took.count() << " s, " << static_cast<double>(served.texts) / took.count()
            << " a second\n"
            << "hits:    " << stats.memo.hits << " of " << stats.memo.lookups << " rows, "
            << stats.memo.seconds_saved << " s of computing saved\n"
            << "memory:  " << served.most_bytes / 1_KiB << " KiB at most, of " << memory / 1_KiB
            << " allowed; " << encoder.cache().stats().evictions << " entries evicted\n"
            << "probe:   " << (stats.layer.verdict ? stats.layer.verdict->text : "none") << '\n'
            << "bypass:  " << stats.bypass.decision << '\n';
  for (const auto& [reason, count] : stats.uncached) {
    std::cout << "uncached " << count << ": " << reason << '\n';
  }
  for (const std::string& hint : stats.hints) std::cout << "hint:    " << hint << '\n';
  return served.wrong || served.most_bytes > memory ? EXIT_FAILURE : EXIT_SUCCESS;
}
