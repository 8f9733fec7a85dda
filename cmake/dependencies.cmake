# Libraries, found once. All are header-only and none is needed by an installed client.

find_package(Boost 1.81 CONFIG REQUIRED)
if(NOT TARGET Boost::headers)
  message(FATAL_ERROR "Boost ${Boost_VERSION} was found without its headers target")
endif()

if(SHMSTORE_DAEMON OR SHMSTORE_CTL)
  find_package(nlohmann_json 3.9 REQUIRED)
  find_package(CLI11 2.1 REQUIRED)
endif()

# Asio as the daemon uses it: one thread runs it, so no handler tracking, and only its std types.
add_library(shmstore_asio INTERFACE)
target_link_libraries(shmstore_asio INTERFACE Boost::headers Threads::Threads)
target_compile_definitions(shmstore_asio INTERFACE
  BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_VISIBILITY)
