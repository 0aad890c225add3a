// Where the heap lies in both processes. Its first bytes carry texts from the guest.
#pragma once

#define HEAP_BASE 0x200000000000ull
#define HEAP_BYTES (64ull << 30)
#define MAILBOX_BYTES 4096ull
