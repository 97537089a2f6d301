// Trains one OptuMNIST-v1 network in one block of threads, over as many steps as there are rates, inside one launch.
//
// A batch is at most 64 samples.  Thread t works on sample t % 64 and on conv channel c = t / 64: channel c of the first
// convolution feeds channels 5c ... 5c+4 of the second (two groups), so until the head the two halves never meet.
// The 8 x 8 pooled map of a thread lives in its registers; the images stay in shared memory as bytes, four neighbouring
// pixels in a word, and nothing is ever unfolded.  Register arrays may be indexed by constants only, hence the map that
// moves along by WINDOWS places while a loop reads or writes one end of it.
//
// Pixels are bytes b, and the network's inputs are scale * b + shift; scale goes into the filter and shift into a bias.
// What a later thread may read is always one barrier away from who wrote it: see the three barriers of the step loop.

constexpr int BATCH = 64, CHANNELS = 2, THREADS = CHANNELS * BATCH;
constexpr int SIDE = 28, WORDS = SIDE / 4;   // an image row is seven words of four pixels
constexpr int MAP = 8;                       // the pooled map is 8 x 8
constexpr int PARTS = MAP * MAP / WINDOWS;   // it is filled and left WINDOWS (4 or 8) neighbours of a row at a time
constexpr int EACH = 5, TAPS = 25;           // output channels of a group, and weights of each
constexpr int OUT = 4, AREA = OUT * OUT;     // the second convolution's map is 4 x 4
constexpr int FEATURES = 10, HIDDEN = 3, CLASSES = 10;

// Where a parameter starts in the packed vector of 355, in the order of state_dict().
constexpr int CONV1 = 0, CONV2 = 32, FC1 = 282, BIAS1 = 312, FC2 = 315, BIAS2 = 345, PARAMETERS = 355;

// Rows of the table of signals: what the head's gradients are sums of products of.
constexpr int HIDDENS = FEATURES, DELTAS = HIDDENS + HIDDEN, DELTA_HIDDENS = DELTAS + CLASSES,
              ONES = DELTA_HIDDENS + HIDDEN, SIGNALS = ONES + 1;

constexpr unsigned DEAD = 12;  // a pooled unit at zero; its code points to a patch inside the image all the same

struct Shared {
    unsigned image[SIDE * WORDS][BATCH];    // lanes are samples: any word of any row without bank conflicts
    unsigned winner[PARTS][THREADS];        // argmax codes of a part, four bits each: 4 * row + column, or DEAD
    unsigned positive[EACH][THREADS];       // sign bits of the second convolution's 16 outputs
    float signal[SIGNALS][BATCH + 1];       // features, hidden units and their deltas (one column of padding)
    float partial1[THREADS / 32][32];       // each warp's share of the first filter's gradient
    float partial2[FEATURES][BATCH / 32][32];
    float weight[PARAMETERS];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the host asks for SHARED_BYTES of shared memory");

// Byte k of a word as a float: put behind the exponent of 2^23, whose last place is one.
__device__ __forceinline__ float pixel(unsigned word, int k) {
    return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u + k)) - 8388608.0f;
}

// As torch does, and unlike fmaxf: NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Sums 32 values over the 32 lanes of a warp at once; lane l returns the sum of value l.  At each of five exchanges
// a lane keeps one half of the values it holds and hands the other half to its partner: 31 shuffles, not 160.
template <int HALF = 16>
__device__ __forceinline__ float sums_over_lanes(float (&value)[32], int lane) {
    const bool upper = lane & HALF;
#pragma unroll
    for (int k = 0; k < HALF; ++k) {
        const float give = upper ? value[k] : value[k + HALF], keep = upper ? value[k + HALF] : value[k];
        value[k] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, HALF);
    }
    if constexpr (HALF > 1) return sums_over_lanes<HALF / 2>(value, lane);
    return value[0];
}

// The thread's half of its sample's image, from the data set (49 vectors of 16 bytes an image) to shared memory.
__device__ __forceinline__ void load_image(Shared& s, const uint4* __restrict__ image, int sample, int half) {
    const int first = half ? 25 : 0, last = half ? 49 : 25;
#pragma unroll 5
    for (int k = first; k < last; ++k) {
        const uint4 four = image[k];
        s.image[4 * k][sample] = four.x;
        s.image[4 * k + 1][sample] = four.y;
        s.image[4 * k + 2][sample] = four.z;
        s.image[4 * k + 3][sample] = four.w;
    }
}

// Convolution 4 x 4, maximum over 3 x 3, ReLU: fills the pooled map and the codes of the winners.  Of equal values the
// first wins, as in torch.  ReLU after the maximum is the same function as before it, and one operation, not nine.
__device__ __forceinline__ void convolve_and_pool(Shared& s, float (&map)[MAP * MAP], float scale, float shift,
                                                  int sample, int channel) {
    float filter[16], bias = 0.0f;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
        bias += shift * s.weight[CONV1 + 16 * channel + k];
        filter[k] = scale * s.weight[CONV1 + 16 * channel + k];
    }
#pragma unroll 1
    for (int part = 0; part < PARTS; ++part) {
        const int y = 3 * (part * WINDOWS / MAP), word = part * WINDOWS % MAP * 3 / 4;  // its first row and word of pixels
#pragma unroll
        for (int k = 0; k < MAP * MAP - WINDOWS; ++k) map[k] = map[k + WINDOWS];
        float patch[6][6] = {};  // the pixels under one window: columns 3j ... 3j+5, of which the next keeps three
        unsigned codes = 0;
#pragma unroll
        for (int j = -1; j < WINDOWS; ++j) {
#pragma unroll
            for (int r = 0; r < 6; ++r) {
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    const int x = 3 * j + 3 + k;
                    patch[r][k] = patch[r][k + 3];
                    patch[r][k + 3] = pixel(s.image[(y + r) * WORDS + word + x / 4][sample], x % 4);
                }
            }
            if (j < 0) continue;  // three columns before the first window
            float best = 0.0f;
            unsigned code = 0;
#pragma unroll
            for (int k = 0; k < 9; ++k) {
                float z = bias;
#pragma unroll
                for (int tap = 0; tap < 16; ++tap) z += filter[tap] * patch[k / 3 + tap / 4][k % 3 + tap % 4];
                if (k == 0 || z > best) {
                    best = z;
                    code = 4 * (k / 3) + k % 3;
                }
            }
            best = relu(best);
            map[MAP * MAP - WINDOWS + j] = best;
            codes |= (best > 0.0f ? code : DEAD) << (4 * j);
        }
        s.winner[part][threadIdx.x] = codes;
    }
}

// Convolution 5 x 5 of the group's map, ReLU, mean: five features, and the signs that the way back needs.
__device__ __forceinline__ void convolve_and_average(Shared& s, const float (&map)[MAP * MAP], int sample, int channel) {
#pragma unroll 1
    for (int o = 0; o < EACH; ++o) {
        float z[AREA] = {}, sum = 0.0f;
        const float* filter = s.weight + CONV2 + (EACH * channel + o) * TAPS;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            const float w = filter[tap];
#pragma unroll
            for (int q = 0; q < AREA; ++q) z[q] += w * map[MAP * (q / OUT + tap / 5) + q % OUT + tap % 5];
        }
        unsigned positive = 0;
#pragma unroll
        for (int q = 0; q < AREA; ++q) {
            sum += relu(z[q]);
            positive |= (z[q] > 0.0f ? 1u : 0u) << q;
        }
        s.positive[o][threadIdx.x] = positive;
        s.signal[EACH * channel + o][sample] = sum / AREA;
    }
}

// Two linear layers, cross-entropy and their derivatives; returns the sample's loss.  Both threads of a sample do the
// same work, and the first writes it down.  ``share`` is 1 / batch size, or 0 for a lane beyond the end of the batch.
__device__ __forceinline__ float head(Shared& s, float (&delta_hidden)[HIDDEN], float share, int label, int sample,
                                      int channel) {
    float hidden[HIDDEN], logit[CLASSES], highest = 0.0f, sum = 0.0f, loss = 0.0f;
#pragma unroll
    for (int j = 0; j < HIDDEN; ++j) {
        hidden[j] = s.weight[BIAS1 + j];
#pragma unroll
        for (int i = 0; i < FEATURES; ++i) hidden[j] += s.weight[FC1 + FEATURES * j + i] * s.signal[i][sample];
        hidden[j] = relu(hidden[j]);
        delta_hidden[j] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        logit[k] = s.weight[BIAS2 + k];
#pragma unroll
        for (int j = 0; j < HIDDEN; ++j) logit[k] += s.weight[FC2 + HIDDEN * k + j] * hidden[j];
        highest = k == 0 ? logit[k] : fmaxf(highest, logit[k]);
        if (k == label) loss = -logit[k];
    }
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) sum += expf(logit[k] - highest);
    loss += highest + logf(sum);
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int k = 0; k < CLASSES; ++k) {
        const float delta = share * (expf(logit[k] - highest) * inverse - (k == label ? 1.0f : 0.0f));
        if (channel == 0) s.signal[DELTAS + k][sample] = delta;
#pragma unroll
        for (int j = 0; j < HIDDEN; ++j) delta_hidden[j] += s.weight[FC2 + HIDDEN * k + j] * delta;
    }
#pragma unroll
    for (int j = 0; j < HIDDEN; ++j) {
        if (!(hidden[j] > 0.0f)) delta_hidden[j] = 0.0f;
        if (channel == 0) s.signal[HIDDENS + j][sample] = hidden[j];
        if (channel == 0) s.signal[DELTA_HIDDENS + j][sample] = delta_hidden[j];
    }
    return loss;
}

// The derivative at the second convolution's outputs: the mean hands each of the positive ones the same number.
__device__ __forceinline__ void delta_of_feature(const Shared& s, float (&delta)[AREA],
                                                 const float (&delta_hidden)[HIDDEN], int o, int channel) {
    float each = 0.0f;
#pragma unroll
    for (int j = 0; j < HIDDEN; ++j) each += delta_hidden[j] * s.weight[FC1 + FEATURES * j + EACH * channel + o];
    const unsigned positive = s.positive[o][threadIdx.x];
#pragma unroll
    for (int q = 0; q < AREA; ++q) delta[q] = positive >> q & 1u ? each / AREA : 0.0f;
}

// Gradients of the second convolution: each warp's sums over its samples.  Then, the map being needed no more, its
// registers take the derivative with respect to it.
__device__ __forceinline__ void back_to_map(Shared& s, float (&map)[MAP * MAP], const float (&delta_hidden)[HIDDEN],
                                            int channel, int warp, int lane) {
    float delta[AREA];
#pragma unroll 1
    for (int o = 0; o < EACH; ++o) {
        delta_of_feature(s, delta, delta_hidden, o, channel);
        float gradient[32] = {};
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap)
#pragma unroll
            for (int q = 0; q < AREA; ++q) gradient[tap] += delta[q] * map[MAP * (q / OUT + tap / 5) + q % OUT + tap % 5];
        s.partial2[EACH * channel + o][warp % 2][lane] = sums_over_lanes(gradient, lane);
    }
#pragma unroll
    for (int k = 0; k < MAP * MAP; ++k) map[k] = 0.0f;
#pragma unroll 1
    for (int o = 0; o < EACH; ++o) {
        delta_of_feature(s, delta, delta_hidden, o, channel);
        const float* filter = s.weight + CONV2 + (EACH * channel + o) * TAPS;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            const float w = filter[tap];
#pragma unroll
            for (int q = 0; q < AREA; ++q) map[MAP * (q / OUT + tap / 5) + q % OUT + tap % 5] += w * delta[q];
        }
    }
}

// Gradient of the first filter: each living unit of the map sends its derivative to the 4 x 4 pixels that won there.
// Slots 0 ... 15 sum derivative * byte, slot 16 the derivative alone (for the shift).
__device__ __forceinline__ void back_to_filter(Shared& s, float (&map)[MAP * MAP], int sample, int warp, int lane) {
    float gradient[32] = {};
#pragma unroll 1
    for (int part = 0; part < PARTS; ++part) {
        const unsigned codes = s.winner[part][threadIdx.x], top = 3 * (part * WINDOWS / MAP);
        const unsigned left = 3 * (part * WINDOWS % MAP);
#pragma unroll
        for (int j = 0; j < WINDOWS; ++j) {
            const unsigned code = codes >> (4 * j) & 15u, x = left + 3 * j + (code & 3u), y = top + (code >> 2);
            const float g = code == DEAD ? 0.0f : map[j];
            gradient[16] += g;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const unsigned* words = &s.image[(y + r) * WORDS + x / 4][sample];
                const unsigned four = __funnelshift_r(words[0], words[BATCH], 8 * (x & 3u));
#pragma unroll
                for (int k = 0; k < 4; ++k) gradient[4 * r + k] += g * pixel(four, k);
            }
        }
#pragma unroll
        for (int k = 0; k < MAP * MAP - WINDOWS; ++k) map[k] = map[k + WINDOWS];
    }
    s.partial1[warp][lane] = sums_over_lanes(gradient, lane);
}

// The batch's gradient of one parameter, from the partial sums or, in the head, from the table of signals.
__device__ __forceinline__ float gradient_of(const Shared& s, int parameter, float scale, float shift) {
    if (parameter < CONV2) {
        const float* first = s.partial1[2 * (parameter / 16)];
        const float* second = first + 32;
        return scale * (first[parameter % 16] + second[parameter % 16]) + shift * (first[16] + second[16]);
    }
    if (parameter < FC1) {
        const int k = parameter - CONV2;
        return s.partial2[k / TAPS][0][k % TAPS] + s.partial2[k / TAPS][1][k % TAPS];
    }
    int left, right = ONES;
    if (parameter < BIAS1) {
        left = DELTA_HIDDENS + (parameter - FC1) / FEATURES;
        right = (parameter - FC1) % FEATURES;
    } else if (parameter < FC2) {
        left = DELTA_HIDDENS + parameter - BIAS1;
    } else if (parameter < BIAS2) {
        left = DELTAS + (parameter - FC2) / HIDDEN;
        right = HIDDENS + (parameter - FC2) % HIDDEN;
    } else {
        left = DELTAS + parameter - BIAS2;
    }
    float sum = 0.0f;
#pragma unroll 8
    for (int k = 0; k < BATCH; ++k) sum += s.signal[left][k] * s.signal[right][k];
    return sum;
}

// weights (P, 355), read and written; losses (P), written: sums over all samples, each before its step.
// order (P, n): which examples, batch after batch; images (N, 49) vectors of 16 bytes; labels (N) bytes;
// rates (steps); sizes: n, batch, steps; numbers: scale, shift, weight decay.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
train_networks(float* __restrict__ weights, float* __restrict__ losses, const int* __restrict__ order,
               const uint4* __restrict__ images, const unsigned char* __restrict__ labels,
               const float* __restrict__ rates, const int* __restrict__ sizes, const float* __restrict__ numbers) {
    extern __shared__ uint4 memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, sample = thread % BATCH, channel = thread / BATCH;
    const int warp = thread / 32, lane = thread % 32;
    const int n = sizes[0], batch = sizes[1], steps = sizes[2];
    const float scale = numbers[0], shift = numbers[1], decay = numbers[2];
    const size_t network = blockIdx.x;
    order += network * n;
    weights += network * PARAMETERS;

    for (int k = thread; k < PARAMETERS; k += THREADS) s.weight[k] = weights[k];
    if (channel == 0) s.signal[ONES][sample] = 1.0f;

    float map[MAP * MAP], delta_hidden[HIDDEN], total = 0.0f;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int count = min(batch, n - step * batch);
        const int row = order[step * batch + min(sample, count - 1)];  // lanes beyond the end repeat the last sample,
        const float share = sample < count ? 1.0f / count : 0.0f;      // and their derivatives are multiplied by zero
        load_image(s, images + 49 * static_cast<size_t>(row), sample, channel);
        const int label = labels[row];
        __syncthreads();  // the images lie ready, and so do the weights of the step before

        convolve_and_pool(s, map, scale, shift, sample, channel);
        convolve_and_average(s, map, sample, channel);
        __syncthreads();  // the features of both channels lie ready

        const float loss = head(s, delta_hidden, share, label, sample, channel);
        if (sample < count) total += loss;
        back_to_map(s, map, delta_hidden, channel, warp, lane);
        back_to_filter(s, map, sample, warp, lane);
        __syncthreads();  // all partial sums and deltas lie ready, and nobody reads images or weights any more

        for (int k = thread; k < PARAMETERS; k += THREADS) {
            const float w = s.weight[k];
            s.weight[k] = w - rates[step] * (gradient_of(s, k, scale, shift) + decay * w);
        }
    }
    __syncthreads();
    for (int k = thread; k < PARAMETERS; k += THREADS) weights[k] = s.weight[k];
    if (channel == 0) s.signal[0][sample] = total;
    __syncthreads();
    if (thread == 0) {
        float sum = 0.0f;
        for (int k = 0; k < BATCH; ++k) sum += s.signal[0][k];
        losses[network] = sum;
    }
}
