# cmake --install: programs, client library, headers, package config, pkg-config file, systemd
# units, manual pages and completions. An installed client needs neither Boost nor JSON.

include(CMakePackageConfigHelpers)

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

  configure_file("${PROJECT_SOURCE_DIR}/cmake/shmstore.pc.in"
                 "${PROJECT_BINARY_DIR}/shmstore.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/shmstore.pc"
          DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
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
# Units name the installed program, so they are written for the prefix.
set(SHMSTORE_UNITDIR "lib/systemd" CACHE STRING "Folder of systemd units below the prefix")
set(unit_source "${PROJECT_SOURCE_DIR}/systemd")
set(unit_build "${PROJECT_BINARY_DIR}/systemd")
foreach(kind system user)
  foreach(unit shmstored.service shmstored.socket)
    if(EXISTS "${unit_source}/${kind}/${unit}.in")
      configure_file("${unit_source}/${kind}/${unit}.in" "${unit_build}/${kind}/${unit}" @ONLY)
      install(FILES "${unit_build}/${kind}/${unit}" DESTINATION "${SHMSTORE_UNITDIR}/${kind}")
    endif()
  endforeach()
endforeach()
foreach(kind sysusers tmpfiles)
  if(EXISTS "${unit_source}/shmstore.${kind}.conf")
    install(FILES "${unit_source}/shmstore.${kind}.conf"
            DESTINATION "lib/${kind}.d" RENAME shmstore.conf)
  endif()
endforeach()
