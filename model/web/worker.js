// The network in a worker of its own, so that the page stays awake while it draws.
//
// In:   {kind: "load", weights, relaxed?, partner?}    weights: the URL of a folder, {bytes, config, sampling?}, or a
//           port to the worker whose partner this one is; relaxed: which engine; partner: a port to another worker,
//           which gets the weights from this one, and computes half of each guided step, or the velocities of a flow
//           map's film, as soon as it is ready
//       {kind: "draw", id, labels, seeds, noise?, steps, guidance, time_shift, film?, alone?}    a digit for each of N
//           labels and seeds, or from `noise`, Float32Array [N · 784]; film: with what a flow map predicts on the way;
//           alone: without the partner
//       {kind: "stop"}
// Out:  {kind: "progress", got, total}       bytes of the weights
//       {kind: "ready", config, sampling, engine}    the weights' own settings, complete; the engine's file
//       {kind: "state", id, i, t, x, predicted?, velocity?, ms}    uint8 [N, 28, 28] as in sampling.Film; ms so far
//       {kind: "done", id}
//       {kind: "error", id?, message}        a sentence
// A newer draw, or stop, drops the older one between two steps; nothing more is heard of that one.

import * as check from "./check.js";
import {SIZE} from "./dit.js";
import {timeGrid, toPixels} from "./flow.js";
import {noise} from "./noise.js";
import * as weightsOf from "./weights.js";

let loaded; // {network, config, partner?}: a partner that is ready
let newest; // the id of the drawing that goes on

async function load({weights, relaxed = hasRelaxed(), partner}) {
    const engine = relaxed ? "kernels-relaxed.wasm" : "kernels.wasm";
    const report = (got, total) => postMessage({kind: "progress", got, total});
    const read = typeof weights === "string" ? weightsOf.load(weights, report) : received(weights).then(weightsOf.open);
    const [kernels, {config, sampling, tensors, bytes}] = await Promise.all([instantiate(engine), read]);
    partner?.postMessage({bytes, config, sampling}, [bytes]);
    const network = new weightsOf.KINDS[config.kind](kernels, config, tensors), mine = loaded = {network, config};
    if (partner) partner.onmessage = () => mine.partner = partner; // it is ready
    if (weights instanceof MessagePort) help(weights, network);
    postMessage({kind: "ready", config, sampling, engine});
}

async function instantiate(engine) {
    try {
        const response = await fetch(new URL(engine, import.meta.url));
        return (await WebAssembly.instantiate(await response.arrayBuffer())).instance.exports;
    } catch {
        throw new Error(`${engine} does not start here; browsers have had WebAssembly with SIMD since 2023`);
    }
}

// Whether the browser has relaxed SIMD: does it accept a function of f32x4.relaxed_madd?
function hasRelaxed() {
    const types = [1, 8, 1, 96, 3, 123, 123, 123, 1, 123], functions = [3, 2, 1, 0];
    const code = [10, 13, 1, 11, 0, 32, 0, 32, 1, 32, 2, 253, 133, 2, 11];
    return WebAssembly.validate(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, ...types, ...functions, ...code));
}

// Weights that are there already, or that come through a port.
async function received(weights) {
    return weights instanceof MessagePort ? new Promise(done => weights.onmessage = ({data}) => done(data)) : weights;
}

// Be the partner of the worker behind a port.
function help(port, network) {
    port.onmessage = ({data: {moments, x, moment, labels}, ports: [answer]}) =>
        answer.postMessage(network.withCachedModulations(moments)(x, moment, labels));
    port.postMessage("ready");
}

// The answer of the partner behind a port. Each question has a port of its own for its answer, so that the answer
// to a drawing that has been dropped is not taken for another one.
function ask(port, question) {
    const {port1, port2} = new MessageChannel();
    return new Promise(resolve => {
        port1.onmessage = ({data}) => resolve(data, port1.close());
        port.postMessage(question, [port2]);
    });
}

async function draw({id, labels, seeds = [], noise: start, steps, guidance, time_shift, film, alone}) {
    newest = id;
    if (!loaded) throw new Error("there are no weights to draw with yet");
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
        if (newest !== id) return; // something newer came while the partner was at work
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

// Resolves once the messages that have arrived are handled; a timer would take 4 ms.
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
