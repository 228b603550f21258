// What Gradio lacks: the address of the digit, links that open without a reload, arrow keys between radio buttons.

window.digits = {
    // Make the address bar show the digit that is drawn, whatever the controls say.
    follow(drawn) {
        const link = new URL(location.href), query = drawn?.match(/data-link="([^"]*)"/)?.[1];
        new URLSearchParams(query).forEach((value, name) => link.searchParams.set(name, value));
        if (query) history.replaceState(null, "", link);
    },

    async copyLink() {
        const button = document.querySelector("#copy");
        try {
            await navigator.clipboard.writeText(location.href);
        } catch { // there is no clipboard without HTTPS, and none in the frame of another page
            document.querySelector("#link")?.remove();
            button.parentElement.insertAdjacentHTML("afterend", '<input id="link" aria-label="Link to copy" readonly>');
            const field = document.querySelector("#link");
            field.value = location.href;
            return field.select();
        }
        button.textContent = "Link copied";
        setTimeout(() => button.textContent = "Copy link", 1500);
    },

    // Open a cell of a sheet in the Draw tab without reloading the page, so that the sheet stays.
    openCells(sheet, trigger) {
        sheet.addEventListener("click", event => {
            const cell = event.target.closest(".cells a");
            if (!cell || event.ctrlKey || event.metaKey || event.shiftKey) return;
            event.preventDefault();
            trigger("select", {link: cell.search});
            scrollTo(0, 0);
        });
    },
};

// Gradio gives each radio button a name of its own, so the browser does not treat them as one group.
document.addEventListener("keydown", event => {
    const way = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!way || event.target.type !== "radio" || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = [...event.target.closest(".classes").querySelectorAll("input")];
    const next = all[(all.indexOf(event.target) + way + all.length) % all.length];
    event.preventDefault();
    next.focus();
    next.click();
});
