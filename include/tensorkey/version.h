// The version of the library: the only place where it is written. CMake and the Python package
// read it from here.
#pragma once

#define TENSORKEY_VERSION_MAJOR 0
#define TENSORKEY_VERSION_MINOR 1
#define TENSORKEY_VERSION_PATCH 0
#define TENSORKEY_VERSION "0.1.0"
