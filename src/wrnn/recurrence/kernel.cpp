// The recurrence on rings, h_t = phi(U * h_{t-1} + V x_t + b), its readout at every step, and all their gradients.
//
// One sample is computed at a time, all T steps of it, so that its state stays in the first caches. Vectors run along
// the ring. A state is held as C rows of N numbers, padded to whole vectors, with the ring's other end copied to both
// sides of a row (the halo); the taps of the kernel are then unaligned loads, and nothing wraps.
//
// Everything costly is one of two loops. `contract`: sums[m][v] += weight[r][m] * row_r[v], for M x V vectors of sums
// that stay in registers; its rows are the channels shifted by the taps (the convolution and its adjoint) or the states
// of successive steps (the gradients of V, b and the readout). `correlate`: the kernel's gradient, products of two
// rows summed along the ring.
//
// Every sum over samples is taken over fixed groups of samples in a fixed order: the result does not depend on the
// number of threads. Inputs that are exactly 0 are skipped.
//
// Compile with -DREAL=float or -DREAL=double; vectors are as wide as the flags allow. Arrays are row-major.
// B batch, T time, C channels, N neurons per ring, K taps, I inputs, O outputs of the readout.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

// Keeps a loaded vector in its register: GCC otherwise reads it again in every product.
#if defined(__x86_64__)
#define IN_REGISTER(vector) asm("" : "+v"(vector))
#define IN_POINTER(pointer) asm("" : "+r"(pointer))
#else
#define IN_REGISTER(vector) (void)(vector)
#define IN_POINTER(pointer) (void)(pointer)
#endif

typedef REAL real;
typedef int64_t size;
typedef std::conditional<sizeof(real) == 4, int32_t, int64_t>::type integer;
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real loose_vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef integer mask __attribute__((vector_size(VECTOR_BYTES)));

enum Nonlinearity : size { IDENTITY, RELU, TANH, GATE_RELU, GATE_TANH };

// What Python passes; the same fields in the same order stand in cpp.py. Null: absent or not wanted.
struct Call {
    size batch, steps, channels, neurons, taps, inputs, outputs, every, shared, nonlinearity, threads;
    const real *x;             // (B, T, I)
    const real *drive;         // (B, T, C, N), or (1, T, C, N) if shared: added to b
    const real *input_weight;  // (C, N, I)
    const real *bias;          // (C, N)
    const real *kernel;        // (C, C, K)
    const real *state;         // (B, C, N)
    const real *readout;       // (O, C, N)
    real *kept;                // (B, T / every, C, N): the states after `every`, 2 `every`, ... steps
    real *last;                // (B, C, N)
    real *read;                // (B, T, O)
    const real *grad_states;   // (B, T, C, N)
    const real *grad_last;     // (B, C, N)
    const real *grad_read;     // (B, T, O)
    real *grad_x, *grad_drive, *grad_input_weight, *grad_bias, *grad_kernel, *grad_state, *grad_readout;
};

namespace {

constexpr int LANES = VECTOR_BYTES / sizeof(real);
constexpr int MAX_M = 4, MAX_V = 4;
constexpr int PROJECTED = 6;                          // sums along the ring at once
constexpr int SUMS = VECTOR_BYTES == 64 ? 24 : 12;    // registers for sums
constexpr int ROWS_AT_ONCE = VECTOR_BYTES == 64 ? 6 : 3;
constexpr size GROUPS = 32;                           // sums over samples: this many parts

inline vec load(const real *p) { return *reinterpret_cast<const loose_vec *>(p); }
inline void store(real *p, vec x) { *reinterpret_cast<loose_vec *>(p) = x; }
inline vec all(real x) { return x - vec{}; }  // x + 0 would cost an addition, for the sign of 0

inline void stream(real *p, vec x) {  // past the caches; p aligned
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i *>(p), reinterpret_cast<__m512i>(x));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i *>(p), reinterpret_cast<__m256i>(x));
#else
    store(p, x);
#endif
}

// How the calling thread treats numbers too small for a normal float goes for all, or the result would depend on their
// number.
struct FloatMode {
#if defined(__x86_64__)
    unsigned mode = _mm_getcsr();
    void inherit() const { _mm_setcsr(mode); }
#else
    void inherit() const {}
#endif
};

inline size thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline vec squared(vec x) { return x * x; }

inline real total(vec x) {  // by halves: one after the other the lanes would wait for each other
    real lanes[LANES];
    store(lanes, x);
#pragma GCC unroll 8
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

inline vec tanh_of(vec x) {
    if constexpr (sizeof(real) == 8) {
        for (int lane = 0; lane < LANES; ++lane) x[lane] = std::tanh(x[lane]);
        return x;
    } else {  // near 0 an odd polynomial, else 1 - 2 / (exp(2|x|) + 1); coefficients of the Cephes library
        const vec square = x * x;
        vec near = all(-5.70498872745e-3f) * square + 2.06390887954e-2f;
        near = near * square - 5.37397155531e-2f;
        near = near * square + 1.33314422036e-1f;
        near = near * square - 3.33332819422e-1f;
        near = near * square * x + x;
        vec twice = x < 0 ? -2 * x : 2 * x;
        twice = twice > 40 ? all(40) : twice;
        const mask power = __builtin_convertvector(twice * 1.44269504088896341f + 0.5f, mask);
        const vec whole = __builtin_convertvector(power, vec);
        const vec rest = (twice - whole * 0.693359375f) + whole * 2.12194440e-4f;
        vec exponential = all(1.9875691500e-4f) * rest + 1.3981999507e-3f;
        exponential = exponential * rest + 8.3334519073e-3f;
        exponential = exponential * rest + 4.1665795894e-2f;
        exponential = exponential * rest + 1.6666665459e-1f;
        exponential = exponential * rest + 5.0000001201e-1f;
        exponential = exponential * rest * rest + rest + 1;
        exponential *= reinterpret_cast<vec>((power + 127) << 23);
        const vec far = 1 - 2 / (exponential + 1);
        return (twice < 1.25f) ? near : (x < 0 ? -far : far);
    }
}

template <int M, int V, typename F> inline __attribute__((always_inline)) void each(F function) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) function(m, v);
}

template <typename T> struct Array {  // aligned, zero at first
    std::unique_ptr<T, void (*)(void *)> memory{nullptr, std::free};
    size length = 0;
    explicit Array(size count = 0) : length(count) {
        const size bytes = (count * size(sizeof(T)) + 2 * VECTOR_BYTES) / VECTOR_BYTES * VECTOR_BYTES;
        memory.reset(static_cast<T *>(std::aligned_alloc(VECTOR_BYTES, bytes)));
        if (!memory) throw std::bad_alloc();
        std::memset(static_cast<void *>(memory.get()), 0, bytes);
    }
    operator T *() const { return memory.get(); }
};

// sums[m][v] += sum over r of weight[r][m] * (at + offset[r])[v]
template <int M, int V>
inline __attribute__((always_inline)) void contract(
    vec (&sums)[M][V], const real *at, const size *offset, const real *weight, size rows) {
    for (size r = 0; r < rows; ++r, weight += M) {
        const real *row = at + offset[r];
        IN_POINTER(row);
        if constexpr (V <= M) {
            vec x[V];
            for (int v = 0; v < V; ++v) {
                x[v] = load(row + v * LANES);
                IN_REGISTER(x[v]);
            }
            for (int m = 0; m < M; ++m) {
                const vec w = all(weight[m]);
                for (int v = 0; v < V; ++v) sums[m][v] += w * x[v];
            }
        } else {
            vec w[M];
            for (int m = 0; m < M; ++m) {
                w[m] = all(weight[m]);
                IN_REGISTER(w[m]);
            }
            for (int v = 0; v < V; ++v) {
                vec x = load(row + v * LANES);
                IN_REGISTER(x);
                for (int m = 0; m < M; ++m) sums[m][v] += w[m] * x;
            }
        }
    }
}

struct Block {
    size start, count;
};

std::vector<Block> split(size length, size most) {  // as even as can be
    std::vector<Block> blocks;
    const size parts = (length + most - 1) / most;
    for (size part = 0, start = 0; part < parts; ++part) {
        const size count = (length - start + parts - part - 1) / (parts - part);
        blocks.push_back({start, count});
        start += count;
    }
    return blocks;
}

// Calls function<M, V>() for run-time M and V. By reference: a copy of what it captures stalls on its own stores.
template <typename F> inline void with_tile(size m, size v, const F &function) {
    switch (m * 8 + v) {
#define TILE(M, V) \
    case M * 8 + V: return function(std::integral_constant<int, M>(), std::integral_constant<int, V>());
        TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4)
        TILE(3, 1) TILE(3, 2) TILE(3, 3) TILE(3, 4) TILE(4, 1) TILE(4, 2) TILE(4, 3)
#if VECTOR_BYTES == 64
        TILE(4, 4)
#endif
#undef TILE
    }
}

struct Term {  // factor * rows, rows (C, width)
    const real *rows;
    real factor;
};

// One step of a sample: to = epilogue(start + sum of terms + convolution of `from`).
struct Step {
    const real *from = nullptr;     // haloed
    const real *weights = nullptr;  // packed
    const size *offsets = nullptr;
    const real *start = nullptr;    // (C, width)
    const Term *terms = nullptr;
    size num_terms = 0;
    const real *gate = nullptr;     // backward: the activity that the gradient passes through, haloed
    size epilogue = IDENTITY;
    real *to = nullptr;             // haloed
    real *out = nullptr;            // (C, N), not read soon
};

struct Tile {
    const real *from;
    const size *offsets;
    const real *weights, *start;
    size term_offset;
    const Term *terms;
    size num_terms;
    const real *gate;
    size epilogue;
    real *to;
    size rows, width, stride;
    const mask *tail;  // the neurons in the last vector, null where all are
};

#define UNROLLED _Pragma("GCC unroll 8")
#define EACH_SUM UNROLLED for (int m = 0; m < M; ++m) UNROLLED for (int v = 0; v < V; ++v)

template <int M, int V> __attribute__((noinline)) void compute(const Tile &tile) {
    vec sums[M][V];
    const size width = tile.width, stride = tile.stride;
    const real *start = tile.start;
    EACH_SUM sums[m][v] = load(start + m * width + v * LANES);
    const Term *terms = tile.terms, *end = terms + tile.num_terms;
    for (; terms != end; ++terms) {
        const vec factor = all(terms->factor);
        const real *row = terms->rows + tile.term_offset;
        EACH_SUM sums[m][v] += factor * load(row + m * width + v * LANES);
    }
    contract<M, V>(sums, tile.from, tile.offsets, tile.weights, tile.rows);
    real *to = tile.to;
    const real *gate = tile.gate;
    switch (tile.epilogue) {
        case RELU: EACH_SUM sums[m][v] = sums[m][v] < 0 ? vec{} : sums[m][v]; break;
        case TANH: EACH_SUM sums[m][v] = tanh_of(sums[m][v]); break;
        case GATE_RELU: EACH_SUM sums[m][v] = load(gate + m * stride + v * LANES) <= 0 ? vec{} : sums[m][v]; break;
        case GATE_TANH: EACH_SUM sums[m][v] *= 1 - squared(load(gate + m * stride + v * LANES)); break;
    }
    if (tile.tail)  // what stands behind the ring must not grow
        UNROLLED for (int m = 0; m < M; ++m) sums[m][V - 1] = *tile.tail ? sums[m][V - 1] : vec{};
    EACH_SUM store(to + m * stride + v * LANES, sums[m][v]);
}

// The kernel's gradient: sums[m][i] += sum over steps and ring of gradient_m * (before + offset[i]), M x R of them.
struct Correlation {
    const real *gradient;  // of the first of M channels, after the first step
    const real *before;    // the activities one step earlier
    const size *offset;
    real *sums;
    size steps, slot, stride, whole;  // whole: numbers of a row in vectors without padding
    const mask *tail;
};

template <int M> __attribute__((noinline)) void correlate(const Correlation &task) {
    constexpr int R = ROWS_AT_ONCE;
    vec sums[M][R];
    real *const to = task.sums;
    const size stride = task.stride;
#define EACH_PRODUCT UNROLLED for (int m = 0; m < M; ++m) UNROLLED for (int i = 0; i < R; ++i)
    EACH_PRODUCT sums[m][i] = load(to + (m * R + i) * LANES);
    const real *x[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) x[i] = task.before + task.offset[i];
    const real *g = task.gradient;
    for (size step = 0; step < task.steps; ++step) {
        for (size v = 0; v < task.whole; v += LANES) {
            vec h[R];
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                h[i] = load(x[i] + v);
                IN_REGISTER(h[i]);
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                vec d = load(g + m * stride + v);
                IN_REGISTER(d);
#pragma GCC unroll 8
                for (int i = 0; i < R; ++i) sums[m][i] += d * h[i];
            }
        }
        if (task.tail)  // the halo stands behind the last neuron
            EACH_PRODUCT {
                const vec d = load(g + m * stride + task.whole);
                sums[m][i] += (*task.tail ? d : vec{}) * load(x[i] + task.whole);
            }
        g += task.slot;
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) x[i] += task.slot;
    }
    EACH_PRODUCT store(to + (m * R + i) * LANES, sums[m][i]);
}

struct Plan {
    const Call &call;
    size C, N, K, I, O, T, half, vectors, width, stride, slot, rows, origin, chunk;
    bool direct;    // rows of N numbers are whole vectors
    mask tail;      // the lanes of the last vector that are neurons
    std::vector<Block> channel_blocks, feature_blocks, output_blocks;
    std::vector<std::vector<Block>> vector_blocks;  // for each number of channels in a block
    std::vector<size> forward_offsets, backward_offsets, gradient_offsets;
    Array<real> forward_weights, backward_weights, bias, drive, input_weight, readout, zero;

    explicit Plan(const Call &call) : call(call), C(call.channels), N(call.neurons), K(call.taps), I(call.inputs),
        O(call.outputs), T(call.steps), half(K / 2) {
        vectors = (N + LANES - 1) / LANES;
        width = vectors * LANES;
        const size pad = (2 * half + LANES - 1) / LANES * LANES;
        stride = width + std::max<size>(pad, LANES);
        origin = stride - width;  // of row 0 in a slot
        slot = origin + C * stride;
        rows = C * K;
        direct = N == width;
        for (int lane = 0; lane < LANES; ++lane) tail[lane] = width - LANES + lane < N ? -1 : 0;
        chunk = std::min<size>(T, std::max<size>(1, std::min<size>(16, 1024 / width)));
        channel_blocks = split(C, MAX_M);
        feature_blocks = split(I, PROJECTED);
        output_blocks = split(O, PROJECTED);
        vector_blocks.resize(MAX_M + 1);
        for (size m = 1; m <= MAX_M; ++m) vector_blocks[m] = split(vectors, std::min<size>(MAX_V, SUMS / m));
        for (size c = 0; c < C; ++c)
            for (size k = 0; k < K; ++k) {
                forward_offsets.push_back(c * stride + k - half);
                backward_offsets.push_back(c * stride + half - k);
            }
        gradient_offsets = forward_offsets;
        while (gradient_offsets.size() % ROWS_AT_ONCE) gradient_offsets.push_back(0);
        forward_weights = pack([&](size in, size k, size out) { return call.kernel[(out * C + in) * K + k]; });
        backward_weights = pack([&](size out, size k, size in) { return call.kernel[(out * C + in) * K + k]; });
        bias = padded(call.bias, 1);
        zero = Array<real>(C * width);
        if (call.drive && call.shared) {
            drive = padded(call.drive, T);
            for (size t = 0; t < T; ++t)
                for (size j = 0; j < C * width; ++j) drive[t * C * width + j] += bias[j];
        }
        if (call.x) input_weight = Array<real>(I * C * width);
        for (size i = 0; call.x && i < I; ++i)
            for (size c = 0; c < C; ++c)
                for (size n = 0; n < N; ++n)
                    input_weight[(i * C + c) * width + n] = call.input_weight[(c * N + n) * I + i];
        if (call.readout) readout = padded(call.readout, O);
    }

    template <typename F> Array<real> pack(F element) const {  // [block][row][channel of the block]
        Array<real> packed(rows * C);
        real *next = packed;
        for (const Block &block : channel_blocks)
            for (size c = 0; c < C; ++c)
                for (size k = 0; k < K; ++k)
                    for (size m = 0; m < block.count; ++m) *next++ = element(c, k, block.start + m);
        return packed;
    }

    Array<real> padded(const real *from, size count) const {  // (count, C, N) -> (count, C, width)
        Array<real> to(count * C * width);
        for (size row = 0; row < count * C; ++row) std::memcpy(to + row * width, from + row * N, N * sizeof(real));
        return to;
    }

    void fill_halo(real *state) const {
        for (size c = 0; c < C && half; ++c) {
            real *row = state + origin + c * stride;
            for (size k = 0; k < half; ++k) {
                row[k - half] = row[N - half + k];
                row[N + k] = row[k];
            }
        }
    }

    void bring(real *state, const real *from) const {  // (C, N) -> haloed
        for (size c = 0; c < C; ++c) std::memcpy(state + origin + c * stride, from + c * N, N * sizeof(real));
        fill_halo(state);
    }

    void take(real *to, const real *state) const {  // haloed -> (C, N)
        for (size c = 0; c < C; ++c) std::memcpy(to + c * N, state + origin + c * stride, N * sizeof(real));
    }

    void run(const Step &step) const {
        for (const Block &part : vector_blocks[channel_blocks[0].count]) {
            const real *weights = step.weights;
            for (const Block &block : channel_blocks) {
                const size first = origin + block.start * stride;
                const size x = part.start * LANES, at = first + x;
                const bool last = !direct && part.start + part.count == vectors;
                const Tile tile{step.from ? step.from + origin + x : nullptr, step.offsets, weights,
                                step.start + block.start * width + x, block.start * width + x, step.terms,
                                step.num_terms, step.gate ? step.gate + at : nullptr, step.epilogue, step.to + at,
                                step.from ? rows : 0, width, stride, last ? &tail : nullptr};
                with_tile(block.count, part.count, [&](auto m, auto v) { compute<m, v>(tile); });
                weights += rows * block.count;
            }
        }
        fill_halo(step.to);
        if (step.out && direct)
            for (size c = 0; c < C; ++c)
                for (size v = 0; v < N; v += LANES)
                    stream(step.out + c * N + v, load(step.to + origin + c * stride + v));
        else if (step.out)
            take(step.out, step.to);
    }

    // totals[i] = sum over the ring of rows_i * state
    void project(real *totals, const real *projection, const std::vector<Block> &blocks, const real *state) const {
        for (const Block &block : blocks) {
            const real *rows = projection + block.start * C * width;
            real *to = totals + block.start;
            switch (block.count) {
                case 1: project<1>(to, rows, state); break;
                case 2: project<2>(to, rows, state); break;
                case 3: project<3>(to, rows, state); break;
                case 4: project<4>(to, rows, state); break;
                case 5: project<5>(to, rows, state); break;
                case PROJECTED: project<PROJECTED>(to, rows, state); break;
            }
        }
    }

    template <int M> void project(real *totals, const real *rows, const real *state) const {
        vec sums[M] = {};
        for (size c = 0; c < C; ++c) {
            const real *rows_c = rows + c * width, *row = state + origin + c * stride;
            for (size v = 0; v < width; v += LANES) {
                const vec h = load(row + v);
                UNROLLED for (int m = 0; m < M; ++m) sums[m] += h * load(rows_c + m * C * width + v);
            }
        }
        UNROLLED for (int m = 0; m < M; ++m) totals[m] = total(sums[m]);
    }
};

struct Worker {  // what one thread needs to run samples forward
    const Plan &plan;
    Array<Term> terms;
    Array<real> scratch, states;  // states: two slots
    explicit Worker(const Plan &plan)
        : plan(plan), terms(std::max(plan.I, plan.O)), scratch(plan.C * plan.width), states(2 * plan.slot) {}

    void set_terms(Step &step, const real *factors, const real *rows, size count) {
        step.terms = terms;
        for (size i = 0; i < count; ++i)
            if (factors[i] != 0) {
                Term &term = terms[step.num_terms++];
                term.rows = rows + i * plan.C * plan.width;
                term.factor = factors[i];
            }
    }

    void advance(size b, size t, const real *from, real *to, real *out) {
        const Call &call = plan.call;
        Step step;
        step.from = from;
        step.weights = plan.forward_weights;
        step.offsets = plan.forward_offsets.data();
        step.start = plan.bias;
        if (call.x) set_terms(step, call.x + (b * plan.T + t) * plan.I, plan.input_weight, plan.I);
        if (call.drive && call.shared) step.start = plan.drive + t * plan.C * plan.width;
        if (call.drive && !call.shared) {
            const real *drive = call.drive + (b * plan.T + t) * plan.C * plan.N;
            for (size c = 0; c < plan.C; ++c)
                for (size n = 0; n < plan.N; ++n)
                    scratch[c * plan.width + n] = drive[c * plan.N + n] + plan.bias[c * plan.width + n];
            step.start = scratch;
        }
        step.epilogue = call.nonlinearity;
        step.to = to;
        step.out = out;
        plan.run(step);
    }
};

void run_forward(const Call &call) {
    const Plan plan(call);
    const size unit = plan.C * plan.N, kept_steps = call.kept ? call.steps / call.every : 0;
    std::vector<std::unique_ptr<Worker>> workers;  // all memory is taken here, where a lack of it can be reported
    for (size thread = 0; thread < call.threads; ++thread) workers.emplace_back(new Worker(plan));
    const FloatMode floats;
#pragma omp parallel num_threads(call.threads)
    {
        floats.inherit();
        Worker &worker = *workers[thread_number()];
#pragma omp for schedule(dynamic, 1)
        for (size b = 0; b < call.batch; ++b) {
            real *now = worker.states, *next = worker.states + plan.slot;
            plan.bring(now, call.state + b * unit);
            for (size t = 0; t < call.steps; ++t) {
                const bool keep = call.kept && (t + 1) % call.every == 0;
                real *out = keep ? call.kept + (b * kept_steps + (t + 1) / call.every - 1) * unit : nullptr;
                worker.advance(b, t, now, next, out);
                if (call.read) plan.project(call.read + (b * plan.T + t) * plan.O, plan.readout, plan.output_blocks, next);
                std::swap(now, next);
            }
            if (call.last) plan.take(call.last + b * unit, now);
        }
    }
}

// Gradients that are sums over samples: of one sample in `real`, of several in double.
struct Sums {
    const Plan &plan;
    size kernel_numel, rows_numel;
    Array<real> kernel, input_rows, readout_rows;      // one sample
    Array<double> kernel_sum, input_sum, readout_sum;  // several
    std::vector<Block> input_blocks, readout_blocks;   // of the rows
    explicit Sums(const Plan &plan) : plan(plan), kernel_numel(plan.C * size(plan.gradient_offsets.size())),
        rows_numel(plan.C * plan.width), kernel(plan.call.grad_kernel ? kernel_numel * LANES : 0),
        input_rows(inputs() * rows_numel), readout_rows(outputs() * rows_numel), kernel_sum(kernel_numel),
        input_sum(inputs() * rows_numel), readout_sum(outputs() * rows_numel),
        input_blocks(split(inputs(), MAX_M)), readout_blocks(split(outputs(), MAX_M)) {}

    size inputs() const {  // the bias first
        return plan.call.grad_input_weight ? plan.I + 1 : plan.call.grad_bias ? 1 : 0;
    }
    size outputs() const { return plan.call.grad_readout ? plan.O : 0; }

    void finish_sample() {
        for (size i = 0; i < kernel.length / LANES; ++i) {
            double sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += kernel[i * LANES + lane];
            kernel_sum[i] += sum;
        }
        finish(input_rows, input_sum);
        finish(readout_rows, readout_sum);
        std::memset(static_cast<void *>(kernel), 0, kernel.length * sizeof(real));
    }

    void move_to(Sums &all) {
        finish(kernel_sum, all.kernel_sum);
        finish(input_sum, all.input_sum);
        finish(readout_sum, all.readout_sum);
    }

    template <typename T> static void finish(Array<T> &part, Array<double> &sum) {
        T *from = part;
        double *to = sum;
        for (size i = 0; i < part.length; ++i) {
            to[i] += from[i];
            from[i] = 0;
        }
    }
};

struct BackwardWorker : Worker {
    size segment;
    Sums sums;
    Array<real> activities;  // (segment + 1) slots: before the segment, then after each of its steps
    Array<real> gradients;   // chunk slots: the gradient before the nonlinearity
    Array<real> factors, state_gradient;
    Array<double> totals;
    Array<size> slots;
    explicit BackwardWorker(const Plan &plan, size segment)
        : Worker(plan), segment(segment), sums(plan), activities((segment + 1) * plan.slot), gradients(plan.chunk * plan.slot),
          factors(plan.chunk * MAX_M), state_gradient(plan.slot), totals(plan.width), slots(plan.chunk) {}

    real *activity(size step_in_segment) { return activities + (step_in_segment + 1) * plan.slot; }

    void bring_activities(size b, size start, size stop) {
        const Call &call = plan.call;
        const size unit = plan.C * plan.N, kept_steps = call.steps / call.every;
        const real *kept = call.kept + b * kept_steps * unit;
        plan.bring(activity(-1), start ? kept + (start / call.every - 1) * unit : call.state + b * unit);
        for (size t = start; t < stop; ++t)
            if (call.every == 1)
                plan.bring(activity(t - start), kept + t * unit);
            else
                advance(b, t, activity(t - start - 1), activity(t - start), nullptr);
    }

    // The gradient of step t; `later`: that of the step after it, null at the end.
    void go_back(size b, size t, const real *later, const real *gate, real *to) {
        const Call &call = plan.call;
        const size unit = plan.C * plan.N, T = plan.T;
        Step step;
        step.from = later;
        step.weights = plan.backward_weights;
        step.offsets = plan.backward_offsets.data();
        step.start = plan.zero;
        step.gate = gate;
        step.epilogue = call.nonlinearity == RELU ? GATE_RELU : call.nonlinearity == TANH ? GATE_TANH : IDENTITY;
        step.to = to;
        if (call.grad_read) set_terms(step, call.grad_read + (b * T + t) * plan.O, plan.readout, plan.O);
        const real *states = call.grad_states ? call.grad_states + (b * T + t) * unit : nullptr;
        const real *last = call.grad_last && t == T - 1 ? call.grad_last + b * unit : nullptr;
        if (states || last) {
            for (size c = 0; c < plan.C; ++c)
                for (size n = 0; n < plan.N; ++n)
                    scratch[c * plan.width + n] =
                        (states ? states[c * plan.N + n] : 0) + (last ? last[c * plan.N + n] : 0);
            step.start = scratch;
        }
        plan.run(step);
    }

    // sums_rows[i] += sum over steps of factor(step, i) * slots[step]
    template <typename F>
    void add_rows(real *sums_rows, const std::vector<Block> &blocks, const real *first_slot, size steps, F factor) {
        const size C = plan.C, width = plan.width;
        for (const Block &block : blocks) {
            size used = 0;  // steps that add something
            for (size s = 0; s < steps; ++s) {
                bool adds = false;
                for (size m = 0; m < block.count; ++m) {
                    const real f = factor(s, block.start + m);
                    factors[used * block.count + m] = f;
                    adds |= f != 0;
                }
                if (adds) slots[used++] = s * plan.slot;
            }
            if (!used) continue;
            for (size c = 0; c < C; ++c)
                for (const Block &part : plan.vector_blocks[block.count])
                    with_tile(block.count, part.count, [&](auto count_m, auto count_v) __attribute__((always_inline)) {
                        constexpr int M = count_m, V = count_v;
                        vec sums[M][V];
                        real *row = sums_rows + (block.start * C + c) * width + part.start * LANES;
                        for (int m = 0; m < M; ++m)
                            for (int v = 0; v < V; ++v) sums[m][v] = load(row + m * C * width + v * LANES);
                        contract<M, V>(sums, first_slot + plan.origin + c * plan.stride + part.start * LANES,
                                       slots, factors, used);
                        for (int m = 0; m < M; ++m)
                            for (int v = 0; v < V; ++v) store(row + m * C * width + v * LANES, sums[m][v]);
                    });
        }
    }

    // Steps [start, stop) of sample b, a chunk of the segment that starts at `segment_start`.
    void chunk(size b, size segment_start, size start, size stop, real *carry, real *shared, size shared_start) {
        const Call &call = plan.call;
        const size unit = plan.C * plan.N, T = plan.T, steps = stop - start;
        for (size t = stop - 1; t >= start; --t) {
            const real *later = t == T - 1 ? nullptr : t == stop - 1 ? carry : gradients + (t + 1 - start) * plan.slot;
            go_back(b, t, later, activity(t - segment_start), gradients + (t - start) * plan.slot);
        }
        std::memcpy(carry, gradients, plan.slot * sizeof(real));
        const real *before = activity(start - segment_start - 1);
        if (call.grad_kernel) {
            Correlation task{nullptr, before + plan.origin, nullptr, sums.kernel, steps, plan.slot, plan.stride,
                             plan.direct ? plan.width : plan.width - LANES, plan.direct ? nullptr : &plan.tail};
            for (const Block &block : plan.channel_blocks) {
                task.gradient = gradients + plan.origin + block.start * plan.stride;
                for (size r = 0; r < size(plan.gradient_offsets.size()); r += ROWS_AT_ONCE) {
                    task.offset = plan.gradient_offsets.data() + r;
                    switch (block.count) {
                        case 1: correlate<1>(task); break;
                        case 2: correlate<2>(task); break;
                        case 3: correlate<3>(task); break;
                        case 4: correlate<4>(task); break;
                    }
                    task.sums += block.count * ROWS_AT_ONCE * LANES;
                }
            }
        }
        add_rows(sums.input_rows, sums.input_blocks, gradients, steps,
                 [&](size s, size i) { return i ? call.x[(b * T + start + s) * plan.I + i - 1] : real(1); });
        add_rows(sums.readout_rows, sums.readout_blocks, before + plan.slot, steps,
                 [&](size s, size o) { return call.grad_read[(b * T + start + s) * plan.O + o]; });
        for (size s = 0; s < steps; ++s) {
            const real *gradient = gradients + s * plan.slot;
            const size t = start + s;
            if (call.grad_x)
                plan.project(call.grad_x + (b * T + t) * plan.I, plan.input_weight, plan.feature_blocks, gradient);
            if (call.grad_drive && !call.shared) plan.take(call.grad_drive + (b * T + t) * unit, gradient);
            if (shared)
                for (size c = 0; c < plan.C; ++c)
                    for (size v = 0; v < plan.width; v += LANES) {
                        real *to = shared + ((t - shared_start) * plan.C + c) * plan.width + v;
                        store(to, load(to) + load(gradient + plan.origin + c * plan.stride + v));
                    }
        }
    }

    void to_state(size b, const real *carry) {
        Step step;
        step.from = carry;
        step.weights = plan.backward_weights;
        step.offsets = plan.backward_offsets.data();
        step.start = plan.zero;
        step.to = state_gradient;
        plan.run(step);
        plan.take(plan.call.grad_state + b * plan.C * plan.N, state_gradient);
    }
};

void run_backward(const Call &call) {
    const Plan plan(call);
    const size B = call.batch, T = call.steps, unit = plan.C * plan.N, padded = plan.C * plan.width;
    const size groups = std::min(B, GROUPS), segment = call.every == 1 ? plan.chunk : std::min(call.every, T);
    const bool shares = call.grad_drive && call.shared;
    const size segments = ((shares ? std::min<size>(T, 16) : T) + segment - 1) / segment;
    const size span = segments * segment;  // steps between two sums over the samples
    Sums sums(plan);
    Array<real> carries(B * plan.slot), shared(shares ? groups * span * padded : 0);
    std::vector<std::unique_ptr<BackwardWorker>> workers;
    for (size thread = 0; thread < call.threads; ++thread) workers.emplace_back(new BackwardWorker(plan, segment));
    const FloatMode floats;
#pragma omp parallel num_threads(call.threads)
    {
        floats.inherit();
        BackwardWorker &worker = *workers[thread_number()];
        for (size span_start = (T - 1) / span * span; span_start >= 0; span_start -= span) {
            const size span_stop = std::min(T, span_start + span);
#pragma omp for schedule(dynamic, 1) ordered
            for (size g = 0; g < groups; ++g) {
                real *group_shared = shares ? shared + g * span * padded : nullptr;
                if (shares) std::memset(group_shared, 0, span * padded * sizeof(real));
                for (size b = B * g / groups; b < B * (g + 1) / groups; ++b) {
                    real *carry = carries + b * plan.slot;
                    size s = span_start + (span_stop - 1 - span_start) / segment * segment;
                    for (; s >= span_start; s -= segment) {
                        const size segment_stop = std::min(T, s + segment);
                        worker.bring_activities(b, s, segment_stop);
                        for (size c = s + (segment_stop - 1 - s) / plan.chunk * plan.chunk; c >= s; c -= plan.chunk)
                            worker.chunk(b, s, c, std::min(segment_stop, c + plan.chunk), carry, group_shared,
                                         span_start);
                    }
                    worker.sums.finish_sample();
                    if (span_start == 0 && call.grad_state) worker.to_state(b, carry);
                }
#pragma omp ordered
                worker.sums.move_to(sums);
            }
            if (shares) {
#pragma omp for schedule(static)
                for (size t = span_start; t < span_stop; ++t)
                    for (size c = 0; c < plan.C; ++c) {
                        double *totals = worker.totals;
                        std::fill(totals, totals + plan.N, 0.0);
                        for (size g = 0; g < groups; ++g) {
                            const real *row = shared + ((g * span + t - span_start) * plan.C + c) * plan.width;
                            for (size n = 0; n < plan.N; ++n) totals[n] += row[n];
                        }
                        std::copy(totals, totals + plan.N, call.grad_drive + (t * plan.C + c) * plan.N);
                    }
            }
        }
    }
    if (call.grad_kernel) {
        const double *from = sums.kernel_sum;
        for (const Block &block : plan.channel_blocks)
            for (size r = 0; r < size(plan.gradient_offsets.size()); r += ROWS_AT_ONCE)
                for (size m = 0; m < block.count; ++m)
                    for (size i = 0; i < ROWS_AT_ONCE; ++i, ++from)
                        if (r + i < plan.rows) call.grad_kernel[(block.start + m) * plan.rows + r + i] = real(*from);
    }
    for (size c = 0; c < plan.C; ++c)
        for (size n = 0; n < plan.N; ++n) {
            const double *from = sums.input_sum + c * plan.width + n;
            if (call.grad_bias) call.grad_bias[c * plan.N + n] = real(from[0]);
            if (call.grad_input_weight)
                for (size i = 0; i < plan.I; ++i)
                    call.grad_input_weight[(c * plan.N + n) * plan.I + i] = real(from[(i + 1) * padded]);
            if (call.grad_readout)
                for (size o = 0; o < plan.O; ++o)
                    call.grad_readout[o * unit + c * plan.N + n] =
                        real(sums.readout_sum[o * padded + c * plan.width + n]);
        }
}

}  // namespace

extern "C" {
int64_t wrnn_call_bytes() { return sizeof(Call); }
int64_t wrnn_vector_bits() { return 8 * VECTOR_BYTES; }

// 0, or 1 if memory ran out.
int64_t wrnn_forward(const Call *call) {
    try {
        run_forward(*call);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

int64_t wrnn_backward(const Call *call) {
    try {
        run_backward(*call);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
}
