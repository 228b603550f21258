// The page: controls in, pictures out. The networks draw in workers, and the elements of model/page/ show what they draw.

import { timeGrid, toPixels } from "./flow.js";
import { noise } from "./noise.js";

const AREA = 28 * 28;
const BATCH = 10; // digits of a sheet that an engine draws at once
const PATIENCE = 300; // milliseconds without a new picture after which a drawing may end although it is outdated
const HELPERS = Math.max(1, Math.min(4, (navigator.hardwareConcurrency || 2) - 1)); // engines beside the first
const HUB = "https://huggingface.co/";
const REPOSITORY = /^(\w[\w.-]*\/\w[\w.-]*)(?:@(\w[\w./-]*))?$/; // as model/hub.py
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

const $ = id => document.getElementById(id);
const settings = JSON.parse($("settings").textContent), {most} = settings;
const controls = $("controls"), query = new URLSearchParams(location.search);
const elements = {film: $("film"), row: $("row"), columns: $("columns"), sheet: $("sheet")};

let {classes, sampling} = settings; // those of the weights that draw
let foreign = ""; // the repository of other weights, from the link

// ---- engines

// A worker with a network of its own. It draws one thing at a time: whatever comes later drops what came before.
class Engine {
    #worker = new Worker(new URL("worker.js", import.meta.url), {type: "module"});
    #id = 0;
    #drawing = null;

    // `ready` resolves to {config, sampling}, or is rejected with an Error of one sentence.
    constructor(weights, onProgress = () => {}) {
        this.ready = new Promise((resolve, reject) => {
            this.#worker.onmessage = ({data}) => {
                const current = this.#drawing && this.#drawing.id === data.id ? this.#drawing : null;
                if (data.kind === "progress") onProgress(data);
                else if (data.kind === "ready") resolve(data);
                else if (data.kind === "state") current?.onState(data);
                else if (data.kind === "done") current?.resolve(true);
                else if (data.kind === "error") (current?.reject ?? reject)(new Error(data.message));
            };
            this.#worker.onerror = () => reject(new Error("The network cannot be started; reload the page"));
        });
        this.ready.catch(() => {}); // whoever waits for it hears of it
        this.#worker.postMessage({kind: "load", weights});
    }

    // Resolves to true once all states have come, and to false when something newer has dropped them.
    async draw(asked, onState) {
        const id = ++this.#id;
        this.#drawing?.resolve(false);
        return new Promise((resolve, reject) => {
            this.#drawing = {id, onState, resolve, reject};
            this.#worker.postMessage({kind: "draw", id, ...asked});
        });
    }

    stop() {
        this.#drawing?.resolve(false);
        this.#drawing = null;
        this.#worker.postMessage({kind: "stop"});
    }

    end() {
        this.#worker.terminate();
    }
}

let first; // the engine that draws as soon as it is there
let address; // of its weights
const helpers = []; // more of them, made when there is work for them

function helpersReady() {
    while (helpers.length < HELPERS) helpers.push(new Engine(address));
    return Promise.all(helpers.map(({ready}) => ready));
}

// All engines that are not busy with a sheet.
async function team() {
    if (sheet.running) return [first];
    await helpersReady();
    return sheet.running ? [first] : [first, ...helpers];
}

// Draw digits from noise to image, each engine its share: a film, or null when something newer has dropped it.
// `onGrowth` hears of each state that all of them have reached.
async function drawFilm(engines, {digits, seeds, steps, guidance}, onGrowth = () => {}) {
    const film = emptyFilm({digits, seeds, steps, guidance}), count = digits.length;
    const share = Math.ceil(count / engines.length), reached = [];
    const parts = engines.map(async (engine, part) => {
        const begin = part * share, end = Math.min(begin + share, count);
        if (begin >= end) return true;
        reached[part] = 0;
        const asked = {
            labels: digits.slice(begin, end).map(name => classes.indexOf(name)), seeds: seeds.slice(begin, end),
            steps, guidance, time_shift: film.time_shift,
        };
        return engine.draw(asked, state => {
            const at = (state.i * count + begin) * AREA;
            film.noisy.set(state.x, at);
            film.predicted.set(state.predicted, at);
            if (state.velocity) film.velocity.set(state.velocity, at);
            reached[part] = state.i + 1;
            const least = Math.min(...reached.filter(states => states !== undefined));
            if (least > film.count && reached.length >= Math.ceil(count / share)) {
                film.count = least;
                onGrowth(film);
            }
        });
    });
    return (await Promise.all(parts)).every(Boolean) ? film : null;
}

function emptyFilm({digits, seeds, steps, guidance}) {
    const size = digits.length * AREA, {time_shift} = sampling;
    return {
        digits, seeds, steps, guidance, time_shift, times: timeGrid(steps, time_shift), count: 0,
        noisy: new Uint8Array((steps + 1) * size), predicted: new Uint8Array((steps + 1) * size),
        velocity: new Uint8Array(steps * size),
    };
}

// ---- the subject: one digit, seed, number of steps and guidance for the whole page

function subject() {
    const {digit, seed, steps, guidance} = controls;
    return {digit: digit.value, seed: seed.valueAsNumber, steps: +steps.value, guidance: +guidance.value};
}

// Whether the seed is one; says so beside it if not.
function checked(count = 1) {
    const seed = controls.seed.valueAsNumber, last = most.seed - count + 1;
    const fits = Number.isInteger(seed) && seed >= 0 && seed <= last;
    $("seed-fault").textContent = fits ? "" : `The seed must be a whole number from 0 to ${last}.`;
    if (!fits) controls.querySelector("details").open = true;
    return fits;
}

// Show values, each clamped to its range; one that is none leaves the control as it is.
function set(values) {
    if (classes.includes(values.digit)) controls.digit.value = values.digit;
    for (const name of ["seed", "steps", "guidance"]) {
        const value = parseFloat(values[name]);
        if (Number.isNaN(value) || (name !== "guidance" && !/^\d+$/.test(values[name]))) continue;
        controls[name].value = Math.min(Math.max(value, +controls[name].min), +controls[name].max);
    }
    outputs();
}

function outputs() {
    $("steps-value").value = controls.steps.value;
    $("guidance-value").value = +controls.guidance.value;
    $("count-value").value = $("many").count.value;
}

// The query string of a digit or a number; the elements' links go on with the same weights.
const plainLink = digits.link;
digits.link = values => plainLink(values) + (foreign ? `&weights=${foreign}` : "");

function follow() {
    const number = tab === "numbers" && numberShown ? `&number=${numberShown}` : "";
    try {
        history.replaceState(null, "", digits.link(subject()) + number);
    } catch { /* not in every frame */ }
}

function say(text) {
    $("status").textContent = text;
}

function fail(error) {
    $("fault").textContent = `${error.message}.`;
}

const seconds = since => `${((performance.now() - since) / 1000).toFixed(2)} s`;

// ---- tab Digit

let busy = false, waiting = false, shown = 0;

// Draw the digit; of one whose value is `dragged`, the picture changes in place.
async function drawDigit(dragged = false) {
    if (!checked()) return;
    if (dragged && busy && performance.now() - shown > PATIENCE) { // otherwise a long drag would show nothing
        waiting = true;
        return;
    }
    const asked = subject(), began = performance.now();
    waiting = false;
    busy = true;
    try {
        const film = await drawFilm([first], {...asked, digits: [asked.digit], seeds: [asked.seed]}, film => {
            elements.film.film = film;
        });
        if (!film) return;
        busy = false;
        shown = performance.now();
        $("fault").textContent = "";
        say(`${digits.alt(asked)}, in ${seconds(began)}.`);
        follow();
        if (waiting) drawDigit(true);
    } catch (error) {
        busy = false;
        fail(error);
    }
}

// What the digit will be made from, before the network is there.
function showNoise() {
    if (!checked()) return;
    const {digit, seed, steps, guidance} = subject();
    const film = emptyFilm({digits: [digit], seeds: [seed], steps, guidance});
    film.noisy.set(toPixels(noise(seed), 0.5, 0.3081));
    film.predicted.fill(127);
    film.count = 1;
    elements.film.film = film;
}

// ---- tab Steps

let comparison = 0;

async function drawSteps() {
    if (!checked()) return;
    const mine = ++comparison, asked = subject();
    const rows = $("all").checked ? classes.slice(0, 10) : [asked.digit], columns = [];
    try {
        const engines = await team();
        for (const steps of settings.stepCounts) {
            if (mine !== comparison) return;
            const began = performance.now();
            const film = await drawFilm(engines, {...asked, digits: rows, seeds: rows.map(() => asked.seed), steps});
            if (!film || mine !== comparison) return;
            const pixels = film.noisy.slice(-rows.length * AREA), milliseconds = performance.now() - began;
            columns.push({steps, pixels, milliseconds});
            elements.columns.steps = {...film, digits: rows, seed: asked.seed, columns: [...columns]};
        }
        say(`${rows.length > 1 ? "All digits" : digits.named(asked.digit)} in ${settings.stepCounts.join(", ")} steps.`);
        follow();
    } catch (error) {
        fail(error);
    }
}

// ---- tab Numbers

let numberShown = "";

async function drawNumber() {
    const text = $("write").number.value.trim();
    const fits = /^\d+$/.test(text) && text.length <= most.number;
    $("number-fault").textContent = fits || !text ? "" : `A number has 1 to ${most.number} digits and nothing else.`;
    if (!fits || !checked(text.length)) return;
    const asked = subject(), began = performance.now();
    try {
        const film = await drawFilm(await team(), {...asked, digits: [...text],
            seeds: [...text].map((_, i) => asked.seed + i)}, film => {
            elements.row.hidden = false;
            elements.row.film = film;
        });
        if (!film) return;
        numberShown = text;
        say(`${text}, drawn in ${digits.steps?.(asked.steps) ?? asked.steps} steps, in ${seconds(began)}.`);
        follow();
    } catch (error) {
        fail(error);
    }
}

const sheet = {running: false, asked: 0};

async function drawSheet() {
    const form = $("many"), chosen = [...form.querySelectorAll("#chosen :checked")].map(({value}) => value);
    const total = +form.count.value;
    $("sheet-fault").textContent = chosen.length ? "" : "Choose at least one class.";
    if (!chosen.length || !checked(total)) return;
    stopSheet();
    const mine = ++sheet.asked, {seed, steps, guidance} = subject(), began = performance.now();
    const all = Array.from({length: total}, (_, i) => chosen[i % chosen.length]);
    const pixels = new Uint8Array(total * AREA), done = new Uint8Array(total);
    const drawing = {
        digits: all, seeds: all.map((_, i) => seed + i), labels: all.map(name => classes.indexOf(name)), total,
        columns: Math.min(total, 10 * Math.max(1, Math.round(Math.sqrt(total / 100)))), // as images.columns
        steps, guidance, time_shift: sampling.time_shift,
    };
    let next = 0, there = 0;
    sheet.running = true;
    running(true, total);
    const show = () => {
        while (done[there]) there++;
        $("drawn").value = done.reduce((sum, one) => sum + one, 0);
        elements.sheet.hidden = false;
        elements.sheet.sheet = {...drawing, pixels: pixels.slice(0, there * AREA)};
    };
    const work = async engine => {
        while (next < total && mine === sheet.asked) {
            const begin = next, end = next = Math.min(begin + BATCH, total);
            const part = {digits: all.slice(begin, end), seeds: drawing.seeds.slice(begin, end)};
            const film = await drawFilm([engine], {...part, steps, guidance});
            if (!film || mine !== sheet.asked) return;
            pixels.set(film.noisy.subarray(-(end - begin) * AREA), begin * AREA);
            done.fill(1, begin, end);
            show();
        }
    };
    try {
        await helpersReady();
        if (mine !== sheet.asked) return;
        show();
        await Promise.all(helpers.map(work));
        if (mine === sheet.asked) say(`${total} digits in ${seconds(began)}.`);
    } catch (error) {
        $("sheet-fault").textContent = `${error.message}.`;
    } finally {
        if (mine === sheet.asked) {
            sheet.running = false;
            running(false);
        }
    }
}

function stopSheet() {
    if (!sheet.running) return;
    sheet.asked++;
    sheet.running = false;
    for (const engine of helpers) engine.stop();
    running(false);
    say("Stopped.");
}

function running(yes, total = 1) {
    $("halt").disabled = !yes;
    $("drawn").hidden = !yes;
    $("drawn").max = total;
    $("drawn").value = 0;
}

// ---- what the visitor does

let tab = "digit", loaded = false;

// Draw what is on show; `dragged` is a value that is still on the move.
function draw(dragged = false) {
    outputs();
    if (!loaded) return showNoise();
    if (tab === "digit") drawDigit(dragged);
    else if (tab === "steps") drawSteps();
    else if (numberShown) drawNumber();
    else checked();
}

function openTab(name, focus = false) {
    for (const button of document.querySelectorAll("[role=tab]")) {
        const chosen = button.id === `tab-${name}`;
        button.setAttribute("aria-selected", chosen);
        button.tabIndex = chosen ? 0 : -1;
        $(button.getAttribute("aria-controls")).hidden = !chosen;
        if (chosen && focus) button.focus();
    }
    tab = name;
    say("");
    draw();
}

// Radio buttons or checkboxes for the classes, in an even grid.
function buttons(box, type, name, chosen) {
    box.querySelectorAll("label").forEach(label => label.remove());
    box.classList.toggle("long", classes.some(name => name.length > 5));
    box.append(...classes.map(value => digits.make("label", {},
        digits.make("input", {type, name, value, checked: chosen.includes(value)}), digits.make("span", {}, value))));
}

function fillControls() {
    const {start} = settings, {steps, guidance} = sampling;
    const digit = classes.includes(start.digit) ? start.digit : classes[0];
    Object.assign(controls.steps, {max: most.steps});
    Object.assign(controls.guidance, {max: most.guidance});
    Object.assign(controls.seed, {max: most.seed});
    Object.assign($("many").count, {max: most.sheet, value: 100});
    $("write").number.maxLength = most.number;
    buttons($("classes"), "radio", "digit", [digit]);
    buttons($("chosen"), "checkbox", "class", classes.slice(0, 10));
    const numerals = settings.numerals.every((name, i) => classes[i] === name);
    $("write").hidden = !numerals;
    $("all-words").textContent = classes.length >= 10 ? "All ten digits" : "All classes";
    set({digit, seed: String(start.seed), steps: String(steps), guidance: String(guidance)});
    set(Object.fromEntries(query));
}

controls.addEventListener("input", ({target}) => draw(["steps", "guidance"].includes(target.name)));
for (const form of document.forms) form.addEventListener("submit", event => event.preventDefault());
$("write").addEventListener("submit", drawNumber);
$("many").addEventListener("submit", drawSheet);
$("many").addEventListener("input", outputs);
$("halt").onclick = stopSheet;
$("all").onchange = () => draw();
$("dice").onclick = () => {
    controls.seed.value = Math.floor(Math.random() * 10000); // short enough to tell a friend
    draw();
};

$("copy").onclick = async ({target}) => {
    try {
        await navigator.clipboard.writeText(location.href);
        target.textContent = "Link copied";
        setTimeout(() => target.textContent = "Copy link", 1500);
    } catch { // there is no clipboard without HTTPS, and none in the frame of another page
        $("link")?.remove();
        const field = digits.make("input", {id: "link", value: location.href, readOnly: true, "aria-label": "Link to copy"});
        target.parentElement.after(field);
        field.select();
    }
};

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [i, button] of tabs.entries()) {
    button.onclick = () => openTab(button.id.slice(4));
    button.onkeydown = ({key}) => {
        const to = {ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: -1}[key];
        if (to !== undefined) openTab(tabs.at(to % tabs.length).id.slice(4), true);
    };
}

document.addEventListener("digit-open", event => {
    event.preventDefault();
    set(Object.fromEntries(Object.entries(event.detail).map(([name, value]) => [name, String(value)])));
    openTab("digit", true);
    scrollTo(0, 0);
});

// ---- weights

// Start the first engine with the weights at this address, and show the page with what they say of themselves.
async function open(weights) {
    address = weights;
    first = new Engine(address, ({got, total}) => {
        Object.assign($("progress"), {max: total, value: got});
        $("arrived").textContent = `The network arrives: ${(got / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
    });
    const ready = await first.ready;
    return ready;
}

// The folder on the Hub that `?weights=USER/NAME@commit` asks for.
function onHub(name) {
    const [whole, repository, revision = "main"] = REPOSITORY.exec(name) ?? [];
    if (!whole || name.includes("..")) throw new Error("weights must be named USER/NAME or USER/NAME@commit");
    return `${HUB}${repository}/resolve/${revision}/`;
}

async function start() {
    fillControls();
    if (!WebAssembly.validate(Uint8Array.from(SIMD))) {
        throw new Error("This browser has no WebAssembly SIMD; use one from 2023 or later");
    }
    showNoise();
    const bundled = new URL(`${settings.weights}/`, document.baseURI).href, asked = query.get("weights");
    if (asked) {
        try {
            const ready = await open(onHub(asked));
            foreign = asked;
            ({sampling, config: {class_names: classes}} = ready);
            fillControls();
        } catch (error) {
            first?.end();
            $("notice").textContent =
                `Drawn with the page's own weights, because ${asked.slice(0, 60)} could not be loaded: ${error.message}.`;
        }
    }
    if (!foreign) await open(bundled);
    loaded = true;
    $("loading").hidden = true;
    about();
    if (query.has("number")) $("write").number.value = query.get("number");
    if (query.has("number") && !$("write").hidden) {
        openTab("numbers");
        drawNumber();
    } else drawDigit();
}

function about() {
    const source = foreign || settings.source, place = digits.make("a", {href: HUB + source.replace("@", "/tree/")}, source);
    $("about").replaceChildren("Nothing you do here leaves your browser.", ...source ? [" Weights: ", place] : []);
}

start().then(keepOffline, error => {
    $("loading").hidden = true;
    fail(error);
});

// The service worker keeps the page for the next visit, also without a network.
function keepOffline() {
    try {
        navigator.serviceWorker?.register("sw.js").catch(() => {});
    } catch { /* not in every frame */ }
}
