"""Read a checkpoint without paddle_llm: python read_checkpoint.py FOLDER."""

import json
import sys
from pathlib import Path

import numpy as np
import xxhash
from safetensors import safe_open


def read_part(folder, key, part, dtype):
    file = Path(folder) / part["file"]
    with safe_open(file, framework="np") as opened:
        if dtype != "bfloat16":
            return opened.get_tensor(key)
        shape = opened.get_slice(key).get_shape()
    bits = np.fromfile(file, "<u2", part["bytes"] // 2, offset=part["offset"])
    values = bits if key.startswith("state/") else (bits.astype("<u4") << 16).view("<f4")
    return values.reshape(shape)


def read_tensor(folder, key):
    entry = json.loads((Path(folder) / "index.json").read_text())["tensors"][key]
    parts = [read_part(folder, key, part, entry["dtype"]) for part in entry["parts"]]
    if not entry["shape"]:
        return parts[0]
    full, axis = np.empty(entry["shape"], parts[0].dtype), entry["parts"][0]["axis"]
    for part, values in zip(entry["parts"], parts, strict=True):
        begin = 0
        for start, stop in part["ranges"]:
            rows = np.take(values, range(begin, begin + stop - start), axis)
            full[(slice(None),) * axis + (slice(start, stop),)] = rows
            begin += stop - start
    return np.take(full, range(entry.get("unpadded", full.shape[axis])), axis)


def read_state(folder, name="state.json"):
    def decode(value):
        if isinstance(value, list):
            return [decode(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$array" in value:
            return read_tensor(folder, value["$array"])
        if "$number" in value:
            dtype, number = value["$number"]
            return np.dtype(dtype).type(decode(number))
        if "$float" in value:
            return float(value["$float"])
        if "$tuple" in value:
            return tuple(map(decode, value["$tuple"]))
        if "$dict" in value:
            return {decode(key): decode(one) for key, one in value["$dict"]}
        return {key: decode(one) for key, one in value.items()}

    return decode(json.loads((Path(folder) / name).read_text()))


def damaged_files(folder):
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    digest = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    damaged = [] if xxhash.xxh3_128_hexdigest(text.encode()) == digest else ["manifest.json"]
    for name, record in manifest["files"].items():
        content = (Path(folder) / name).read_bytes()
        if (len(content), xxhash.xxh3_128_hexdigest(content)) != (record["bytes"], record["xxh3_128"]):
            damaged.append(name)
    return damaged


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print("damaged files:", ", ".join(damaged_files(folder)) or "none")
    for key in json.loads((folder / "index.json").read_text())["tensors"]:
        values = read_tensor(folder, key)
        print(key, values.dtype, list(values.shape))
