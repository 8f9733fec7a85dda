# What a wheel holds besides the extension (client/python installs that): the two programs, in the
# environment's bin, and their manual pages, in its share/man, where `man` looks for what is in $PATH.
# find_program-like behaviour of the package relies on them being beside python.

foreach(program shmstored shmctl)
  if(TARGET ${program})
    install(PROGRAMS "$<TARGET_FILE:${program}>" DESTINATION "${SKBUILD_SCRIPTS_DIR}")
  endif()
endforeach()

foreach(section 1 7 8)
  file(GLOB pages CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/docs/man/*.${section}")
  if(pages)
    install(FILES ${pages} DESTINATION "${SKBUILD_DATA_DIR}/share/man/man${section}")
  endif()
endforeach()
