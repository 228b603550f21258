// The flow map of model/flow_map.py in the browser: a network that jumps from time t to any earlier time s, with the
// guidance scale as an input. Only its modulations differ from those of a velocity network.

import {DiT, TimeEmbedder} from "./dit.js";
import {jump} from "./flow.js";

// Average velocity of the guided flow from t to s; a moment is [t, s, guidance].
export class FlowMap extends DiT {
    load(loader) {
        this.embedStep = new TimeEmbedder(loader, "embed_step", 10);
        this.embedGuidance = new TimeEmbedder(loader, "embed_guidance", 10);
    }

    // A scale that the map was trained for: 0 (the null class) or at least 1; values in between become 1.
    static nearestGuidance(scale) {
        return scale && Math.max(scale, 1);
    }

    // The states of `jump` along `times`, with one forward per step, or up to three for a film; see `DiT.states`.
    states({x, labels, times, guidance, film, partner}) {
        const scale = FlowMap.nearestGuidance(guidance), w = scale || 1;
        const asked = scale ? labels : labels.map(() => this.nullLabel);
        const moments = times.slice(0, -1).flatMap((t, i) => film
            ? [[t, times[i + 1], w], [t, t, w], [t, 0, w]] : [[t, times[i + 1], w]]);
        const {here, there} = this.shared(moments, partner);
        const average = network => (x, t, s) => network(x, [t, s, w], asked);
        return jump(average(here), x, times, film, average(there));
    }

    embed(moments) {
        const f = Math.fround, count = moments.length * this.width;
        const embedded = this.embedTime.forward(moments.map(([t]) => t));
        const others = [
            this.embedStep.forward(moments.map(([t, s]) => f(t) - f(s))),
            this.embedGuidance.forward(moments.map(([, , w]) => Math.log(f(w)))),
        ];
        const sum = this.memory.at(embedded, count);
        for (const other of others) this.memory.at(other, count).forEach((value, i) => sum[i] += value);
        return embedded;
    }
}
