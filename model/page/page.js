// The page that Gradio serves: forms, the elements in its components, the address, and what is drawn when it is seen.
//
// One subject {digit, seed, steps, guidance} for the whole page: the one of the digit that was drawn last. Pictures
// about it are drawn by the server when they come into sight, and again when it changes.

{
    const FIELDS = ["digit", "seed", "steps", "guidance"];
    const forms = {}; // by name
    const areas = []; // pictures that are drawn when they come into sight
    let subject; // what the digit that is shown was drawn from
    let latest; // its film
    let written = ""; // the number that is written in the row
    let touched = false; // whether the visitor has asked for anything yet
    let toNumbers = false; // whether the tab with the number is to be opened, once the page is there
    let toFocus = false; // whether the next digit was opened from a picture elsewhere

    const number = field => field.value === "" ? null : Number(field.value);
    const one = selector => document.querySelector(selector);

    // ---- forms

    // A form of html.py in a component: the component's value is the list of its fields.
    function form(element, props, trigger, watch) {
        const form = element.querySelector("form"), names = form.dataset.fields.split(" ");
        const fields = name => [...form.querySelectorAll(`[name="${name}"]`)];
        const range = name => form.querySelector(`[data-for="${name}"]`);
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
            level(name);
        });
        const level = name => {
            const slider = range(name), [field] = fields(name);
            if (!slider) return;
            slider.value = field.value;
            slider.style.setProperty("--at", (slider.value - slider.min) / (slider.max - slider.min));
        };
        form.addEventListener("submit", event => event.preventDefault());
        form.addEventListener("input", ({target}) => {
            const name = target.dataset.for ?? target.name;
            if (target.dataset.for) fields(name)[0].value = target.value;
            level(name);
            send("input");
        });
        // What was typed out of range, or between whole numbers, becomes what can be drawn.
        form.addEventListener("change", ({target}) => {
            if (target.type !== "number" || target.value === "") return;
            const whole = Number.isInteger(Number(target.step)) ? Math.round(target.value) : target.value;
            const fit = String(Math.min(Math.max(whole, target.min), target.max));
            if (fit === target.value) return;
            target.value = fit;
            target.dispatchEvent(new Event("input", {bubbles: true}));
        });
        form.addEventListener("click", ({target}) => {
            const pressed = target.closest("button");
            if (!pressed) return;
            if (pressed.type === "submit") {
                if (form.querySelector('[value="stop"]')) trigger("stop"); // what is asked for now takes its place
                send("submit");
            } else if (pressed.value === "stop") trigger("stop");
            else if (pressed.value === "copy") copyLink(pressed);
            else if (pressed.value === "another") {
                fields("seed")[0].value = Math.floor(Math.random() * 10000); // short enough to tell a friend
                send("input");
            }
        });
        watch("value", () => fill(props.value));
        const untouched = name => fields(name).every(
            field => field.value === (field.defaultValue ?? field.value) && field.checked === field.defaultChecked);
        // What was typed before the page was ready stays.
        if (names.every(untouched)) fill(props.value);
        else send("input");
        forms[element.closest(".block").id] = {form, fill, send, trigger};
        if (names.includes("steps")) visit(form, trigger);
    }

    function isLink() {
        const asked = new URLSearchParams(location.search);
        return [...FIELDS, "number"].some(name => asked.has(name));
    }

    // Whoever comes with a link sees what it asks for.
    function visit(form, trigger) {
        if ("visit" in form.dataset || isLink()) {
            touched = true;
            toNumbers = new URLSearchParams(location.search).has("number");
            trigger("visit");
        }
    }

    // The sentence {field, sentence, harmless} about a value beside its field, or none.
    function problem(props, watch, name) {
        watch("value", () => {
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
        });
    }

    // Gradio's "queue: 3/5" in words.
    function busy(element) {
        const words = document.createElement("p"), block = element.closest("#busy");
        Object.assign(words, {id: "waiting", role: "status"});
        block.after(words);
        new MutationObserver(() => {
            const place = block.textContent.match(/queue: (\d+)/)?.[1];
            words.textContent = !place ? "" : place === "1" ? "The page is busy; yours is the next drawing."
                : `The page is busy; ${place - 1} drawings come before yours.`;
        }).observe(block, {subtree: true, childList: true, characterData: true});
    }

    // ---- pictures

    // The element in a component, which gets the component's value. With an event, the server draws it when it is in
    // sight and what it depends on has changed.
    function picture(element, props, trigger, watch, event, about) {
        const shown = element.firstElementChild;
        let area;
        if (shown.localName === "digit-arrows" && latest) shown.film = latest; // the same film, seen otherwise
        const show = () => {
            element.classList.remove("stale");
            if (area) area.waits = props.value.columns?.length < props.value.total;
            if (props.value) PICTURES[shown.localName]?.(shown, props.value);
        };
        watch("value", show);
        if (shown.id !== "film" || !isLink()) show();
        element.addEventListener("digit-sketch", ({detail}) => {
            props.value = detail.pixels;
            trigger(event);
        });
        if (!event || about === "sketch") return;
        area = {element, seen: false, waits: false, fields: about.split(" "), ask: () => {
            if (props.value) props.value = {...props.value, stale: true}; // the same picture is news then, too
            trigger(event);
        }};
        area.drawn = props.value && subject ? key(area) : ""; // a link has brought it
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

    // What of the subject a picture depends on.
    const key = area => JSON.stringify(area.fields.map(name => subject[name]));

    // What is being drawn is cancelled by every change of the subject, so it is drawn again, changed or not.
    function forget() {
        for (const area of areas) if (area.waits) area.drawn = "";
    }

    // Ask for the pictures in sight that show something else than the page's subject.
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

    // Another seed, wherever it is asked for.
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

    // Make the address bar show what is drawn, whatever the controls say.
    function follow() {
        const link = query(), elsewhere = one("#static");
        history.replaceState(null, "", link);
        if (elsewhere) elsewhere.search = link.search;
    }

    async function copyLink(button) {
        const {href: link} = subject ? query() : location; // before the first digit is there, it is what was asked for
        try {
            await navigator.clipboard.writeText(link);
        } catch { // there is no clipboard without HTTPS, and none in the frame of another page
            one("#link")?.remove();
            button.parentElement.insertAdjacentHTML("afterend", '<input id="link" aria-label="Link to copy" readonly>');
            const field = one("#link");
            field.value = link;
            return field.select();
        }
        button.textContent = "Link copied";
        setTimeout(() => button.textContent = "Copy link", 1500);
    }

    window.digits ??= {};
    Object.assign(digits, {form, problem, picture, busy});
}
