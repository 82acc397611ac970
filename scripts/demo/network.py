"""What do the models compute? A llama in PyTorch, exactly as GGUF's "llama" architecture defines it.

Interleaved-pair RoPE, RMSNorm before attention and feed-forward, SwiGLU, and an output matrix tied to the embedding.
"""

# Without torch installed, nn.Module is Any to mypy.
# mypy: allow-subclassing-any

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. width and hidden are multiples of 32, because a Q8_0 block holds 32 weights of a row."""

    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    hidden: int
    rope_base: float = 10000.0
    epsilon: float = 1e-5


class Block(nn.Module):
    """One transformer layer. qkv and gate_up are fused here for speed and separate tensors in the GGUF."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.gate_up = nn.Linear(shape.width, 2 * shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width]; rotation complex [B, 1, T, head/2]; mask bool [B, 1, T, T], True where attention is allowed."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.attn_norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class Llama(nn.Module):
    """The whole model. `forward` gives normed hidden states, `logits` turns chosen ones into scores over the vocabulary."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                wide = shape.width**-0.5  # so that attention scores are of the order of 1 at the start
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.3 * wide if residual else wide)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """tokens, positions [B, T]; mask bool [B, T, T]. Hidden states [B, T, width]."""
        half = self.shape.width // self.shape.heads // 2
        frequencies = self.shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = positions.float()[:, None, :, None] * frequencies
        rotation = torch.polar(torch.ones_like(angles), angles)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation, mask[:, None])
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, width] -> [N, vocabulary]."""
        return F.linear(hidden, self.embedding.weight)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """RoPE on interleaved pairs (x0, x1), (x2, x3), ...; x [B, heads, T, head]."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
