# mend_amx(VARIABLE): keeps a faulty compiler from breaking ggml's AMX path; VARIABLE receives the flags, or nothing.
#
# gcc 12's _tile_loadconfig declares that it reads 8 of the 64 bytes of its argument, so the optimizer removes the other stores
# and the first decode on a CPU with AMX (Sapphire Rapids and later) ends the process. Found out by looking for such a store in
# the compiler's assembly, not by its version: distributions patch theirs. Without dead store elimination in the one file that
# uses the intrinsic all is well, and AMX is worth 1.5 to 2.5 times the speed.
function (mend_amx variable)
    set(${variable} "" PARENT_SCOPE)
    if (NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
        return()
    endif()
    set(source "${CMAKE_BINARY_DIR}/amx_test.cpp")
    file(WRITE "${source}" [[
#include <immintrin.h>
struct config { unsigned char palette, row, zero[14]; unsigned short colsb[16]; unsigned char rows[16]; };
void load(unsigned short value) {
    config c = {};
    c.palette = 1;
    c.colsb[3] = value;  // the argument's register, %di, is read if and only if this store is kept
    _tile_loadconfig(&c);
}
]])
    execute_process(COMMAND "${CMAKE_CXX_COMPILER}" -O3 -mamx-tile -S -o - "${source}"
        OUTPUT_VARIABLE assembly RESULT_VARIABLE failed ERROR_QUIET)
    if (failed OR assembly MATCHES "%e?di")  # a compiler without AMX leaves nothing to mend
        return()
    endif()
    set(flags -fno-tree-dse -fno-dse)
    set_source_files_properties("${LLAMA_DIR}/ggml/src/ggml-cpu/amx/mmq.cpp" TARGET_DIRECTORY ggml-cpu
        DIRECTORY "${CMAKE_SOURCE_DIR}" PROPERTIES COMPILE_OPTIONS "${flags}")
    list(JOIN flags " " flags)
    message(STATUS "this compiler drops stores before ldtilecfg; amx/mmq.cpp gets ${flags}")
    set(${variable} "${flags}" PARENT_SCOPE)
endfunction()
