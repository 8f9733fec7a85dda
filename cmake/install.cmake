# cmake --install: programs, client library, headers, package config, pkg-config file, systemd
# units, manual pages and completions. An installed client needs neither Boost nor JSON.

include(CMakePackageConfigHelpers)

# install_configured(<template> <folder> <name>): fills the template in when it is installed, so
# that it names the prefix that `cmake --install --prefix` was given.
function(install_configured template folder name)
  install(CODE "
    set(version \"${PROJECT_VERSION}\")
    set(description \"${PROJECT_DESCRIPTION}\")
    set(libdir \"${CMAKE_INSTALL_LIBDIR}\")
    set(includedir \"${CMAKE_INSTALL_INCLUDEDIR}\")
    get_filename_component(prefix \"\${CMAKE_INSTALL_PREFIX}\" ABSOLUTE)
    set(bindir \"\${prefix}/${CMAKE_INSTALL_BINDIR}\")
    set(file \"\$ENV{DESTDIR}\${prefix}/${folder}/${name}\")
    message(STATUS \"Installing: \${file}\")
    configure_file(\"${template}\" \"\${file}\" @ONLY)")
endfunction()

foreach(program shmstored shmctl)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endforeach()

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/shmstore"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")

# --- client library: find_package(shmstore) and pkg-config ---------------------------------------
if(TARGET shmstore)
  set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/shmstore")
  set_target_properties(shmstore PROPERTIES EXPORT_NAME client)
  install(TARGETS shmstore EXPORT shmstore_targets
          LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
          INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT shmstore_targets NAMESPACE shmstore:: FILE shmstore-targets.cmake
          DESTINATION "${package_folder}")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/shmstore-config.cmake.in"
    "${PROJECT_BINARY_DIR}/shmstore-config.cmake" INSTALL_DESTINATION "${package_folder}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/shmstore-config-version.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/shmstore-config.cmake"
                "${PROJECT_BINARY_DIR}/shmstore-config-version.cmake"
          DESTINATION "${package_folder}")

  install_configured("${PROJECT_SOURCE_DIR}/cmake/shmstore.pc.in"
                     "${CMAKE_INSTALL_LIBDIR}/pkgconfig" shmstore.pc)
endif()

# --- manual pages, completions -------------------------------------------------------------------
foreach(section 1 5 7 8)
  file(GLOB pages CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/docs/man/*.${section}")
  if(pages)
    install(FILES ${pages} DESTINATION "${CMAKE_INSTALL_MANDIR}/man${section}")
  endif()
endforeach()

function(install_completion shell file folder name)
  set(source "${PROJECT_SOURCE_DIR}/tools/shmctl/completion/${file}")
  if(EXISTS "${source}")
    install(FILES "${source}" DESTINATION "${CMAKE_INSTALL_DATADIR}/${folder}" RENAME "${name}")
  endif()
endfunction()
install_completion(bash shmctl.bash bash-completion/completions shmctl)
install_completion(zsh shmctl.zsh zsh/site-functions _shmctl)
install_completion(fish shmctl.fish fish/vendor_completions.d shmctl.fish)

# --- systemd -------------------------------------------------------------------------------------
set(SHMSTORE_UNITDIR "lib/systemd" CACHE STRING "Folder of systemd units below the prefix")
set(unit_source "${PROJECT_SOURCE_DIR}/systemd")
foreach(kind system user)
  install(FILES "${unit_source}/${kind}/shmstored.socket"
          DESTINATION "${SHMSTORE_UNITDIR}/${kind}")
  install_configured("${unit_source}/${kind}/shmstored.service.in"
                     "${SHMSTORE_UNITDIR}/${kind}" shmstored.service)
endforeach()
foreach(kind sysusers tmpfiles)
  install(FILES "${unit_source}/shmstore.${kind}.conf"
          DESTINATION "lib/${kind}.d" RENAME shmstore.conf)
endforeach()
