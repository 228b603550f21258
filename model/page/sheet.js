// Many finished digits: <digit-sheet> is a grid that grows as it is drawn, <digit-steps> a table of the same noise in
// more and more steps. Each picture is a link that opens its digit.

{
    const AREA = 28 ** 2;

    class DigitSheet extends HTMLElement {
        // {digits, seeds, labels, steps, guidance, time_shift, total, columns, pixels}; `pixels`, uint8 [n, 28, 28],
        // are the digits drawn so far, of `total`. Set it again whenever it has more digits.
        set sheet(sheet) {
            const {digits: names, seeds, steps, guidance, pixels, total, columns} = this.data = sheet;
            const count = this.count = pixels.length / AREA;
            if (!this.cells) this.#lay();
            this.cells.style.setProperty("--columns", columns);
            this.cells.style.setProperty("--few", Math.min(columns, 10));
            const blank = () => digits.make("span", {className: "digits-cell"});
            while (this.cells.children.length > total) this.cells.lastChild.remove();
            while (this.cells.children.length < total) this.cells.append(blank());
            for (let i = 0; i < total; i++) {
                const digit = {digit: names[i], seed: seeds[i], steps, guidance}, there = this.cells.children[i];
                const href = i < count ? digits.link(digit) : null;
                if (there.getAttribute("href") === href) continue;
                there.replaceWith(i < count ? digits.cell(digit, digits.alt(digit)) : blank());
                if (i >= count) continue;
                digits.paint(this.cells.children[i].firstChild, pixels.subarray(i * AREA, (i + 1) * AREA));
            }
            this.settle();
            for (const button of this.saves.children) button.disabled = count === 0;
            this.status.textContent = `${count < total ? `${count} of ` : ""}${total} digit${total === 1 ? "" : "s"}`;
        }

        #lay() {
            this.cells = digits.make("div", {className: "digits-cells digits-sheet"});
            this.settle = digits.rove(this.cells);
            this.status = digits.make("p", {className: "digits-caption"});
            this.saves = digits.make("div", {className: "digits-saves"},
                digits.button("Save picture", () => this.#savePicture()),
                digits.button("Save data set (.npz)", () => this.#saveDataSet()));
            this.replaceChildren(this.cells, this.status, this.saves);
        }

        async #savePicture() {
            const {data} = this, columns = Math.min(data.columns, this.count);
            const scale = Math.max(2, Math.min(8, Math.floor(1200 / (30 * columns + 2))));
            const comment = digits.recipe({...data, digits: data.digits.slice(0, this.count)});
            digits.save(await digits.png(data.pixels, columns, {scale, comment}), `${this.#name}.png`);
        }

        #saveDataSet() {
            const {pixels, labels} = this.data;
            digits.save(digits.npz(pixels, labels.slice(0, this.count)), `${this.#name}.npz`);
        }

        get #name() {
            return `digits-seed${this.data.seeds[0]}`;
        }
    }

    const time = milliseconds =>
        milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

    class DigitSteps extends HTMLElement {
        // {digits, seed, guidance, columns: [{steps, pixels, milliseconds}]}: one row per digit, one column per number
        // of steps drawn so far; `pixels` are uint8 [N, 28, 28] or their base64, and `milliseconds` has a number per
        // network. With `rows`, [{name, calls, opens: [from, to]}], there is one digit and a row per network; `calls`
        // is its number of calls per step. In `from` to `to` steps the page draws with it, so pictures are links.
        set steps(value) {
            const {digits: names, seed, guidance, columns, rows} = this.data = value;
            const {make} = digits, images = columns.map(({pixels}) => digits.bytes(pixels));
            const focused = this.contains(document.activeElement) && document.activeElement.getAttribute("href");
            const head = columns.map(({steps}) => make("th", {scope: "col"}, `${steps}`));
            const lines = rows ?? names.map(name => ({name, digit: name, opens: [1, Infinity]}));
            const body = lines.map(({name, digit = names[0], calls, opens: [from, to]}, row) => make("tr", {},
                make("th", {scope: "row"}, name),
                ...columns.map(({steps, milliseconds}, column) => {
                    const one = {digit, seed, steps, guidance}, text = `${rows ? `${name}: ` : ""}${digits.alt(one)}`;
                    const cell = from <= steps && steps <= to ? digits.cell(one, text)
                        : make("div", {className: "digits-cell"}, digits.canvas(text));
                    digits.paint(cell.firstChild, images[column].subarray(row * AREA, (row + 1) * AREA));
                    if (!rows) return make("td", {}, cell);
                    const count = steps * calls, took = time(milliseconds[row]);
                    return make("td", {}, cell, make("span", {}, `${count} call${count === 1 ? "" : "s"}`), took);
                })));
            const times = columns.map(({milliseconds}) => make("td", {}, time(milliseconds[0])));
            const foot = rows ? [] : [make("tfoot", {}, make("tr", {}, make("td"), ...times))];
            const room = Array.from({length: Math.max(0, 6 - columns.length)}, () => make("td"));
            const table = make("table", {className: "digits-steps"},
                make("caption", {}, "Steps"),
                make("thead", {}, make("tr", {}, make("td"), ...head, ...room)),
                make("tbody", {}, ...body), ...foot);
            this.replaceChildren(table);
            digits.rove(table)();
            [...table.querySelectorAll("a")].find(link => link.getAttribute("href") === focused)?.focus();
        }
    }

    customElements.define("digit-sheet", DigitSheet);
    customElements.define("digit-steps", DigitSteps);
}
