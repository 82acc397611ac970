# check_layout(TARGET): TARGET is built only when modeld/llm/libllama.py says what llama.h says.
#
# The table becomes a C file of static assertions and prototypes (modeld/llm/abi.py), compiled with the real headers.
function (check_layout target)
    find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter)

    # Another llama.h would be refused by the loader; better now than after the build.
    file(STRINGS "${CMAKE_SOURCE_DIR}/third_party/llama.cpp.lock" pinned REGEX "^llama_h_sha256 = ")
    string(REGEX MATCH "[0-9a-f]+\"" pinned "${pinned}")
    string(REPLACE "\"" "" pinned "${pinned}")
    file(SHA256 "${LLAMA_DIR}/include/llama.h" found)
    if (NOT found STREQUAL pinned)
        message(FATAL_ERROR "${LLAMA_DIR} is not the llama.cpp that modeld is written for: its include/llama.h has\n"
            "  sha256 ${found}, the lock file wants\n  sha256 ${pinned}.\n"
            "Put the pinned tree there (remove the folder, `make fetch`), or move the pin: docs/building.md says how.")
    endif()

    set(checked "${CMAKE_BINARY_DIR}/layout_check.c")
    set(python_sources
        "${CMAKE_SOURCE_DIR}/modeld/llm/abi.py"
        "${CMAKE_SOURCE_DIR}/modeld/llm/libllama.py"
        "${CMAKE_SOURCE_DIR}/modeld/errors.py")
    add_custom_command(OUTPUT "${checked}"
        COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${CMAKE_SOURCE_DIR}" PYTHONDONTWRITEBYTECODE=1
            "${Python3_EXECUTABLE}" -m modeld.llm.abi "${checked}"
        DEPENDS ${python_sources}
        COMMENT "Generating the layout check from modeld/llm/libllama.py" VERBATIM)
    add_library(layout_check OBJECT "${checked}")
    set_target_properties(layout_check PROPERTIES C_STANDARD 11)
    target_include_directories(layout_check PRIVATE "${LLAMA_DIR}/include" "${LLAMA_DIR}/ggml/include")
    # First: an edit of the table is told in a tenth of a second, not after the library.
    add_dependencies(${target} layout_check)
endfunction()
