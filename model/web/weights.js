// A folder of weights over HTTP, checked as by model/weights.py: the network's config, how to draw, and the tensors.

import { SIZE } from "./dit.js";

const CONFIG = "config.json", TENSORS = "model.safetensors", METRICS = "metrics.json", SAMPLING = "sampling.json";
const DEFAULTS = { width: 256, depth: 3, heads: 4, patch: 2, classes: 12, pixel_mean: 0.5, pixel_std: 0.3081 };
const CLASSES = [..."0123456789", "black", "white"];
const MOVED = { time_shift: "time_shift", default_guidance: "guidance" }; // in config.json before there was a sampling.json
const RANGES = { steps: [1, 50], guidance: [0, 5], time_shift: [1e-3, 1e3] };
const LARGEST_HEADER = 1_000_000; // bytes
const AGAIN = "download or train it again";

/** Weights ready for `new DiT`: {config, sampling, tensors}. Throws an Error of one sentence for what cannot be used. */
export async function load(folder, report) {
    const stop = new AbortController();
    const get = async (name) => {
        const url = new URL(name, folder.endsWith("/") ? folder : `${folder}/`);
        const response = await fetch(url, { signal: stop.signal }).catch(() => {
            throw new Error(`${url} cannot be reached; check the address and the connection`);
        });
        if (response.ok) return response;
        if (response.status === 404 && [METRICS, SAMPLING].includes(name)) return new Response("{}");
        throw new Error(`${url} cannot be loaded: the server answers ${response.status}`);
    };
    const json = async (name) => parsed(name, await (await get(name)).text());
    try {
        const [file, config, metrics, sampling] = await Promise.all([
            get(TENSORS), json(CONFIG), json(METRICS), json(SAMPLING)]);
        const checked = check({ config, sampling });
        const bytes = await download(file, sizeOf(checked.config), report);
        return { ...checked, tensors: await read(bytes, checked.config, metrics?.sha256?.[TENSORS]) };
    } finally {
        stop.abort();
    }
}

/** The same for a file that is there already: {bytes: ArrayBuffer, config, sampling}, the last two read from JSON. */
export async function open({ bytes, config, sampling = {} }) {
    const checked = check({ config, sampling });
    return { ...checked, tensors: await read(bytes, checked.config) };
}

function parsed(name, text) {
    try {
        const found = JSON.parse(text);
        if (found && typeof found === "object" && !Array.isArray(found)) return found;
    } catch { /* said below */ }
    throw new Error(`${name} of the weights is not a JSON object; ${AGAIN}`);
}

/** The body of a response of about `size` bytes, as ArrayBuffer; `report(got, total)` tells how far it is. */
async function download(response, size, report) {
    const limit = 8 + LARGEST_HEADER + size, parts = [];
    let got = 0;
    for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read().catch(() => {
            throw new Error(`The connection broke while ${TENSORS} was loading; reload the page to try again`);
        });
        if (done) break;
        parts.push(value);
        got += value.length;
        if (got > limit) throw foreign();
        report(Math.min(got, size), size); // of the tensors themselves: behind gzip, content-length is smaller
    }
    return new Blob(parts).arrayBuffer();
}

/** Config and sampling with all fields, each of its type and in its range, or an Error. */
function check({ config, sampling }) {
    const older = Object.fromEntries(Object.entries(MOVED).filter(([old]) => old in config).map(([old, now]) => [now, config[old]]));
    const unknown = Object.keys(config).find((name) => !(name in DEFAULTS || name in MOVED || name === "class_names"));
    if (unknown) throw new Error(`${CONFIG} is not of this network: unknown ${unknown.slice(0, 40)}`);
    const { width, depth, heads, patch, classes, pixel_mean, pixel_std } = { ...DEFAULTS, ...config };
    const whole = (name, value, low, high) => {
        if (!Number.isInteger(value) || value < low || value > high)
            throw new Error(`${CONFIG}: ${name} must be a whole number from ${low} to ${high}, not ${shown(value)}`);
    };
    const number = (file, name, value, low, high) => {
        if (!Number.isFinite(value) || value < low || value > high)
            throw new Error(`${file}: ${name} must be a number from ${low} to ${high}, not ${shown(value)}`);
    };
    whole("depth", depth, 1, 100);
    whole("width", width, 1, 4096);
    whole("heads", heads, 1, width);
    whole("patch", patch, 1, SIZE);
    whole("classes", classes, 1, 1000);
    number(CONFIG, "pixel_mean", pixel_mean, 0, 1);
    number(CONFIG, "pixel_std", pixel_std, 1e-3, 1);
    if (width % heads || (width / heads) % 4)
        throw new Error(`${CONFIG}: width ${width} divided by heads ${heads} must be a multiple of 4`);
    if (SIZE % patch) throw new Error(`${CONFIG}: patch ${patch} does not divide ${SIZE} pixels`);
    const plain = classes <= CLASSES.length ? CLASSES.slice(0, classes) : Array.from({ length: classes }, (_, i) => `${i}`);
    const class_names = config.class_names ?? plain;
    const named = Array.isArray(class_names) && class_names.every((name) => typeof name === "string");
    if (!named || new Set(class_names).size !== classes || class_names.length !== classes)
        throw new Error(`${CONFIG}: class_names must be a list of ${classes} different names`);
    sampling = { steps: 20, guidance: 1, time_shift: 1.63206, ...(Object.keys(sampling).length ? sampling : older) };
    for (const [name, value] of Object.entries(sampling)) {
        if (!(name in RANGES)) throw new Error(`${SAMPLING} may hold ${Object.keys(RANGES).join(", ")}, and nothing else`);
        number(SAMPLING, name, value, ...RANGES[name]);
    }
    if (!Number.isInteger(sampling.steps)) throw new Error(`${SAMPLING}: steps must be a whole number, not ${sampling.steps}`);
    return { config: { width, depth, heads, patch, classes, pixel_mean, pixel_std, class_names }, sampling };
}

const shown = (value) => String(JSON.stringify(value)).slice(0, 40);

/** The shape of every tensor of a network: {name: [n, k] or [n]}. */
function shapes({ width: D, depth, heads, patch, classes }) {
    const found = { "embed_label.weight": [classes + 1, D] }, d = D / heads;
    const linear = (name, k, n) => Object.assign(found, { [`${name}.weight`]: [n, k], [`${name}.bias`]: [n] });
    linear("embed_patch", patch ** 2, D);
    linear("embed_time.mlp.0", 256, D);
    linear("embed_time.mlp.2", D, D);
    let parts = 2;
    for (let i = 0; i < depth; i++)
        for (const [name, own] of [["image", heads], ["label", i < depth - 1 ? heads : 0]]) {
            const stream = `blocks.${i}.${name}`;
            linear(`${stream}.qkv`, D, (own + 2) * d);
            found[`${stream}.qk_scale`] = [own + 1, d];
            if (own) {
                linear(`${stream}.out`, D, D);
                linear(`${stream}.mlp.0`, D, 4 * D);
                linear(`${stream}.mlp.2`, 4 * D, D);
            }
            parts += own ? 6 : 2;
        }
    linear("modulation", D, parts * D);
    linear("unembed", D, patch ** 2);
    return found;
}

const count = (shape) => shape.reduce((a, b) => a * b, 1);
const sizeOf = (config) => 2 * Object.values(shapes(config)).reduce((sum, shape) => sum + count(shape), 0);
const damaged = (how) => new Error(`${TENSORS} is damaged: ${how}; ${AGAIN}`);
const foreign = () => new Error(`${TENSORS} does not hold the tensors of the network in ${CONFIG}`);

/** The tensors of a safetensors file, {name: Uint16Array of float16}; every name, type, shape and place is checked. */
async function read(buffer, config, sha256) {
    const start = new TextDecoder().decode(new Uint8Array(buffer, 0, Math.min(buffer.byteLength, 40)));
    if (start.startsWith("version https://git-lfs")) throw new Error(`${TENSORS} is a pointer of git-lfs, not the file itself`);
    if (buffer.byteLength < 8) throw damaged("it is cut short");
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    if (length > LARGEST_HEADER) throw damaged("it does not begin as a safetensors file");
    if (8 + length > buffer.byteLength) throw damaged("it is cut short");
    let header;
    try {
        header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
        delete header.__metadata__;
    } catch {
        throw damaged("its header cannot be read");
    }
    const expected = shapes(config), names = Object.keys(expected);
    if (names.length !== Object.keys(header).length || !names.every((name) => Object.hasOwn(header, name))) throw foreign();
    const tensors = {};
    let end = 0;
    for (const name of names.sort((a, b) => header[a]?.data_offsets?.[0] - header[b]?.data_offsets?.[0])) {
        const { dtype, shape, data_offsets } = header[name] ?? {};
        if (dtype !== "F16") throw new Error(`${name} of ${TENSORS} is ${shown(dtype)}, where float16 is expected`);
        if (JSON.stringify(shape) !== JSON.stringify(expected[name])) throw foreign();
        const [first, last] = Array.isArray(data_offsets) ? data_offsets : [];
        if (first !== end || last !== first + 2 * count(shape)) throw damaged("its tensors overlap or leave gaps");
        end = last;
    }
    if (8 + length + end > buffer.byteLength) throw damaged("it is cut short");
    if (8 + length + end < buffer.byteLength) throw damaged("it is too long");
    if (sha256 && crypto.subtle) { // which browsers only have on https and on localhost
        const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
        const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
        if (found !== sha256) throw damaged(`its sha256 differs from the one in ${METRICS}`);
    }
    for (const name of names) {
        const [first, last] = header[name].data_offsets;
        tensors[name] = new Uint16Array(buffer.slice(8 + length + first, 8 + length + last));
    }
    return tensors;
}
