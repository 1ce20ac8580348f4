"""What a model computes here, whoever computes it.

Shape legend: S tokens, H hidden size, V vocabulary, N states: the embedding, then the residual stream behind every
layer but the last, then the final norm's output.
"""

from collections.abc import Callable

from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Token ids [S] → states [N, S, H] and logits [S, V], fp32."""
