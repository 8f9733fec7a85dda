# shmstore_options: what every target of the project is compiled with. Link it PRIVATE.

find_package(Threads REQUIRED)

add_library(shmstore_options INTERFACE)
target_compile_features(shmstore_options INTERFACE cxx_std_20)
target_include_directories(shmstore_options INTERFACE "${PROJECT_SOURCE_DIR}/include")
target_link_libraries(shmstore_options INTERFACE Threads::Threads)

target_compile_options(shmstore_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wdouble-promotion
  -Wold-style-cast -Wuseless-cast -Wcast-qual -Wcast-align -Wnon-virtual-dtor
  -Woverloaded-virtual -Wunused -Wformat=2 -Wimplicit-fallthrough
  -Wmissing-declarations -Wextra-semi -Wvla -Werror=switch -Werror=return-type
  -fstack-protector-strong)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(shmstore_options INTERFACE
    -Wduplicated-cond -Wduplicated-branches -Wlogical-op -Winvalid-pch)
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 sees out-of-bounds copies inside std::string (its bug 105651) and unset values inside
    # std::optional (its bug 80635) that cannot happen; clang-tidy's analyser looks for real ones.
    # Later ones see fewer: a string of known length that is moved (append to one that stays), a
    # variant that is pushed (emplace it). Those places are written so that none is seen.
    target_compile_options(shmstore_options INTERFACE
      -Wno-maybe-uninitialized -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread)
  endif()
else()
  # Warnings that only GCC knows stay in the list above.
  target_compile_options(shmstore_options INTERFACE -Wno-unknown-warning-option)
endif()

if(SHMSTORE_KILL_POINTS)
  target_compile_definitions(shmstore_options INTERFACE SHMSTORE_KILL_POINTS=1)
endif()

if(SHMSTORE_SANITIZE)
  target_compile_options(shmstore_options INTERFACE
    "-fsanitize=${SHMSTORE_SANITIZE}" -fno-omit-frame-pointer -fno-sanitize-recover=all
    # Instrumented code makes the optimiser see paths that cannot be taken.
    -Wno-maybe-uninitialized -Wno-stringop-overflow -Wno-array-bounds)
  target_link_options(shmstore_options INTERFACE "-fsanitize=${SHMSTORE_SANITIZE}")
  if(SHMSTORE_SANITIZE MATCHES "thread")
    # Asio and the standard library use fences, which TSan of GCC 12 warns that it cannot follow.
    target_compile_options(shmstore_options INTERFACE -Wno-tsan)
  endif()
elseif(CMAKE_BUILD_TYPE MATCHES "^(Release|RelWithDebInfo)$")
  target_compile_options(shmstore_options INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
