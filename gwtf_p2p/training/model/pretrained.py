"""Weights of a pre-trained model, read by the parts that need them.

Rules.
- A source is a folder, or a repository of the Hugging Face hub at one commit. Its files are safetensors, with an index where
  there are several; a file of which a part needs nothing is neither downloaded nor opened, and of the others only the part's
  tensors are read.
- A file's tensors go to the parameters that `transformers` would give them to: with or without the base model's prefix, and
  by the conversions that the installed release knows for the family (experts that are saved one by one, say). Tied weights are
  taken from whichever of their names the files have.
- A parameter for which the files have nothing, or something of another shape, or numbers that are not finite, is refused by its
  name. Buffers that are saved with a model (routing biases) are read too; one that is missing keeps the library's value.
- What was read is hashed, float32, by name and bytes; the run record has the hash of every part, so peers that read other
  files find out before they train.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import WeightsSpec
from gwtf_p2p.training.data.local_files import in_home
from gwtf_p2p.training.model.config import CONFIG_ERRORS, RUN_RECORD, one_line
from gwtf_p2p.training.model.skeleton import Unit, build_skeleton, unit_parameters

logger = logging.getLogger(__name__)

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
GENERATION = "generation_config.json"
_FIELD = "weights.source"


class PretrainedFiles:
    """Where each tensor of a pre-trained model is. `keys` maps the files' names of tensors to file names."""

    def __init__(self, spec: WeightsSpec, where: str = RUN_RECORD) -> None:
        """Reads the index alone. Raises InputError: no such source, or none with safetensors."""
        self.spec, self._where = spec, where
        self.opened: set[str] = set()
        index = self.find(INDEX)
        self.keys: dict[str, str] = _indexed(index, where) if index is not None else self._keys_of_single()

    def find(self, name: str) -> Path | None:
        """A file of the source on this machine, downloaded if need be; None if it has none such. Raises InputError."""
        folder = in_home(self.spec.source)
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        return _from_hub(self.spec, name, self._where)

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, on the CPU. Raises InputError for a file that is not there or cannot be read."""
        found: dict[str, Tensor] = {}
        by_file: dict[str, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.keys[key], []).append(key)
        for name, wanted in sorted(by_file.items()):
            path = self.find(name)
            if path is None:
                raise InputError(self._where, _FIELD, f"{self.spec.source}: expected the file {name}, which its index names")
            self.opened.add(name)
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {key: file.get_tensor(key) for key in wanted}
            except (OSError, safetensors.SafetensorError) as error:
                raise InputError(self._where, _FIELD, f"{path}: expected readable safetensors ({error})") from error
        return found

    def _keys_of_single(self) -> dict[str, str]:
        path = self.find(SINGLE)
        if path is None:
            raise InputError(self._where, _FIELD, f"{self.spec.source}: expected {SINGLE} or {INDEX}, found neither")
        try:
            with safe_open(path, framework="pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(self._where, _FIELD, f"{path}: expected readable safetensors ({error})") from error


def load_pretrained(model: PreTrainedModel, units: Iterable[Unit], files: PretrainedFiles, where: str = RUN_RECORD) -> str:
    """Fill the units' weights, which lie on the CPU, and their saved buffers; returns the hash of all that was read.

    One unit at a time is in memory twice. Raises InputError that names a parameter which the files do not give.
    """
    reader = _Reader(build_skeleton(model.config, where), files, where)
    done: dict[str, Tensor] = {}
    for unit in units:
        names = {
            name for name in _state_names(reader.skeleton, unit) if not any(_tensor_of(model, name) is t for t in done.values())
        }
        loaded = reader.unit(unit, names)
        for name in sorted(names):
            value = next((loaded[each] for each in (name, *reader.aliases.get(name, ())) if each in loaded), None)
            tensor = _tensor_of(model, name)
            if value is None:
                if isinstance(tensor, nn.Parameter):
                    raise InputError(where, _FIELD, f"{files.spec.source}: expected a tensor for {name}, the files have none")
                continue
            _check(name, value, tensor, where)
            with torch.no_grad():
                tensor.copy_(value)
            done[name] = tensor
    return _hash(done)


def foreign_keys(model: PreTrainedModel, files: PretrainedFiles) -> list[str]:
    """Tensors of the files that a skeleton has no place for."""
    known = set(model.state_dict())
    return sorted(key for key, name in _targets(model, files.keys).items() if name not in known)


def untrained_of(model: PreTrainedModel, names: set[str], files: PretrainedFiles, where: str = RUN_RECORD) -> dict[str, Tensor]:
    """Those of the named tensors of a skeleton that the files have, by name. Raises InputError."""
    reader = _Reader(model, files, where)
    return {name: tensor for name, tensor in reader.tensors(lambda name: name in names).items() if name in names}


class _Reader:
    """Reads some of the files' tensors as a skeleton has them; the skeleton is without memory again afterwards."""

    def __init__(self, skeleton: PreTrainedModel, files: PretrainedFiles, where: str) -> None:
        self.skeleton, self._files, self._where = skeleton, files, where
        self.aliases = _aliases(skeleton)
        self._targets = _targets(skeleton, files.keys)

    def unit(self, unit: Unit, names: set[str]) -> dict[str, Tensor]:
        """Tensors of a unit, by name; a tied one under whichever name the files have."""
        wanted = names | {alias for name in names for alias in self.aliases.get(name, ())}
        # What several parameters are made of is named after the first of them, which is in the same layer.
        inside = f"{unit.name}." if unit.layer >= 0 else "\0"
        return self.tensors(lambda name: name in wanted or name.startswith(inside))

    def tensors(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Tensors whose name is wanted, by name, in the files' type or in float32. Raises InputError."""
        found = self._files.read(key for key, name in self._targets.items() if wanted(name))
        library = _conversions(self.skeleton)
        if library is None or not found:
            return {self._targets[key]: tensor for key, tensor in found.items()}
        state = {
            name: (_holder(self.skeleton, name), tensor) for name, tensor in self.skeleton.state_dict(keep_vars=True).items()
        }
        missing = self._convert(library, found)
        loaded = {name: _tensor_of(self.skeleton, name).detach() for name in state.keys() - missing}
        for name in loaded:
            module, tensor = state[name]
            setattr(module, name.rpartition(".")[2], tensor)
        return loaded

    def _convert(self, library: tuple[Any, list[Any]], found: Mapping[str, Tensor]) -> set[str]:
        """Let the library put tensors into the skeleton; returns the names that it has left alone."""
        from transformers.modeling_utils import LoadStateDictConfig

        loading, mapping = library
        settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=mapping)
        takes = inspect.signature(loading.convert_and_load_state_dict_in_model).parameters
        plans = {"tp_plan": None} if "tp_plan" in takes else {}  # older releases insist on it
        try:
            with _no_progress_bar():
                info, _ = loading.convert_and_load_state_dict_in_model(self.skeleton, dict(found), settings, **plans)
        except CONFIG_ERRORS as error:
            raise InputError(self._where, _FIELD, f"expected tensors of this model ({one_line(error)})") from error
        for name, got, expected in sorted(info.mismatched_keys):
            raise InputError(self._where, _FIELD, f"{name}: expected shape {tuple(expected)}, the files have {tuple(got)}")
        for name, reason in sorted(info.conversion_errors.items()):
            raise InputError(self._where, _FIELD, f"{name}: expected tensors that transformers converts ({str(reason)[:120]})")
        return set(info.missing_keys)


def resolved(spec: WeightsSpec, where: str = RUN_RECORD) -> WeightsSpec:
    """The same weights, of the hub at one commit: what others load later is what was hashed. Raises InputError."""
    if in_home(spec.source).is_dir():
        return WeightsSpec(str(in_home(spec.source).resolve()))
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(spec.source, revision=spec.revision or None).sha
    except (OSError, ValueError) as error:
        raise InputError(where, _FIELD, _not_there(spec.source, error)) from error
    return WeightsSpec(spec.source, found or spec.revision)


def _from_hub(spec: WeightsSpec, name: str, where: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(spec.source, name, revision=spec.revision or None))
    except LocalEntryNotFoundError as error:  # the hub cannot be asked; it is a kind of the next one
        raise InputError(where, _FIELD, _not_there(spec.source, error)) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(where, _FIELD, _not_there(spec.source, error)) from error


def _not_there(source: str, error: BaseException) -> str:
    return f"expected a folder or a hub id, {source!r:.80}: {str(error).splitlines()[0][:120]}"


def _indexed(path: Path, where: str) -> dict[str, str]:
    """The index's map. It comes from outside: names are of files beside it."""
    try:
        found = json.loads(path.read_bytes())["weight_map"]
        keys = {str(key): str(name) for key, name in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(where, _FIELD, f"{path}: expected an index with a weight_map ({type(error).__name__})") from error
    wrong = next((name for name in keys.values() if Path(name).name != name or not name.endswith(".safetensors")), None)
    if wrong is not None:
        raise InputError(where, _FIELD, f"{path}: expected names of safetensors files beside it, got {wrong!r:.80}")
    return keys


def _targets(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """For each tensor of the files the name in the model's state that it goes to, or would."""
    known = model.state_dict()
    rename = _library_rename(model, known)
    return {key: rename(key) for key in keys}


def _library_rename(model: PreTrainedModel, known: Mapping[str, Tensor]) -> Callable[[str], str]:
    prefix = model.base_model_prefix

    def plain(key: str) -> str:
        return next((name for name in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if name in known), key)

    library = _conversions(model)
    if library is None:
        return plain
    loading, mapping = library
    renamings = [entry for entry in mapping if not isinstance(entry, loading.WeightConverter)]
    converters = [entry for entry in mapping if isinstance(entry, loading.WeightConverter)]

    def renamed(key: str) -> str:
        name: str = loading.rename_source_key(key, renamings, converters, prefix, known)[0]
        return plain(key) if name not in known and plain(key) in known else name

    return renamed


def _conversions(model: PreTrainedModel) -> tuple[Any, list[Any]] | None:
    """The library's loader and its conversions for a model; None in releases before 5, whose models are named as saved."""
    try:
        from transformers import core_model_loading
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return None
    return core_model_loading, get_model_conversion_mapping(model)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The library shows a bar for each of its loads; here a load is one layer."""
    shown: bool = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _state_names(model: PreTrainedModel, unit: Unit) -> set[str]:
    """Parameters of a unit and the buffers that a saved model has of it."""
    names = set(unit_parameters(model, unit))
    prefix = f"{unit.name}." if unit.name else ""
    module = model.get_submodule(unit.name)
    if not unit.direct:
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        names |= {f"{prefix}{name}" for name in module.state_dict() if name not in parameters}
    return names


def _aliases(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Other names of tied parameters."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: tuple(other for other in names if other != name) for names in groups.values() for name in names}


def _holder(model: PreTrainedModel, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _tensor_of(model: PreTrainedModel, name: str) -> Tensor:
    found: Tensor = getattr(_holder(model, name), name.rpartition(".")[2])
    return found


def _check(name: str, value: Tensor, tensor: Tensor, where: str) -> None:
    if value.shape != tensor.shape:
        expected = f"{name}: expected shape {tuple(tensor.shape)}, the files have {tuple(value.shape)}"
        raise InputError(where, _FIELD, expected)
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise InputError(where, _FIELD, f"{name}: expected finite numbers")


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
