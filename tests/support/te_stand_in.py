"""A `transformer_engine` for machines without one: the signatures of release 2.9, and plain torch behind them.

What runs on it is real: NeMo's layer spec, Megatron-Core's wrappers around Transformer Engine, and ours. Each call into
Transformer Engine is bound to the signature that its wheel has (`te_signatures.json`), so a misnamed, missing or
misplaced argument fails as it would there, and what `DotProductAttention` refuses under context parallelism is refused.
What it cannot show: that CUDA kernels compute what plain torch computes here.

Shape legend: S local rows, B batch, H query heads, K key/value heads, D head size, W all rows of all ranks.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.extract_te_signatures import SIGNATURES
from torch import Tensor

_EXTRACTED = json.loads(SIGNATURES.read_text())
calls: dict[str, list[SimpleNamespace]] = {}


def signature(name: str) -> inspect.Signature:
    """The signature that Transformer Engine's wheel has for a function or method."""
    return inspect.signature(eval(f"lambda {', '.join(_EXTRACTED['signatures'][name])}: None"))


def bound(name: str) -> Callable[[Callable], Callable]:
    """Bind every call to the extracted signature, note it in `calls`, and pass its arguments on as one namespace."""
    expected = signature(name)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            arguments = expected.bind(*args, **kwargs)
            arguments.apply_defaults()
            given = SimpleNamespace(**arguments.arguments)
            calls.setdefault(name, []).append(given)
            owner = () if "self" not in arguments.arguments else (given.self,)
            return function(*owner, given)

        return call

    return decorate


class _Module(torch.nn.Module):
    """Every module asks checkpoints for its FP8 state, which is an empty tensor without FP8."""

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | None) -> None:
        assert state is None or state.numel() == 0, "there is no FP8 here"


class _Linear(_Module):
    def make_weights(self, given: SimpleNamespace) -> None:
        assert given.tp_size == 1, "only one tensor-parallel rank"
        placed = {"dtype": given.params_dtype, "device": given.device}
        self.weight = torch.nn.Parameter(torch.empty(given.out_features, given.in_features, **placed))
        given.init_method(self.weight)
        bias = torch.nn.Parameter(torch.zeros(given.out_features, **placed)) if given.bias else None
        self.register_parameter("bias", bias)
        self.return_bias, self.parallel_mode = given.return_bias, given.parallel_mode

    def multiply(self, rows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.return_bias:
            return F.linear(rows, self.weight), self.bias
        return F.linear(rows, self.weight, self.bias)


class Linear(_Linear):
    @bound("Linear.__init__")
    def __init__(self, given: SimpleNamespace):
        super().__init__()
        self.make_weights(given)

    @bound("Linear.forward")
    def forward(self, given: SimpleNamespace):
        return self.multiply(given.inp)


class LayerNormLinear(_Linear):
    @bound("LayerNormLinear.__init__")
    def __init__(self, given: SimpleNamespace):
        super().__init__()
        assert (given.normalization, given.zero_centered_gamma) == ("RMSNorm", False)
        self.make_weights(given)
        self.eps = given.eps
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(given.in_features, dtype=given.params_dtype))

    @bound("LayerNormLinear.forward")
    def forward(self, given: SimpleNamespace):
        return self.multiply(F.rms_norm(given.inp, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps))


class RMSNorm(_Module):
    @bound("RMSNorm.__init__")
    def __init__(self, given: SimpleNamespace):
        super().__init__()
        self.eps = given.eps
        self.weight = torch.nn.Parameter(
            torch.ones(given.hidden_size or given.normalized_shape, dtype=given.params_dtype)
        )

    def forward(self, rows: Tensor) -> Tensor:
        return F.rms_norm(rows, self.weight.shape, self.weight, self.eps)


class DotProductAttention(_Module):
    @bound("DotProductAttention.__init__")
    def __init__(self, given: SimpleNamespace):
        super().__init__()
        assert given.attention_dropout == 0
        self.heads, self.kv_heads = given.num_attention_heads // given.tp_size, given.num_gqa_groups // given.tp_size
        self.scale, self.window_size = given.softmax_scale, given.window_size
        self._join(given)
        self.register_load_state_dict_post_hook(_without_own_state)

    @bound("DotProductAttention.set_context_parallel_group")
    def set_context_parallel_group(self, given: SimpleNamespace) -> None:
        self._join(given)

    def _join(self, given: SimpleNamespace) -> None:
        self.cp_comm_type = given.cp_comm_type
        self.groups = given.cp_group if isinstance(given.cp_group, list) else [given.cp_group] if given.cp_group else []
        ranks = list(range(dist.get_world_size())) if self.groups else None
        assert given.cp_global_ranks == ranks or not self.groups

    @bound("DotProductAttention.forward")
    def forward(self, given: SimpleNamespace) -> Tensor:
        """Causal attention over the rows of all ranks, the mask written out; returns [S, B, H·D]."""
        query, key, value = given.query_layer, given.key_layer, given.value_layer
        assert (given.attn_mask_type, given.attention_mask) == ("causal", None)
        assert (query.shape[2], key.shape[2], value.shape[2]) == (self.heads, self.kv_heads, self.kv_heads)
        assert query.shape[0] == key.shape[0] == value.shape[0]
        # It copies rows that are not contiguous, then knows their memory layout by offsets and strides.
        q, k, v = (rows.contiguous() for rows in (query, key, value))
        known = not any(rows.storage_offset() for rows in (q, k, v)) and k.stride() == v.stride()
        assert known, "The provided qkv memory layout is not supported!"
        cp_size = prod(group.size() for group in self.groups)
        self._refuse(query, cp_size)
        rank, stride = 0, 1
        for group in self.groups:
            rank, stride = rank + stride * group.rank(), stride * group.size()
        places_S = _places(query.shape[0], cp_size, rank)
        places_W = torch.cat([_places(query.shape[0], cp_size, other) for other in range(cp_size)])
        for group in self.groups:
            key, value = _GatherRows.apply(key, group), _GatherRows.apply(value, group)
        key, value = (rows.repeat_interleave(self.heads // self.kv_heads, 2) for rows in (key, value))
        scores = torch.einsum("sbhd,wbhd->bhsw", query, key) * (self.scale or query.shape[3] ** -0.5)
        weights = scores.masked_fill(places_W > places_S[:, None], -torch.inf).softmax(-1)
        return torch.einsum("bhsw,wbhd->sbhd", weights, value).flatten(2)

    def _refuse(self, query: Tensor, cp_size: int) -> None:
        if cp_size == 1:
            return
        assert query.shape[0] % 2 == 0, "two chunks of rows a rank"
        assert (len(self.groups) == 2) == (self.cp_comm_type == "a2a+p2p")
        assert self.window_size is None or self.cp_comm_type in ("a2a", "all_gather")
        exchanging = {"a2a": cp_size, "a2a+p2p": self.groups[0].size()}.get(self.cp_comm_type, 1)
        assert self.heads % exchanging == 0
        assert self.kv_heads % exchanging == 0


def _without_own_state(module: torch.nn.Module, keys) -> None:
    """Transformer Engine does not miss attention's FP8 state; Megatron writes none for it."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if "core_attention._extra_state" not in key]


def _places(rows: int, cp_size: int, rank: int) -> Tensor:
    """Places in the sequence of a rank's rows: an early and a late chunk."""
    if cp_size == 1:
        return torch.arange(rows)
    chunk = torch.arange(rows // 2)
    return torch.cat([chunk + rank * len(chunk), chunk + (2 * cp_size - 1 - rank) * len(chunk)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.group.size())[ctx.group.rank()], None


@bound("apply_rotary_pos_emb")
def apply_rotary_pos_emb(given: SimpleNamespace) -> Tensor:
    """Rows [S, B, H, D] turned by the angles [S, 1, 1, D] of the same row."""
    assert (given.tensor_format, given.interleaved, given.fused, given.cp_size) == ("sbhd", False, True, 1)
    assert given.freqs.shape == (given.t.shape[0], 1, 1, given.t.shape[3])
    assert given.freqs.dtype == torch.float32
    assert given.freqs.is_contiguous(), "the kernel reads angles row after row; rows themselves may have any strides"
    assert not given.freqs.requires_grad
    first, second = given.t.chunk(2, -1)
    return (given.t * given.freqs.cos() + torch.cat([-second, first], -1) * given.freqs.sin()).to(given.t.dtype)


def install(directory: Path) -> None:
    """Make `import transformer_engine` find this stand-in, and package metadata of it in `directory`.

    Raises AssertionError if Megatron was imported before.
    """
    assert "megatron" not in sys.modules, "Megatron has already looked for Transformer Engine"
    metadata = directory / f"transformer_engine-{_EXTRACTED['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: transformer-engine\nVersion: {_EXTRACTED['version']}\n")
    sys.path.append(str(directory))
    # What Megatron-Core names as base classes and in annotations when it is imported, and never uses here.
    unused = ("LayerNorm", "GroupedLinear")
    pytorch = _module(
        "transformer_engine.pytorch",
        Linear=Linear,
        LayerNormLinear=LayerNormLinear,
        RMSNorm=RMSNorm,
        DotProductAttention=DotProductAttention,
        ops=SimpleNamespace(Sequential=object, FusibleOperation=object),
        **{name: type(name, (_Module,), {}) for name in unused},
    )
    pytorch.distributed = _module(
        "transformer_engine.pytorch.distributed", CudaRNGStatesTracker=object, activation_recompute_forward=None
    )
    pytorch.fp8 = _module(
        "transformer_engine.pytorch.fp8", FP8GlobalStateManager=None, fp8_autocast=None, fp8_model_init=None
    )
    pytorch.tensor = _module("transformer_engine.pytorch.tensor", QuantizedTensor=type("QuantizedTensor", (), {}))
    pytorch.attention = _module("transformer_engine.pytorch.attention")
    pytorch.attention.rope = _module(
        "transformer_engine.pytorch.attention.rope", apply_rotary_pos_emb=apply_rotary_pos_emb
    )
    router = ("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function")
    pytorch.router = _module("transformer_engine.pytorch.router", **dict.fromkeys(router))
    common = _module("transformer_engine.common", recipe=SimpleNamespace(DelayedScaling=object))
    _module("transformer_engine", __version__=_EXTRACTED["version"], pytorch=pytorch, common=common)


def _module(name: str, **content) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    module.__path__ = []
    sys.modules[name] = module
    return module
