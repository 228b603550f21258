// The network of model/dit.py in the browser, class by class; kernels.c does the arithmetic.
//
// A tensor is the address of its float32 numbers in the memory of the WebAssembly module, in row-major order. Images go
// through the network one at a time, so that the activations (2 MB) stay in cache. Read `DiT.velocity` first.

import {guided, sample} from "./flow.js";

export const SIZE = 28;
const FLOAT = 4; // bytes
const CHANNELS = 256; // sinusoidal features per number
const MAX_MOMENTS = 150; // three per step of a flow map's film (sampling.MAX_STEPS)
const GAP = 16; // numbers between the rows of an MLP's hidden layer: rows 4096 bytes apart share few lines of a cache
const roundUp = (n, multiple) => Math.ceil(n / multiple) * multiple;

// Bump allocator for the memory of the WebAssembly module; nothing is ever freed.
class Memory {
    constructor(kernels) {
        this.kernels = kernels;
        this.end = kernels.__heap_base.value;
    }

    // Allocate `count` numbers; returns their address.
    take(count) {
        const at = roundUp(this.end, 64);
        this.end = at + count * FLOAT;
        const missing = this.end - this.kernels.memory.buffer.byteLength;
        try {
            if (missing > 0) this.kernels.memory.grow(Math.ceil(missing / 65536));
        } catch {
            throw new Error("the network needs more memory than this browser allows");
        }
        return at;
    }

    // The numbers at an address; valid until more memory is taken.
    at(address, count) {
        return new Float32Array(this.kernels.memory.buffer, address, count);
    }
}

// Loads the released tensors, {name: Uint16Array of float16}, as float32 into memory.
class Loader {
    constructor(memory, tensors) {
        const largest = Math.max(...Object.values(tensors).map(halves => halves.length));
        Object.assign(this, {memory, tensors, halves: memory.take(largest / 2 + 1), floats: memory.take(largest)});
    }

    // Put a tensor at `this.floats`; returns how many numbers it has.
    read(name) {
        const {kernels} = this.memory, halves = this.tensors[name];
        new Uint16Array(kernels.memory.buffer, this.halves, halves.length).set(halves);
        if (kernels.unhalf(this.floats, this.halves, halves.length))
            throw new Error(`${name} of the weights holds numbers that are not finite`);
        return halves.length;
    }

    // A tensor of any shape, zero-padded to at least `room` numbers.
    vector(name, room = 0) {
        const count = this.read(name), address = this.memory.take(Math.max(count, room));
        this.memory.at(address, count).set(this.memory.at(this.floats, count));
        return address;
    }

    linear(name) {
        const {kernels} = this.memory, rows = this.tensors[`${name}.bias`].length, padded = roundUp(rows, 8);
        const k = this.read(`${name}.weight`) / rows, weight = this.memory.take(padded * k);
        kernels.pack(weight, this.floats, rows, k, k, 1);
        return new Linear(kernels, weight, this.vector(`${name}.bias`, padded), roundUp(rows, 4), k);
    }
}

// nn.Linear from k to n numbers; n is a multiple of 4, zero-padded. `step`: numbers from row to row.
class Linear {
    constructor(kernels, weight, bias, n, k) {
        Object.assign(this, {kernels, weight, bias, n, k});
    }

    forward(out, x, rows) {
        this.kernels.linear(out, x, this.weight, this.bias, rows, this.n, this.k);
    }

    forwardGelu(out, step, x, rows) {
        this.kernels.linear_gelu(out, step, x, this.weight, this.bias, rows, this.n, this.k);
    }

    // out += gate · forward(x)
    addGated(out, gate, x, step, rows) {
        this.kernels.linear_gated(out, x, step, this.weight, this.bias, rows, this.n, this.k, gate);
    }
}

// Cosines and signed sines for 2-D rotary positions, [2, side², d]: half of the angles grow with the token's row.
function rotaryTable(memory, side, d) {
    const tokens = side * side, address = memory.take(2 * tokens * d);
    const [cosine, sine] = [0, 1].map(i => memory.at(address + i * tokens * d * FLOAT, tokens * d));
    for (let token = 0; token < tokens; token++)
        for (let i = 0; i < d / 2; i++) {
            const position = i < d / 4 ? Math.floor(token / side) : token % side;
            const angle = position * 100 ** ((-4 * (i % (d / 4))) / d);
            const at = token * d + i;
            cosine[at] = cosine[at + d / 2] = Math.cos(angle);
            sine[at] = -Math.sin(angle);
            sine[at + d / 2] = Math.sin(angle);
        }
    return address;
}

// Numbers → [T, D]: sinusoidal features of `scale` · number, then a two-layer MLP.
export class TimeEmbedder {
    constructor(loader, name, scale = 1000) {
        const {memory} = loader;
        Object.assign(this, {memory, scale});
        this.mlp = {0: loader.linear(`${name}.mlp.0`), 2: loader.linear(`${name}.mlp.2`)};
        this.features = memory.take(MAX_MOMENTS * CHANNELS);
        this.hidden = memory.take(MAX_MOMENTS * this.mlp[0].n);
        this.out = memory.take(MAX_MOMENTS * this.mlp[2].n);
    }

    forward(numbers) {
        const f = Math.fround; // in float32 as in PyTorch, whose rounding of angles up to 1000 is visible
        const features = this.memory.at(this.features, numbers.length * CHANNELS), half = CHANNELS / 2;
        numbers.forEach((number, row) => {
            for (let k = 0; k < half; k++) {
                const angle = f(f(f(number) * this.scale) * f(Math.exp(f(f(-Math.log(10_000)) * f(k / half)))));
                features[row * CHANNELS + k] = Math.cos(angle);
                features[row * CHANNELS + half + k] = Math.sin(angle);
            }
        });
        this.mlp[0].forward(this.hidden, this.features, numbers.length);
        this.memory.kernels.silu(this.hidden, numbers.length * this.mlp[0].n);
        this.mlp[2].forward(this.out, this.hidden, numbers.length);
        return this.out;
    }
}

// One stream's half of a block; with `heads` 0 it only provides keys and values.
class Stream {
    constructor(loader, name, heads, headDim) {
        Object.assign(this, {kernels: loader.memory.kernels, heads, headDim, modulations: heads ? 6 : 2});
        this.qkv = loader.linear(`${name}.qkv`);
        this.qkScale = loader.vector(`${name}.qk_scale`);
        if (heads) {
            this.out = loader.linear(`${name}.out`);
            this.mlp = {0: loader.linear(`${name}.mlp.0`), 2: loader.linear(`${name}.mlp.2`)};
        }
    }

    // Tokens [S, D] → qkv [S, heads + 2, d]: queries, the key and the value, with QK-norm and rotation.
    project(qkv, x, S, [shift, scale], {normed}, rotary) {
        const {kernels, heads, headDim} = this, {n, k} = this.qkv;
        kernels.modulate(normed, x, S, k, shift, scale);
        this.qkv.forward(qkv, normed, S);
        kernels.normalize(qkv, this.qkScale, S, n, heads + 1, headDim);
        if (rotary) kernels.rotate(qkv, rotary, S, n, heads + 1, headDim);
    }

    // Tokens [S, D] plus the gated attention output [S, D], then plus the gated MLP; in place.
    merge(x, attended, S, [gate, shift, scale, mlpGate], {normed, hidden}) {
        const {kernels, out, mlp} = this, step = mlp[0].n + GAP;
        out.addGated(x, gate, attended, out.k, S);
        kernels.modulate(normed, x, S, out.n, shift, scale);
        mlp[0].forwardGelu(hidden, step, normed, S);
        mlp[2].addGated(x, mlpGate, hidden, step, S);
    }
}

// Joint attention over class and image tokens, then each stream's own residual branches.
class Block {
    constructor(loader, name, heads, headDim, last) {
        this.image = new Stream(loader, `${name}.image`, heads, headDim);
        this.label = new Stream(loader, `${name}.label`, last ? 0 : heads, headDim);
    }

    // Updates the image tokens [S, D] and the class token [1, D] in place, given each one's modulations.
    forward(image, label, S, imageTime, labelTime, rotary, space) {
        const {kernels, heads, headDim} = this.image, {qkv, attended} = space;
        const missing = heads - this.label.heads; // all queries of the class token in the last block, else none
        this.label.project(qkv + missing * headDim * FLOAT, label, 1, labelTime, space); // the first row of qkv
        this.image.project(qkv + (heads + 2) * headDim * FLOAT, image, S, imageTime, space, rotary); // all others
        kernels.attend(attended, qkv, missing ? 1 : 0, S + 1, heads, headDim, space.attention);
        if (this.label.heads) this.label.merge(label, attended, 1, labelTime.slice(2), space);
        this.image.merge(image, attended + heads * headDim * FLOAT, S, imageTime.slice(2), space);
    }
}

// Velocity of the flow for 28 × 28 images, given their class; label `classes` is the null class.
export class DiT {
    // `kernels` are the exports of kernels.wasm; `config` and `tensors` are validated by weights.js.
    // Throws if a number is not finite or the browser has too little memory.
    constructor(kernels, config, tensors) {
        const {width, depth, heads, patch, classes} = config, headDim = width / heads;
        const memory = new Memory(kernels), loader = new Loader(memory, tensors);
        Object.assign(this, {kernels, memory, width, patch, side: SIZE / patch, nullLabel: classes});
        this.embedPatch = loader.linear("embed_patch");
        this.embedLabel = loader.vector("embed_label.weight");
        this.embedTime = new TimeEmbedder(loader, "embed_time");
        this.load(loader);
        this.blocks = Array.from(
            {length: depth}, (_, i) => new Block(loader, `blocks.${i}`, heads, headDim, i === depth - 1));
        this.parts = this.blocks.flatMap(({image, label}) => [image.modulations, label.modulations]).concat(2);
        this.modulation = loader.linear("modulation");
        this.unembed = loader.linear("unembed");
        this.addOneToScales();
        this.rotary = rotaryTable(memory, this.side, headDim);

        const S = this.side ** 2, T = S + 1; // image tokens; with the class token, which comes first
        this.label = memory.take(T * width);
        this.image = this.label + width * FLOAT;
        this.patches = memory.take(S * Math.max(this.embedPatch.k, this.unembed.n));
        this.made = memory.take(MAX_MOMENTS * this.modulation.n);
        this.space = {
            normed: memory.take(S * width),
            qkv: memory.take(T * (heads + 2) * headDim),
            attended: memory.take(T * width),
            hidden: memory.take(S * (4 * width + GAP)),
            attention: memory.take(kernels.attention_space(T, headDim)),
        };
    }

    // The guidance scale used when `scale` is requested.
    static nearestGuidance(scale) {
        return scale;
    }

    // Hook for subclasses to load additional layers.
    load(loader) {}

    // Add dit.py's `one_for_scales` to the bias.
    addOneToScales() {
        const bias = this.memory.at(this.modulation.bias, this.modulation.n), D = this.width;
        let part = 0;
        for (const count of this.parts) {
            for (const scale of [1, 4].filter(i => i < count)) {
                const first = (part + scale) * D;
                for (let i = first; i < first + D; i++) bias[i] += 1;
            }
            part += count;
        }
    }

    // The sampler's states from noise `x` along `times`, for B labels; see flow.js. Every state has its velocity and
    // predicted image; a flow map computes them only for a `film`.
    //
    // `partner` takes {moments, x, moment, labels}, the arguments of `withCachedModulations` and of the function it
    // returns, and may return a promise of the result; otherwise this network computes it.
    states({x, labels, times, guidance, partner}) {
        const {here, there} = this.shared(times.slice(0, -1), partner);
        return sample(guided(here, labels, this.nullLabel, guidance, there), x, times);
    }

    // The network for these moments, run here and run by the partner.
    shared(moments, partner = () => {}) {
        const here = this.withCachedModulations(moments);
        const there = (x, moment, labels) => partner({moments, x, moment, labels}) ?? here(x, moment, labels);
        return {here, there};
    }

    // The network as (x, moment, labels) → velocity for these moments; their modulations are cached until others are
    // needed. A moment is a time, or a list of the values that `embed` takes.
    withCachedModulations(moments) {
        const names = moments.map(String), all = names.join(";");
        return (x, moment, labels) => {
            if (all !== this.cached) this.makeModulations(moments);
            this.cached = all;
            return this.velocity(x, this.made + names.indexOf(String(moment)) * this.modulation.n * FLOAT, labels);
        };
    }

    // All shifts, scales and gates at up to 150 moments, in one matrix product: `made` is [T, parts, D].
    makeModulations(moments) {
        const embedded = this.embed(moments);
        this.kernels.silu(embedded, moments.length * this.width);
        this.modulation.forward(this.made, embedded, moments.length);
    }

    // The conditioning vector of all modulations at these times, [T, D].
    embed(times) {
        return this.embedTime.forward(times);
    }

    // Velocity at `x`, both Float32Array [B · 784], given the modulations of its time and B labels.
    velocity(x, modulations, labels) {
        const v = new Float32Array(x.length), pixels = SIZE * SIZE;
        labels.forEach((label, i) => {
            v.set(this.velocityOfOne(x.subarray(i * pixels, (i + 1) * pixels), modulations, label), i * pixels);
        });
        return v;
    }

    // The forward pass for one image.
    velocityOfOne(x, modulations, label) {
        const {kernels, memory, image, patches, width: D, space} = this, S = this.side ** 2;
        this.rearrange(x, this.embedPatch.k, (tokens, pixels, i, j) => (tokens[i] = pixels[j]));
        this.embedPatch.forward(image, patches, S); // [S, D]
        memory.at(this.label, D).set(memory.at(this.embedLabel + label * D * FLOAT, D)); // [1, D]
        const streams = this.parts.map(count => Array.from({length: count}, () => {
            modulations += D * FLOAT;
            return modulations - D * FLOAT;
        }));
        this.blocks.forEach((block, i) => {
            block.forward(image, this.label, S, streams[2 * i], streams[2 * i + 1], this.rotary, space);
        });
        const [shift, scale] = streams.at(-1);
        kernels.modulate(space.normed, image, S, D, shift, scale);
        this.unembed.forward(patches, space.normed, S); // [S, p·q]
        const v = new Float32Array(SIZE * SIZE);
        this.rearrange(v, this.unembed.n, (tokens, pixels, i, j) => (pixels[j] = tokens[i]));
        return v;
    }

    // Calls `move(tokens, pixels, i, j)` for each place of "(h p) (w q)" and of "(h w) (p q)", tokens `step` apart.
    rearrange(pixels, step, move) {
        const {patch, side} = this, tokens = this.memory.at(this.patches, side * side * step);
        for (let h = 0; h < side; h++)
            for (let w = 0; w < side; w++)
                for (let p = 0; p < patch; p++)
                    for (let q = 0; q < patch; q++)
                        move(tokens, pixels, (h * side + w) * step + p * patch + q,
                            (h * patch + p) * SIZE + w * patch + q);
    }
}
