// Visibility of public symbols. Everything is hidden by default (-fvisibility=hidden);
// what a user may link against is marked TENSORKEY_EXPORT, in static and shared builds alike.
#pragma once

#define TENSORKEY_EXPORT __attribute__((visibility("default")))
