"""The study's script: every run once, figures that the mathematics allows, and updates as PEFT has them."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

STUDY = Path(__file__).parents[2] / "docs" / "study"
sys.path.append(str(STUDY))

import analysis  # noqa: E402 - the folder above comes first
import model  # noqa: E402
import plan  # noqa: E402
import tasks  # noqa: E402
import training  # noqa: E402


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, STUDY / "run.py", "--quick", folder]
    environment = os.environ | {"PYTHONPATH": str(STUDY.parents[1])}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_does_every_run_once_and_goes_on_where_it_was(quick, monkeypatch):
    path = quick / "runs.jsonl"
    sizes, lines = plan.QUICK, lines_of(quick)
    study = analysis.load(path, sizes)
    seeds, fresh = range(sizes.seeds), range(sizes.seeds, sizes.seeds + sizes.fresh_seeds)
    wanted = {run for seed in seeds for run in plan.runs_of(sizes, seed)}
    wanted |= {run for seed in fresh for run in plan.fresh_runs_of(sizes, seed, study.rate)}
    assert len(lines) == len(wanted) + sizes.seeds + sizes.fresh_seeds
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:-2]), encoding="utf-8")
    # In this process, which has imported PyTorch and PEFT: a new one takes longer over that than over both runs.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    import run

    monkeypatch.setattr(run, "ProcessPoolExecutor", ThreadPoolExecutor)
    run.study(sizes, path, workers=1)
    again = lines_of(quick)
    assert set(analysis.load(path, sizes).runs) == wanted
    assert len(again) == len(lines)
    # A run that is repeated finds the same figures.
    timeless = [sorted(json.dumps(line | {"cpu_seconds": 0}) for line in each) for each in (lines, again)]
    assert timeless[0] == timeless[1]


def test_figures_of_a_run_are_what_the_mathematics_asks(quick):
    for line in lines_of(quick):
        if "base" in line:
            continue
        if line["rank"]:
            assert line["scaling"] == pytest.approx(float(plan.RULES[line["rule"]](line["rank"])), rel=1e-12)
            assert line["effective_rank"] <= line["rank"] * (1 + 1e-9)
        else:
            # At full rank the adapter is the update itself.
            assert line["extracted"]["64"]["loss"] == pytest.approx(line["loss"], rel=1e-4)
            assert all(parts == sorted(parts) and parts[-1] == 1.0 for parts in line["captured"].values())
            for effective, stable, *variances, numerical in line["measures"].values():
                assert 1 <= stable <= numerical <= 64
                assert 1 <= effective <= 64
                assert variances == sorted(variances)


def test_the_updates_are_those_of_peft_and_of_training():
    torch.manual_seed(0)
    base = model.Transformer(tasks.VOCABULARY, tasks.LENGTH)
    sentences = tasks.plain(tasks.draw_facts(16, np.random.default_rng(0)))
    adapted, tuned = training.adapted(base, "rslora", 4, 0), training.fully(base)
    for network in (adapted, tuned):
        training.train(network, sentences, optimizer="sgd", rate=0.1, steps=3, batch=8, seed=0)
    update = training.lora_update(adapted)
    assert len(update) == 2 * len(model.TARGETS)
    for name, factors in update.items():
        delta = adapted.base_model.model.get_submodule(name).get_delta_weight("default")
        assert np.linalg.norm(factors.to_dense()) > 0
        np.testing.assert_allclose(factors.to_dense(), delta.detach().numpy(), rtol=1e-4, atol=1e-7)
    assert training.full_update(base, tuned).keys() == update.keys()
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, base.state_dict()[name])}
    assert changed == {f"{name}.weight" for name in update}


def test_new_facts_are_new_and_both_forms_say_the_same():
    facts = tasks.draw_facts(1536, np.random.default_rng(0))
    assert len(set(zip(facts.names.tolist(), facts.questions.tolist(), strict=True))) == 1536
    plain, styled = tasks.plain(facts), tasks.styled(facts)
    assert plain.shape == styled.shape == (1536, tasks.LENGTH)
    assert torch.equal(plain[:, : -tasks.ANSWER], styled[:, : -tasks.ANSWER])
    # Article and object are said in both, the verb and the end are other words.
    assert torch.equal(plain[:, 4:6], styled[:, 3:5])
    assert not (plain[:, 3] == styled[:, 5]).any()
    assert not (plain[:, 6] == styled[:, 6]).any()
    assert plain.max() < tasks.VOCABULARY
