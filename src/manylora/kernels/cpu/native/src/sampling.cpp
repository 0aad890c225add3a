// Samples a token for each row of logits: temperature, top_k, top_p and min_p in this order, then the inverse of the
// running sum of the ranked rest. `sampling.py` is the specification, in numpy.
//
// A draw rarely needs more than the few most likely of some fifty thousand tokens. So the tokens are ranked in layers, each
// a few factors of e less likely than the one before, and only as many layers as the draw needs.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "layouts.h"
#include "pool.h"
#include "timed.h"

namespace ml {
namespace {

constexpr int64_t BLOCK = 16 * LANES;

// numpy's `Philox(key=seed, counter=position).random_raw()`: it counts up before its first number.
// Source: Philox4x64-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
double uniform(uint64_t seed, uint64_t position) {
    uint64_t c[4] = {position + 1, position + 1 == 0 ? 1u : 0u, 0, 0}, k[2] = {seed, 0};
    for (int round = 0; round < 10; ++round) {
        unsigned __int128 a = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * c[0];
        unsigned __int128 b = static_cast<unsigned __int128>(0xCA5A826395121157u) * c[2];
        uint64_t next[4] = {uint64_t(b >> 64) ^ c[1] ^ k[0], uint64_t(b), uint64_t(a >> 64) ^ c[3] ^ k[1], uint64_t(a)};
        std::copy(next, next + 4, c);
        k[0] += 0x9E3779B97F4A7C15u;
        k[1] += 0xBB67AE8584CAA73Bu;
    }
    return double(c[0] >> 11) * 0x1p-53;
}

struct Peak { int64_t token; float logit; };

// The first highest logit; the first NaN where there is one, as numpy's argmax has it. `tops` gets each block's highest.
Peak find_peak(const float* logits, int64_t vocab, std::vector<float>& tops) {
    tops.clear();
    float best = -std::numeric_limits<float>::infinity();
    int64_t found = 0;
    V16 broken = zero();  // not finite as soon as one NaN or infinity was seen
    for (int64_t base = 0; base < vocab; base += BLOCK) {
        const int64_t end = std::min(vocab, base + BLOCK);
        V16 top = set1(-std::numeric_limits<float>::infinity());
        int64_t i = base;
        for (; i + LANES <= end; i += LANES) {
            V16 value = load(logits + i);
            top = max(value, top);
            broken = add(broken, sub(value, value));
        }
        float highest = max_lanes(top);
        float rest = 0.0f;
        for (; i < end; ++i) {
            highest = logits[i] > highest ? logits[i] : highest;
            rest += logits[i] - logits[i];
        }
        broken = add(broken, set1(rest));
        tops.push_back(highest);
        if (highest > best) {
            best = highest;
            found = base;
        }
    }
    if (!std::isfinite(sum_lanes(broken)))
        for (int64_t i = 0; i < vocab; ++i)
            if (std::isnan(logits[i])) return {i, logits[i]};
    while (logits[found] != best) ++found;
    return {found, best};
}

struct Candidate { float logit; int32_t token; };

class Draw {
   public:
    Draw(const float* logits, int64_t vocab, const SamplingRule& rule, float peak, const std::vector<float>& tops)
        : logits_(logits), vocab_(vocab), tops_(tops), peak_(peak) {
        // A temperature outside float32 would be 0 or infinite there.
        temperature_ = float(std::clamp(rule.temperature, double(std::numeric_limits<float>::min()),
                                        double(std::numeric_limits<float>::max())));
        count_ = vocab_;
        if (rule.top_k > 0 && rule.top_k < vocab) keep_best(rule.top_k);
        else total_ = sum_all();
        if (rule.top_p < 1.0) keep_mass(rule.top_p * total_);
        if (rule.min_p > 0.0) keep_likely(float(rule.min_p));
    }

    int64_t at(double point) {
        const double target = point * total_;
        double sum = 0.0;
        for (int64_t i = 0; has(i); ++i) {
            sum += weights_[size_t(i)];
            if (sum > target) return ranked_[size_t(i)].token;
        }
        // The two sums may differ in their last bit; then a point just below 1 lies past the end.
        return ranked_[size_t(std::min<int64_t>(count_, int64_t(ranked_.size())) - 1)].token;
    }

   private:
    void keep_best(int64_t count) {
        while (int64_t(ranked_.size()) < count && rank_next_layer()) {}
        keep_first(std::min<int64_t>(count, int64_t(ranked_.size())));
    }

    // Keeps the fewest candidates that reach `mass`.
    void keep_mass(double mass) {
        double sum = 0.0;
        for (int64_t i = 0; has(i); ++i) {
            sum += weights_[size_t(i)];
            if (sum >= mass) return keep_first(i + 1);
        }
        keep_first(std::min<int64_t>(count_, int64_t(ranked_.size())));
    }

    // Keeps the candidates of at least this weight; the best has weight 1.
    void keep_likely(float least) {
        int64_t i = 0;
        while (has(i) && weights_[size_t(i)] >= least) ++i;
        keep_first(i);
    }

    void keep_first(int64_t count) {
        count_ = count;
        total_ = 0.0;
        for (int64_t i = 0; i < count; ++i) total_ += weights_[size_t(i)];
    }

    // Returns whether a candidate of this rank exists; ranks further layers as needed.
    bool has(int64_t rank) {
        if (rank >= count_) return false;
        while (rank >= int64_t(ranked_.size()))
            if (!rank_next_layer()) return false;
        return true;
    }

    V16 weight(V16 logit) const { return exp(div(sub(logit, set1(peak_)), set1(temperature_))); }

    // A token below exp(-87) of the best is never drawn; an excluded token has a logit of minus infinity.
    double sum_all() const {
        double total = 0.0;
        for (int64_t base = 0; base < vocab_; base += BLOCK) {
            V16 sum = zero();
            const int64_t end = std::min(vocab_, base + BLOCK);
            int64_t i = base;
            for (; i + LANES <= end; i += LANES) sum = add(sum, weight(load(logits_ + i)));
            if (i < end) {
                float last[LANES];
                std::fill(last, last + LANES, -std::numeric_limits<float>::infinity());
                std::copy(logits_ + i, logits_ + end, last);
                sum = add(sum, weight(load(last)));
            }
            total += double(sum_lanes(sum));
        }
        return total;
    }

    bool rank_next_layer() {
        constexpr float DEPTHS[] = {1.0f, 2.0f, 4.0f, 8.0f, 16.0f, 87.0f};  // below the best, in powers of e
        if (layer_ == std::size(DEPTHS)) return false;
        const float above = layer_ == 0 ? std::numeric_limits<float>::infinity() : floor_;
        floor_ = peak_ - DEPTHS[layer_++] * temperature_;
        const size_t old = ranked_.size();
        for (size_t block = 0; block < tops_.size(); ++block) {
            if (tops_[block] < floor_) continue;
            const int64_t end = std::min<int64_t>(vocab_, int64_t(block + 1) * BLOCK);
            for (int64_t i = int64_t(block) * BLOCK; i < end; ++i)
                if (logits_[i] >= floor_ && logits_[i] < above && logits_[i] > -std::numeric_limits<float>::infinity())
                    ranked_.push_back({logits_[i], int32_t(i)});
        }
        std::sort(ranked_.begin() + int64_t(old), ranked_.end(), [](const Candidate& a, const Candidate& b) {
            return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
        });
        weights_.resize((ranked_.size() + LANES - 1) / LANES * LANES);
        float values[LANES] = {};
        for (size_t i = old / LANES * LANES; i < ranked_.size(); i += LANES) {
            for (size_t j = 0; j < LANES && i + j < ranked_.size(); ++j) values[j] = ranked_[i + j].logit;
            store(weights_.data() + i, weight(load(values)));
        }
        return true;
    }

    const float* logits_;
    int64_t vocab_;
    const std::vector<float>& tops_;
    float peak_, temperature_, floor_ = 0.0f;
    size_t layer_ = 0;
    std::vector<Candidate> ranked_;
    std::vector<float> weights_;  // of ranked_, relative to the best
    int64_t count_;               // how many of the ranked are still in the draw
    double total_ = 0.0;          // their weight
};

int64_t sample(const float* logits, int64_t vocab, const SamplingRule& rule, float* peak) {
    static thread_local std::vector<float> tops;
    const Peak best = find_peak(logits, vocab, tops);
    *peak = best.logit;
    if (rule.temperature == 0.0 || !std::isfinite(best.logit)) return best.token;
    return Draw(logits, vocab, rule, best.logit, tops).at(uniform(rule.seed, rule.position));
}

// Sets every logit whose bit is clear to minus infinity; so are those past the last word.
void mask(float* logits, int64_t vocab, const uint32_t* words, int64_t num_words) {
    constexpr float BARRED = -std::numeric_limits<float>::infinity();
    const int64_t covered = std::min(vocab, 32 * num_words);
    int64_t token = 0;
    for (; token + 32 <= covered; token += 32) {
        const uint32_t word = words[token / 32];
        if (word == 0) std::fill(logits + token, logits + token + 32, BARRED);
        else if (word != ~0u)
            for (int bit = 0; bit < 32; ++bit) logits[token + bit] = word >> bit & 1 ? logits[token + bit] : BARRED;
    }
    for (; token < covered; ++token)
        if (!(words[token / 32] >> (token % 32) & 1)) logits[token] = BARRED;
    std::fill(logits + covered, logits + vocab, BARRED);
}

}  // namespace
}  // namespace ml

extern "C" {

// logits (rows, vocab), rules (rows,) -> tokens (rows,) and peaks (rows,): each row's highest logit. Returns the number
// of rows with a `typical_p`; it ignores that filter. The elapsed time is added to `seconds`, if given.
int64_t ml_sample(
    ml::Pool* pool, const float* logits, int64_t rows, int64_t vocab, const void* rules, int64_t* tokens, float* peaks,
    double* seconds) {
    using namespace ml;
    Timed timed(seconds);
    parallel(pool, rows, [&](int64_t row) {
        tokens[row] = sample(logits + row * vocab, vocab, static_cast<const SamplingRule*>(rules)[row], peaks + row);
    });
    int64_t num_typical = 0;
    for (int64_t row = 0; row < rows; ++row) num_typical += static_cast<const SamplingRule*>(rules)[row].typical_p > 0;
    return num_typical;
}

// masks (count, words): mask i changes row rows[i] of logits (…, vocab), in place.
void ml_mask_logits(
    ml::Pool* pool, float* logits, int64_t vocab, const int64_t* rows, int64_t count, const uint32_t* masks,
    int64_t words, double* seconds) {
    ml::Timed timed(seconds);
    ml::parallel(pool, count, [&](int64_t i) { ml::mask(logits + rows[i] * vocab, vocab, masks + i * words, words); });
}

}  // extern "C"
