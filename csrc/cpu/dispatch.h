// Which instruction sets this build has, this processor runs, and this process uses.
#pragma once

#include <string>
#include <vector>

namespace wals::cpu {

/// Names of the sets that were built and that this processor runs, best first: "amx", "avx512vnni", "avx512",
/// "avx2", "baseline".
std::vector<std::string> available_isas();

/// The set in use: the best available, or the one that the environment variable WALS_GPU_ISA names.
std::string isa();

/// Chooses a set by name; returns false (and changes nothing) if it is not available.
bool use_isa(const std::string& name);

}  // namespace wals::cpu
