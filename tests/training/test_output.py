"""The output folder: never deleted, never shared."""

import os
import subprocess
import sys

import pytest

from crosstill.errors import ConfigError
from crosstill.training.output import claimed, locked


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_made_and_held(tmp_path):
    with claimed(tmp_path / "a" / "b", resume=False, overwrite=False) as aside:
        assert aside is None
        assert (tmp_path / "a" / "b").is_dir()


def test_an_earlier_claim_leaves_the_folder_empty_enough(tmp_path):
    for _ in range(2):
        with claimed(tmp_path, resume=False, overwrite=False):
            pass


def test_files_are_refused_and_stay(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with (
        pytest.raises(ConfigError, match=r"not empty \(thesis.txt"),
        claimed(tmp_path, resume=False, overwrite=False),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_renames_an_earlier_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}")
    with claimed(folder, resume=False, overwrite=True) as aside:
        assert aside is not None
        assert (aside / "metrics.jsonl").read_text() == "{}"
        assert "metrics.jsonl" not in names(folder)
        with pytest.raises(ConfigError, match="in use"):
            run_other(folder)


def test_overwrite_never_touches_what_no_run_has_made(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with (
        pytest.raises(ConfigError, match="none of them from a run"),
        claimed(tmp_path, resume=False, overwrite=True),
    ):
        pass
    assert "thesis.txt" in names(tmp_path)


def test_a_link_is_not_renamed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "metrics.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        pytest.raises(ConfigError, match="is a link"),
        claimed(tmp_path / "link", resume=False, overwrite=True),
    ):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="is a file"),
        claimed(tmp_path / "file", resume=False, overwrite=False),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        claimed(tmp_path, resume=False, overwrite=False),
    ):
        pass


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with (
        pytest.raises(ConfigError, match="exclude"),
        claimed(tmp_path, resume=True, overwrite=True),
    ):
        pass


def run_other(folder):
    """Another process tries to claim the folder."""
    code = (
        "import sys; from pathlib import Path\n"
        "from crosstill.errors import ConfigError\n"
        "from crosstill.training.output import locked\n"
        "try:\n    locked(Path(sys.argv[1])).__enter__()\n"
        "except ConfigError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(done.stderr)


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        run_other(tmp_path)
    run_other(tmp_path)


def test_the_lock_goes_with_a_killed_process(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from crosstill.training.output import locked\n"
        "with locked(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with locked(tmp_path):
        pass


def test_one_process_may_hold_it_twice(tmp_path):
    with locked(tmp_path), locked(tmp_path), pytest.raises(ConfigError, match="in use"):
        run_other(tmp_path)
