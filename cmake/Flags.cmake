# write_flags(FILE NAME=VALUE...): what a library is built with, for its stamp: a line NAME=VALUE for each flag.
function (write_flags file)
    static_libraries_below("${LLAMA_DIR}/ggml/src" backends)
    list(FILTER backends EXCLUDE REGEX "^ggml(-base)?$")
    list(JOIN backends " " backends)
    set(lines ${ARGN}
        "compiler=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
        "system=${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}"
        "build_type=${CMAKE_BUILD_TYPE}"
        "cflags=${CMAKE_C_FLAGS}"
        "cxxflags=${CMAKE_CXX_FLAGS}"
        "backends=${backends}")
    foreach (option GGML_NATIVE GGML_OPENMP GGML_LTO GGML_CPU_REPACK GGML_LLAMAFILE)
        list(APPEND lines "${option}=${${option}}")
    endforeach()
    list(SORT lines)
    list(JOIN lines "\n" text)
    file(WRITE "${file}" "${text}\n")
endfunction()
