// The whole core, lowest layer first: this list is also the map of the library. Start with key.h
// for keys, map.h for tensors as keys of a mapping, memo.h for an activation cache.
#pragma once

#include <tensorkey/version.h>  // IWYU pragma: export

#include <tensorkey/error.h>  // IWYU pragma: export

#include <tensorkey/dtype.h>  // IWYU pragma: export
#include <tensorkey/view.h>   // IWYU pragma: export

#include <tensorkey/digest.h>  // IWYU pragma: export

#include <tensorkey/key.h>  // IWYU pragma: export

#include <tensorkey/map.h>  // IWYU pragma: export

#include <tensorkey/simulate.h>  // IWYU pragma: export

#include <tensorkey/codec.h>         // IWYU pragma: export
#include <tensorkey/entry.h>         // IWYU pragma: export
#include <tensorkey/entry_format.h>  // IWYU pragma: export

#include <tensorkey/cache.h>  // IWYU pragma: export

#include <tensorkey/bypass.h>  // IWYU pragma: export
#include <tensorkey/hints.h>   // IWYU pragma: export
#include <tensorkey/memo.h>    // IWYU pragma: export
