# A wheel made from an earlier build: SHMSTORE_PREBUILT=<build folder> gives the client library,
# the daemon and shmctl as they are; only the extension is compiled. Sanitizers have to agree.

find_library(SHMSTORE_PREBUILT_CLIENT NAMES shmstore_static libshmstore_static.a libshmstore.a
             PATHS "${SHMSTORE_PREBUILT}/lib" NO_DEFAULT_PATH REQUIRED NO_CACHE)
foreach(program shmstored shmctl)
  if(NOT EXISTS "${SHMSTORE_PREBUILT}/bin/${program}")
    message(FATAL_ERROR "SHMSTORE_PREBUILT: ${SHMSTORE_PREBUILT}/bin/${program} is missing")
  endif()
  add_executable(${program} IMPORTED GLOBAL)
  set_target_properties(${program} PROPERTIES
    IMPORTED_LOCATION "${SHMSTORE_PREBUILT}/bin/${program}")
endforeach()

add_library(shmstore_static STATIC IMPORTED GLOBAL)
set_target_properties(shmstore_static PROPERTIES
  IMPORTED_LOCATION "${SHMSTORE_PREBUILT_CLIENT}"
  INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include"
  INTERFACE_LINK_LIBRARIES Threads::Threads)
add_library(shmstore::client_static ALIAS shmstore_static)
