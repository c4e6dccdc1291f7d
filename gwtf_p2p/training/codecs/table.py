"""Codecs by name. Names and sizes are `protocol/wire/tensor_formats`; this module says which code writes and reads them."""

from __future__ import annotations

import torch

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire import tensor_formats as forms
from gwtf_p2p.training.codecs.blockwise import Fp8Codec, Int8Codec
from gwtf_p2p.training.codecs.codec import Codec, FloatCodec
from gwtf_p2p.training.codecs.hadamard import Int4Codec


def _codecs() -> dict[str, Codec]:
    known: list[Codec] = [
        FloatCodec(forms.FLOAT32, torch.float32),
        FloatCodec(forms.BFLOAT16, torch.bfloat16),
        FloatCodec(forms.FLOAT16, torch.float16),
        Int8Codec(forms.INT8),
        Int4Codec(forms.INT4),
    ]
    if hasattr(torch, "float8_e4m3fn"):
        known.append(Fp8Codec(forms.FP8))
    return {codec.form.name: codec for codec in known}


CODECS = _codecs()
"""What this peer speaks: all of `tensor_formats.FORMATS`, but fp8 only where torch has the type."""


def codec_of(name: str, where: str = "run record", field: str = "wire") -> Codec:
    """The codec of this name. Raises InputError that names the field, and what this peer knows."""
    if name not in CODECS:
        raise InputError(where, field, f"this peer knows the codecs {', '.join(CODECS)}, not {name!r:.40}")
    return CODECS[name]
