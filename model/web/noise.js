// The noise of a seed: the numbers of torch.randn with a generator of that seed, as in flow.noise, to 5e-6.

// Standard normal noise of a whole-number seed for one image: Float32Array [784].
//
// As torch.randn on a CPU: uniform numbers of 24 bits, then Box–Muller in blocks of 16, where number i pairs with
// number i + 8. Rounds to float32 wherever PyTorch does.
export function noise(seed) {
    const next = mersenneTwister(seed), f = Math.fround;
    const x = Float32Array.from({length: 28 * 28}, () => (next() & 0xffffff) / 2 ** 24);
    for (let block = 0; block < x.length; block += 16)
        for (let i = block; i < block + 8; i++) {
            const radius = f(Math.sqrt(f(-2 * f(Math.log(f(1 - x[i]))))));
            const angle = f(f(2 * Math.PI) * x[i + 8]);
            x[i] = radius * Math.cos(angle);
            x[i + 8] = radius * Math.sin(angle);
        }
    return x;
}

// The generator mt19937 (Matsumoto & Nishimura, 1998), as a function that returns the next 32 bits.
function mersenneTwister(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let at = 624;
    return () => {
        if (at === 624) {
            for (let i = 0; i < 624; i++) {
                const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
                state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
            }
            at = 0;
        }
        let y = state[at++];
        y ^= y >>> 11;
        y ^= (y << 7) & 0x9d2c5680;
        y ^= (y << 15) & 0xefc60000;
        return y ^ (y >>> 18);
    };
}
