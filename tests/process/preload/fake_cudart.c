/* A stand-in for CUDA's runtime on machines without a GPU: it keeps books, and has as little memory as it is told. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, MEMORY_ALLOCATION = 2, NOT_PERMITTED = 800, MOST = 1024 };

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

/* The driver's calls for memory that a program maps for itself. A handle is a memfd. */
typedef unsigned long long pointer_t;

static int mem_create(unsigned long long *handle, size_t size, const void *properties, unsigned long long flags) {
  (void)flags;
  /* CU_MEM_HANDLE_TYPE_FABRIC, which takes a fabric. */
  if (((const int *)properties)[1] == 8) return NOT_PERMITTED;
  if (used_bytes + size > total_bytes) return MEMORY_ALLOCATION;
  *handle = (unsigned long long)memfd_create("fake-memory", MFD_CLOEXEC);
  if (ftruncate((int)*handle, (off_t)size) != 0) return INVALID_VALUE;
  used_bytes += size;
  return SUCCESS;
}

static int mem_release(unsigned long long handle) {
  off_t size = lseek((int)handle, 0, SEEK_END);
  if (size < 0) return INVALID_VALUE;
  used_bytes -= (size_t)size;
  return close((int)handle) == 0 ? SUCCESS : INVALID_VALUE;
}

static int mem_reserve(pointer_t *pointer, size_t size, size_t alignment, pointer_t at, unsigned long long flags) {
  void *found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  (void)alignment, (void)at, (void)flags;
  *pointer = (pointer_t)(size_t)found;
  return found == MAP_FAILED ? MEMORY_ALLOCATION : SUCCESS;
}

static int mem_unreserve(pointer_t pointer, size_t size) {
  return munmap((void *)(size_t)pointer, size) == 0 ? SUCCESS : INVALID_VALUE;
}

static int mem_map(pointer_t pointer, size_t size, size_t offset, unsigned long long handle, unsigned long long flags) {
  void *at = mmap((void *)(size_t)pointer, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (int)handle, (off_t)offset);
  (void)flags;
  return at == MAP_FAILED ? INVALID_VALUE : SUCCESS;
}

static int mem_unmap(pointer_t pointer, size_t size) {
  void *at = mmap((void *)(size_t)pointer, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  return at == MAP_FAILED ? INVALID_VALUE : SUCCESS;
}

static int mem_set_access(pointer_t pointer, size_t size, const void *access, size_t count) {
  (void)pointer, (void)size, (void)access, (void)count;
  return SUCCESS;
}

static int mem_export(void *into, unsigned long long handle, int type, unsigned long long flags) {
  (void)type, (void)flags;
  *(int *)into = dup((int)handle);
  return *(int *)into < 0 ? INVALID_VALUE : SUCCESS;
}

/* Nothing but what this driver has made can be bound. */
static int bind_memory(unsigned long long multicast, size_t at, unsigned long long handle, size_t offset, size_t size,
                       unsigned long long flags) {
  (void)multicast, (void)at, (void)flags;
  return lseek((int)handle, 0, SEEK_END) == (off_t)(offset + size) ? SUCCESS : INVALID_VALUE;
}

static const struct {
  const char *name;
  void *entry;
} entries[] = {
    {"cuMemCreate", (void *)mem_create},
    {"cuMemRelease", (void *)mem_release},
    {"cuMemAddressReserve", (void *)mem_reserve},
    {"cuMemAddressFree", (void *)mem_unreserve},
    {"cuMemMap", (void *)mem_map},
    {"cuMemUnmap", (void *)mem_unmap},
    {"cuMemSetAccess", (void *)mem_set_access},
    {"cuMemExportToShareableHandle", (void *)mem_export},
    {"cuMulticastBindMem", (void *)bind_memory},
};

int cudaGetDriverEntryPointByVersion(const char *symbol, void **entry, unsigned version, unsigned long long flags,
                                     int *result) {
  size_t i;
  (void)version, (void)flags;
  for (i = 0; i < sizeof entries / sizeof entries[0]; ++i) {
    if (strcmp(entries[i].name, symbol) != 0) continue;
    *entry = entries[i].entry;
    *result = SUCCESS;
    return SUCCESS;
  }
  *entry = NULL;
  *result = 1;
  return SUCCESS;
}
