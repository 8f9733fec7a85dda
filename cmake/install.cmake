# cmake --install, by components: lib (the shared library), dev (headers, package config, pkg-config
# file), daemon (shmstored, shmctl, units, manual pages, completions) and, with SHMSTORE_PYTHON, python
# (client/python installs that). An installed client needs neither Boost nor JSON. The target
# `uninstall` removes what the manifests of all installations name, so every file gets into them.

include(CMakePackageConfigHelpers)

# The folder of configuration files, as GNU's standards have it for /usr.
set(sysconfdir_code "
    set(sysconfdir \"\${prefix}/etc\")
    if(prefix STREQUAL \"/usr\")
      set(sysconfdir /etc)
    endif()")

# install_configured(<template> <folder> <name> <component>): fills the template in when it is
# installed, so that it names the prefix that `cmake --install --prefix` was given.
function(install_configured template folder name component)
  install(CODE "
    set(version \"${PROJECT_VERSION}\")
    set(description \"${PROJECT_DESCRIPTION}\")
    set(libdir \"${CMAKE_INSTALL_LIBDIR}\")
    set(includedir \"${CMAKE_INSTALL_INCLUDEDIR}\")
    get_filename_component(prefix \"\${CMAKE_INSTALL_PREFIX}\" ABSOLUTE)
    set(bindir \"\${prefix}/${CMAKE_INSTALL_BINDIR}\")
    ${sysconfdir_code}
    set(file \"\$ENV{DESTDIR}\${prefix}/${folder}/${name}\")
    message(STATUS \"Installing: \${file}\")
    configure_file(\"${template}\" \"\${file}\" @ONLY)
    list(APPEND CMAKE_INSTALL_MANIFEST_FILES \"\${prefix}/${folder}/${name}\")"
    COMPONENT ${component})
endfunction()

foreach(program shmstored shmctl)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT daemon)
  endif()
endforeach()

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/shmstore"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT dev FILES_MATCHING PATTERN "*.hpp")

# --- client library: find_package(shmstore) and pkg-config ---------------------------------------
if(TARGET shmstore)
  set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/shmstore")
  set_target_properties(shmstore PROPERTIES EXPORT_NAME client)
  install(TARGETS shmstore EXPORT shmstore_targets
          LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT lib NAMELINK_COMPONENT dev
          INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT shmstore_targets NAMESPACE shmstore:: FILE shmstore-targets.cmake
          DESTINATION "${package_folder}" COMPONENT dev)
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/shmstore-config.cmake.in"
    "${PROJECT_BINARY_DIR}/shmstore-config.cmake" INSTALL_DESTINATION "${package_folder}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/shmstore-config-version.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/shmstore-config.cmake"
                "${PROJECT_BINARY_DIR}/shmstore-config-version.cmake"
          DESTINATION "${package_folder}" COMPONENT dev)

  install_configured("${PROJECT_SOURCE_DIR}/cmake/shmstore.pc.in"
                     "${CMAKE_INSTALL_LIBDIR}/pkgconfig" shmstore.pc dev)
endif()

# --- manual pages, completions -------------------------------------------------------------------
foreach(section 1 5 7 8)
  file(GLOB pages CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/docs/man/*.${section}")
  if(pages)
    install(FILES ${pages} DESTINATION "${CMAKE_INSTALL_MANDIR}/man${section}" COMPONENT daemon)
  endif()
endforeach()

function(install_completion shell file folder name)
  set(source "${PROJECT_SOURCE_DIR}/tools/shmctl/completion/${file}")
  if(EXISTS "${source}")
    install(FILES "${source}" DESTINATION "${CMAKE_INSTALL_DATADIR}/${folder}" RENAME "${name}"
            COMPONENT daemon)
  endif()
endfunction()
install_completion(bash shmctl.bash bash-completion/completions shmctl)
install_completion(zsh shmctl.zsh zsh/site-functions _shmctl)
install_completion(fish shmctl.fish fish/vendor_completions.d shmctl.fish)

# fish looks below /usr/local only where $XDG_DATA_DIRS says so, which a desktop sets and ssh does
# not; it always looks into /etc/fish.
install(CODE "
  if(CMAKE_INSTALL_PREFIX STREQUAL \"/usr/local\")
    file(INSTALL \"${PROJECT_SOURCE_DIR}/tools/shmctl/completion/shmctl.fish\"
         DESTINATION \"/etc/fish/completions\")
  endif()" COMPONENT daemon)

# --- systemd -------------------------------------------------------------------------------------
set(SHMSTORE_UNITDIR "lib/systemd" CACHE STRING "Folder of systemd units below the prefix")
set(unit_source "${PROJECT_SOURCE_DIR}/systemd")
foreach(kind system user)
  install(FILES "${unit_source}/${kind}/shmstored.socket"
          DESTINATION "${SHMSTORE_UNITDIR}/${kind}" COMPONENT daemon)
  install_configured("${unit_source}/${kind}/shmstored.service.in"
                     "${SHMSTORE_UNITDIR}/${kind}" shmstored.service daemon)
endforeach()
foreach(kind sysusers tmpfiles)
  install(FILES "${unit_source}/shmstore.${kind}.conf"
          DESTINATION "lib/${kind}.d" RENAME shmstore.conf COMPONENT daemon)
endforeach()

# What an administrator has changed stays, also when all is uninstalled.
install(CODE "
    get_filename_component(prefix \"\${CMAKE_INSTALL_PREFIX}\" ABSOLUTE)
    ${sysconfdir_code}
    set(ours \"${unit_source}/shmstored.json\")
    set(there \"\$ENV{DESTDIR}\${sysconfdir}/shmstore/shmstored.json\")
    set(changed FALSE)
    if(EXISTS \"\${there}\")
      file(SHA256 \"\${ours}\" hash_ours)
      file(SHA256 \"\${there}\" hash_there)
      if(NOT hash_ours STREQUAL hash_there)
        set(changed TRUE)
        message(STATUS \"Left as it is: \${there}\")
      endif()
    endif()
    if(NOT changed)
      file(INSTALL \"\${ours}\" DESTINATION \"\${sysconfdir}/shmstore\")
    endif()" COMPONENT daemon)

# --- uninstall -----------------------------------------------------------------------------------
add_custom_target(uninstall
  COMMAND "${CMAKE_COMMAND}" "-DBUILD=${PROJECT_BINARY_DIR}"
          -P "${PROJECT_SOURCE_DIR}/cmake/uninstall.cmake"
  COMMENT "Removing what was installed from this build folder" VERBATIM)
