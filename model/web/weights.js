// Weights from a folder on the web, checked as by model/weights.py: config.json, sampling.json, and the float16 tensors
// of model.safetensors, whose sha256 metrics.json may contain. Unusable files throw an Error with one sentence.

import * as check from "./check.js";
import {DiT, SIZE} from "./dit.js";
import {FlowMap} from "./flow_map.js";

const CONFIG = "config.json", TENSORS = "model.safetensors", METRICS = "metrics.json", SAMPLING = "sampling.json";
export const KINDS = {velocity: DiT, "flow map": FlowMap}; // by `kind` in config.json
const NETWORK = {kind: "velocity", width: 256, depth: 3, heads: 4, patch: 2, classes: 12};
Object.assign(NETWORK, {pixel_mean: 0.5, pixel_std: 0.3081});
const DRAWING = {steps: 20, guidance: 1, time_shift: 1.63206};
const CLASSES = [..."0123456789", "black", "white"];
const MAX_SIZE = 2 ** 24; // depth · width², as in dit.py
const MAX_HEADER = 1_000_000; // bytes

// Load the weights in the folder at this URL: {config, sampling, tensors}, ready for the class in `KINDS`, and the
// file's `bytes`.
//
// `report(got, total)` is called with the number of bytes of the tensors that have arrived.
export async function load(folder, report) {
    const stop = new AbortController();
    const get = async name => {
        const url = `${folder.replace(/\/$/, "")}/${name}`;
        const response = await fetch(url, {signal: stop.signal}).catch(() => {
            throw new Error(`${url} cannot be reached; check the address and the connection`);
        });
        if (response.status === 404 && name === METRICS) return new Response("{}");
        if (!response.ok) throw new Error(`${url} cannot be loaded: the server answered ${response.status}`);
        return response;
    };
    const getObject = async name => object(name, await (await get(name)).text().catch(() => broken(name)));
    try {
        const [file, config, sampling, metrics] = await Promise.all(
            [get(TENSORS), getObject(CONFIG), getObject(SAMPLING), getObject(METRICS)]);
        const settings = checked(config, sampling);
        const bytes = await download(file, sizeOf(settings.config), report);
        const tensors = readTensors(bytes, settings.config);
        await checkHash(bytes, metrics.sha256?.[TENSORS]);
        return {...settings, tensors, bytes};
    } finally {
        stop.abort(); // after an error, abort the other requests
    }
}

// The same from {bytes: ArrayBuffer, config, sampling}: the tensor file and the parsed JSON files.
export function open({bytes, config, sampling = {}}) {
    const settings = checked(config, sampling);
    return {...settings, tensors: readTensors(bytes, settings.config), bytes};
}

function object(name, text) {
    let found;
    try {
        found = JSON.parse(text);
    } catch { /* `found` stays undefined */ }
    if (!isObject(found)) throw new Error(`${name} of the weights is not a JSON object`);
    return found;
}

const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value);

function broken(name) {
    throw new Error(`the connection was lost while ${name} was loading; reload the page to try again`);
}

// The body of a response as an ArrayBuffer; it should hold tensors of `size` bytes.
async function download(response, size, report) {
    const reader = response.body.getReader(), parts = [];
    for (let got = 0; ; ) {
        const {done, value} = await reader.read().catch(() => broken(TENSORS));
        if (done) return new Blob(parts).arrayBuffer();
        parts.push(value);
        got += value.length;
        if (got > size + MAX_HEADER) throw foreign();
        report(Math.min(got, size), size); // content-length is no use: behind gzip it counts compressed bytes
    }
}

async function checkHash(bytes, expected) {
    if (!expected || !globalThis.crypto?.subtle) return; // only available on https and localhost
    const digest = Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
    if (digest.map(byte => byte.toString(16).padStart(2, "0")).join("") !== expected)
        throw damaged(`its sha256 differs from the one in ${METRICS}`);
}

// {config, sampling} with all their fields, checked for type and range.
function checked(config, sampling) {
    const network = {...NETWORK};
    for (const [name, value] of Object.entries(config)) {
        if (Object.hasOwn(NETWORK, name) || name === "class_names") network[name] = value;
        else throw new Error(`${CONFIG} is not for this network: unknown ${check.shown(name)}`);
    }
    const {kind, width, depth, heads, patch, classes, pixel_mean, pixel_std} = network;
    if (!Object.hasOwn(KINDS, kind))
        throw new Error(`${CONFIG}: kind must be one of ${Object.keys(KINDS).join(", ")}, not ${check.shown(kind)}`);
    check.whole(`${CONFIG}: width`, width, 1, 4096);
    check.whole(`${CONFIG}: depth`, depth, 1, 100);
    check.whole(`${CONFIG}: heads`, heads, 1, width);
    check.whole(`${CONFIG}: patch`, patch, 1, SIZE);
    check.whole(`${CONFIG}: classes`, classes, 1, 1000);
    check.number(`${CONFIG}: pixel_mean`, pixel_mean, 0, 1);
    check.number(`${CONFIG}: pixel_std`, pixel_std, 1e-3, 1);
    if (depth * width ** 2 > MAX_SIZE) throw new Error(`${CONFIG}: width ${width} is too large for depth ${depth}`);
    if ((width / heads) % 4) throw new Error(`${CONFIG}: width ${width} / heads ${heads} is not divisible by 4`);
    if (SIZE % patch) throw new Error(`${CONFIG}: patch ${patch} does not divide ${SIZE} pixels`);
    network.class_names = checkedNames(network.class_names, classes);

    const drawing = {...DRAWING, ...sampling};
    const unknown = Object.keys(drawing).find(name => !Object.hasOwn(DRAWING, name));
    if (unknown) throw new Error(`${SAMPLING} may not contain ${check.shown(unknown)}`);
    check.sampling(drawing, `${SAMPLING}: `);
    return {config: network, sampling: drawing};
}

// The names of the classes; by default MNIST's, or numbers where there are more classes.
function checkedNames(names, classes) {
    names ??= classes <= CLASSES.length ? CLASSES.slice(0, classes) : Array.from({length: classes}, (_, i) => `${i}`);
    const plain = /^[\p{L}\p{N}_]([\p{L}\p{N}_ .+-]{0,58}[\p{L}\p{N}_+-])?$/u;
    const isPlain = name => typeof name === "string" && plain.test(name);
    if (!Array.isArray(names) || names.length !== classes || new Set(names).size < classes || !names.every(isPlain))
        throw new Error(`${CONFIG}: class_names must be a list of ${classes} different plain names`);
    return names;
}

// The shape of every tensor, by its name in PyTorch.
function shapes({kind, width: D, depth, heads, patch, classes}) {
    const found = {"embed_label.weight": [classes + 1, D]};
    const linear = (name, k, n) => Object.assign(found, {[`${name}.weight`]: [n, k], [`${name}.bias`]: [n]});
    const stream = (name, heads, d) => {
        linear(`${name}.qkv`, D, (heads + 2) * d);
        found[`${name}.qk_scale`] = [heads + 1, d];
        if (!heads) return 2; // modulations
        linear(`${name}.out`, D, D);
        linear(`${name}.mlp.0`, D, 4 * D);
        linear(`${name}.mlp.2`, 4 * D, D);
        return 6;
    };
    linear("embed_patch", patch ** 2, D);
    for (const name of kind === "flow map" ? ["time", "step", "guidance"] : ["time"]) {
        linear(`embed_${name}.mlp.0`, 256, D);
        linear(`embed_${name}.mlp.2`, D, D);
    }
    let parts = 2;
    for (let i = 0; i < depth; i++) {
        parts += stream(`blocks.${i}.image`, heads, D / heads);
        parts += stream(`blocks.${i}.label`, i < depth - 1 ? heads : 0, D / heads);
    }
    linear("modulation", D, parts * D);
    linear("unembed", D, patch ** 2);
    return found;
}

const bytesOf = shape => 2 * shape.reduce((a, b) => a * b, 1);
const sizeOf = config => Object.values(shapes(config)).reduce((sum, shape) => sum + bytesOf(shape), 0);
const damaged = how => new Error(`${TENSORS} is damaged: ${how}; reload the page to load it again`);
const foreign = () => new Error(`${TENSORS} does not match the network in ${CONFIG}`);

// The tensors of a safetensors file, {name: Uint16Array of float16}.
//
// The file is 8 bytes with the length of a JSON header, the header {name: {dtype, shape, data_offsets}}, and the
// numbers, one tensor after the other. The name, type, shape and offsets of each are checked.
function readTensors(buffer, config) {
    const text = (begin, length) => new TextDecoder().decode(new Uint8Array(buffer, begin, length));
    if (buffer.byteLength < 8) throw damaged("it is truncated");
    if (text(0, 8) === "version ") throw new Error(`${TENSORS} is a Git LFS pointer, not the file itself`);
    const length = Number(new DataView(buffer).getBigUint64(0, true)), begin = 8 + length;
    if (length > MAX_HEADER) throw damaged("it does not begin like a safetensors file");
    if (begin > buffer.byteLength) throw damaged("it is truncated");
    let header;
    try {
        header = JSON.parse(text(8, length));
    } catch { /* `header` stays undefined */ }
    if (!isObject(header) || !Object.values(header).every(isObject)) throw damaged("its header cannot be read");
    delete header.__metadata__;

    const expected = shapes(config), names = Object.keys(expected), tensors = {};
    if (Object.keys(header).sort().join() !== names.sort().join()) throw foreign();
    let end = 0;
    for (const name of names.sort((a, b) => header[a].data_offsets?.[0] - header[b].data_offsets?.[0])) {
        const {dtype, shape, data_offsets} = header[name], size = bytesOf(expected[name]);
        if (dtype !== "F16") throw new Error(`${name} in ${TENSORS} has the type ${check.shown(dtype)}, not F16`);
        if (String(shape) !== String(expected[name])) throw foreign();
        if (String(data_offsets) !== String([end, end + size])) throw damaged("its tensors overlap or leave gaps");
        if (begin + end + size > buffer.byteLength) throw damaged("it is truncated");
        tensors[name] = new Uint16Array(buffer.slice(begin + end, begin + end + size)); // a copy, which is aligned
        end += size;
    }
    if (begin + end < buffer.byteLength) throw damaged("it is too long");
    return tensors;
}
