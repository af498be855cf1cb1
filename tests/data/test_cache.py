"""The cache: what is read is what was written, or nothing."""

import errno
import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.data.cache import FORMAT, AdversarialCache

SHAPE = (3, 4, 5)


def rows(count, seed=0):
    draws = np.random.default_rng(seed)
    clean, crafted = draws.integers(0, 256, (2, count, *SHAPE)).astype(np.uint8)
    return clean, draws.integers(0, 10, count), crafted, draws.integers(0, 8, count).astype(np.uint8)


def cache(folder, key="key", shape=SHAPE, dtype="uint8"):
    return AdversarialCache(folder, key, shape, dtype)


def test_rows_come_back_in_another_process_object(tmp_path):
    clean, labels, crafted, flags = rows(6)
    cache(tmp_path).write([9, 2, 5], clean[:3], labels[:3], crafted[:3], flags[:3])
    images, found, hit = cache(tmp_path).read([2, 3, 9], clean[[1, 3, 0]], labels[[1, 3, 0]])
    assert hit.tolist() == [True, False, True]
    np.testing.assert_array_equal(images[hit], crafted[[1, 0]])
    np.testing.assert_array_equal(found[hit], flags[[1, 0]])
    assert not images[1].any()


def test_reading_makes_no_files(tmp_path):
    clean, labels, _, _ = rows(1)
    assert not cache(tmp_path).read([0], clean, labels)[2].any()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["clean", "label"])
def test_another_clean_image_or_label_misses(tmp_path, what):
    clean, labels, crafted, flags = rows(1)
    cache(tmp_path).write([0], clean, labels, crafted, flags)
    if what == "clean":
        clean = clean ^ 1
    else:
        labels = labels + 1
    assert not cache(tmp_path).read([0], clean, labels)[2].any()


@pytest.mark.parametrize("other", [{"key": "another"}, {"shape": (3, 5, 4)}, {"dtype": "float32"}])
def test_another_key_shape_or_precision_has_its_own_folder(tmp_path, other):
    assert cache(tmp_path).folder != cache(tmp_path, **other).folder


def test_a_cache_of_another_version_is_left_alone_and_not_read(tmp_path, monkeypatch):
    clean, labels, crafted, flags = rows(3)
    cache(tmp_path).write(range(3), clean, labels, crafted, flags)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("lit_adv.data.cache.FORMAT", FORMAT + 1)
    newer = cache(tmp_path)
    assert not newer.read(range(3), clean, labels)[2].any()
    newer.write(range(3), clean, labels, crafted[::-1], flags)
    np.testing.assert_array_equal(newer.read(range(3), clean, labels)[0], crafted[::-1])
    assert all(path.read_bytes() == content for path, content in before.items())


@settings(max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from(["images.bin", "rows.bin"]))
def test_any_flipped_bit_is_a_miss_or_padding(tmp_path_factory, where, bit, file):
    folder = tmp_path_factory.mktemp("cache")
    clean, labels, crafted, flags = rows(3)
    kept = cache(folder)
    kept.write(range(3), clean, labels, crafted, flags)
    path = kept.folder / file
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    images, found, hit = cache(folder).read(range(3), clean, labels)
    np.testing.assert_array_equal(images[hit], crafted[hit])
    np.testing.assert_array_equal(found[hit], flags[hit])
    padding = file == "rows.bin" and place % 16 >= 9
    assert hit.sum() == (3 if padding else 2)


@pytest.mark.parametrize("file", ["images.bin", "rows.bin"])
def test_truncated_files_are_misses_and_can_be_written_again(tmp_path, file):
    clean, labels, crafted, flags = rows(3)
    kept = cache(tmp_path)
    kept.write(range(3), clean, labels, crafted, flags)
    size = (kept.folder / file).stat().st_size
    os.truncate(kept.folder / file, size * 2 // 3 - 1)
    again = cache(tmp_path)
    hit = again.read(range(3), clean, labels)[2]
    assert hit[0]
    assert not hit[2]
    again.write(range(3), clean, labels, crafted, flags)
    assert again.read(range(3), clean, labels)[2].all()


def test_full_disk_is_one_warning_and_no_wrong_row(tmp_path, monkeypatch):
    clean, labels, crafted, flags = rows(4)
    kept = cache(tmp_path)
    kept.write([0], clean[:1], labels[:1], crafted[:1], flags[:1])
    real, room = os.pwrite, [kept.row_bytes + 16 + 7]

    def full(file, content, offset):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        fits = content[: room[0]]
        room[0] -= len(fits)
        return real(file, fits, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(RuntimeWarning, match="free some disk space"):
        kept.write([1, 2], clean[1:3], labels[1:3], crafted[1:3], flags[1:3])
    kept.write([3], clean[3:], labels[3:], crafted[3:], flags[3:])  # silent: it has been said
    monkeypatch.undo()
    images, _, hit = cache(tmp_path).read(range(4), clean, labels)
    assert hit.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(images[hit], crafted[hit])


def _write_all(folder, seed):
    kept = cache(folder)
    clean, labels, crafted, flags = rows(40)
    order = np.random.default_rng(seed).permutation(40)
    for _ in range(3):
        kept.write(order.tolist(), clean[order], labels[order], crafted[order], flags[order])


def test_two_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_all, args=(tmp_path, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    clean, labels, crafted, _ = rows(40)
    images, _, hit = cache(tmp_path).read(range(40), clean, labels)
    assert hit.all()
    np.testing.assert_array_equal(images, crafted)
