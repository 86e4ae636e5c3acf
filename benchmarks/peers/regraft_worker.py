"""regraft's Engine, by the workloads of ``regraft bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Answer, arguments, serve, take_stdout
from regraft import __version__
from regraft.bench.session import Session
from regraft.bench.workloads import WORKLOADS
from regraft.formats.gguf.file import GgufFile
from regraft.native import _core


class Regraft:
    """A GGUF file, and adapters of its own in a folder."""

    def __init__(self, path: Path, folder: Path, *, threads: int, steps: int) -> None:
        self._path = path
        self._session = Session(path, folder, threads=threads, steps=steps)

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "version": f"regraft {__version__}",
            "system": f"{_core.kernels()[0]} kernels",
            "workloads": list(WORKLOADS),
            "bits": bits_of(GgufFile(self._path)),
            "kv": "float16",
        }

    def run(self, workload: str) -> Answer:
        """See the protocol."""
        timing = self._session.run(workload)
        return Answer(timing.seconds, timing.tokens, self._session.bytes_per_token(workload))


def bits_of(file: GgufFile) -> dict[str, float]:
    """Bits per weight of the layers' matrices and of the head; codes and scales are taken over as they are."""
    head = file.tensors.get("output.weight", file.tensors["token_embd.weight"])
    layers = [tensor for name, tensor in file.tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    sizes = {"layers": layers, "head": [head]}
    return {
        part: 8 * sum(t.nbytes for t in tensors) / sum(t.shape[0] * t.shape[1] for t in tensors)
        for part, tensors in sizes.items()
    }


if __name__ == "__main__":
    pipe, args = take_stdout(), arguments()
    made = args.folder / "regraft" / args.variant
    serve(Regraft(args.folder / f"{args.variant}.gguf", made, threads=args.threads, steps=args.steps), pipe)
