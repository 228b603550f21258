// Rectified flow in the browser, after model/flow.py: t = 1 is noise, t = 0 is the image. Images are Float32Array
// [B · 784]; a velocity is any function (x, t, tNext) → v, or a promise of it.

const shifted = (t, shift) => (shift * t) / (1 + (shift - 1) * t);

// `steps` + 1 times from 1 to 0: equal steps, then shifted.
export const timeGrid = (steps, shift) => Array.from({length: steps + 1}, (_, i) => shifted(1 - i / steps, shift));

// The velocity of a network (x, t, labels) → v under classifier-free guidance; scales 0 and 1 cost one forward.
//
// `partner` is the same network in another worker, say, and returns a promise: both forwards then run side by side.
export function guided(network, labels, nullLabel, scale, partner = network) {
    const nothing = labels.map(() => nullLabel);
    return async (x, t) => {
        if (scale === 0 || scale === 1) return network(x, t, scale ? labels : nothing);
        const asked = partner(x, t, nothing), conditional = network(x, t, labels), plain = await asked;
        return plain.map((v, i) => v + scale * (conditional[i] - v));
    };
}

// Second-order Adams–Bashforth along `times`: yields {t, x, v} before each update, and the image last, without v.
export async function* sample(velocity, x, times) {
    let vBefore, tBefore;
    for (let i = 0; i + 1 < times.length; i++) {
        const [t, tNext] = [times[i], times[i + 1]], v = await velocity(x, t, tNext);
        yield {t, x, v};
        const slope = vBefore && tNext > 0 ? (tNext - t) / (2 * (t - tBefore)) : 0; // Euler's step first and last
        const before = vBefore ?? v;
        x = x.map((value, j) => value + (tNext - t) * (v[j] + (v[j] - before[j]) * slope));
        [vBefore, tBefore] = [v, t];
    }
    yield {t: 0, x};
}

// Numbers of the network's range → pixels 0 to 255, rounded half to even and clamped, as images.to_pixels.
export const toPixels = (x, mean, std) => Uint8ClampedArray.from(x, value => (value * std + mean) * 255);
