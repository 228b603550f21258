// The network in a web worker, so that the page stays responsive while it draws.
//
// In:   {kind: "load", weights, relaxed?, partner?}    weights: the URL of a folder, {bytes, config, sampling?}, or a
//           port to the worker whose partner this one is; relaxed: which engine; partner: a port to another worker,
//           which gets the weights from this one and, as soon as it is ready, computes half of each guided step, or the
//           velocities of a flow map's film
//       {kind: "draw", id, labels, seeds, noise?, steps, guidance, time_shift, film?, alone?}    a digit for each of N
//           labels and seeds, or from `noise`, Float32Array [N · 784]; film: with a flow map's predicted images and
//           velocities; alone: without the partner
//       {kind: "stop"}
// Out:  {kind: "progress", got, total}       bytes of the weights
//       {kind: "ready", config, sampling, engine}    the weights' complete settings; the engine's file
//       {kind: "state", id, i, t, x, predicted?, velocity?, ms}    uint8 [N, 28, 28] as in sampling.Film; ms so far
//       {kind: "done", id}
//       {kind: "error", id?, message}        a sentence
// A newer draw, or stop, cancels the current drawing between two steps; it sends no more messages.

import * as check from "./check.js";
import {SIZE} from "./dit.js";
import {timeGrid, toPixels} from "./flow.js";
import {noise} from "./noise.js";
import * as weightsOf from "./weights.js";

let loaded; // {network, config, partner?}, with a partner once it is ready
let newest; // the id of the current drawing

async function load({weights, relaxed = hasRelaxed(), partner}) {
    const engine = relaxed ? "kernels-relaxed.wasm" : "kernels.wasm";
    const report = (got, total) => postMessage({kind: "progress", got, total});
    const read = typeof weights === "string" ? weightsOf.load(weights, report) : received(weights).then(weightsOf.open);
    const [kernels, {config, sampling, tensors, bytes}] = await Promise.all([instantiate(engine), read]);
    partner?.postMessage({bytes, config, sampling}, [bytes]);
    const network = new weightsOf.KINDS[config.kind](kernels, config, tensors), mine = loaded = {network, config};
    if (partner) partner.onmessage = () => mine.partner = partner; // its first message means ready
    if (weights instanceof MessagePort) help(weights, network);
    postMessage({kind: "ready", config, sampling, engine});
}

async function instantiate(engine) {
    try {
        const response = await fetch(new URL(engine, import.meta.url));
        return (await WebAssembly.instantiate(await response.arrayBuffer())).instance.exports;
    } catch {
        throw new Error(`${engine} does not start; it needs a browser of 2023 or later, with WebAssembly SIMD`);
    }
}

// Whether the browser supports relaxed SIMD, by validating a function with f32x4.relaxed_madd.
function hasRelaxed() {
    const types = [1, 8, 1, 96, 3, 123, 123, 123, 1, 123], functions = [3, 2, 1, 0];
    const code = [10, 13, 1, 11, 0, 32, 0, 32, 1, 32, 2, 253, 133, 2, 11];
    return WebAssembly.validate(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, ...types, ...functions, ...code));
}

// Weights passed directly or through a port.
async function received(weights) {
    return weights instanceof MessagePort ? new Promise(done => weights.onmessage = ({data}) => done(data)) : weights;
}

// Act as the partner of the worker behind a port.
function help(port, network) {
    port.onmessage = ({data: {moments, x, moment, labels}, ports: [answer]}) =>
        answer.postMessage(network.withCachedModulations(moments)(x, moment, labels));
    port.postMessage("ready");
}

// Ask the partner behind a port. Each question has its own port for the answer, so that an answer for a cancelled
// drawing is not mistaken for another.
function ask(port, question) {
    const {port1, port2} = new MessageChannel();
    return new Promise(resolve => {
        port1.onmessage = ({data}) => resolve(data, port1.close());
        port.postMessage(question, [port2]);
    });
}

async function draw({id, labels, seeds = [], noise: start, steps, guidance, time_shift, film, alone}) {
    newest = id;
    if (!loaded) throw new Error("the weights are not loaded yet");
    const mine = loaded, {network, config: {pixel_mean: mean, pixel_std: std}} = mine;
    for (const label of labels) check.whole("label", label, 0, network.nullLabel);
    for (const seed of seeds) check.whole("seed", seed, 0, 2 ** 31 - 1);
    check.sampling({steps, guidance, time_shift});
    const x = start ?? Float32Array.from(seeds.flatMap(seed => [...noise(seed)])), count = x.length / SIZE ** 2;
    if (labels.length !== count) throw new Error(`${labels.length} labels, but noise for ${count}`);

    const started = performance.now(), times = timeGrid(steps, time_shift);
    const partner = question => mine.partner && !alone ? ask(mine.partner, question) : undefined;
    let i = 0;
    for await (const {t, x: now, v, image} of network.states({x, labels, times, guidance, film, partner})) {
        if (newest !== id) return; // cancelled while the partner was computing
        postMessage({
            kind: "state", id, i: i++, t, x: toPixels(now, mean, std), predicted: image && toPixels(image, mean, std),
            velocity: v && toPixels(v, 0.5, 1 / 6), ms: performance.now() - started, // ±3 standard deviations
        });
        await messages();
        if (newest !== id) return;
    }
    postMessage({kind: "done", id});
}

async function stop() {
    newest = undefined;
}

// Resolves once all messages received so far are handled; a timer would take 4 ms.
function messages() {
    const {port1, port2} = new MessageChannel();
    return new Promise(resolve => {
        port1.onmessage = () => resolve(port1.close());
        port2.postMessage(null);
    });
}

onmessage = ({data}) => {
    const {kind, id} = data;
    ({load, draw, stop})[kind](data).catch(({message}) => postMessage({kind: "error", id, message}));
};
