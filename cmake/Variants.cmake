# One library for many CPUs: what each variant may use, and how it comes about. `make release` asks for them (docs/building.md).
#
# All but ggml-cpu is compiled once, for the baseline, because it decides nothing about speed; ggml-cpu, where the kernels are,
# is compiled anew for each variant, from the sources and definitions that upstream gave its own target.

set(VARIANT_BASELINE -march=x86-64-v2)

# variant_flags(VARIANT FLAGS NEEDS): the compiler's flags, and the names in /proc/cpuinfo without which it cannot run. They say the
# same twice, as two programs want it; tests/test_build.py compares NEEDS with the macros that FLAGS define.
function (variant_flags variant flags needs)
    set(march -march=x86-64-v2)
    set(names pni ssse3 sse4_1 sse4_2 popcnt)
    if (NOT variant STREQUAL "x86-64-v2")
        set(march -march=x86-64-v3)
        list(APPEND names avx avx2 bmi1 bmi2 f16c fma abm movbe)
    endif()
    if (variant MATCHES "^x86-64-(v4|amx)$")
        set(march -march=x86-64-v4 -mavx512vnni)
        list(APPEND names avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni)
    endif()
    if (variant STREQUAL "x86-64-amx")
        list(APPEND march -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16)
        list(APPEND names avx512vbmi avx512_bf16 amx_tile amx_int8 amx_bf16)
    elseif (NOT variant MATCHES "^x86-64-v[234]$")
        message(FATAL_ERROR "there is no variant ${variant}; x86-64-amx, x86-64-v4, x86-64-v3 and x86-64-v2 are")
    endif()
    set(${flags} ${march} PARENT_SCOPE)
    set(${needs} ${names} PARENT_SCOPE)
endfunction()

# prepare_variants(): before upstream's tree is added. Its own ggml-cpu is configured without instructions and never built.
macro (prepare_variants)
    if (NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
        message(FATAL_ERROR "variants are for x86-64; a ${CMAKE_SYSTEM_PROCESSOR} host builds its own library: make build")
    endif()
    foreach (feature NATIVE SSE42 AVX AVX2 AVX_VNNI BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_TILE AMX_INT8 AMX_BF16)
        set(GGML_${feature} OFF CACHE BOOL "each variant has its own" FORCE)
    endforeach()
    # Paths would get into the messages of assertions, and two trees would not build the same bytes.
    add_compile_options(${VARIANT_BASELINE} "-ffile-prefix-map=${CMAKE_BINARY_DIR}=build" "-ffile-prefix-map=${CMAKE_SOURCE_DIR}=.")
endmacro()

# variant_library(VARIANT): the target libllama-VARIANT, which makes VARIANT/libllama.so below the build folder; and ggml-cpu-VARIANT.
function (variant_library variant)
    variant_flags(${variant} flags needs)
    set(cpu ggml-cpu-${variant})
    get_target_property(sources ggml-cpu SOURCES)
    get_target_property(folder ggml-cpu SOURCE_DIR)
    list(TRANSFORM sources PREPEND "${folder}/" REGEX "^[^/$]")
    add_library(${cpu} STATIC EXCLUDE_FROM_ALL ${sources})
    foreach (property INCLUDE_DIRECTORIES COMPILE_DEFINITIONS COMPILE_OPTIONS C_STANDARD CXX_STANDARD
             C_STANDARD_REQUIRED CXX_STANDARD_REQUIRED)
        get_target_property(value ggml-cpu ${property})
        get_directory_property(shared DIRECTORY "${folder}" ${property})  # add_compile_definitions() leaves it there
        if (value OR shared)
            list(APPEND shared ${value})
            list(FILTER shared EXCLUDE REGEX "-NOTFOUND$")
            set_target_properties(${cpu} PROPERTIES ${property} "${shared}")
        endif()
    endforeach()
    target_compile_options(${cpu} PRIVATE ${flags})
    target_link_libraries(${cpu} PRIVATE ggml-base)

    # An archive needs nothing of the archives that it will be linked with: nobody builds upstream's ggml-cpu.
    set_target_properties(llama ggml ggml-base PROPERTIES OPTIMIZE_DEPENDENCIES ON)
    shared_library(libllama-${variant} "${CMAKE_BINARY_DIR}/${variant}" llama ggml ggml-base ${cpu})
    find_package(Threads REQUIRED)
    target_link_libraries(libllama-${variant} PRIVATE Threads::Threads m ${CMAKE_DL_LIBS})
    target_link_options(libllama-${variant} PRIVATE -Wl,--strip-all -Wl,--build-id=none)
    list(JOIN flags " " flags)
    list(JOIN needs " " needs)
    write_flags("${CMAKE_BINARY_DIR}/${variant}/libllama.flags" ${ARGN} "variant=${variant}" "kernels=${flags}"
        "rest=${VARIANT_BASELINE}" "needs=${needs}")
endfunction()
