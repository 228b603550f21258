// Validation of external values, after model/check.py: each function throws an Error with a one-sentence message.

// A whole number in low..high.
export function whole(name, value, low, high) {
    if (!Number.isInteger(value) || value < low || value > high)
        throw new Error(`${name} must be a whole number from ${low} to ${high}, not ${shown(value)}`);
}

// A finite number in low..high.
export function number(name, value, low, high) {
    if (!Number.isFinite(value) || value < low || value > high)
        throw new Error(`${name} must be a number from ${low} to ${high}, not ${shown(value)}`);
}

// Sampling settings {steps, guidance, time_shift}, as sampling.SamplingConfig; `source` begins the message.
export function sampling({steps, guidance, time_shift}, source = "") {
    whole(`${source}steps`, steps, 1, 50);
    number(`${source}guidance`, guidance, 0, 5);
    number(`${source}time_shift`, time_shift, 1e-3, 1e3);
}

// The value for a message, cut to one short line.
export function shown(value) {
    const text = JSON.stringify(value) ?? "nothing";
    return text.length <= 40 ? text : `${text.slice(0, 37)}...`;
}
