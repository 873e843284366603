// Runs the kernel on several threads over a spread of sizes, for ThreadSanitizer to watch, and compares each result,
// bit for bit, with that on one thread: `make races`. It links gomp.cpp instead of -fopenmp, so that what gomp.cpp lacks
// is a link error and not the real library.

#if defined(__x86_64__)
#include <immintrin.h>
// ThreadSanitizer does not see stores past the caches: make them plain ones.
#define _mm512_stream_si512(to, numbers) (*(to) = (numbers))
#define _mm256_stream_si256(to, numbers) (*(to) = (numbers))
#endif

#include "../../src/wrnn/recurrence/kernel.cpp"

#include <cstdio>
#include <deque>
#include <initializer_list>
#include <limits>
#include <random>

namespace {

constexpr size THREADS = 4;
enum Inputs { FEATURES, DRIVE, SHARED_DRIVE };
enum Wants { STATES, READOUT, LAST };

std::mt19937 generator(0);

size one_of(std::initializer_list<size> choices) { return choices.begin()[generator() % choices.size()]; }

struct Case {
    Call call{};
    std::deque<Array<real>> arrays;  // what the call points to

    // Random numbers around 0, one in four of them 0: the kernel skips those.
    const real *numbers(size count, double scale = 1) {
        real *to = arrays.emplace_back(count);
        for (size i = 0; i < count; ++i)
            to[i] = generator() % 4 ? real(scale * (double(generator()) / double(generator.max()) - 0.5)) : 0;
        return to;
    }

    Case(size batch, Inputs inputs, Wants wants, size nonlinearity) {
        call.batch = batch;
        call.steps = one_of({1, 5, 16, 17, 39});
        call.channels = one_of({1, 2, 3, 5});
        call.neurons = one_of({5, 7, 16, 19, 33});
        call.taps = one_of({1, 3, 5});
        call.inputs = inputs == FEATURES ? one_of({1, 3, 6}) : 0;
        call.outputs = wants == READOUT ? one_of({1, 2, 5}) : 0;
        call.every = wants == STATES ? 1 : one_of({1, 2, 7, 20, 50});
        call.shared = inputs == SHARED_DRIVE;
        call.nonlinearity = nonlinearity;
        const size unit = call.channels * call.neurons, rows = call.batch * call.steps;
        if (inputs == FEATURES) {
            call.x = numbers(rows * call.inputs);
            call.input_weight = numbers(unit * call.inputs);
        } else {
            call.drive = numbers((call.shared ? call.steps : rows) * unit);
        }
        call.bias = numbers(unit);
        call.kernel = numbers(call.channels * call.channels * call.taps, 2. / double(call.channels * call.taps));
        call.state = numbers(call.batch * unit);
        if (wants == READOUT) {
            call.readout = numbers(call.outputs * unit);
            call.grad_read = numbers(rows * call.outputs);
        }
        if (wants == STATES) call.grad_states = numbers(rows * unit);
        if (wants != READOUT) call.grad_last = numbers(call.batch * unit);
    }

    // Every array that forward and backward write, at first not numbers, so that what is left out shows.
    std::deque<Array<real>> run(size threads) const {
        std::deque<Array<real>> found;
        const auto room = [&found](bool wanted, size count) -> real * {
            if (!wanted || !count) return nullptr;
            real *to = found.emplace_back(count);
            std::fill(to, to + count, std::numeric_limits<real>::quiet_NaN());
            return to;
        };
        const size unit = call.channels * call.neurons, rows = call.batch * call.steps;
        Call filled = call;
        filled.threads = threads;
        filled.kept = room(true, call.batch * (call.steps / call.every) * unit);
        filled.last = room(true, call.batch * unit);
        filled.read = room(call.readout, rows * call.outputs);
        filled.grad_x = room(call.x, rows * call.inputs);
        filled.grad_drive = room(call.drive, (call.shared ? call.steps : rows) * unit);
        filled.grad_input_weight = room(call.x, unit * call.inputs);
        filled.grad_bias = room(true, unit);
        filled.grad_kernel = room(true, call.channels * call.channels * call.taps);
        filled.grad_state = room(true, call.batch * unit);
        filled.grad_readout = room(call.readout, call.outputs * unit);
        if (wrnn_forward(&filled) || wrnn_backward(&filled)) throw std::bad_alloc();
        return found;
    }
};

bool same(const std::deque<Array<real>> &some, const std::deque<Array<real>> &others) {
    for (size_t a = 0; a < some.size(); ++a) {
        const real *numbers = some[a];
        if (!std::all_of(numbers, numbers + some[a].length, [](real x) { return std::isfinite(x); })) return false;
        if (std::memcmp(numbers, others[a], size_t(some[a].length) * sizeof(real)) != 0) return false;
    }
    return true;
}

}  // namespace

int main() {
    int cases = 0, calls = 0, differing = 0;
    for (size batch : {1, 2, 3, 5, 8, 32, 37})
        for (Inputs inputs : {FEATURES, DRIVE, SHARED_DRIVE})
            for (Wants wants : {STATES, READOUT, LAST})
                for (size nonlinearity : {IDENTITY, RELU, TANH}) {
                    const Case one(batch, inputs, wants, nonlinearity);
                    const std::deque<Array<real>> alone = one.run(1);
                    const bool agree = same(alone, one.run(THREADS)) && same(alone, one.run(THREADS));
                    ++cases;
                    calls += 6;
                    differing += !agree;
                    if (!agree)
                        std::printf("differs: batch %d, steps %d, channels %d, neurons %d, taps %d, every %d\n",
                                    int(batch), int(one.call.steps), int(one.call.channels), int(one.call.neurons),
                                    int(one.call.taps), int(one.call.every));
                }
    std::printf("%s: %d cases, %d calls, results on 1 and %d threads %s\n", sizeof(real) == 4 ? "float" : "double",
                cases, calls, int(THREADS), differing ? "DIFFER" : "are the same");
    return differing != 0;
}
