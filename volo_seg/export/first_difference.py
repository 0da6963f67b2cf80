"""Which operator of an ONNX graph, or which module of a network, is the first to give something else."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from volo_seg.export.graph import Graph

LIMIT = 1e-3
"""Largest difference of a value that counts as rounding, as a share of the value's largest entry."""


def first_difference(graph: Graph, image: Tensor) -> str:
    """Say in words where ``graph`` leaves the way of PyTorch for ``image`` (B, 3, H, W).

    The values of the ONNX graph have the names of the PyTorch graph's nodes that they were made from, and are compared
    with theirs in the order in which they are computed. Where all agree, the PyTorch graph itself is wrong: then its
    values are compared with what the modules of the network give.
    """
    program = values_of_program(graph, image)
    for name, node, ours in values_of_model(graph.model, image):
        if name in program and not close(ours, program[name]):
            return f'the first operator that differs is {_describe(node)}, which computes {name}'
    module = _first_module(graph, program, image)
    if module:
        return f'the first module that differs is {module}: PyTorch exports another graph of it than it runs'
    return 'no single operator differs: the fault is in how onnxruntime fuses them'


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two values are equal but for rounding."""
    if ours.shape != theirs.shape:
        return False
    if ours.numel() == 0:
        return True
    ours, theirs = ours.double(), theirs.double()
    return bool((ours - theirs).abs().max() <= LIMIT * theirs.abs().max().clamp(min=1e-12))


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor, by the name of its node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.seen[n.name] = result
        return result


def values_of_program(graph: Graph, image: Tensor) -> dict[str, Tensor]:
    """Every tensor that the PyTorch graph computes for ``image``, by its name there."""
    module = graph.program.module()
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(image)
    return recorder.seen


def values_of_model(model: Any, image: Tensor) -> Iterator[tuple[str, Any, Tensor]]:
    """(name, node, value) of every value that the ONNX graph computes, in its order."""
    import onnxruntime

    probe = type(model)()
    probe.CopyFrom(model)
    makers = {name: node for node in probe.graph.node for name in node.output if name}
    known = {output.name for output in probe.graph.output}
    for name in makers:
        if name not in known:
            probe.graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=['CPUExecutionProvider'])
    names = list(makers)
    for name, value in zip(names, session.run(names, {'image': image.numpy()}), strict=True):
        yield name, makers[name], torch.from_numpy(value) if value.dtype.kind in 'biuf' else torch.empty(0)


def _describe(node: Any) -> str:
    """An ONNX node in words: its kind, its name, and the module that it comes from."""
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get('pkg.torch.onnx.name_scopes', '[]')
    try:
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    except (ValueError, SyntaxError):
        modules = []
    return f'{node.op_type} ({node.name})' + (f' of {modules[-1].removeprefix("model.")}' if modules else '')


def _first_module(graph: Graph, program: Mapping[str, Tensor], image: Tensor) -> str:
    """The first module, in the order in which they finish, whose output the PyTorch graph does not reproduce."""
    last = _outputs_by_module(graph.program)
    for name, output in _module_outputs(graph.network, image).items():
        if name in last and last[name] in program and not close(program[last[name]], output):
            return f'{name.removeprefix("model.")} ({type(graph.network.get_submodule(name)).__name__})'
    return ''


def _outputs_by_module(program: torch.export.ExportedProgram) -> dict[str, str]:
    """The name of the last node that each module, called once, computes."""
    last: dict[str, str] = {}
    for node in program.graph.nodes:
        for path, _ in (node.meta.get('nn_module_stack') or {}).values():
            last[path] = node.name
    return last


def _module_outputs(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The last output of each module that gives a tensor, in the order in which they finish."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, out: Any) -> None:
        outputs.pop(name, None)
        if isinstance(out, Tensor):
            outputs[name] = out.clone()

    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: keep(name, out))
        for name, module in itertools.islice(network.named_modules(), 1, None)
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
