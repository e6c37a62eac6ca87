"""No verb works on BLAS's own threads where layers are small: threads that wait for each other take all cores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs the processor time of each thread (Linux)")
def test_no_verb_uses_the_threads_of_blas(tmp_path):
    command = [sys.executable, "-m", "tests.models.blas_of_verbs", str(tmp_path)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    root = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE).stdout
    spent = json.loads(printed)
    assert spent.pop("a product on all threads") > 0
    assert {name: nanoseconds for name, nanoseconds in spent.items() if nanoseconds} == {}
