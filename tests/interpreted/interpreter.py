"""Runs the ops' Triton kernels on CPU tensors, in Triton's interpreter. To be imported before anything imports Triton."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "Triton reads TRITON_INTERPRET when it is imported"

import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402

from lgld_ops.ops import gpu  # noqa: E402

_patch = interpreter._patch_lang_tensor


def _patch_for_numpy_2_4(tensor: Any, scope: Any) -> None:
    """Triton 3.6 makes ints of arrays with one element, which NumPy 2.4 refuses (triton-lang/triton#9171)."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_for_numpy_2_4

_patch_language = interpreter._patch_lang
_patched: set[Any] = set()


def _patch_language_once(function: Any) -> Any:
    """A kernel's launch replaces Triton's own functions until it ends. Each call of a helper in it would look for all of them
    again, a third of the time: here the first call of each."""
    if tl.core.is_builtin(tl.load):  # a launch
        _patched.clear()
    if function in _patched:
        return interpreter._LangPatchScope()
    _patched.add(function)
    return _patch_language(function)


interpreter._patch_lang = _patch_language_once

calls: dict[str, int] = dict.fromkeys(gpu.TRITON, 0)
_library = torch.library.Library("lgld_ops", "IMPL")


def _route(name: str, function: Callable[..., Any]) -> None:
    def run(*arguments: Any, **named: Any) -> Any:
        calls[name] += 1
        return function(*gpu.complete(name, arguments, named))

    _library.impl(name, run, "CPU", allow_override=True)


# From here on the ops run, on CPU tensors, what a GPU without the CUDA library runs; autograd and the rest stay.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="[^$]*Overriding a previously registered kernel")
    for _name, _function in gpu.TRITON.items():
        _route(_name, _function)
