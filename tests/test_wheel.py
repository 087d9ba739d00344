"""What is installed is whole: the wheel holds the data that the program reads, and runs without a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from lacuna.results.digest import source_digest
from lacuna.results.plugins import ROOT

ROOMS = ("analysis", "harness", "jobs", "kernels", "models", "results")
LEFT_OUT = ("*.egg-info", ".*", "build", "dist", "store", "report", "logs", "tests", "docs", "__pycache__")


def pip(*args, cwd):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy, so that building it leaves nothing in the checkout; built by the setuptools that is there."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "copy", cwd=folder)
    return next(folder.glob("lacuna-*.whl"))


def test_wheel_holds_every_file_that_is_read(wheel):
    """An installed lacuna would find no model, no prose, no sweep, no kernel or no page to fill."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ("models/zoo/pocket*", "models/zoo/pocket/*.json", "models/zoo/pocket/*.safetensors", "harness/data/*.gz",
              "jobs/sweeps/*.yaml", "jobs/sites/*.yaml", "analysis/*.html", "analysis/*.mplstyle", "kernels/*/fused.py",
              "results/archive/*.csv", "py.typed", "*/*.py", "*/*/*.py")  # fmt: skip
    for pattern in wanted:
        places = [p.relative_to(ROOT) for p in ROOT.glob(pattern) if p.is_file()]
        ours = [f"lacuna/{place.as_posix()}" for place in places if len(place.parts) == 1 or place.parts[0] in ROOMS]
        assert ours, f"{pattern} matches nothing"
        assert [name for name in ours if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)


def test_wheel_puts_nothing_else_on_the_path(wheel):
    """A top-level `kernels` or `tests` in site-packages would be taken for another package of that name."""
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lacuna"}


def test_console_script_works_without_the_checkout(wheel, tmp_path):
    """`pip install lacuna` would give a command that starts in its own checkout only."""
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel, cwd=tmp_path)
    script = tmp_path / "site" / "bin" / "lacuna"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def lacuna(*args):
        return subprocess.run(
            [script, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    assert "loki" in lacuna("list", "methods").stdout
    demo = tmp_path / "site" / "lacuna" / "jobs" / "sweeps" / "demo.yaml"
    assert "36 cells" in lacuna("plan", demo).stdout


def test_a_wheel_is_known_by_the_digest_of_its_checkout(wheel, tmp_path):
    """A record made by an installed lacuna, which has no revision, could not be led back to the code that made it."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    installed = tmp_path / "lacuna"
    assert source_digest(installed) == source_digest(ROOT)
    changed = installed / "kernels" / "op.py"
    changed.write_text(changed.read_text() + "# another state\n")
    assert source_digest(installed) != source_digest(ROOT)
