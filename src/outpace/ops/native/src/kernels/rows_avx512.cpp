// The row kernels for avx512; CMakeLists.txt gives files of this name their flags.
#define OUTPACE_TARGET avx512
#include "variant.h"
