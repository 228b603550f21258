// <digit-walk>: a plane whose corners are four noises. Drag the point between them, and every mixture becomes a digit.
//
// `begin({seeds, noises, alt, engines, draw, fail})` draws the corners and the digit at `place`: four seeds and their
// noises in reading order, the name of the digit, a function that returns the available engines, `draw(engine, noise)`
// that returns a promise of a digit [784], or of a falsy value if the drawing was dropped, and a callback for errors.
// Each engine draws one digit at a time, always at the newest place, without a queue. `end()` stops drawing. The event
// "digit-walk" fires when the point comes to rest; its `detail.rate` is the number of digits shown per second while it
// moved, or 0 after a single one.

import { slerp } from "./flow.js";

const {make, canvas, paint} = digits;
const REST = 300; // milliseconds without a new digit
const STEP = 0.02, LEAP = 0.1; // per press of an arrow key, without and with Shift
const CORNERS = [[0, 0], [1, 0], [0, 1], [1, 1]];
const KEYS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const within = value => Math.min(Math.max(value, 0), 1);

// The noise at a place [x, y] between four noises, both coordinates from 0 to 1.
const mixed = ([a, b, c, d], [x, y]) => slerp(slerp(a, b, x), slerp(c, d, x), y);

class DigitWalk extends HTMLElement {
    #place = [0.5, 0.5];
    #scene = null;
    #busy = new Set(); // engines
    #moves = 0; // number of moves of the point; below, the last move for which a digit was begun and shown
    #begun = 0;
    #shown = 0;
    #times = []; // when the digits of this movement were shown
    #timer = 0;

    connectedCallback() {
        if (this.firstChild) return;
        this.corners = CORNERS.map(() => canvas("A corner"));
        this.names = CORNERS.map(() => make("span"));
        this.point = make("span", {className: "walk-point"});
        this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        this.lines.setAttribute("viewBox", "0 0 1 1");
        const corner = (picture, i) => make("div", {className: "walk-corner"}, picture, this.names[i]);
        this.field = make("div", {className: "walk-field"}, this.lines, ...this.corners.map(corner), this.point);
        this.plane = make("div", {
            className: "walk-plane", tabIndex: 0, role: "slider", "aria-label": "Place between the four noises",
            "aria-valuemin": 0, "aria-valuemax": 100, "aria-describedby": "walk-hint",
        }, this.field);
        this.large = canvas("The digit at this place", "walk-digit");
        this.append(make("div", {className: "walk-stage"}, this.plane, this.large),
            make("p", {id: "walk-hint", className: "hint"}, "Drag the point, or move it with the arrow keys."));
        this.plane.addEventListener("pointerdown", event => {
            if (event.button) return;
            this.plane.setPointerCapture(event.pointerId);
            this.#follow(event);
        });
        this.plane.addEventListener("pointermove", event => {
            if (this.plane.hasPointerCapture(event.pointerId)) this.#follow(event);
        });
        this.plane.addEventListener("keydown", event => {
            const way = KEYS[event.key];
            if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
            event.preventDefault();
            this.place = this.#place.map((value, axis) => value + way[axis] * (event.shiftKey ? LEAP : STEP));
        });
        this.#showPlace();
    }

    // [x, y] from 0 to 1, from left to right and from top to bottom.
    get place() {
        return this.#place;
    }

    set place(place) {
        const next = place.map(value => +within(value).toFixed(3));
        if (String(next) === String(this.#place)) return;
        this.#place = next;
        this.#showPlace();
        this.#draw();
    }

    begin(scene) {
        this.#scene = {...scene, waiting: [0, 1, 2, 3]}; // corners
        this.names.forEach((name, i) => name.textContent = `seed ${scene.seeds[i]}`);
        this.corners.forEach((corner, i) =>
            corner.setAttribute("aria-label", `${scene.alt} of seed ${scene.seeds[i]}`));
        this.large.setAttribute("aria-label", `${scene.alt} between the noises of the seeds ${scene.seeds.join(", ")}`);
        this.#draw();
    }

    end() {
        this.#scene = null;
        clearTimeout(this.#timer);
    }

    #follow({clientX, clientY}) {
        const {left, top, width, height} = this.field.getBoundingClientRect();
        this.place = [(clientX - left) / width, (clientY - top) / height];
    }

    #showPlace() {
        const [x, y] = this.#place, percent = value => `${Math.round(100 * value)}%`;
        this.plane.setAttribute("aria-valuenow", Math.round(100 * x));
        this.plane.setAttribute("aria-valuetext", `${percent(x)} to the right, ${percent(y)} down`);
        Object.assign(this.point.style, {left: `${100 * x}%`, top: `${100 * y}%`});
        this.lines.innerHTML = CORNERS.map(([right, down]) => {
            const share = (right ? x : 1 - x) * (down ? y : 1 - y);
            return `<line x1="${right}" y1="${down}" x2="${x}" y2="${y}" opacity="${Math.sqrt(share)}"/>`;
        }).join("");
    }

    #draw() {
        this.#moves++;
        for (const engine of this.#scene?.engines() ?? []) this.#work(engine);
    }

    // Draw with an engine until nothing is left to draw.
    async #work(engine) {
        if (this.#busy.has(engine)) return;
        this.#busy.add(engine);
        try {
            for (let task; (task = this.#next()); ) {
                const digit = await task.scene.draw(engine, task.noise);
                if (digit) task.show(digit);
            }
        } catch (error) {
            this.#scene?.fail(error);
        } finally {
            this.#busy.delete(engine);
        }
    }

    // The next task: first the digit at the newest place, then the corners.
    #next() {
        const scene = this.#scene, move = this.#moves;
        if (scene && this.#begun < move) {
            this.#begun = move;
            return {scene, noise: mixed(scene.noises, this.#place), show: digit => this.#show(digit, move)};
        }
        if (!scene?.waiting.length) return null;
        const corner = scene.waiting.shift();
        const show = digit => scene === this.#scene && paint(this.corners[corner], digit);
        return {scene, noise: scene.noises[corner], show};
    }

    // Show the digit of a move, unless that of a later move is shown already.
    #show(digit, move) {
        if (move <= this.#shown) return;
        this.#shown = move;
        this.pixels = digit;
        paint(this.large, digit);
        this.#times.push(performance.now());
        clearTimeout(this.#timer);
        if (this.#scene) this.#timer = setTimeout(() => this.#rest(), REST);
    }

    #rest() {
        if (this.#shown < this.#moves) return; // a slow digit is still to come
        const count = this.#times.length - 1, rate = count ? 1000 * count / (this.#times.at(-1) - this.#times[0]) : 0;
        this.#times = [];
        this.dispatchEvent(new CustomEvent("digit-walk", {detail: {rate}, bubbles: true}));
    }
}

customElements.define("digit-walk", DigitWalk);
