# The kernels, which CUDA, HIP and the emulator compile.
set(kernels
    dequantize_4bit
    dequantize_blockwise
    encode_4bit
    estimate_quantiles
    operations
    quantize_4bit
    quantize_blockwise
    scale_search_4bit
    missing_gemm_4bit
    missing_int8
    missing_optimizers)
list(TRANSFORM kernels PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
list(TRANSFORM kernels APPEND ".cu")
