// The row kernels for avx2; CMakeLists.txt gives files of this name their flags.
#define OUTPACE_TARGET avx2
#include "variant.h"
