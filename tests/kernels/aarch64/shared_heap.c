// A heap in a file, so that another process reads and writes the same objects at the same addresses.
//
// The tests' process loads this library before all others (LD_PRELOAD): all that it allocates lies in the file named by
// KERNELS_HEAP, mapped at HEAP_BASE. `guest.cpp` maps the same file there. A block has a power of two of bytes; a freed one
// waits in the list of its size. Nothing returns to the system, which suits one run of tests.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shared_heap.h"

typedef struct Block {
    struct Block* next;  // of the list of free blocks
    size_t order;        // the block has 2**order bytes, these sixteen among them
} Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char* unused;
static Block* freed[48];

static void fail(const char* message) {
    (void)!write(2, message, strlen(message));
    _exit(70);
}

static void map_file(void) {
    const char* path = getenv("KERNELS_HEAP");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) fail("KERNELS_HEAP names no file that can be written\n");
    void* at = mmap((void*)HEAP_BASE, HEAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, file, 0);
    if (at != (void*)HEAP_BASE) fail("the shared heap's addresses are in use\n");
    close(file);
    unused = (char*)HEAP_BASE + MAILBOX_BYTES;
}

// The start of the payload is `align`-ed; the block's head lies right before it.
static void* allocate(size_t bytes, size_t align) {
    size_t whole = bytes + sizeof(Block) + (align > sizeof(Block) ? align : 0);
    size_t order = 6;
    while (((size_t)1 << order) < whole) ++order;
    pthread_mutex_lock(&lock);
    if (!unused) map_file();
    char* block = (char*)freed[order];
    if (block) {
        freed[order] = freed[order]->next;
    } else {
        if (((size_t)1 << order) > (size_t)(HEAP_BASE + HEAP_BYTES - (uint64_t)unused)) fail("the shared heap is full\n");
        block = unused;
        unused += (size_t)1 << order;
    }
    pthread_mutex_unlock(&lock);
    char* payload = block + sizeof(Block);
    if (align > sizeof(Block)) payload = (char*)(((uint64_t)payload + align - 1) & ~(uint64_t)(align - 1));
    Block* head = (Block*)payload - 1;
    head->next = (Block*)block;
    head->order = order;
    return payload;
}

static int is_ours(void* p) { return (uint64_t)p >= HEAP_BASE && (uint64_t)p < HEAP_BASE + HEAP_BYTES; }

size_t malloc_usable_size(void* p) {
    if (!p) return 0;
    Block* head = (Block*)p - 1;
    return (size_t)((char*)head->next + ((size_t)1 << head->order) - (char*)p);
}

void free(void* p) {
    if (!is_ours(p)) return;
    Block* head = (Block*)p - 1;
    Block* block = head->next;
    size_t order = head->order;
    pthread_mutex_lock(&lock);
    block->next = freed[order];
    freed[order] = block;
    pthread_mutex_unlock(&lock);
}

void* malloc(size_t bytes) { return allocate(bytes, 16); }

void* calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return memset(malloc(bytes), 0, bytes);
}

void* realloc(void* p, size_t bytes) {
    if (!p) return malloc(bytes);
    size_t had = malloc_usable_size(p);
    if (had >= bytes && had <= 4 * bytes) return p;
    void* moved = memcpy(malloc(bytes), p, had < bytes ? had : bytes);
    free(p);
    return moved;
}

void* memalign(size_t align, size_t bytes) { return allocate(bytes, align); }
void* aligned_alloc(size_t align, size_t bytes) { return allocate(bytes, align); }
void* valloc(size_t bytes) { return allocate(bytes, 4096); }

int posix_memalign(void** p, size_t align, size_t bytes) {
    *p = allocate(bytes, align);
    return 0;
}
