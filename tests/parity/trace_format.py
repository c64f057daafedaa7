"""A reader of trace shards in numpy and h5py, written from docs/trace-format.md alone."""

import json

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


class Shard:
    FINISH = ["stop", "length"]
    VERDICT = ["unchecked", "correct", "incorrect"]

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "r") as file:
            assert file.attrs["format"] == b"distill-trace-shard" and file.attrs["format_version"] == 1, dict(file.attrs)
            self.provenance = json.loads(file["provenance"][:].tobytes())
            self.codec = json.loads(file["codec"][:].tobytes())
            self.model = file["model"][:].tobytes()
            self.tokens = file["tokens"][:]
            self.payload = file["payload"][:].tobytes()
            self.table = {name: column[:] for name, column in file["documents"].items()}
        self.size = len(self.table["sample"])
        self._check_user_block(path)

    def _check_user_block(self, path):
        raw = open(path, "rb").read()
        block = raw[:512]
        assert block[:8] == b"DSTLSHRD"
        version, block_crc = np.frombuffer(block, "<u4", 2, 8)
        assert version == 1
        assert crc32c(block[:12] + bytes(4) + block[16:]) == block_crc
        assert int(np.frombuffer(block, "<u8", 1, 16)[0]) == len(raw)
        places = np.frombuffer(block, "<u8", 32, 32).reshape(16, 2)
        (at, size), (payload_at, payload_size) = places[0].tolist(), places[1].tolist()
        assert raw[at : at + size] == self.tokens.tobytes()
        assert raw[payload_at : payload_at + payload_size] == self.payload
        assert at + size <= payload_at  # as this writer lays files out
        rest = raw[512:at] + raw[at + size : payload_at] + raw[payload_at + payload_size :]
        assert crc32c(rest) == int(np.frombuffer(block, "<u4", 1, 24)[0])

    def document(self, index):
        table = self.table
        between = lambda data, offsets: data[int(offsets[index]) : int(offsets[index + 1])]
        prompt_id = between(table["prompt_ids"], table["prompt_id_offsets"]).tobytes()
        tokens = between(self.tokens, table["token_offsets"])
        payload = between(self.payload, table["payload_offsets"])
        column = lambda name, dtype: table[name][index].astype(dtype).tobytes()
        record = (
            np.uint32(len(prompt_id)).tobytes() + column("sample", "<u4") + column("prompt_length", "<u4") + np.uint32(len(tokens)).tobytes()
            + column("finish_reason", "u1") + column("verdict", "u1") + bytes(2) + column("log_probability", "<f8") + column("seed", "<u8")
            + prompt_id + tokens.tobytes() + payload
        )
        assert crc32c(record) == int(table["crc32c"][index]), f"document {index}: checksum"
        prompt_length = int(table["prompt_length"][index])
        return {
            "prompt_id": prompt_id.decode(),
            "sample": int(table["sample"][index]),
            "prompt_length": prompt_length,
            "tokens": tokens.tolist(),
            "finish_reason": self.FINISH[table["finish_reason"][index]],
            "verdict": self.VERDICT[table["verdict"][index]],
            "log_probability": float(table["log_probability"][index]),
            "seed": int(table["seed"][index]),
            "targets": self.targets(payload, tokens, prompt_length),
        }

    def targets(self, payload, tokens, prompt_length):
        decode = {("plain", 1): self._plain, ("full", 1): self._full}[self.codec["name"], self.codec["version"]]
        return decode(payload, len(tokens) - prompt_length)

    def _plain(self, payload, positions):
        counts = np.frombuffer(payload, "<u4", positions)
        uncovered = np.frombuffer(payload, "<f4", positions, 4 * positions)
        entries, at = int(counts.sum()), 8 * positions
        id_type = np.dtype("<u2" if self.provenance["vocab_size"] <= 65536 else "<u4")
        ids = np.frombuffer(payload, id_type, entries, at)
        weights = np.frombuffer(payload, "<f4", entries, at + id_type.itemsize * entries)
        assert at + (id_type.itemsize + 4) * entries == len(payload)
        ends = np.cumsum(counts)
        return [(ids[end - count : end], weights[end - count : end], rest) for count, end, rest in zip(counts, ends, uncovered)]

    def _full(self, payload, positions):
        rows = np.exp(np.frombuffer(payload, "<f2").astype(np.float32)).reshape(positions, -1)
        ids = np.arange(rows.shape[1])
        return [(ids, row / row.sum(dtype=np.float64), np.float32(0)) for row in rows]
