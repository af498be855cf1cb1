"""A disk that takes no more: one message, nothing torn, and the run goes on once there is room."""

import errno
import multiprocessing
import os
import resource
import subprocess
import sys

import pytest
import torch

from lit_adv import runs
from lit_adv.files import append, write_json, write_rows
from tests import kills

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads"),
]
COMMAND = ("fit", "--config=job.yaml", "--run_dir=run", "--ckpt_path=auto")


def limited(largest, function):
    """Runs a function in a process whose files may have so many bytes; what it raised, in words."""

    def child(pipe):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try:
            function()
        except OSError as error:
            pipe.send((error.errno, str(error)))
        else:
            pipe.send((0, ""))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(60)
    found = ours.recv()
    process.join(60)
    return found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_file_room_and_remedy(tmp_path, monkeypatch, number):
    write_json(tmp_path / "results.json", {"old": 1})

    def full(*paths):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"results\.json cannot be written: .* MB are free there; make room") as caught:
        write_json(tmp_path / "results.json", {"new": 1})
    assert caught.value.errno == number
    assert (tmp_path / "results.json").read_text() == '{"old": 1}\n'
    assert len(list(tmp_path.iterdir())) == 1


def test_other_errors_of_the_system_are_left_as_they_are(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "results.json", {})


def test_rows_are_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.csv"
    append(path, "step,loss\n0,1\n")
    number, message = limited(20, lambda: append(path, "1,0.5\n" * 10))
    assert number == errno.EFBIG
    assert f"{path} cannot be written: File too large" in message
    assert path.read_text() == "step,loss\n0,1\n"
    number, _ = limited(20, lambda: write_rows(path, ("a",), [{"a": 1}] * 50))
    assert (number, path.read_text()) == (errno.EFBIG, "step,loss\n0,1\n")


def test_metrics_go_on_below_what_a_kill_has_torn(tmp_path):
    file = runs.MetricsFile(tmp_path)
    file.log_metrics({"loss": 2.0}, step=0)
    file.save()
    with (tmp_path / "metrics.csv").open("a") as torn:
        torn.write("1,0.12")
    file = runs.MetricsFile(tmp_path)
    file.log_metrics({"loss": 1.0}, step=1)
    file.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,loss", "0,2.0", "1,1.0"]


def test_the_last_good_checkpoint_stays(tmp_path):
    path, files = tmp_path / "last.ckpt", runs.CheckpointFiles()
    files.save_checkpoint({"state_dict": {"weight": torch.ones(10)}}, path)
    before = path.read_bytes()
    number, message = limited(4096, lambda: files.save_checkpoint({"state_dict": {"w": torch.ones(9999)}}, path))
    assert number == errno.EFBIG
    assert f"{path} cannot be written" in message
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def finished(process, folder, code=0):
    process.join(100)
    text = (folder / "output.txt").read_text()
    assert process.exitcode == code, text[-2000:]
    return text


def test_a_run_that_finds_no_room_ends_with_one_message_and_goes_on(tmp_path):
    whole, other = (kills.prepare(tmp_path / name, "victim") for name in ("whole", "other"))
    finished(kills.fork_command(whole, *COMMAND), whole)
    finished(kills.fork_command(other, *COMMAND, "--trainer.max_epochs=1"), other)
    last = other / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    (other / "output.txt").unlink()
    text = finished(kills.fork_command(other, *COMMAND, LARGEST_FILE=str(len(before) // 2)), other, code=2)
    assert f"error: {last} cannot be written: File too large" in text
    assert "Traceback" not in text
    assert last.read_bytes() == before
    assert not list(other.rglob(".*.tmp*"))
    finished(kills.fork_command(other, *COMMAND), other)
    assert kills.differences("victim", whole, other) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "disk")]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("job", ["victim", "folder", "webdataset"])
def test_a_small_file_system(tmp_path, small_disk, job):
    whole, other = (kills.prepare(tmp_path / name, job) for name in ("whole", "other"))
    kills.to_the_end(whole, job)
    (small_disk / "run").mkdir()
    (other / "run").symlink_to(small_disk / "run")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filler.write_bytes(bytes(max(0, free - 48 * 1024)))
    process = kills.fork(other, job)
    process.join(100)
    assert process.exitcode == 1
    filler.unlink()
    text = (other / "output.txt").read_text()
    assert "cannot be written: No space left on device (0.0 MB are free there" in text
    assert not list(small_disk.rglob(".*.tmp*"))
    kills.to_the_end(other, job)
    assert kills.differences(job, whole, other) == []
