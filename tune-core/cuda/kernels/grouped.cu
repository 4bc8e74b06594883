// Products of experts that have few rows each, all experts of a layer in one launch. How many rows an expert has is read here, so that
// nobody waits for it and the launch is the same whatever it is: a step that generates tokens can be recorded.
//
// A block has at most 32 rows of one expert and 32 of its results. It reads that part of the weight once, whole lines at a time and
// straight into the fragments of the matrix units: the order of the numbers of a row is free, if both factors have the same. Each of its
// warps has every fourth piece of the rows, and the sums of the warps are added in their order. So a result does not depend on which
// rows are computed beside it, nor on how many.
//
// alignment: any; 16-byte accesses if pointers and lengths of rows allow.
#include "common.cuh"

namespace {

constexpr int WARPS = 4, OUTS = 32, MOST_ROWS = 32;
// Sums of a row in shared memory, so far apart that lanes write to different banks.
constexpr int APART = OUTS + 4;

// Some rows of an expert. None: count is 0.
struct Rows {
    int expert, count;
    unsigned first;
};

// Where a block's share of a product is: `count` rows of x and 32 rows of w from `out` on, of which w has n, all of k numbers.
template <typename T> struct Share {
    const T *x, *w;
    // Which row of x each is; null: they follow each other from `first` on.
    const unsigned *rows;
    unsigned first;
    int count;
    int out, n, k;

    // Rows that there are not are the last one's, and nobody writes what becomes of them.
    __device__ __forceinline__ unsigned number_of_x(int row) const {
        const unsigned place = first + min(row, count - 1);
        return rows ? rows[place] : place;
    }
    __device__ __forceinline__ const T *row_of_x(unsigned number) const { return x + (long long)number * k; }
    __device__ __forceinline__ const T *row_of_w(int row) const { return w + (long long)min(out + row, n - 1) * k; }
};

// The piece of this number, expert by expert: at most 32 rows of one. A warp's lanes together.
__device__ __forceinline__ Rows find(const unsigned *starts, int experts, unsigned number) {
    const int lane = threadIdx.x % 32;
    unsigned before = 0;
    for (int from = 0; from < experts; from += 32) {
        const int expert = from + lane;
        unsigned first = 0, count = 0;
        if (expert < experts) first = starts[expert], count = starts[expert + 1] - first;
        const unsigned pieces = (count + MOST_ROWS - 1) / MOST_ROWS;
        unsigned behind = before + pieces;
#pragma unroll
        for (int by = 1; by < 32; by *= 2) {
            const unsigned other = __shfl_sync(ALL_LANES, behind, (lane - by) & 31);
            if (lane >= by) behind += other - before;
        }
        const unsigned votes = __ballot_sync(ALL_LANES, number < behind);
        if (votes != 0) {
            const int owner = __ffs(static_cast<int>(votes)) - 1;
            const unsigned at = (number - (behind - pieces)) * MOST_ROWS;
            const int left = static_cast<int>(min(count - at, static_cast<unsigned>(MOST_ROWS)));
            return {from + owner, __shfl_sync(ALL_LANES, left, owner), __shfl_sync(ALL_LANES, first + at, owner)};
        }
        before = __shfl_sync(ALL_LANES, behind, 31);
    }
    return {0, 0, 0};
}

// Eight numbers of a row from `at` on; zeros behind its end.
template <bool IS_WIDE> __device__ __forceinline__ uint4 numbers(const bf16 *row, int at, int k) {
    uint4 all = make_uint4(0, 0, 0, 0);
    if constexpr (IS_WIDE) {
        if (at < k) all = load_raw(row + at);
    } else {
        // One after the other: as many at once as there are would take all registers.
#pragma unroll 1
        for (int i = 7; i >= 0; i--) {
            const uint32_t next = at + i < k ? *reinterpret_cast<const uint16_t *>(row + at + i) : 0u;
            all.w = all.w << 16 | all.z >> 16, all.z = all.z << 16 | all.y >> 16, all.y = all.y << 16 | all.x >> 16;
            all.x = all.x << 16 | next;
        }
    }
    return all;
}

// What a warp has of the sums of 8 * TILES rows.
template <typename T, int TILES> struct Sums;

// By the matrix units: their rows are the weight's, their columns ours.
template <int TILES> struct Sums<bf16, TILES> {
    // Pieces that are read at once: as many as leave room for four blocks on a multiprocessor.
    static constexpr int TOGETHER = TILES < 4 ? 2 : 1;
    float d[2][TILES][4];

    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int i = 0; i < 8 * TILES; i++) d[i / 4 / TILES][i / 4 % TILES][i % 4] = 0;
    }

    template <bool IS_WIDE> __device__ __forceinline__ void add(const Share<bf16> &of) {
        const int lane = threadIdx.x % 32, group = lane / 4, warp = threadIdx.x / 32;
        const bf16 *w[2][2], *x[TILES];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i / 2][i % 2] = of.row_of_w(8 * i + group);
#pragma unroll
        for (int t = 0; t < TILES; t++) x[t] = of.row_of_x(of.number_of_x(8 * t + group));
        // Four lanes have 64 bytes of a row: to a lane's 16 the units give the places of four pairs in two steps.
        for (int begin = 64 * warp; begin < of.k; begin += 64 * WARPS) {
#pragma unroll(TILES < 4 ? 2 : 1)
            for (int done = 0; done < 2; done += TOGETHER) {
                const int at = begin + 32 * done + lane % 4 * 8;
                uint4 a[TOGETHER][2][2], b[TOGETHER][TILES];
#pragma unroll
                for (int piece = 0; piece < TOGETHER; piece++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) a[piece][i / 2][i % 2] = numbers<IS_WIDE>(w[i / 2][i % 2], at + 32 * piece, of.k);
#pragma unroll
                    for (int t = 0; t < TILES; t++) b[piece][t] = numbers<IS_WIDE>(x[t], at + 32 * piece, of.k);
                }
#pragma unroll
                for (int i = 0; i < 2 * TOGETHER; i++) {
                    const int piece = i / 2, m = i % 2;
                    const uint4 upper = a[piece][m][0], lower = a[piece][m][1];
                    const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        mma_16x8x16(d[m][t], first, b[piece][t].x, b[piece][t].y);
                        mma_16x8x16(d[m][t], second, b[piece][t].z, b[piece][t].w);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void put(float *shared) const {
        const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    shared[(8 * t + 2 * pair + i % 2) * APART + 16 * m + 8 * (i / 2) + group] = d[m][t][i];
    }
};

// A lane has a row of the weight; all read the same row of ours.
template <int TILES> struct Sums<float, TILES> {
    float d[8 * TILES];

    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int i = 0; i < 8 * TILES; i++) d[i] = 0;
    }

    template <bool IS_WIDE> __device__ __forceinline__ void add(const Share<float> &of) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const float *w = of.row_of_w(lane);
        const unsigned mine = of.number_of_x(lane);
        constexpr int EACH = IS_WIDE ? WIDE<float> : 1;
        for (int begin = 32 * warp; begin < of.k; begin += 32 * WARPS) {
#pragma unroll 1
            for (int at = begin; at < min(begin + 32, of.k); at += EACH) {
                float a[EACH], b[EACH];
                load(w + at, a);
#pragma unroll
                for (int row = 0; row < 8 * TILES; row++) {
                    load(of.row_of_x(__shfl_sync(ALL_LANES, mine, row)) + at, b);
#pragma unroll
                    for (int i = 0; i < EACH; i++) d[row] += a[i] * b[i];
                }
            }
        }
    }

    __device__ __forceinline__ void put(float *shared) const {
#pragma unroll
        for (int row = 0; row < 8 * TILES; row++) shared[row * APART + threadIdx.x % 32] = d[row];
    }
};

template <int TILES, typename T>
__device__ __forceinline__ void multiply(T *y, const Share<T> &of_adapter, const Share<T> &of, float factor) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    Sums<T, TILES> sums;
    // What an adapter adds comes first: it is small.
#pragma unroll 1
    for (int i = of_adapter.w ? 0 : 1; i < 2; i++) {
        const Share<T> term = i == 0 ? of_adapter : of;
        if (is_wide(term.x, term.k) && is_wide(term.w, term.k)) sums.template add<true>(term);
        else sums.template add<false>(term);
    }
    sums.put(shared + threadIdx.x / 32 * 8 * TILES * APART);
    __syncthreads();
    for (int i = threadIdx.x; i < of.count * OUTS; i += 32 * WARPS) {
        const int row = i / OUTS, out = i % OUTS;
        if (of.out + out >= of.n) continue;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += shared[(warp * 8 * TILES + row) * APART + out];
        y[(long long)(of.first + row) * of.n + of.out + out] = from_f32<T>(factor * sum);
    }
}

template <typename T>
__device__ __forceinline__ void grouped(T *y, const T *x, const T *h, const T *const *w, const T *const *b, const unsigned *rows,
                                        const unsigned *starts, int n, int k, int rank, int experts, float factor) {
    const Rows of = find(starts, experts, blockIdx.y);
    if (of.count == 0) return;
    const int out = blockIdx.x * OUTS, expert = blockIdx.z * experts + of.expert;
    const Share<T> of_adapter = {h, b ? b[expert] : nullptr, nullptr, of.first, of.count, out, n, rank};
    const Share<T> own = {x, w[expert], rows, of.first, of.count, out, n, k};
    if (of.count <= 8) multiply<1>(y, of_adapter, own, factor);
    else if (of.count <= 16) multiply<2>(y, of_adapter, own, factor);
    else multiply<4>(y, of_adapter, own, factor);
}

} // namespace

// y[row] = factor (x[row] w[expert of row]^T + h[row] b[expert of row]^T) for rows that are in the order of experts, those of expert e from
// starts[e] up to starts[e + 1]. w [.., n, k] and b [.., n, rank] are given by the address of each expert's, b null: nothing is added.
// x [.., k], whose row `rows[row]` stands for row, or row itself where `rows` is null. y [.., n], h [.., rank]. Rows follow each other.
// With a grid of depth 2 there are two such products with the same shape, y and y1, x and x1, h and h1; the second's weights are behind
// those of the first.
// launch: grid (ceil(n / 32), min(experts, rows) + rows / 32, 1 or 2), block (128), dynamic shared bytes 4 * 32 * 36 * 4.
#define GROUPED(NAME, T, BLOCKS)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS)                                                             \
        NAME(T *y, T *y1, const T *x, const T *x1, const T *h, const T *h1, const T *const *w, const T *const *b,        \
             const unsigned *rows, const unsigned *starts, int n, int k, int rank, int experts, float factor) {          \
        const bool other = blockIdx.z != 0;                                                                              \
        grouped<T>(other ? y1 : y, other ? x1 : x, other ? h1 : h, w, b, rows, starts, n, k, rank, experts, factor);     \
    }
GROUPED(grouped_f32, float, 2)
GROUPED(grouped_bf16, bf16, 4)
