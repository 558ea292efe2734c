# The kernels, which CUDA, HIP, SYCL and the emulator compile.
set(kernels
    dequantize_4bit
    dequantize_blockwise
    encode_4bit
    estimate_quantiles
    gemm_4bit
    gemm_4bit_grouped
    gemm_4bit_transposed
    int8_double_quant
    int8_linear
    int8_linear_matmul
    int8_mixed_scaled_mm
    int8_mm_dequant
    int8_scaled_mm
    int8_vectorwise_dequant
    int8_vectorwise_quant
    optimizer_update_32bit
    optimizer_update_blockwise
    quantize_4bit
    quantize_blockwise
    scale_search_4bit)
list(TRANSFORM kernels PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
list(TRANSFORM kernels APPEND ".cu")
