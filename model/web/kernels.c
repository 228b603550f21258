// The arithmetic of the network for WebAssembly, four floats at a time; dit.js calls it in the order of dit.py.
//
// Built in this folder by the PyPI package ziglang. Relaxed SIMD, where the browser has it, fuses multiply and add.
//   python -m ziglang cc -target wasm32-freestanding -mcpu=generic+bulk_memory+simd128 -O3 -nostdlib
//     -Wl,--no-entry,--strip-all,--export=__heap_base -o kernels.wasm kernels.c
//   python -m ziglang cc -target wasm32-freestanding -mcpu=generic+bulk_memory+simd128+relaxed_simd -O3 -nostdlib
//     -Wl,--no-entry,--strip-all,--export=__heap_base -o kernels-relaxed.wasm kernels.c
//
// Matrices are row-major; `rows` counts tokens. A layer's weights [n, k] are stored in panels of 8 of their n rows,
// [n / 8, k, 8], padded with zeros, so that a product reads them sequentially. Every n is a multiple of 4.
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#ifdef __wasm_relaxed_simd__
#define MADD(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define MADD(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#endif

enum {
    PANEL = 8,   // columns of a product at a time
    TILE = 4,    // rows at a time: more than 4 · 8 sums would not stay in the registers
    CHUNK = 28,  // queries at a time, whose scores stay in the cache
};
typedef v128_t f4;

INLINE f4 load(const float *p) { return wasm_v128_load(p); }
INLINE f4 splat(const float *p) { return wasm_v128_load32_splat(p); }
INLINE f4 all(float x) { return wasm_f32x4_splat(x); }
INLINE void store(float *p, f4 x) { wasm_v128_store(p, x); }
INLINE f4 add(f4 a, f4 b) { return wasm_f32x4_add(a, b); }
INLINE f4 sub(f4 a, f4 b) { return wasm_f32x4_sub(a, b); }
INLINE f4 mul(f4 a, f4 b) { return wasm_f32x4_mul(a, b); }
INLINE f4 larger(f4 a, f4 b) { return wasm_f32x4_pmax(a, b); }
INLINE float lane_sum(f4 x) {
    return (wasm_f32x4_extract_lane(x, 0) + wasm_f32x4_extract_lane(x, 1)) +
           (wasm_f32x4_extract_lane(x, 2) + wasm_f32x4_extract_lane(x, 3));
}
INLINE int panels(int n) { return (n + PANEL - 1) / PANEL; }

// e^x with a relative error of 2e-7, after expf of the Cephes library: e^x = 2^n · e^r with |r| ≤ ln(2) / 2.
INLINE f4 exponential(f4 x) {
    x = larger(all(-87), wasm_f32x4_pmin(all(88), x));
    f4 n = wasm_f32x4_nearest(mul(x, all(1.44269504f)));
    f4 r = MADD(n, all(2.12194440e-4f), MADD(n, all(-0.693359375f), x));
    f4 p = MADD(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
    p = MADD(p, r, all(8.3334519073e-3f));
    p = MADD(p, r, all(4.1665795894e-2f));
    p = MADD(p, r, all(1.6666665459e-1f));
    p = MADD(p, r, all(5.0000001201e-1f));
    p = add(MADD(p, mul(r, r), r), all(1));
    f4 power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
    return mul(p, power);
}

// x·Φ(x) = x·(1 + erf(x / √2)) / 2, with erf to 1.5e-7 by Abramowitz & Stegun, 7.1.26.
INLINE f4 gelu(f4 x) {
    f4 z = mul(wasm_f32x4_abs(x), all(0.70710678f));
    f4 t = wasm_f32x4_div(all(1), MADD(z, all(0.3275911f), all(1)));
    f4 p = MADD(t, all(1.061405429f), all(-1.453152027f));
    p = MADD(p, t, all(1.421413741f));
    p = MADD(p, t, all(-0.284496736f));
    p = MADD(p, t, all(0.254829592f));
    f4 tail = mul(mul(all(0.5f), mul(p, t)), exponential(wasm_f32x4_neg(mul(z, z))));  // (1 − erf(z)) / 2
    return mul(x, wasm_v128_bitselect(tail, sub(all(1), tail), wasm_f32x4_lt(x, all(0))));
}

// `count` float16 → float32; returns how many of them are not finite.
EXPORT(unhalf) int unhalf(float *out, const unsigned short *in, int count) {
    int bad = 0;
    for (int i = 0; i < count; i++) {
        union { unsigned bits; float value; } x = {.bits = (in[i] & 0x7fffu) << 13};
        x.value *= 0x1p112f;  // the exponent's bias is 127 instead of 15; exact for subnormal numbers too
        x.bits |= (in[i] & 0x8000u) << 16;
        bad += (in[i] & 0x7c00) == 0x7c00;
        out[i] = x.value;
    }
    return bad;
}

// Pack the matrix [n, k] with elements w[row·row_step + i·step] into panels.
EXPORT(pack) void pack(float *out, const float *w, int n, int row_step, int k, int step) {
    for (int first = 0; first < n; first += PANEL)
        for (int i = 0; i < k; i++)
            for (int row = first; row < first + PANEL; row++) *out++ = row < n ? w[row * row_step + i * step] : 0;
}

enum { PLAIN, GELU, GATED };  // applied to a product before it is stored; GATED adds gate · product to `out`

INLINE void finish(float *out, f4 x, int kind, const float *gate) {
    if (kind == GELU) x = gelu(x);
    if (kind == GATED) x = MADD(x, load(gate), load(out));
    store(out, x);
}

// `count` rows of one panel's 8 columns (its first 4 unless `wide`), with all sums in registers.
INLINE void tile(int count, float *out, int out_step, const float *x, int x_step, const float *panel,
                 const float *bias, int wide, int k, int kind, const float *gate) {
    f4 low[TILE], high[TILE];
    UNROLL for (int r = 0; r < count; r++) low[r] = high[r] = all(0);
    for (int i = 0; i < k; i++, panel += PANEL) {
        f4 a = load(panel), b = load(panel + 4);
        UNROLL for (int r = 0; r < count; r++) {
            f4 s = splat(x + r * x_step + i);
            low[r] = MADD(s, a, low[r]);
            high[r] = MADD(s, b, high[r]);
        }
    }
    UNROLL for (int r = 0; r < count; r++) finish(out + r * out_step, add(low[r], load(bias)), kind, gate);
    if (wide) UNROLL for (int r = 0; r < count; r++)
        finish(out + r * out_step + 4, add(high[r], load(bias + 4)), kind, gate + 4);
}

// out[rows, n] = x[rows, k] · wᵀ + bias, with w [n, k] in panels. Without `bias_step`, all panels have the same bias.
INLINE void product(float *out, int out_step, const float *x, int x_step, const float *w, const float *bias,
                    int bias_step, int rows, int n, int k, int kind, const float *gate) {
    for (int c = 0; c < n; c += PANEL, w += PANEL * k, bias += bias_step) {
        int wide = n - c > 4, r = 0;
        for (; r + TILE <= rows; r += TILE)
            tile(TILE, out + r * out_step + c, out_step, x + r * x_step, x_step, w, bias, wide, k, kind, gate + c);
        for (; r < rows; r++)
            tile(1, out + r * out_step + c, out_step, x + r * x_step, x_step, w, bias, wide, k, kind, gate + c);
    }
}

static const float zeros[PANEL];

EXPORT(linear) void linear(float *out, const float *x, const float *w, const float *bias, int rows, int n, int k) {
    product(out, n, x, k, w, bias, PANEL, rows, n, k, PLAIN, zeros);
}

// The rows of `out` are `step` apart.
EXPORT(linear_gelu)
void linear_gelu(float *out, int step, const float *x, const float *w, const float *bias, int rows, int n, int k) {
    product(out, step, x, k, w, bias, PANEL, rows, n, k, GELU, zeros);
}

// out[rows, n] += gate[n] · (x · wᵀ + bias): the residual branches. The rows of `x` are `step` apart.
EXPORT(linear_gated)
void linear_gated(float *out, const float *x, int step, const float *w, const float *bias, int rows, int n, int k,
                  const float *gate) {
    product(out, n, x, step, w, bias, PANEL, rows, n, k, GATED, gate);
}

// x · sigmoid(x), in place.
EXPORT(silu) void silu(float *x, int count) {
    for (int i = 0; i < count; i += 4)
        store(x + i, wasm_f32x4_div(load(x + i), add(all(1), exponential(wasm_f32x4_neg(load(x + i))))));
}

// LayerNorm of x [rows, d], then scale [d] and shift [d].
EXPORT(modulate) void modulate(float *out, const float *x, int rows, int d, const float *shift, const float *scale) {
    for (; rows--; x += d, out += d) {
        f4 total = all(0), square = all(0);
        for (int i = 0; i < d; i += 4) total = add(total, load(x + i));
        f4 mean = all(lane_sum(total) / d);
        for (int i = 0; i < d; i += 4) {
            f4 centred = sub(load(x + i), mean);
            square = MADD(centred, centred, square);
        }
        f4 inverse = all(1 / __builtin_sqrtf(lane_sum(square) / d + 1e-6f));
        for (int i = 0; i < d; i += 4)
            store(out + i, MADD(mul(sub(load(x + i), mean), inverse), load(scale + i), load(shift + i)));
    }
}

// QK-norm in place: each of the first `heads` vectors [d] of a row becomes x / |x| · √d · qk_scale[head].
EXPORT(normalize) void normalize(float *qkv, const float *qk_scale, int rows, int row_step, int heads, int d) {
    for (; rows--; qkv += row_step)
        for (int h = 0; h < heads; h++) {
            float *x = qkv + h * d;
            f4 square = all(0);
            for (int i = 0; i < d; i += 4) square = MADD(load(x + i), load(x + i), square);
            float norm = __builtin_sqrtf(lane_sum(square));
            f4 factor = all(__builtin_sqrtf(d) / (norm > 1e-12f ? norm : 1e-12f));
            for (int i = 0; i < d; i += 4) store(x + i, mul(mul(load(x + i), factor), load(qk_scale + h * d + i)));
        }
}

// Rotary position embedding in place, of the same vectors; channel i pairs with i + d/2. The table is [2, rows, d].
EXPORT(rotate) void rotate(float *qkv, const float *rotary, int rows, int row_step, int heads, int d) {
    const float *cosine = rotary, *sine = rotary + rows * d;
    for (; rows--; qkv += row_step, cosine += d, sine += d)
        for (int h = 0; h < heads; h++)
            for (int i = 0, j = d / 2; j < d; i++, j++) {
                float *x = qkv + h * d, a = x[i], b = x[j];
                x[i] = a * cosine[i] + b * sine[i];
                x[j] = b * cosine[j] + a * sine[j];
            }
}

// The number of floats that `attend` needs for keys, scores and values.
EXPORT(attention_space) int attention_space(int tokens, int d) {
    return panels(tokens) * PANEL * (d + CHUNK) + panels(d) * PANEL * tokens;
}

// Multi-query attention. qkv [tokens, heads + 2, d] holds the queries, the key and the value of each token; writes
// out [tokens, heads, d] from token `first` on.
EXPORT(attend)
void attend(float *out, const float *qkv, int first, int tokens, int heads, int d, float *space) {
    int row_step = (heads + 2) * d, width = heads * d, columns = panels(tokens) * PANEL;
    float *keys = space, *scores = keys + columns * d, *values = scores + columns * CHUNK;
    f4 scale = all(1 / __builtin_sqrtf(d));
    pack(keys, qkv + width, tokens, row_step, d, 1);
    pack(values, qkv + width + d, d, 1, tokens, row_step);
    for (int h = 0; h < heads; h++)
        for (int token = first; token < tokens; token += CHUNK) {
            int rows = tokens - token < CHUNK ? tokens - token : CHUNK;
            product(scores, columns, qkv + token * row_step + h * d, row_step, keys, zeros, 0, rows, columns, d, PLAIN,
                    zeros);
            for (int r = 0; r < rows; r++) {  // softmax
                float *s = scores + r * columns;
                for (int i = tokens; i < columns; i++) s[i] = -1e30f;  // padding, not tokens: e^… is 0 below
                f4 most = load(s), total = all(0);
                for (int i = 4; i < columns; i += 4) most = larger(most, load(s + i));
                most = larger(most, wasm_i32x4_shuffle(most, most, 2, 3, 0, 1));
                most = larger(most, wasm_i32x4_shuffle(most, most, 1, 0, 3, 2));
                for (int i = 0; i < columns; i += 4) {
                    f4 e = exponential(mul(sub(load(s + i), most), scale));
                    total = add(total, e);
                    store(s + i, e);
                }
                f4 inverse = all(1 / lane_sum(total));
                for (int i = 0; i < columns; i += 4) store(s + i, mul(load(s + i), inverse));
            }
            product(out + token * width + h * d, width, scores, columns, values, zeros, 0, rows, d, tokens, PLAIN,
                    zeros);
        }
}
