// <digit-sketch>: draw a digit with the mouse, a finger or a pen. The drawing is converted to 28 × 28 pixels as in
// MNIST: its bounding box is scaled to 20 × 20, keeping the aspect ratio, and its centre of mass moved to the middle.
// The lines are redrawn at that scale with the stroke width of MNIST, so a small drawing gets no fat strokes.
//
// `strokes`: a list of strokes, each a list of points [x, y] from 0 to 1.
// `pixels`: 784 numbers from 0 to 255, row by row, or null while nothing is drawn. After each stroke that the visitor
// draws or removes, the event "digit-sketch" bubbles with them in `detail.pixels`.

{
    const SIZE = 28, BOX = 20, MIDDLE = 14.5; // the mean centre of mass in MNIST, from the image's edge
    const PEN = 2.5; // pixels of the 28, also on the large canvas
    const FINE = 8; // subdivisions of a pixel for measuring the centre of mass
    const {make, button, canvas, paint} = digits;

    const HINT = "Draw a digit with the mouse, a finger or a pen.";
    const DONE = "Scaled to 20 × 20 pixels and centred by its mass, like the digits the network learned from (MNIST).";

    // Draw the strokes in white on black, each coordinate at x · scale + shift[axis], in pixels.
    function ink(context, strokes, scale, shift, pen) {
        Object.assign(context, {fillStyle: "black", strokeStyle: "white", lineWidth: pen});
        Object.assign(context, {lineCap: "round", lineJoin: "round"});
        context.fillRect(0, 0, context.canvas.width, context.canvas.height);
        for (const stroke of strokes) {
            const [[x, y], ...rest] = stroke.map(point => point.map((place, axis) => place * scale + shift[axis]));
            context.beginPath();
            context.moveTo(x, y);
            context.lineTo(x + 0.01, y); // a canvas draws no zero-length line, but a point should be a dot
            for (const point of rest) context.lineTo(...point);
            context.stroke();
        }
    }

    // The drawn strokes as side² numbers from 0 to 255, antialiased.
    function rendered(side, ...drawing) {
        const context = new OffscreenCanvas(side, side).getContext("2d", {willReadFrequently: true});
        ink(context, ...drawing);
        const {data} = context.getImageData(0, 0, side, side);
        return Array.from({length: side * side}, (_, i) => data[4 * i]);
    }

    // The centre of mass [x, y] of a square image, in pixels from its edge.
    function centre(image, side) {
        let mass = 0, x = 0, y = 0;
        image.forEach((grey, i) => {
            mass += grey;
            x += grey * (i % side + 0.5);
            y += grey * (Math.floor(i / side) + 0.5);
        });
        return [x / mass, y / mass];
    }

    // The 784 pixels of a drawing, normalized as in MNIST; null for an empty one.
    function normalized(strokes) {
        const points = strokes.flat();
        if (!points.length) return null;
        const axes = [0, 1].map(axis => points.map(point => point[axis]));
        const least = axes.map(places => Math.min(...places)), most = axes.map(places => Math.max(...places));
        const extent = Math.max(most[0] - least[0], most[1] - least[1]);
        const scale = (BOX - PEN) / (extent || 1);
        // The shift that moves the corner of the box, including the line width, to `corner`.
        const box = corner => least.map((place, axis) => corner[axis] + PEN / 2 - place * scale);
        const fine = rendered(SIZE * FINE, strokes, scale * FINE, box([0, 0]).map(place => place * FINE), PEN * FINE);
        const mass = centre(fine, SIZE * FINE).map(place => place / FINE);
        const corner = mass.map((place, axis) => {
            const side = (most[axis] - least[axis]) * scale + PEN;
            return Math.min(Math.max(MIDDLE - place, 0), SIZE - side); // so that nothing is cut off
        });
        return rendered(SIZE, strokes, scale, box(corner), PEN);
    }

    class DigitSketch extends HTMLElement {
        #strokes = [];
        #pointer = null; // the one that is drawing
        #pixels = null;

        connectedCallback() {
            if (this.large) return;
            this.large = make("canvas", {className: "lab-paper", width: 560, height: 560, role: "img"});
            this.small = canvas("The sketch in 28 × 28 pixels");
            this.undoButton = button("Undo", () => this.#change(this.#strokes.slice(0, -1)));
            this.clearButton = button("Clear", () => this.#change([]));
            this.words = make("p", {className: "lab-words", role: "status"});
            const side = make("div", {className: "lab-side"}, this.small, this.undoButton, this.clearButton);
            this.append(make("div", {className: "lab-desk"}, this.large, side), this.words);
            this.large.addEventListener("pointerdown", event => this.#begin(event));
            this.large.addEventListener("pointermove", event => this.#go(event));
            for (const end of ["pointerup", "pointercancel"]) {
                this.large.addEventListener(end, event => this.#end(event));
            }
            this.#update();
        }

        get strokes() {
            return this.#strokes;
        }

        set strokes(strokes) {
            this.#strokes = strokes;
            this.#pointer = null;
            if (this.large) this.#update();
        }

        get pixels() {
            return this.#pixels;
        }

        #at({clientX, clientY}) {
            const {left, top, width, height} = this.large.getBoundingClientRect();
            return [(clientX - left) / width, (clientY - top) / height].map(place => Math.min(Math.max(place, 0), 1));
        }

        #begin(event) {
            if (this.#pointer !== null || event.button) return; // a second finger, or not the main button
            this.#pointer = event.pointerId;
            this.large.setPointerCapture(event.pointerId);
            this.#strokes = [...this.#strokes, [this.#at(event)]];
            this.#show();
        }

        #go(event) {
            if (event.pointerId !== this.#pointer) return;
            const events = event.getCoalescedEvents?.() ?? []; // all events since the last frame
            this.#strokes.at(-1).push(...(events.length ? events : [event]).map(event => this.#at(event)));
            this.#show();
        }

        #end(event) {
            if (event.pointerId !== this.#pointer) return;
            this.#change(this.#strokes);
        }

        #change(strokes) {
            this.strokes = strokes;
            this.dispatchEvent(new CustomEvent("digit-sketch", {detail: {pixels: this.#pixels}, bubbles: true}));
        }

        #update() {
            this.#pixels = normalized(this.#strokes);
            paint(this.small, this.#pixels ?? Array(SIZE ** 2).fill(0));
            this.words.textContent = this.#pixels ? DONE : HINT;
            this.large.setAttribute("aria-label", this.#pixels ? "Your sketch" : "An empty sheet to draw on");
            this.#show();
        }

        #show() {
            const context = this.large.getContext("2d"), side = this.large.width;
            ink(context, this.#strokes, side, [0, 0], PEN * side / SIZE);
            if (this.#strokes.length) return;
            const font = `${side / 16}px system-ui, sans-serif`;
            Object.assign(context, {fillStyle: "#999", textAlign: "center", font});
            context.fillText("Draw here", side / 2, side / 2);
        }
    }

    customElements.define("digit-sketch", DigitSketch);
}
