// A whole forward pass in one call: the operations that `capture.py` recorded, run one after the other.
//
// A step of a small base is some three hundred operations of tens of microseconds each. A call of each from Python
// costs a tenth of a step for one row.

#include <tuple>

#include "operations.h"
#include "timed.h"

namespace ml {
namespace {

// Reads the arguments of a recorded operation one after the other.
struct Reader {
    const StepInput& step;
    const int64_t* word;

    template <class T> decltype(auto) next() {
        const int64_t* own = word;
        word += Argument<T>::words;
        return Argument<T>::read(step, own);
    }
};

template <class Result, class... Arguments>
Result call(Result (*function)(Pool*, Arguments...), Pool* pool, const StepInput& step, const int64_t* words) {
    Reader reader{step, words};
    std::tuple<Arguments...> arguments{reader.next<Arguments>()...};  // braces keep the order
    return std::apply([&](auto&&... own) { return function(pool, own...); }, arguments);
}

// Only an operation that may refuse an input returns a value.
template <class... Arguments>
bool run(void (*function)(Pool*, Arguments...), Pool* pool, const StepInput& step, const int64_t* words) {
    call(function, pool, step, words);
    return true;
}
template <class... Arguments>
bool run(bool (*function)(Pool*, Arguments...), Pool* pool, const StepInput& step, const int64_t* words) {
    return call(function, pool, step, words);
}

bool run_one(Pool* pool, const RecordedOperation& operation, const StepInput& step) {
    switch (Opcode(operation.opcode)) {
#define ML_CASE(NAME) \
    case Opcode::NAME: return run(&ml::NAME, pool, step, operation.words);
        ML_OPERATIONS(ML_CASE)
#undef ML_CASE
    }
    return false;
}

}  // namespace
}  // namespace ml

extern "C" {

// Runs `count` operations. `seconds`, if given, has one entry for each opcode, to which the time of each operation is
// added. Returns -1, or the index of the operation that refused an input; the operations after it have not run.
int64_t ml_run(
    ml::Pool* pool, const ml::RecordedOperation* operations, int64_t count, const ml::StepInput* step,
    double* seconds) {
    for (int64_t i = 0; i < count; ++i) {
        ml::Timed timed(seconds ? seconds + operations[i].opcode : nullptr);
        if (!ml::run_one(pool, operations[i], *step)) return i;
    }
    return -1;
}

}  // extern "C"
