// In place of the CUDA header of this name.
#pragma once
#include "emulation.h"
