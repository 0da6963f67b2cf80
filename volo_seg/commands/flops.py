"""Count the parameters and the multiply-accumulate operations of a config's model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from volo_seg.commands import load_stack
from volo_seg.commands.flags import add_config_flags, make_parser
from volo_seg.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg flops``, those of MMSegmentation's get_flops.py."""
    parser = make_parser('flops', __doc__)
    add_config_flags(parser)
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='N', help='height and width, or one side (default: the crop size)'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Count; see ``volo-seg flops --help``."""
    args = build_parser().parse_args(argv)
    load_stack()
    from volo_seg.config.load import load_config
    from volo_seg.inference.loaded_model import load_model

    config = load_config(args.config, args.cfg_options)
    height, width = image_size(args.shape or config.model.data_preprocessor.get('size'))
    rows = count(load_model(config, 'none').model, height, width)
    print(f'{"part":<16}{"params (M)":>12}{"GMAC":>10}   at {height}x{width} pixels')
    print('\n'.join(f'{name:<16}{params / 1e6:>12.3f}{macs / 1e9:>10.2f}' for name, params, macs in rows))
    print('auxiliary_head runs in training only; MACs are counted by torch.utils.flop_counter (one MAC = two FLOPs)')
    return 0


def image_size(shape: Sequence[int] | None) -> tuple[int, int]:
    """Height and width in pixels from one or two numbers.

    Raises:
        UserError: There are no numbers or more than two, or one is below 1.
    """
    numbers = tuple(shape or ())
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise UserError(f'--shape {list(numbers)} is not one side or height and width, in pixels')
    return (numbers[0], numbers[-1])


def count(model, height: int, width: int) -> list[tuple[str, int, float]]:  # type: ignore[no-untyped-def]
    """(part, parameters, MACs for one image) of each part of a segmentor, and of all parts that run at inference."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query, key, value, *_, out_shape=None, **__):  # type: ignore[no-untyped-def]
        return sdpa_flop_count(query, key, value)

    # torch counts the attention kernels of GPUs only
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}

    def macs(run, *inputs):  # type: ignore[no-untyped-def]
        with FlopCounterMode(display=False, custom_mapping=kernels) as counter, torch.no_grad():
            outputs = run(*inputs)
        return counter.get_total_flops() / 2, outputs

    rows, total = [], [0, 0.0]
    features = torch.zeros(1, 3, height, width)
    for name in ('backbone', 'neck', 'decode_head'):
        part = getattr(model, name, None)
        if part is None:
            continue
        operations, features = macs(part, features)
        parameters = sum(p.numel() for p in part.parameters())
        rows.append((name, parameters, operations))
        total = [total[0] + parameters, total[1] + operations]
    rows.append(('inference', int(total[0]), total[1]))
    if getattr(model, 'auxiliary_head', None) is not None:
        rows.append(('auxiliary_head', sum(p.numel() for p in model.auxiliary_head.parameters()), 0.0))
    return rows
