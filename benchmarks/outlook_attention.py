"""Outlook attention against the published block: unfold, matmul, fold.

On a CPU: the whole module (values, pooling, logits, mixing, projection) on maps of 512x512 and 1024x1024
images, inference and training step. On a GPU: the same in bfloat16 with eight images, and the mixing alone as
CUDA graphs over enough different inputs to leave no cache warm, beside the share of the measured copy
bandwidth that the least possible traffic (each tensor moved once) makes of the time taken.
"""

import copy
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from _measure import Report, captured, interleaved, largest_difference, parser, settings
from torch import Tensor, nn

from volo_seg.layers import OutlookAttention
from volo_seg.ops import explain, outlook_attention

COLD_BYTES = 1 << 28
"""Bytes of inputs that GPU timings go round: several times any cache."""


class PublishedOutlookAttention(nn.Module):
    """The published order of operations: windows unfolded, mixed by a batched matmul, folded. K = 3, stride 2."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.v = nn.Linear(dim, dim, bias=False)
        self.attn = nn.Linear(dim, num_heads * 81)
        self.proj = nn.Linear(dim, dim)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        pooled = self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(published_mix(self.v(x), self.attn(pooled), self.num_heads))


def published_mix(v: Tensor, logits: Tensor, num_heads: int) -> Tensor:
    """Windows unfolded, mixed, folded; the head dimension's scale on the logits."""
    batch, height, width, channels = v.shape
    dim = channels // num_heads
    windows = F.unfold(v.permute(0, 3, 1, 2), 3, padding=1, stride=2)
    windows = windows.reshape(batch, num_heads, dim, 9, -1).permute(0, 1, 4, 3, 2)
    weights = logits.reshape(batch, windows.shape[2], num_heads, 9, 9).permute(0, 2, 1, 3, 4)
    mixed = (weights * dim**-0.5).softmax(dim=-1) @ windows
    mixed = mixed.permute(0, 1, 4, 3, 2).reshape(batch, channels * 9, -1)
    return F.fold(mixed, (height, width), 3, padding=1, stride=2).permute(0, 2, 3, 1)


def our_mix(v: Tensor, logits: Tensor, num_heads: int, implementation: str | None = None) -> Tensor:
    """What the module calls between its projections."""
    scale = (v.shape[3] // num_heads) ** -0.5
    return outlook_attention(v, logits, num_heads, stride=2, scale=scale, implementation=implementation)


def compare_modules(
    report: Report, name: str, dim: int, side: int, *, batch: int = 1, dtype: torch.dtype = torch.float32
) -> None:
    """Both modules with the same weights: inference, and forward with backward."""
    device = report.settings.device
    torch.manual_seed(0)
    exact = PublishedOutlookAttention(dim, dim // 32).double()
    x64, incoming64 = (torch.randn(batch, side, side, dim, dtype=torch.float64) for _ in range(2))
    ours = OutlookAttention(dim, dim // 32, stride=2).double()
    ours.load_state_dict(exact.state_dict())
    modules = {'published': copy.deepcopy(exact), 'ours': ours}
    modules = {key: module.to(device, dtype) for key, module in modules.items()}
    x, incoming = (tensor.to(device, dtype) for tensor in (x64, incoming64))
    expected = gradients(exact, x64, incoming64)
    errors = {key: gradients(module, x, incoming) for key, module in modules.items()}
    forward = {key: largest_difference(value[0].cpu(), expected[0]) for key, value in errors.items()}
    worst = {key: max(map(largest_difference, on_cpu(value), expected)) for key, value in errors.items()}
    case = f'{name} module, {batch}x{side}x{side}x{dim} {str(dtype)[6:]}'
    with torch.inference_mode():
        report.compare(f'{case}, forward', {k: bind(m, x) for k, m in modules.items()}, errors=forward)
    steps = {key: bind(gradients, module, x, incoming) for key, module in modules.items()}
    report.compare(f'{case}, forward + backward', steps, errors=worst)


def gradients(module: nn.Module, x: Tensor, incoming: Tensor) -> list[Tensor]:
    """The result, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    result = module(x)
    return [result.detach(), *torch.autograd.grad(result, (x, *module.parameters()), incoming)]


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU."""
    return [tensor.cpu() for tensor in tensors]


def bind(function: Callable, *arguments: object) -> Callable[[], object]:
    """``function`` with its arguments in place."""
    return lambda: function(*arguments)


def compare_mixing(report: Report, name: str, dim: int, side: int, *, batch: int, bandwidth: float) -> None:
    """The operation between the projections on a GPU, in bfloat16, against a copy of the least bytes."""
    heads = dim // 32
    shapes = ((batch, side, side, dim), (batch, side // 2, side // 2, heads * 81))
    tokens, weights = (2 * math.prod(shape) for shape in shapes)
    count = math.ceil(COLD_BYTES / (tokens + weights))
    sets = [[torch.randn(s, device='cuda', dtype=torch.bfloat16) for s in (*shapes, shapes[0])] for _ in range(count)]
    mixes = {'published': published_mix, 'eager': bind_implementation('eager')}
    if explain(sets[0][0], heads, stride=2)[0] == 'fused':
        mixes['fused'] = bind_implementation('fused')

    def forward(mix: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [mix(*tensors[:2], heads)]

    def step(mix: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
        v, logits = (tensor.detach().requires_grad_() for tensor in tensors[:2])
        return list(torch.autograd.grad(mix(v, logits, heads), (v, logits), tensors[2]))

    least = {'forward': 2 * tokens + weights, 'forward + backward': 5 * tokens + 3 * weights}
    for (direction, size), work in zip(least.items(), (forward, step), strict=True):
        expected = work(published_mix, [tensor.double() for tensor in sets[0]])
        errors = {k: max(map(largest_difference, work(mix, sets[0]), expected)) for k, mix in mixes.items()}
        peers = {key: captured(bind(go_round, work, mix, sets)) for key, mix in mixes.items()}
        case = f'{name} mixing, {batch}x{side}x{side}x{dim} bfloat16, {direction}'
        for row in report.compare(case, peers, errors=errors, calls=count, memory=False):
            row.notes['of copy bandwidth'] = f'{size / row.seconds[1] / bandwidth:.0%}'


def go_round(work: Callable, mix: Callable, sets: Sequence[Sequence[Tensor]]) -> None:
    """``work`` on each set of inputs."""
    for tensors in sets:
        work(mix, tensors)


def bind_implementation(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    """``our_mix`` with one implementation."""
    return lambda v, logits, heads: our_mix(v, logits, heads, name)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a device copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    samples = interleaved({'copy': lambda: target.copy_(source)}, device='cuda', rounds=15, clock='cuda')
    return 2 * source.numel() / sorted(samples['copy'])[7]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    report = Report('Outlook attention, K = 3, stride 2', settings(parser(__doc__).parse_args(argv)))
    device = report.settings.device
    if torch.device(device).type == 'cuda':
        bandwidth = copy_bandwidth()
        report.remark(f'copy bandwidth {bandwidth / 1e12:.2f} TB/s')
        for name, dim in (('d1', 192), ('d5', 384)):
            compare_mixing(report, name, dim, 64, batch=8, bandwidth=bandwidth)
            compare_modules(report, name, dim, 64, batch=8, dtype=torch.bfloat16)
    else:
        cases = [('d1', 192, 16)] if report.settings.quick else [('d1', 192, 64), ('d1', 192, 128), ('d5', 384, 64)]
        for name, dim, side in cases:
            compare_modules(report, name, dim, side)
    chosen, why = explain(torch.empty(1, 2, 2, 192, device=device), 6, stride=2)
    report.remark(f'ours: {chosen}, because {why}')
    report.finish()


if __name__ == '__main__':
    main()
