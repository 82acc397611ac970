# one_library(NAME): links all of llama.cpp's archives whole into one shared library, lib<llama>.so in the build folder.
#
# The archives' other needs (pthread, libm, a GPU's run time) come along because `llama` is linked plainly as well. CMake's own
# LINK_LIBRARY:WHOLE_ARCHIVE refuses targets that are linked both ways, hence the linker's flags.

function (static_libraries_below directory result)
    get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
    get_property(children DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
    set(found)
    foreach (target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        if (type STREQUAL "STATIC_LIBRARY")
            list(APPEND found ${target})
        endif()
    endforeach()
    foreach (child IN LISTS children)
        static_libraries_below("${child}" below)
        list(APPEND found ${below})
    endforeach()
    set(${result} ${found} PARENT_SCOPE)
endfunction()

function (one_library name)
    # ggml, ggml-base, ggml-cpu, and ggml-cuda, ggml-vulkan, ... when they are switched on
    static_libraries_below("${LLAMA_DIR}/ggml/src" archives)
    list(PREPEND archives llama)
    shared_library(${name} "${CMAKE_BINARY_DIR}" ${archives})
    target_link_libraries(${name} PRIVATE llama)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL OFF)
endfunction()

# shared_library(NAME FOLDER ARCHIVE...): the archives whole in FOLDER/libllama.so. What else they need is for the caller to link.
function (shared_library name folder)
    set(archives ${ARGN})
    file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/libllama.cpp" CONTENT "// CMake wants a source file; everything is in the archives.\n")
    add_library(${name} SHARED EXCLUDE_FROM_ALL "${CMAKE_BINARY_DIR}/libllama.cpp")
    set_target_properties(${name} PROPERTIES
        OUTPUT_NAME llama
        LINKER_LANGUAGE CXX
        LIBRARY_OUTPUT_DIRECTORY "${folder}")
    add_dependencies(${name} ${archives})

    if (APPLE)
        foreach (archive IN LISTS archives)
            target_link_libraries(${name} PRIVATE "-Wl,-force_load,$<TARGET_FILE:${archive}>")
        endforeach()
    else()
        set(files)
        foreach (archive IN LISTS archives)
            list(APPEND files "$<TARGET_FILE:${archive}>")
        endforeach()
        target_link_libraries(${name} PRIVATE -Wl,--whole-archive ${files} -Wl,--no-whole-archive)
        # The C++ run time goes in, and none of it comes out again: beside numpy or torch there must not be two of each symbol.
        set(exports "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/exports.map")
        target_link_options(${name} PRIVATE -static-libstdc++ -static-libgcc
            "-Wl,--version-script=${exports}" -Wl,-z,now -Wl,-z,noexecstack)
        set_target_properties(${name} PROPERTIES LINK_DEPENDS "${exports}")
    endif()
endfunction()
