"""A site's file: every mistake is named, with the mend; what is shipped is right."""

import pytest

from lacuna.jobs.site import max_array, read_site
from lacuna.results.plugins import names


@pytest.mark.parametrize("name", names("sites"))
def test_shipped_sites_are_read(name):
    """A site that ships with the suite would be refused."""
    assert read_site(name).name == name


def test_every_mistake_is_named_at_once(make_site):
    """A user would mend one mistake per try."""
    with pytest.raises(ValueError) as caught:
        read_site(make_site("executor: slurm\nlaunchr: pmix\ntime_min: soon\ncpus_per_rank: 0\nmem_gb: true\n"))
    said = str(caught.value)
    assert "'launchr': did you mean 'launcher'?" in said
    assert "time_min: expected a whole number, got 'soon'" in said
    assert "cpus_per_rank: expected a number of at least 1, got 0" in said
    assert "mem_gb: expected a number, got True" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("launcher: pmix", "executor is missing"),
        ("executor: slurm", "launcher is missing"),
        ("executor: slrm", "expected one of slurm, local, debug, got 'slrm'"),
        ("executor: local\npartition: low", "partition means nothing to executor local; remove it"),
        ("executor: debug\nsetup: [a]", "setup means nothing to executor debug; remove it"),
        ("executor: local\ntime_min: 1\nsignal_s: 60", "signal_s: expected less"),
        ("executor: local\nenv: {A: 1}", "env: expected text, got A: 1; put it in quotes"),
        ("executor: local\nenv: [a]", "env: expected"),
        ("executor: slurm\nlauncher: pmix\nsetup: [1]", "setup: expected a list of text"),
        ("executor: slurm\nlauncher: pmix\npartition: 3", "partition: expected text, got 3"),
        ("1: 2", "unknown field 1"),
        ("[slurm]", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_a_mistake_is_said_with_its_mend(make_site, text, said):
    """A wrong site would be a traceback, or would be ignored."""
    with pytest.raises(ValueError) as caught:
        read_site(make_site(text))
    assert said in str(caught.value)


def test_unknown_site_gives_the_near_name():
    """A typing error in --site would be a riddle."""
    with pytest.raises(ValueError, match="unknown site 'onebocks': did you mean 'onebox'"):
        read_site("onebocks")


def test_missing_file_is_named():
    """A wrong path in --site would be a traceback."""
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read"):
        read_site("nowhere.yaml")


def test_ranks_that_do_not_fill_nodes_are_refused(make_site):
    """Slurm would start more ranks than the cell says."""
    site = read_site(make_site("executor: slurm\nlauncher: pmix\nranks_per_node: 4"))
    assert [site.shape(r) for r in (1, 2, 4, 8)] == [(1, 1), (1, 2), (1, 4), (2, 4)]
    with pytest.raises(ValueError, match="6 ranks do not fill nodes"):
        site.shape(6)


def test_slurms_own_array_limit_is_asked_for(make_site, tmp_path, monkeypatch):
    """A site without max_array would send arrays that Slurm refuses."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'MaxArraySize            = 77'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert max_array(read_site(make_site("executor: slurm\nlauncher: pmix"))) == 77
    assert max_array(read_site(make_site("executor: slurm\nlauncher: pmix\nmax_array: 5"))) == 5
