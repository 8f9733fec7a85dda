# Looks for all that this build needs before anything is compiled, and names at once all that is
# missing, with the line that installs it. After it a C++ compiler is there.

include(CheckLanguage)
set(missing_things "")
set(missing_packages "")

# missing(<what> <package>...): one more thing that is not there.
macro(missing what)
  string(APPEND missing_things "\n  ${what}")
  list(APPEND missing_packages ${ARGN})
endmacro()

check_language(CXX)
if(CMAKE_CXX_COMPILER)
  enable_language(CXX)
else()
  missing("a C++ compiler: g++ 12 or later, clang++ 16 or later" g++)
endif()

# CMake finds packages in the folders of an architecture only when it knows the compiler; without
# one the headers are looked for.
function(find_headers found name version header)
  if(CMAKE_CXX_COMPILER)
    find_package(${name} ${version} QUIET)
    set(${found} ${${name}_FOUND} PARENT_SCOPE)
  else()
    find_path(folder "${header}" PATHS /usr/include /usr/local/include NO_CACHE)
    set(${found} ${folder} PARENT_SCOPE)
  endif()
endfunction()

if(NOT SHMSTORE_PREBUILT)
  find_headers(found Boost 1.81 boost/asio.hpp)
  if(NOT found)
    set(package libboost-dev)
    if(EXISTS /etc/os-release)
      file(STRINGS /etc/os-release release REGEX "^VERSION_CODENAME=bookworm")
      if(release)  # whose default is 1.74
        set(package libboost1.81-dev)
      endif()
    endif()
    missing("Boost's headers, 1.81 or later" ${package})
  endif()
  find_headers(found nlohmann_json 3.9 nlohmann/json.hpp)
  if(NOT found)
    missing("nlohmann_json's headers, 3.9 or later" nlohmann-json3-dev)
  endif()
  find_headers(found CLI11 2.1 CLI/CLI.hpp)
  if(NOT found AND (SHMSTORE_DAEMON OR SHMSTORE_CTL))
    missing("CLI11's headers, 2.1 or later" libcli11-dev)
  endif()
endif()

if(SHMSTORE_PYTHON AND Python_EXECUTABLE)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c
    "import sysconfig; print(sysconfig.get_path('include'), end='')" OUTPUT_VARIABLE folder)
  if(NOT EXISTS "${folder}/Python.h")
    missing("Python's headers (${folder}/Python.h)" python3-dev)
  endif()
endif()

if(missing_things)
  unset(CMAKE_CXX_COMPILER CACHE)  # looked for again the next time
  list(JOIN missing_packages " " missing_packages)
  message(FATAL_ERROR "shmstore cannot be built here. Missing:${missing_things}\n"
    "On Debian and Ubuntu: apt-get install ${missing_packages}")
endif()
