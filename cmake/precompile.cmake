# TENSORKEY_PRECOMPILE names the kinds of targets (library, tests) whose headers of the standard
# library and of GoogleTest are compiled once for all their files: parsing them is most of the time
# that a file takes. With it a file that lacks an include compiles, so what is shipped is built
# without (the package, the wheel, the library of the preset "release").

# tensorkey_precompile(TARGET KIND [HEADER...]): the targets of a kind share what the first of them
# compiles, so they must be compiled alike.
function(tensorkey_precompile target kind)
  if(NOT kind IN_LIST TENSORKEY_PRECOMPILE)
    return()
  endif()
  # What ccache asks for (its manual, "Precompiled headers").
  target_compile_options(${target} PRIVATE -fpch-preprocess)
  if(CCACHE_PROGRAM)
    set_target_properties(${target} PROPERTIES CXX_COMPILER_LAUNCHER
      "${CMAKE_COMMAND};-E;env;CCACHE_SLOPPINESS=pch_defines,time_macros;${CCACHE_PROGRAM}")
  endif()
  get_property(first GLOBAL PROPERTY tensorkey_precompiled_${kind})
  if(first)
    target_precompile_headers(${target} REUSE_FROM ${first})
    return()
  endif()
  set_property(GLOBAL PROPERTY tensorkey_precompiled_${kind} ${target})
  target_precompile_headers(${target} PRIVATE
    <algorithm> <array> <atomic> <bit> <chrono> <cmath> <cstdint> <cstring> <filesystem> <fstream>
    <functional> <limits> <map> <memory> <mutex> <numeric> <optional> <random> <ranges> <set> <span>
    <sstream> <stdexcept> <string> <string_view> <thread> <unordered_map> <utility> <variant>
    <vector> ${ARGN})
endfunction()
