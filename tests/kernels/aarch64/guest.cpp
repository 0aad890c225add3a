// Calls the kernels' functions in a process of their own: one request after the other on standard input.
//
// A request is the number of a function and a count of words, then the words, each eight bytes. The reply is the result's
// eight bytes. Pointers are valid on both sides, since both map the heap of `shared_heap.c`. `functions.h`, made from the
// table of signatures, declares the functions and lists them as ML_FUNCTIONS.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "functions.h"
#include "shared_heap.h"

namespace {

using Function = int64_t (*)(const int64_t*);

template <class T> T argument(int64_t word) {
    T value;
    static_assert(sizeof value == sizeof word);
    std::memcpy(&value, &word, sizeof value);
    return value;
}

template <class T> int64_t result(T value) {
    int64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}
// A text lies in this process alone, so that the mailbox carries it.
template <> int64_t result(const char* text) {
    std::snprintf(reinterpret_cast<char*>(HEAP_BASE), MAILBOX_BYTES, "%s", text);
    return int64_t(HEAP_BASE);
}

template <class R, class... A, size_t... I>
int64_t call(R (*function)(A...), const int64_t* words, std::index_sequence<I...>) {
    (void)words;
    if constexpr (std::is_void_v<R>) {
        function(argument<A>(words[I])...);
        return 0;
    } else {
        return result<R>(function(argument<A>(words[I])...));
    }
}
template <class R, class... A> int64_t call(R (*function)(A...), const int64_t* words) {
    return call(function, words, std::index_sequence_for<A...>{});
}

#define ML_CALL(NAME) [](const int64_t* words) { return call(&NAME, words); },
const Function functions[] = {ML_FUNCTIONS(ML_CALL)};

bool read_all(void* to, size_t bytes) {
    for (size_t have = 0; have < bytes;) {
        ssize_t more = read(0, static_cast<char*>(to) + have, bytes - have);
        if (more <= 0) return false;
        have += size_t(more);
    }
    return true;
}

}  // namespace

int main(int, char** arguments) {
    int file = open(arguments[1], O_RDWR);
    void* at = mmap(reinterpret_cast<void*>(HEAP_BASE), HEAP_BYTES, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file, 0);
    if (at != reinterpret_cast<void*>(HEAP_BASE)) {
        std::perror("mapping the shared heap");
        return 70;
    }
    for (int64_t head[2], words[32]; read_all(head, sizeof head);) {
        if (head[1] > 32 || !read_all(words, size_t(head[1]) * 8)) return 71;
        int64_t reply = functions[head[0]](words);
        if (write(1, &reply, 8) != 8) return 72;
    }
}
