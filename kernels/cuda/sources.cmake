# The kernels, which CUDA, HIP and the emulator compile.
set(kernels operations missing_codes gemm_4bit gemm_4bit_grouped gemm_4bit_transposed missing_int8
            missing_optimizers)
list(TRANSFORM kernels PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
list(TRANSFORM kernels APPEND ".cu")
