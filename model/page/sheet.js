// Many finished digits: <digit-sheet> is a grid that grows as it is drawn, <digit-steps> a table of the same noise at
// more and more steps. Each picture is a link that opens its digit.

{
    const AREA = 28 ** 2;
    const CLASSES = [..."0123456789", "black", "white"]; // the labels of a sheet that names none

    // An element whose value is JSON in an attribute or set as a property; subclasses draw it.
    class Shown extends HTMLElement {
        #value = null;

        connectedCallback() {
            const json = this.getAttribute(this.constructor.observedAttributes[0]);
            if (!this.#value && json) this.value = JSON.parse(json);
        }

        attributeChangedCallback(_, before, after) {
            if (before !== null && after) this.value = JSON.parse(after);
        }

        get value() {
            return this.#value;
        }

        set value(value) {
            this.#value = value;
            this.draw(value);
        }
    }

    // data-sheet: {digits, seeds, steps, guidance, time_shift, labels, total, columns, pixels}. `pixels` are those of
    // `total` that are there so far: uint8 [n, 28, 28], base64 in the attribute.
    class DigitSheet extends Shown {
        static observedAttributes = ["data-sheet"];

        get sheet() {
            return this.value;
        }

        // Set it again whenever it has more digits.
        set sheet(sheet) {
            this.value = sheet;
        }

        draw({digits: names, seeds, steps, guidance, pixels, total, columns}) {
            pixels = digits.bytes(pixels);
            const count = this.count = pixels.length / AREA, size = Math.max(total ?? 0, count);
            this.pixels = pixels;
            if (!this.cells) this.#lay();
            this.cells.style.setProperty("--columns", columns);
            this.cells.style.setProperty("--few", Math.min(columns, 10));
            const blank = () => digits.make("span", {className: "digits-cell"});
            while (this.cells.children.length > size) this.cells.lastChild.remove();
            while (this.cells.children.length < size) this.cells.append(blank());
            for (let i = 0; i < size; i++) {
                const digit = {digit: names[i], seed: seeds[i], steps, guidance}, there = this.cells.children[i];
                const href = i < count ? digits.link(digit) : null;
                if (there.getAttribute("href") === href) continue;
                there.replaceWith(i < count ? digits.cell(digit, digits.alt(digit)) : blank());
                if (i >= count) continue;
                digits.paint(this.cells.children[i].firstChild, pixels.subarray(i * AREA, (i + 1) * AREA));
            }
            this.settle();
            for (const button of this.saves.children) button.disabled = count === 0;
            this.status.textContent = `${count < size ? `${count} of ` : ""}${size} digit${size === 1 ? "" : "s"}`;
        }

        #lay() {
            this.cells = digits.make("div", {className: "digits-cells digits-sheet"});
            this.settle = digits.walk(this.cells);
            this.status = digits.make("p", {className: "digits-caption"});
            this.saves = digits.make("div", {className: "digits-saves"},
                digits.button("Save picture", () => this.#savePicture()),
                digits.button("Save data set (.npz)", () => this.#saveDataSet()));
            this.replaceChildren(this.cells, this.status, this.saves);
        }

        async #savePicture() {
            const columns = Math.min(this.value.columns, this.count);
            const scale = Math.max(2, Math.min(8, Math.floor(1200 / (30 * columns + 2))));
            const comment = digits.recipe({...this.value, digits: this.value.digits.slice(0, this.count)});
            digits.save(await digits.png(this.pixels, columns, {scale, comment}), `${this.#name}.png`);
        }

        #saveDataSet() {
            const labels = this.value.labels ?? this.value.digits.map(name => CLASSES.indexOf(name));
            digits.save(digits.npz(this.pixels, labels.slice(0, this.count)), `${this.#name}.npz`);
        }

        get #name() {
            return `digits-seed${this.value.seeds[0]}`;
        }
    }

    const time = milliseconds =>
        milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

    // data-steps: {digits, seed, guidance, time_shift, columns: [{steps, pixels, milliseconds}]}: one row per digit,
    // one column per number of steps that is there so far. With `rows`, [{name, calls, opens}], a row is the one digit
    // as each of several networks draws it, in so many calls a step, and `milliseconds` has a number for each; only
    // the row that `opens` is what the page draws, and links to it.
    class DigitSteps extends Shown {
        static observedAttributes = ["data-steps"];

        get steps() {
            return this.value;
        }

        set steps(steps) {
            this.value = steps;
        }

        draw({digits: names, seed, guidance, columns, rows}) {
            const {make} = digits, images = columns.map(({pixels}) => digits.bytes(pixels));
            const focused = this.contains(document.activeElement) && document.activeElement.getAttribute("href");
            const head = columns.map(({steps}) => make("th", {scope: "col"}, `${steps}`));
            const lines = rows ?? names.map(name => ({name, digit: name, opens: true}));
            const body = lines.map(({name, digit = names[0], calls, opens}, row) => make("tr", {},
                make("th", {scope: "row"}, name),
                ...columns.map(({steps, milliseconds}, column) => {
                    const one = {digit, seed, steps, guidance}, text = `${rows ? `${name}: ` : ""}${digits.alt(one)}`;
                    const cell = opens ? digits.cell(one, text)
                        : make("div", {className: "digits-cell"}, digits.canvas(text));
                    digits.paint(cell.firstChild, images[column].subarray(row * AREA, (row + 1) * AREA));
                    if (!rows) return make("td", {}, cell);
                    const count = steps * calls, took = time(milliseconds[row]);
                    return make("td", {}, cell, make("span", {}, `${count} call${count === 1 ? "" : "s"}`), took);
                })));
            const times = columns.map(({milliseconds}) => make("td", {}, time(milliseconds)));
            const foot = rows ? [] : [make("tfoot", {}, make("tr", {}, make("td"), ...times))];
            const room = Array.from({length: Math.max(0, 6 - columns.length)}, () => make("td"));
            const table = make("table", {className: "digits-steps"},
                make("caption", {}, "Steps"),
                make("thead", {}, make("tr", {}, make("td"), ...head, ...room)),
                make("tbody", {}, ...body), ...foot);
            this.replaceChildren(table);
            digits.walk(table)();
            [...table.querySelectorAll("a")].find(link => link.getAttribute("href") === focused)?.focus();
        }
    }

    customElements.define("digit-sheet", DigitSheet);
    customElements.define("digit-steps", DigitSteps);
}
