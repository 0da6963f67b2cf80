"""The HTTP API against the predictor that it serves: latency of a lone request, throughput, memory.

    python benchmarks/serving.py --rounds 9

Server, clients and predictor are in one process, so that CPU time counts all of them; the network (volo-nano, Toyscapes
config, not trained) is the same object. Every peer decodes a JPEG of 512 x 256 pixels and encodes a label PNG, except
`Predictor alone`. Ratios above 1 are faster than the baseline, which is the predictor with decoding and encoding.
"""

import http.client
import itertools
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
from _measure import Report, parser, settings
from inference_folder import CONFIG, make_checkpoint

from volo_seg.datasets.toyscapes.scene import generate_scene
from volo_seg.imageio import decode_image
from volo_seg.inference import Predictor
from volo_seg.serve.app import build_app
from volo_seg.serve.models import Model
from volo_seg.serve.responses import label_png
from volo_seg.serve.server import listen, make_server

CLIENTS, EACH = 8, 2
HEADERS = {'Content-Type': 'image/jpeg', 'Accept': 'image/png'}


def jpegs(count: int, *, scale: float = 1.0) -> list[bytes]:
    """Toyscapes scenes as JPEG files."""
    scenes = (generate_scene(0, index, style='plain').image[..., ::-1] for index in range(count))
    return [cv2.imencode('.jpg', cv2.resize(scene, None, fx=scale, fy=scale))[1].tobytes() for scene in scenes]


class Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection('127.0.0.1', port)

    def segment(self, content: bytes, query: str = '') -> bytes:
        """The answer for one image file."""
        self.connection.request('POST', f'/v1/segment{query}', content, HEADERS)
        reply = self.connection.getresponse()
        answer = reply.read()
        assert reply.status == 200, answer
        return answer


def resident() -> float:
    """MiB of this process in memory."""
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith('VmRSS'))
    return int(line.split()[1]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    flags = parser(__doc__)
    flags.add_argument('--requests', type=int, default=1000, help='requests of the memory run (default 1000)')
    args = flags.parse_args(argv)
    report = Report('HTTP API', settings(args))
    with tempfile.TemporaryDirectory() as work:
        predictor = Predictor(CONFIG, make_checkpoint(Path(work, 'nano.pth')), device=args.device)
    files = jpegs(EACH)
    arrays = [decode_image(content, name='x') for content in files]

    def one(content: bytes) -> bytes:
        return label_png(predictor(decode_image(content, name='x')))

    with listen('127.0.0.1', 0) as listener, ThreadPoolExecutor(CLIENTS) as pool:
        server = make_server(build_app([Model('nano', predictor)]), seconds=30)
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        assert Client(port).segment(files[0]) == one(files[0])
        lone = {'Predictor, decode, encode': lambda: one(files[0]), 'API': lambda: client.segment(files[0])}

        def together() -> None:
            list(pool.map(lambda client: list(map(client.segment, files)), [Client(port) for _ in range(CLIENTS)]))

        def in_batches() -> None:
            predictor.batch_size = CLIENTS
            together()
            predictor.batch_size = 1

        many = {
            'Predictor, decode, encode': lambda: [one(content) for content in files * CLIENTS],
            'Predictor alone': lambda: [predictor(array) for array in arrays * CLIENTS],
            'API': together,
            f'API, batches of {CLIENTS}': in_batches,
        }
        for clock in ('process', 'wall'):
            client = Client(port)  # the server closes idle connections
            report.compare(f'one request, {clock} time', lone, clock=clock, memory=False)
            report.compare(f'{CLIENTS} clients, {clock} time', many, clock=clock, memory=False, calls=CLIENTS * EACH)
        client = Client(port)
        small = jpegs(EACH, scale=0.5)
        queries = ('', '?output=json&masks=rle', '?output=overlay', '?output=npz', '?output=json&include=image')
        count = 100 if report.settings.quick else args.requests
        kinds = itertools.islice(itertools.cycle(itertools.product(queries, small + files[:1])), count)
        seen = [(client.segment(content, query), resident())[1] for query, content in kinds]
        tenth = count // 10
        first, last = sum(seen[:tenth]) / tenth, sum(seen[-tenth:]) / tenth
        report.remark(f'\n{count} requests: {first:.0f} MiB resident in the first {tenth}, {last:.0f} in the last')
        server.should_exit = True
        client.connection.close()
        thread.join()
    report.finish()


if __name__ == '__main__':
    main()
