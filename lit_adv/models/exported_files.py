"""Classifiers as files that run without this package: PyTorch's `.pt2` and ONNX."""

from __future__ import annotations

import copy
import errno
import importlib.util
import json
import logging
import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXPORTED = (".pt2", ".onnx")
_KEY = "classifier"


def write_exported(model: nn.Module, spec: dict[str, Any], path: Path) -> None:
    """Writes a network that runs on batches of any size, normalisation included, with its description.

    Args:
        model: From images ``(B, C, H, W)`` in [0, 1] to logits; a copy of it is exported, in eval mode on the CPU.
        spec: Its description; says C and the side of the images.
        path: Ends in ``.pt2`` (`torch.export`) or ``.onnx``.

    Raises:
        ImportError: ONNX is asked for and not installed.
    """
    if path.suffix == ".onnx":
        _need_onnx("export_classifier", ("onnx", "onnxscript"))
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    images = torch.zeros(2, spec["in_channels"], spec["image_size"], spec["image_size"])
    shapes = ({0: torch.export.Dim("batch")},)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the exporters look at the ending
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        _write(copied, images, shapes, spec, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_exported(path: Path, owner: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights in a file of `write_exported`, and the description; nothing in it is run or unpickled.

    Files that another program has made are read where they keep the parameters' names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of a layout that is not known.
        ImportError: ONNX is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{owner}: there is no weights file '{path}' (check the path)")
    if path.suffix == ".onnx":
        _need_onnx(owner, ("onnx",))
        state, text = _read_onnx(path, owner)
    else:
        state, text = _read_pt2(path, owner)
    try:
        spec = json.loads(text) if text else None
    except ValueError:
        spec = None
    return state, spec if isinstance(spec, dict) else None


def _write(copied: nn.Module, images: Tensor, shapes: Any, spec: dict[str, Any], path: Path) -> None:
    if path.suffix == ".pt2":
        program = torch.export.export(copied, (images,), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files={f"{_KEY}.json": json.dumps(spec)})
        return
    with warnings.catch_warnings():
        # what the exporter says about its own parts and their next versions
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # unoptimised: batch norms that are folded away could not be read back
        onnx_program: Any = torch.onnx.export(
            copied,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    onnx_program.model.metadata_props[_KEY] = json.dumps(spec)
    onnx_program.save(str(path), external_data=False)


def _read_pt2(path: Path, owner: str) -> tuple[dict[str, Tensor], str | None]:
    # not torch.export.load, which unpickles
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = [name for name in names if name.endswith("weights_config.json") and "/data/weights/" in f"/{name}"]
            config = json.loads(archive.read(found[0]))["config"]
            folder = found[0].rpartition("/")[0]
            state = {key: _stored(archive.read(f"{folder}/{e['path_name']}"), e) for key, e in config.items()}
            described = [name for name in names if name.endswith(f"extra/{_KEY}.json")]
            return state, archive.read(described[0]).decode() if described else None
    # of a damaged directory, zipfile seeks to before the beginning, inflates what is not deflated, or wants a password
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{owner}: '{path}' is truncated or no .pt2 file (copy or export it again)") from error
    except (AttributeError, OverflowError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{owner}: the weights in '{path}' are not laid out as torch 2.14 lays them out: {error} (export to"
            " .safetensors)"
        ) from error


def _stored(data: bytes, entry: dict[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        raise ValueError("a tensor is pickled, which may run code")
    meta = entry["tensor_meta"]
    sizes = [side["as_int"] for side in meta["sizes"]]
    strides = [step["as_int"] for step in meta["strides"]]
    flat = torch.frombuffer(bytearray(data), dtype=_DTYPES[meta["dtype"]])
    if not math.prod(sizes):
        return flat.new_zeros(sizes)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).clone()


def _read_onnx(path: Path, owner: str) -> tuple[dict[str, Tensor], str | None]:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        # without the data of other files, which a path in the file could name
        proto = onnx.load(str(path), load_external_data=False)
        if any(each.data_location == onnx.TensorProto.EXTERNAL for each in proto.graph.initializer):
            raise ValueError("its weights are in another file")
        state = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in proto.graph.initializer}
    except (DecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{owner}: '{path}' is truncated or no whole ONNX file (export it again): {error}") from error
    text = {each.key: each.value for each in proto.metadata_props}.get(_KEY)
    return state, text


def _need_onnx(owner: str, packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{owner}: .onnx files need {' and '.join(missing)} (pip install 'lit_adv[onnx]', or take .pt2 or"
            " .safetensors)"
        )


# numbers of torch._export.serde.schema.ScalarType
_DTYPES = {5: torch.int64, 7: torch.float32, 8: torch.float64}
