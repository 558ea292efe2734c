// Memory for optimizer states that a GPU reads and that need not fit onto it: what a backend for
// GPUs implements beside kernels.h. The device is the current one, but for paged_free.
#pragma once

#include <cstdint>

#include "bnbx/kernels.h"

namespace bnbx {

// Whether pages can move between main memory and the device while both use them. If not, paged
// memory has to stay in main memory, and the device reads it over the bus.
bool has_managed_memory();

// Returns memory that kernels on the device can use, its contents undefined: `managed` memory,
// which moves, or main memory. Throws std::bad_alloc if there is none left.
void* paged_alloc(int64_t bytes, bool managed);

// Gives the memory back when the device, of this number, has done what it was asked to do.
void paged_free(void* memory, int device, bool managed) noexcept;

// Queues that pages of managed memory move to the device or to main memory. Where they lie changes
// nothing but how long others take to read and write them.
void prefetch(const void* memory, int64_t bytes, bool to_device, Stream stream);

}  // namespace bnbx
