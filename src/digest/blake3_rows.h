// Many messages of one length side by side. Internal, thread-safe.
#pragma once

#include <span>

#include <tensorkey/digest.h>

#include "digest/blake3_tree.h"

namespace tensorkey::internal {

// out[i] = the digest of row i, in the calling thread. REQUIRES: out.size() == rows.count.
void roots(const Mode& mode, const RowSpan& rows, std::span<Digest> out) noexcept;

}  // namespace tensorkey::internal
