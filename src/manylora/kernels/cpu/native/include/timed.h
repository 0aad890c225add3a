// Time of a scope, added to a sum.
#pragma once

#include <chrono>

namespace ml {

// Adds the seconds from its construction to its end to `*sum`; without a sum it reads no clock.
class Timed {
    using Clock = std::chrono::steady_clock;

  public:
    explicit Timed(double* sum) : sum_(sum), start_(sum ? Clock::now() : Clock::time_point()) {}
    ~Timed() {
        if (sum_) *sum_ += std::chrono::duration<double>(Clock::now() - start_).count();
    }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

  private:
    double* sum_;
    Clock::time_point start_;
};

}  // namespace ml
