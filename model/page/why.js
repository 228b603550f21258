// Three scenes that show why it works: <digit-arrows> one step, <digit-paths> many, <digit-styles> one noise as ten
// digits. They use film.js and forms.js; their data are a film or come from scenes.py.

{
    const AREA = 28 ** 2;
    const {bytes, button, calm, canvas, cell, isMap, make, paint} = digits;
    const image = (data, i) => data.subarray(i * AREA, (i + 1) * AREA);
    const isDigit = name => /^\d$/.test(name);
    // The requested class within a sentence: a 7, a black image.
    const named = ({digits: [name], guidance}) => guidance === 0 ? "an image of any class"
        : `${name === "8" ? "an" : "a"} ${digits.named(name)}`;
    const inSteps = count => `${count} step${count === 1 ? "" : "s"}`;

    // An element that is built once and then displays its data.
    class Scene extends HTMLElement {
        connectedCallback() {
            if (!this.firstChild) this.build();
        }

        show(data) {
            this.data = data;
            this.update();
        }

        // The text for the kind of network that drew the data.
        ofKind({flow, map}) {
            return isMap(this.data) ? map : flow;
        }
    }

    // ---- one step

    // What a step does, in words and in symbols.
    const MOVES = {
        flow: "One step moves every pixel a little along its arrow; then the network looks again.",
        map: "The arrows turn along the way. This network has learned where following them leads, so one step jumps "
            + "straight there, however far; then the network looks again.",
    };
    const EXACTLY = {
        flow: "In symbols, a step is x + (t′ − t)·v: the picture x, the time t, which runs from 1 to 0, the time "
            + "t′ after the step, and the velocity v, whose opposite the arrows show, as time runs backwards. "
            + "They lead to x − t·v, where each pixel would be if it followed its arrow to the end. From the "
            + "second step on, v is corrected by how it has changed since the step before, like leaning into a "
            + "bend; only the last step goes straight again.",
        map: "In symbols, a step is x + (t′ − t)·u(x, t, t′): the picture x, the time t, which runs from 1 to 0, the "
            + "time t′ after the step, and u, the average velocity on the way from t to t′. The arrows show the "
            + "opposite of u(x, t, t), the velocity at this moment, as time runs backwards. Following them, as they "
            + "turn, leads to x − t·u(x, t, 0), where one jump to the end would land.",
    };

    const figure = (picture, ...words) => make("figure", {}, picture, make("figcaption", {}, ...words));

    class DigitArrows extends Scene {
        #frame = 0; // animation frame of the current step
        #which; // the digit shown
        #i = 0; // the number of steps done

        set film(film) {
            this.show(film);
        }

        build() {
            this.now = canvas("The picture now");
            this.field = canvas("An arrow for every pixel", "why-field");
            this.aim = canvas("Where the arrows lead");
            this.stepButton = button("One step", () => this.step(500));
            this.restButton = button("All the rest", () => this.rest());
            this.resetButton = button("Start again", () => this.go(0));
            this.stepButton.classList.add("why-main");
            this.words = make("p");
            this.caption = make("p", {className: "why-caption", "aria-live": "polite"});
            this.append(
                make("h3", {}, "What is a step?"), this.words,
                make("div", {className: "why-three"},
                    figure(this.now, "The picture now"),
                    figure(this.field, make("span", {className: "why-up"}, "▲ brighter"), " ",
                        make("span", {className: "why-down"}, "▼ darker")),
                    figure(this.aim, "Where the arrows lead"),
                    make("div", {className: "why-buttons"}, this.stepButton, this.restButton, this.resetButton)),
                this.caption,
                make("details", {}, make("summary", {}, "More precisely"), this.exactly = make("p")),
            );
            new ResizeObserver(() => this.data && this.#drawArrows()).observe(this.field);
        }

        update() {
            const {digits: [digit], seeds, steps, guidance} = this.data;
            const which = JSON.stringify([digit, seeds, steps, guidance]);
            if (this.#which !== which) [this.#which, this.#i] = [which, 0];
            this.words.textContent = `The picture begins as noise, like the snow on an old television. Asked for `
                + `${named(this.data)}, the network predicts an arrow for every pixel: brighter or darker, and how `
                + `strongly. ${this.ofKind(MOVES)}`;
            this.exactly.textContent = this.ofKind(EXACTLY);
            this.go(this.#i);
        }

        // Show the state after `i` steps; without its caption if it is `passing`, as screen readers read each one out.
        go(i, passing = false) {
            cancelAnimationFrame(this.#frame);
            this.#frame = 0;
            this.#i = i;
            paint(this.now, image(this.data.noisy, i));
            paint(this.aim, image(this.data.predicted, i));
            this.#drawArrows();
            const after = `after ${i} of ${inSteps(this.data.steps)}`;
            this.now.setAttribute("aria-label", `The picture ${after}`);
            this.aim.setAttribute("aria-label", `Where the arrows lead, ${after}`);
            const all = [this.stepButton, this.restButton, this.resetButton];
            const focused = all.find(one => one === document.activeElement);
            this.stepButton.disabled = this.restButton.disabled = i === this.data.steps;
            this.resetButton.disabled = i === 0;
            if (focused?.disabled) all.find(one => !one.disabled)?.focus();
            if (!passing) this.caption.textContent = this.#words(i);
        }

        #words(i) {
            const {digits: [digit], guidance, steps} = this.data, name = named(this.data);
            const plain = isDigit(digit) && guidance > 0 && !isMap(this.data);
            if (i === steps) {
                return steps === 1 && plain
                    ? "Done, in one big step. There was no second look, so the picture is blurred."
                    : `Done: in ${inSteps(steps)} the noise has become ${name}. Every step began with a fresh look.`;
            }
            if (i > 0) {
                return `After ${i} of ${inSteps(steps)}. The network has looked again and set new arrows`
                    + `${plain ? `; they lead to a clearer ${digit} than those at the start.` : "."}`;
            }
            return plain
                ? `Pure noise. Even so, the arrows already lead to ${name}, but a blurred one: many are still possible.`
                : `Pure noise, and an arrow for every pixel.${this.ofKind({
                    flow: "", map: " Beside it is where one jump to the end would land."})}`;
        }

        // A triangle per pixel, up for brighter, as large as the change.
        #drawArrows() {
            const {field, data} = this, i = this.#i, side = Math.round(field.clientWidth * devicePixelRatio);
            field.width = field.height = side;
            if (i === data.steps || !side || !data.velocity) return;
            const context = field.getContext("2d"), size = side / 28;
            const [up, down] = [".why-up", ".why-down"].map(name => getComputedStyle(this.querySelector(name)).color);
            image(data.velocity, i).forEach((value, place) => {
                const change = (128 - value) / 128; // v is noise − image, so a step adds its opposite
                if (Math.abs(change) < 0.06) return;
                const x = (place % 28 + 0.5) * size, y = (Math.floor(place / 28) + 0.5) * size;
                const high = change * size * 0.48, wide = (0.15 + 0.35 * Math.abs(change)) * size;
                context.fillStyle = change > 0 ? up : down;
                context.beginPath();
                context.moveTo(x, y - high);
                context.lineTo(x - wide, y + high);
                context.lineTo(x + wide, y + high);
                context.fill();
            });
        }

        // Animate one step: every pixel moves linearly to its next value, then `then` is called.
        step(milliseconds, then) {
            if (this.#frame) this.go(this.#i + 1); // the last step is still running
            const i = this.#i, {noisy, steps} = this.data, from = image(noisy, i), to = image(noisy, i + 1);
            if (i === steps) return;
            if (calm()) return this.go(i + 1);
            let began;
            const tick = now => {
                const part = Math.min(1, (now - (began ??= now)) / milliseconds);
                paint(this.now, from.map((value, k) => value + part * (to[k] - value)));
                if (part < 1) return this.#frame = requestAnimationFrame(tick);
                this.go(i + 1, then && i + 1 < steps);
                then?.();
            };
            this.#frame = requestAnimationFrame(tick);
        }

        rest() {
            if (calm()) this.go(this.data.steps);
            else this.step(150, () => this.rest());
        }
    }

    // ---- many steps

    const WIDTH = 400, MARGIN = 12; // of the map, in SVG units

    class DigitPaths extends Scene {
        #run; // indices of the run and the path shown
        #path = 0;

        set paths(paths) {
            this.show(paths);
        }

        build() {
            this.words = make("p");
            this.stepButtons = make("div", {className: "why-buttons", role: "group", "aria-label": "Number of steps"});
            this.map = make("div", {className: "why-map"});
            this.ends = make("div", {className: "why-ends", role: "group", "aria-label": "Where the paths end"});
            this.end = canvas("The digit at the end");
            this.caption = make("p", {className: "why-caption", "aria-live": "polite"});
            this.note = make("p", {className: "why-note"});
            this.ends.addEventListener("keydown", event => {
                const way = {ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1}[event.key];
                if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
                event.preventDefault();
                this.ends.children[[...this.ends.children].indexOf(event.target) + way]?.focus();
            });
            this.append(
                this.heading = make("h3"), this.words, this.stepButtons,
                make("div", {className: "why-plane"}, this.map, this.ends),
                make("div", {className: "why-end"}, this.end, this.caption), this.note,
            );
        }

        update() {
            const {digits: [digit], seeds, dots, runs} = this.data;
            this.pixels = runs.map(run => bytes(run.pixels));
            const longest = runs.reduce((best, run, i) => run.steps > runs[best].steps ? i : best, 0);
            this.#run = Math.min(this.#run ?? longest, runs.length - 1);
            this.#path = Math.min(this.#path, seeds.length - 1);
            const points = [...dots, ...runs.flatMap(run => [...run.path, ...run.aims].flat())];
            const [left, right, bottom, top] = [0, 1].flatMap(axis => {
                const values = points.map(point => point[axis]);
                return [Math.min(...values), Math.max(...values)];
            });
            const scale = (WIDTH - 2 * MARGIN) / (right - left);
            this.height = Math.round((top - bottom) * scale + 2 * MARGIN);
            this.style.setProperty("--why-ratio", this.height / WIDTH);
            this.place = point => [point[0] - left, top - point[1]].map(away => (MARGIN + away * scale).toFixed(1));
            const average = dots.reduce((sum, [x]) => sum + x, 0) / dots.length;
            this.middle = Math.round(100 / WIDTH * this.place([average, 0])[0]); // of the dots, in percent
            const height = k => runs[longest].path.at(-1)[k][1];
            this.order = seeds.map((_, k) => k).sort((a, b) => height(b) - height(a));
            this.words.textContent = `Each dot is a real handwritten ${digit}; similar ones tend to lie close `
                + `together. Each line leads from a patch of noise to a digit, with a stop after every step.`;
            this.heading.textContent = this.ofKind({
                flow: "Why not in one big step?", map: "Is one big step enough?"});
            this.names = runs.map(run => isMap(run) && !isMap(this.data) ? "1 jump" : inSteps(run.steps));
            this.stepButtons.replaceChildren(...this.names.map((name, i) => button(name, () => this.choose(i))));
            this.ends.replaceChildren(...this.order.map(k => make("button", {
                type: "button", onclick: () => this.pick(k), onfocus: () => this.pick(k),
                onmousemove: () => this.pick(k),
            }, canvas(""))));
            this.choose(this.#run);
        }

        // Show the paths of a run.
        choose(run) {
            this.#run = run;
            const {digits: [digit], seeds, guidance, dots, runs} = this.data;
            const {steps, path} = runs[run], jumps = isMap(runs[run]);
            const circle = (point, radius) => {
                const [x, y] = this.place(point);
                return `<circle cx="${x}" cy="${y}" r="${radius}"/>`;
            };
            const lines = this.order.map(k => {
                const points = path.map(state => this.place(state[k]).join()).join(" ");
                const line = kind => `<polyline class="${kind}" pathLength="1" points="${points}"/>`;
                const stops = path.map(state => circle(state[k], 2)).join("");
                return `<g class="why-path" data-path="${k}"><g class="why-aims"></g>${line("why-hit")}`
                    + `${line("why-line")}${stops}</g>`;
            });
            const text = `${seeds.length} paths from noise to ${named(this.data)}, in ${this.names[run]}`;
            this.map.innerHTML = `<svg viewBox="0 0 ${WIDTH} ${this.height}" role="img" aria-label="${text}">`
                + `<g class="why-dots">${dots.map(dot => circle(dot, 1.7)).join("")}</g>${lines.join("")}</svg>`
                + `<span style="left: 0">noise</span><span style="left: ${this.middle}%">real ${digit}s</span>`;
            for (const part of this.map.querySelectorAll(".why-path")) {
                // not mouseenter, which also fires when a new map appears below a resting mouse
                part.onmousemove = part.onclick = () => this.pick(+part.dataset.path);
            }
            this.order.forEach((k, i) => {
                const end = this.ends.children[i];
                paint(end.firstChild, image(this.pixels[run], k));
                end.setAttribute("aria-label", digits.alt({digit, seed: seeds[k], steps, guidance}));
            });
            [...this.stepButtons.children].forEach((one, i) => one.setAttribute("aria-pressed", i === run));
            const aims = `where ${jumps ? "one jump would have landed from" : "the arrows led at"} each stop`;
            this.note.textContent = (jumps && steps === 1 ? "" : `Dashed: ${aims} of the chosen path. `)
                + `Left to right: from noise to the average ${digit}. Up and down: the largest difference among real `
                + `${digit}s.`;
            this.caption.textContent = guidance === 0
                ? "With guidance 0 the network does not know which digit is asked for, so a path may end at any digit."
                : jumps ? {
                1: `In one jump. The flow map has learned where each path ends, so it goes there at once: to a `
                    + `${digit} of its own, and not to the average of all.`,
                4: `In 4 steps. After each jump the network looks again, and makes up for what the one before missed.`,
                20: `In 20 steps. Small jumps follow the path closely: this is where the one big jump should land.`,
            }[steps] : {
                1: `In one step. In pure noise every ${digit} is still possible, so the arrows point to the average of `
                    + `all: a blur, and nearly the same wherever it starts.`,
                4: `In 4 steps. After each one the network looks again, and the path turns towards one particular `
                    + `${digit}. But a few straight pieces follow a curve only roughly, and strokes may break.`,
                20: `In 20 steps. The network looks again and again and corrects its course a little each time: every `
                    + `patch of noise ends at its own ${digit}.`,
            }[steps];
            this.picked = null;
            this.pick(this.#path);
        }

        // Select a path: show its digit large, and dashed lines from its stops to the images predicted there.
        pick(k) {
            if (this.picked === k) return;
            const {digits: [digit], seeds, guidance, runs} = this.data, run = runs[this.#run], {steps, path} = run;
            const aims = steps === 1 && isMap(run) ? [] : run.aims;
            this.#path = this.picked = k;
            for (const part of this.map.querySelectorAll(".why-path")) {
                const chosen = +part.dataset.path === k;
                part.toggleAttribute("data-chosen", chosen);
                part.firstChild.innerHTML = chosen ? aims.map((aim, i) => {
                    const [[x1, y1], [x2, y2]] = [path[i][k], aim[k]].map(this.place);
                    return `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
                }).join("") : "";
            }
            this.order.forEach((one, i) => {
                this.ends.children[i].setAttribute("aria-pressed", one === k);
                this.ends.children[i].tabIndex = one === k ? 0 : -1;
            });
            paint(this.end, image(this.pixels[this.#run], k));
            this.end.setAttribute("aria-label", digits.alt({digit, seed: seeds[k], steps, guidance}));
        }
    }

    // ---- one noise as ten digits

    const ROWS = 3, FRAME_TIME = 220; // milliseconds

    // The button for another row fires the bubbling event "digit-noise"; its handler sets another film.
    class DigitStyles extends Scene {
        #rows = [];
        #way; // how they were drawn

        set film(film) {
            this.show(film);
        }

        build() {
            this.rows = make("div", {className: "why-rows"});
            const another = button("New noise", () => this.dispatchEvent(
                new CustomEvent("digit-noise", {detail: {seed: digits.anySeed()}, bubbles: true})));
            this.append(
                make("h3", {}, "Same noise, ten digits"),
                make("p", {}, "All digits of a row start from the same noise; only the digit asked for differs. Much "
                    + "of the handwriting comes from the noise: a row often stays thin or thick, slanted or upright."),
                this.rows,
                make("div", {className: "why-buttons"}, another),
            );
        }

        // The rows of a new film go above the existing ones; rows with other settings are removed.
        update() {
            const {seeds, steps, guidance, time_shift} = this.data;
            const way = JSON.stringify([steps, guidance, time_shift]);
            if (this.#way !== way) [this.#way, this.#rows] = [way, []];
            const isNew = seed => !this.#rows.some(row => row.seed === seed);
            const added = [...new Set(seeds)].map(seed => ({seed, film: this.data, isNew: isNew(seed)}));
            const kept = this.#rows.filter(row => !seeds.includes(row.seed));
            this.#rows = [...added, ...kept].slice(0, ROWS);
            this.rows.replaceChildren(...this.#rows.map(row => this.#row(row)));
        }

        // The noise of a seed and its digits, animated when they are shown for the first time.
        #row(row) {
            const {seed, film} = row, {seeds, steps, guidance} = film;
            const places = seeds.flatMap((one, place) => one === seed ? [place] : []);
            const noise = canvas(`The noise of seed ${seed}`);
            const cells = places.map(place => {
                const one = {digit: film.digits[place], seed, steps, guidance};
                return cell(one, digits.alt(one));
            });
            const state = (i, place) => image(film.noisy, i * seeds.length + place);
            const show = i => cells.forEach((one, k) => paint(one.firstChild, state(i, places[k])));
            const last = film.times.length - 1;
            const emerge = i => {
                show(i);
                if (i < last) setTimeout(emerge, FRAME_TIME, i + 1);
            };
            paint(noise, state(0, places[0]));
            emerge(row.isNew && !calm() ? 0 : last);
            row.isNew = false;
            const label = `The noise of seed ${seed} as ${cells.length} digits`;
            const made = make("div", {className: "why-style", role: "group", "aria-label": label},
                noise, make("span", {"aria-hidden": "true"}, "→"), ...cells);
            digits.rove(made)();
            return made;
        }
    }

    customElements.define("digit-arrows", DigitArrows);
    customElements.define("digit-paths", DigitPaths);
    customElements.define("digit-styles", DigitStyles);
}
