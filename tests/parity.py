"""Reading the golden outputs of the reference implementations (weights follow a rule)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"


def load(name):
    """(record, arrays) of a fixture."""
    record = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as archive:
        return record, {key: archive[key] for key in archive.files}


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def draw(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def make_input(name, shape, kind="image"):
    z = draw("input:" + name, shape)
    return tensor(np.clip(np.float32(0.5) * z, -1, 1) if kind == "image" else z)


def make_model(record):
    """State dict of one of the ``models`` of a fixture of Panini-Net or EXE-GAN."""
    kinds = {
        key: {"kind": "abs" if r.get("abs") else "normal", **r}
        for key, r in record["keys"].items()
        if not r.get("keep")
    }
    kept = {key: torch.tensor(value) for key, value in record["kept_values"].items()}
    made = make_weights(kinds) | kept
    return {key: made[key] for key in record["keys"]}


def make_weights(keys):
    """State dict from the records {key: {shape, kind, a, b, ...}} of a fixture."""
    weights = {}
    for key, record in keys.items():
        shape, kind = record["shape"], record["kind"]
        if kind == "keep":
            weights[key] = torch.zeros(shape, dtype=torch.int64) + record.get("value", 0)
        elif kind in ("normal", "abs"):
            z = draw(key, shape)
            z = np.abs(z) if kind == "abs" else z
            values = np.float32(record["a"]) + np.float32(record["b"]) * z
            weights[key] = tensor(np.asarray(values, dtype=np.float32))
    for key, record in keys.items():
        if record["kind"] == "sn_v":
            u_key = key.replace("weight_v", "weight_u")
            weight = weights[key.replace("weight_v", "weight_orig")].double().numpy()
            matrix = weight.reshape(weight.shape[0], -1)
            v = draw(key, record["shape"]).astype(np.float64)
            v /= np.linalg.norm(v)
            for _ in range(10):
                u = matrix @ v
                u /= np.linalg.norm(u)
                v = matrix.T @ u
                v /= np.linalg.norm(v)
            weights[u_key], weights[key] = (
                tensor(u.astype(np.float32)),
                tensor(v.astype(np.float32)),
            )
    return weights
