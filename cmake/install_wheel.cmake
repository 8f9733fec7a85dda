# What a wheel holds besides the extension (client/python installs that): the two programs, in the
# environment's bin. find_program-like behaviour of the package relies on them being beside python.

foreach(program shmstored shmctl)
  if(TARGET ${program})
    install(PROGRAMS "$<TARGET_FILE:${program}>" DESTINATION "${SKBUILD_SCRIPTS_DIR}")
  endif()
endforeach()
