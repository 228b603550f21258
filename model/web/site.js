// The script of the static page. Networks draw in workers (worker.js), and the custom elements of model/page/ show the
// results.

import { timeGrid, toPixels } from "./flow.js";
import { noise } from "./noise.js";
import { KINDS } from "./weights.js";
import "./walk.js";

const AREA = 28 * 28;
const PATIENCE = 300; // milliseconds without a new picture after which a drag lets the outdated drawing finish
const WALKING_STEPS = 4; // at most, so that the digit keeps up with the pointer
const HELPERS = Math.max(1, Math.min(4, (navigator.hardwareConcurrency || 2) - 1)); // engines besides the first
const HUB = "https://huggingface.co/";
const REPOSITORY = /^(\w[\w.-]*\/\w[\w.-]*)(?:@(\w[\w./-]*))?$/; // as in model/hub.py
const SIMD = [ // a module of one function with i8x16.splat
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];

const $ = id => document.getElementById(id);
const settings = JSON.parse($("settings").textContent), {most} = settings;
const asked = new URLSearchParams(location.search);

let {kind, classes, sampling} = settings; // those of the loaded weights
let repository = ""; // other weights on the Hub, from the link
let tab = "digit";

// ---- engines

// A worker with its own network. It draws one thing at a time: a new drawing cancels the last one.
class Engine {
    #worker = new Worker(new URL("worker.js", import.meta.url), {type: "module"});
    #id = 0;
    #drawing = null;
    isReady = false;
    drawn = Promise.resolve(); // settled when nothing is being drawn

    // `weights` and `partner` as for the worker; `ready` resolves to {config, sampling} of the weights, or rejects with
    // an Error with one sentence.
    constructor(weights, onProgress = () => {}, partner = undefined) {
        this.ready = new Promise((resolve, reject) => {
            this.#worker.onmessage = ({data}) => {
                const drawing = this.#drawing?.id === data.id ? this.#drawing : null;
                if (data.kind === "progress") onProgress(data);
                else if (data.kind === "ready") resolve(data);
                else if (data.kind === "state") drawing?.onState(data);
                else if (data.kind === "done") drawing?.resolve(true);
                else if (data.kind === "error") (drawing?.reject ?? reject)(new Error(data.message));
            };
            this.#worker.onerror = () => reject(new Error("The network did not start; reload the page"));
        });
        this.ready.then(() => this.isReady = true, () => {}); // errors are handled by those who await `ready`
        const ports = [weights, partner].filter(value => value instanceof MessagePort);
        this.#worker.postMessage({kind: "load", weights, partner}, ports);
    }

    // Resolves to true after the last state, and to false as soon as a newer drawing cancels this one.
    draw(wanted, onState) {
        const id = ++this.#id;
        this.#drawing?.resolve(false);
        return this.drawn = new Promise((resolve, reject) => {
            this.#drawing = {id, onState, resolve, reject};
            this.#worker.postMessage({kind: "draw", id, ...wanted});
        });
    }

    // Stop a drawing, if it is not an older one.
    stop(drawing = this.drawn) {
        if (drawing !== this.drawn) return;
        this.#drawing?.resolve(false);
        this.#drawing = null;
        this.#worker.postMessage({kind: "stop"});
    }

    end() {
        this.#worker.terminate();
    }
}

let first; // the main engine
let place; // the URL of its weights
let helpers = []; // more engines, created on demand; one is the partner of the first

async function withHelpers() {
    while (helpers.length < HELPERS) helpers.push(new Engine(place));
    await Promise.all(helpers.map(({ready}) => ready));
    return helpers;
}

// All engines not busy with a sheet.
async function team() {
    if (!sheet.running) await withHelpers();
    return sheet.running ? [first] : [first, ...helpers];
}

// An empty film; see film.js.
function emptyFilm({digits, seeds, steps, guidance}) {
    const size = digits.length * AREA, {time_shift} = sampling;
    return {
        digits, seeds, steps, guidance, time_shift, kind, times: timeGrid(steps, time_shift), count: 0,
        noisy: new Uint8Array((steps + 1) * size), predicted: new Uint8Array((steps + 1) * size),
        velocity: new Uint8Array(steps * size),
    };
}

// Draw digits from noise to image, split across engines; returns the film, or null if a newer drawing cancelled it.
// `onGrowth` is called for every state that all engines have reached. `wanted.film` requests predicted images and
// velocities, which cost a flow map more work.
async function drawFilm(engines, wanted, onGrowth = () => {}) {
    const film = emptyFilm(wanted), {digits, seeds, steps, guidance, time_shift} = film, count = digits.length;
    const share = Math.ceil(count / engines.length), reached = new Array(Math.ceil(count / share)).fill(0);
    const alone = reached.length > 1 || sheet.running; // the partner has work of its own
    const parts = reached.map((_, part) => {
        const begin = part * share, end = begin + share;
        const labels = digits.slice(begin, end).map(name => classes.indexOf(name));
        const its = {labels, seeds: seeds.slice(begin, end), steps, guidance, time_shift, film: wanted.film, alone};
        return engines[part].draw(its, state => {
            const at = (state.i * count + begin) * AREA;
            film.noisy.set(state.x, at);
            if (state.predicted) film.predicted.set(state.predicted, at);
            if (state.velocity) film.velocity.set(state.velocity, at);
            reached[part] = state.i + 1;
            if (Math.min(...reached) === film.count) return;
            film.count = Math.min(...reached);
            onGrowth(film);
        });
    });
    const stop = () => parts.forEach((part, i) => engines[i].stop(part)); // a newer drawing took an engine
    const areDone = await Promise.all(parts.map(async part => await part || stop()));
    return areDone.every(Boolean) ? film : null;
}

// ---- controls

const field = name => document.querySelector(`input[name=${name}]:is(:checked, [type=number], [type=text])`);

// The subject of the page: class, seed, steps, the guidance used, and the guidance asked for.
const subject = () => ({
    digit: field("digit").value,
    seed: +field("seed").value, steps: +field("steps").value,
    guidance: KINDS[kind].nearestGuidance(+field("guidance").value), asked: +field("guidance").value,
});

const chosen = {}; // the values that the visitor has changed

// Set controls to values of a subject, clamped to their ranges; invalid values are ignored.
function set({digit, ...numbers}) {
    const button = document.querySelector(`[name=digit][value="${CSS.escape(digit ?? "")}"]`);
    if (button) button.checked = true;
    for (const name of ["seed", "steps", "guidance"]) {
        const text = String(numbers[name] ?? "").trim(), number = field(name);
        const isOne = name === "guidance" ? text !== "" && Number.isFinite(+text) : /^[+-]?\d+$/.test(text);
        if (isOne) number.value = Math.min(Math.max(+text, number.min), number.max);
        digits.level(number);
    }
}

// Show a message beside a field, or remove it.
function problem(name, sentence) {
    const input = field(name) ?? document.querySelector(`[name=${name}]`), box = input.closest("[data-field], .line");
    const words = box.querySelector(".problem") ??
        box.appendChild(digits.make("p", {className: "problem", role: "alert"}));
    if (words.textContent !== sentence) words.textContent = sentence;
    if (sentence) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    if (sentence && box.closest("details")) box.closest("details").open = true;
    return !sentence;
}

// Whether a number is valid; otherwise shows a message beside it. `count` digits have consecutive seeds.
function fits(name, count = 1) {
    const input = field(name), whole = Number.isInteger(+input.step), {min} = input;
    const max = name === "seed" ? most.seed - count + 1 : +input.max, value = input.valueAsNumber;
    const ok = value >= min && value <= max && (!whole || Number.isInteger(value));
    const label = name[0].toUpperCase() + name.slice(1);
    return problem(name, ok ? "" : `${label} must be a ${whole ? "whole " : ""}number from ${min} to ${max}.`);
}

const ready = (count = 1) => fits("seed", count) & fits("steps") & fits("guidance"); // not &&: show all messages

// Radio buttons or checkboxes for the classes, in an even grid.
function choices(group, type, name, chosen) {
    group.classList.toggle("wide", classes.some(name => name.length > 5));
    group.querySelector("div").replaceChildren(...classes.map(value => digits.make("label", {},
        digits.make("input", {type, name, value, checked: chosen.includes(value)}), digits.make("span", {}, value))));
}

function fillControls() {
    const {start} = settings, digit = classes.includes(start.digit) ? start.digit : classes[0];
    for (const [name, max] of Object.entries({...most, count: most.sheet})) {
        for (const input of document.querySelectorAll(`[name=${name}], [data-for=${name}]`)) {
            if (input.type !== "text") input.max = max;
        }
    }
    choices(document.querySelector("[data-field=digit]"), "radio", "digit", [digit]);
    choices(document.querySelector("[data-field=classes]"), "checkbox", "classes", classes.slice(0, 10));
    $("write").hidden = !settings.numerals.every((name, i) => classes[i] === name);
    $("number-hint").textContent =
        `1 to ${most.number} digits, each from its own seed; dots and dashes are ignored.`;
    $("blank").hidden = !classes.includes("black");
    $("tab-walk").hidden = kind !== "flow map"; // other networks are too slow
    $("all-words").textContent = `All ${Math.min(10, classes.length)} classes`;
    set({digit, seed: start.seed, ...sampling});
    set({...Object.fromEntries(asked), ...chosen});
    digits.level(field("count"));
}

// ---- messages and the address bar

const names = ["film", "arrows", "columns", "styles", "row", "sheet", "stroll"];
const elements = Object.fromEntries(names.map(id => [id, $(id)]));

const say = text => $("news").textContent = text;

// Announce what was drawn, with a note if the guidance used differs from the one asked for.
function sayDrawn(text, {guidance, asked}) {
    const note = `Drawn at guidance ${guidance}: this network does not support values between 0 and ${guidance}.`;
    say(guidance === asked ? `${text}.` : `${text}. ${note}`);
}

const fail = error => $("failure").textContent = `${error.message}.`;
const since = began => `${((performance.now() - began) / 1000).toFixed(2)} s`;
const named = ({digit, seed, guidance}) => `${guidance === 0 ? "Any class" : digits.named(digit)} from seed ${seed}`;

// Links in the elements keep the weights.
const linkOf = digits.link;
digits.link = digit => linkOf(digit) + (repository ? `&weights=${repository}` : "");

// Make the address bar show what was drawn.
function follow(shown) {
    $("failure").textContent = "";
    const link = digits.link(shown) + (tab === "numbers" && written ? `&number=${written}` : "")
        + (tab === "walk" ? `&walk=${elements.stroll.place}` : "");
    try {
        history.replaceState(null, "", link);
    } catch { /* blocked in some frames */ }
}

// ---- tab Digit

const digit = {busy: false, waiting: false, shown: 0}; // shown: the time of the last picture

// The film of a digit: the current one if it matches, else a new one; null if a newer drawing cancels it.
function filmOf(wanted) {
    const {film} = elements.film, grown = film => elements.film.film = film;
    const isThere = film && film.count === film.times.length && film.digits[0] === wanted.digit
        && film.seeds[0] === wanted.seed && film.steps === wanted.steps && film.guidance === wanted.guidance;
    const one = {...wanted, digits: [wanted.digit], seeds: [wanted.seed], film: true};
    return isThere ? film : drawFilm([first], one, grown);
}

// Draw the digit; while a value is being `dragged`, the picture is updated in place.
async function drawDigit(dragged = false) {
    if (!ready()) return;
    if (dragged && digit.busy && performance.now() - digit.shown > PATIENCE) { // else a long drag would show nothing
        digit.waiting = true;
        return;
    }
    const wanted = subject(), began = performance.now();
    Object.assign(digit, {busy: true, waiting: false});
    try {
        if (!await filmOf(wanted)) return;
        Object.assign(digit, {busy: false, shown: performance.now()});
        $("heading").textContent = named(wanted);
        sayDrawn(`${digits.alt(wanted)}, in ${since(began)}`, wanted);
        follow(wanted);
        if (digit.waiting) drawDigit(true);
    } catch (error) {
        digit.busy = false;
        fail(error);
    }
}

// Show the digit's noise while the network is loading.
function showNoise() {
    if (!ready()) return;
    const wanted = subject(), film = emptyFilm({...wanted, digits: [wanted.digit], seeds: [wanted.seed]});
    film.noisy.set(toPixels(noise(wanted.seed), ...settings.pixels));
    film.predicted.fill(127);
    film.count = 1;
    elements.film.film = film;
    $("heading").textContent = named(wanted);
}

// ---- tab Walk

// The digit at the point between four noises, and the corners; up to two engines draw.
function walk() {
    const {stroll} = elements, {time_shift} = sampling;
    if (!ready(4)) return stroll.end();
    const wanted = subject(), {digit, seed, guidance} = wanted, steps = Math.min(wanted.steps, WALKING_STEPS);
    const seeds = [0, 1, 2, 3].map(i => seed + i), labels = [classes.indexOf(digit)];
    const draw = async (engine, noise) => {
        let newest;
        const isDone = await engine.draw({labels, noise, steps, guidance, time_shift}, ({x}) => newest = x);
        return isDone && newest;
    };
    const alt = guidance === 0 ? "An image of any class" : `The ${digits.named(digit)}`;
    const engines = () => [first, ...sheet.running ? [] : helpers.filter(({isReady}) => isReady).slice(0, 1)];
    stroll.begin({seeds, noises: seeds.map(noise), alt, engines, draw, fail});
}

$("stroll").addEventListener("digit-walk", ({detail: {rate}}) => {
    const wanted = subject(), steps = Math.min(wanted.steps, WALKING_STEPS);
    const text = `${digits.alt({...wanted, steps}).replace(/ from the noise of seed \d+$/, "")} between four noises`;
    sayDrawn(rate > 1.5 ? `${text}: ${rate.toFixed(0)} digits a second` : text, wanted);
    follow(wanted);
});

// ---- tab Why it works

let explanation = 0; // the number of the latest

// Show one step, the comparison of steps, and ten digits from one noise, in that order.
async function explain() {
    if (!ready()) return;
    const mine = ++explanation, wanted = subject(), isOld = film => !film || mine !== explanation;
    const ten = classes.slice(0, 10), rows = $("all").checked ? ten : [wanted.digit], columns = [];
    const seeds = names => names.map(() => wanted.seed);
    try {
        const film = await filmOf(wanted);
        if (isOld(film)) return;
        $("heading").textContent = named(wanted);
        elements.arrows.film = film;
        const engines = await team();
        for (const steps of settings.stepCounts) {
            const began = performance.now();
            const film = await drawFilm(engines, {...wanted, digits: rows, seeds: seeds(rows), steps});
            if (isOld(film)) return;
            const pixels = film.noisy.slice(-rows.length * AREA), milliseconds = performance.now() - began;
            columns.push({steps, pixels, milliseconds: [milliseconds]});
            elements.columns.steps = {...film, seed: wanted.seed, columns: [...columns]};
        }
        const styles = await drawFilm(engines, {...wanted, digits: ten, seeds: seeds(ten)});
        if (isOld(styles)) return;
        elements.styles.film = few(styles);
        sayDrawn(`${named(wanted)}, in ${settings.stepCounts.join(", ")} steps`, wanted);
        follow(wanted);
    } catch (error) {
        fail(error);
    }
}

// Reduce a film to at most six states.
function few(film) {
    const count = Math.min(6, film.times.length), size = film.digits.length * AREA;
    const kept = Array.from({length: count}, (_, i) => Math.round(i * (film.times.length - 1) / (count - 1)));
    const noisy = new Uint8Array(count * size);
    kept.forEach((state, i) => noisy.set(film.noisy.subarray(state * size, (state + 1) * size), i * size));
    return {...film, noisy, times: kept.map(state => film.times[state])};
}

// ---- tab Numbers

let written = ""; // the number in the row, also while it is being drawn
let writing = 0; // counts the drawings of a number

async function writeNumber() {
    const number = field("number").value.replace(/[\s./-]/g, "");
    const fine = /^\d+$/.test(number) && number.length <= most.number;
    problem("number", fine ? "" : `Number must be 1 to ${most.number} digits.`);
    if (!fine || !ready(number.length)) return;
    const wanted = subject(), began = performance.now(), names = [...number];
    const seeds = names.map((_, i) => wanted.seed + i);
    const mine = ++writing, grown = film => {
        if (mine !== writing) return; // a newer number may need fewer engines
        elements.row.hidden = false;
        elements.row.film = film;
    };
    written = number;
    try {
        if (!await drawFilm(await team(), {...wanted, digits: names, seeds}, grown)) return;
        sayDrawn(`${number}, drawn in ${since(began)}`, wanted);
        follow(wanted);
    } catch (error) {
        fail(error);
    }
}

const sheet = {running: false, newest: 0};

async function drawSheet() {
    const chosen = [...document.querySelectorAll("[name=classes]:checked")].map(({value}) => value);
    if (!problem("classes", chosen.length ? "" : "Choose at least one class.") || !fits("count")) return;
    const wanted = subject(), {seed, steps, guidance} = wanted, began = performance.now();
    const total = +field("count").value;
    if (!ready(total)) return;
    stopSheet();
    const mine = ++sheet.newest, names = Array.from({length: total}, (_, i) => chosen[i % chosen.length]);
    const seeds = names.map((_, i) => seed + i);
    const pixels = new Uint8Array(total * AREA), done = new Uint8Array(total);
    const columns = Math.min(total, 10 * Math.max(1, Math.round(Math.sqrt(total / 100)))); // as images.columns
    const labels = names.map(name => classes.indexOf(name)), {time_shift} = sampling;
    let begun = 0, finished = 0;
    const show = () => { // the finished digits, up to the first unfinished one
        while (done[finished]) finished++;
        elements.sheet.hidden = false;
        elements.sheet.sheet = {
            digits: names, seeds, labels, steps, guidance, time_shift, total, columns,
            pixels: pixels.slice(0, finished * AREA),
        };
    };
    const work = async engine => {
        await engine.drawn; // finish its current drawing, such as a number
        while (begun < total && mine === sheet.newest) {
            const i = begun++;
            const film = await drawFilm([engine], {digits: [names[i]], seeds: [seeds[i]], steps, guidance});
            if (!film || mine !== sheet.newest) return;
            pixels.set(film.noisy.subarray(-AREA), i * AREA);
            done[i] = 1;
            show();
        }
    };
    sheet.running = true;
    $("stop").disabled = false;
    try {
        show();
        await Promise.all((await withHelpers()).map(work));
        if (mine === sheet.newest) sayDrawn(`${total} digits, drawn in ${since(began)}`, wanted);
    } catch (error) {
        fail(error);
    } finally {
        if (mine === sheet.newest) ended();
    }
}

function ended() {
    sheet.running = false;
    $("stop").disabled = true;
}

// The finished digits stay and can be saved.
function stopSheet() {
    if (!sheet.running) return;
    sheet.newest++;
    for (const engine of helpers) engine.stop();
    ended();
    say("Stopped.");
}

// ---- event handlers

let loaded = false;

// Draw the content of the open tab; `dragged` while a value is being dragged.
function draw(dragged = false) {
    if (!loaded) return showNoise();
    if (tab === "digit") drawDigit(dragged);
    else if (tab === "walk") walk();
    else if (tab === "why") explain();
    else if (written) writeNumber();
    else ready();
}

function openTab(name) {
    for (const button of tabs) {
        const chosen = button.id === `tab-${name}`;
        button.setAttribute("aria-selected", chosen);
        button.tabIndex = chosen ? 0 : -1;
        $(button.getAttribute("aria-controls")).hidden = !chosen;
    }
    tab = name;
    explanation++; // cancels the running one
    elements.stroll.end();
}

digits.controls($("panel"), ({name, value}) => {
    chosen[name] = value;
    draw(name === "steps" || name === "guidance");
});
digits.controls($("write"));
digits.controls($("many"));
$("write").addEventListener("submit", writeNumber);
$("many").addEventListener("submit", drawSheet);
$("stop").onclick = stopSheet;
$("all").onchange = () => draw();

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const button of tabs) {
    button.onclick = () => {
        if (button.id === `tab-${tab}`) return;
        openTab(button.id.slice(4));
        say("");
        draw();
    };
    button.onkeydown = event => {
        const there = tabs.filter(tab => !tab.hidden), at = there.indexOf(button);
        const to = {ArrowLeft: at - 1, ArrowRight: (at + 1) % there.length, Home: 0, End: -1}[event.key];
        if (to === undefined) return;
        event.preventDefault();
        there.at(to).click();
        there.at(to).focus();
    };
}

// Another seed, requested anywhere on the page.
document.addEventListener("digit-noise", ({detail}) => {
    set(detail);
    draw();
});

// A digit anywhere on the page opens in the first tab.
document.addEventListener("digit-open", event => {
    event.preventDefault();
    set(event.detail);
    openTab("digit");
    draw();
    $("heading").focus();
    scrollTo(0, 0);
});

// ---- weights

// Start the first engine with the weights in a folder, and its partner; resolves to the weights' settings.
function load(folder) {
    place = folder;
    first?.end();
    for (const engine of helpers.splice(0)) engine.end();
    const {port1, port2} = navigator.hardwareConcurrency > 1 ? new MessageChannel() : {};
    first = new Engine(folder, ({got, total}) => {
        Object.assign($("progress"), {max: total, value: got});
        $("arrived").textContent = `Loading the network: ${(got / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
    }, port1);
    if (port2) {
        const partner = new Engine(port2);
        helpers.push(partner);
        partner.ready.catch(() => helpers = helpers.filter(engine => engine !== partner)); // the first works without it
    }
    return first.ready;
}

// The URL of a folder on the Hub, for USER/NAME or USER/NAME@commit.
function onHub(name) {
    const [, repository, revision = "main"] = name.includes("..") ? [] : REPOSITORY.exec(name) ?? [];
    if (!repository) throw new Error("the name must be USER/NAME or USER/NAME@commit");
    return `${HUB}${repository}/resolve/${revision}/`;
}

async function loadForeign(name) {
    try {
        const {config, sampling: defaults} = await load(onHub(name));
        [kind, classes, sampling, repository] = [config.kind, config.class_names, defaults, name];
        fillControls();
    } catch (error) {
        $("notice").textContent = "Drawn with the weights of this page, because " +
            `${name.slice(0, 60)} cannot be used: ${error.message}.`;
    }
}

async function start() {
    const own = new URL(`${settings.weights}/`, document.baseURI).href, others = asked.get("weights");
    const isAble = WebAssembly.validate(Uint8Array.from(SIMD));
    const loading = isAble && (others ? loadForeign(others) : load(own));
    fillControls(); // while the network is loading
    showNoise();
    if (!isAble) throw new Error("This browser is too old: the network needs WebAssembly with SIMD (2023 or later)");
    await loading;
    if (others && !repository) await load(own);
    loaded = true;
    $("loading").hidden = true;
    const source = repository || settings.source;
    const link = digits.make("a", {href: HUB + source.replace("@", "/tree/")}, source);
    $("about").replaceChildren("Everything is drawn in your browser, and nothing leaves it.",
        ...source ? [" Weights: ", link, "."] : []);
    if (asked.has("number") && !$("write").hidden) {
        field("number").value = asked.get("number");
        openTab("numbers");
        await writeNumber();
    } else if (asked.has("walk") && !$("tab-walk").hidden) {
        const place = asked.get("walk").split(",").map(Number);
        if (place.length === 2 && place.every(Number.isFinite)) elements.stroll.place = place;
        openTab("walk");
        walk();
    } else if (tab === "digit") await drawDigit();
    else draw(); // the visitor opened another tab meanwhile
}

// The service worker caches the page for the next visit, also offline.
async function keep() {
    try {
        await navigator.serviceWorker?.register("sw.js");
    } catch { /* blocked in some frames, and without HTTPS */ }
}

start().then(keep, error => {
    $("loading").hidden = true;
    fail(error);
});
