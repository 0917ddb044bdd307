"""Workers for tests of the pool: in a module of their own, so that actors in other processes can import them."""

from __future__ import annotations

import os
import time
from typing import Any

from raydrd.errors import InputError
from raydrd.spine.storage import Folder


class Doubler:
    """Writes its shard's numbers doubled, and one line in a log for each time it runs."""

    def __init__(self, *, out: Folder, log: str, delay: float = 0.0) -> None:
        self.out, self.log, self.delay = out, log, delay

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        with open(self.log, "a") as stream:
            stream.write(f"{shard['name']} {os.getpid()}\n")
        time.sleep(self.delay)
        if shard.get("fault") == "raise":
            raise ValueError(f"cannot read row {shard['lo']}")
        if shard.get("fault") == "input":
            raise InputError(f"corpus.jsonl:{shard['lo']}: not JSON; write one object a line")
        if shard.get("fault") == "die":
            os._exit(1)
        self.out.write_json(shard["name"], [2 * n for n in range(shard["lo"], shard["hi"])])
        return {"total": sum(range(shard["lo"], shard["hi"]))}


class Unbuildable:
    def __init__(self, *, input_error: bool, out: Folder) -> None:
        if input_error:
            raise InputError("teacher: it has 3 outputs; choose another model")
        raise OSError("weights are not there")

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError
