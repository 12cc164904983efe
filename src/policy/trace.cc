// Traces as plain text. A trace comes from anywhere: no line can make the reader take more memory
// than the line's share, and no number can make a sum overflow.
#include <tensorkey/error.h>
#include <tensorkey/simulate.h>

#include <array>
#include <charconv>
#include <cmath>
#include <optional>

namespace tensorkey {
namespace {

constexpr std::size_t kMaxLine = 4096;
constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 40;
constexpr double kMaxCost = 1e15;

[[noreturn]] void refuse(std::size_t line, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument,
              "[read_trace] line " + std::to_string(line) + ": " + what);
}

// What a message may repeat of a file that is not ours: a few printable characters.
std::string quote(std::string_view text) {
  std::string shown = "\"";
  for (const char c : text.substr(0, 24)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown + (text.size() > 24 ? "...\"" : "\"");
}

// Reads up to the end of the line; false at the end of the input.
bool next_line(std::istream& input, std::string& line, std::size_t number) {
  line.clear();
  std::streambuf& buffer = *input.rdbuf();
  using Traits = std::streambuf::traits_type;
  for (;;) {
    const Traits::int_type c = buffer.sbumpc();
    if (Traits::eq_int_type(c, Traits::eof())) return !line.empty();
    if (c == '\n') return true;
    if (line.size() == kMaxLine) {
      refuse(number,
             "longer than " + std::to_string(kMaxLine) + " bytes; expected key [size [cost]]");
    }
    line.push_back(Traits::to_char_type(c));
  }
}

// Takes the next field off the line.
std::optional<std::string_view> next_field(std::string_view& rest) {
  constexpr std::string_view kBlank = " \t\r";
  const std::size_t begin = rest.find_first_not_of(kBlank);
  if (begin == rest.npos) return std::nullopt;
  rest.remove_prefix(begin);
  const std::string_view field = rest.substr(0, rest.find_first_of(kBlank));
  rest.remove_prefix(field.size());
  return field;
}

template <class T>
bool parse(std::string_view field, T& value) {
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  return error == std::errc{} && end == field.data() + field.size();
}

// FNV-1a, 64 bits: any word is a key.
std::uint64_t key_of(std::string_view word) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

std::vector<Access> read_trace(std::istream& input) {
  std::vector<Access> trace;
  if (!input) throw Error(ErrorCode::kInvalidArgument, "[read_trace] the stream cannot be read");
  std::string line;
  for (std::size_t number = 1; next_line(input, line, number); ++number) {
    std::string_view rest = line;
    const auto key = next_field(rest);
    if (!key || key->front() == '#') continue;
    Access access{.key = key_of(*key)};
    if (const auto size = next_field(rest)) {
      if (!parse(*size, access.size) || access.size > kMaxSize) {
        refuse(number, "the size is " + quote(*size) +
                           "; expected a whole number of bytes, at most " +
                           std::to_string(kMaxSize));
      }
      if (const auto cost = next_field(rest)) {
        if (!parse(*cost, access.cost) || !(access.cost >= 0 && access.cost <= kMaxCost)) {
          refuse(number, "the cost is " + quote(*cost) + "; expected a number from 0 to 1e15");
        }
      }
    }
    trace.push_back(access);
  }
  return trace;
}

}  // namespace tensorkey
