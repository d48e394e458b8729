// The driver's calls for memory that a program maps for itself, as torch's expandable segments do, in front of the driver's own.
#pragma once

#include "vrambroker/vrambroker.h"

namespace vrb {

// Returns what a program that asks for this entry point is given: ours, where there is one of this name, else `real`.
void *driver_entry(const vrb_cudart &runtime, const char *symbol, void *real);

}  // namespace vrb
