// The network in a worker of its own, so that the page stays awake while it draws.
//
// In:   {kind: "load", weights, relaxed?}   weights: the URL of a folder, or {bytes, config, sampling?}
//       {kind: "draw", id, labels, seeds, steps, guidance, time_shift}   one digit for each of N labels and seeds
//       {kind: "stop"}
// Out:  {kind: "progress", got, total}      bytes
//       {kind: "ready", config, sampling, engine}   the weights' own, checked; engine: the name of the wasm file
//       {kind: "state", id, i, t, x, predicted, velocity, ms}   uint8 [N · 784], as sampling.Film; no velocity at t = 0
//       {kind: "done", id}
//       {kind: "error", id?, message}       one sentence
// A newer draw, or stop, drops the older one between two steps; nothing more is heard of that one.

import { DiT } from "./dit.js";
import { guided, sample, timeGrid, toPixels } from "./flow.js";
import { noise } from "./noise.js";
import { load as loadWeights, open as openWeights } from "./weights.js";

let loaded, newest = null;

// Whether the browser knows relaxed SIMD: a module of one function with f32x4.relaxed_madd.
const hasRelaxed = () => WebAssembly.validate(Uint8Array.from([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 8, 1, 96, 3, 123, 123, 123, 1, 123, 3, 2, 1, 0, 10, 13, 1, 11, 0, 32, 0, 32, 1, 32,
    2, 253, 133, 2, 11,
]));

async function load({ weights, relaxed = hasRelaxed() }) {
    const engine = relaxed ? "kernels-relaxed.wasm" : "kernels.wasm";
    const report = (got, total) => postMessage({ kind: "progress", got, total });
    const [{ instance }, { config, sampling, tensors }] = await Promise.all([
        compile(engine), typeof weights === "string" ? loadWeights(weights, report) : openWeights(weights)]);
    loaded = { network: new DiT(instance.exports, config, tensors), config };
    postMessage({ kind: "ready", config, sampling, engine });
}

async function compile(engine) {
    try {
        return await WebAssembly.instantiate(await (await fetch(new URL(engine, import.meta.url))).arrayBuffer());
    } catch {
        throw new Error(`${engine} cannot be loaded; this page needs a browser with WebAssembly SIMD (from 2021, Safari 16.4)`);
    }
}

async function draw({ id, labels, seeds, steps, guidance, time_shift }) {
    newest = id;
    if (!loaded) throw new Error("the weights are not loaded yet");
    const { network, config } = loaded, { pixel_mean: mean, pixel_std: std } = config;
    const started = performance.now(), times = timeGrid(steps, time_shift);
    const x = Float32Array.from(seeds.flatMap((seed) => Array.from(noise(seed))));
    const velocity = guided(network.withCachedModulations(times.slice(0, -1)), labels, network.nullLabel, guidance);
    let i = 0;
    for (const { t, x: now, v } of sample(velocity, x, times)) {
        const predicted = v ? now.map((value, j) => value - t * v[j]) : now;
        postMessage({
            kind: "state", id, i: i++, t, x: toPixels(now, mean, std), predicted: toPixels(predicted, mean, std),
            velocity: v && toPixels(v, 0.5, 1 / 6), ms: performance.now() - started, // ±3 standard deviations
        });
        await messages();
        if (newest !== id) return;
    }
    postMessage({ kind: "done", id });
}

/** Let messages that have arrived be handled: a timer would wait for 4 ms. */
function messages() {
    const { port1, port2 } = new MessageChannel();
    return new Promise((resolve) => {
        port1.onmessage = () => resolve(port1.close());
        port2.postMessage(null);
    });
}

const stop = async () => (newest = null);

onmessage = ({ data }) => {
    const { kind, id } = data;
    ({ load, draw, stop })[kind](data).catch(({ message }) => postMessage({ kind: "error", id, message }));
};
