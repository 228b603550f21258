// The forms of both pages: number fields with sliders, and the buttons "Another seed" and "Copy link".

{
    // A random seed, short enough to tell a friend.
    const anySeed = () => Math.floor(Math.random() * 10000);

    // Move the slider of a field, if it has one, to the field's value.
    function level(field) {
        const slider = field.form.querySelector(`[data-for="${field.name}"]`);
        if (!slider) return;
        slider.value = field.value;
        slider.style.setProperty("--at", (slider.value - slider.min) / (slider.max - slider.min));
    }

    async function copy(button, link) {
        document.querySelector("#link")?.remove();
        try {
            await navigator.clipboard.writeText(link);
            button.textContent = "Link copied";
            setTimeout(() => button.textContent = "Copy link", 1500);
        } catch { // no clipboard access without HTTPS or in a foreign frame
            const properties = {id: "link", readOnly: true, value: link, "aria-label": "Link to copy"};
            const field = digits.make("input", properties);
            button.parentElement.after(field);
            field.select();
        }
    }

    // Handle the events of a form. `changed` is called with a field that the visitor has changed, `link` returns the
    // link to copy.
    function controls(form, changed = () => {}, link = () => location.href) {
        form.addEventListener("submit", event => event.preventDefault());
        form.addEventListener("input", ({target}) => {
            const name = target.dataset.for, field = name ? form.querySelector(`[name="${name}"]`) : target;
            if (name) field.value = target.value;
            level(field);
            changed(field);
        });
        const enter = (field, value) => {
            field.value = value;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        };
        // Typed numbers are clamped to the valid range and rounded.
        form.addEventListener("change", ({target}) => {
            if (target.type !== "number" || target.value === "") return;
            const value = Number.isInteger(+target.step) ? Math.round(target.value) : +target.value;
            const near = Math.min(Math.max(value, target.min), target.max);
            if (near !== +target.value) enter(target, near);
        });
        form.addEventListener("click", ({target}) => {
            const button = target.closest("button");
            if (button?.value === "copy") copy(button, link());
            if (button?.value === "another") enter(form.querySelector("[name=seed]"), anySeed());
        });
    }

    Object.assign(digits, {anySeed, level, controls});
}
