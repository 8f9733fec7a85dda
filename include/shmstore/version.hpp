#pragma once
/// The version of the library and the daemon. CMake reads it from here.
#define SHMSTORE_VERSION_MAJOR 0
#define SHMSTORE_VERSION_MINOR 1
#define SHMSTORE_VERSION_PATCH 0
#define SHMSTORE_VERSION_STRING "0.1.0"
