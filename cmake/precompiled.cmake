# shmstore_precompile(<target> [STD | ASIO | JSON | ASIO_JSON])
#
# Precompiles the headers that cost most, once per target (compile flags differ between libraries
# and programs, so one file cannot serve all). STD is the standard library; ASIO and JSON add the
# heavy ones, for targets whose units mostly use them. Sources must still include what they use:
# a precompiled header is a speed-up and `-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON` has to build.
function(shmstore_precompile target)
  set(kind "${ARGV1}")
  set(folder "${PROJECT_SOURCE_DIR}/cmake/pch")
  target_precompile_headers(${target} PRIVATE "${folder}/std.hpp")
  if(kind MATCHES "ASIO")
    target_link_libraries(${target} PRIVATE shmstore_asio)
    target_precompile_headers(${target} PRIVATE "${folder}/asio.hpp")
  endif()
  if(kind MATCHES "JSON")
    target_link_libraries(${target} PRIVATE nlohmann_json::nlohmann_json)
    target_precompile_headers(${target} PRIVATE "${folder}/json.hpp")
  endif()
endfunction()
