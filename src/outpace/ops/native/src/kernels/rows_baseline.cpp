// The row kernels for baseline; CMakeLists.txt gives files of this name their flags.
#define OUTPACE_TARGET baseline
#include "variant.h"
