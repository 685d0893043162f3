"""Writing and comparing the golden files: safetensors with sorted names and metadata, so that the same values
give the same bytes (the safetensors package does not promise an order for metadata).
"""

import json
import pathlib
import struct

import numpy as np

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32}
TAGS = {np.dtype(t): tag for tag, t in DTYPES.items()}


def write(path, tensors, metadata):
    """tensors: name -> numpy array (f32, f64 or i32); metadata: str -> str or any JSON value."""
    header = {
        "__metadata__": {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(metadata.items())}
    }
    offset, chunks = 0, []
    # 8-byte types first keep every tensor aligned to its own size.
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        array = np.ascontiguousarray(tensors[name])
        data = array.tobytes()
        header[name] = {
            "dtype": TAGS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def read(path):
    """(tensors, metadata) of a file written by write()."""
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + o for o in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def max_norm_error(got, want):
    """max |got - want| relative to max |want|; the plain maximum where want is all zero."""
    scale = float(np.max(np.abs(want))) if want.size else 0.0
    diff = float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)))) if want.size else 0.0
    return diff / scale if scale > 0 else diff


def differences(made, stored, tolerance_of):
    """Lines that say how two (tensors, metadata) differ; empty when they agree.

    tolerance_of(name): allowed max-norm error, None for bit equality. Metadata keys that describe the machine
    or the packages of one particular run are not compared.
    """
    lines = []
    (made_t, made_m), (stored_t, stored_m) = made, stored
    for name in sorted(set(made_t) ^ set(stored_t)):
        lines.append(f"tensor '{name}' is only in the {'new' if name in made_t else 'stored'} file")
    for name in sorted(set(made_t) & set(stored_t)):
        a, b = made_t[name], stored_t[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"tensor '{name}': {b.dtype} {b.shape} stored, {a.dtype} {a.shape} made now")
            continue
        tolerance = tolerance_of(name)
        if tolerance is None:
            if a.tobytes() != b.tobytes():
                lines.append(
                    f"tensor '{name}': bits differ (error {max_norm_error(a, b):.3g} of its max-norm)"
                )
        # Written so that a NaN on either side is a difference.
        elif not max_norm_error(a, b) <= tolerance:
            lines.append(
                f"tensor '{name}': error {max_norm_error(a, b):.3g} of its max-norm, allowed {tolerance:.3g}"
            )
    machine_keys = {"versions", "evidence"}
    for key in sorted((set(made_m) | set(stored_m)) - machine_keys):
        new, old = made_m.get(key), stored_m.get(key)
        new = new if isinstance(new, str) or new is None else json.dumps(new)
        if new != old:
            lines.append(f"metadata '{key}': {old} stored, {new} made now")
    return lines
