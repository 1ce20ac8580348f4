"""One rank's decoder layers in plain torch around the project's own attention; needs torch and nothing else.

Shape legend: S local rows, B sequences, C hidden size, F feed-forward size, H query heads, K key/value heads, D head
size, T local trunk rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemo_longpo.attention.branches import branch_attention
from nemo_longpo.attention.kernels import partial_attention, partial_attention_backward
from nemo_longpo.attention.rope import inverse_frequencies, rotary_angles
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.model_directory.rope_settings import RopeSettings
from nemo_longpo.placement import PairLayout

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Share:
    """What the most loaded of `cp` ranks holds of a pair: `trunk` tokens and two branches of `branch` tokens each."""

    trunk: int
    branch: int
    layout: PairLayout
    cp: int = 1

    @property
    def sequences(self) -> int:
        return 2 if self.layout == "concatenated" else 1

    @property
    def trunk_rows(self) -> int:
        """Local rows of one causal sequence, even: an early and a late chunk."""
        tokens = self.trunk + (self.branch if self.layout == "concatenated" else 0)
        return 2 * -(-tokens // (2 * self.cp))

    @property
    def branch_rows(self) -> int:
        return 0 if self.layout == "concatenated" else -(-2 * self.branch // self.cp)

    @property
    def positions(self) -> Tensor:
        """Of the local rows. With several ranks only their number matters here: another rank's would cost the same."""
        trunk = torch.arange(self.trunk_rows)
        branches = [torch.arange(self.branch) + self.trunk] * 2
        return torch.cat([trunk, torch.cat(branches)[: self.branch_rows]]) if self.branch_rows else trunk

    def attend(self, query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor) -> Tensor:
        """Attention of this rank's rows; keys and values of other ranks are stood in for by its own."""
        sequences = [
            self._attend(*(t[:, b] for t in (query_SBHD, key_SBKD, value_SBKD))) for b in range(self.sequences)
        ]
        return torch.stack(sequences, 1) if len(sequences) > 1 else sequences[0][:, None]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.branch_rows:
            return _RingAttention.apply(query, key, value, self.cp)
        trunks, own = zip(*(t.split([self.trunk_rows, self.branch_rows]) for t in (query, key, value)), strict=True)
        out_THD = _RingAttention.apply(*trunks, self.cp)
        if self.cp > 1:  # a rank attends to its trunk rows with the branch rows of all ranks
            own = [t.repeat(self.cp, 1, 1)[: 2 * self.branch] for t in own]
        branches = [slice(0, self.branch), slice(self.branch, 2 * self.branch)]
        trunk_key, trunk_value = (t if len(t) <= self.trunk else t[: self.trunk] for t in trunks[1:])
        out = branch_attention(*own, trunk_key, trunk_value, branches)
        return torch.cat([out_THD, out[: self.branch_rows]])


def _ring_parts(rows: int, cp: int) -> Iterator[tuple[slice, slice, bool]]:
    """(queries, keys, causal) of a zigzag rank's steps around a ring: its own rows, then half a square with each other.

    The middle rank; all ranks have as much to do.
    """
    everything, early, late = slice(0, rows), slice(0, rows // 2), slice(rows // 2, rows)
    yield everything, everything, True
    for other in range(cp - 1):
        yield (everything, early, False) if other < cp // 2 else (late, everything, False)


class _RingAttention(torch.autograd.Function):
    """Causal attention as ring attention computes it, without the communication; exact where `cp` is 1."""

    @staticmethod
    def forward(ctx, query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, cp: int) -> Tensor:
        scale = query_THD.shape[-1] ** -0.5
        out, lse = None, None
        for rows, columns, causal in _ring_parts(len(query_THD), cp):
            part_out, part_lse = partial_attention(query_THD[rows], key_TKD[columns], value_TKD[columns], causal, scale)
            if out is None:
                out, lse = (part_out.float(), part_lse) if cp > 1 else (part_out, part_lse)
                continue
            both = torch.logaddexp(lse[rows], part_lse)
            out[rows] *= (lse[rows] - both).exp()[..., None]
            out[rows] += part_out * (part_lse - both).exp()[..., None]
            lse[rows] = both
        out = out.to(query_THD.dtype)
        ctx.save_for_backward(query_THD, key_TKD, value_TKD, out, lse)
        ctx.cp, ctx.scale = cp, scale
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, out, lse = ctx.saved_tensors
        precise = torch.float32 if ctx.cp > 1 else query.dtype
        gradients = [torch.zeros(t.shape, dtype=precise, device=t.device) for t in (query, key, value)]
        for rows, columns, causal in _ring_parts(len(query), ctx.cp):
            parts = partial_attention_backward(
                grad[rows], query[rows], key[columns], value[columns], out[rows], lse[rows], causal, ctx.scale
            )
            for total, part, place in zip(gradients, parts, (rows, columns, columns), strict=True):
                total[place] += part
        return *(total.to(query.dtype) for total in gradients), None


class Layer(nn.Module):
    """RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU; no biases."""

    def __init__(self, shape: ModelShape, device: str, dtype: torch.dtype):
        super().__init__()
        self.splits = [shape.query_size, shape.kv_size, shape.kv_size]
        self.head_size = shape.head_size

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5)

        self.qkv, self.out = matrix(sum(self.splits), shape.hidden), matrix(shape.hidden, shape.query_size)
        self.gate_up, self.down = matrix(2 * shape.ffn, shape.hidden), matrix(shape.hidden, shape.ffn)
        self.norms = nn.Parameter(torch.ones(2, shape.hidden, device=device, dtype=dtype))

    def forward(self, x_SBC: Tensor, cos_S11D: Tensor, sin_S11D: Tensor, attend: Attend) -> Tensor:
        heads = F.linear(self._norm(x_SBC, 0), self.qkv).split(self.splits, -1)
        query, key, value = (t.unflatten(-1, (-1, self.head_size)) for t in heads)
        query, key = (t * cos_S11D + _half_turn(t) * sin_S11D for t in (query, key))
        x_SBC = x_SBC + F.linear(attend(query, key, value).flatten(2), self.out)
        gate, up = F.linear(self._norm(x_SBC, 1), self.gate_up).chunk(2, -1)
        return x_SBC + F.linear(F.silu(gate) * up, self.down)

    def _norm(self, x: Tensor, which: int) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norms[which], 1e-5)


def _half_turn(heads: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Stack(nn.Module):
    """Layers, each recomputed in the backward."""

    def __init__(self, shape: ModelShape, layers: int, device: str, dtype: torch.dtype):
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape, device, dtype) for _ in range(layers))
        self.frequencies = inverse_frequencies(RopeSettings(1e7), shape.head_size)

    def forward(self, x_SBC: Tensor, share: Share) -> Tensor:
        angles = rotary_angles(share.positions.to(x_SBC.device), self.frequencies)
        cos, sin = angles.cos().to(x_SBC.dtype), angles.sin().to(x_SBC.dtype)
        for layer in self.layers:
            x_SBC = checkpoint(layer, x_SBC, cos, sin, share.attend, use_reentrant=False)
        return x_SBC


def training_step(shape: ModelShape, share: Share, layers: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return forward and backward of some layers with random rows, each time with fresh gradients."""
    stack = Stack(shape, layers, device, dtype)
    size = share.trunk_rows + share.branch_rows, share.sequences, shape.hidden
    rows = torch.randn(size, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(size, device=device, dtype=dtype) * 1e-3

    def step() -> None:
        stack.zero_grad(set_to_none=True)
        rows.grad = None
        stack(rows, share).backward(grad)

    return step
