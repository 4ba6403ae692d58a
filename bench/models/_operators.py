"""Operators that an untrusted exported program may use: functions of tensors and numbers, without any other effect.

An operator is admitted by its name, from the lists below, and by its schema: nothing it is given is written to, and it draws
no random numbers. The few that write (``relu_``, ``add_``) are admitted where they write to a tensor that the program itself
has just made, so that neither the weights, nor the images, nor anything outside changes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

_ATEN = re.compile(r"torch\.ops\.(aten|prims)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")

_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"
_PRODUCTS = "addbmm addmm addmv baddbmm bilinear bmm dot inner linear matmul mm mv outer"
_NORMS = """
    batch_norm group_norm instance_norm layer_norm native_group_norm native_layer_norm rms_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training _weight_norm linalg_norm linalg_vector_norm norm
    cosine_similarity
"""
_ACTIVATIONS = """
    celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax _log_softmax mish prelu
    relu relu6 selu sigmoid silu softmax _softmax softplus softshrink tanh threshold
"""
_POOLING = """
    _adaptive_avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices max_pool3d
"""
_ARITHMETIC = """
    abs acos add addcdiv addcmul asin atan atan2 ceil clamp clamp_max clamp_min clip cos cosh div erf exp exp2 expm1 floor
    floor_divide fmod frac heaviside lerp log log10 log1p log2 logaddexp maximum minimum mul neg negative pow reciprocal
    remainder round rsqrt rsub sgn sign sin sinh sqrt square sub tan trunc true_divide
"""
_COMPARISONS = """
    bitwise_and bitwise_not bitwise_or bitwise_xor eq ge greater greater_equal gt isfinite isinf isnan le less less_equal
    logical_and logical_not logical_or logical_xor lt masked_fill ne nan_to_num not_equal where
"""
_REDUCTIONS = """
    all amax amin any argmax argmin argsort cumprod cumsum logsumexp max mean median min prod sort std std_mean sum topk var
    var_mean
"""
_NEW = """
    arange cat clone concat concatenate constant_pad_nd copy eye full full_like gather index index_select
    linspace new_full new_ones new_zeros ones ones_like pad reflection_pad1d reflection_pad2d repeat
    replication_pad1d replication_pad2d roll scalar_tensor stack tril triu upsample_bicubic2d upsample_bilinear2d
    upsample_nearest2d _upsample_nearest_exact2d zeros zeros_like embedding one_hot take_along_dim flip _to_copy
    lift_fresh_copy detach_copy grid_sampler grid_sampler_2d affine_grid_generator im2col col2im unfold_copy
    slice_scatter select_scatter diagonal_scatter scatter index_put masked_scatter gru lstm rnn_relu rnn_tanh
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
"""
_VIEWS = """
    alias chunk contiguous einsum detach diagonal dropout expand expand_as feature_dropout flatten lift_fresh movedim narrow
    numpy_T permute pixel_shuffle pixel_unshuffle channel_shuffle real reshape
    reshape_as select slice split split_with_sizes squeeze swapaxes
    swapdims t to tensor_split transpose type_as unbind unflatten unfold unsqueeze view view_as _unsafe_view _reshape_alias
    broadcast_to broadcast_tensors atleast_1d atleast_2d
"""
_CHECKS = """
    _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
    sym_numel sym_size sym_stride sym_storage_offset
"""

MAKING = frozenset(
    f"{_CONVOLUTIONS} {_PRODUCTS} {_NORMS} {_ACTIVATIONS} {_POOLING} {_ARITHMETIC} {_COMPARISONS}"
    f" {_REDUCTIONS} {_NEW}".split()
)
"""aten operators whose result is a new tensor."""
VIEWING = frozenset(_VIEWS.split())
"""aten operators whose result may share memory with their first argument."""
CHECKING = frozenset(_CHECKS.split())
"""aten operators that give a size, or check one."""
WRITING = frozenset(
    [
        "add_",
        "celu_",
        "clamp_",
        "clamp_max_",
        "clamp_min_",
        "copy_",
        "detach_",
        "div_",
        "elu_",
        "exp_",
        "fill_",
        "hardsigmoid_",
        "hardswish_",
        "hardtanh_",
        "leaky_relu_",
        "masked_fill_",
        "mish_",
        "mul_",
        "neg_",
        "pow_",
        "reciprocal_",
        "relu6_",
        "relu_",
        "rsqrt_",
        "selu_",
        "sigmoid_",
        "silu_",
        "sqrt_",
        "sub_",
        "tanh_",
        "threshold_",
        "zero_",
    ]
)
"""aten operators that write to their first argument."""

_PYTHON: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ["add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "ge", "le", "gt", "lt", "eq", "ne"]
    },
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not")},
}
"""Functions of sizes, by the names under which torch stores them."""

EVAL: dict[str, tuple[str, bool | float]] = {
    "batch_norm": ("training", False),
    "dropout": ("train", False),
    "feature_dropout": ("train", False),
    **{name: ("train", False) for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")},
    "scaled_dot_product_attention": ("dropout_p", 0.0),
    "_scaled_dot_product_attention_math": ("dropout_p", 0.0),
    "_scaled_dot_product_flash_attention_for_cpu": ("dropout_p", 0.0),
}
"""Argument that makes an operator random or lets it learn, and its value in eval mode, by operator."""

TEXTS = {
    "approximate": re.compile(r"none|tanh"),
    "rounding_mode": re.compile(r"trunc|floor"),
    "mode": re.compile(r"constant|reflect|replicate|circular"),
    "equation": re.compile(r"[A-Za-z,.> -]{1,200}"),
    "msg": re.compile(r".{0,10000}", re.DOTALL),
}
"""Texts that an argument of that name may have."""


def admitted(target: str) -> Callable[..., Any] | None:
    """The operator of that stored name (``torch.ops.aten.relu.default``), or None where it is not on the list."""
    if target in _PYTHON:
        return _PYTHON[target]
    match = _ATEN.fullmatch(target)
    if match is None:
        return None
    namespace, name, overload = match.groups()
    known = MAKING | VIEWING | CHECKING | WRITING if namespace == "aten" else frozenset({"convert_element_type"})
    if name not in known:
        return None
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        return None
    found: torch._ops.OpOverload = getattr(packet, overload)
    return found if is_harmless(found) else None


def is_harmless(function: torch._ops.OpOverload) -> bool:
    """Whether the schema writes to nothing (but the first argument, for ``WRITING``) and takes no generator."""
    schema = function._schema
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    writes = schema.name.removeprefix("aten::") in WRITING
    kinds = {str(argument.type) for argument in schema.arguments}
    unusual = any(word in kind for kind in kinds for word in ("Generator", "Stream", "Storage", "QScheme", "__torch__"))
    return written == [writes and place == 0 for place in range(len(written))] and not unusual


def base_name(function: Any) -> str:
    """``relu`` of ``aten.relu.default``; the plain name of a Python function."""
    if isinstance(function, torch._ops.OpOverload):
        return function._schema.name.partition("::")[2]
    return str(getattr(function, "__name__", ""))
