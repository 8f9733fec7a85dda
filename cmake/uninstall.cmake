# cmake --build build/release --target uninstall: removes what `cmake --install` put there, as the
# manifests in the build folder name it, below $DESTDIR if that is set, and folders named shmstore that
# are then empty. A service that runs is to be stopped before.

file(GLOB manifests "${BUILD}/install_manifest*.txt")
if(NOT manifests)
  message(FATAL_ERROR "Nothing was installed from ${BUILD}: it has no install_manifest.txt")
endif()

set(files "")
foreach(manifest ${manifests})
  file(STRINGS "${manifest}" lines)
  list(APPEND files ${lines})
endforeach()
list(REMOVE_DUPLICATES files)

set(removed 0)
set(folders "")
foreach(file ${files})
  set(file "$ENV{DESTDIR}${file}")
  if(EXISTS "${file}" OR IS_SYMLINK "${file}")
    file(REMOVE "${file}")
    if(EXISTS "${file}" OR IS_SYMLINK "${file}")
      message(FATAL_ERROR "${file} cannot be removed: not root?")
    endif()
    math(EXPR removed "${removed} + 1")
  endif()
  get_filename_component(folder "${file}" DIRECTORY)
  list(APPEND folders "${folder}")
endforeach()

list(REMOVE_DUPLICATES folders)
list(SORT folders ORDER DESCENDING)  # inner ones first
foreach(folder ${folders})
  file(GLOB left LIST_DIRECTORIES true "${folder}/*" "${folder}/.*")
  if(folder MATCHES "/shmstore(/|$)" AND IS_DIRECTORY "${folder}" AND NOT left)
    file(REMOVE_RECURSE "${folder}")
  endif()
endforeach()

file(REMOVE ${manifests})
message(STATUS "Removed ${removed} files")
