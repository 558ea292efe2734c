# The kernels, which CUDA, HIP and the emulator compile.
set(kernels operations missing_codes missing_gemm_4bit missing_int8 missing_optimizers)
list(TRANSFORM kernels PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
list(TRANSFORM kernels APPEND ".cu")
