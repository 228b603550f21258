"""What the browser gets beside the pictures: the style of the page, and the few lines of JavaScript that Gradio lacks."""

from model import show

CSS = (
    show.CSS
    + """
.gradio-container { max-width: 900px !important; margin: 0 auto !important; }
#digit { min-height: min(370px, 88vw); }
#status { text-align: center; font-size: 13px; }
#busy { min-height: 24px !important; }
#busy .wrap { position: static !important; background: none; opacity: 0; }
#busy .wrap.translucent { opacity: 1; transition: opacity 1s ease-in; }
#busy .wrap svg { display: none; }
#busy .progress-text { position: static; transform: none; }
.classes label { min-width: 44px; justify-content: center; }
.classes label:has(:checked) { background: var(--primary-600) !important; color: white !important; }
.classes label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.tab-container button.selected { color: var(--primary-600) !important; }
.dark .tab-container button.selected { color: var(--primary-400) !important; }
.classes input { position: absolute; opacity: 0; }
.classes label span { margin: 0 !important; }
footer .divider { display: none; }
"""
)

FOLLOW = """drawn => {
    const link = new URL(location.href), query = drawn?.match(/data-link="([^"]*)"/)?.[1];
    new URLSearchParams(query).forEach((value, name) => link.searchParams.set(name, value));
    if (query) history.replaceState(null, "", link);
}"""  # the address is that of the digit on the page, whatever the controls say
COPY_LINK = """async () => {
    if (!navigator.clipboard) return prompt("The link to this digit:", location.href);
    await navigator.clipboard.writeText(location.href);
    const button = document.querySelector("#copy");
    button.textContent = "Link copied";
    setTimeout(() => button.textContent = "Copy link", 1500);
}"""
OPEN = """element.addEventListener("click", event => {
    const cell = event.target.closest(".cells a");
    if (!cell || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    trigger("select", {link: cell.search});
    scrollTo(0, 0);
});"""  # without loading the page again, so that the sheet stays
ARROWS = """() => document.addEventListener("keydown", event => {
    const way = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!way || event.target.type !== "radio" || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = [...event.target.closest(".classes").querySelectorAll("input")];
    const next = all[(all.indexOf(event.target) + way + all.length) % all.length];
    event.preventDefault();
    next.focus();
    next.click();
})"""  # Gradio's radio buttons have a name each, so that the browser does not know them for a group
