# A wheel, or the tests, made from an earlier build: SHMSTORE_PREBUILT=<build folder> gives the
# libraries, the daemon and shmctl as they are; only the extension, or the tests, are compiled. What
# is tested is then what is installed. Sanitizers have to agree.

# prebuilt_library(<target> <file>): a static library of the earlier build.
function(prebuilt_library target file)
  set(library "${SHMSTORE_PREBUILT}/lib/${file}")
  if(NOT EXISTS "${library}")
    message(FATAL_ERROR "SHMSTORE_PREBUILT: ${library} is missing")
  endif()
  add_library(${target} STATIC IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES
    IMPORTED_LOCATION "${library}"
    INTERFACE_INCLUDE_DIRECTORIES "${PROJECT_SOURCE_DIR}/include"
    INTERFACE_LINK_LIBRARIES Threads::Threads)
endfunction()

prebuilt_library(shmstore_static libshmstore_static.a)
add_library(shmstore::client_static ALIAS shmstore_static)
if(SHMSTORE_TESTS)
  prebuilt_library(shmstore_server libshmstore_server.a)
  file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
endif()

foreach(program shmstored shmctl)
  if(NOT EXISTS "${SHMSTORE_PREBUILT}/bin/${program}")
    message(FATAL_ERROR "SHMSTORE_PREBUILT: ${SHMSTORE_PREBUILT}/bin/${program} is missing")
  endif()
  add_executable(${program} IMPORTED GLOBAL)
  set_target_properties(${program} PROPERTIES
    IMPORTED_LOCATION "${SHMSTORE_PREBUILT}/bin/${program}")
  if(SHMSTORE_TESTS)  # they look for the programs beside them
    file(CREATE_LINK "${SHMSTORE_PREBUILT}/bin/${program}" "${PROJECT_BINARY_DIR}/bin/${program}"
         SYMBOLIC)
  endif()
endforeach()
