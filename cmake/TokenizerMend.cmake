# mend_tokenizer(VARIABLE): takes a line out of upstream's SentencePiece tokenizer; VARIABLE receives "yes", or nothing.
#
# For each character that the vocabulary lacks, llm_tokenizer_spm_session::resegment reserves room for exactly its bytes, so the
# vector of all tokens so far is copied once a character: 1 MB of such text takes 38 s, in which its tokenize thread serves
# nobody. push_back alone grows by doubling. The line is an optimization that the result does not depend on; the file is compiled
# from a copy without it, and from upstream's own where the line is not as it was.
function (mend_tokenizer variable)
    set(${variable} "" PARENT_SCOPE)
    set(source "${LLAMA_DIR}/src/llama-vocab.cpp")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
    file(READ "${source}" text)
    set(before "            output.reserve(output.size() + symbol.n);\n            for (int j = 0; j < (int)symbol.n; ++j) {\n")
    set(after "            for (int j = 0; j < (int)symbol.n; ++j) {\n")
    string(FIND "${text}" "${before}" found)
    if (found EQUAL -1)
        return()
    endif()
    string(REPLACE "${before}" "${after}" text "${text}")
    set(mended "${CMAKE_BINARY_DIR}/llama-vocab.cpp")
    file(WRITE "${mended}.new" "${text}")
    configure_file("${mended}.new" "${mended}" COPYONLY)  # written only where it differs: it is compiled again only then
    get_target_property(sources llama SOURCES)
    list(TRANSFORM sources REPLACE "^(.*/)?llama-vocab\\.cpp$" "${mended}")
    set_property(TARGET llama PROPERTY SOURCES "${sources}")
    message(STATUS "llama-vocab.cpp reserves token by token; it is compiled without that line")
    set(${variable} "yes" PARENT_SCOPE)
endfunction()
