// The script of the Gradio page: forms, custom elements in components, the address bar, and pictures drawn on demand.
//
// The whole page shares one subject {digit, seed, steps, guidance}: that of the digit drawn last. The server draws
// pictures about it when they come into view, and again when it changes.

{
    const FIELDS = ["digit", "seed", "steps", "guidance"];
    const forms = {}; // by name
    const areas = []; // pictures that are drawn when they come into view
    let subject; // that of the digit shown
    let latest; // its film
    let written = ""; // the number shown in the row
    let touched = false; // whether the visitor has requested anything yet
    let toNumbers = false; // whether to open the tab with the number once the page is ready
    let toFocus = false; // whether the next digit was opened from another picture

    const number = field => field.value === "" ? null : Number(field.value);
    const one = selector => document.querySelector(selector);

    // ---- forms

    // A form of html.py in a component: the component's value is the list of its fields.
    function form(element, props, trigger, watch) {
        const form = element.querySelector("form"), names = form.dataset.fields.split(" ");
        const fields = name => [...form.querySelectorAll(`[name="${name}"]`)];
        const value = name => {
            const all = fields(name), [first] = all;
            if (first.type === "checkbox") return all.filter(box => box.checked).map(box => box.value).join(",");
            if (first.type === "radio") return all.find(button => button.checked)?.value ?? null;
            return first.type === "number" ? number(first) : first.value;
        };
        const send = event => {
            props.value = names.map(value);
            if (names.includes("steps")) forget();
            trigger(event);
        };
        const fill = values => names.forEach((name, i) => {
            for (const field of fields(name)) {
                if (field.type === "radio") field.checked = field.value === values[i];
                else if (field.type === "checkbox") field.checked = values[i].split(",").includes(field.value);
                else if (document.activeElement !== field || number(field) !== values[i]) field.value = values[i];
            }
            digits.level(fields(name)[0]);
        });
        // Before the first digit is drawn, the link to copy is the one that was opened.
        digits.controls(form, () => send("input"), () => (subject ? query() : location).href);
        form.addEventListener("click", ({target}) => {
            const pressed = target.closest("button");
            if (pressed?.type === "submit") {
                if (form.querySelector('[value="stop"]')) trigger("stop"); // the new drawing replaces it
                send("submit");
            } else if (pressed?.value === "stop") trigger("stop");
        });
        watch("value", () => fill(props.value));
        const untouched = name => fields(name).every(
            field => field.value === (field.defaultValue ?? field.value) && field.checked === field.defaultChecked);
        // Keep input that was typed before the page was ready.
        if (names.every(untouched)) fill(props.value);
        else send("input");
        forms[element.closest(".block").id] = {form, fill, send, trigger};
        if (names.includes("steps")) visit(form, trigger);
    }

    function isLink() {
        const asked = new URLSearchParams(location.search);
        return [...FIELDS, "number"].some(name => asked.has(name));
    }

    // Show the content that a link asks for.
    function visit(form, trigger) {
        if ("visit" in form.dataset || isLink()) {
            touched = true;
            toNumbers = new URLSearchParams(location.search).has("number");
            trigger("visit");
        }
    }

    // Show the message {field, sentence, harmless} beside its field, or none.
    function problem(props, watch, name) {
        const show = () => {
            const {form} = forms[name], {field, sentence, harmless} = props.value || {};
            const words = form.querySelector(".problem");
            const place = form.querySelector(`[data-field="${field}"]`);
            for (const input of form.querySelectorAll("input")) {
                const bad = sentence && !harmless && input.name && input.closest("[data-field]") === place;
                if (bad) input.setAttribute("aria-invalid", "true");
                else input.removeAttribute("aria-invalid");
            }
            if (place) place.append(words);
            if (place?.closest("details")) place.closest("details").open = true;
            words.classList.toggle("harmless", !!harmless);
            words.textContent = sentence ?? "";
        };
        watch("value", show);
        if (props.value) show(); // that of a link, whose tab opens only now
    }

    // Show Gradio's "queue: 3/5" in words.
    function busy(element) {
        const words = document.createElement("p"), block = element.closest("#busy");
        Object.assign(words, {id: "waiting", role: "status"});
        block.after(words);
        new MutationObserver(() => {
            const place = block.textContent.match(/queue: (\d+)/)?.[1];
            words.textContent = !place ? "" : place === "1" ? "The page is busy; your drawing is next."
                : `The page is busy; your drawing is number ${place} in the queue.`;
        }).observe(block, {subtree: true, childList: true, characterData: true});
    }

    // ---- pictures

    // Pass a component's value to the custom element in it. With an event, the server redraws the picture when it is in
    // view and one of the subject's fields in `about` has changed.
    function picture(element, props, trigger, watch, event, about) {
        const shown = element.firstElementChild;
        let area;
        if (shown.localName === "digit-arrows" && latest) shown.film = latest; // another view of the same film
        const show = () => {
            element.classList.remove("stale");
            const {value} = props;
            if (area) area.waits = value?.columns?.length < value?.total;
            if (shown.film) shown.hidden = !value; // the sketch was cleared
            if (value) PICTURES[shown.localName]?.(shown, value);
        };
        watch("value", show);
        if (shown.id !== "film" || !isLink()) show();
        element.addEventListener("digit-sketch", ({detail}) => {
            props.value = detail.pixels;
            trigger(event);
        });
        if (!event || about === "sketch") return;
        area = {element, seen: false, waits: false, fields: about.split(" "), ask: () => {
            if (props.value) props.value = {...props.value, stale: true}; // an identical picture is an update, too
            trigger(event);
        }};
        area.drawn = props.value && subject ? key(area) : ""; // drawn already, for a link
        areas.push(area);
        new IntersectionObserver(entries => {
            area.seen = entries.at(-1).isIntersecting;
            refresh();
        }).observe(element);
    }

    const PICTURES = {
        "digit-film": (element, value) => {
            if (element.id !== "film") {
                element.film = digits.film(value);
                return;
            }
            latest = element.film = digits.film(value);
            for (const arrows of document.querySelectorAll("digit-arrows")) arrows.film = latest;
            const first = !subject, before = JSON.stringify(subject);
            subject = {digit: value.digits[0], seed: value.seeds[0], steps: value.steps, guidance: value.guidance};
            if (!first || touched) follow();
            if (!first && before !== JSON.stringify(subject)) one("#announcement").textContent = digits.alt(subject);
            const name = value.guidance === 0 ? "Any class" : digits.named(subject.digit);
            one("#digit-title").textContent = `${name} from seed ${subject.seed}`;
            if (toFocus) setTimeout(() => one("#digit-title").focus());
            if (toNumbers) select("numbers");
            toFocus = toNumbers = false;
            refresh();
        },
        "digit-row": (element, value) => {
            element.film = digits.film(value);
            if (element.id !== "row") return;
            written = value.digits.join("");
            follow();
        },
        "digit-paths": (element, value) => {
            element.hidden = !value.runs;
            if (value.runs) element.paths = value;
        },
        "digit-styles": (element, value) => element.film = digits.film(value),
        "digit-sheet": (element, value) => {
            const parts = value.pixels.map(digits.bytes), pixels = [];
            for (const part of parts) pixels.push(...part);
            element.sheet = {...value, pixels: Uint8Array.from(pixels)};
        },
        "digit-steps": (element, value) => {
            element.steps = value;
        },
    };

    // The subject's fields that a picture depends on, as a string.
    const key = area => JSON.stringify(area.fields.map(name => subject[name]));

    // Every change of the subject cancels the running drawings, so unfinished pictures must be drawn again.
    function forget() {
        for (const area of areas) if (area.waits) area.drawn = "";
    }

    // Request the pictures in view that do not show the current subject.
    function refresh() {
        if (!subject) return;
        for (const area of areas) {
            if (!area.seen || area.drawn === key(area)) continue;
            area.element.classList.add("stale");
            area.drawn = key(area);
            area.waits = true;
            area.ask();
        }
    }

    // Another seed, requested anywhere on the page.
    document.addEventListener("digit-noise", ({detail}) => {
        forms.panel.fill(FIELDS.map(name => name === "seed" ? detail.seed : subject[name]));
        forms.panel.send("input");
    });

    // A digit anywhere on the page opens in the first tab, without loading the page again.
    document.addEventListener("digit-open", event => {
        const {panel} = forms;
        event.preventDefault();
        touched = toFocus = true;
        panel.fill(FIELDS.map(name => event.detail[name] ?? subject[name]));
        panel.send("input");
        select("digit");
    });

    function select(tab) {
        digits.tab = tab;
        forms.panel.trigger("select");
    }

    // ---- the address

    const rowIsOpen = () => written && one("#row")?.checkVisibility();

    function query() {
        const link = new URL(location.href), asked = new URLSearchParams(digits.link(subject));
        if (rowIsOpen()) asked.set("number", written);
        for (const name of [...FIELDS, "number"]) link.searchParams.delete(name);
        asked.forEach((value, name) => link.searchParams.set(name, value));
        return link;
    }

    // Make the address bar show what is drawn, regardless of the controls.
    function follow() {
        const link = query(), elsewhere = one("#static");
        history.replaceState(null, "", link);
        if (elsewhere) elsewhere.search = link.search;
    }

    Object.assign(digits, {form, problem, picture, busy});
}
