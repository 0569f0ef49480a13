/* Latencies in nanoseconds. The upper bits of a double are its exponent and the first six bits of its mantissa: 64 buckets for
 * each doubling, at most 1.6 % wide, and no logarithm for each message. */
#ifndef LATENCY_H
#define LATENCY_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { SHIFT = 52 - 6, FIRST = 1023 << 6, BUCKETS = 64 * 64 };

typedef struct {
    uint64_t buckets[BUCKETS], count, slowest;
} latencies;

static inline uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static inline void latency_add(latencies *l, uint64_t ns) {
    double d = ns ? ns : 1;
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    l->buckets[(bits >> SHIFT) - FIRST]++;
    l->count++;
    if (ns > l->slowest) l->slowest = ns;
}

/* Milliseconds that the share `p` did not exceed; 0 without any. */
static inline double latency_percentile(const latencies *l, double p) {
    uint64_t rank = (uint64_t)ceil(l->count * p), seen = 0;
    for (uint64_t i = 0; i < BUCKETS; i++)
        if ((seen += l->buckets[i]) >= rank && seen) {
            uint64_t bits = ((i + FIRST) << SHIFT) + (1ull << (SHIFT - 1));
            double middle;
            memcpy(&middle, &bits, sizeof middle);
            return fmin(middle, l->slowest) / 1e6;
        }
    return 0;
}

#endif
