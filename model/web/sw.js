// Service worker that caches the page's files, so that it opens at once and offline.
// The page itself is fetched again at every visit; the other files are in folders named by a hash of their content, so
// a cached file is never stale.

const FILES = []; // filled in by model/web/site.py
const CACHE = `digits ${registration.scope}`; // other pages on this server may have their own
const PAGE = new URL("./", registration.scope).href, kept = FILES.map(file => new URL(file, registration.scope).href);

async function keep() {
    const cache = await caches.open(CACHE), there = new Set((await cache.keys()).map(({url}) => url));
    await cache.addAll(kept.filter(url => !there.has(url)));
    await cache.add(new Request(PAGE, {cache: "reload"})); // last, after every file it refers to
}

// Runs once no open page needs the older files.
async function clear() {
    const cache = await caches.open(CACHE);
    for (const request of await cache.keys()) {
        if (request.url !== PAGE && !kept.includes(request.url)) await cache.delete(request);
    }
}

self.addEventListener("install", event => event.waitUntil(keep()));
self.addEventListener("activate", event => event.waitUntil(clear()));

self.addEventListener("fetch", event => {
    const {method, mode, url} = event.request, address = url.split(/[?#]/)[0];
    const isPage = mode === "navigate" && [PAGE, `${PAGE}index.html`].includes(address);
    if (method !== "GET" || !(isPage || kept.includes(address))) return;
    event.respondWith((async () => {
        const cache = await caches.open(CACHE);
        if (!isPage) return await cache.match(address) ?? fetch(event.request);
        return fetch(event.request).catch(() => cache.match(PAGE));
    })());
});
