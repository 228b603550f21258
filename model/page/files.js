// Files to save, made in the browser: PNG and GIF of exact pixels, and NumPy's .npz.
// Images are uint8 [N, 28, 28] in one Uint8Array; several form a grid with grey gaps, as in `images.sheet`.

{
    const SIZE = 28, GAP = 2, BACKGROUND = 64;

    const CRC = Int32Array.from({length: 256}, (_, n) => {
        for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
        return n;
    });

    function crc32(bytes) {
        let crc = -1;
        for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
        return ~crc >>> 0;
    }

    const utf8 = text => new TextEncoder().encode(text);
    const latin1 = text => Uint8Array.from(text, character => character.charCodeAt(0));

    function joined(...parts) {
        const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
        let at = 0;
        for (const part of parts) {
            whole.set(part, at);
            at += part.length;
        }
        return whole;
    }

    // Integers of 1, 2 or 4 bytes, [size, value] each.
    function packed(littleEndian, ...fields) {
        const view = new DataView(new ArrayBuffer(fields.reduce((length, [size]) => length + size, 0)));
        let at = 0;
        for (const [size, value] of fields) {
            view[{1: "setUint8", 2: "setUint16", 4: "setUint32"}[size]](at, value, littleEndian);
            at += size;
        }
        return new Uint8Array(view.buffer);
    }

    // Images [N, 28, 28] as one picture {width, height, pixels}, each pixel `scale` wide; a single image has no margin.
    function grid(images, columns, scale) {
        const count = images.length / SIZE ** 2, gap = count > 1 ? GAP : 0, pitch = SIZE + gap;
        columns = Math.min(columns, count);
        const width = (columns * pitch + gap) * scale, height = (Math.ceil(count / columns) * pitch + gap) * scale;
        const pixels = new Uint8Array(width * height).fill(BACKGROUND);
        for (let i = 0; i < count; i++) {
            const left = (gap + (i % columns) * pitch) * scale, top = (gap + Math.floor(i / columns) * pitch) * scale;
            for (let y = 0; y < SIZE * scale; y++) {
                const row = (i * SIZE + Math.floor(y / scale)) * SIZE, to = (top + y) * width + left;
                for (let x = 0; x < SIZE; x++) {
                    pixels.fill(images[row + x], to + x * scale, to + (x + 1) * scale);
                }
            }
        }
        return {width, height, pixels};
    }

    // A greyscale PNG file, with `comment` in the text chunk that most viewers show.
    async function png(images, columns = 1, {scale = 1, comment = ""} = {}) {
        const {width, height, pixels} = grid(images, columns, scale);
        const lines = new Uint8Array((width + 1) * height); // each begins with its filter, 0 for none
        for (let y = 0; y < height; y++) lines.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
        const stream = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
        const data = new Uint8Array(await new Response(stream).arrayBuffer());
        const chunk = (kind, body) => {
            const content = joined(latin1(kind), body);
            return joined(packed(false, [4, body.length]), content, packed(false, [4, crc32(content)]));
        };
        const text = /^[\0-\xff]*$/.test(comment)
            ? chunk("tEXt", latin1(`Comment\0${comment}`))
            : chunk("iTXt", utf8(`Comment\0\0\0\0\0${comment}`));
        return new Blob([
            latin1("\x89PNG\r\n\x1a\n"),
            chunk("IHDR", packed(false, [4, width], [4, height], [1, 8], [1, 0], [1, 0], [1, 0], [1, 0])),
            ...(comment ? [text] : []),
            chunk("IDAT", data),
            chunk("IEND", new Uint8Array()),
        ], {type: "image/png"});
    }

    // GIF's LZW of 8-bit pixels (GIF89a, appendix F): codes of 9 to 12 bits, the lowest bit first.
    function lzw(pixels) {
        const CLEAR = 256, END = 257, FULL = 4096;
        const table = new Uint16Array(FULL * 256); // code of a known string and a pixel → code of both; 0 for none
        const out = [];
        let next, size, buffer = 0, bits = 0;
        const write = code => {
            buffer |= code << bits;
            for (bits += size; bits >= 8; bits -= 8) {
                out.push(buffer & 255);
                buffer >>>= 8;
            }
        };
        const clear = () => {
            write(CLEAR);
            table.fill(0);
            [next, size] = [END + 1, 9];
        };
        size = 9;
        clear();
        let code = pixels[0];
        for (let i = 1; i < pixels.length; i++) {
            const longer = code * 256 + pixels[i];
            if (table[longer]) {
                code = table[longer];
                continue;
            }
            write(code);
            code = pixels[i];
            if (next === FULL) {
                clear();
                continue;
            }
            if (next === 1 << size) size++; // the decoder adds a string one code later
            table[longer] = next++;
        }
        write(code);
        if (next === 1 << size && size < 12) size++;
        write(END);
        if (bits) out.push(buffer & 255);
        return out;
    }

    // A looping GIF of frames [N, 28, 28] that lasts `milliseconds`, then shows the last frame for `rest`.
    function gif(frames, columns = 1, {scale = 1, milliseconds = 2000, rest = 1500} = {}) {
        const {width, height} = grid(frames[0], columns, scale);
        const greys = Uint8Array.from({length: 768}, (_, i) => Math.floor(i / 3));
        const parts = [
            latin1("GIF89a"),
            packed(true, [2, width], [2, height], [1, 0xf7], [1, 0], [1, 0]), // a palette of 256 colours
            greys,
            latin1("\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"), // loop forever
        ];
        for (const [i, frame] of frames.entries()) {
            const delay = Math.round((i < frames.length - 1 ? milliseconds / frames.length : rest) / 10);
            parts.push(latin1("\x21\xf9\x04\x04"), packed(true, [2, delay], [1, 0], [1, 0])); // no disposal
            parts.push(latin1("\x2c\0\0\0\0"), packed(true, [2, width], [2, height], [1, 0], [1, 8]));
            const data = lzw(grid(frame, columns, scale).pixels);
            for (let at = 0; at < data.length; at += 255) {
                const block = data.slice(at, at + 255);
                parts.push(Uint8Array.of(block.length, ...block));
            }
            parts.push(Uint8Array.of(0));
        }
        return new Blob([...parts, latin1(";")], {type: "image/gif"});
    }

    // NumPy's .npy: `type` as NumPy writes it, such as |u1.
    function npy(type, shape, data) {
        const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
        const header = `{'descr': '${type}', 'fortran_order': False, 'shape': ${tuple}, }`;
        const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n"; // data begin at 64·k
        return joined(latin1("\x93NUMPY\x01\0"), packed(true, [2, padded.length]), latin1(padded), data);
    }

    // A labelled data set for `numpy.load`: `images` uint8 [N, 28, 28] and `labels` int64 [N], in an uncompressed zip.
    function npz(images, labels) {
        const long = new Uint8Array(BigInt64Array.from(labels, BigInt).buffer);
        const files = {
            "images.npy": npy("|u1", [labels.length, SIZE, SIZE], images),
            "labels.npy": npy("<i8", [labels.length], long),
        };
        const parts = [], entries = [];
        let at = 0;
        for (const [name, data] of Object.entries(files)) {
            const common = [[2, 20], [2, 0], [2, 0], [2, 0], [2, 0x21], [4, crc32(data)], [4, data.length],
                [4, data.length], [2, name.length], [2, 0]]; // version, flags, stored, 1 January 1980
            const header = joined(latin1("PK\x03\x04"), packed(true, ...common), latin1(name));
            entries.push(joined(
                latin1("PK\x01\x02"),
                packed(true, [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]),
                latin1(name),
            ));
            parts.push(header, data);
            at += header.length + data.length;
        }
        const directory = joined(...entries), count = entries.length;
        const end = packed(true, [4, 0], [2, count], [2, count], [4, directory.length], [4, at], [2, 0]);
        return new Blob([...parts, directory, latin1("PK\x05\x06"), end], {type: "application/zip"});
    }

    // Download a blob as a file.
    function save(blob, name) {
        const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it later
    }

    window.digits ??= {};
    Object.assign(digits, {png, gif, npz, save});
}
