// A drawing from noise to digit: <digit-film> plays and scrubs one digit, <digit-row> several at the same time.
// Both show a film: {digits, seeds, steps, guidance, time_shift, times [S + 1] and, as uint8 [S + 1, N, 28, 28],
// `noisy` (x_t) and `predicted` (x_t − t·v; not needed by a row); `velocity` [S, N, 28, 28] is optional}. A film that
// is still being drawn has the number of its finished states in `count`. Digits without links have no `seeds` but
// `about`, "what they show: how they were drawn", and optionally `captions`, one below each digit of a row. In a film
// of the `kind` "flow map", `predicted` is where the map jumps to from there; the kind is optional for others.

{
    const SIZE = 28, AREA = SIZE ** 2, FRAMES = 9, GIF_FRAMES = 24, PLAYING_TIME = 1500; // milliseconds
    const NEAR = 12; // of 255: the mean difference below which two images count as almost equal

    // ---- data

    // A Uint8Array from base64; arrays are returned as they are.
    const bytes = data => typeof data === "string" ? Uint8Array.from(atob(data), byte => byte.charCodeAt(0)) : data;

    // A film from the server, its arrays decoded from base64.
    function film(sent) {
        const names = ["noisy", "predicted", "velocity"].filter(name => sent[name]);
        return {...sent, ...Object.fromEntries(names.map(name => [name, bytes(sent[name])]))};
    }

    // At most `count` evenly spaced whole numbers from 0 to `last`, both included.
    function spaced(count, last) {
        count = Math.min(count, last + 1);
        return Array.from({length: count}, (_, i) => Math.round(i * last / Math.max(count - 1, 1)));
    }

    // The query string that opens a digit.
    const link = ({digit, seed, steps, guidance}) =>
        `?digit=${encodeURIComponent(digit)}&seed=${seed}&steps=${steps}&guidance=${+(+guidance).toPrecision(6)}`;

    // The name of a class within a sentence: 7, black image.
    const named = digit => /^\d$/.test(digit) ? digit : `${digit} image`;

    // The alt text of a picture: "A 7, drawn in 20 steps from the noise of seed 67".
    function alt({digit, seed, steps, guidance}) {
        const what = guidance === 0 ? "An image of any class" : `${digit === "8" ? "An" : "A"} ${named(digit)}`;
        return `${what}, drawn in ${steps} step${steps === 1 ? "" : "s"} from the noise of seed ${seed}`;
    }

    // The description of digits without links, from their `about`.
    const subject = about => about.split(": ")[0];

    // The digits and their settings, for the comment in an image file; as `SamplingConfig.recipe`.
    function recipe({digits, seeds, steps, guidance, time_shift, about}) {
        if (about) return about;
        const values = Object.entries({seed: seeds[0], steps, guidance, time_shift});
        return `${digits.join(",")}: ${values.map(([name, value]) => `${name} ${value}`).join(", ")}`;
    }

    // A file name without its suffix: 7-seed67.
    const fileName = ({digits, seeds}) => seeds ? `${digits.join("")}-seed${seeds[0]}` : [...new Set(digits)].join("-");

    // ---- parts of a page

    // An element with properties (attributes if the name has a hyphen or is `role`) and children.
    function make(tag, properties = {}, ...children) {
        const made = document.createElement(tag);
        for (const [name, value] of Object.entries(properties)) {
            if (name.includes("-") || name === "role") made.setAttribute(name, value);
            else made[name] = value;
        }
        made.append(...children);
        return made;
    }

    // A canvas of one image; `text` is what a screen reader says.
    function canvas(text, name = "") {
        const spoken = text ? {role: "img", "aria-label": text} : {"aria-hidden": "true"};
        return make("canvas", {className: `digits-pixels ${name}`, width: SIZE, height: SIZE, ...spoken});
    }

    function paint(canvas, pixels) {
        const image = new ImageData(SIZE, SIZE);
        new Uint32Array(image.data.buffer).set(Uint32Array.from(pixels, grey => 0xff000000 | grey * 0x010101));
        canvas.getContext("2d").putImageData(image, 0, 0);
    }

    // An image as a link that opens its digit. A handler of the event "digit-open" calls preventDefault to stop the
    // browser from following the link.
    function cell(digit, text) {
        const made = make("a", {href: digits.link(digit), className: "digits-cell"}, canvas(text));
        made.addEventListener("click", event => {
            if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
            const open = new CustomEvent("digit-open", {detail: digit, bubbles: true, cancelable: true});
            if (!made.dispatchEvent(open)) event.preventDefault();
        });
        return made;
    }

    // Make the links in a grid a single Tab stop; arrow keys, Home and End move between them. Returns a function to
    // call whenever the links have changed.
    function rove(grid) {
        let stop;
        const links = () => [...grid.querySelectorAll("a")];
        const settle = () => {
            const all = links();
            if (!all.includes(stop)) [stop] = all;
            for (const link of all) link.tabIndex = link === stop ? 0 : -1;
        };
        grid.addEventListener("focusin", ({target}) => {
            stop = target;
            settle();
        });
        grid.addEventListener("keydown", event => {
            if (event.altKey || event.ctrlKey || event.metaKey) return;
            const all = links(), at = all.indexOf(event.target), top = all[0].getBoundingClientRect().top;
            const below = all.findIndex(link => link.getBoundingClientRect().top > top + 1);
            const columns = below < 0 ? all.length : below;
            const to = {ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns,
                Home: 0, End: all.length - 1}[event.key];
            if (to === undefined) return;
            event.preventDefault();
            all[to]?.focus();
        });
        return settle;
    }

    const button = (text, onclick) => make("button", {type: "button", className: "digits-button", onclick}, text);

    // ---- the player

    // What a film shows, apart from how it was drawn.
    const depicted = ({digits, seeds, about}) => JSON.stringify([digits, seeds ?? subject(about)]);

    // Whether two films have the same recipe and the same noisy images.
    const same = (film, other) => other && recipe(film) === recipe(other) && film.noisy.length === other.noisy.length
        && film.noisy.every((grey, i) => grey === other.noisy[i]);

    const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

    // A film with a play button and a time slider; subclasses lay it out and draw one of its states.
    class Player extends HTMLElement {
        #film = null;
        #index = 0;
        #t = 0; // the time that the visitor selected
        #frame = 0; // id of the animation frame; 0 while nothing plays
        #following = false; // whether to show the newest state of a film that is still being drawn

        disconnectedCallback() {
            this.#stop();
        }

        get film() {
            return this.#film;
        }

        // A new digit plays once automatically; the same digit with other steps or guidance stays at its time. Set the
        // same film again when it has more states; its newest state is shown if there is no older film to show.
        set film(film) {
            const last = film.times.length - 1, count = film.count ?? last + 1, whole = count > last;
            const more = this.#film?.noisy === film.noisy, noiseAlone = this.#film && this.count <= 1;
            const inPlace = this.#film && !noiseAlone && depicted(film) === depicted(this.#film);
            if (!more && !whole && this.#film && (inPlace || calm())) return; // keep the current film for now
            if (!more && whole && same(film, this.#film)) return; // it may be playing
            this.#film = film;
            if (!more) {
                this.#stop();
                this.build(film);
                this.slider.max = last;
                this.#following = !whole;
                if (!inPlace) this.#t = 0;
            }
            this.grown(film, count);
            for (const button of this.files.children) button.disabled = !whole;
            if (more || !whole) {
                if (this.#following && (!more || whole || !calm())) this.#show(Math.max(count - 1, 0));
                this.#following &&= !whole;
            } else if (inPlace || calm()) {
                const away = film.times.map(t => Math.abs(t - this.#t));
                this.#show(away.indexOf(Math.min(...away)));
            } else {
                this.#index = last;
                this.play();
            }
        }

        // The index of the state that is shown.
        get index() {
            return this.#index;
        }

        // Show the state that the visitor selected.
        scrub(index) {
            this.#stop();
            this.#following = false;
            index = Math.min(index, this.count - 1);
            this.#t = this.#film.times[index];
            this.#show(index);
        }

        get count() {
            return this.#film.count ?? this.#film.times.length;
        }

        // Play from the current state, or from noise if that is the last one.
        play() {
            this.#stop();
            this.#t = 0;
            this.#following = false;
            const last = this.count - 1, begin = this.#index < last ? this.#index : 0;
            let started;
            const tick = now => {
                started ??= now;
                const index = Math.min(begin + Math.floor((now - started) / PLAYING_TIME * (last + 1)), last);
                if (index !== this.#index) this.#show(index);
                if (index < last) this.#frame = requestAnimationFrame(tick);
                else this.#stop();
            };
            this.#show(begin);
            this.#frame = requestAnimationFrame(tick);
            this.#label();
        }

        pause() {
            this.scrub(this.#index);
        }

        #stop() {
            cancelAnimationFrame(this.#frame);
            this.#frame = 0;
            if (this.playButton) this.#label();
        }

        #label() {
            this.toggleAttribute("data-playing", this.#frame !== 0);
            this.playButton.setAttribute("aria-label", this.#frame ? "Pause" : "Play");
        }

        #show(index) {
            this.#index = index;
            this.slider.value = index;
            this.slider.setAttribute("aria-valuetext", `t = ${this.#film.times[index].toFixed(2)}`);
            this.draw(this.#film, index);
        }

        // Play button and time slider.
        player() {
            this.playButton = button("", () => this.#frame ? this.pause() : this.play());
            this.playButton.classList.add("digits-play");
            this.slider = make("input", {
                type: "range", min: 0, step: 1, className: "digits-time", "aria-label": "Time, from noise to digit",
                oninput: () => this.scrub(+this.slider.value),
            });
            this.time = make("span", {className: "digits-t", "aria-hidden": "true"});
            this.#label();
            return make("div", {className: "digits-player"}, this.playButton, this.slider, this.time);
        }

        // The buttons that save the digits and the animation.
        saves() {
            const scale = (one, widest) => {
                const count = this.#film.digits.length;
                return count > 1 ? Math.max(2, Math.min(one, Math.floor(widest / (30 * count + 2)))) : one;
            };
            const picture = async () => {
                const film = this.#film, options = {scale: scale(16, 2000), comment: recipe(film)};
                const file = await digits.png(this.state("noisy", this.count - 1), film.digits.length, options);
                digits.save(file, `${fileName(film)}.png`);
            };
            const animation = () => {
                const film = this.#film, few = spaced(GIF_FRAMES, this.count - 1);
                const frames = few.map(index => this.state("noisy", index));
                const file = digits.gif(frames, film.digits.length, {scale: scale(12, 900)});
                digits.save(file, `${fileName(film)}.gif`);
            };
            this.files = make("div", {className: "digits-saves"},
                button("Save picture", picture), button("Save animation", animation));
            return this.files;
        }

        // The images [N, 28, 28] of a state.
        state(row, index) {
            const size = this.#film.digits.length * AREA;
            return this.#film[row].subarray(index * size, (index + 1) * size);
        }
    }

    // ---- one digit

    // The rows of the film strip: title, formula, and for a flow map its own formula if that differs.
    const ROWS = {
        noisy: ["From noise to digit", "xₜ"],
        predicted: ["The network’s guess at that moment", "xₜ − t·v", "xₜ − t·u(xₜ, t, 0)"],
        velocity: ["Velocity: dark gets brighter, bright darker", "v", "u(xₜ, t, t)"],
    };
    const isMap = ({kind}) => kind === "flow map";

    class DigitFilm extends Player {
        build(film) {
            if (!this.large) this.#lay();
            const last = film.times.length - 1, few = spaced(FRAMES, last);
            this.large.setAttribute("aria-label", film.seeds
                ? alt({...film, digit: film.digits[0], seed: film.seeds[0]}) : subject(film.about));
            this.frames = few.map((index, column) => {
                const t = film.times[index].toFixed(2), rows = {};
                const frame = make("button", {
                    type: "button", className: "digits-frame", tabIndex: -1, onclick: () => this.scrub(index),
                    "aria-label": `Show t = ${t}`,
                });
                frame.style.gridColumn = column + 1; // overlaps the titles, which span all columns
                for (const row of Object.keys(ROWS)) frame.append(rows[row] = canvas("", `digits-${row}`));
                frame.append(make("span", {}, t));
                return {index, frame, rows, painted: false};
            });
            const titles = Object.entries(ROWS).map(([row, [words, formula, ofMap = formula]]) => make("div",
                {className: `digits-title digits-${row}`},
                make("span", {}, words, " ", make("i", {}, isMap(film) ? ofMap : formula))));
            this.strip.style.setProperty("--frames", few.length);
            this.strip.replaceChildren(...titles, ...this.frames.map(({frame}) => frame));
            this.velocitySwitch.hidden = !film.velocity;
            this.#toggleVelocity();
        }

        #lay() {
            this.large = canvas("", "digits-large");
            this.large.removeAttribute("aria-hidden");
            this.large.setAttribute("role", "img");
            this.guess = canvas("The predicted image");
            this.caption = make("p", {className: "digits-caption"});
            this.strip = make("div", {className: "digits-strip", role: "group", "aria-label": "Film strip"});
            this.velocity = make("input", {type: "checkbox", onchange: () => this.#toggleVelocity()});
            this.velocitySwitch = make("label", {className: "digits-switch"}, this.velocity, " Show the velocity");
            const guess = make("div", {className: "digits-guess"}, this.guess, make("p", {}, "the network’s guess"));
            this.replaceChildren(
                make("div", {className: "digits-stage"}, this.large, guess),
                this.player(), this.caption, this.strip, this.velocitySwitch, this.saves(),
            );
        }

        #toggleVelocity() {
            this.strip.classList.toggle("digits-with-velocity", this.velocity.checked && !!this.film.velocity);
        }

        grown(film, count) {
            for (const frame of this.frames) {
                if (frame.painted || frame.index >= count) continue;
                frame.painted = true;
                for (const row of Object.keys(ROWS)) {
                    const exists = film[row] && (row !== "velocity" || frame.index < film.times.length - 1);
                    frame.rows[row].classList.toggle("digits-none", !exists);
                    if (exists) paint(frame.rows[row], this.state(row, frame.index));
                }
            }
        }

        draw(film, index) {
            const t = film.times[index].toFixed(2);
            paint(this.large, this.state("noisy", index));
            paint(this.guess, this.state("predicted", index));
            this.guess.setAttribute("aria-label", `The predicted image at t = ${t}`);
            this.time.textContent = `t = ${t}`;
            this.caption.textContent = this.#words(film, index);
            const away = this.frames.map(frame => Math.abs(frame.index - index));
            const nearest = this.frames[away.indexOf(Math.min(...away))].frame;
            for (const {frame} of this.frames) frame.toggleAttribute("data-current", frame === nearest);
            const {strip} = this;
            if (strip.scrollWidth > strip.clientWidth) {
                strip.scrollLeft = nearest.offsetLeft - (strip.clientWidth - nearest.offsetWidth) / 2;
            }
        }

        // The caption of a state, for readers without prior knowledge.
        #words(film, index) {
            const last = film.times.length - 1, noun = /^\d$/.test(film.digits[0]) ? "digit" : "image";
            const steps = `${last} step${last === 1 ? "" : "s"}`;
            if (index === last) return `The finished ${noun}, after ${steps}.`;
            const now = index > 0 ? `After ${index} of ${steps}.`
                : film.times[0] === 1 ? "Pure noise." : "The start: an image covered in noise.";
            return this.count > last && this.#near(index)
                ? `${now} The prediction is already close to the finished ${noun}.`
                : `${now} Beside it: the image that the network predicts from it.`;
        }

        // Whether the image predicted at a state is almost equal to the finished one.
        #near(index) {
            const now = this.state("predicted", index), end = this.state("noisy", this.film.times.length - 1);
            return now.reduce((sum, grey, i) => sum + Math.abs(grey - end[i]), 0) / AREA < NEAR;
        }
    }

    // ---- several digits

    class DigitRow extends Player {
        build(film) {
            if (!this.cells) {
                this.cells = make("div", {className: "digits-cells", role: "group"});
                this.settle = rove(this.cells);
                this.replaceChildren(this.cells, this.player(), this.saves());
            }
            const {captions = []} = film, count = film.digits.length;
            this.cells.setAttribute("aria-label", film.seeds ? film.digits.join("") : subject(film.about));
            this.cells.style.setProperty("--columns", count);
            this.cells.style.setProperty("--few", count > 8 ? Math.ceil(count / 2) : count);
            this.canvases = [];
            this.cells.replaceChildren(...film.digits.map((digit, i) => {
                const seed = film.seeds?.[i], one = {digit, seed, steps: film.steps, guidance: film.guidance};
                const text = captions[i] ?? (film.seeds ? alt(one) : named(digit));
                const part = film.seeds ? cell(one, text) : make("div", {className: "digits-cell"}, canvas(text));
                this.canvases.push(part.firstChild);
                if (captions[i]) part.append(make("span", {}, captions[i]));
                return part;
            }));
            this.settle();
        }

        grown() {}

        draw(film, index) {
            const images = this.state("noisy", index);
            this.canvases.forEach((canvas, i) => paint(canvas, images.subarray(i * AREA, (i + 1) * AREA)));
            this.time.textContent = `t = ${film.times[index].toFixed(2)}`;
        }
    }

    window.digits ??= {};
    Object.assign(digits, {film, bytes, link, named, alt, recipe, isMap, make, canvas, paint, cell, rove, button,
        calm});
    customElements.define("digit-film", DigitFilm);
    customElements.define("digit-row", DigitRow);
}
