"""Makes the official code importable as it is, in surroundings of today.

It was written for Python 3.8, pydantic 1, protobuf 3 and a p2pd of 2021. Nothing in the clone is changed: its messages are
compiled into a folder of their own, and what is not there any more is stood in for by modules of this process.

- `src.p2p` is hivemind's, with its p2pd. Tensors between trainer and servers go over gRPC, as there; p2pd carries the DHT's
  calls.
- `src.proto` is compiled with a package name in front, as hivemind registers messages of the same names.
- Classes of messages do not have descriptors of their fields as members any more: the one that is read there is put back.
- pydantic's first interface, which its second version still has.
- `asyncio.wait` takes coroutines again, as it did until Python 3.11.
- `bitsandbytes`, `torch_optimizer` and the file of its ALBERT layers are imported there and not used here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

SOURCE = Path("swarm/pipeline/src")
"""In a clone of yandex-research/swarm."""

PREFIX = "official_swarm"


class NotThere(Exception):
    """What is measured, or a package that it needs, is not there; the message says which."""


def source_of(clone: Path) -> Path:
    """The folder of their package. Raises NotThere."""
    source = clone / SOURCE
    if not (source / "moe" / "server" / "runtime.py").is_file():
        raise NotThere(f"{clone} is no clone of https://github.com/yandex-research/swarm: {SOURCE} is not in it")
    for name in ("prefetch_generator", "grpc_tools"):
        if importlib.util.find_spec(name) is None:
            raise NotThere(f"the official code needs {name}: pip install {name.replace('_tools', 'io-tools')}")
    return source


def compile_messages(source: Path, folder: Path) -> None:
    """Its .proto files as Python modules `*_pb2` in `folder`. Raises NotThere if one does not compile."""
    from grpc_tools import protoc

    written = folder / PREFIX
    written.mkdir(parents=True)
    for path in sorted((source / "proto").glob("*.proto")):
        text = path.read_text()
        found = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        if found is None:
            text = re.sub(r"^(syntax = .*)$", rf"\1\npackage {PREFIX};", text, count=1, flags=re.MULTILINE)
        else:
            text = text.replace(found.group(0), f"package {PREFIX}.{found.group(1)};")
        text = re.sub(r'^import "(.*)";', rf'import "{PREFIX}/\1";', text, flags=re.MULTILINE)
        (written / path.name).write_text(text)
    files = [str(path) for path in sorted(written.glob("*.proto"))]
    if protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]):
        raise NotThere("its messages do not compile")


def load(source: Path, messages: Path) -> types.ModuleType:
    """Their package `src`, ready to use in this process; `messages` is what `compile_messages` has written."""
    import hivemind.p2p
    import hivemind.utils.multiaddr
    import pydantic.v1

    sys.path[:0] = [str(source.parent), str(messages)]
    proto = types.ModuleType("src.proto")
    sys.modules["src.proto"] = proto
    for path in sorted((messages / PREFIX).glob("*_pb2*.py")):
        module = importlib.import_module(f"{PREFIX}.{path.stem}")
        sys.modules[f"src.proto.{path.stem}"] = module
        setattr(proto, path.stem, module)
    answer = sys.modules["src.proto.dht_pb2"].PingResponse
    answer.dht_time = types.SimpleNamespace(DESCRIPTOR=answer.DESCRIPTOR.fields_by_name["dht_time"])
    sys.modules["src.p2p"] = hivemind.p2p
    sys.modules["multiaddr"] = hivemind.utils.multiaddr
    _stand_in("bitsandbytes")
    _stand_in("bitsandbytes.functional", quantize_blockwise=None, dequantize_blockwise=None)
    _stand_in("torch_optimizer", Lamb=object)
    _stand_in("src.moe.server.layers.albert")
    asyncio.wait = _wait_as_before
    later = sys.modules["pydantic"]
    sys.modules["pydantic"] = pydantic.v1
    try:
        return importlib.import_module("src")
    finally:
        sys.modules["pydantic"] = later


_wait = asyncio.wait


async def _wait_as_before(waited: Iterable[Awaitable[Any]], **more: Any) -> Any:
    return await _wait([asyncio.ensure_future(each) for each in waited], **more)


def _stand_in(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
