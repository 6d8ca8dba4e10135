// The row kernels for avx512 with bfloat16 dot products; CMakeLists.txt gives files of this name their flags.
#define OUTPACE_TARGET avx512_bf16
#include "variant.h"
