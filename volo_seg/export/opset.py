"""From the opset that PyTorch exports to an older one, by the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from volo_seg.errors import UserError

NATIVE = 18
"""What PyTorch's exporter writes itself; it lowers nothing."""
LOWEST = 13
"""Below it ``QuantizeLinear`` has no axis (int8 per channel), and ``Clip`` and ``Min`` take no whole numbers."""
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8}
"""The oldest file format of each opset, so that old runtimes open it."""

Node = Any
Rule = Callable[[Node], Iterator[Node]]


def lower(model: Any, opset: int) -> Any:
    """A copy of ``model`` (opset ``NATIVE``) in operators of ``opset``; names of values are kept.

    Raises:
        UserError: ``opset`` is below ``LOWEST``, or an operator has no older form here.
    """
    from onnx import checker

    check_opset(opset)
    lowered = type(model)()
    lowered.CopyFrom(model)
    nodes = [new for node in model.graph.node for new in _older(node, opset)]
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    del lowered.opset_import[:]
    lowered.opset_import.add(domain='', version=opset)
    lowered.ir_version = IR_VERSIONS.get(opset, lowered.ir_version)
    try:
        checker.check_model(lowered)
    except checker.ValidationError as error:
        raise UserError(f'the graph has no form of opset {opset} ({" ".join(str(error).split())})') from error
    return lowered


def check_opset(opset: int) -> None:
    """Raise UserError if ``opset`` is too low."""
    if opset < LOWEST:
        raise UserError(
            f'--opset {opset} is too low: {LOWEST} is the lowest (older ones lack int8 per channel and whole-number '
            'Clip and Min)'
        )


def _older(node: Node, opset: int) -> Iterator[Node]:
    """``node`` in operators of ``opset``."""
    rule = next((rule for name, since, rule in RULES if node.op_type == name and opset < since), None)
    yield from [node] if rule is None else rule(node)


def _attributes(node: Node) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _without(*names: str, only: dict[str, Any]) -> Rule:
    """Drop the attributes ``names``, of which those in ``only`` must have that value."""

    def rule(node: Node) -> Iterator[Node]:
        for name, value in _attributes(node).items():
            if name in only and value != only[name]:
                raise UserError(f'{node.op_type} with {name}={value} ({node.name}) has no older form; raise --opset')
        kept = [attribute for attribute in node.attribute if attribute.name not in names]
        copy = type(node)()
        copy.CopyFrom(node)
        del copy.attribute[:]
        copy.attribute.extend(kept)
        yield copy

    return rule


def _constant(name: str, values: Any) -> Node:
    from onnx import helper, numpy_helper

    return helper.make_node('Constant', [], [name], name=f'{name}_node', value=numpy_helper.from_array(values))


def _make(node: Node, kind: str, inputs: list[str], output: str, **attributes: Any) -> Node:
    """A node that does a part of what ``node`` did, with its metadata."""
    from onnx import helper

    made = helper.make_node(kind, inputs, [output], name=f'{node.name}_{output}', **attributes)
    made.metadata_props.extend(node.metadata_props)
    return made


def _shape(node: Node) -> Iterator[Node]:
    """``Shape`` from ``start`` to ``end``, as a slice of the whole shape."""
    import numpy as np

    values, (out,) = _attributes(node), node.output
    if not {'start', 'end'} & set(values):
        yield node
        return
    yield _constant(f'{out}_start', np.array([values.get('start', 0)], np.int64))
    yield _constant(f'{out}_end', np.array([values.get('end', 2**31)], np.int64))
    yield _make(node, 'Shape', list(node.input), f'{out}_whole')
    yield _make(node, 'Slice', [f'{out}_whole', f'{out}_start', f'{out}_end'], out)


def _layer_normalization(node: Node) -> Iterator[Node]:
    """Spelled out, in the form that runtimes recognise and fuse again."""
    import numpy as np

    values, out = _attributes(node), node.output[0]
    if values.get('axis', -1) != -1 or len([name for name in node.output if name]) != 1:
        raise UserError(f'LayerNormalization over other axes than the last ({node.name}) has no older form here')
    x, scale, *bias = node.input
    yield _constant(f'{out}_two', np.array(2, np.float32))
    yield _constant(f'{out}_eps', np.array(values.get('epsilon', 1e-5), np.float32))
    yield _make(node, 'ReduceMean', [x], f'{out}_mean', axes=[-1], keepdims=1)
    yield _make(node, 'Sub', [x, f'{out}_mean'], f'{out}_centred')
    yield _make(node, 'Pow', [f'{out}_centred', f'{out}_two'], f'{out}_squares')
    yield _make(node, 'ReduceMean', [f'{out}_squares'], f'{out}_variance', axes=[-1], keepdims=1)
    yield _make(node, 'Add', [f'{out}_variance', f'{out}_eps'], f'{out}_safe')
    yield _make(node, 'Sqrt', [f'{out}_safe'], f'{out}_deviation')
    yield _make(node, 'Div', [f'{out}_centred', f'{out}_deviation'], f'{out}_normal')
    yield _make(node, 'Mul', [f'{out}_normal', scale], f'{out}_scaled' if bias else out)
    if bias:
        yield _make(node, 'Add', [f'{out}_scaled', bias[0]], out)


RULES: tuple[tuple[str, int, Rule], ...] = (
    ('LayerNormalization', 17, _layer_normalization),
    ('Shape', 15, _shape),
    ('Reshape', 14, _without('allowzero', only={})),  # differs for sides of 0 pixels alone
    ('Split', 18, _without('num_outputs', only={})),
    (
        'Resize',
        18,
        _without(
            'antialias',
            'axes',
            'keep_aspect_ratio_policy',
            only={'antialias': 0, 'axes': None, 'keep_aspect_ratio_policy': b'stretch'},
        ),
    ),
)
"""(operator, the opset that brought its newer form, how the older one looks)."""
