"""What docs/numbers/proof.md shows was written by commands that take hours: it must still be of this code."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def recorded(name):
    return json.loads((ROOT / "docs" / "numbers" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_oldest_releases_that_are_accepted_have_been_tried():
    """A bound that is moved has to be tried, by .ci/versions.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tried = recorded("versions").values()
    oldest = [result for result in tried if (result["releases"], result["outcome"]) == ("oldest", "passed")]
    for requirement in project["dependencies"]:
        name, bound = requirement.split(">=")
        assert any(f"{result[name]}.".startswith(f"{bound}.") for result in oldest), requirement


def test_no_more_than_one_mutant_in_twenty_survives_and_each_is_explained():
    results = recorded("mutation")
    known = tomllib.loads((ROOT / ".ci" / "equivalent.toml").read_text(encoding="utf-8"))
    for name, result in results.items():
        # No survivor without its reason, and no reason without its survivor.
        assert {survivor["became"] for survivor in result["survivors"]} == set(known.get(name, {})), name
    mutants, killed = (sum(result[key] for result in results.values()) for key in ("mutants", "killed"))
    assert killed >= 0.95 * mutants


def test_properties_of_the_long_profile_are_files_that_exist():
    files = {path.stem for path in (ROOT / "tests" / "properties").glob("test_*.py")}
    assert set(recorded("long")) <= files
