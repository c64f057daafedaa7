"""A reader of trace shards in numpy and h5py, written from docs/trace-format.md alone."""

import json
import math

import h5py
import numpy as np


def _crc32c_table():
    table = np.zeros(256, dtype=np.uint32)
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
        table[byte] = remainder
    return [int(entry) for entry in table]


_TABLE = _crc32c_table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in bytes(data):
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Rans:
    """A stream of several interleaved coders."""

    def __init__(self, data, lanes):
        self.states = np.frombuffer(data, "<u4", lanes).tolist()
        self.words = np.frombuffer(data, "<u2", (len(data) - 4 * lanes) // 2, 4 * lanes).tolist()
        self.next = 0

    def _set(self, lane, state):
        if state < 65536:
            state = state * 65536 + self.words[self.next]
            self.next += 1
        self.states[lane] = state

    def symbol(self, lane, table):
        starts, frequencies = table
        state = self.states[lane]
        slot = state % 4096
        symbol = int(np.searchsorted(starts, slot, side="right")) - 1
        self._set(lane, int(frequencies[symbol]) * (state // 4096) + slot - int(starts[symbol]))
        return symbol

    def bit(self, zero):
        state = self.states[0]
        slot, high = state % 4096, state // 4096
        bit = slot >= zero
        self._set(0, (4096 - zero) * high + slot - zero if bit else zero * high + slot)
        return int(bit)

    def raw(self, lane, bits):
        state = self.states[lane]
        self._set(lane, state >> bits)
        return state % (1 << bits)

    def magnitude(self, lane, table):
        symbol = self.symbol(lane, table)
        if symbol < 8:
            return symbol
        bits = (symbol - 8) // 2 + 2
        low = min(bits, 16)
        raw = self.raw(lane, low)
        if bits > low:
            raw += self.raw(lane, bits - low) << low
        return ((2 + symbol % 2) << bits) + raw

    def finish(self):
        assert self.next == len(self.words) and all(state == 65536 for state in self.states)


def adaptive_list(data, count):
    coder, models, before, values = Rans(data, 1), {}, 0, []
    for _ in range(count):
        known = 1
        for _ in range(5):
            zero = models.get((before, known), 2048)
            bit = coder.bit(zero)
            models[before, known] = zero - zero // 32 if bit else zero + (4096 - zero) // 32
            known = 2 * known + bit
        before = known - 32
        values.append(before)
    coder.finish()
    return np.array(values)


def normalised(classes):
    weights = [math.isqrt(1 << (int(c) + 3)) if c else 0 for c in classes]
    if not any(weights):
        weights[0] = 1
    frequencies = np.array([max(1, w * 4096 // sum(weights)) if w else 0 for w in weights])
    while (left := 4096 - int(frequencies.sum())) != 0:
        most = int(frequencies.argmax())
        frequencies[most] += left if left > 0 else -min(-left, max(1, int(frequencies[most]) // 8))
    # A symbol without frequency has an empty interval; searchsorted never finds it because later starts are equal.
    starts = np.concatenate([[0], np.cumsum(frequencies)[:-1]])
    used = frequencies > 0
    return starts, frequencies, used


def id_type(vocab):
    return np.dtype("<u2" if vocab <= 65536 else "<u4")


class SetModel:
    """The tables of the codec `sets`."""

    SYMBOLS = 64

    def __init__(self, model, vocab, version, weight_bits):
        contexts, self.opening = 111, []
        if version == 2:
            contexts = 129
            count, dtype = int(np.frombuffer(model, "<u4", 1)[0]), id_type(vocab)
            self.opening = np.frombuffer(model, dtype, count, 4).tolist()
            model = model[4 + dtype.itemsize * count :]
        values = adaptive_list(model, vocab + contexts * self.SYMBOLS)
        self.ids = np.argsort(-values[:vocab], kind="stable").tolist()
        self.tables = []
        for context in range(contexts):
            starts, frequencies, used = normalised(values[vocab + context * self.SYMBOLS :][: self.SYMBOLS])
            starts[~used] = np.where(np.arange(self.SYMBOLS) > np.flatnonzero(used)[-1], 4096, starts)[~used]
            self.tables.append((starts, frequencies))
        self.weight_bits = weight_bits
        last = (1 << weight_bits) - 1
        self.shares = np.sin(np.arange(last + 1) / last * np.pi / 2) ** 2
        self.shares[last] = 1


class Shard:
    FINISH = ["stop", "length"]
    VERDICT = ["unchecked", "correct", "incorrect"]

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "r") as file:
            self.version = int(file.attrs["format_version"])
            assert file.attrs["format"] == b"distill-trace-shard" and self.version in (1, 2), dict(file.attrs)
            self.provenance = json.loads(file["provenance"][:].tobytes())
            self.codec = json.loads(file["codec"][:].tobytes())
            self.model = file["model"][:].tobytes()
            self.tokens = file["tokens"][:]
            self.payload = file["payload"][:].tobytes()
            fidelity = file["fidelity"][:].tobytes()
            self.hidden = file["hidden"][:].tobytes() if self.version == 2 else b""
            self.table = {name: column[:] for name, column in file["documents"].items()}
        self.size = len(self.table["sample"])
        self.fidelity = json.loads(fidelity) if fidelity else None
        self.mode = self.provenance["targets"]["mode"]
        if self.codec["name"] == "sets":
            self.sets = SetModel(self.model, self.provenance["vocab_size"], self.codec["version"], self.codec["weight_bits"])
        self.coded_tokens = self.codec["name"] == "sets" and self.codec["version"] == 2
        assert (len(self.tokens) == 0) == self.coded_tokens
        self._check_user_block(path)

    def _check_user_block(self, path):
        raw = open(path, "rb").read()
        block = raw[:512]
        assert block[:8] == b"DSTLSHRD"
        version, block_crc = np.frombuffer(block, "<u4", 2, 8)
        assert version == self.version
        assert crc32c(block[:12] + bytes(4) + block[16:]) == block_crc
        assert int(np.frombuffer(block, "<u8", 1, 16)[0]) == len(raw)
        datasets = 17 if version == 1 else 20
        places = np.frombuffer(block, "<u8", 2 * datasets, 32).reshape(datasets, 2).tolist()
        assert not any(block[32 + 16 * datasets :])
        rest, end = b"", 512
        bulk = {0: self.tokens.tobytes(), 1: self.payload} | ({19: self.hidden} if version == 2 else {})
        for number in sorted(bulk, key=lambda number: places[number]):
            at, size = places[number]
            assert raw[at : at + size] == bulk[number]
            if size:
                rest, end = rest + raw[end:at], at + size
        assert crc32c(rest + raw[end:]) == int(np.frombuffer(block, "<u4", 1, 24)[0])

    def document(self, index):
        table = self.table
        between = lambda data, offsets: data[int(offsets[index]) : int(offsets[index + 1])]
        prompt_id = between(table["prompt_ids"], table["prompt_id_offsets"]).tobytes()
        stored = between(self.tokens, table["token_offsets"])
        count = int(table["token_offsets"][index + 1] - table["token_offsets"][index])
        payload = between(self.payload, table["payload_offsets"])
        column = lambda name, dtype: table[name][index].astype(dtype).tobytes()
        record = (
            np.uint32(len(prompt_id)).tobytes() + column("sample", "<u4") + column("prompt_length", "<u4") + np.uint32(count).tobytes()
            + column("finish_reason", "u1") + column("verdict", "u1") + bytes(2) + column("log_probability", "<f8") + column("seed", "<u8")
            + prompt_id + stored.tobytes() + payload
        )
        assert crc32c(record) == int(table["crc32c"][index]), f"document {index}: checksum"
        prompt_length = int(table["prompt_length"][index])
        stream = None
        if self.codec["name"] == "sets":
            stream = Rans(payload, min(8, count if self.coded_tokens else count - prompt_length))
        tokens = self._tokens(stream, count) if self.coded_tokens else stored.tolist()
        return {
            "prompt_id": prompt_id.decode(),
            "sample": int(table["sample"][index]),
            "prompt_length": prompt_length,
            "tokens": tokens,
            "finish_reason": self.FINISH[table["finish_reason"][index]],
            "verdict": self.VERDICT[table["verdict"][index]],
            "log_probability": float(table["log_probability"][index]),
            "seed": int(table["seed"][index]),
            "targets": self.targets(payload, stream, tokens[prompt_length:]),
        }

    def hidden_states(self, index):
        """f32 [positions, layers, width]."""
        spec, table = self.provenance["hidden_states"], self.table
        stored = self.hidden[int(table["hidden_offsets"][index]) : int(table["hidden_offsets"][index + 1])]
        assert crc32c(stored, int(table["crc32c"][index])) == int(table["hidden_crc32c"][index]), f"document {index}: hidden states"
        width, fp8 = spec["width"], spec["dtype"] == "fp8"
        scales = math.ceil(width / 128) if fp8 else 0
        states = np.frombuffer(stored, "u1").reshape(-1, len(spec["layers"]), 4 * scales + width * (1 if fp8 else 2))
        values = np.ascontiguousarray(states[..., 4 * scales :])
        if not fp8:
            return (values.view("<u2").astype(np.uint32) << 16).view(np.float32)
        exponent, mantissa = (values >> 3 & 15).astype(int), (values & 7).astype(int)
        magnitude = np.ldexp(mantissa + 8 * (exponent > 0), np.maximum(exponent, 1) - 10)
        codes = np.where(values & 128, -magnitude, magnitude).astype(np.float32)
        return codes * np.repeat(np.ascontiguousarray(states[..., : 4 * scales]).view("<f4"), 128, axis=2)[..., :width]

    def targets(self, payload, stream, completion):
        if stream is not None:
            return self._sets(stream, completion)
        return {("plain", 1): self._plain, ("full", 1): self._full}[self.codec["name"], self.codec["version"]](payload, completion)

    def _plain(self, payload, completion):
        positions = len(completion)
        counts = np.frombuffer(payload, "<u4", positions)
        uncovered = np.frombuffer(payload, "<f4", positions, 4 * positions)
        entries, at = int(counts.sum()), 8 * positions
        dtype = id_type(self.provenance["vocab_size"])
        ids = np.frombuffer(payload, dtype, entries, at)
        weights = np.frombuffer(payload, "<f4", entries, at + dtype.itemsize * entries)
        assert at + (dtype.itemsize + 4) * entries == len(payload)
        ends = np.cumsum(counts)
        return [(ids[end - count : end], weights[end - count : end], rest) for count, end, rest in zip(counts, ends, uncovered)]

    def _full(self, payload, completion):
        positions = len(completion)
        rows = np.exp(np.frombuffer(payload, "<f2").astype(np.float32)).reshape(positions, -1)
        ids = np.arange(rows.shape[1])
        return [(ids, row / row.sum(dtype=np.float64), np.float32(0)) for row in rows]

    def _tokens(self, stream, count):
        tokens, rank = self.sets.opening[: stream.magnitude(0, self.sets.tables[111])], 0
        for i in range(len(tokens), count):
            rank = stream.magnitude(i % 8, self.sets.tables[112 + min(rank.bit_length(), 16)])
            tokens.append(self.sets.ids[rank])
        return tokens

    def _sets(self, stream, completion):
        positions, tables, draws = len(completion), self.sets.tables, self.mode.startswith(("sampled", "hybrid"))
        result = []
        for begin in range(0, positions, 8):
            lanes = range(min(8, positions - begin))
            identify = lambda lane, rank: completion[begin + lane] if rank == 0 else self.sets.ids[rank - 1]
            heads = [stream.magnitude(lane, tables[0]) for lane in lanes]
            tails = [stream.magnitude(lane, tables[1]) for lane in lanes]
            ids, levels, counts = [[] for _ in lanes], [[] for _ in lanes], [[] for _ in lanes]
            for k in range(max(heads)):
                present = [lane for lane in lanes if heads[lane] > k]
                for lane in present:
                    ids[lane].append(identify(lane, stream.magnitude(lane, tables[3 + min(k, 7)])))
                for lane in present:
                    extra = self.sets.weight_bits - 6
                    level = stream.symbol(lane, tables[11 + 5 * min(k, 3) + min(heads[lane] - k - 1, 4)]) << extra
                    levels[lane].append(level + (stream.raw(lane, extra) if extra else 0))
            reached = [0 for _ in lanes]
            for k in range(max(tails)):
                for lane in lanes:
                    remaining = tails[lane] - k
                    if remaining <= 0:
                        continue
                    a = next(i for i, most in enumerate((1, 2, 3, 4, 6, 10, 18, math.inf)) if remaining <= most)
                    b = 0 if reached[lane] == 0 else 1 + min(reached[lane].bit_length() // 2, 8)
                    rank = reached[lane] + stream.magnitude(lane, tables[31 + 10 * a + b])
                    reached[lane] = rank + 1
                    ids[lane].append(identify(lane, rank))
                    counts[lane].append(1 + (stream.magnitude(lane, tables[2]) if draws else 0))
            for lane in lanes:
                rest, weights = 1.0, []
                for level in levels[lane]:
                    weights.append(rest * self.sets.shares[level])
                    rest -= weights[-1]
                weights += [rest * count / sum(counts[lane]) for count in counts[lane]]
                uncovered = max(rest, 0) if self.mode.startswith("topk") else 0
                result.append((np.array(ids[lane]), np.array(weights, dtype=np.float32), np.float32(uncovered)))
        stream.finish()
        return result
