"""How the benchmarks measure: peers interleaved in one process, medians and quartiles, exact peak memory.

A benchmark is a script that does this and nothing else (the first peer is the baseline of the ratios)::

    from _measure import Report, parser, settings

    def main(argv=None):
        report = Report('Outlook attention', settings(parser(__doc__).parse_args(argv)))
        with torch.inference_mode():                           # whatever mode the peers need
            report.compare(
                'd1 64x64 forward',
                {'published': lambda: old(x), 'ours': lambda: new(x)},
                errors={'ours': largest_difference(new(x), old(x))},
            )
        report.finish()                                        # prints the table, writes --json

What is measured:

* time: every round runs each peer once, in an order that turns from round to round; a sample repeats a quick
  peer until it lasts ``SAMPLE_SECONDS``. The clock is CPU time of the process on one CPU thread, wall time on
  more threads, CUDA events on a GPU; ``compare(clock='wall')`` asks for wall time (for subprocesses).
* ratio: the baseline's time over the peer's, of the same round; its median and quartiles over the rounds.
  More than 1 is faster than the baseline.
* peak: bytes of tensors allocated above what was alive at the start of one run, counted exactly: on a CPU
  from the allocator's own events (scratch space inside GEMM and convolution libraries is not seen), on a GPU
  from the caching allocator's counter.
* error: what the caller hands in, printed beside the ratio that it stands for.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAMPLE_SECONDS = 0.02
Peer = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What the shared flags say."""

    threads: int
    device: str
    rounds: int
    json: Path | None
    quick: bool


@dataclass(frozen=True)
class Row:
    """One peer of one comparison: seconds, ratios to the baseline (median and quartiles), bytes, error."""

    case: str
    peer: str
    clock: str
    seconds: tuple[float, float, float]
    ratio: tuple[float, float, float]
    peak: int | None
    peak_share: float | None
    error: float | None
    notes: dict[str, Any] = field(default_factory=dict)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The shared flags; ``doc`` is the benchmark's docstring, and its first line the help text."""
    flags = argparse.ArgumentParser(description=(doc or '').strip().split('\n')[0])
    flags.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    flags.add_argument('--device', default='cpu', help='cpu (default), cuda, cuda:1, ...')
    flags.add_argument('--rounds', type=int, default=15, help='rounds in which each peer runs (default 15)')
    flags.add_argument('--json', type=Path, metavar='FILE', help='also write the figures to FILE')
    flags.add_argument('--quick', action='store_true', help='few rounds and small cases: does it run at all?')
    return flags


def settings(args: argparse.Namespace) -> Settings:
    """Check and apply the shared flags (threads are set, the GPU is chosen)."""
    if args.threads < 1 or args.rounds < 1:
        raise SystemExit(f'error: --threads {args.threads} and --rounds {args.rounds} must be 1 or more')
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(f'error: --device {args.device} needs a CUDA build of torch and a GPU; neither is here')
    torch.set_num_threads(args.threads)
    if torch.device(args.device).type == 'cuda':
        torch.cuda.set_device(torch.device(args.device).index or 0)
    rounds = min(args.rounds, 3) if args.quick else args.rounds
    return Settings(args.threads, args.device, rounds, args.json, args.quick)


def machine(device: str) -> dict[str, str]:
    """The processor, the GPU if it is used, and the versions that the figures belong to."""
    names = {'cpu': platform.processor() or platform.machine(), 'cores': str(os.cpu_count())}
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
        names['cpu'] = models[0] if models else names['cpu']
    if torch.device(device).type == 'cuda':
        names['gpu'] = torch.cuda.get_device_name()
    return {**names, 'python': platform.python_version(), 'torch': torch.__version__}


def largest_difference(value: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the reference's largest absolute value, in float64."""
    reference = reference.detach().double()
    difference = (value.detach().double() - reference).abs().max()
    return float(difference / reference.abs().max().clamp_min(1e-30))


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(samples) < 2:
        return (samples[0],) * 3
    low, middle, high = statistics.quantiles(samples, n=4, method='inclusive')
    return low, middle, high


def interleaved(
    peers: Mapping[str, Peer], *, device: str = 'cpu', rounds: int = 15, clock: str = 'process'
) -> dict[str, list[float]]:
    """Seconds of one call of each peer, one sample a round; the order turns by one peer a round."""
    names = list(peers)
    timer = _cuda_seconds if clock == 'cuda' else _host_timer(clock)
    repeats = {}
    for name in names:
        peers[name]()
        once = min(timer(peers[name], 1) for _ in range(2))
        repeats[name] = max(1, min(1000, round(SAMPLE_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(timer(peers[name], repeats[name]))
    return samples


def _host_timer(clock: str) -> Callable[[Peer, int], float]:
    now = time.process_time if clock == 'process' else time.perf_counter

    def seconds(peer: Peer, repeats: int) -> float:
        gc.disable()
        start = now()
        for _ in range(repeats):
            peer()
        taken = now() - start
        gc.enable()
        return taken / repeats

    return seconds


def _cuda_seconds(peer: Peer, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        peer()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def captured(peer: Peer) -> Peer:
    """``peer`` as a replayed CUDA graph: the GPU's own time without Python's launches between kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            peer()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = peer()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def peak_memory(peer: Peer, *, device: str = 'cpu') -> int:
    """Bytes of tensors alive at the worst moment of one call, above those alive before it."""
    peer()
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peer()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=False
    ) as profile:
        peer()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = ((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == '[memory]')
    return _highest(change for _, change in sorted(changes, key=lambda item: item[0]))


def _highest(changes: Iterable[int]) -> int:
    alive = highest = 0
    for change in changes:
        alive += change
        highest = max(highest, alive)
    return highest


class Report:
    """Collects comparisons; prints one table and writes one JSON file at the end."""

    def __init__(self, title: str, settings: Settings) -> None:
        self.title, self.settings = title, settings
        self.rows: list[Row] = []
        self.remarks: list[str] = []

    def compare(
        self,
        case: str,
        peers: Mapping[str, Peer],
        *,
        errors: Mapping[str, float] | None = None,
        notes: Mapping[str, Mapping[str, Any]] | None = None,
        clock: str | None = None,
        memory: bool = True,
        calls: int = 1,
    ) -> list[Row]:
        """Time ``peers`` side by side and measure their peaks; the first one is the baseline.

        ``calls`` is how often a peer does its work when called once: times are divided by it, peaks are not.
        ``notes`` holds further columns for each peer.
        """
        clock = clock or self._clock()
        samples = interleaved(peers, device=self.settings.device, rounds=self.settings.rounds, clock=clock)
        peaks = {n: peak_memory(p, device=self.settings.device) for n, p in peers.items()} if memory else {}
        base = next(iter(peers))
        rows = []
        for name in peers:
            ratios = [old / new for old, new in zip(samples[base], samples[name], strict=True)]
            share = peaks[name] / peaks[base] if peaks.get(base) else None
            error, note = (errors or {}).get(name), dict((notes or {}).get(name, {}))
            times = quartiles([sample / calls for sample in samples[name]])
            rows.append(Row(case, name, clock, times, quartiles(ratios), peaks.get(name), share, error, note))
        self.rows += rows
        return rows

    def _clock(self) -> str:
        if torch.device(self.settings.device).type == 'cuda':
            return 'cuda'
        return 'process' if self.settings.threads == 1 else 'wall'

    def remark(self, line: str) -> None:
        """A line to stand under the table."""
        self.remarks.append(line)

    def table(self) -> str:
        """The rows as a Markdown table."""
        extra = list(dict.fromkeys(key for row in self.rows for key in row.notes))
        heads = [
            'case',
            'peer',
            'time',
            'quartiles',
            'ratio',
            'quartiles',
            'peak MiB',
            'share',
            'error',
            *extra,
        ]
        lines = [heads, ['---'] * len(heads), *(_cells(row, extra) for row in self.rows)]
        return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)

    def finish(self) -> None:
        """Print the title, the machine and the table; write ``--json``."""
        about = machine(self.settings.device)
        print(f'# {self.title}')
        print(', '.join(f'{key} {value}' for key, value in about.items()), end='; ')
        clocks = sorted({row.clock for row in self.rows})
        print(f'threads {self.settings.threads}, rounds {self.settings.rounds}, clock {"/".join(clocks)}\n')
        print(self.table())
        print(*self.remarks, sep='\n')
        if self.settings.json is not None:
            content = {'title': self.title, 'machine': about, 'threads': self.settings.threads}
            content |= {'rounds': self.settings.rounds, 'remarks': self.remarks}
            write_whole(self.settings.json, json.dumps({**content, 'rows': [asdict(r) for r in self.rows]}, indent=1))


def _cells(row: Row, extra: Sequence[str]) -> list[str]:
    low, middle, high = row.seconds
    slow, usual, fast = row.ratio
    return [
        row.case,
        row.peer,
        _time(middle),
        f'{_time(low)}-{_time(high)}',
        f'{usual:.2f}x',
        f'{slow:.2f}-{fast:.2f}',
        '-' if row.peak is None else f'{row.peak / 2**20:.1f}',
        '-' if row.peak_share is None else f'{row.peak_share:.2f}',
        '-' if row.error is None else f'{row.error:.1e}',
        *(str(row.notes.get(key, '-')) for key in extra),
    ]


def _time(seconds: float) -> str:
    for unit, factor in (('s', 1.0), ('ms', 1e3)):
        if seconds * factor >= 1:
            return f'{seconds * factor:.3g} {unit}'
    return f'{seconds * 1e6:.3g} us'


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` and a line end to ``path``, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.part')
    try:
        with os.fdopen(handle, 'w') as file:
            file.write(text + '\n')
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
