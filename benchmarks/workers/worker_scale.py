"""One rank of bench_scale.py: fits, and prints what it took as JSON. Standard input: a JSON object of settings."""

import json
import os
import sys
from datetime import timedelta

from lib.common import load_matrix, peak_rss_mib, reset_peak
from wals_gpu import WALS
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.distributed import LocalGroup, TorchGroup, fit_sharded


def main() -> None:
    spec = json.load(sys.stdin)
    group = LocalGroup()
    if spec["ranks"] > 1:
        import torch.distributed as dist

        if spec["address"]:
            os.environ["GLOO_SOCKET_IFNAME"] = spec["interface"]
        dist.init_process_group(
            "gloo", init_method=spec["address"] or f"file://{spec['meeting']}", rank=spec["rank"],
            world_size=spec["ranks"], timeout=timedelta(seconds=600),
        )  # fmt: skip
        group = TorchGroup()
    data = StoredMatrix(spec["data"]) if os.path.isdir(spec["data"]) else load_matrix(spec["data"])
    model = WALS(
        spec["factors"], "hu", solver=spec["solver"], iterations=spec["iterations"], num_threads=spec["threads"],
        random_state=0,
    )  # fmt: skip
    reset_peak()
    before, sent = peak_rss_mib(), []

    def after(record: object) -> None:
        sent.append(group.sent_bytes)

    fitted = fit_sharded(model, data, group, mode=spec["mode"], callback=after)
    print(
        json.dumps(
            {
                "seconds": [record.seconds for record in fitted.history],
                "loss": fitted.history[-1].loss,
                "sent": sent[-1] - sent[-2],
                "peak_mib": peak_rss_mib(),
                "before_mib": before,
                "users": [fitted.users.start, fitted.users.stop],
            }
        )
    )


if __name__ == "__main__":
    main()
