"""Transformer Engine's compiled functions in plain torch, so that its own Python runs on a machine without a GPU.

`install` takes a folder with the Python files of its wheel. All of them run as they are; what they call in the compiled
`transformer_engine_torch` and in flash-attn 2 is here, with the arguments, memory layouts, masks and results that those
have. For Transformer Engine fp32 takes the place of bf16, and the CPU that of an H100 (or an A100) with one stream.
What this cannot show: that CUDA kernels compute what plain torch computes, and what streams that run side by side would
read too early. A function that is not here raises AttributeError by its name.

Shape legend: S rows of queries, T rows of keys, B batch, H query heads, K key/value heads, D head size.
"""

import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

FLASH_ATTENTION = "2.8.1"
called: list[str] = []
"""Names of attention kernels, in the order of their calls."""


class _Named(type):
    """A class whose members are made when they are asked for: the compiled module's enumerations."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        member = cls()
        member.name, member.value = name, len(cls.__dict__)
        setattr(cls, name, member)
        return member


def _enumeration(name: str) -> _Named:
    methods = {"__int__": lambda self: self.value, "__index__": lambda self: self.value}
    return _Named(name, (), {**methods, "__repr__": lambda self: f"{name}.{self.name}"})


# --- attention -------------------------------------------------------------------------------------------------------


def _hidden(q_BHSD: Tensor, k_BKTD: Tensor, mask: str, window: tuple[int, int], lengths: Any = None) -> Tensor:
    """Which keys a query does not see, [B, 1, S, T]; `lengths` are those of queries and keys without padding, [B]."""
    rows, keys = q_BHSD.shape[2], k_BKTD.shape[2]
    query, key = torch.arange(rows).view(1, 1, -1, 1), torch.arange(keys).view(1, 1, 1, -1)
    of_queries, of_keys = (torch.tensor([rows]), torch.tensor([keys])) if lengths is None else lengths
    hidden = (key >= of_keys.view(-1, 1, 1, 1)) | (query >= of_queries.view(-1, 1, 1, 1))
    bottom_right = "bottom_right" in mask
    diagonal = query + ((of_keys - of_queries).view(-1, 1, 1, 1) if bottom_right else 0)
    if "causal" in mask:
        hidden = hidden | (key > diagonal)
    left, right = window
    if left >= 0:
        hidden = hidden | (key < diagonal - left)
    if right > 0:
        hidden = hidden | (key > diagonal + right)
    return hidden


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, S, D] in fp32 and the natural logarithm of the sum of exponentials, [B, H, S]."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1).double() for part in (k, v))
    scores = (q.double() @ k.mT * scale).masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    return (weights @ v).float(), lse.float()


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the *given* output and LSE, as kernels compute them: those may be of more keys than `k` has."""
    group, heads = q.shape[1] // k.shape[1], k.shape[1]
    grad, q, out, lse = (part.double() for part in (grad, q, out, lse))
    wide_k, wide_v = (part.repeat_interleave(group, 1).double() for part in (k, v))
    scores = (q @ wide_k.mT * scale).masked_fill(hidden, -torch.inf)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    of_scores = weights * (grad @ wide_v.mT - (grad * out).sum(-1, keepdim=True)) * scale
    of_keys, of_values = (part.unflatten(1, (heads, group)).sum(2) for part in (of_scores.mT @ q, weights.mT @ grad))
    return (of_scores @ wide_k).float(), of_keys.float(), of_values.float()


def _assert_layout(layout: str, tensors: tuple[Tensor, ...]) -> None:
    """Kernels take addresses and the layout's name, not strides: memory has to be as the name says."""
    names = layout.removeprefix("NVTE_").lower().split("_")
    spread = [name for name in names for _ in range(next((int(one) for one in name if one.isdigit()), 1))]
    assert len(spread) == len(tensors) == 3, layout
    for name, tensor in zip(spread, tensors, strict=True):
        sizes = dict(zip((one for one in name if one.isalpha()), tensor.shape, strict=True))
        stride, expected = 1, []
        for one in reversed(name):
            if one.isalpha():
                expected.insert(0, stride)
            stride *= sizes[one] if one.isalpha() else int(one)
        for size, found, wanted in zip(tensor.shape, tensor.stride(), expected, strict=True):
            assert size == 1 or found == wanted, f"{layout}: {name} {tuple(tensor.shape)} has {tensor.stride()}"


_TO_BHSD = {"sbhd": (1, 2, 0, 3), "bshd": (0, 2, 1, 3)}
_FROM_BHSD = {"sbhd": (2, 0, 1, 3), "bshd": (0, 2, 1, 3)}


def _format(layout: Any) -> str:
    found = "".join(one for one in layout.name.removeprefix("NVTE_").lower().split("_")[0] if one.isalpha())
    assert found in _TO_BHSD, f"{layout}: packed sequences are not here"
    return found


def _fused_hidden(q: Tensor, k: Tensor, mask: Any, window: Any, of_queries: Tensor, of_keys: Tensor) -> Tensor:
    name = mask.name.removeprefix("NVTE_").removesuffix("_MASK").lower()
    lengths = (of_queries.diff(), of_keys.diff()) if "padding" in name else None
    return _hidden(q, k, name, window, lengths)


def fused_attn_fwd(
    max_seqlen_q, max_seqlen_kv, is_training, scale, dropout, fast_zero_fill, layout, bias_type, mask, softmax_type,
    window, cu_seqlens_q, cu_seqlens_kv, q, k, v, fake_dtype, cu_seqlens_q_padded, cu_seqlens_kv_padded, page_table_k,
    page_table_v, s_quantizer, o_quantizer, bias, softmax_offset, rng_gen, rng_elts_per_thread, return_max_logit,
):  # fmt: skip
    called.append("fused_attn_fwd")
    assert (dropout, bias_type.name, softmax_type.name) == (0, "NVTE_NO_BIAS", "NVTE_VANILLA_SOFTMAX")
    assert not return_max_logit
    _assert_layout(layout.name, (q, k, v))
    order = _format(layout)
    rows = q, k, v = [part.permute(_TO_BHSD[order]) for part in (q, k, v)]
    assert (max_seqlen_q, max_seqlen_kv) == (q.shape[2], k.shape[2])
    assert {part.dtype for part in rows} == {torch.float32}
    out, lse = _attend(q, k, v, scale, _fused_hidden(q, k, mask, window, cu_seqlens_q, cu_seqlens_kv))
    return [out.permute(_FROM_BHSD[order]).contiguous(), lse.unsqueeze(-1), torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_seqlen_q, max_seqlen_kv, scale, dropout, fast_zero_fill, layout, bias_type, mask, softmax_type, window,
    deterministic, cu_seqlens_q, cu_seqlens_kv, q, k, v, out, grad, fake_dtype, dqkv_dtype, context,
    cu_seqlens_q_padded, cu_seqlens_kv_padded, s_quantizer, dp_quantizer, dqkv_quantizer,
):  # fmt: skip
    called.append("fused_attn_bwd")
    assert (dropout, bias_type.name, softmax_type.name) == (0, "NVTE_NO_BIAS", "NVTE_VANILLA_SOFTMAX")
    _assert_layout(layout.name, (q, k, v))
    order = _format(layout)
    assert out.is_contiguous()
    assert grad.is_contiguous()
    lse = context[0]
    given = [part.permute(_TO_BHSD[order]) for part in (grad, q, k, v, out)]
    q_BHSD, k_BKTD = given[1:3]
    assert lse.shape == (*q_BHSD.shape[:3], 1)
    assert (max_seqlen_q, max_seqlen_kv) == (q_BHSD.shape[2], k_BKTD.shape[2])
    hidden = _fused_hidden(q_BHSD, k_BKTD, mask, window, cu_seqlens_q, cu_seqlens_kv)
    grads = _attend_backward(*given, lse.squeeze(-1), scale, hidden)
    results = [torch.empty_strided(part.shape, part.stride()) for part in (q, k, v)]
    for result, part in zip(results, grads, strict=True):
        result.copy_(part.permute(_FROM_BHSD[order]))
    return [*results, None, None]


def _flash_hidden(q: Tensor, k: Tensor, causal: bool, left: int, right: int) -> Tensor:
    return _hidden(q, k, "causal_bottom_right" if causal else "bottom_right", (left, 0 if causal else right))


def _flash_attn_forward(
    q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
    return_softmax,
):  # fmt: skip
    called.append("flash_attn_fwd")
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0, 0, None, False)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    hidden = _flash_hidden(q, k, causal, window_size_left, window_size_right)
    out, lse = _attend(q, k, v, softmax_scale, hidden)
    return out.transpose(1, 2).contiguous(), lse, None, torch.zeros(2, dtype=torch.int64)


def _flash_attn_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left, window_size_right,
    softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    called.append("flash_attn_bwd")
    assert (dropout_p, softcap, alibi_slopes) == (0, 0, None)
    given = [part.transpose(1, 2) for part in (dout, q, k, v, out)]
    hidden = _flash_hidden(given[1], given[2], causal, window_size_left, window_size_right)
    grads = _attend_backward(*given, softmax_lse, softmax_scale, hidden)
    for result, part in zip((dq, dk, dv), grads, strict=True):
        result.copy_(part.transpose(1, 2))


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, causal, window):
        out, lse, *_ = _flash_attn_forward(q, k, v, 0.0, scale, causal, *window, 0.0, None, False)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = scale, causal, *window
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(part) for part in (q, k, v)]
        scale, causal, left, right = ctx.settings
        _flash_attn_backward(grad, q, k, v, out, lse, *grads, 0.0, scale, causal, left, right, 0.0, None, False)
        return *grads, None, None, None


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert (dropout_p, softcap, alibi_slopes, return_attn_probs) == (0, 0, None, False)
    return _FlashAttention.apply(q, k, v, softmax_scale, causal, window_size)


# --- the rest of a layer ---------------------------------------------------------------------------------------------


def generic_gemm(
    a, transa, b, transb, out, quantizer, out_dtype, bias, bias_dtype, gelu, gelu_in, grad, workspace, workspace_size,
    accumulate, use_split_accumulator, comm_overlap=None, comm_type=None, extra_output=None, bulk_overlap=False,
    alpha=1.0, beta=None,
):  # fmt: skip
    """`b @ a` of matrices whose last axes are the columns; with `grad` also the bias' gradient, the sum of b's rows."""
    assert (quantizer, gelu, gelu_in, comm_overlap, extra_output) == (None, False, None, None, None)
    assert (alpha, bulk_overlap) == (1.0, False)
    rows, columns = b.flatten(0, -2), a.flatten(0, -2)
    found = (rows.T if transb else rows) @ (columns.T if transa else columns)
    of_bias = None
    if bias is not None and not grad:
        found = found + bias
    elif bias is not None:
        of_bias = rows.sum(0)
    found = found.view(*b.shape[:-1], -1) if not transb else found
    if out is None:
        assert not accumulate
        return found, of_bias, None, None
    out.copy_(out + found.view_as(out) if accumulate else found.view_as(out))
    return out, of_bias, None, None


def rmsnorm_fwd(inp, weight, eps, out, quantizer, out_dtype, sm_margin, zero_centered_gamma):
    assert quantizer is None
    rstd = (inp.double().square().mean(-1) + eps).rsqrt()
    found = (inp * rstd.unsqueeze(-1) * (weight + 1 if zero_centered_gamma else weight)).to(inp.dtype)
    return found if out is None else out.copy_(found), None, rstd.to(inp.dtype)


def rmsnorm_bwd(grad, inp, rstd, weight, sm_margin, zero_centered_gamma):
    grad, normed, rstd = grad.double(), inp.double() * rstd.double().unsqueeze(-1), rstd.double().unsqueeze(-1)
    scaled = grad * (weight + 1 if zero_centered_gamma else weight)
    of_input = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return of_input.to(inp.dtype), (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)


def _turn(rows: Tensor, angles: Tensor, sign: int) -> Tensor:
    first, second = rows.chunk(2, -1)
    return rows * angles.cos() + sign * torch.cat([-second, first], -1) * angles.sin()


def fused_rope_forward(rows, angles, start_positions, order, interleaved, cu_seqlens, cp_size, cp_rank):
    assert (start_positions, order.name, interleaved, cu_seqlens, cp_size) == (None, "NVTE_SBHD", False, None, 1)
    assert angles.shape == (rows.shape[0], 1, 1, rows.shape[3])
    assert angles.is_contiguous()
    return _turn(rows, angles, 1).contiguous()


def fused_rope_backward(grad, angles, order, interleaved, cu_seqlens, cp_size, cp_rank):
    assert (order.name, interleaved, cu_seqlens, cp_size) == ("NVTE_SBHD", False, None, 1)
    return _turn(grad, angles, -1).contiguous()


def get_fused_attn_backend(is_training, q_type, kv_type, layout, bias_type, mask, softmax_type, *more):
    """What cuDNN answers for bf16 and heads of up to 128; nothing of its own limits."""
    return _tex.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen


# --- installation ----------------------------------------------------------------------------------------------------

_FUNCTIONS = (
    fused_attn_fwd, fused_attn_bwd, generic_gemm, rmsnorm_fwd, rmsnorm_bwd, fused_rope_forward, fused_rope_backward,
    get_fused_attn_backend,
)  # fmt: skip


class _Compiled(ModuleType):
    """What has a capital letter is an enumeration or a class; functions that are not here fail when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not name[0].isupper():
            return _absent(name)
        setattr(self, name, _enumeration(name))
        return getattr(self, name)


def _absent(name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        raise AttributeError(f"transformer_engine_torch.{name} is not among the functions in plain torch")

    return call


_tex = _Compiled("transformer_engine_torch")
_tex.__dict__.update({function.__name__: function for function in _FUNCTIONS})
_tex.__dict__.update({name: _absent(name) for name in ("layernorm_fwd", "layernorm_bwd", "fused_rope_forward_thd")})
_tex.get_cudnn_version = lambda: 91900


class _Instead(ModuleType):
    """A module, but for some of its names."""

    def __init__(self, module: ModuleType, **names: Any):
        super().__init__(module.__name__)
        self.__dict__.update(module=module, **names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class _Event:
    def record(self, stream: Any = None) -> None:
        """Everything is in order."""

    wait = synchronize = record


class _Stream:
    def wait_stream(self, stream: Any) -> None:
        """Everything is in order."""

    wait_event = record_event = wait_stream


class _Sent:
    """A message that may be waited for twice, as with NCCL: gloo would wait for another one."""

    def __init__(self, work: Any):
        self.work: Any = work

    def wait(self) -> None:
        if self.work:
            self.work.wait()
        self.work = None


def _messages() -> dict[str, Any]:
    """What `torch.distributed` has for messages between two ranks."""
    distributed = torch.distributed
    return {
        "isend": lambda tensor, to, group: _Sent(distributed.isend(tensor, to, group)),
        "irecv": lambda tensor, source, group: _Sent(distributed.irecv(tensor, source, group)),
        "P2POp": lambda operation, *arguments: lambda: operation(*arguments),
        "batch_isend_irecv": lambda operations: [operation() for operation in operations],
    }


def _one_gpu(generation: int) -> dict[str, Any]:
    """What `torch.cuda` says and does where there is one GPU and one stream."""
    properties = SimpleNamespace(major=generation, minor=0, multi_processor_count=132)
    nvtx = SimpleNamespace(range=lambda text: nullcontext(), range_push=lambda text: None, range_pop=lambda: None)
    return {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (generation, 0),
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
        "nvtx": nvtx,
    }


def _is_cuda(tensor: Tensor) -> bool:
    """Yes, for Transformer Engine; everybody else hears the truth."""
    asking = sys._getframe(1).f_globals["__name__"]
    return asking.startswith("transformer_engine.") or tensor.device.type == "cuda"


def install(sources: Path, metadata: Path, flash: bool = False) -> None:
    """Make `import transformer_engine` find the Python files in `sources`, over what is in this module.

    With `flash` there are an A100 and flash-attn 2, which it then prefers to cuDNN; package metadata of that is written
    into `metadata`.
    Raises AssertionError if Megatron was imported before.
    """
    assert "megatron" not in sys.modules, "Megatron has already looked for Transformer Engine"
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its own way to be imported without shared libraries
    sys.path.append(str(sources))
    sys.modules["transformer_engine_torch"] = _tex
    if flash:
        _install_flash_attention(metadata)
    with warnings.catch_warnings(action="ignore"):
        import transformer_engine.common as common
    common.load_framework_extension = lambda framework: None
    for needing_others in ("onnx_extensions", "triton", "triton.pad", "triton.permutation", "triton.cross_entropy"):
        sys.modules[f"transformer_engine.pytorch.{needing_others}"] = _Compiled(needing_others)
    import transformer_engine
    import transformer_engine.pytorch

    transformer_engine.pytorch = sys.modules["transformer_engine.pytorch"]
    # It lets only half precision on a GPU into its kernels.
    cuda, distributed = _Instead(torch.cuda, **_one_gpu(8 if flash else 9)), _Instead(torch.distributed, **_messages())
    seen = _Instead(torch, bfloat16=torch.float32, cuda=cuda, distributed=distributed)
    for name, module in list(sys.modules.items()):
        if name.startswith("transformer_engine.") and getattr(module, "torch", None) is torch:
            module.torch = seen
    sys.modules["transformer_engine.pytorch.optimizers"] = None  # Megatron-Core then takes torch's
    torch.Tensor.is_cuda = property(_is_cuda)
    torch.cuda.Stream = _Stream  # Megatron-Core makes one for its context parallelism


def _install_flash_attention(directory: Path) -> None:
    found = directory / f"flash_attn-{FLASH_ATTENTION}.dist-info" / "METADATA"
    found.parent.mkdir(parents=True)
    found.write_text(f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {FLASH_ATTENTION}\n")
    sys.path.append(str(directory))
    interface = ModuleType("flash_attn.flash_attn_interface")
    for function in (flash_attn_func, _flash_attn_forward, _flash_attn_backward):
        setattr(interface, function.__name__, function)
    for name in ("flash_attn_varlen_func", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward"):
        setattr(interface, name, _absent(name))
    cuda = ModuleType("flash_attn_2_cuda")
    cuda.varlen_bwd = _absent("varlen_bwd")
    sys.modules |= {"flash_attn.flash_attn_interface": interface, "flash_attn_2_cuda": cuda}
    sys.modules["flash_attn"] = ModuleType("flash_attn")
