// Rectified flow in the browser, after model/flow.py: t = 1 is noise, t = 0 is the image. Images are Float32Array
// [B · 784]; a velocity is any function (x, t, tNext) → v, or a promise of it. A state is {t, x, v, image}: `v` is the
// velocity and `image` the predicted image, which is `x` itself at the end.

const shifted = (t, shift) => (shift * t) / (1 + (shift - 1) * t);

// `steps` + 1 times from 1 to 0: equal steps, then shifted.
export const timeGrid = (steps, shift) => Array.from({length: steps + 1}, (_, i) => shifted(1 - i / steps, shift));

// The velocity of a network (x, t, labels) → v under classifier-free guidance; scales 0 and 1 cost one forward.
//
// `partner` may be the same network in another worker, which returns a promise: both forwards then run in parallel.
export function guided(network, labels, nullLabel, scale, partner = network) {
    const nothing = labels.map(() => nullLabel);
    return async (x, t) => {
        if (scale === 0 || scale === 1) return network(x, t, scale ? labels : nothing);
        const asked = partner(x, t, nothing), conditional = network(x, t, labels), plain = await asked;
        return plain.map((v, i) => v + scale * (conditional[i] - v));
    };
}

// Spherical interpolation between two images [784], at a weight `w` from 0 (`a`) to 1 (`b`).
export function slerp(a, b, w) {
    const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)), angle = Math.acos(Math.min(Math.max(cosine, -1), 1));
    const isArc = angle >= 1e-3; // else sin(angle) is too close to 0; the arc is nearly its chord
    const [ofA, ofB] = isArc ? [1 - w, w].map(part => Math.sin(part * angle) / Math.sin(angle)) : [1 - w, w];
    return a.map((value, i) => ofA * value + ofB * b[i]);
}

// Second-order Adams–Bashforth along `times`: yields the state before each update, and the image last, without v.
export async function* sample(velocity, x, times) {
    let vBefore, tBefore;
    for (let i = 0; i + 1 < times.length; i++) {
        const [t, tNext] = [times[i], times[i + 1]], v = await velocity(x, t, tNext);
        yield {t, x, v, image: x.map((value, j) => value - t * v[j])};
        const slope = vBefore && tNext > 0 ? (tNext - t) / (2 * (t - tBefore)) : 0; // Euler's step first and last
        const before = vBefore ?? v;
        x = x.map((value, j) => value + (tNext - t) * (v[j] + (v[j] - before[j]) * slope));
        [vBefore, tBefore] = [v, t];
    }
    yield {t: 0, x, image: x};
}

// Jump along `times` with a flow map: yields the state before each jump, and the image last, without v.
//
// `average` is (x, t, s) → u, the average velocity from t to s. The velocity and the predicted image of a state cost a
// call each and are computed only for a `film`; `partner`, as in `guided`, computes the velocity in parallel.
export async function* jump(average, x, times, film = false, partner = average) {
    for (let i = 0; i + 1 < times.length; i++) {
        const [t, s] = [times[i], times[i + 1]], asked = film ? partner(x, t, t) : undefined, u = average(x, t, s);
        const whole = film && (s === 0 ? u : average(x, t, 0));
        yield {t, x, v: await asked, image: whole ? x.map((value, j) => value - t * whole[j]) : undefined};
        x = x.map((value, j) => value + (s - t) * u[j]);
    }
    yield {t: 0, x, image: x};
}

// Numbers in the network's range → pixels 0 to 255, rounded half to even and clamped, as images.to_pixels.
export const toPixels = (x, mean, std) => Uint8ClampedArray.from(x, value => (value * std + mean) * 255);
