// The policy simulator.
#include <tensorkey/simulate.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include <tensorkey/error.h>

#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

// Borrows nothing: the GIL is released all the while.
std::vector<Replay> replay(const std::string& path, std::uint64_t capacity,
                           const std::vector<std::string>& policies) {
  const nb::gil_scoped_release release;
  std::ifstream file(path);
  if (!file) {
    const std::string reason = std::generic_category().message(errno);
    throw Error(ErrorCode::kIo, "[simulate] " + path + " cannot be read: " + reason);
  }
  const std::vector<Access> trace = read_trace(file);
  std::vector<Replay> replays;
  replays.reserve(policies.size());
  for (const std::string& policy : policies) replays.push_back(simulate(policy, trace, capacity));
  return replays;
}

}  // namespace

void init_simulate(nb::module_& m) {
  nb::class_<Replay>(m, "Replay", "What a policy made of a trace.")
      .def_ro("policy", &Replay::policy)
      .def_ro("requests", &Replay::requests)
      .def_ro("hits", &Replay::hits)
      .def_ro("evictions", &Replay::evictions)
      .def_ro("rejections", &Replay::rejections, "Misses that were not kept.")
      .def_prop_ro("hit_ratio", &Replay::hit_ratio)
      .def_prop_ro("byte_hit_ratio", &Replay::byte_hit_ratio)
      .def_prop_ro("saved_ratio", &Replay::saved_ratio, "Of the cost of all requests.")
      .def("__repr__", [](const Replay& replay) {
        return "<Replay " + replay.policy + ": " + std::to_string(replay.hits) + " hits in " +
               std::to_string(replay.requests) + " requests>";
      });
  m.def("replay", &replay, "path"_a, "capacity"_a, "policies"_a,
        "Replay a trace file through policies, in a cache of `capacity` bytes.");
  m.def(
      "simulated_policies",
      [] {
        nb::list names;
        for (const std::string_view name : simulated_policies()) {
          names.append(nb::str(name.data(), name.size()));
        }
        return nb::tuple(names);
      },
      nb::sig("def simulated_policies() -> tuple[str, ...]"),
      "The names of the policies that replay() knows.");
}

}  // namespace tensorkey::python
