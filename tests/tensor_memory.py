"""Memory that tensors take, for tests that hold a bound on it."""

import torch


def peak_bytes(run):
    """Bytes of tensors alive at the worst moment of ``run``, above those before."""
    run()
    with torch.profiler.profile(profile_memory=True, acc_events=False) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    alive = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        highest = max(highest, alive)
    return highest
