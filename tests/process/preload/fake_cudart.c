/* A stand-in for CUDA's runtime on machines without a GPU: it keeps books, and has as little memory as it is told. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, MEMORY_ALLOCATION = 2, MOST = 1024 };

static struct {
  void *pointer;
  size_t size;
} books[MOST];
static size_t total_bytes = (size_t)1 << 30, used_bytes;
static int refusals, last_error;
static __thread int device;

static int fail(int error) {
  last_error = error;
  return error;
}

void fakeTotal(size_t bytes) { total_bytes = bytes; }
/* Have so many of the next calls find no memory. */
void fakeRefuse(int count) { refusals = count; }
size_t fakeUsed(void) { return used_bytes; }

int cudaSetDevice(int ordinal) {
  device = ordinal;
  return SUCCESS;
}

int cudaGetDevice(int *ordinal) {
  *ordinal = device;
  return SUCCESS;
}

int cudaGetLastError(void) {
  int error = last_error;
  last_error = SUCCESS;
  return error;
}

int cudaMalloc(void **pointer, size_t size) {
  int i = 0;
  if (pointer == NULL) return fail(INVALID_VALUE);
  if (refusals > 0 || used_bytes + size > total_bytes) {
    if (refusals > 0) --refusals;
    return fail(MEMORY_ALLOCATION);
  }
  while (i < MOST && books[i].pointer != NULL) ++i;
  *pointer = size == 0 || i == MOST ? NULL : malloc(size);
  if (*pointer == NULL) return size == 0 ? SUCCESS : fail(MEMORY_ALLOCATION);
  books[i].pointer = *pointer;
  books[i].size = size;
  used_bytes += size;
  return SUCCESS;
}

int cudaFree(void *pointer) {
  int i = 0;
  if (pointer == NULL) return SUCCESS;
  while (i < MOST && books[i].pointer != pointer) ++i;
  if (i == MOST) return fail(INVALID_VALUE);
  used_bytes -= books[i].size;
  books[i].pointer = NULL;
  free(pointer);
  return SUCCESS;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *free_bytes = total_bytes - used_bytes;
  *total = total_bytes;
  return SUCCESS;
}
